"""What a user can call is documented: events, error codes, commands, make targets, environment."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from modeld import errors, keys
from modeld.app import _parser
from modeld.config import ENVIRONMENT

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()
HTTP = (ROOT / "docs" / "http.md").read_text()


def all_errors() -> list[type[errors.ModeldError]]:
    found, todo = [], [errors.ModeldError]
    while todo:
        kind = todo.pop()
        found.append(kind)
        todo += kind.__subclasses__()
    return found


def test_every_error_code_that_a_client_can_see_is_documented() -> None:
    internal = {"request_cancelled", "bad_configuration", "library_mismatch"}
    codes = {kind.code for kind in all_errors()} - internal
    assert not [code for code in codes if f"`{code}`" not in HTTP]


@pytest.mark.parametrize(
    "event",
    [
        "snapshot",
        "resync",
        "model_switch_started",
        "model_switch_phase",
        "model_loading_progress",
        "model_ready",
        "model_error",
        "model_unloaded",
        "config_reloaded",
        "config_error",
        "shutdown",
    ],
)
def test_every_event_is_documented(event: str) -> None:
    assert f"| `{event}` |" in HTTP


def test_every_make_target_in_the_readme_exists_and_help_lists_the_important_ones() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z]+)", README)) <= targets
    helped = set(re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE))
    assert {"fetch", "build", "run", "test", "lint", "tidy", "bench", "soak", "clean", "help"} <= helped


def test_every_environment_variable_is_in_the_readme() -> None:
    for name in (*ENVIRONMENT, "MODELD_CONFIG", keys.VARIABLE):
        assert name in README
        assert f"| `{name}` |" in CONFIGURATION


def test_every_command_is_in_the_readme() -> None:
    commands = re.findall(r"\{?([a-z]+)\}?", _parser().format_help().split("COMMAND", 1)[1].split("options:")[0])
    assert {"serve", "check", "verify"} <= set(commands)
    for command in ("serve", "check", "verify"):
        assert f"modeld {command}" in README
