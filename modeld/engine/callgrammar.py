"""Which grammar makes an answer a call? gbnf_of_calls(): tools and the model's own format -> GBNF. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from modeld.engine.grammar import ALONE, literal, rules_of, written
from modeld.errors import InvalidRequest
from modeld.types import JsonSchema, Tool, ToolCallFormat, ToolUse

MAX_CALLS = 16  # of one answer, so that a model cannot go on calling


@dataclass(frozen=True, slots=True)
class _Writing:
    """How a format writes calls: opening, then calls (before, name, between, arguments, after) with separators, closing."""

    before: str
    between: str  # GBNF, behind the name
    after: str
    opening: str = ""
    separator: str | None = ""  # None: one call is all that an answer holds
    closing: str = ""


_WRITINGS: Mapping[ToolCallFormat, _Writing] = {
    ToolCallFormat.HERMES: _Writing(
        before='<tool_call>\n{"name": "', between=literal('", "arguments": '), after="}\n</tool_call>", separator="\n"
    ),
    ToolCallFormat.LLAMA3: _Writing(before='{"name": "', between=literal('", "parameters": '), after="}", separator=None),
    ToolCallFormat.MISTRAL: _Writing(
        before='{"name": "', between=literal('", "arguments": '), after="}",
        opening="[TOOL_CALLS][", separator=", ", closing="]",
    ),
    # Some models of the family give an id of their own.
    ToolCallFormat.MISTRAL_ARGS: _Writing(
        before="[TOOL_CALLS]", between='("[CALL_ID]" [a-zA-Z0-9]{9})? "[ARGS]"', after=""
    ),
}  # fmt: skip


def gbnf_of_calls(use: ToolUse, format_: ToolCallFormat) -> str:
    """The grammar of an answer that is calls of these tools and nothing else.

    Raises InvalidRequest with the tool and the keyword of its parameters that cannot be said.
    """
    writing = _WRITINGS[format_]
    rules: dict[str, str] = {"root": "", "call": "", "more": ""}
    alternates = []
    for i, tool in enumerate(use.tools):
        if use.named in (None, tool.name):
            name, found = rules_of(_arguments(tool, i), f"t{i}-")
            rules |= found
            alternates.append(f"{literal(tool.name)} between {name}")
    rules["call"] = f"{literal(writing.before)} ({' | '.join(alternates)}) {literal(writing.after)}"
    rules["between"] = writing.between
    rules["more"] = f"{literal(writing.separator or '')} call"
    one = use.named is not None or not use.parallel or writing.separator is None
    calls = "call" if one else f"call more{{0,{MAX_CALLS - 1}}}"
    rules["root"] = f"{literal(writing.opening)} {calls} {literal(writing.closing)}"
    return written(rules, "tools")


def _arguments(tool: Tool, index: int) -> JsonSchema:
    """The parameters as the schema of an object, which arguments always are."""
    param = f"tools[{index}].function.parameters"
    for keyword in ALONE:
        if keyword in tool.parameters:
            raise InvalidRequest(f"{param}: /{keyword} is not supported at the top, where an object is declared", param=param)
    schema = {"type": "object", **tool.parameters}
    if schema["type"] != "object":
        raise InvalidRequest(f"{param}: /type is {str(schema['type'])[:40]!r}; arguments are an object", param=param)
    return JsonSchema(schema, param)
