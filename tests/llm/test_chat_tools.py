"""Tools in chat templates: what is shown, in which form a template takes calls, and which format it tells."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from modeld.errors import InvalidRequest
from modeld.llm.backend import backend
from modeld.llm.chat import ChatTemplate
from modeld.llm.toolprobe import CallForm
from modeld.types import ChatMessage, Tool, ToolCall, ToolCallFormat
from tests import tool_templates as texts

WEATHER = Tool("get_weather", "Looks out.", {"type": "object", "properties": {"city": {"type": "string"}}})
ASK = ChatMessage("user", "Rain in Aix?")
CALL = ToolCall("abcdefgh9", "get_weather", {"city": "Aix"})
TALK = [ASK, ChatMessage("assistant", None, tool_calls=(CALL,)), ChatMessage("tool", '"no"', tool_call_id="abcdefgh9")]


def template(source: str) -> ChatTemplate:
    return ChatTemplate(backend().lib, source, "m", bos="<s>", eos="</s>", adds_bos=True)


@pytest.mark.parametrize(
    ("source", "format_", "form"),
    [
        (texts.HERMES, ToolCallFormat.HERMES, CallForm()),
        (texts.LLAMA3, ToolCallFormat.LLAMA3, CallForm()),
        (texts.MISTRAL, ToolCallFormat.MISTRAL, CallForm()),
        (texts.MISTRAL_ARGS, ToolCallFormat.MISTRAL_ARGS, CallForm(null_content=False)),
        (texts.HERMES.replace("message.content %}", "true %}"), ToolCallFormat.HERMES, CallForm(null_content=False)),
        (texts.HERMES.replace("(call.function.arguments | tojson)", "call.function.arguments"), ToolCallFormat.HERMES,
         CallForm(object_arguments=False)),
        (texts.STRINGS, None, CallForm(object_arguments=False)),
        (texts.PLAIN, None, None),
        (texts.HERMES.replace("message.tool_calls", "none"), ToolCallFormat.HERMES, None),
        ("{{ tools }}" + texts.PLAIN + "{# [TOOL_CALLS] #}", ToolCallFormat.MISTRAL, None),
        ("{{ tools }}" + texts.PLAIN + "{# [TOOL_CALLS]name[ARGS] #}", ToolCallFormat.MISTRAL_ARGS, None),
        ("{{ tools }}" + texts.PLAIN + '{# <tool_call><function=name>, not "arguments" #}', None, None),
    ],
)  # fmt: skip
def test_what_a_template_does_is_read_off_what_it_renders(
    source: str, format_: ToolCallFormat | None, form: CallForm | None
) -> None:
    tried = template(source)
    assert tried.engine == "jinja"
    assert tried.tools.format == format_
    assert tried.tools.call_form == form
    assert tried.tools.shows_tools == (source not in (texts.PLAIN, texts.STRINGS))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            texts.HERMES,
            [
                '<tools>\n{"type": "function", "function": {"name": "get_weather", "description": "Looks out.", "parameters": ',
                '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Aix"}}\n</tool_call><|im_end|>',
                '<tool_response>\n"no"\n</tool_response><|im_end|>\n<|im_start|>assistant\n',
            ],
        ),
        (
            texts.LLAMA3,
            [
                '\n        "name": "get_weather",\n        "description": "Looks out.",\n        "parameters": {\n',
                '<|end_header_id|>\n\n{"name": "get_weather", "parameters": {"city": "Aix"}}<|eot_id|>',
            ],
        ),
        (
            texts.MISTRAL,
            [
                '[AVAILABLE_TOOLS][{"type": "function"',
                '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Aix"}, "id": "abcdefgh9"}]</s>',
                '"call_id": "abcdefgh9"',
            ],
        ),
        (texts.MISTRAL_ARGS, ['[AVAILABLE_TOOLS][{"type": "function"', '[TOOL_CALLS]get_weather[ARGS]{"city": "Aix"}</s>']),
    ],
)
def test_tools_calls_and_results_are_rendered(source: str, expected: Sequence[str]) -> None:
    text = template(source).render(TALK, [WEATHER])
    for part in expected:
        assert part in text


def test_arguments_that_are_no_object_are_passed_as_they_are() -> None:
    broken = ToolCall("abcdefgh9", "get_weather", '{"city": ')
    assert '"arguments": "{\\"city\\": "}' in template(texts.HERMES).render([ASK, ChatMessage("assistant", "x", (broken,))])
    assert template(texts.STRINGS).render([ASK, ChatMessage("assistant", None, (broken,))]).endswith('get_weather {"city": ')
    assert 'get_weather {"city": "Aix"}' in template(texts.STRINGS).render(TALK)


def test_a_template_that_goes_through_the_tools_unasked_gets_an_empty_list() -> None:
    careless = template("{% for tool in tools %}[{{ tool.function.name }}]{% endfor %}" + texts.PLAIN)
    assert careless.engine == "jinja"
    assert careless.render([ASK]) == "user: Rain in Aix?\n"
    assert careless.render([ASK], [WEATHER]) == "[get_weather]user: Rain in Aix?\n"


def test_a_template_that_wants_a_system_message_is_tried_with_one() -> None:
    picky = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}{{ tools }}" + texts.PLAIN
    assert template(picky).tools.shows_tools


@pytest.mark.parametrize("source", [texts.PLAIN, "chatml", "{{ tools | length }}" + texts.PLAIN])
def test_what_a_template_does_not_show_is_refused_never_left_out(source: str) -> None:
    poor = template(source)
    with pytest.raises(InvalidRequest, match="does not show tools") as tools:
        poor.render([ASK], [WEATHER])
    assert tools.value.param == "tools"
    for messages, param in ((TALK, "messages[1].tool_calls"), (TALK[::2], "messages[1]")):
        with pytest.raises(InvalidRequest, match="does not show calls of tools") as calls:
            poor.render(messages)
        assert calls.value.param == param
    assert "Rain in Aix?" in poor.render([ASK])


def test_what_the_template_objects_to_in_calls_is_passed_on() -> None:
    with pytest.raises(InvalidRequest, match="one call at a time"):
        template(texts.LLAMA3).render([ASK, ChatMessage("assistant", None, (CALL, CALL))], [WEATHER])
    with pytest.raises(InvalidRequest, match="nine letters"):
        template(texts.MISTRAL).render([ASK, ChatMessage("assistant", None, (ToolCall("x", "f", {}),))], [WEATHER])
