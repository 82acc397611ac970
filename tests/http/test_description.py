"""/openapi.json and the code say the same, whichever of them is asked first. Pure: the routes' answers are in test_answers.py."""

from __future__ import annotations

import contextlib
import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from fake_service import FakeService
from openapi_spec_validator import OpenAPIV31SpecValidator
from raw_client import RawClient

from modeld import errors
from modeld.clientlimits import LimitPolicy
from modeld.errors import InvalidRequest, ModeldError
from modeld.httpapi import embeddings, messages, ops, parameters, schema, tools
from modeld.httpapi.caller import Access, Caller
from modeld.httpapi.description import document
from modeld.httpapi.fields import Fields
from modeld.httpapi.limits import Limits
from modeld.httpapi.message import Request
from modeld.httpapi.quotas import Counts, Quotas
from modeld.httpapi.record import Record
from modeld.httpapi.router import ROUTES, Route
from modeld.httpapi.strictjson import parse_object
from modeld.metrics import Registry
from modeld.policy import SwitchOptions
from modeld.types import OpKind, OpReason, OpState, Phase, SamplingParams, State, Step, ToolCallFormat
from tests.described import Described, subschemas

DOCUMENT = document("1.2.3")
DESCRIBED = Described(DOCUMENT)
SCHEMAS = DOCUMENT["components"]["schemas"]

# Errors that no response carries: those of a start, of an op (`OpError.code`), and of who has left.
NEVER_ANSWERED = {
    "bad_configuration",
    "library_mismatch",
    "request_cancelled",
    "model_load_failed",
    "load_stalled",
    "probe_failed",
    "op_cancelled",
}


def test_the_document_is_openapi_3_1():
    assert DOCUMENT["openapi"].startswith("3.1.")
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_it_is_served_with_the_daemons_version(client: RawClient, service: FakeService):
    answer = client.request("GET", "/openapi.json")
    assert (answer.status, answer.fields["content-type"]) == (200, "application/json")
    assert answer.json == document(service.status_now.version)


def test_no_notation_of_ours_is_left_in_it():
    assert not re.findall(r'"x-(?!should-retry|ratelimit)[a-z-]+"', json.dumps(DOCUMENT))


def test_every_route_is_in_it_and_every_operation_is_a_route():
    assert {(method, path) for method, path, _ in DESCRIBED.operations()} == {(route.method, route.path) for route in ROUTES}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_each_operation_asks_for_the_scope_of_its_route(route: Route):
    asked = DESCRIBED.operation(route.method, route.path).get("security", DOCUMENT["security"])
    schemes = DOCUMENT["components"]["securitySchemes"]
    assert asked == ([] if route.access is Access.OPEN else [{name: [route.access.value]} for name in schemes])


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_what_counts_for_a_clients_limits_says_so(route: Route):
    responses = DESCRIBED.operation(route.method, route.path)["responses"]
    codes = {*responses["429"]["content"]["application/json"]["examples"]} if "429" in responses else set()
    by_quotas = {
        Counts.NOTHING: {"too_many_requests"} if route.path == "/events" else set(),  # for its streams
        Counts.REQUEST: {"rate_limit_exceeded"},
        Counts.GENERATION: {"rate_limit_exceeded", "too_many_requests"},
    }
    assert codes - {"queue_full"} == by_quotas[route.counts]
    fields = {f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in ("requests", "tokens")}
    for answer in map(DESCRIBED.resolved, responses.values()):
        assert (fields & {*answer["headers"]}) == (fields if route.counts is not Counts.NOTHING else set())


# -- schemas


