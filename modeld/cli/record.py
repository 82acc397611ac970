"""What does JSON from outside say? Record: members by name and kind, with a default for whatever is not there or of another kind.

A client must not fail on a member that a newer daemon leaves out, nor on what something else than modeld answers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from modeld.printable import printable

_MAX_SHOWN = 1000
_MAX_MESSAGE = 16_000
_MAX_NUMBER = 1e15  # beyond it nothing that a daemon tells is a number to be shown


class Record:
    """`raw` is the mapping as it came. Texts come out printable and bounded, so that each fits into a line."""

    def __init__(self, raw: object) -> None:
        self.raw: Mapping[str, object] = raw if isinstance(raw, dict) else {}

    def __bool__(self) -> bool:
        return bool(self.raw)

    def text(self, name: str, default: str = "") -> str:
        value = self.raw.get(name)
        return shown(value) if isinstance(value, str) else default

    def message(self, name: str = "message") -> str:
        """A text of several lines, each of them printable."""
        return "\n".join(shown(line) for line in self.exact(name)[:_MAX_MESSAGE].split("\n"))

    def exact(self, name: str) -> str:
        """As it came: generated text, and ids that are sent back."""
        value = self.raw.get(name)
        return value if isinstance(value, str) else ""

    def number(self, name: str) -> float | None:
        value = self.raw.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(value) if abs(value) < _MAX_NUMBER and math.isfinite(value) else None

    def integer(self, name: str) -> int | None:
        value = self.number(name)
        return None if value is None else int(value)

    def flag(self, name: str) -> bool:
        return self.raw.get(name) is True

    def record(self, name: str) -> Record:
        return Record(self.raw.get(name))

    def records(self, name: str) -> list[Record]:
        value = self.raw.get(name)
        return [Record(item) for item in value] if isinstance(value, list) else []

    def texts(self, name: str) -> list[str]:
        value = self.raw.get(name)
        return [shown(item) for item in value if isinstance(item, str)] if isinstance(value, list) else []


def shown(text: str, limit: int = _MAX_SHOWN) -> str:
    return printable(text if len(text) <= limit else text[: limit - 3] + "...")


def one_line(value: object) -> str:
    """As JSON that any terminal takes: ASCII, one line."""
    return json.dumps(value).replace("\x7f", "\\u007f")  # the one control character that json leaves as it is
