"""docs/api.md is what the OpenAPI document says, and has every route, parameter, shape and code of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from modeld.httpapi.description import document
from modeld.httpapi.router import ROUTES, Route
from scripts.api_reference import GROUPS, TARGET, reference

DESCRIBED = document("")
PAGE = TARGET.read_text()


def section(title: str, level: str = "###") -> str:
    found = re.search(rf"^{level} {re.escape(title)}\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/api.md has no section {title}"
    return found[1]


def test_the_page_is_current() -> None:
    assert reference() == PAGE, "run python -m scripts.api_reference"


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_a_route_has_its_parameters_body_answers_and_codes(route: Route) -> None:
    item = DESCRIBED["paths"][route.path]
    operation = item[route.method.lower()]
    text = section(f"{route.method} {route.path}")
    shared = section("All routes", "##")
    for name in re.findall(r"\{(\w+)\}", route.path):
        assert f"| `{name}` | path |" in text
    for parameter in operation.get("parameters", ()):
        name = parameter.get("name") or DESCRIBED["components"]["parameters"][parameter["$ref"].rpartition("/")[2]]["name"]
        assert f"| `{name}` |" in text
    assert ("Body" in text) == ("requestBody" in operation)
    assert "curl" in text
    for status, answer in operation["responses"].items():
        codes = answer.get("content", {}).get("application/json", {}).get("examples", ())
        told = re.findall(rf"^\| (?:any \| |all that need a key \| |POST \| )?{status} \|.*$", shared + text, re.MULTILINE)
        assert told, status
        assert not [code for code in codes if f"`{code}`" not in "".join(told)]


def test_no_route_is_said_to_refuse_what_it_does_not() -> None:
    assert [told for told, _ in GROUPS] == ["any", "all that need a key", "POST"]
    assert "`invalid_api_key`" not in section("GET /livez")
    assert "| all that need a key | 401 | `invalid_api_key` |" in section("All routes", "##")
    assert "POST" not in "".join(re.findall(r"^\| any \|.*$", PAGE, re.MULTILINE))


@pytest.mark.parametrize("name", DESCRIBED["components"]["schemas"])
def test_every_shape_has_a_section_with_its_members(name: str) -> None:
    text = section(name)
    schema = DESCRIBED["components"]["schemas"][name]
    members = [member for one in (schema, *schema.get("anyOf", ())) for member in one.get("properties", ())]
    assert not [member for member in members if f"| `{member}` |" not in text]
    assert len(text.split()) > 0


@pytest.mark.parametrize("code", DESCRIBED["components"]["examples"])
def test_every_error_code_has_a_row_with_its_status(code: str) -> None:
    assert re.search(rf"^\| `{code}` \| [0-9, ]+ \| `\w+` \| .+ \|$", section("Error codes", "##"), re.MULTILINE)


def test_every_header_field_of_answers_has_a_row() -> None:
    text = section("Header fields of answers", "##")
    assert not [name for name in DESCRIBED["components"]["headers"] if f"| `{name}` |" not in text]


def test_the_script_says_when_the_page_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from scripts import api_reference

    monkeypatch.setattr(api_reference, "TARGET", tmp_path / "api.md")
    monkeypatch.setattr("sys.argv", ["api_reference", "--check"])
    assert api_reference.main() == 1
    assert "run python -m scripts.api_reference" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["api_reference"])
    assert api_reference.main() == 0
    assert api_reference.TARGET.read_text() == PAGE