def everywhere(value: Any, path: str = "#") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of the document, with its place."""
    if isinstance(value, dict):
        yield path, value
        for name, item in value.items():
            yield from everywhere(item, f"{path}/{name}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from everywhere(item, f"{path}/{i}")


def test_no_schema_is_empty():
    says_something = {"type", "enum", "const", "$ref", "anyOf", "oneOf", "allOf", "contentSchema", "properties", "pattern"}
    todo = [found["schema"] for _, found in everywhere(DOCUMENT) if isinstance(found.get("schema"), dict)]
    todo += SCHEMAS.values()
    n_seen = 0
    while todo:
        one = todo.pop()
        n_seen += 1
        assert says_something & one.keys(), one
        todo += subschemas(one)
    assert n_seen > 500


def test_every_reference_leads_somewhere_and_everything_is_referred_to():
    referred = {found["$ref"] for _, found in everywhere(DOCUMENT) if isinstance(found.get("$ref"), str)}
    there = {f"#/components/{kind}/{name}" for kind, named in DOCUMENT["components"].items() for name in named}
    there -= {f"#/components/securitySchemes/{name}" for name in DOCUMENT["components"]["securitySchemes"]}  # by name alone
    by_no_operation = {"#/components/responses/MethodNotAllowed"}  # an operation is one whose method is allowed
    assert referred == there - by_no_operation


@pytest.mark.parametrize(
    ("name", "member", "values"),
    [
        ("State", None, State),
        ("OpState", None, OpState),
        ("Op", "kind", OpKind),
        ("Op", "reason", OpReason),
        ("Op", "phase", [*Phase, None]),
        ("Op", "step", [*Step, None]),
        ("Props", "tool_call_format", [*ToolCallFormat, None]),
    ],
)
def test_words_are_those_of_the_code(name: str, member: str | None, values: Any):
    found = SCHEMAS[name] if member is None else SCHEMAS[name]["properties"][member]
    assert found["enum"] == list(values)


# -- errors


def kinds(kind: type[ModeldError] = ModeldError) -> Iterator[type[ModeldError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from kinds(below)


def test_every_error_that_can_be_answered_has_an_example_and_no_other():
    assert {kind.code for kind in kinds() if kind.__module__ == errors.__name__} - NEVER_ANSWERED == {
        *DOCUMENT["components"]["examples"]
    }


def test_examples_are_errors_as_the_code_makes_them():
    for code, example in DOCUMENT["components"]["examples"].items():
        assert DESCRIBED.problems(SCHEMAS["Error"], example["value"]) == []
        error = example["value"]["error"]
        assert error["code"] == code
        assert error["type"] in {kind.type for kind in kinds() if kind.code == code}, code


def test_an_example_stands_at_its_own_status():
    statuses: dict[str, set[int]] = {}
    for kind in kinds():
        statuses.setdefault(kind.code, set()).add(kind.status)
    for method, path, operation in DESCRIBED.operations():
        for status, answer in operation["responses"].items():
            for media in DESCRIBED.resolved(answer)["content"].values():
                for code in media.get("examples", ()):
                    assert int(status) in statuses[code], (method, path, status, code)


# -- parameters of query and head


def request(route: Route, body: bytes, monkeypatch: pytest.MonkeyPatch) -> tuple[Request, set[tuple[str, str]]]:
    """A request that notes which query parameters and fields its handler looks for."""
    looked: set[tuple[str, str]] = set()

    class Head:
        path = route.path

        def field(self, name: str) -> None:
            looked.add(("header", name))

    def query(_: Request, name: str) -> None:
        looked.add(("query", name))

    def has_query(_: Request, name: str) -> bool:
        looked.add(("query", name))
        return True

    def queries(_: Request, name: str) -> list[str]:
        looked.add(("query", name))
        return []

    monkeypatch.setattr(Request, "query", query)
    monkeypatch.setattr(Request, "has_query", has_query)
    monkeypatch.setattr(Request, "queries", queries)
    params = {name: "other" if name == "model_id" else "op-1" for name in re.findall(r"\{(\w+)\}", route.path)}
    caller = Caller("test", "test", frozenset(Access))
    made = Request(
        record=Record("r"),
        caller=caller,
        ticket=Quotas(LimitPolicy()).enter(caller, Counts.NOTHING, {}),
        head=Head(),  # type: ignore[arg-type]
        params=params,
        body=body,
        limits=Limits(),
        registry=Registry(),
        on_client_gone=lambda _: None,
        try_write=lambda _: True,
    )
    looked |= {("path", name) for name in params}
    return made, looked


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_the_parameters_that_a_handler_looks_for_are_those_of_the_document(route: Route, monkeypatch: pytest.MonkeyPatch):
    operation = DESCRIBED.operation(route.method, route.path)
    described = {(one["in"], one["name"].lower()) for one in operation["parameters"]}
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example", {})
    made, looked = request(route, json.dumps(body).encode(), monkeypatch)
    with contextlib.suppress(ModeldError):  # what it looks for it has looked for by then
        route.handler(made, FakeService())
    looked.discard(("header", "accept"))  # which no parameter may be called (OpenAPI 3.1, Parameter Object)
    assert looked | {("header", "x-request-id")} == described  # the latter is every request's (Exchange)


# -- bodies


def parse_template(body: bytes) -> object:
    fields = Fields(parse_object(body))
    return tools.parse_tool_use(fields), messages.parse_messages(fields)


def parse_options(body: bytes) -> object:
    return ops.parse_options(Fields(parse_object(body or b"{}")), SwitchOptions())


PARSERS: dict[str, Any] = {
    "/switch": lambda body: ops.parse_switch(body, SwitchOptions()),
    "/unload": parse_options,
    "/reload": parse_object,
    "/v1/completions": lambda body: parameters.parse_completion(body, "r"),
    "/v1/chat/completions": lambda body: parameters.parse_chat(body, "r"),
    "/v1/embeddings": lambda body: embeddings.parse_embeddings(body, "r"),
    "/tokenize": schema.parse_tokenize,
    "/detokenize": schema.parse_detokenize,
    "/apply-template": parse_template,
}

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
MESSAGES = [
    {"role": "system", "content": "s", "name": "n"},
    {"role": "user", "content": [{"type": "text", "text": "u"}], "function_call": None, "audio": None},
    {"role": "assistant", "content": "a", "tool_calls": [CALL]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "t", "tool_call_id": "c"},
]
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}}
CHOICE = {"type": "function", "function": {"name": "f"}}
FORMATS = (
    {"type": "text"},
    {"type": "json_object", "schema": {"type": "object"}},
    {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": {"type": "object"}}},
)
SAMPLING = {
    "model": "m", "n": 2, "max_tokens": 5, "max_completion_tokens": 5, "n_predict": -1, "temperature": 1.5, "top_k": 3,
    "top_p": 0.5, "min_p": 0.5, "typical_p": 0.5, "repeat_penalty": 1.5, "repeat_last_n": 3, "presence_penalty": 0.5,
    "frequency_penalty": 0.5, "logit_bias": {"3": -1.5}, "seed": 3, "stop": ["a"], "stream": True, "stream_options":
    {"include_usage": True}, "ignore_eos": True, "cache_prompt": False, "best_of": 1, "suffix": "", "mirostat": 0, "samplers":
    [], "adaptive_target": -0.5, "return_tokens": False,
}  # fmt: skip
COMPLETION = {"prompt": "p", **SAMPLING, "echo": True, "logprobs": 3, "tools": [], "tool_choice": "auto", "top_logprobs": 0}
CHAT = {"messages": MESSAGES, **SAMPLING, "logprobs": True, "top_logprobs": 3, "modalities": ["text"], "verbosity": "medium"}
TEMPLATE = {"messages": MESSAGES, "tools": [TOOL], "tool_choice": CHOICE, "parallel_tool_calls": True}
OPTIONS = {
    "on_inflight": "drain", "drain_timeout_s": 1.5, "on_busy": "reject", "on_failure": "error", "strategy": "auto", "force": True,
    "ready_delay_s": 0.5,
}  # fmt: skip

# Bodies that are taken, and between them reach every member that is read.
BODIES: dict[str, list[dict[str, Any]]] = {
    "/switch": [{"model_id": "m", **OPTIONS, "dry_run": True}],
    "/unload": [OPTIONS],
    "/reload": [{"whatever": 1}],
    "/v1/completions": [
        *({**COMPLETION, "response_format": one} for one in FORMATS),
        {**COMPLETION, "prompt": [1, 2], "logit_bias": [[1, 0.5], [2, False]], "grammar": "root ::= [a]"},
        {**COMPLETION, "prompt": ["a", [1, 2]], "json_schema": {"type": "object"}},
    ],
    "/v1/chat/completions": [*({**CHAT, "response_format": one} for one in FORMATS), {**CHAT, **TEMPLATE}],
    "/v1/embeddings": [
        {"input": value, "model": "m", "encoding_format": "base64", "dimensions": 3, "embd_normalize": 2}
        for value in ("a", [1, 2], ["a", [1, 2]])
    ],
    "/tokenize": [{"content": "a", "add_special": True, "parse_special": True, "with_pieces": True}],
    "/detokenize": [{"tokens": [1, 2]}],
    "/apply-template": [TEMPLATE],
}


def named_members(described: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Each member that a schema names, its schema with it: messages[].content, stream_options.include_usage, ..."""
    described = DESCRIBED.resolved(described)
    for name, part in described.get("properties", {}).items():
        inner = f"{path}.{name}" if path else name
        yield inner, DESCRIBED.resolved(part)
        yield from named_members(part, inner)
    for branch in (part for word in ("allOf", "anyOf", "oneOf") for part in described.get(word, ())):
        yield from named_members(branch, path)
    if "items" in described:
        yield from named_members(described["items"], f"{path}[]")


