"""How do answers look in the two shapes of the OpenAI API? Whole ones, and the frames of streams.

A stream's frames differ in their text alone, so everything else is encoded once a request: under load a frame costs
one string encoding and two concatenations.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from json.encoder import encode_basestring_ascii as encode_text

from modeld.httpapi import sse
from modeld.httpapi.logprobs import chat_logprobs, completion_logprobs
from modeld.httpapi.record import Record
from modeld.httpapi.toolcalls import CallDelta, ToolCallParser
from modeld.types import Chunk, Failed, Finished, TokenLogprob

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Shape:
    """Where the two APIs differ."""

    id_prefix: str
    whole_object: str
    stream_object: str
    whole_choice: Callable[[str], Json]  # text -> what holds it in the choice of a whole answer
    text_before: str  # JSON around the text in a choice of a stream
    text_after: str
    first_choice: str | None  # of a stream, before any text
    last_choice: str  # the one with the finish reason, which has no text
    logprobs: Callable[[Sequence[TokenLogprob]], Json]


COMPLETION = Shape(
    id_prefix="cmpl-",
    whole_object="text_completion",
    stream_object="text_completion",
    whole_choice=lambda text: {"text": text},
    text_before='"text":',
    text_after="",
    first_choice=None,
    last_choice='"text":""',
    logprobs=completion_logprobs,
)
CHAT = Shape(
    id_prefix="chatcmpl-",
    whole_object="chat.completion",
    stream_object="chat.completion.chunk",
    whole_choice=lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    text_before='"delta":{"content":',
    text_after="}",
    first_choice='"delta":{"role":"assistant","content":""}',
    last_choice='"delta":{}',
    logprobs=chat_logprobs,
)
_FIRST_WITH_TOOLS = '"delta":{"role":"assistant","content":null}'  # there may be none


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """What every object of one answer says."""

    answer_id: str
    created: int  # seconds since the epoch
    model_id: str


class Tally:
    """Which choices have ended, and the usage of all of them, kept in the request's record."""

    def __init__(self, n_choices: int, n_per_prompt: int, record: Record) -> None:
        self._n_per_prompt = n_per_prompt
        self._record = record
        self.n_open = n_choices

    def add(self, index: int, end: Finished | Failed) -> None:
        """Choice `index` has ended."""
        self.n_open -= 1
        if isinstance(end, Finished):
            self._record.finish = end.reason
        if end.usage is not None:
            self._record.ended_choice(end.usage, counts_prompt=index % self._n_per_prompt == 0)

    def json(self) -> Json:
        record = self._record
        return {
            "prompt_tokens": record.prompt_tokens,
            "completion_tokens": record.completion_tokens,
            "total_tokens": record.prompt_tokens + record.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": record.cached_tokens},
        }


def whole_answer(
    shape: Shape,
    head: AnswerHead,
    choices: Sequence[Sequence[Chunk]],
    tally: Tally,
    *,
    logprobs: bool,
    parsers: Sequence[ToolCallParser] = (),
) -> Json:
    """`choices`: all chunks of each, the last one finished. `parsers`: one for each, where tools may be called."""
    return {
        "id": head.answer_id,
        "object": shape.whole_object,
        "created": head.created,
        "model": head.model_id,
        "choices": [
            _whole_choice(shape, index, chunks, logprobs=logprobs, parser=parsers[index] if parsers else None)
            for index, chunks in enumerate(choices)
        ],
        "usage": tally.json(),
    }


def _whole_choice(shape: Shape, index: int, chunks: Sequence[Chunk], *, logprobs: bool, parser: ToolCallParser | None) -> Json:
    end = chunks[-1].end
    assert isinstance(end, Finished)
    text = "".join(chunk.text for chunk in chunks)
    return {
        "index": index,
        **(shape.whole_choice(text) if parser is None else _whole_message(text, parser)),
        "logprobs": shape.logprobs([item for chunk in chunks for item in chunk.logprobs]) if logprobs else None,
        "finish_reason": _reason(end, parser),
    }


def _whole_message(text: str, parser: ToolCallParser) -> Json:
    deltas = [*parser.feed(text), *parser.finish()]
    content = "".join(delta for delta in deltas if isinstance(delta, str))
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in deltas
        if isinstance(call, CallDelta)
    ]
    if not calls:
        return CHAT.whole_choice(content)
    return {"message": {"role": "assistant", "content": content or None, "refusal": None, "tool_calls": calls}}


