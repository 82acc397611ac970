"""What does this GBNF say? parse_gbnf(): the syntax of llama-grammar.cpp -> rules, checked and bounded. Pure.

The text is a client's. Bounded are its bytes, how deep it nests and what its repetitions come to; refused is what no machine
could follow: rules that are missing, and rules that begin with themselves. How many readings a text may have at once is the
machine's to bound (gbnf_machine.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

from modeld.errors import InvalidRequest

MAX_BYTES = 64 * 1024
MAX_NESTING = 100  # of parentheses
MAX_MARKS = 2  # as in [a]+?
MAX_ALTERNATES = 2000  # in all
MAX_REPETITION = 2000  # MAX_REPETITION_THRESHOLD in llama-grammar.cpp, which drops a larger maximum in silence
MAX_ELEMENTS = 100_000  # characters and rules, once the repetitions are written out

_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*+)*+")
_SPACE_OR_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*+)*+")
_NAME = re.compile(r"[a-zA-Z0-9-]+")
_DEFINES = re.compile("::=")
_CLOSING = re.compile(r"\)")
_ESCAPE = r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[trn\\\"\[\]-])"
_LITERAL = re.compile(rf'"((?:{_ESCAPE}|[^"\\\0])*+)"')
_CLASS = re.compile(rf"\[(\^?)((?:{_ESCAPE}|[^\]\\\0])*+)\]")
_CHARACTER = re.compile(rf"{_ESCAPE}|.", re.DOTALL)
_COUNTS = re.compile(r"\{[ \t]*([0-9]{1,5})[ \t]*(?:(,)[ \t]*([0-9]{1,5})?[ \t]*)?\}")
_END_OF_LINE = re.compile(r"\r\n?|\n|\Z")
_CONTROLS = {"t": "\t", "r": "\r", "n": "\n"}

LAST_CHARACTER = 0x10FFFF
Ranges = tuple[tuple[int, int], ...]  # code points, both ends included; sorted, apart from each other


@dataclass(frozen=True, slots=True)
class Text:
    """A literal: its characters, one after the other."""

    characters: str


@dataclass(frozen=True, slots=True)
class Class:
    """One character of these."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Ref:
    """A rule, by its name."""

    name: str