class Readings:
    """What is read of bodies: Fields' methods, each of which notes the member, its bounds and its default."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.members: set[str] = set()
        self.bounds: dict[str, set[tuple[float, float]]] = {}
        self.defaults: dict[str, object] = {}
        get, boolean, integer, number = Fields.get, Fields.boolean, Fields.integer, Fields.number

        def name_of(fields: Fields, member: str) -> str:
            return re.sub(r"\[\d+\]", "[]", fields.name_of(member))

        def noted_get(fields: Fields, member: str) -> object:
            self.members.add(name_of(fields, member))
            return get(fields, member)

        def noted_boolean(fields: Fields, member: str, default: bool) -> bool:
            self.defaults[name_of(fields, member)] = default
            return boolean(fields, member, default)

        def noted_integer(fields: Fields, member: str, low: int, high: int) -> int | None:
            self.bounds.setdefault(name_of(fields, member), set()).add((low, high))
            return integer(fields, member, low, high)

        def noted_number(fields: Fields, member: str, default: float, low: float, high: float, *, above: bool = False) -> float:
            self.bounds.setdefault(name_of(fields, member), set()).add((low, high))
            self.defaults[name_of(fields, member)] = default
            return number(fields, member, default, low, high, above=above)

        monkeypatch.setattr(Fields, "get", noted_get)
        monkeypatch.setattr(Fields, "boolean", noted_boolean)
        monkeypatch.setattr(Fields, "integer", noted_integer)
        monkeypatch.setattr(Fields, "number", noted_number)


@pytest.fixture(params=PARSERS)
def path(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_route_that_takes_a_body_has_its_parser_here():
    with_body = {path for _, path, operation in DESCRIBED.operations() if "requestBody" in operation}
    assert with_body == {route.path for route in ROUTES if route.method == "POST"} == {*PARSERS} == {*BODIES}


def test_the_members_that_are_read_are_those_of_the_schema(path: str, monkeypatch: pytest.MonkeyPatch):
    readings = Readings(monkeypatch)
    for body in BODIES[path]:
        PARSERS[path](json.dumps(body).encode())
    assert readings.members == {name for name, _ in named_members(DESCRIBED.request_schema("POST", path))}


def bounds_of(described: dict[str, Any]) -> tuple[float | None, float | None]:
    """The least and the largest number that a schema allows, whatever branch it is in."""
    parts = [described, *described.get("anyOf", ())]
    lows = [part[word] for part in parts for word in ("minimum", "exclusiveMinimum", "const") if _is_number(part.get(word))]
    highs = [part[word] for part in parts for word in ("maximum", "const") if _is_number(part.get(word))]
    return min(lows, default=None), max(highs, default=None)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def test_ranges_and_defaults_are_those_of_the_code(path: str, monkeypatch: pytest.MonkeyPatch):
    readings = Readings(monkeypatch)
    for body in BODIES[path]:
        PARSERS[path](json.dumps(body).encode())
    described = dict(named_members(DESCRIBED.request_schema("POST", path)))
    for name, bounds in readings.bounds.items():
        least = (0, 20) if name == "logprobs" else next(iter(bounds))
        if path == "/v1/completions" and name in ("max_tokens", "max_completion_tokens"):
            least = (0, 2**31 - 1)  # 0 with echo, as in these bodies
        assert {bounds_of(described[name])} == {least}, name
    by_configuration = {"drain_timeout_s", "ready_delay_s"}  # `switching` has the default
    for name, default in readings.defaults.items():
        if name not in by_configuration:
            assert described[name]["default"] == default, name
    left = {name for name, part in described.items() if "default" in part} - {*readings.defaults}
    assert left <= {"n", "top_k", "repeat_last_n", "embd_normalize"}


def test_defaults_that_are_put_in_after_reading():
    described = dict(named_members(DESCRIBED.request_schema("POST", "/v1/completions")))
    asked = parameters.parse_completion(b'{"prompt": "p"}', "r").generate
    assert described["n"]["default"] == asked.n
    assert described["top_k"]["default"] == asked.sampling.top_k == SamplingParams().top_k
    assert described["repeat_last_n"]["default"] == asked.sampling.repeat_last_n
    described = dict(named_members(DESCRIBED.request_schema("POST", "/v1/embeddings")))
    assert described["embd_normalize"]["default"] == embeddings.parse_embeddings(b'{"input": "a"}', "r").normalize


def test_bodies_that_are_taken_fit_their_schema(path: str):
    validator = DESCRIBED.validator(DESCRIBED.request_schema("POST", path))
    for body in BODIES[path]:
        assert [error.message for error in validator.iter_errors(body)] == []


# What a schema cannot say, or could only in ways that nobody can read: rules between members, and of the whole body.
BETWEEN_MEMBERS = re.compile(
    r"contradict|without logprobs|is not among the tools|names another tool|asks for a call, but there are no tools"
    r"|max_tokens is 0; allowed|max_completion_tokens is 0; allowed|n_predict is 0; allowed is -1 or"
)

# Null and booleans, the ends of every range and what lies beyond, words of every enumeration, and things of every kind.
# Numbers such as 2.0 are not among them: JSON Schema takes them for integers, and modeld does not.
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, -2, 2, 3, 16, 20, 21, 100, 101, 128, 129, 3600, 86400, 86401, 2**31 - 1, 2**31, 2**63, 2**64
    - 1, 2**64, -(2**63), -(2**63) - 1, 0.5, -0.5, 1.5, 2.5, 10.5, -100.5, 1e300, "", "a", "none", "auto", "required", "text",
    "json_object", "json_schema", "function", "tool", "user", "system", "developer", "assistant", "cancel", "drain", "queue",
    "reject", "supersede", "rollback", "error", "replace", "overlap", "base64", "float", "medium", "x" * 64, "x" * 65, "x" *
    1000, "x" * 1001, "a b", [], {}, [[]], [None], ["a"], [""], ["x" * 1001], ["a"] * 16, ["a"] * 17, ["a"] * 128, ["a"] *
    129, ["a"] * 2048, ["a"] * 2049, [1], [-1], [2**31], ["a", 1], [1, "a"], [[1], "a"], [[1, 2]], [[1, False]], [[1, True]],
    [[1, 101]], [[1]], {"1": 1}, {"1": 101}, {"a": 1}, {"1": False}, {"1" * 11: 1}, {"type": "text"}, {"type": "json_object"},
    {"type": "json_schema"}, {"type": "image_url"}, {"include_usage": 1}, ["text"], ["audio"], [TOOL], [TOOL] * 2, [TOOL] *
    129, CHOICE, CALL, [CALL], [CALL] * 129,
]  # fmt: skip


def places(value: Any) -> Iterator[tuple[str | int, ...]]:
    """Every place in a JSON value, its members' included."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (key,)
        for below in places(item):
            yield (key, *below)


