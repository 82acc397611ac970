"""JSON schema -> GBNF: every document that the grammar allows follows the schema, and what cannot be said is refused."""

from __future__ import annotations

import itertools
import json
import random

import pytest

from modeld.engine.gbnf import parse_gbnf
from modeld.engine.gbnf_machine import Machine
from modeld.engine.grammar import gbnf_of
from modeld.engine.integers import LARGEST, integers_between
from modeld.errors import InvalidRequest
from modeld.types import JsonSchema
from tests.json_schema import follows
from tests.random_gbnf import walk

PERSON = {
    "$defs": {"tag": {"type": "string", "minLength": 1, "maxLength": 5}},
    "type": "object",
    "title": "Person",
    "properties": {
        "name": {"type": "string", "maxLength": 150, "description": "all of it"},
        'o"dd\\': {"type": ["integer", "null"]},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
}
TREE = {"type": "object", "properties": {"left": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["left"]}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": "array"},
        {"type": "string"},
        {"type": "string", "minLength": 3},
        {"type": "string", "minLength": 3, "maxLength": 3},
        {"type": "string", "minLength": 0, "maxLength": 0},
        {"type": "string", "minLength": 120, "maxLength": 400},
        {"type": "string", "maxLength": 2_000},
        {"type": "number"},
        {"type": "integer"},
        {"type": "integer", "minimum": 3},
        {"type": "integer", "maximum": -3},
        {"type": "integer", "minimum": -12, "maximum": 1005},
        {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 2},
        {"type": ["integer", "null"], "minimum": 0.5, "maximum": 100.5},
        {"type": "integer", "minimum": -1e300, "exclusiveMaximum": 1e300},
        {"type": "string", "format": "date"},
        {"type": "string", "format": "time"},
        {"type": "string", "format": "date-time"},
        {"format": "uuid"},
        {"type": "boolean"},
        {"type": "null"},
        {"type": ["string", "integer", "null"]},
        {"enum": ["a", 'q"\\\n\x7f', 1, 1.5, None, True, {"a": [1, {}]}, "日本"]},
        {"type": "string", "enum": ["a", "b", 3]},
        {"const": "only"},
        {"const": {"a": 1}},
        {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "null"}}]},
        {"oneOf": [{"type": "integer"}, {"type": "null"}]},
        {"allOf": [{"type": "integer"}], "title": "x"},
        PERSON,
        TREE,
        {"properties": {}},
        {"type": "object", "properties": {"a": {}, "b": {"type": "null"}, "c": True}, "required": ["b"]},
        {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}, "additionalProperties": True},
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {"items": {"type": "integer"}},
        {"type": "array", "items": {"type": "integer"}, "minItems": 2},
        {"type": "array", "items": {"type": "integer"}, "maxItems": 1},
        {"type": "array", "items": {"type": "integer"}, "maxItems": 0},
        {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 1},
        {"type": "array", "minItems": 3, "maxItems": 5},
        {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "null"}]},
        {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "null"}], "minItems": 2, "items": False},
        {"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "string"}, "minItems": 3, "maxItems": 4},
        {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "null"}], "maxItems": 1, "items": True},
    ],
    ids=lambda schema: json.dumps(schema)[:60],
)
def test_every_document_of_the_grammar_follows_the_schema(schema):
    grammar = gbnf_of(JsonSchema(schema, "json_schema"))
    chance = random.Random(1)
    for _ in range(40):
        document = walk(grammar, chance)
        problem = follows(json.loads(document), schema)
        assert not problem, f"{problem}: {document!r}"


def test_both_ends_of_a_length_are_reached():
    grammar = gbnf_of(JsonSchema({"type": "string", "minLength": 2, "maxLength": 4}, "p"))
    chance = random.Random(1)
    assert {len(json.loads(walk(grammar, chance))) for _ in range(300)} == {2, 3, 4}


def test_optional_properties_come_in_all_combinations_in_order():
    schema = {"properties": {"a": {"const": 1}, "b": {"const": 2}, "c": {"const": 3}}, "required": ["b"]}
    grammar = gbnf_of(JsonSchema(schema, "p"))
    chance = random.Random(1)
    assert {"".join(json.loads(walk(grammar, chance))) for _ in range(200)} == {"b", "ab", "bc", "abc"}


