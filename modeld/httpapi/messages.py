"""What was said so far? The messages of a chat, with calls of tools and their results -> ChatMessage."""

from __future__ import annotations

from collections.abc import Mapping

from modeld.errors import InvalidRequest
from modeld.httpapi.fields import Fields, brief, missing, wrong_type
from modeld.httpapi.strictjson import parse
from modeld.types import ChatMessage, ToolCall

MAX_CALLS = 128  # of one message
_ROLES: Mapping[str, str] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


def parse_messages(fields: Fields) -> tuple[ChatMessage, ...]:
    """At least one. Raises InvalidRequest."""
    items = fields.array("messages")
    if items is None:
        raise missing("messages", "an array of messages")
    if not items:
        raise InvalidRequest("messages is empty; at least one message is expected", param="messages")
    messages: list[ChatMessage] = []
    names: dict[str, str] = {}  # call id -> the tool's name
    for i, item in enumerate(items):
        messages.append(_message(item, f"messages[{i}]", names))
        names |= {call.id: call.name for call in messages[-1].tool_calls}
    return tuple(messages)


def _message(item: object, path: str, names: Mapping[str, str]) -> ChatMessage:
    if not isinstance(item, dict):
        raise wrong_type(path, "an object with role and content", item)
    message = Fields(item, path)
    role = message.required_string("role")
    if role not in _ROLES:
        raise InvalidRequest(f"{path}.role is {brief(role)}; supported are {', '.join(_ROLES)}", param=message.name_of("role"))
    for member in ("function_call", "audio"):
        if message.get(member):
            raise InvalidRequest(f"{message.name_of(member)} is not supported", param=message.name_of(member))
    calls = _calls(message)
    if calls and role != "assistant":
        raise InvalidRequest(
            f"{message.name_of('tool_calls')}: only the assistant calls tools, not {role}", param=message.name_of("tool_calls")
        )
    name = message.string("name")
    call_id = None
    if role == "tool":
        call_id = message.required_string("tool_call_id")
        name = name or names.get(call_id)  # some templates want it, and OpenAI's clients do not send it
    return ChatMessage(_ROLES[role], _content(message, optional=bool(calls)), calls, call_id, name)


def _content(message: Fields, *, optional: bool) -> str | None:
    param = message.name_of("content")
    value = message.get("content")
    if value is None:
        if optional:
            return None
        raise missing(param, "a string")
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong_type(param, "a string or an array of text parts", value)
    # Parts are joined by line feeds, as llama.cpp's common/chat.cpp does for templates that take one string.
    return "\n".join(_part(item, f"{param}[{i}]") for i, item in enumerate(value))


def _part(item: object, path: str) -> str:
    if not isinstance(item, dict):
        raise wrong_type(path, "an object with type and text", item)
    part = Fields(item, path)
    if (type_ := part.required_string("type")) != "text":
        raise InvalidRequest(f"{path}.type is {brief(type_)}; only text is supported", param=part.name_of("type"))
    return part.required_string("text")


def _calls(message: Fields) -> tuple[ToolCall, ...]:
    items = message.array("tool_calls") or []
    param = message.name_of("tool_calls")
    if len(items) > MAX_CALLS:
        raise InvalidRequest(f"{param} has {len(items)} calls; at most {MAX_CALLS} are allowed", param=param)
    return tuple(_call(item, f"{param}[{i}]") for i, item in enumerate(items))


def _call(item: object, path: str) -> ToolCall:
    if not isinstance(item, dict):
        raise wrong_type(path, "an object with id and function", item)
    call = Fields(item, path)
    if (type_ := call.string("type") or "function") != "function":
        raise InvalidRequest(f"{path}.type is {brief(type_)}; only function is supported", param=call.name_of("type"))
    function = call.object("function")
    arguments = function.required_string("arguments")
    return ToolCall(call.required_string("id"), function.required_string("name"), _decoded(arguments))


def _decoded(arguments: str) -> dict[str, object] | str:
    """Templates want the object; what the model once made may be none."""
    try:
        value = parse(arguments.encode()) if arguments.strip() else {}
    except InvalidRequest:
        return arguments
    return value if isinstance(value, dict) else arguments
