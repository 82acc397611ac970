"""What does a person see? Screen: standard output and standard error, what a terminal can show, and what it must not be sent.

Names and messages are made printable wherever they go (record.py): a line of a table is one line. Generated text keeps what it
is in a pipe or a file; on a terminal, control characters other than line feed and tab are shown as escapes, since they could move
the cursor, change the title, or write an answer into the shell's input.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

from modeld import exits, outputs
from modeld.cli.record import one_line

MIN_WIDTH = 20
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)  # with what turns a line's direction
_STYLES = {"good": "32", "bad": "31", "faint": "2", "bold": "1"}


class Screen:
    """Main thread only."""

    def __init__(
        self, out: TextIO, err: TextIO, environ: Mapping[str, str], *, as_json: bool = False, quiet: bool = False
    ) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.out, self.err = out, err
        self.lost = False  # standard output takes no more: its reader has gone, or it cannot be written
        self.lost_status = exits.OK  # what that alone comes to
        for stream in (out, err):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")  # what a locale cannot show is no reason to fail
        self.on_terminal = out.isatty()
        dumb = environ.get("TERM", "") in ("dumb", "")
        self.can_redraw = self.on_terminal and not dumb
        self._styled = self.can_redraw and not environ.get("NO_COLOR")
        self._columns = environ.get("COLUMNS", "")
        self._plain_ascii = not _encodes(out, "█░·")

    @property
    def width(self) -> int:
        """Columns of the terminal now; it may be resized at any time."""
        try:
            columns = os.get_terminal_size(self.out.fileno()).columns
        except (OSError, ValueError):
            columns = (
                int(self._columns) if self._columns.isascii() and self._columns.isdecimal() and len(self._columns) < 5 else 0
            )
        return max(MIN_WIDTH, columns) if columns else 80

    @property
    def blocks(self) -> tuple[str, str]:
        """What a bar is drawn with: its full and its empty part."""
        return ("#", "-") if self._plain_ascii else ("█", "░")

    def style(self, text: str, name: str) -> str:
        return f"\x1b[{_STYLES[name]}m{text}\x1b[0m" if self._styled else text

    def line(self, text: str = "") -> None:
        """To standard output at once: a reader at the other end of a pipe waits for it."""
        if not self.quiet:
            self._put(text + "\n")

    def json(self, value: object) -> None:
        self._put(one_line(value) + "\n")

    def generated(self, text: str) -> None:
        self._put(safe(text) if self.on_terminal else text)

    def say(self, text: str) -> None:
        """To standard error, as the program's own word."""
        outputs.tell(self.err, text)

    def _put(self, text: str) -> None:
        """Raises nothing where nobody takes it: a command that has an outcome goes on to it. What never ends looks at `lost`."""
        if not self.lost and (status := outputs.write(self.out, text)) is not None:
            self.lost, self.lost_status = True, status

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """The first row is the head. Where a terminal is too narrow, lines are cut at its edge, and say so with an ellipsis."""
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        for number, row in enumerate(rows):
            text = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            if self.on_terminal:
                text = cut(text, self.width, "..." if self._plain_ascii else "…")
            self.line(self.style(text, "faint") if number == 0 else text)


def safe(text: str) -> str:
    """Generated text for a terminal."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), text)


def cut(text: str, width: int, ellipsis: str = "...") -> str:
    if len(text) <= width:
        return text
    return text[: width - len(ellipsis)] + ellipsis if width > len(ellipsis) else text[: max(0, width)]


def screen_of(environ: Mapping[str, str], *, as_json: bool, quiet: bool) -> Screen:
    return Screen(sys.stdout, sys.stderr, environ, as_json=as_json, quiet=quiet)


# -- figures


def seconds(value: float | None) -> str:
    """0.84 s, 12.3 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if value is None:
        return "?"
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    whole = int(value)
    for size, name, next_size, next_name in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // next_size} {next_name}"
    raise AssertionError


def size_of(n_bytes: float | None) -> str:
    if n_bytes is None:
        return "?"
    if n_bytes < 1024:
        return f"{n_bytes:.0f} B"
    for size, unit in ((1 << 30, "GiB"), (1 << 20, "MiB")):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes / 1024:.1f} KiB"


def count_of(n: float | None) -> str:
    """1.97 M, 7.62 B (thousand millions), as models are called."""
    if n is None:
        return "?"
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:.0f}"


def _encodes(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "ascii")
    except (UnicodeError, LookupError):
        return False
    return True