@pytest.mark.parametrize(
    ("schema", "where"),
    [
        ({"type": "string", "pattern": "^a"}, "/pattern is a keyword that is not supported"),
        ({"type": "string", "format": "email"}, "/format must be one of date, time, date-time, uuid"),
        ({"type": "string", "format": ["date"]}, "/format must be one of"),
        ({"type": "string", "format": "date", "maxLength": 3}, "/maxLength is not supported beside format"),
        ({"properties": {"a/b": {"type": "number", "minimum": 3}}}, "/properties/a~1b/minimum is supported beside type integer"),
        ({"items": {"maximum": 3}}, "/items/maximum is supported beside type integer only"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "the schema allows no integer"),
        ({"type": "integer", "minimum": 10**16}, "the schema allows no integer of at most 16 digits"),
        ({"type": "integer", "minimum": "3"}, "/minimum must be a number"),
        ({"type": "integer", "maximum": True}, "/maximum must be a number"),
        ({"multipleOf": 2}, "/multipleOf "),
        ({"not": {}}, "/not "),
        ({"if": {}}, "/if "),
        ({"patternProperties": {}}, "/patternProperties "),
        ({"propertyNames": {}}, "/propertyNames "),
        ({"uniqueItems": True}, "/uniqueItems "),
        ({"contains": {}}, "/contains "),
        ({"minProperties": 1}, "/minProperties "),
        ({"nonsense": 1}, "/nonsense "),
        ({"type": "date"}, "/type must be of"),
        ({"type": None}, "/type must be of"),
        ({"type": []}, "/type must be of"),
        ({"enum": []}, "/enum must be an array"),
        ({"type": "integer", "enum": ["a"]}, "/enum has no value of type integer"),
        ({"anyOf": {}}, "/anyOf must be an array"),
        ({"anyOf": [{"type": "null"}, {"format": "x"}]}, "/anyOf/1/format "),
        ({"anyOf": [{}], "properties": {}}, "/properties is not supported beside anyOf"),
        ({"enum": ["a"], "minLength": 3}, "/minLength is not supported beside enum"),
        ({"allOf": [{}, {}]}, "/allOf is supported with one item only"),
        ({"$ref": "https://example.org/x"}, r"/\$ref must be a local reference"),
        ({"$ref": "#/$defs/x"}, r"/\$ref '#/\$defs/x' is not in the schema"),
        ({"$ref": "#"}, "can begin with itself"),
        ({"properties": [], "type": "object"}, "/properties must be an object"),
        ({"properties": {"a": 3}}, "/properties/a must be an object or true"),
        ({"properties": {"a": False}}, "/properties/a allows nothing"),
        ({"properties": {}, "required": ["a"]}, "/required names 'a'"),
        ({"required": "a"}, "/required must be an array of strings"),
        ({"properties": {"a": {}}, "additionalProperties": {}}, "/additionalProperties is supported as a schema only"),
        ({"additionalProperties": 3}, "/additionalProperties must be"),
        ({"minLength": -1}, "/minLength must be a whole number"),
        ({"minLength": 1.5}, "/minLength must be a whole number"),
        ({"maxLength": True}, "/maxLength must be a whole number"),
        ({"maxLength": 10**15}, "/maxLength is 1000000000000000; at most 20000"),
        ({"maxItems": 1001}, "/maxItems is 1001; at most 1000"),
        ({"minLength": 3, "maxLength": 2}, "/maxLength is less than minLength"),
        ({"prefixItems": [{}], "minItems": 2}, "/minItems is 2, but 1 items are the most"),
        ({"prefixItems": {}}, "/prefixItems must be an array"),
        ({"enum": list(range(2500))}, "more than 2000 alternates"),
        ({"const": "x" * 300_000}, "at most 262144"),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_what_is_not_supported_is_named_with_its_place(schema, where):
    with pytest.raises(InvalidRequest, match=where) as caught:
        gbnf_of(JsonSchema(schema, "response_format.json_schema.schema"))
    assert caught.value.param == "response_format.json_schema.schema"
    assert caught.value.message.startswith("response_format.json_schema.schema: ")
    assert len(caught.value.message) < 400


def test_a_deep_or_wide_schema_is_refused():
    deep: dict[str, object] = {}
    for _ in range(90):
        deep = {"items": deep}
    with pytest.raises(InvalidRequest, match="nests deeper than 60"):
        gbnf_of(JsonSchema(deep, "p"))
    wide = {"properties": {f"p{i}": {"type": "null"} for i in range(4000)}}
    with pytest.raises(InvalidRequest, match="more than 3000 parts"):
        gbnf_of(JsonSchema(wide, "p"))


def union(*names: str) -> dict[str, object]:
    return {"anyOf": [{"$ref": f"#/$defs/{name}"} for name in names]}


def test_alternatives_that_begin_alike_are_followed_together():
    """They may lead back to themselves: readings that wait for the same are one (engine/gbnf_machine.py)."""
    a = {"properties": {"x": {"anyOf": [union("a", "b"), {"type": "null"}]}, "y": {}}}
    b = {"properties": {"x": {"anyOf": [union("a", "b"), {"type": "null"}]}, "z": {}}, "required": ["x"]}
    machine = Machine(parse_gbnf(gbnf_of(JsonSchema({"$defs": {"a": a, "b": b}, **union("a", "b")}, "p"))))
    state = machine.start
    for byte in b'{"x": ' * 500 + b"null" + b"}" * 499:
        state = state[machine.columns[byte]]
        assert len(state.readings) < 40
    assert not state.may_end
    assert state[machine.columns[ord("}")]].may_end


def test_references_that_fan_out_are_made_once():
    schema = {
        "$defs": {
            f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}, "prefixItems": [{"$ref": f"#/$defs/d{i + 1}"}]} for i in range(20)
        }
    }
    schema["$defs"]["d20"] = {"type": "null"}
    grammar = gbnf_of(JsonSchema({**schema, "$ref": "#/$defs/d0"}, "p"))
    assert len(grammar) < 10_000