def variants(path: str) -> Iterator[Any]:
    """Bodies that are taken, with each member gone, each member another value, and each known member put in."""
    names = [name for name, _ in named_members(DESCRIBED.request_schema("POST", path)) if "." not in name and "[" not in name]
    for body in BODIES[path]:
        for *way, last in [*places(body), *((name,) for name in names if name not in body)]:
            changed = copy.deepcopy(body)
            parent: Any = changed
            for key in way:
                parent = parent[key]
            for value in VALUES:
                parent[last] = value
                yield changed
            del parent[last]
            yield changed
    yield from VALUES


def test_a_body_is_refused_exactly_where_its_schema_refuses_it(path: str):
    """Rules between members aside."""
    validator = DESCRIBED.validator(DESCRIBED.request_schema("POST", path))
    n_taken = n_refused = 0
    for body in variants(path):
        fits = validator.is_valid(body)
        try:
            PARSERS[path](json.dumps(body).encode())
        except InvalidRequest as error:
            n_refused += 1
            between = BETWEEN_MEMBERS.search(error.message)
            wrong = f"{error.message}, and the schema takes it: {body}" if fits and not between else None
        else:
            n_taken += 1
            wrong = None if fits else f"this is taken, and the schema refuses it: {body}"
        assert wrong is None, wrong
    assert n_taken >= 5
    assert n_refused >= 100 or path == "/reload"
