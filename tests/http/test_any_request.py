"""Whatever JSON stands in whatever place of a request, it is a typed request or an error that names the parameter. Pure."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fuzz import fuzz_request
from modeld.errors import InvalidRequest
from modeld.httpapi.strictjson import MAX_DEPTH, parse

SCALAR = (
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**19)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10)
    | st.sampled_from(["auto", "none", "text", "function", "user", "tool", "json_schema", "required", "drain", "overlap", "7"])
)
often = settings(max_examples=200, deadline=None)  # the machine may have other work

JSON = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4), max_leaves=8
)

USER = {"role": "user", "content": [{"type": "text", "text": "hi"}]}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
ASKED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c", "name": "f", "content": "2"}
SCHEMA = {"name": "n", "strict": True, "schema": {"type": "string"}}
SAMPLING: dict[str, Any] = {
    "model": "m", "max_tokens": 5, "temperature": 1, "top_k": 1, "top_p": 0.5, "min_p": 0, "typical_p": 1, "repeat_penalty": 1,
    "repeat_last_n": -1, "presence_penalty": 0, "frequency_penalty": 0, "logit_bias": {"7": 1}, "seed": 1, "ignore_eos": False,
    "stop": ["a"], "n": 2, "stream": True, "stream_options": {"include_usage": True}, "cache_prompt": True, "best_of": 1,
    "mirostat": 0, "samplers": [], "suffix": "",
}  # fmt: skip
BODIES: dict[str, list[dict[str, Any]]] = {
    "c": [
        {"prompt": ["a", [1]], "logprobs": 1, "echo": True, **SAMPLING},
        {"prompt": [1, 2], "grammar": "root ::= x", "logit_bias": [[1, False]]},
        {"prompt": "x", "json_schema": {}, "max_completion_tokens": 1, "n_predict": 1},
    ],
    "m": [
        {"messages": [USER, ASKED, RESULT], "tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": True},
        {"messages": [USER], "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"messages": [USER], "logprobs": True, "top_logprobs": 2, **SAMPLING},
        {
            "messages": [USER],
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": {}}},
        },
        {"messages": [USER], "response_format": {"type": "json_object", "schema": {}}},
    ],
    "s": [
        {"model_id": "a", "on_inflight": "drain", "drain_timeout_s": 1, "on_busy": "queue", "on_failure": "error"},
        {"model_id": "a", "strategy": "auto", "force": True, "dry_run": True},
    ],
    "e": [{"input": ["a", [1]], "model": "m", "dimensions": 1, "encoding_format": "float", "embd_normalize": 1}],
    "t": [{"content": "a", "add_special": True, "parse_special": True, "with_pieces": True}],
    "d": [{"tokens": [1, 2]}],
}
Path = tuple[str | int, ...]


def paths(value: Any, path: Path = ()) -> Iterator[Path]:
    """Of every value in it, itself left out."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from paths(item, (*path, key))


PLACES = [(letter, body, path) for letter, bodies in BODIES.items() for body in bodies for path in paths(body)]


def read(letter: str, body: object) -> InvalidRequest | None:
    """What refuses it. Anything but that error goes through, and what is read is looked at."""
    raw = json.dumps(body).encode()
    fuzz_request.check(letter.encode() + raw)
    try:
        fuzz_request.READERS[letter.encode()][0](raw)
    except InvalidRequest as error:
        return error
    return None


def root_of(param: str) -> str:
    return re.split(r"[.\[]", param)[0]


@pytest.mark.parametrize("letter", BODIES)
def test_the_requests_are_good_before_they_are_changed(letter: str):
    assert [read(letter, body) for body in BODIES[letter]] == [None] * len(BODIES[letter])