def test_what_many_references_lead_to_is_made_once_however_they_spell_it():
    """1024 spellings of one place, in some 100 kB; made anew for each, a large literal takes the memory and the time."""
    spellings = ["".join(letters) for letters in itertools.product(("a", "%61"), repeat=10)]
    for values in (["x" * 50_000], ["x"] * 900):
        schema = {"$defs": {"a" * 10: {"enum": values}}, **union(*spellings)}
        grammar = gbnf_of(JsonSchema(schema, "p"))
        assert len(grammar) < 60_000


def test_values_of_enums_count_as_often_as_they_are_reached():
    """Beside references to what is around it an enum is made anew for each; 100,000 equal values a time took seconds."""
    inner: dict[str, object] = {"anyOf": [*({"$ref": "#" + "/items" * i} for i in range(5)), {"enum": ["x"] * 1000}]}
    for _ in range(5):
        inner = {"items": inner}
    with pytest.raises(InvalidRequest, match="3000 parts and values of enums"):
        gbnf_of(JsonSchema(inner, "p"))


def test_literals_survive():
    for text in ('"', "\\", "\n\t\r\0", "é日\U0001f600", "]-^[", "\x7f\x1f"):
        grammar = gbnf_of(JsonSchema({"const": text}, "p"))
        assert json.loads(walk(grammar, random.Random(1))) == text


def test_every_integer_of_a_range_has_a_way_and_no_other():
    chance = random.Random(1)
    for _ in range(60):
        low, high = sorted(chance.choice((-1, 1)) * chance.randint(0, 10 ** chance.randint(0, 3)) for _ in range(2))
        machine = Machine(parse_gbnf("root ::= " + integers_between(low, high)))
        for value in {
            *range(-20, 21),
            low - 1,
            low,
            low + 1,
            high - 1,
            high,
            high + 1,
            *(chance.randint(-2000, 2000) for _ in range(200)),
        }:
            state = machine.start
            for byte in str(value).encode():
                state = state[machine.columns[byte]]
            assert state.may_end == (low <= value <= high), (low, high, value)


def test_integers_have_no_leading_zero_and_no_minus_zero():
    machine = Machine(parse_gbnf("root ::= " + integers_between(-LARGEST, LARGEST)))
    for text in ("-0", "00", "01", "-01", "1" * 17, "", "-"):
        state = machine.start
        for byte in text.encode():
            state = state[machine.columns[byte]]
        assert not state.may_end, text
