"""How is text from outside shown in one line of a message? What is not printable is written as an escape."""

from __future__ import annotations


def printable(text: str) -> str:
    """A key may hold line ends, and what clears a terminal or turns a line's direction, too."""
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