@settings(max_examples=50, deadline=None)
@given(JSON)
@example("x")
def test_any_value_in_any_place_is_read_or_refused_with_the_name_of_a_parameter(value: object):
    for letter, good, path in PLACES:
        body = copy.deepcopy(good)
        inner: Any = body
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        error = read(letter, body)
        if error is not None:
            assert error.param is not None, (path, error.message)
            # Its own name, or that of one which it contradicts now.
            assert root_of(error.param) in body, (path, error.message)
            assert root_of(error.param) in error.message, (path, error.message)


def test_a_request_without_any_one_of_its_members_is_read_or_names_one():
    for letter, good, path in PLACES:
        body = copy.deepcopy(good)
        inner: Any = body
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        error = read(letter, body)
        assert error is None or (error.param is not None and root_of(error.param) in {*body, path[0]}), (path, error)


@often
@given(
    st.sampled_from(sorted(BODIES)),
    st.dictionaries(st.sampled_from(sorted({key for bodies in BODIES.values() for body in bodies for key in body})), JSON),
)
def test_members_of_any_kind_together_are_read_or_refused(letter: str, body: dict[str, object]):
    error = read(letter, body)
    assert error is None or error.param, error


# -- the strict JSON reader -------------------------------------------------------------------------------------------


@st.composite
def around(draw: st.DrawFn, inner: str) -> str:
    """The text `inner` somewhere in a JSON value."""
    for _ in range(draw(st.integers(0, 5))):
        other, key = json.dumps(draw(SCALAR)), json.dumps(draw(st.text(max_size=3)))
        forms = [f"[{inner}]", f"[{other}, {inner}]", f"{{{key}: {inner}}}", f'{{"": {other}, "x" : {inner}\n}}']
        inner = draw(st.sampled_from(forms))
    return inner


@often
@given(JSON, st.booleans(), st.sampled_from([None, 0, 1]), st.sampled_from([(",", ":"), (", ", " : "), ("\n,\t", ":\r\n")]))
def test_every_json_value_is_read_however_it_is_written(
    value: object, ensure_ascii: bool, indent: int | None, separators: tuple[str, str]
):
    assert parse(json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators).encode()) == value


@often
@given(st.data(), st.sampled_from(["NaN", "Infinity", "-Infinity", "1e400", "-9e9999", "1" * 21, "-" + "1" * 20, '"\\ud800"']))
def test_numbers_and_characters_that_are_none_are_refused_wherever_they_stand(data: st.DataObject, text: str):
    with pytest.raises(InvalidRequest):
        parse(data.draw(around(text)).encode())


@often
@given(st.data(), st.text(max_size=5), JSON, JSON)
def test_a_name_given_twice_is_refused_and_named_wherever_it_stands(data: st.DataObject, name: str, one: object, other: object):
    text = data.draw(around(f"{{{json.dumps(name)}: {json.dumps(one)}, {json.dumps(name)}: {json.dumps(other)}}}"))
    with pytest.raises(InvalidRequest) as refused:
        parse(text.encode())
    assert refused.value.param == name


@often
@given(st.lists(st.sampled_from(["[", '{"a": ']), min_size=MAX_DEPTH - 1, max_size=MAX_DEPTH + 2))
def test_nesting_is_read_up_to_its_bound_and_not_beyond(opening: list[str]):
    closing = ["]" if one == "[" else "}" for one in reversed(opening)]
    raw = "".join([*opening, "1", *closing]).encode()
    if len(opening) <= MAX_DEPTH:
        assert parse(raw) == json.loads(raw)
    else:
        with pytest.raises(InvalidRequest, match="deeper"):
            parse(raw)


@often
@given(st.text(st.sampled_from('{}[]",:\\ \t\n0123456789.eE+-truefalsnNIity\ud83d\u00e9'), max_size=40) | st.text(max_size=20))
@example('{"a": 1}{')
@example("-")
def test_any_text_is_read_as_json_loads_reads_it_or_refused_for_a_reason(text: str):
    fuzz_request.check(b"j" + text.encode("utf-8", "surrogatepass"))
