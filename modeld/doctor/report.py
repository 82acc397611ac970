"""What does a report say, and how is it written? Findings in sections; as text for people, as JSON for programs. Pure."""

from __future__ import annotations

import enum
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from modeld.printable import printable

FORMAT = 1  # of the JSON form; fields may be added without a new number
WIDTH = 110
MAX_CHARS = 600  # of one text: a report is read by people

Fact = str | int | float | bool | None | Sequence["Fact"] | Mapping[str, "Fact"]


class Level(enum.StrEnum):
    """Rising."""

    OK = "ok"
    NOTE = "note"  # worth knowing, nothing to do
    WARNING = "warning"  # works, but worse than it could, or only for now
    PROBLEM = "problem"  # does not work, or not as configured


@dataclass(frozen=True, slots=True)
class Finding:
    """`found`: what, with numbers; `advice`: what to do about it; `about`: which model, address or file; `facts`: the numbers."""

    code: str
    level: Level
    found: str
    advice: str = ""
    about: str = ""
    facts: Mapping[str, Fact] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Section:
    name: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Report:
    version: str
    at: str  # when, ISO 8601
    sections: tuple[Section, ...]

    @property
    def level(self) -> Level:
        """The worst one."""
        levels = list(Level)
        return max((one.level for one in self.findings), key=levels.index, default=Level.OK)

    @property
    def findings(self) -> list[Finding]:
        return [finding for section in self.sections for finding in section.findings]


# -- one call a finding; the codes are documented in docs/doctor.md, which a test compares with these calls


_NO_FACTS: Mapping[str, Fact] = {}


def ok(code: str, found: str, /, *, about: str = "", more: Mapping[str, Fact] = _NO_FACTS, **facts: Fact) -> Finding:
    return Finding(code, Level.OK, found, "", about, {**more, **facts})


def note(
    code: str, found: str, advice: str = "", /, *, about: str = "", more: Mapping[str, Fact] = _NO_FACTS, **facts: Fact
) -> Finding:
    return Finding(code, Level.NOTE, found, advice, about, {**more, **facts})


def warning(
    code: str, found: str, advice: str, /, *, about: str = "", more: Mapping[str, Fact] = _NO_FACTS, **facts: Fact
) -> Finding:
    return Finding(code, Level.WARNING, found, advice, about, {**more, **facts})


def problem(
    code: str, found: str, advice: str, /, *, about: str = "", more: Mapping[str, Fact] = _NO_FACTS, **facts: Fact
) -> Finding:
    return Finding(code, Level.PROBLEM, found, advice, about, {**more, **facts})


# -- rendering


def to_json(report: Report) -> dict[str, Fact]:
    """As docs/doctor.md describes it."""
    n = Counter(finding.level for finding in report.findings)
    return {
        "format": FORMAT,
        "version": report.version,
        "at": report.at,
        "level": report.level.value,
        "counts": {level.value: n[level] for level in Level},
        "sections": [
            {"name": section.name, "findings": [_finding_json(finding) for finding in section.findings]}
            for section in report.sections
        ],
    }


def _finding_json(finding: Finding) -> dict[str, Fact]:
    return {
        "code": finding.code,
        "level": finding.level.value,
        "about": _shown(finding.about),
        "found": _shown(finding.found),
        "advice": _shown(finding.advice),
        "facts": {name: _fact(value) for name, value in finding.facts.items()},
    }


def _fact(value: Fact) -> Fact:
    if isinstance(value, str):
        return _shown(value)
    if isinstance(value, Mapping):
        return {_shown(name): _fact(each) for name, each in value.items()}
    if isinstance(value, Sequence):
        return [_fact(each) for each in value]
    return value


def to_text(report: Report) -> str:
    """Ends with a line end. What is worse than a note is named once more at the end."""
    lines = [f"modeld doctor, modeld {report.version}, {report.at}"]
    for section in report.sections:
        lines += ["", section.name]
        for finding in section.findings:
            lines += _finding_lines(finding)
    lines += ["", result(report)]
    for level in (Level.PROBLEM, Level.WARNING):
        codes = Counter(finding.code for finding in report.findings if finding.level is level)
        if codes:
            shown = (code if times == 1 else f"{code} ({times} times)" for code, times in codes.items())
            lines += _wrapped(f"  {level.value + ':':9}", ", ".join(shown))
    return "\n".join(lines) + "\n"


def result(report: Report) -> str:
    """How many there are of each level, the worst first."""
    n = Counter(finding.level for finding in report.findings)
    return ", ".join(_counted(n[level], level) for level in reversed(Level))


def _finding_lines(finding: Finding) -> list[str]:
    about = f"{_shown(finding.about)}: " if finding.about else ""
    lines = _wrapped(f"  {finding.level.value:8} ", f"{about}{_shown(finding.found)} [{finding.code}]")
    if finding.advice:
        lines += _wrapped(f"  {'':8} -> ", _shown(finding.advice))
    return lines


def _counted(n: int, level: Level) -> str:
    return f"{n} {level.value}{'' if n == 1 or level is Level.OK else 's'}"


def _wrapped(first: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=" " * len(first), break_long_words=False, break_on_hyphens=False
    )


def _shown(text: str) -> str:
    """One printable line of bounded length."""
    text = printable(text)
    return text if len(text) <= MAX_CHARS else f"{text[: MAX_CHARS - 3]}..."


def size(n_bytes: float) -> str:
    """Bytes for people: `1.50 GiB`, `12 MiB`, `64 KiB`."""
    for unit, name, digits in ((1 << 40, "TiB", 2), (1 << 30, "GiB", 2), (1 << 20, "MiB", 0), (1 << 10, "KiB", 0)):
        if n_bytes >= unit:
            return f"{n_bytes / unit:.{digits}f} {name}"
    return f"{n_bytes:.0f} bytes"
