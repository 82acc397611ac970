"""Tools -> GBNF: every answer that the grammar allows is calls in the model's format, with arguments that follow."""

from __future__ import annotations

import json
import random
import re

import pytest

from modeld.engine.callgrammar import MAX_CALLS, gbnf_of_calls
from modeld.errors import InvalidRequest
from modeld.httpapi.toolcalls import CallDelta, ToolCallParser
from modeld.types import Tool, ToolCallFormat, ToolUse
from tests.json_schema import follows
from tests.random_gbnf import walk

WEATHER = Tool(
    "get_weather",
    "",
    {
        "$defs": {"city": {"type": "string", "minLength": 1, "maxLength": 20}},
        "type": "object",
        "properties": {"city": {"$ref": "#/$defs/city"}, "unit": {"enum": ["C", "F"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
GET = Tool("get", "", {"properties": {"a": {"type": "array", "items": {"type": "integer"}, "maxItems": 3}}})
NOW = Tool("now", "", {"type": "object", "properties": {}})
FREE = Tool("free", "", {})
TOOLS = (WEATHER, GET, NOW, FREE)


def calls_of(answer: str, format_: ToolCallFormat) -> list[CallDelta]:
    """The calls that the answer is, with nothing beside them."""
    parser = ToolCallParser(format_, frozenset(tool.name for tool in TOOLS), parallel=True, whole=True)
    calls = []
    for delta in (*parser.feed(answer), *parser.finish()):
        assert isinstance(delta, CallDelta), f"{delta!r} is no call: {answer!r}"
        calls.append(delta)
    assert parser.ends_in_calls
    return calls


@pytest.mark.parametrize("format_", list(ToolCallFormat))
@pytest.mark.parametrize("parallel", [True, False])
def test_every_answer_is_calls_whose_arguments_follow_their_schema(format_: ToolCallFormat, parallel: bool) -> None:
    grammar = gbnf_of_calls(ToolUse(TOOLS, required=True, parallel=parallel), format_)
    chance = random.Random(1)
    seen, most = set(), 0
    for _ in range(80):
        answer = walk(grammar, chance)
        calls = calls_of(answer, format_)
        for call in calls:
            (tool,) = [tool for tool in TOOLS if tool.name == call.name]
            assert not follows(json.loads(call.arguments), tool.parameters), answer
            seen.add(tool.name)
        most = max(most, len(calls))
    assert seen == {tool.name for tool in TOOLS}
    assert most == 1 if not parallel or format_ is ToolCallFormat.LLAMA3 else 1 < most <= MAX_CALLS


@pytest.mark.parametrize("format_", list(ToolCallFormat))
def test_a_named_tool_is_called_once(format_: ToolCallFormat) -> None:
    grammar = gbnf_of_calls(ToolUse(TOOLS, required=True, named="get"), format_)
    chance = random.Random(2)
    for _ in range(20):
        assert [call.name for call in calls_of(walk(grammar, chance), format_)] == ["get"]


def test_the_text_is_the_formats_own() -> None:
    chance = random.Random(3)
    answers = [walk(gbnf_of_calls(ToolUse((NOW,), required=True, parallel=False), f), chance) for f in ToolCallFormat]
    assert [re.sub(r"\{\s*\}", "{}", answer) for answer in answers[:3]] == [
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        '{"name": "now", "parameters": {}}',
        '[TOOL_CALLS][{"name": "now", "arguments": {}}]',
    ]
    assert re.fullmatch(r"\[TOOL_CALLS\]now(\[CALL_ID\]\w{9})?\[ARGS\]\{\s*\}", answers[3])


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"properties": {"when": {"type": "string", "pattern": "^a"}}}, "/properties/when/pattern"),
        ({"type": "array"}, "/type is 'array'"),
        ({"type": ["object", "null"]}, "/type is "),
        ({"anyOf": [{"type": "object"}]}, "/anyOf is not supported at the top"),
        ({"properties": {"a": {"$ref": "#/$defs/no"}}}, "'#/\\$defs/no' is not in the schema"),
    ],
)
def test_what_a_grammar_cannot_say_is_refused_with_its_place(parameters: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        gbnf_of_calls(ToolUse((NOW, Tool("f", "", parameters)), required=True), ToolCallFormat.HERMES)
    assert caught.value.param == "tools[1].function.parameters"
    gbnf_of_calls(ToolUse((NOW, Tool("f", "", parameters)), required=True, named="now"), ToolCallFormat.HERMES)


def test_as_many_tools_as_a_request_may_have() -> None:
    tools = tuple(Tool(f"tool_{i}", "", WEATHER.parameters) for i in range(128))
    assert gbnf_of_calls(ToolUse(tools, required=True), ToolCallFormat.HERMES)


def test_too_much_is_refused() -> None:
    words = {"enum": [f"word{i}" for i in range(100)]}
    tools = tuple(Tool(f"tool_{i}", "", {"properties": {"a": words}}) for i in range(30))
    with pytest.raises(InvalidRequest, match="more than 2000 alternates") as caught:
        gbnf_of_calls(ToolUse(tools, required=True), ToolCallFormat.HERMES)
    assert caught.value.param == "tools"
