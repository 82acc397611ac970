"""What a user can call is documented: events, error codes, commands, make targets, environment."""

from __future__ import annotations

import argparse
import ast
import re
from pathlib import Path

import pytest

from modeld import errors, exits, keys
from modeld.arguments import COMMANDS
from modeld.cli import target
from modeld.config import ENVIRONMENT
from modeld.httpapi.description import document
from modeld.httpapi.router import ROUTES, Route
from modeld.reload import LIVE_SERVER_KEYS
from modeld.settings import LIMIT_KEYS, MODEL_KEYS, SERVER_KEYS, SWITCHING_KEYS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()
HTTP = (ROOT / "docs" / "http.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
COMMAND_LINE = (ROOT / "docs" / "command-line.md").read_text()
SWITCHING = (ROOT / "docs" / "switching.md").read_text()
PAGES = sorted({ROOT / "README.md", *(ROOT / "docs").glob("*.md")})


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


def events() -> set[str]:
    """What is published or sent by name: the first text of a call that does so."""
    callers = {"_publish": 0, "event": 0, "event_frame": 1, "passing_frame": 0}  # and which of its arguments is the name
    found = set()
    senders = [ROOT / "modeld" / "httpapi" / name for name in ("control.py", "load.py")]
    for path in [*(ROOT / "modeld" / "manager").glob("*.py"), *senders]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in callers:
                name = node.args[callers[node.func.attr]]
                if isinstance(name, ast.Constant):
                    found.add(str(name.value))
    return found


def test_every_event_is_documented_and_described_and_no_other() -> None:
    assert {"snapshot", "resync", "model_ready", "shutdown"} <= events()
    told = HTTP.split("\n## Events\n")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `([a-z_]+)` \|", told, re.MULTILINE)) == events()
    kinds = document("")["components"]["schemas"]["Event"]["oneOf"]
    assert {kind["properties"]["event"]["const"] for kind in kinds} == events()


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


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_every_command_is_in_the_readme(command: str) -> None:
    assert f"modeld {command}" in README


def test_every_client_command_variable_and_exit_status_is_on_the_page_of_the_command_line() -> None:
    for command in COMMANDS:
        if command.run.startswith("modeld.cli."):
            assert f"| [`modeld {command.name}`](" in COMMAND_LINE
            assert command.description.count("Exit status: ") == 1
    for name in (target.SERVER_VARIABLE, target.KEY_VARIABLE, *target.KEYS):
        assert f"`{name}`" in COMMAND_LINE
    statuses = [value for name, value in vars(exits).items() if name.isupper()]
    assert sorted(map(int, re.findall(r"^\| (\d+) \| ", COMMAND_LINE, re.MULTILINE))) == sorted(statuses)


def test_every_flag_of_a_client_command_is_on_its_page_and_no_other() -> None:
    flags = {"--help"}
    for command in COMMANDS:
        if command.run.startswith("modeld.cli."):
            command.add(made := argparse.ArgumentParser())
            flags |= {name for action in made._actions if action.help != argparse.SUPPRESS for name in action.option_strings}
    assert {name for name in flags if name.startswith("--")} == set(re.findall(r"--[a-z][a-z-]+", COMMAND_LINE))


# -- the pages among themselves


def anchors(page: Path) -> list[str]:
    """As GitHub makes them of headings: in lower case, without punctuation, a hyphen for a space."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_resolves_to_a_file_and_a_heading(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()) if "://" not in link]
    for link in links:
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_has_two_headings_of_one_name(page: Path) -> None:
    found = anchors(page)
    assert found
    assert len(set(found)) == len(found)


def test_every_module_has_its_place_in_the_architecture_and_no_other_is_there() -> None:
    modules = {path.name for path in (ROOT / "modeld").rglob("*.py")} - {"__init__.py", "__main__.py"}
    rooms = ARCHITECTURE.split("## Rooms")[1].split("```")[1]
    assert set(re.findall(r"\b[a-z0-9_]+\.py\b", rooms)) == modules


def test_every_thread_is_in_the_table() -> None:
    sources = [path.read_text() for path in (ROOT / "modeld").rglob("*.py")]
    begun = r"(?:start_thread\(\s*|Pulse\(|thread=)f?\"(modeld-[a-z]+)"
    names = {name for source in sources for name in re.findall(begun, source)}
    assert {"modeld-http", "modeld-switch", "modeld-log"} <= names
    assert not [name for name in names if f"| `{name}" not in ARCHITECTURE]


def test_every_key_that_a_reload_takes_over_is_told() -> None:
    [row] = [line for line in SWITCHING.splitlines() if line.startswith("| `models`") and "at once" in line]
    assert not [key for key in LIVE_SERVER_KEYS if f"`{key}`" not in row]


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_is_in_the_readme(route: Route) -> None:
    path = route.path.replace("/v1/models/{model_id}", "/v1/models/{id}")
    assert re.search(rf"^\|[^|]*[` ]{re.escape(path)}[` ]", README, re.MULTILINE)


# -- the index


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    assert [page.name for page in PAGES if page.name != "README.md" and f"[{page.name}]({page.name})" not in index] == []


def test_every_command_that_a_page_names_exists() -> None:
    names = {command.name for command in COMMANDS}
    for page in PAGES:
        named = set(re.findall(r"(?:`|^\$ )modeld ([a-z]+)\b", page.read_text(), re.MULTILINE))
        assert named <= names, page.name


# -- from llama-server to modeld


RECIPES = (ROOT / "docs" / "recipes.md").read_text()
FROM_LLAMA_SERVER = RECIPES.split("## From llama-server")[1].split("\n## ")[0]
CONFIGURATION_KEYS = {"server": SERVER_KEYS, "switching": SWITCHING_KEYS, "limits": LIMIT_KEYS, "models": MODEL_KEYS}
OWN_KEYS = {"name", "quant", "family", "max_step_ms", "sha256"}  # which llama-server has nothing like


def test_every_key_of_a_model_that_llama_server_has_too_is_in_the_recipe() -> None:
    told = set(re.findall(r"^\| `[^|]+ \| `([a-z_]+)` \|", FROM_LLAMA_SERVER, re.MULTILINE))
    assert told == {key.name for key in MODEL_KEYS} - OWN_KEYS
    known = {f"{section}.{key.name}" for section, keys in CONFIGURATION_KEYS.items() for key in keys}
    assert set(re.findall(r"`((?:server|switching)\.[a-z_]+)`", RECIPES)) <= known


def test_the_recipe_names_flags_that_the_pinned_llama_server_has() -> None:
    source = (ROOT / "third_party" / "llama.cpp" / "common" / "arg.cpp").read_text()
    flags = set(re.findall(r"`(--?[a-zA-Z][a-z-]*)`", FROM_LLAMA_SERVER)) - {"--host", "--port"}
    assert len(flags) > 40
    assert not [flag for flag in flags if f'"{flag}"' not in source]