@dataclass(frozen=True, slots=True)
class Group:
    alternates: tuple[tuple[Item, ...], ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    item: Item
    low: int
    high: int | None  # None: without end


Item = Text | Class | Ref | Group | Repeat
Alternates = tuple[tuple[Item, ...], ...]


@dataclass(frozen=True, slots=True)
class Grammar:
    """The rules by name, each after all that may begin with it; `root` is the one an answer follows."""

    rules: Mapping[str, Alternates]
    nullable: frozenset[str]  # those that may be empty


def parse_gbnf(text: str, *, max_bytes: int = MAX_BYTES, param: str = "grammar") -> Grammar:
    """Raises InvalidRequest on `param`, saying where and what."""
    n_bytes = len(text.encode("utf-8", "replace"))
    try:
        if n_bytes > max_bytes:
            raise _Unusable(f"it has {n_bytes} bytes; at most {max_bytes} are allowed")
        rules = _Parser(text).rules()
        if "root" not in rules:
            raise _Unusable("it has no rule named root")
        for name, alternates in rules.items():
            for missing in sorted({used for items in alternates for used in _names(items)} - rules.keys()):
                raise _Unusable(f"rule {name[:40]!r} names {missing[:40]!r}, which is not defined")
        nullable = _nullable(rules)
        return Grammar({name: rules[name] for name in _outer_first(rules, nullable)}, nullable)
    except _Unusable as error:
        raise InvalidRequest(f"the grammar cannot be used: {error}", param=param) from None


class _Unusable(Exception):
    """Why, in words."""


class _Parser:
    """Reads the rules of one grammar and counts what they come to."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self._n_alternates = 0
        self._n_elements = 0

    def rules(self) -> dict[str, Alternates]:
        found: dict[str, Alternates] = {}
        self._skip(_SPACE_OR_LINES)
        while self._at < len(self._text):
            name = self._need(_NAME, "the name of a rule")[0]
            self._skip(_SPACE)
            self._need(_DEFINES, "::=")
            self._skip(_SPACE_OR_LINES)
            if name in found:
                self._fail(f"rule {name[:40]!r} is defined twice")
            found[name], n = self._alternates(nested=False)
            self._n_elements += n
            self._bound(self._n_elements)
            self._need(_END_OF_LINE, "the end of the line")
            self._skip(_SPACE_OR_LINES)
        return found

    def _alternates(self, *, nested: bool) -> tuple[Alternates, int]:
        """The alternates, and how many elements they come to."""
        found: list[tuple[Item, ...]] = []
        n = 0
        while True:
            items, n_items = self._sequence(nested=nested)
            found.append(items)
            n += n_items + 1
            self._n_alternates += 1
            if self._n_alternates > MAX_ALTERNATES:
                self._fail(f"it has more than {MAX_ALTERNATES} alternates")
            if not self._text.startswith("|", self._at):
                return tuple(found), n
            self._at += 1
            self._skip(_SPACE_OR_LINES)

    def _sequence(self, *, nested: bool) -> tuple[tuple[Item, ...], int]:
        space = _SPACE_OR_LINES if nested else _SPACE
        items: list[Item] = []
        n = n_last = n_marks = 0
        while self._at < len(self._text):
            char = self._text[self._at]
            if char in "*+?{":
                if not items or items[-1] == Text(""):
                    self._fail("a repetition follows nothing that it could repeat")
                n_marks += 1
                if n_marks > MAX_MARKS:
                    self._fail(f"more than {MAX_MARKS} repetitions follow each other")
                n -= n_last
                items[-1], n_last = self._repeated(items[-1], n_last)
            else:
                item, n_last = self._item(char)
                if item is None:
                    break
                items.append(item)
                n_marks = 0
            n += n_last
            self._bound(n)
            self._skip(space)
        return tuple(items), n

    def _item(self, char: str) -> tuple[Item | None, int]:
        """What stands here, if an item does, and how many elements it comes to."""
        if char == '"':
            literal = self._need(_LITERAL, "a literal, ended by a quote and with escapes that GBNF knows,")
            characters = "".join(_character(part) for part in _CHARACTER.findall(literal[1]))
            return Text(characters), len(characters)
        if char == "[":
            found = self._need(_CLASS, "a character class, ended by a bracket and with escapes that GBNF knows,")
            return (_class(found[2], negated=bool(found[1])), 1) if found[2] else (Text(""), 0)  # `[]` as in llama.cpp
        if char == ".":
            self._at += 1
            return Class(((0, LAST_CHARACTER),)), 1
        if char == "(":
            return self._group()
        if char in "<!":
            self._fail("tokens (<[id]>, <text>, !<...>) are not supported; write the characters")
        if match := _NAME.match(self._text, self._at):
            self._at = match.end()
            return Ref(match[0]), 1
        return None, 0

    def _group(self) -> tuple[Item, int]:
        self._depth += 1
        if self._depth > MAX_NESTING:
            self._fail(f"its parentheses nest deeper than {MAX_NESTING}")
        self._at += 1
        self._skip(_SPACE_OR_LINES)
        alternates, n = self._alternates(nested=True)
        self._need(_CLOSING, "a closing parenthesis")
        self._depth -= 1
        return Group(alternates), n

    def _repeated(self, item: Item, n: int) -> tuple[Item, int]:
        """`*`, `+`, `?`, `{m}`, `{m,}` or `{m,n}` behind an item of n elements."""
        low, high = self._counts()
        most = max(low, high or 0)
        if most > MAX_REPETITION:
            self._fail(f"a repetition asks for {most} times; at most {MAX_REPETITION} are allowed")
        if high is not None and high < low:
            self._fail(f"a repetition asks for {low} to {high} times")
        return Repeat(item, low, high), n * max(most, 1) + 1

    def _counts(self) -> tuple[int, int | None]:
        char = self._text[self._at]
        if char != "{":
            self._at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        match = self._need(_COUNTS, "{m}, {m,} or {m,n}")
        low = int(match[1])
        return low, int(match[3]) if match[3] else None if match[2] else low

    def _skip(self, space: re.Pattern[str]) -> None:
        match = space.match(self._text, self._at)
        assert match is not None  # it matches nothing, too
        self._at = match.end()

    def _need(self, pattern: re.Pattern[str], what: str) -> re.Match[str]:
        match = pattern.match(self._text, self._at)
        if match is None:
            self._fail(f"{what} is expected")
        self._at = match.end()
        return match

    def _bound(self, n_elements: int) -> None:
        if n_elements > MAX_ELEMENTS:
            self._fail(f"its repetitions come to more than {MAX_ELEMENTS} elements")

    def _fail(self, why: str) -> NoReturn:
        line = self._text.count("\n", 0, self._at) + 1
        column = self._at - (self._text.rfind("\n", 0, self._at) + 1) + 1
        raise _Unusable(f"{why} (line {line}, column {column})")


def _code(part: str) -> int:
    """The code point of one character as GBNF writes it; one that no text has (above U+10FFFF) is -1."""
    if len(part) == 1:
        return ord(part)
    if len(part) == 2:
        return ord(_CONTROLS.get(part[1], part[1]))
    code = int(part.lstrip("\\xuU"), 16)
    return code if code <= LAST_CHARACTER else -1


def _character(part: str) -> str:
    code = _code(part)
    return "\udc00" if code < 0 else chr(code)  # a surrogate: no text has it, either


def _class(body: str, *, negated: bool) -> Class:
    parts = _CHARACTER.findall(body)
    found: list[tuple[int, int]] = []
    i = 0
    while i < len(parts):
        if i + 2 < len(parts) and parts[i + 1] == "-":
            found.append((_code(parts[i]), _code(parts[i + 2])))
            i += 3
        else:
            found.append((_code(parts[i]), _code(parts[i])))
            i += 1
    ranges: list[tuple[int, int]] = []
    for low, high in sorted(pair for pair in found if 0 <= pair[0] <= pair[1]):
        if ranges and low <= ranges[-1][1] + 1:
            ranges[-1] = ranges[-1][0], max(high, ranges[-1][1])
        else:
            ranges.append((low, high))
    if negated:
        edges = [-1, *(edge for low, high in ranges for edge in (low, high)), LAST_CHARACTER + 1]
        gaps = zip(edges[::2], edges[1::2], strict=True)
        ranges = [(before + 1, behind - 1) for before, behind in gaps if behind - before > 1]
    return Class(tuple(ranges))


# -- what may come first ------------------------------------------------------------------------------------------------


def _names(items: tuple[Item, ...]) -> Iterator[str]:
    """Every rule that is named in there."""
    for item in items:
        if isinstance(item, Ref):
            yield item.name
        elif isinstance(item, Group):
            for inner in item.alternates:
                yield from _names(inner)
        elif isinstance(item, Repeat):
            yield from _names((item.item,))


def _nullable(rules: Mapping[str, Alternates]) -> frozenset[str]:
    """The rules that may be empty, also by way of others."""
    users: dict[str, set[str]] = {name: set() for name in rules}
    for name, alternates in rules.items():
        for items in alternates:
            for used in _names(items):
                users[used].add(name)
    nullable: set[str] = set()
    waiting = list(rules)
    while waiting:
        name = waiting.pop()
        if name not in nullable and may_be_empty(Group(rules[name]), nullable):
            nullable.add(name)
            waiting += users[name]
    return frozenset(nullable)


def may_be_empty(item: Item, nullable: frozenset[str] | set[str]) -> bool:
    if isinstance(item, Group):
        return any(all(may_be_empty(inner, nullable) for inner in items) for items in item.alternates)
    if isinstance(item, Repeat):
        return item.low == 0 or may_be_empty(item.item, nullable)
    return item.name in nullable if isinstance(item, Ref) else item == Text("")


def _starts(alternates: Alternates, nullable: frozenset[str]) -> Iterator[str]:
    """The rules that one of the alternates may begin with."""
    for items in alternates:
        for item in items:
            inner = item
            while isinstance(inner, Repeat):
                inner = inner.item
            if isinstance(inner, Ref):
                yield inner.name
            elif isinstance(inner, Group):
                yield from _starts(inner.alternates, nullable)
            if not may_be_empty(item, nullable):
                break


def _outer_first(rules: Mapping[str, Alternates], nullable: frozenset[str]) -> list[str]:
    """The rules, each behind all that may begin with it. Refuses those that may begin with themselves."""
    starts = {name: set(_starts(alternates, nullable)) for name, alternates in rules.items()}
    n_waiting = {name: len(found) for name, found in starts.items()}
    users: dict[str, list[str]] = {name: [] for name in rules}
    for name, found in starts.items():
        for used in found:
            users[used].append(name)
    ready = [name for name, n in n_waiting.items() if not n]
    inner_first: list[str] = []
    while ready:
        name = ready.pop()
        inner_first.append(name)
        for user in users[name]:
            n_waiting[user] -= 1
            if not n_waiting[user]:
                ready.append(user)
    done = set(inner_first)
    for name in rules:
        if name not in done:
            raise _Unusable(f"rule {_in_cycle(name, starts, done)[:40]!r} can begin with itself (left recursion)")
    return inner_first[::-1]


def _in_cycle(name: str, starts: Mapping[str, set[str]], done: set[str]) -> str:
    """A rule on the cycle that `name` leads to."""
    seen: set[str] = set()
    while name not in seen:
        seen.add(name)
        name = min(used for used in starts[name] if used not in done)
    return name
