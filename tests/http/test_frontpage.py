"""The page at `/`: who gets it, how it is kept, what it may do, and that it holds nothing of anybody."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from raw_client import RawClient

from modeld.errors import ModeldError
from modeld.httpapi import frontpage
from modeld.httpapi.description import document
from modeld.httpapi.server import HttpServer

PAGE = Path(frontpage.__file__).parent / "page"
FILES = sorted(path.name for path in PAGE.iterdir())
CHROMIUM = "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
TEXTS = {name: (PAGE / name).read_text() for name in FILES}


def test_a_browser_gets_the_page_and_a_program_gets_links(client: RawClient):
    page = client.request("GET", "/", None, CHROMIUM)
    assert (page.status, page.fields["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.body == (PAGE / "index.html").read_bytes()
    for accept in ((), ("Accept: */*",), ("Accept: application/json",), ("Accept: text/html;q=0, */*",)):
        told = client.request("GET", "/", None, *accept)
        assert (told.status, told.fields["content-type"], told.json["service"]) == (200, "application/json", "modeld")
        assert told.fields["vary"] == page.fields["vary"] == "Accept, Origin"


def test_what_programs_are_told_is_there(client: RawClient):
    paths = document("1")["paths"]
    links = client.request("GET", "/").json["links"].values()
    assert [link for link in links if not any(path.startswith(link) for path in paths)] == []


@pytest.mark.parametrize("name", [name for name in FILES if name != "index.html"])
def test_each_file_has_its_type_and_a_tag(client: RawClient, name: str):
    answer = client.request("GET", f"/page/{name}")
    assert answer.status == 200
    assert answer.fields["content-type"] == frontpage.TYPES[name.rpartition(".")[2]]
    assert answer.body == (PAGE / name).read_bytes()
    assert answer.fields["cache-control"] == "no-cache"
    again = client.request("GET", f"/page/{name}", None, f'If-None-Match: W/{answer.fields["etag"]}, "other"')
    assert (again.status, again.body, again.fields["etag"]) == (304, b"", answer.fields["etag"])
    assert not {"content-length", "content-type"} & {*again.fields}
    assert client.request("GET", f"/page/{name}", None, 'If-None-Match: "other"').status == 200
    head = client.request("HEAD", f"/page/{name}")
    assert (head.status, head.body, head.fields["content-length"]) == (200, b"", str(len(answer.body)))


@pytest.mark.parametrize("name", ["nothing.js", "index.html", "..", "%2e%2e%2ffrontpage.py", "..%2Fopenapi.json", "page.js%00"])
def test_no_other_file_is_given_out(client: RawClient, name: str):
    assert client.request("GET", f"/page/{name}").code == "not_found"


def test_it_may_run_what_came_from_here_and_nothing_else(client: RawClient):
    for answer in (client.request("GET", "/", None, CHROMIUM), client.request("GET", "/page/page.js")):
        policy = dict(part.strip().split(" ", 1) for part in answer.fields["content-security-policy"].split(";"))
        assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert "unsafe" not in answer.fields["content-security-policy"]
        assert answer.fields["x-content-type-options"] == "nosniff"
        assert answer.fields["x-frame-options"] == "DENY"


def test_it_names_no_other_site_and_has_no_script_or_style_inside():
    html = TEXTS["index.html"]
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", html)
    assert re.findall(r"<script[^>]*>(.*?)</script>", html, re.DOTALL) == ["", ""]
    for name, text in TEXTS.items():
        assert not re.findall(r"(?:https?:)?//[a-z][\w.-]*\.[a-z]{2,}", text.replace("http://www.w3.org/", "")), name
        for address in re.findall(r"(?:href|src)=\"([^\"#]+)\"", text) if name.endswith(".html") else ():
            assert address == "openapi.json" or address.removeprefix("page/") in FILES


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".js")])
def test_no_script_makes_markup_or_code_of_a_text(name: str):
    risky = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|srcdoc|setTimeout\(\s*[\"'`]"
    assert not re.findall(risky, TEXTS[name])
    assert "localStorage" not in TEXTS[name] or name == "theme.js"  # which keeps nothing but light or dark
    for imported in re.findall(r'from "\./([^"]+)"', TEXTS[name]):
        assert imported in FILES


def test_without_scripts_it_says_in_one_piece_what_works():
    """A notice lays out what it holds side by side: pieces of a text would be columns."""
    (said,) = re.findall(r"<noscript><p class=\"notice bad\">(.*?)</p></noscript>", TEXTS["index.html"])
    assert re.fullmatch(r"<span>(?:(?!</?span).)*</span>", said)


def test_every_error_has_words():
    def codes(kind: type[ModeldError]) -> set[str]:
        return {kind.code}.union(*map(codes, kind.__subclasses__()))

    never_seen = {"request_cancelled", "bad_configuration", "library_mismatch"}
    worded = set(re.findall(r"^    ([a-z_]+): \[", TEXTS["words.js"], re.MULTILINE))
    assert codes(ModeldError) - never_seen - worded == set()


def test_every_event_has_words():
    named = set(re.findall(r'case "(\w+)":', TEXTS["words.js"]))
    described = {
        branch["properties"]["event"]["const"] for branch in document("1")["components"]["schemas"]["Event"]["oneOf"]
    } - {"figures"}
    assert described - named == set()


def test_every_choice_of_a_switch_is_on_the_page():
    members = document("1")["paths"]["/switch"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schemas = document("1")["components"]["schemas"]
    names = set(re.findall(r'name="(\w+)"', TEXTS["index.html"]))
    wanted = set(_members(members, schemas)) - {"model_id"}
    assert wanted
    assert wanted - names == set()


def _members(schema: dict[str, Any], schemas: dict[str, Any]) -> list[str]:
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    own = list(schema.get("properties", {}))
    return own + [name for part in schema.get("allOf", ()) for name in _members(part, schemas)]


def test_it_is_there_while_the_daemon_stops(server: HttpServer, client: RawClient):
    server.begin_stop()
    assert client.request("GET", "/", None, CHROMIUM).status == 200
