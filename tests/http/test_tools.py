"""Tools, the choice among them, and messages with calls: what is taken, and what is refused by name. Pure."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modeld.errors import InvalidRequest
from modeld.httpapi.parameters import parse_chat
from modeld.types import ChatMessage, GenerateRequest, Tool, ToolCall, ToolUse

USER = {"role": "user", "content": "hi"}
PARAMETERS: dict[str, object] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": PARAMETERS, "strict": True}}
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS = (Tool("get_weather", "d", PARAMETERS), Tool("now", "", {"type": "object", "properties": {}}))


def chat(**params: object) -> GenerateRequest:
    return parse_chat(json.dumps({"messages": [USER], **params}).encode(), "r").generate


def function(**members: object) -> dict[str, object]:
    return {"type": "function", "function": {"name": "f", **members}}


def call(arguments: object = "{}", **members: object) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}, **members}


def named(name: str) -> dict[str, object]:
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, ToolUse(TOOLS)),
        ({"tool_choice": None, "parallel_tool_calls": None}, ToolUse(TOOLS)),
        ({"tool_choice": "auto"}, ToolUse(TOOLS)),
        ({"tool_choice": "none"}, None),
        ({"tool_choice": "required"}, ToolUse(TOOLS, required=True)),
        ({"tool_choice": named("now")}, ToolUse(TOOLS, required=True, named="now", parallel=False)),
        ({"parallel_tool_calls": False}, ToolUse(TOOLS, parallel=False)),
        ({"tool_choice": "required", "parallel_tool_calls": False}, ToolUse(TOOLS, required=True, parallel=False)),
        ({"response_format": {"type": "text"}}, ToolUse(TOOLS)),
    ],
)
def test_what_may_be_called(params: dict[str, object], expected: ToolUse | None) -> None:
    assert chat(tools=[WEATHER, NOW], **params).tools == expected


@pytest.mark.parametrize("params", [{}, {"tools": None}, {"tools": []}, {"tool_choice": "auto"}, {"parallel_tool_calls": True}])
def test_without_tools_nothing_may_be_called(params: dict[str, object]) -> None:
    assert chat(**params).tools is None


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": ["f"]}, "tools[0]"),
        ({"tools": [NOW] * 129}, "tools"),
        ({"tools": [NOW, NOW]}, "tools[1].function.name"),
        ({"tools": [{"function": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": "f"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [function(name="")]}, "tools[0].function.name"),
        ({"tools": [function(name="a" * 65)]}, "tools[0].function.name"),
        ({"tools": [function(name="a b")]}, "tools[0].function.name"),
        ({"tools": [function(name="é")]}, "tools[0].function.name"),
        ({"tools": [function(name="f\n")]}, "tools[0].function.name"),
        ({"tools": [function(name=1)]}, "tools[0].function.name"),
        ({"tools": [function(description=1)]}, "tools[0].function.description"),
        ({"tools": [function(parameters=[])]}, "tools[0].function.parameters"),
        ({"tools": [function(parameters="{}")]}, "tools[0].function.parameters"),
        ({"tools": [function(strict=1)]}, "tools[0].function.strict"),
        ({"tools": [NOW], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [NOW], "tool_choice": 1}, "tool_choice"),
        ({"tools": [NOW], "tool_choice": {}}, "tool_choice.type"),
        ({"tools": [NOW], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"tools": [NOW], "tool_choice": {"type": "function"}}, "tool_choice.function.name"),
        ({"tools": [NOW], "tool_choice": named("f")}, "tool_choice.function.name"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [], "tool_choice": named("f")}, "tool_choice.function.name"),
        ({"tools": [NOW], "parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"tools": [NOW], "response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [NOW], "response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format"),
        ({"tools": [NOW], "json_schema": {}}, "json_schema"),
    ],
)
def test_tools_that_are_refused(params: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(**params)
    assert caught.value.param == param
    assert param in caught.value.message


def test_a_schema_is_followed_where_nothing_may_be_called() -> None:
    asked = chat(tools=[NOW], tool_choice="none", response_format={"type": "json_object"})
    assert asked.tools is None
    assert asked.json_schema is not None


def test_calls_and_their_results() -> None:
    messages = [
        {**USER, "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [call('{"a": [1, "é"]}'), call(" ", id="c2")]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "tool", "tool_call_id": "elsewhere", "content": ""},
        {"role": "tool", "tool_call_id": "c2", "content": "x", "name": "own"},
        {"role": "assistant", "tool_calls": [call("{", type=None), call("[]"), call('{"a":' * 200)]},
        {"role": "assistant", "content": "So.", "tool_calls": []},
    ]
    assert chat(messages=messages).prompts == (
        (
            ChatMessage("user", "hi", name="Ann"),
            ChatMessage("assistant", None, (ToolCall("c1", "f", {"a": [1, "é"]}), ToolCall("c2", "f", {}))),
            ChatMessage("tool", "a\nb", tool_call_id="c1", name="f"),
            ChatMessage("tool", "", tool_call_id="elsewhere"),
            ChatMessage("tool", "x", tool_call_id="c2", name="own"),
            ChatMessage(
                "assistant", None, (ToolCall("c1", "f", "{"), ToolCall("c1", "f", "[]"), ToolCall("c1", "f", '{"a":' * 200))
            ),
            ChatMessage("assistant", "So."),
        ),
    )


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "assistant"}, "content"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "content"),
        ({"role": "assistant", "tool_calls": {}}, "tool_calls"),
        ({"role": "assistant", "tool_calls": [call()] * 129}, "tool_calls"),
        ({"role": "assistant", "tool_calls": ["f"]}, "tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [call(id=None)]}, "tool_calls[0].id"),
        ({"role": "assistant", "tool_calls": [call(id=7)]}, "tool_calls[0].id"),
        ({"role": "assistant", "tool_calls": [call(type="custom")]}, "tool_calls[0].type"),
        ({"role": "assistant", "tool_calls": [call(function=None)]}, "tool_calls[0].function.arguments"),
        ({"role": "assistant", "tool_calls": [call({})]}, "tool_calls[0].function.arguments"),
        ({"role": "assistant", "tool_calls": [call(function={"arguments": ""})]}, "tool_calls[0].function.name"),
        ({"role": "user", "content": "x", "tool_calls": [call()]}, "tool_calls"),
        ({"role": "tool", "content": "x"}, "tool_call_id"),
        ({"role": "tool", "content": "x", "tool_call_id": 1}, "tool_call_id"),
        ({"role": "tool", "tool_call_id": "c"}, "content"),
        ({"role": "user", "content": "x", "name": 1}, "name"),
        ({"role": "assistant", "content": "x", "function_call": {"name": "f"}}, "function_call"),
        ({"role": "assistant", "content": "x", "audio": {"id": "a"}}, "audio"),
    ],
)
def test_messages_that_are_refused(message: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(messages=[USER, message])
    assert caught.value.param == f"messages[1].{param}"
    assert caught.value.param in caught.value.message
