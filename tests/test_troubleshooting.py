"""docs/troubleshooting.md has a place for every error code, and quotes no message that the sources do not have."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from modeld import errors

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
FIRST_CELLS = re.findall(r"^\| ((?:`[^`]*`|[^|`])*) \|", PAGE, re.MULTILINE)


def codes() -> Iterator[str]:
    todo: list[type[errors.ModeldError]] = [errors.ModeldError]
    while todo:
        kind = todo.pop()
        yield kind.code
        todo += kind.__subclasses__()


def texts() -> Iterator[str]:
    """Every text of the sources, with a mark where a value is put in."""
    for path in [*(ROOT / "modeld").rglob("*.py"), ROOT / "scripts" / "bundle.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


SOURCES = "\1".join(re.sub(r"%\(?[a-z_]*\)?[#0-9.]*[a-z]", "\0", text) for text in texts())


def quoted() -> Iterator[str]:
    """What stands in the first cells in backticks and is a message: it has a space in it."""
    for cell in FIRST_CELLS:
        for text in re.findall(r"`([^`]+)`", cell):
            if " " in text and not text.startswith(("GET ", "POST ", "DELETE ", "PUT ")):
                yield text


def parts(message: str) -> list[str]:
    return [part for part in (one.strip(" ,;:()'") for one in message.split("...")) if len(part) > 3]


@pytest.mark.parametrize("code", sorted(set(codes())))
def test_every_error_code_has_its_place(code: str) -> None:
    assert [cell for cell in FIRST_CELLS if f"`{code}`" in cell]


def test_there_are_messages_to_look_for() -> None:
    assert len(set(quoted())) > 50
    assert parts("the op ... has ended already: ...") == ["the op", "has ended already"]


@pytest.mark.parametrize("message", sorted(set(quoted())))
def test_a_message_that_is_quoted_exists(message: str) -> None:
    assert [part for part in parts(message) if part not in SOURCES] == []


def test_the_lines_of_the_log_that_the_guide_names_exist() -> None:
    table = (ROOT / "docs" / "operations.md").read_text().split("| line | means |")[1].split("\n\n")[0]
    lines = re.findall(r"`([^`]+)`", "".join(row.split("|")[1] for row in table.strip().splitlines()[1:]))
    assert len(lines) > 10
    assert [part for line in lines for part in parts(line) or [line] if part not in SOURCES] == []


def test_limits_are_told() -> None:
    told = PAGE.split("## What modeld does not do")[1]
    assert all(word in told for word in ("TLS", "One model at a time", "Linux only", "arm64", "No downloads", "estimated"))
