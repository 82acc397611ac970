"""What is a manual page made of, and how does it become roff or plain text? Pure.

Texts are plain, with two marks: `bold` for what is typed as it stands, and <name> for what is put in by the reader; flags are
bold by themselves. The roff uses man(7) with nothing but .TH .SH .SS .PP .TP .IP .RS .RE .EX .EE, which groff and mandoc both
know.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

WIDTH = 78  # of the plain text
INDENT = 7


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A term, and what it means."""

    term: str
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Code:
    """Lines that are shown as they are."""

    lines: str


@dataclass(frozen=True, slots=True)
class Heading:
    """Below a section's own."""

    text: str


Block = Text | Entry | Code | Heading


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Page:
    name: str  # modeld-switch
    number: int  # of the manual's section
    sections: tuple[Section, ...]  # NAME is the first, and a plain text

    @property
    def file_name(self) -> str:
        return f"{self.name}.{self.number}"


def spans(text: str) -> Iterator[tuple[str, str]]:
    """The text in pieces, each with its face: R as it is, B bold, I what the reader puts in."""
    for piece in re.split(r"(`[^`]+`|<[A-Za-z][A-Za-z0-9_|{},-]*>|(?<![\w-])--[a-z][a-z-]*)", text):
        if piece.startswith("`") and piece.endswith("`") and len(piece) > 2:
            yield "B", piece[1:-1]
        elif re.fullmatch("--[a-z][a-z-]*", piece):
            yield "B", piece
        elif piece.startswith("<") and piece.endswith(">"):
            yield "I", piece[1:-1]
        elif piece:
            yield "R", piece


# -- roff ---------------------------------------------------------------------------------------------------------------

SPECIAL = {
    "\\": "\\e",
    "-": "\\-",  # else it may become a hyphen, which cannot be pasted into a shell
    "'": "\\(aq",
    "`": "\\(ga",
    "^": "\\(ha",
    "~": "\\(ti",
    '"': "\\(dq",
}


def escaped(text: str) -> str:
    return "".join(
        SPECIAL.get(letter, letter) if " " <= letter <= "~" or letter == "\n" else f"\\[u{ord(letter):04X}]" for letter in text
    )


def roff_text(text: str) -> str:
    """In its faces, on one line."""
    return "".join(escaped(piece) if face == "R" else f"\\f{face}{escaped(piece)}\\fR" for face, piece in spans(_joined(text)))


def to_roff(page: Page, *, date: str, version: str, manual: str) -> str:
    """`date` is that of the version, never today's: equal inputs give equal bytes."""
    lines = [
        ".\\\" Made by `modeld manual`; what it says is changed in modeld's sources.",
        f'.TH {page.name.upper()} {page.number} {date} "{escaped(version)}" "{escaped(manual)}"',
        ".nh",  # names of flags and keys are not broken
        ".ad l",
    ]
    for section in page.sections:
        lines.append(f".SH {escaped(section.title)}")
        lines += _roff_blocks(section.blocks)
    return "\n".join(lines) + "\n"


def _roff_blocks(blocks: Iterable[Block]) -> Iterator[str]:
    is_first = True  # a paragraph is begun by its heading already
    for block in blocks:
        match block:
            case Heading(text):
                yield f".SS {escaped(text)}"
            case Text(text):
                if not is_first:
                    yield ".PP"
                yield from _roff_lines(text)
            case Entry(term, texts):
                yield ".TP"
                yield _guarded(roff_text(term))
                yield from _roff_lines(texts[0])
                for more in texts[1:]:
                    yield ".IP"
                    yield from _roff_lines(more)
            case Code(code):
                if not is_first:
                    yield ".PP"
                yield ".RS 4"
                yield ".EX"
                for line in code.splitlines():
                    yield _guarded(escaped(line))
                yield ".EE"
                yield ".RE"
        is_first = isinstance(block, Heading)


def _roff_lines(text: str) -> list[str]:
    return [_guarded(line) for line in textwrap.wrap(roff_text(text), WIDTH, break_on_hyphens=False, break_long_words=False)]


def _guarded(line: str) -> str:
    """A line that begins with a dot or a quote would be a request."""
    return f"\\&{line}" if line.startswith((".", "'")) else line


# -- plain text, where there is no man ------------------------------------------------------------------------------------


def to_text(page: Page, *, version: str, manual: str) -> str:
    title = f"{page.name.upper()}({page.number})"
    lines = [title + manual.center(WIDTH - 2 * len(title)) + title, ""]
    for section in page.sections:
        lines.append(section.title)
        for block in section.blocks:
            lines += _text_block(block)
            lines.append("")
    lines.append(version)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _text_block(block: Block) -> list[str]:
    match block:
        case Heading(text):
            return [" " * (INDENT // 2) + text]
        case Text(text):
            return _wrapped(text, INDENT)
        case Entry(term, texts):
            lines = [" " * INDENT + _plain(term)]
            for number, text in enumerate(texts):
                lines += [*([""] if number else []), *_wrapped(text, 2 * INDENT)]
            return lines
        case Code(code):
            return [" " * (INDENT + 4) + line for line in code.splitlines()]


def _plain(text: str) -> str:
    return "".join(piece for _, piece in spans(_joined(text)))


def _wrapped(text: str, indent: int) -> list[str]:
    space = " " * indent
    return textwrap.wrap(
        _plain(text), WIDTH, initial_indent=space, subsequent_indent=space, break_on_hyphens=False, break_long_words=False
    )


def _joined(text: str) -> str:
    return " ".join(text.split())
