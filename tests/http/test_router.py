"""Which route answers a method and a path. Pure."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from modeld.errors import InvalidRequest, MethodNotAllowed, NotFound
from modeld.httpapi.parameters import _UNSUPPORTED_CHAT, _UNSUPPORTED_COMPLETION
from modeld.httpapi.router import ROUTES, match, options
from modeld.types import SamplingParams


@pytest.mark.parametrize(
    ("method", "path", "route", "params"),
    [
        ("GET", "/status", "/status", {}),
        ("HEAD", "/status", "/status", {}),
        ("GET", "/%73tatus", "/status", {}),
        ("GET", "/ops/a-1", "/ops/{op_id}", {"op_id": "a-1"}),
        ("GET", "/v1/models/qwen:0.5b", "/v1/models/{model_id}", {"model_id": "qwen:0.5b"}),
        ("GET", "/v1/models/qwen%3A0.5b", "/v1/models/{model_id}", {"model_id": "qwen:0.5b"}),
        ("GET", "/v1/models/org%2Fname", "/v1/models/{model_id}", {"model_id": "org/name"}),
        ("POST", "/v1/chat/completions", "/v1/chat/completions", {}),
    ],
)
def test_a_route_is_found(method, path, route, params):
    found, found_params = match(method, path)
    assert (found.path, dict(found_params)) == (route, params)


@pytest.mark.parametrize(
    "path",
    [
        "*",
        "/page",
        "/page/",
        "/page/a/b",
        "/status/",
        "//status",
        "/Status",
        "/op",
        "/ops/",
        "/ops/a/b",
        "/./status",
        "/v1/../status",
    ],
)
def test_other_paths_are_404(path):
    with pytest.raises(NotFound):
        match("GET", path)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/status", ("GET", "HEAD", "OPTIONS")),
        ("GET", "/switch", ("OPTIONS", "POST")),
        ("HEAD", "/switch", ("OPTIONS", "POST")),
    ],
)
def test_a_known_path_with_another_verb_says_what_is_allowed(method, path, allow):
    with pytest.raises(MethodNotAllowed) as caught:
        match(method, path)
    assert caught.value.allow == allow


def test_what_a_path_takes_can_be_asked():
    assert options("/switch") == ("OPTIONS", "POST")
    assert options("/ops/1") == ("DELETE", "GET", "HEAD", "OPTIONS")
    assert options("*") == ("DELETE", "GET", "HEAD", "OPTIONS", "POST")
    with pytest.raises(NotFound):
        options("/nothing")


def test_a_path_that_is_not_utf_8_is_400():
    with pytest.raises(InvalidRequest):
        match("GET", "/ops/%ff")


DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "http.md"


def test_every_parameter_is_documented():
    text = DOCUMENT.read_text()
    samplers = [field.name for field in dataclasses.fields(SamplingParams)]
    missing = [name for name in (*samplers, *_UNSUPPORTED_COMPLETION, *_UNSUPPORTED_CHAT) if f"`{name}`" not in text]
    assert not missing


def test_every_route_is_documented():
    text = DOCUMENT.read_text()
    missing = [f"{route.method} {route.path}" for route in ROUTES if f"`{route.method} {route.path}`" not in text]
    assert not missing
