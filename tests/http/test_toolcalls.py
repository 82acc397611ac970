"""Calls of tools in a model's text: every format, every way to break one, every way to split the text. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modeld.httpapi.textreader import MAX_DEPTH
from modeld.httpapi.toolcalls import MAX_KEPT_CHARS, CallDelta, ToolCallParser
from modeld.types import ToolCallFormat

HERMES, LLAMA3 = ToolCallFormat.HERMES, ToolCallFormat.LLAMA3
MISTRAL, ARGS = ToolCallFormat.MISTRAL, ToolCallFormat.MISTRAL_ARGS
NAMES = frozenset(("f", "get_weather", "a-b_C9"))
DEEP = '{"a":' * (MAX_DEPTH - 1) + "[]" + "}" * (MAX_DEPTH - 1)
DEEPER = '{"a":' * MAX_DEPTH + "{}" + "}" * MAX_DEPTH


@dataclass
class Answer:
    content: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)  # name and arguments
    ids: list[str] = field(default_factory=list)
    ends_in_calls: bool = False


def read(format_: ToolCallFormat, parts: list[str], *, whole: bool = False, parallel: bool = True) -> Answer:
    """The deltas put together as a client does it."""
    parser = ToolCallParser(format_, NAMES, parallel=parallel, whole=whole)
    answer = Answer()
    for deltas in (*map(parser.feed, parts), parser.finish(), parser.finish()):
        for delta in deltas:
            if isinstance(delta, str):
                assert delta
                answer.content += delta
            elif delta.name is not None:
                assert delta.index == len(answer.calls)
                assert delta.id is not None
                answer.ids.append(delta.id)
                answer.calls.append((delta.name, delta.arguments))
            else:
                assert delta.id is None
                assert delta.arguments
                name, arguments = answer.calls[delta.index]
                answer.calls[delta.index] = (name, arguments + delta.arguments)
    answer.ends_in_calls = parser.ends_in_calls
    return answer


def hermes(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


CALLS = [
    # what the model writes, content, calls; the same whole and streamed
    (HERMES, hermes("f", "{}"), "", [("f", "{}")]),
    (HERMES, "\n\n" + hermes("f", "{}") + "\n", "", [("f", "{}")]),
    (HERMES, "Let me see.\n" + hermes("f", '{"a": 1}'), "Let me see.\n", [("f", '{"a": 1}')]),
    (HERMES, hermes("f", "{}") + "\n" + hermes("get_weather", '{"a": []}'), "", [("f", "{}"), ("get_weather", '{"a": []}')]),
    (HERMES, hermes("f", "{}") + "\nDone.", "\nDone.", [("f", "{}")]),
    (HERMES, "a" + hermes("f", "{}") + " b " + hermes("f", "{}") + " c", "a b  c", [("f", "{}"), ("f", "{}")]),
    (HERMES, '<tool_call>{"name":"a-b_C9","arguments":{"x":"</tool_call><tool_call>"}}</tool_call>', "",
     [("a-b_C9", '{"x":"</tool_call><tool_call>"}')]),
    (HERMES, hermes("f", '{"s": "q\\"\\\\\\u00e9\\n{}[]", "n": [-1.5e+3, 0, true, false, null, {"o": {}}]}'), "",
     [("f", '{"s": "q\\"\\\\\\u00e9\\n{}[]", "n": [-1.5e+3, 0, true, false, null, {"o": {}}]}')]),
    (HERMES, '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', "", [("f", '{"a": 1}')]),
    (HERMES, '<tool_call>{"id": "x", "type": "function", "name": "f", "arguments": {}}</tool_call>', "", [("f", "{}")]),
    (HERMES, '<tool_call>{"name": "f", "arguments": {}, "id": "x"}</tool_call>', "", [("f", "{}")]),
    (HERMES, '<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
    (HERMES, '<tool_call>{"name": "\\u0066", "parameters": {}}', "", [("f", "{}")]),
    (HERMES, '<tool_call>{"name": "f", "arguments": {}}', "", [("f", "{}")]),
    (HERMES, '<tool_call>{"name": "f", "arguments": {}}</tool_c', "", [("f", "{}")]),
    (HERMES, '<tool_call>{"name": "f", "arguments": {}</tool_call>', "", [("f", "{}")]),
    (HERMES, '<tool_call>{"name": "f", "arguments": {}, "i', "", [("f", "{}")]),
    (HERMES, hermes("f", "{}").replace("</tool_call>", "</tool_cow>"), "\n</tool_cow>", [("f", "{}")]),
    (HERMES, "<tool_call>" + hermes("f", "{}"), "<tool_call>", [("f", "{}")]),
    (HERMES, "<tool_call>\n<tool_" + hermes("f", "{}"), "<tool_call>\n<tool_", [("f", "{}")]),
    (HERMES, "<<tool_call" + hermes("f", DEEP), "<<tool_call", [("f", DEEP)]),
    (LLAMA3, '{"name": "f", "parameters": {"a": "é😀"}}', "", [("f", '{"a": "é😀"}')]),
    (LLAMA3, '\n {"name": "f", "parameters": {}} \n', "", [("f", "{}")]),
    (LLAMA3, '<|python_tag|>{"name": "f", "parameters": {}}', "", [("f", "{}")]),
    (LLAMA3, '{"type": "function", "name": "f", "parameters": {}}', "", [("f", "{}")]),
    (LLAMA3, '{"name": "f", "parameters": {}}; {"name": "f", "parameters": {"b": 2}}', "", [("f", "{}"), ("f", '{"b": 2}')]),
    (LLAMA3, '{"name": "f", "parameters": {}}\n{"name": "f", "parameters": {}}', "", [("f", "{}"), ("f", "{}")]),
    (LLAMA3, 'So: <|python_tag|>{"name": "f", "parameters": {}} and', "So:  and", [("f", "{}")]),
    (LLAMA3, '{"name": "f", "parameters": {}} and', " and", [("f", "{}")]),
    (MISTRAL, '[TOOL_CALLS][{"name": "f", "arguments": {}}]', "", [("f", "{}")]),
    (MISTRAL, '[TOOL_CALLS] [ {"name": "f", "arguments": {}, "id": "abcdefgh9"} , {"name": "get_weather", "arguments": {"a":1}}]',
     "", [("f", "{}"), ("get_weather", '{"a":1}')]),
    (MISTRAL, 'Yes. [TOOL_CALLS][{"name": "f", "arguments": {}}] !', "Yes.  !", [("f", "{}")]),
    (MISTRAL, '[TOOL_CALLS][{"name": "f", "arguments": {}}', "", [("f", "{}")]),
    (MISTRAL, '[TOOL_CALLS]{"name": "f", "arguments": {}}', "", [("f", "{}")]),
    (ARGS, '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]get_weather[ARGS]{}', "", [("f", '{"a": 1}'), ("get_weather", "{}")]),
    (ARGS, 'x[TOOL_CALLS]a-b_C9[CALL_ID]abcdefgh9[ARGS] {"a": 1}', "x", [("a-b_C9", '{"a": 1}')]),
    (MISTRAL, '[TOOL_CALLS]f[ARGS]{"a": 1}', "", [("f", '{"a": 1}')]),
    (ARGS, '[TOOL_CALLS][{"name": "f", "arguments": {}}]', "", [("f", "{}")]),
]  # fmt: skip

CONTENT = [
    (HERMES, ""),
    (HERMES, " \n"),
    (HERMES, "Hello, world <b>"),
    (HERMES, "<tool"),
    (HERMES, "  a <tool_call>"),
    (HERMES, "<tool_call>\n"),
    (HERMES, "<tool_call>no JSON</tool_call>"),
    (HERMES, hermes("unknown", "{}")),
    (HERMES, hermes("f", "[]")),
    (HERMES, hermes("f", '"{}"')),
    (HERMES, hermes("f", "null")),
    (HERMES, '<tool_call>{"name": 1, "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"arguments": {}, "name": "unknown"}</tool_call>'),
    (HERMES, '<tool_call>{"other": 1, "name": "f"}</tool_call>'),
    (HERMES, "<tool_call>{}</tool_call>"),
    (HERMES, '<tool_call>{"name": "f", "arguments"'),
    (HERMES, '<tool_call>{"name" "f"}'),
    (HERMES, "<tool_call>{'name': 'f', 'arguments': {}}</tool_call>"),
    (LLAMA3, '{"title": "The old man", "name": "f", "parameters": {}}'),
    (LLAMA3, '{"a'),
    (LLAMA3, '  {"name": "unknown", "parameters": {}}'),
    (LLAMA3, "<|python_tag|>print(1)"),
    (LLAMA3, '<|python_tag|>brave_search.call(query="x")'),
    (LLAMA3, 'Here: {"name": "f", "parameters": {}}'),
    (LLAMA3, '; {"name": "f", "parameters": {}}'),
    (LLAMA3, "   "),
    (MISTRAL, "[TOOL_CALLS]"),
    (MISTRAL, "[TOOL_CALLS][]"),
    (MISTRAL, "[TOOL_CALLS] word"),
    (MISTRAL, "[TOOL_CALLS][[]]"),
    (ARGS, "[TOOL_CALLS]unknown[ARGS]{}"),
    (ARGS, "[TOOL_CALLS]f[ARGS"),
    (ARGS, "[TOOL_CALLS]f[CALL_ID]x[AR"),
    (ARGS, "[TOOL_CALLS]f[CALL_ID]" + "x" * 99 + "[ARGS]{}"),
    (ARGS, "[TOOL_CALLS]f {}"),
    (ARGS, "[TOOL_CALLS]f[ARGS][]"),
    (ARGS, "[ARGS]{}"),
]

BROKEN = [
    # what the model writes; how the arguments come in a stream, and what follows them there
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": "un', '{"a": "un', ""),
    (HERMES, '<tool_call>{"name": "f", "arguments": {', "{", ""),
    (HERMES, hermes("f", '{"a": nul}'), '{"a": nul', "}}\n</tool_call>"),
    (HERMES, hermes("f", '{"a": 01}'), '{"a": 01', "}}\n</tool_call>"),
    (HERMES, hermes("f", "{a: 1}"), "{", "a: 1}}\n</tool_call>"),
    (HERMES, hermes("f", '{"a": 1,}'), '{"a": 1,', "}}\n</tool_call>"),
    (HERMES, hermes("f", '{"a": [1,]}'), '{"a": [1,', "]}}\n</tool_call>"),
    (HERMES, hermes("f", '{"a": [1 2]}'), '{"a": [1 ', "2]}}\n</tool_call>"),
    (HERMES, hermes("f", '{"a" 1}'), '{"a" ', "1}}\n</tool_call>"),
    (HERMES, hermes("f", '{"a": "\\x"}'), '{"a": "\\', 'x"}}\n</tool_call>'),
    (HERMES, hermes("f", '{"a": "\\u12G4"}'), '{"a": "\\u12', 'G4"}}\n</tool_call>'),
    (HERMES, hermes("f", '{"a": "\n"}'), '{"a": "', '\n"}}\n</tool_call>'),
    (HERMES, hermes("f", '{"a": 1}').replace("}}", "]"), '{"a": 1', "]\n</tool_call>"),
    (HERMES, hermes("f", DEEPER), '{"a":' * MAX_DEPTH, DEEPER[5 * MAX_DEPTH :] + "}\n</tool_call>"),
    (HERMES, hermes("f", f'{{"a": {"1" * 99}}}'), '{"a": ' + "1" * 65, "1" * 34 + "}}\n</tool_call>"),
    (LLAMA3, '{"name": "f", "parameters": {"a": tru', '{"a": tru', ""),
    (MISTRAL, '[TOOL_CALLS][{"name": "f", "arguments": {"a"}}]', '{"a"', "}}]"),
    (ARGS, '[TOOL_CALLS]f[ARGS]{"a": x} [TOOL_CALLS]f[ARG', '{"a": x', "} [TOOL_CALLS]f[ARG"),
]  # fmt: skip


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(("format_", "text", "content", "calls"), CALLS)
def test_calls_however_the_text_is_split(
    format_: ToolCallFormat, text: str, content: str, calls: list[tuple[str, str]], whole: bool
) -> None:
    for parts in splits(text):
        answer = read(format_, parts, whole=whole)
        assert (answer.content, answer.calls) == (content, calls), parts
        assert answer.ends_in_calls
        assert len(set(answer.ids)) == len(calls)
    for _, arguments in calls:
        assert isinstance(json.loads(arguments), dict)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(("format_", "text"), CONTENT)
def test_what_turns_out_to_be_no_call_is_content(format_: ToolCallFormat, text: str, whole: bool) -> None:
    for parts in splits(text):
        answer = read(format_, parts, whole=whole)
        assert (answer.content, answer.calls, answer.ends_in_calls) == (text, [], False), parts


@pytest.mark.parametrize(("format_", "text", "arguments", "rest"), BROKEN)
def test_a_call_that_breaks_off_is_content_where_it_can_still_be(
    format_: ToolCallFormat, text: str, arguments: str, rest: str
) -> None:
    for parts in splits(text):
        whole = read(format_, parts, whole=True)
        assert (whole.content, whole.calls, whole.ends_in_calls) == (text, [], False), parts
        streamed = read(format_, parts)
        assert (streamed.content, streamed.calls, streamed.ends_in_calls) == (rest, [("f", arguments)], False), parts


def splits(text: str) -> list[list[str]]:
    """At every position, at every pair of some, and into characters."""
    step = max(1, len(text) // 200)
    two = [[text[:i], text[i:]] for i in range(0, len(text) + 1, step)]
    coarse = max(1, len(text) // 15)
    three = [[text[:i], text[i:j], text[j:]] for i in range(0, len(text), coarse) for j in range(i, len(text), coarse)]
    return [[text], list(text), *two, *three]


def test_a_second_call_after_a_broken_one_is_still_read() -> None:
    text = hermes("f", "{a}") + hermes("get_weather", "{}")
    assert read(HERMES, [text], whole=True).calls == [("get_weather", "{}")]
    streamed = read(HERMES, [text])
    assert streamed.calls == [("f", "{"), ("get_weather", "{}")]
    assert not streamed.ends_in_calls


@pytest.mark.parametrize(
    ("format_", "text"),
    [
        (HERMES, hermes("f", '{"a": 1}') + " and " + hermes("f", "{}") + " so"),
        (LLAMA3, '{"name": "f", "parameters": {"a": 1}}; {"name": "f", "parameters": {}}'),
        (MISTRAL, '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}, {"name": "f", "arguments": {}}] so'),
        (ARGS, '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]f[ARGS]{}'),
    ],
)
def test_one_call_where_no_more_are_wanted(format_: ToolCallFormat, text: str) -> None:
    for parts in splits(text):
        answer = read(format_, parts, parallel=False)
        assert (answer.content, answer.calls, answer.ends_in_calls) == ("", [("f", '{"a": 1}')], True)


def test_arguments_come_as_they_are_made() -> None:
    parser = ToolCallParser(HERMES, NAMES, parallel=True, whole=False)
    assert parser.feed('<tool_call>{"name": "f", "arguments": ') == []
    (first,) = parser.feed('{"te')
    assert isinstance(first, CallDelta)
    assert (first.index, first.name, first.arguments) == (0, "f", '{"te')
    assert parser.feed('xt": "a') == [CallDelta(0, 'xt": "a')]
    assert parser.feed('"}') == [CallDelta(0, '"}')]
    assert parser.feed("}\n</tool_call>") == []
    assert parser.feed("\nok") == ["\nok"]


def test_plain_text_waits_for_nothing() -> None:
    for format_ in ToolCallFormat:
        parser = ToolCallParser(format_, NAMES, parallel=True, whole=False)
        for word in ("Well", ", ", "a < b", " or [1]", "\n"):
            assert parser.feed(word) == [word]


@pytest.mark.parametrize(("format_", "form"), [(HERMES, "call_"), (LLAMA3, "call_"), (MISTRAL, ""), (ARGS, "")])
def test_ids_are_such_as_the_templates_take(format_: ToolCallFormat, form: str) -> None:
    text = {
        HERMES: hermes("f", "{}"),
        LLAMA3: '{"name": "f"}',
        MISTRAL: '[TOOL_CALLS][{"name": "f"}]',
        ARGS: "[TOOL_CALLS]f[ARGS]{}",
    }[format_]
    (id_,) = read(format_, [text]).ids
    assert id_.startswith(form)
    assert id_.removeprefix(form).isalnum()
    assert form or len(id_) == 9


def test_a_stream_keeps_back_a_bounded_text() -> None:
    begun = '<tool_call>{"arguments": {"a": "'
    parser = ToolCallParser(HERMES, NAMES, parallel=True, whole=False)
    shown = "".join(delta for _ in range(300) for delta in parser.feed(begun + "x" * 1000) if isinstance(delta, str))
    assert len(shown) > 300_000 - 2 * MAX_KEPT_CHARS
    space = ToolCallParser(HERMES, NAMES, parallel=True, whole=False)
    assert len("".join(str(delta) for _ in range(200) for delta in space.feed(" " * 1000))) > 200_000 - 2 * MAX_KEPT_CHARS
    after = ToolCallParser(HERMES, NAMES, parallel=False, whole=False)
    after.feed(hermes("f", "{}"))
    for _ in range(100):
        assert after.feed(hermes("f", "{}") * 100) == []
    assert len(after._reader.text) <= 100 * len(hermes("f", "{}"))


# Text out of what calls are made of, in any order.
PIECES = st.sampled_from(
    ["<tool_call>", "</tool_call>", "<tool", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>",
     '{"name": "f", "arguments": ',
     '{"name": "f", "parameters": {"a": ', "{", "}", "[", "]", '"', ",", ":", ";", " ", "\n", "\\", "f", "name", "1",
     "true", "é", "-",
     hermes("f", "{}"), '[TOOL_CALLS]f[ARGS]{"a": [1, "x"]}', '"name"', '"arguments"', '{"name": "f"}', "x" * 70]
)  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(list(ToolCallFormat)), st.lists(PIECES, max_size=30), st.data(), st.booleans(), st.booleans())
@example(HERMES, ["<tool_call>", '{"name": "f", "arguments": ', "{", '"', "a", '"', ":", "1"], None, True, False)
def test_the_same_however_it_is_split(
    format_: ToolCallFormat, pieces: list[str], data: st.DataObject | None, parallel: bool, whole: bool
) -> None:
    text = "".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=10))) if data else range(len(text))
    parts = [text[a:b] for a, b in pairwise((0, *cuts, len(text)))]
    at_once, split = read(format_, [text], parallel=parallel, whole=whole), read(format_, parts, parallel=parallel, whole=whole)
    at_once.ids, split.ids = [], []
    assert at_once == split
    assert not split.ends_in_calls or split.calls
    if not split.calls:
        assert split.content == text
    if whole:
        for name, arguments in split.calls:
            assert name in NAMES
            assert isinstance(json.loads(arguments), dict)