def _reason(end: Finished, parser: ToolCallParser | None) -> str:
    """`tool_calls` only where the client may run them: all are complete, and nothing was cut."""
    return "tool_calls" if end.reason == "stop" and parser is not None and parser.ends_in_calls else end.reason


class Frames:
    """The frames of one stream."""

    def __init__(
        self,
        shape: Shape,
        head: AnswerHead,
        n_choices: int,
        *,
        include_usage: bool,
        parsers: Sequence[ToolCallParser] = (),
    ) -> None:
        """`parsers`: one for each choice, where tools may be called."""
        start = json.dumps({"id": head.answer_id, "object": shape.stream_object, "created": head.created, "model": head.model_id})
        self._shape = shape
        self._include_usage = include_usage
        self._parsers = parsers
        self._head = f"data: {start[:-1]}, "
        self._tail = (',"usage":null' if include_usage else "") + "}\n\n"
        self._before = [f'{self._head}"choices":[{{"index":{index},' for index in range(n_choices)]
        self._before_text = [before + shape.text_before for before in self._before]
        self._after_text = f'{shape.text_after},"logprobs":null,"finish_reason":null}}]{self._tail}'

    def opening(self) -> tuple[bytes, ...]:
        first = _FIRST_WITH_TOOLS if self._parsers else self._shape.first_choice
        return () if first is None else tuple(self._choice(index, first, "null") for index in range(len(self._before)))

    def text(self, chunks: Sequence[Chunk]) -> tuple[bytes, ...]:
        """A frame for each chunk that has text or logprobs; where tools may be called, for each piece of it that is known."""
        if self._parsers:
            return tuple([frame for chunk in chunks for frame in self._parsed(chunk)])
        return tuple([self._text(chunk) for chunk in chunks if chunk.text or chunk.logprobs])

    def _parsed(self, chunk: Chunk) -> list[bytes]:
        frames = [self._delta(chunk.index, delta) for delta in self._parsers[chunk.index].feed(chunk.text)]
        # Of all tokens, as they come, those of calls and of text that is kept back included.
        return [self._text(replace(chunk, text="")), *frames] if chunk.logprobs else frames

    def _delta(self, index: int, delta: str | CallDelta) -> bytes:
        if isinstance(delta, str):
            return self._text(Chunk(delta, index=index))
        return self._choice(index, f'"delta":{json.dumps(_call_json(delta))}', "null")

    def _text(self, chunk: Chunk) -> bytes:
        before = self._before_text[chunk.index] + encode_text(chunk.text)
        if not chunk.logprobs:
            return (before + self._after_text).encode("ascii")
        logprobs = json.dumps(self._shape.logprobs(chunk.logprobs))
        return f'{before}{self._shape.text_after},"logprobs":{logprobs},"finish_reason":null}}]{self._tail}'.encode("ascii")

    def finish(self, index: int, finished: Finished) -> tuple[bytes, ...]:
        """The last frames of a choice."""
        parser = self._parsers[index] if self._parsers else None
        rest = [self._delta(index, delta) for delta in parser.finish()] if parser is not None else ()
        return *rest, self._choice(index, self._shape.last_choice, encode_text(_reason(finished, parser)))

    def closing(self, tally: Tally) -> tuple[bytes, ...]:
        """What follows the last choice's last frame."""
        if not self._include_usage:
            return (sse.DONE,)
        return f'{self._head}"choices":[],"usage":{json.dumps(tally.json())}}}\n\n'.encode("ascii"), sse.DONE

    def _choice(self, index: int, choice: str, finish_reason: str) -> bytes:
        rest = f'"logprobs":null,"finish_reason":{finish_reason}}}]{self._tail}'
        return f"{self._before[index]}{choice},{rest}".encode("ascii")


def _call_json(call: CallDelta) -> Json:
    """The first piece of a call says what it is; the others have arguments alone."""
    if call.id is None:
        return {"tool_calls": [{"index": call.index, "function": {"arguments": call.arguments}}]}
    function = {"name": call.name, "arguments": call.arguments}
    return {"tool_calls": [{"index": call.index, "id": call.id, "type": "function", "function": function}]}
