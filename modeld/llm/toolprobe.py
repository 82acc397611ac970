"""What does a chat template make of tools? probe_tools(): tried once at load, with a tool and a call that stand out.

Whether a template shows the tools it is given, in which form it takes an earlier call, and how the model is to write one:
all of it is read off the text that it renders, since templates that mean the same look different.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

from modeld.types import ChatMessage, Tool, ToolCall, ToolCallFormat

_NAME, _KEY, _VALUE, _QUESTION, _RESULT = "probe_tool", "probe_key", "probe value", "probe question", "probe result"
_TOOL = Tool(_NAME, "probe description", {"type": "object", "properties": {_KEY: {"type": "string"}}})
_ASK = ChatMessage("user", _QUESTION)
_TALK = (
    _ASK,
    # Mistral's templates take ids of nine letters and digits only.
    ChatMessage("assistant", None, tool_calls=(ToolCall("probe0001", _NAME, {_KEY: _VALUE}),)),
    ChatMessage("tool", _RESULT, tool_call_id="probe0001", name=_NAME),
)
_WRITTEN = {
    ToolCallFormat.HERMES: re.compile(rf'<tool_call>\s*\{{\s*"name":\s*"{_NAME}",\s*"arguments":\s*\{{'),
    ToolCallFormat.MISTRAL_ARGS: re.compile(rf"\[TOOL_CALLS\]\s*{_NAME}(\[CALL_ID\]\w+)?\[ARGS\]\s*\{{"),
    ToolCallFormat.MISTRAL: re.compile(rf'\[TOOL_CALLS\]\s*\[\s*\{{\s*"name":\s*"{_NAME}",\s*"arguments":\s*\{{'),
    ToolCallFormat.LLAMA3: re.compile(rf'(?:\n|>)\s*\{{\s*"name":\s*"{_NAME}",\s*"parameters":\s*\{{'),
}

_MARKERS = {
    ToolCallFormat.HERMES: ("<tool_call>", "</tool_call>"),
    ToolCallFormat.LLAMA3: ("<|python_tag|>",),
    ToolCallFormat.MISTRAL: ("[TOOL_CALLS]",),
    ToolCallFormat.MISTRAL_ARGS: ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
}


@dataclass(frozen=True, slots=True)
class CallForm:
    """The form in which a template takes a call that was made earlier."""

    null_content: bool = True  # else "" stands for the content that is missing
    object_arguments: bool = True  # else their JSON as a string


@dataclass(frozen=True, slots=True)
class ToolSupport:
    shows_tools: bool = False
    call_form: CallForm | None = None  # None: it does not show calls and their results
    format: ToolCallFormat | None = None  # None: it does not tell, or it is none of ours


def markers_of(format_: ToolCallFormat | None) -> tuple[str, ...]:
    """What stands around calls, and is one token of its own in many vocabularies."""
    return _MARKERS[format_] if format_ is not None else ()


Render = Callable[[tuple[ChatMessage, ...], tuple[Tool, ...], CallForm], str]
"""The prompt; "" where the template objects or fails."""


def probe_tools(source: str, render: Render) -> ToolSupport:
    """`source`: the template. Renders it up to seven times."""
    shows_tools = "tools" in source and any(
        _NAME in render(messages, (_TOOL,), CallForm()) for messages in ((_ASK,), (ChatMessage("system", "x"), _ASK))
    )
    tools = (_TOOL,) if shows_tools else ()
    if "tool_calls" in source:
        # Null before "" and objects before strings, as Hugging Face gives them.
        for in_objects, with_null in product((True, False), repeat=2):
            form = CallForm(null_content=with_null, object_arguments=in_objects)
            text = render(_TALK, tools, form)
            if _shows_call(text):
                return ToolSupport(shows_tools, form, _written_format(text) or _told_format(source))
    return ToolSupport(shows_tools, None, _told_format(source))


def _shows_call(text: str) -> bool:
    after = text.rpartition(_QUESTION)[2]
    whole = all(part in after for part in (_NAME, _KEY, _VALUE, _RESULT))
    return whole and f'\\"{_KEY}' not in after and "None" not in after  # neither JSON in JSON nor Python's name for null


def _written_format(text: str) -> ToolCallFormat | None:
    after = text.rpartition(_QUESTION)[2]
    return next((format_ for format_, pattern in _WRITTEN.items() if pattern.search(after)), None)


def _told_format(source: str) -> ToolCallFormat | None:
    """By the markers that a template explains to the model, where it writes no call itself."""
    if "<tool_call>" in source and '"arguments"' in source.replace("\\", "") and "<function=" not in source:
        return ToolCallFormat.HERMES
    if "[TOOL_CALLS]" in source:
        return ToolCallFormat.MISTRAL_ARGS if "[ARGS]" in source else ToolCallFormat.MISTRAL
    return None
