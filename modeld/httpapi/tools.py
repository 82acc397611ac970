"""What may the model call? `tools`, `tool_choice` and `parallel_tool_calls` -> ToolUse."""

from __future__ import annotations

import re

from modeld.errors import InvalidRequest
from modeld.httpapi.fields import Fields, brief, missing, wrong_type
from modeld.types import Tool, ToolUse

MAX_TOOLS = 128
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_CHOICES = "none, auto, required, or an object that names a function"


def parse_tools(fields: Fields) -> tuple[Tool, ...]:
    """All that are given. What their parameters say is for the template and the engine. Raises InvalidRequest."""
    items = fields.array("tools") or []
    if len(items) > MAX_TOOLS:
        raise InvalidRequest(f"tools has {len(items)} tools; at most {MAX_TOOLS} are allowed", param="tools")
    tools = tuple(_tool(item, f"tools[{i}]") for i, item in enumerate(items))
    names: set[str] = set()
    for i, tool in enumerate(tools):
        if tool.name in names:
            param = f"tools[{i}].function.name"
            raise InvalidRequest(f"{param}: {tool.name!r} names another tool, too", param=param)
        names.add(tool.name)
    return tools


def parse_tool_use(fields: Fields) -> ToolUse | None:
    """None: nothing may be called (tool_choice none, or no tools). Raises InvalidRequest."""
    tools = parse_tools(fields)
    parallel = fields.boolean("parallel_tool_calls", True)
    choice = fields.get("tool_choice")
    named = None
    if isinstance(choice, dict):
        named = _named(fields.object("tool_choice"), tools)
        parallel = False
    elif choice not in (None, "none", "auto", "required"):
        if not isinstance(choice, str):
            raise wrong_type("tool_choice", _CHOICES, choice)
        raise InvalidRequest(f"tool_choice is {brief(choice)}; expected is {_CHOICES}", param="tool_choice")
    if choice == "none":
        return None
    required = named is not None or choice == "required"
    if not tools:
        if required:
            raise InvalidRequest("tool_choice asks for a call, but there are no tools", param="tool_choice")
        return None
    return ToolUse(tools, required=required, named=named, parallel=parallel)


def _tool(item: object, path: str) -> Tool:
    if not isinstance(item, dict):
        raise wrong_type(path, "an object with type and function", item)
    tool = Fields(item, path)
    if (type_ := tool.required_string("type")) != "function":
        raise InvalidRequest(f"{path}.type is {brief(type_)}; only function is supported", param=tool.name_of("type"))
    if tool.get("function") is None:
        raise missing(tool.name_of("function"), "an object with name, description and parameters")
    function = tool.object("function")
    name = function.required_string("name")
    if not _NAME.fullmatch(name):
        param = function.name_of("name")
        raise InvalidRequest(f"{param} is {brief(name)}; allowed are 1 to 64 letters, digits, _ and -", param=param)
    function.boolean("strict", False)  # a call that is required follows its schema, whatever this says; no other does
    parameters = function.get("parameters")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    if not isinstance(parameters, dict):
        raise wrong_type(function.name_of("parameters"), "a JSON schema", parameters)
    return Tool(name, function.string("description") or "", parameters)


def _named(choice: Fields, tools: tuple[Tool, ...]) -> str:
    if (type_ := choice.required_string("type")) != "function":
        raise InvalidRequest(f"tool_choice.type is {brief(type_)}; only function is supported", param="tool_choice.type")
    name = choice.object("function").required_string("name")
    if all(tool.name != name for tool in tools):
        param = "tool_choice.function.name"
        raise InvalidRequest(f"{param}: {brief(name)} is not among the tools", param=param)
    return name
