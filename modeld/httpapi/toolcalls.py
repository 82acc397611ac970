"""Which of a model's words call a tool? ToolCallParser: text as it comes -> content and pieces of calls. Pure.

What begins like a call is kept back until it cannot be one any more; then it is content again, so that no text is lost.
A call is one when a tool of that name was given and its arguments are a JSON object; what should surround it may be cut
or broken. However the text is split, the content and the calls put together are the same.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby

from modeld.httpapi.textreader import EndOfText, Steps, TextReader, Unexpected, need
from modeld.types import ToolCallFormat

MAX_KEPT_CHARS = 64 * 1024  # of a stream, before a call is known to be one
_MAX_ID_CHARS = 64

_MARKERS = {
    ToolCallFormat.HERMES: "<tool_call>",
    ToolCallFormat.LLAMA3: "<|python_tag|>",
    ToolCallFormat.MISTRAL: "[TOOL_CALLS]",
    ToolCallFormat.MISTRAL_ARGS: "[TOOL_CALLS]",
}
_NAME = re.compile(r"[a-zA-Z0-9_-]")


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A piece of a call. `index` counts the answer's calls; `id` and `name` come with the first piece only."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


Delta = str | CallDelta
"""Content, or a piece of a call."""


class ToolCallParser:
    """One answer's text. One thread.

    White space beside a call is not content. In the middle of a call: with `whole`, it comes in one piece once it is
    complete, and one that never is comes back as content; without, its arguments come as they are made, and one that
    breaks off stays as far as it came (`ends_in_calls` is False then), with the rest as content.
    """

    def __init__(self, format_: ToolCallFormat, names: frozenset[str], *, parallel: bool, whole: bool) -> None:
        """`names`: the tools that may be called. Not `parallel`: what follows the first call is dropped."""
        self._format = format_
        self._names = names
        self._parallel = parallel
        self._whole = whole
        self._reader = TextReader()  # keeps what may be a call
        self._reader.max_kept = None if whole else MAX_KEPT_CHARS
        self._from = 0  # of the reader's text: where the arguments begin that are being read and were not given out
        self._open = False  # a call's arguments are given out as they come
        self._space = ""  # that may stand beside a call
        self._spoke = False  # content other than white space came since the last call
        self._n_begun = 0
        self._n_complete = 0
        self._out: list[Delta] = []
        self._steps = self._read()

    @property
    def ends_in_calls(self) -> bool:
        """Whether there are calls, all of them complete. For finish_reason, after finish()."""
        return self._n_complete > 0 and self._n_complete == self._n_begun

    def feed(self, text: str) -> list[Delta]:
        """What is known of the answer, now that this much more of its text has come."""
        self._from -= self._reader.feed(text)
        next(self._steps, None)
        if self._open:
            self._give_arguments()
        out, self._out = self._out, []
        return _merged(out)

    def finish(self) -> list[Delta]:
        """The rest, when the answer is over."""
        self._reader.ended = True
        out = self.feed("")
        space, self._space = self._space, ""
        return [*out, space] if space and not self._n_begun else out

    # -- content and calls in turn

    def _read(self) -> Steps:
        if self._format is ToolCallFormat.LLAMA3:
            yield from self._tried(self._bare_calls)
        while self._goes_on():
            yield from self._content()
            if self._reader.ended and self._n_kept == 0:
                return
            yield from self._tried(self._marked_calls)
        while True:
            self._reader.at = len(self._reader.text)
            self._reader.drop()
            yield

    def _goes_on(self) -> bool:
        return self._parallel or not self._n_complete

    @property
    def _n_kept(self) -> int:
        return len(self._reader.text) - self._reader.start

    def _content(self) -> Steps:
        """Say all up to a marker, and read that."""
        reader, marker = self._reader, _MARKERS[self._format]
        while (start := reader.text.find(marker, reader.start)) < 0:
            self._say(len(reader.text) - (0 if reader.ended else self._n_possible_marker(marker)))
            if reader.ended:
                return
            yield
        self._say(start)
        reader.at += len(marker)

    def _n_possible_marker(self, marker: str) -> int:
        """The length of the longest end of the text with which the marker begins."""
        longest = min(len(marker) - 1, self._n_kept)
        return next((n for n in range(longest, 0, -1) if self._reader.text.endswith(marker[:n])), 0)

    def _tried(self, read: Callable[[], Steps]) -> Steps:
        try:
            yield from read()
        except Unexpected as error:
            if self._open:
                if not isinstance(error, EndOfText):
                    self._reader.at -= 1
                self._give_arguments()
                self._open = False
                self._reader.max_kept = MAX_KEPT_CHARS
            elif self._n_kept:
                # From the second character on it may still be one, or hold one.
                self._say(self._reader.start + 1)

    def _say(self, end: int) -> None:
        """The text up to there is content."""
        text = self._reader.text[self._reader.start : end]
        self._reader.at = end
        self._reader.drop()
        if not self._spoke:
            text = self._space + text
            self._spoke = bool(text.strip()) or len(text) > MAX_KEPT_CHARS
            self._space = "" if self._spoke else text
        if self._spoke and text:
            self._out.append(text)

    # -- formats

    def _bare_calls(self) -> Steps:
        """Llama 3: the answer is a call, or several with semicolons between them."""
        while (char := (yield from self._reader.after_space())) == "{" or (char == ";" and self._n_complete):
            if char == "{":
                yield from self._call_object()
                if not self._goes_on():
                    return
        self._reader.back()

    def _marked_calls(self) -> Steps:
        """What stands behind the marker."""
        char = yield from self._reader.after_space()
        if char == "{":
            yield from self._call_object()
            if self._format is ToolCallFormat.HERMES:
                yield from self._possibly("</tool_call>")
        elif self._format in (ToolCallFormat.HERMES, ToolCallFormat.LLAMA3):
            raise Unexpected
        elif char == "[":
            yield from self._array_of_calls()
        else:
            yield from self._named_call(char)

    def _possibly(self, tag: str) -> Steps:
        reader = self._reader
        try:
            need((yield from reader.after_space()), tag[0])
            yield from reader.exactly(tag[1:])
            reader.drop()
        except EndOfText:
            reader.drop()
        except Unexpected:
            reader.back()

    def _array_of_calls(self) -> Steps:
        reader = self._reader
        while self._goes_on():
            need((yield from reader.after_space()), "{")
            yield from self._call_object()
            char = yield from reader.after_space()
            if char == "]":
                reader.drop()
                return
            need(char, ",")

    def _named_call(self, char: str) -> Steps:
        """Mistral's newer way: name[ARGS]{...}, or name[CALL_ID]id[ARGS]{...}."""
        reader = self._reader
        name = ""
        while _NAME.match(char):
            name += char
            char = yield from reader.char()
        self._check_known(name)
        need(char, "[")
        char = yield from reader.char()
        if char == "C":
            yield from reader.exactly("ALL_ID]")
            for _ in range(_MAX_ID_CHARS + 1):
                char = yield from reader.char()
                if not _NAME.match(char):
                    break
            need(char, "[")
            char = yield from reader.char()
        need(char, "A")
        yield from reader.exactly("RGS]")
        need((yield from reader.after_space()), "{")
        yield from self._arguments(name)

    def _call_object(self) -> Steps:
        """The members behind {: a name, and arguments unless there are none. Once both are known it is a call."""
        reader = self._reader
        name = arguments = None
        while True:
            char = yield from reader.after_space()
            if char == "}" and name is not None:
                self._begin(name, "{}")
                self._complete()
                return
            need(char, '"')
            key = yield from reader.string()
            need((yield from reader.after_space()), ":")
            char = yield from reader.after_space()
            if key in ("arguments", "parameters") and arguments is None:
                need(char, "{")
                if name is not None:
                    yield from self._arguments(name)
                    break
                self._from = reader.at - 1
                yield from reader.object()
                arguments = reader.text[self._from : reader.at]
            elif key in ("name", "type", "id"):
                need(char, '"')
                value = yield from reader.string()
                if key == "name":
                    self._check_known(value)
                    name = value
            else:
                raise Unexpected
            if name is not None and arguments is not None:
                self._begin(name, arguments)
                self._complete()
                break
            char = yield from reader.after_space()
            if char == "}":
                reader.at -= 1
            else:
                need(char, ",")
        yield from self._rest_of_object()

    def _rest_of_object(self) -> Steps:
        """Up to }, where it comes behind nothing but further strings; the call is one without it, too."""
        reader = self._reader
        try:
            while (char := (yield from reader.after_space())) != "}":
                need(char, ",")
                need((yield from reader.after_space()), '"')
                yield from reader.string()
                need((yield from reader.after_space()), ":")
                need((yield from reader.after_space()), '"')
                yield from reader.string()
            reader.drop()
        except EndOfText:
            reader.drop()
        except Unexpected:
            reader.back()

    # -- a call

    def _check_known(self, name: str) -> None:
        if name not in self._names:
            raise Unexpected

    def _arguments(self, name: str) -> Steps:
        """Behind the { of the arguments."""
        reader = self._reader
        self._from = reader.at - 1
        if self._whole:
            yield from reader.object()
            self._begin(name, reader.text[self._from : reader.at])
        else:
            self._begin(name, "")
            self._open = True
            reader.max_kept = None
            yield from reader.object()
            self._give_arguments()
            self._open = False
            reader.max_kept = MAX_KEPT_CHARS
        self._complete()

    def _begin(self, name: str, arguments: str) -> None:
        mistral = self._format in (ToolCallFormat.MISTRAL, ToolCallFormat.MISTRAL_ARGS)
        # The templates of Mistral take ids of nine letters and digits only.
        id_ = uuid.uuid4().hex[:9] if mistral else f"call_{uuid.uuid4().hex[:24]}"
        self._out.append(CallDelta(self._n_begun, arguments, id_, name))
        self._n_begun += 1
        self._space, self._spoke = "", False

    def _give_arguments(self) -> None:
        """What was read of the open call's arguments."""
        arguments = self._reader.text[self._from : self._reader.at]
        self._from = self._reader.at
        self._reader.drop()
        if arguments:
            self._out.append(CallDelta(self._n_begun - 1, arguments))

    def _complete(self) -> None:
        self._n_complete += 1
        self._reader.drop()


def _merged(deltas: list[Delta]) -> list[Delta]:
    """Neighbours that are content, or of one call, as one."""
    merged: list[Delta] = []
    for _, group in groupby(deltas, lambda delta: delta.index if isinstance(delta, CallDelta) else None):
        first, *rest = group
        if isinstance(first, CallDelta):
            arguments = [delta.arguments for delta in (first, *rest) if isinstance(delta, CallDelta)]
            merged.append(replace(first, arguments="".join(arguments)))
        else:
            merged.append("".join([first, *(delta for delta in rest if isinstance(delta, str))]))
    return merged
