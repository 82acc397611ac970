"""What is the next of a text that is still coming? TextReader: characters and JSON, each as soon as it is there. Pure.

Its methods are generators, which stop (yield) at the end of the text that has come and go on when there is more: what
reads with them is written as if the whole text were there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator

MAX_DEPTH = 100  # of objects and arrays, as of bodies
_MAX_SCALAR_CHARS = 64
_SPACE = " \t\n\r"
_SCALAR = re.compile(r"true|false|null|-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")

Steps = Generator[None, None, None]
Char = Generator[None, None, str]


class Unexpected(Exception):
    """The character that was read last does not fit."""


class EndOfText(Unexpected):
    """The text is over before what was being read."""


class TooLong(Unexpected):
    """What is kept of the text would be more than max_kept; nothing was read."""


class TextReader:
    """A text of which `text[start:at]` was read and is kept. One thread."""

    def __init__(self) -> None:
        self.text = ""
        self.start = 0
        self.at = 0
        self.ended = False
        self.max_kept: int | None = None  # characters; None: any number

    def feed(self, text: str) -> int:
        """More text. What stands before `start` is let go: by so much all places in it move to the front."""
        n_gone, self.start = self.start, 0
        self.text = self.text[n_gone:] + text
        self.at -= n_gone
        return n_gone

    def drop(self) -> None:
        """Keep nothing of what was read."""
        self.start = self.at

    def back(self) -> None:
        """Read again all that is kept."""
        self.at = self.start

    def char(self) -> Char:
        """The next character."""
        while self.at == len(self.text):
            if self.ended:
                raise EndOfText
            yield
        if self.max_kept is not None and self.at - self.start >= self.max_kept:
            raise TooLong
        self.at += 1
        return self.text[self.at - 1]

    def after_space(self) -> Char:
        """The next character that is no white space."""
        while (char := (yield from self.char())) in _SPACE:
            pass
        return char

    def exactly(self, text: str) -> Steps:
        for wanted in text:
            need((yield from self.char()), wanted)

    # -- JSON. Each raises Unexpected where it is none

    def object(self, depth: int = 1) -> Steps:
        """The rest of an object, behind {."""
        char = yield from self.after_space()
        if char == "}":
            return
        while True:
            need(char, '"')
            yield from self.string()
            need((yield from self.after_space()), ":")
            yield from self._value((yield from self.after_space()), depth)
            char = yield from self.after_space()
            if char == "}":
                return
            need(char, ",")
            char = yield from self.after_space()

    def _array(self, depth: int) -> Steps:
        char = yield from self.after_space()
        if char == "]":
            return
        while True:
            yield from self._value(char, depth)
            char = yield from self.after_space()
            if char == "]":
                return
            need(char, ",")
            char = yield from self.after_space()

    def _value(self, char: str, depth: int) -> Steps:
        """A value whose first character was read."""
        if char in "{[" and depth == MAX_DEPTH:
            raise Unexpected
        if char == "{":
            yield from self.object(depth + 1)
        elif char == "[":
            yield from self._array(depth + 1)
        elif char == '"':
            yield from self.string()
        else:
            scalar = ""
            while char not in ',}]"' and char not in _SPACE and len(scalar) <= _MAX_SCALAR_CHARS:
                scalar += char
                char = yield from self.char()
            if not _SCALAR.fullmatch(scalar):
                raise Unexpected
            self.at -= 1

    def string(self) -> Char:
        """The rest of a string, behind its first quote. Its value."""
        raw = ['"']  # not one string: that would be copied again and again
        while (char := (yield from self.char())) != '"':
            if char < " ":
                raise Unexpected
            raw.append(char)
            if char == "\\":
                raw.append((yield from self._escaped()))
        return str(json.loads("".join(raw) + '"'))

    def _escaped(self) -> Char:
        """What follows a backslash."""
        char = yield from self.char()
        if char not in '"\\/bfnrtu':
            raise Unexpected
        digits = ""
        while char == "u" and len(digits) < 4:
            digit = yield from self.char()
            if digit not in "0123456789abcdefABCDEF":
                raise Unexpected
            digits += digit
        return char + digits


def need(char: str, wanted: str) -> None:
    if char != wanted:
        raise Unexpected
