"""grammar, json_schema and response_format, as requests say them."""

from __future__ import annotations

import json

import pytest

from modeld.errors import InvalidRequest
from modeld.httpapi.constraint import parse_constraint
from modeld.httpapi.fields import Fields
from modeld.httpapi.parameters import parse_chat, parse_completion
from modeld.types import JsonSchema

SCHEMA = {"type": "object", "properties": {"b": {}, "a": {}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}


def test_requests_carry_them():
    chat = {"messages": [{"role": "user", "content": "x"}], "response_format": FORMAT}
    generate = parse_chat(json.dumps(chat).encode(), "id").generate
    assert generate.json_schema == JsonSchema(SCHEMA, "response_format.json_schema.schema")
    assert generate.sampling.grammar is None
    generate = parse_completion(b'{"prompt": "x", "grammar": "root ::= [a]"}', "id").generate
    assert (generate.sampling.grammar, generate.json_schema) == ("root ::= [a]", None)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({}, None),
        ({"grammar": "", "json_schema": None, "response_format": {"type": "text"}}, None),
        ({"grammar": "root ::= [a]"}, "root ::= [a]"),
        ({"grammar": "root ::= [a]", "response_format": {"type": "text"}}, "root ::= [a]"),
        ({"json_schema": {}}, JsonSchema({}, "json_schema")),
        ({"response_format": {"type": "json_object"}}, JsonSchema({"type": "object"}, "response_format")),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, JsonSchema(SCHEMA, "response_format.schema")),
        ({"response_format": FORMAT}, JsonSchema(SCHEMA, "response_format.json_schema.schema")),
    ],
)
def test_what_is_taken(body, wanted):
    assert parse_constraint(Fields(body)) == wanted


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"grammar": 3}, "grammar"),
        ({"json_schema": "x"}, "json_schema"),
        ({"json_schema": True}, "json_schema"),
        ({"response_format": "text"}, "response_format"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": []}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": 3}}}, "response_format.json_schema.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "strict": 1}}},
            "response_format.json_schema.strict",
        ),
        ({"grammar": "x", "response_format": {"type": "json_object"}}, "response_format"),
        ({"grammar": "x", "json_schema": {}}, "json_schema"),
        ({"json_schema": {}, "response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_what_is_refused_names_its_parameter(body, param):
    with pytest.raises(InvalidRequest) as caught:
        parse_constraint(Fields(body))
    assert caught.value.param == param
