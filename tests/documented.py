"""The code blocks of the pages, and what a comment before a block says about it.

<!-- run: TEXT -->        it is run as it stands; TEXT is in what it prints
<!-- not run: REASON -->  it is not
<!-- unit: NAME -->       a unit file of systemd
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted({ROOT / "README.md", *(ROOT / "docs").glob("*.md")})
PROGRAMS = ("sh", "python", "js", "ini")

_BLOCK = re.compile(r"(?:^<!-- ([a-z ]+): (.*?) -->\n)?^```([a-z]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    page: str
    line: int  # of the fence
    language: str
    code: str
    mark: str  # run, not run, unit; empty: none
    said: str  # behind the mark

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def script(self) -> str:
        """What is to be run: of a console the lines that are typed, with those that they go on in."""
        if self.language != "console":
            return self.code
        typed, goes_on = [], False
        for line in self.code.splitlines():
            if goes_on or line.startswith("$ "):
                typed.append(line if goes_on else line[2:])
                goes_on = line.endswith("\\")
        return "\n".join(typed) + "\n"


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 1 + (match[1] is not None)
        found.append(Block(page.name, line, match[3], match[4], match[1] or "", match[2] or ""))
    return found


def all_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks(page)]
