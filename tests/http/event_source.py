"""What does a browser's EventSource make of a stream? The parser of WHATWG HTML 9.2.6, written from its text, for tests."""

from __future__ import annotations

import codecs
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """What is dispatched."""

    last_event_id: str
    type: str
    data: str


class EventSource:
    """One stream. Bytes come in any pieces; what stands after the last blank line is never dispatched."""

    def __init__(self) -> None:
        self.retry_ms: int | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")  # "one leading U+FEFF must be ignored"
        self._line = ""
        self._after_cr = False
        self._id = self._type = self._data = ""  # the three buffers

    def feed(self, raw: bytes) -> list[Message]:
        """The events that these bytes complete."""
        told = []
        for char in self._decoder.decode(raw):
            after_cr, self._after_cr = self._after_cr, char == "\r"
            if char == "\n" and after_cr:
                continue  # CR LF is one end of a line
            if char not in "\r\n":
                self._line += char
                continue
            line, self._line = self._line, ""
            if line:
                self._field(line)
            elif (message := self._dispatch()) is not None:
                told.append(message)
        return told

    def _field(self, line: str) -> None:
        name, colon, value = line.partition(":")
        if not name:
            return  # a comment
        value = value.removeprefix(" ") if colon else ""
        if name == "event":
            self._type = value
        elif name == "data":
            self._data += value + "\n"
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry_ms = int(value)

    def _dispatch(self) -> Message | None:
        data, type_ = self._data, self._type
        self._data = self._type = ""
        return Message(self._id, type_ or "message", data.removesuffix("\n")) if data else None
