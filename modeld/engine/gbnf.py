"""May this GBNF go to libllama? check_gbnf(): the syntax of llama-grammar.cpp, and bounds on what it costs there. Pure.

libllama parses grammars by recursion, prints one that it cannot read to stderr, misses left recursion behind rules that
are empty indirectly (it then takes all memory), and visits each way to a rule's first character, of which a few lines can
make 2**40. So a grammar is read here first; what passes is small in each of these measures.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from modeld.errors import InvalidRequest

MAX_BYTES = 64 * 1024
MAX_NESTING = 100  # of parentheses
MAX_ALTERNATES = 2000  # in all
MAX_REPETITION = 2000  # MAX_REPETITION_THRESHOLD in llama-grammar.cpp, which drops a larger maximum in silence
MAX_ELEMENTS = 100_000  # of the rules once libllama has written out the repetitions
MAX_STARTS = 4000  # ways to the first character of a rule

_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*+)*+")
_SPACE_OR_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*+)*+")
_NAME = re.compile(r"[a-zA-Z0-9-]+")
_ESCAPE = r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[trn\\\"\[\]-])"
_LITERAL = re.compile(rf'"((?:{_ESCAPE}|[^"\\\0])*+)"')
_CLASS = re.compile(rf"\[\^?((?:{_ESCAPE}|[^\]\\\0])*+)\]")
_CHARACTER = re.compile(rf"{_ESCAPE}|.", re.DOTALL)
_TOKEN = re.compile(r"!?<(?:\[[0-9]{1,10}\]|[^\[>\0][^>\0]*)>")
_COUNTS = re.compile(r"\{[ \t]*([0-9]{1,5})[ \t]*(?:(,)[ \t]*([0-9]{1,5})?[ \t]*)?\}")
_END_OF_LINE = re.compile(r"\r\n?|\n|\Z")


@dataclass(slots=True)
class _Item:
    """One thing of a sequence: characters or a token (neither of the two), a rule, or a group. As it is in place:

    `n` elements, and `n_rules` rules that libllama makes for it.
    """

    n: int
    n_rules: int = 1
    name: str | None = None
    group: list[list[_Item]] | None = None
    optional: bool = False  # repeated, from 0 times on
    times: int = 1


@dataclass(slots=True)
class _Rule:
    alternates: list[list[_Item]]
    refers: set[str] = field(default_factory=set)


def check_gbnf(text: str, *, max_bytes: int = MAX_BYTES) -> None:
    """Raises InvalidRequest, saying where and what, for a grammar that libllama could not read or should not be given."""
    n_bytes = len(text.encode("utf-8", "replace"))
    if n_bytes > max_bytes:
        _refuse(f"it has {n_bytes} bytes; at most {max_bytes} are allowed")
    rules = _Parser(text).rules()
    if "root" not in rules:
        _refuse("it has no rule named root")
    for name, rule in rules.items():
        for missing in sorted(rule.refers - rules.keys()):
            _refuse(f"rule {name[:40]!r} names {missing[:40]!r}, which is not defined")
    _check_starts(rules)


def _refuse(why: str) -> NoReturn:
    raise InvalidRequest(f"the grammar cannot be used: {why}", param="grammar")


class _Parser:
    """Reads the rules of one grammar and counts what they come to."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self._n_alternates = 0
        self._n_elements = 0
        self._n_generated = 0
        self._names: set[str] = set()
        self._refers: set[str] = set()

    def rules(self) -> dict[str, _Rule]:
        found: dict[str, _Rule] = {}
        self._skip(_SPACE_OR_LINES)
        while self._at < len(self._text):
            name = self._need(_NAME, "the name of a rule")[0]
            self._skip(_SPACE)
            self._need(re.compile("::="), "::=")
            self._skip(_SPACE_OR_LINES)
            if name in found:
                self._fail(f"rule {name[:40]!r} is defined twice")
            self._names.add(name)
            self._refers = set()
            alternates = self._alternates(nested=False)
            found[name] = _Rule(alternates, self._refers)
            self._need(_END_OF_LINE, "the end of the line")
            self._skip(_SPACE_OR_LINES)
        return found

    def _alternates(self, *, nested: bool) -> list[list[_Item]]:
        found = [self._sequence(nested=nested)]
        while self._text.startswith("|", self._at):
            self._at += 1
            self._skip(_SPACE_OR_LINES)
            found.append(self._sequence(nested=nested))
        self._n_alternates += len(found)
        if self._n_alternates > MAX_ALTERNATES:
            self._fail(f"it has more than {MAX_ALTERNATES} alternates")
        self._n_elements += sum(item.n for items in found for item in items) + len(found)
        if self._n_elements > MAX_ELEMENTS:
            self._fail(f"its repetitions come to more than {MAX_ELEMENTS} elements")
        return found

    def _sequence(self, *, nested: bool) -> list[_Item]:
        space = _SPACE_OR_LINES if nested else _SPACE
        items: list[_Item] = []
        while self._at < len(self._text):
            char = self._text[self._at]
            if char == '"':
                literal = self._need(_LITERAL, "a literal, ended by a quote and with escapes that GBNF knows,")
                items.append(_Item(len(_CHARACTER.findall(literal[1]))))
            elif char == "[":
                body = self._need(_CLASS, "a character class, ended by a bracket and with escapes that GBNF knows,")
                items.append(_Item(len(_CHARACTER.findall(body[1]))))
            elif char in "<!":
                self._need(_TOKEN, "a token <[id]> or <text>")
                items.append(_Item(1))
            elif char == ".":
                self._at += 1
                items.append(_Item(1))
            elif char == "(":
                items.append(self._group())
            elif char in "*+?{":
                self._repeat(items)
            elif match := _NAME.match(self._text, self._at):
                self._at = match.end()
                self._names.add(match[0])
                self._refers.add(match[0])
                items.append(_Item(1, name=match[0]))
            else:
                break
            self._skip(space)
        return items

    def _group(self) -> _Item:
        n_before = len(self._names) + self._n_generated
        self._n_generated += 1
        self._depth += 1
        if self._depth > MAX_NESTING:
            self._fail(f"its parentheses nest deeper than {MAX_NESTING}")
        self._at += 1
        self._skip(_SPACE_OR_LINES)
        alternates = self._alternates(nested=True)
        self._need(re.compile(r"\)"), "a closing parenthesis")
        self._depth -= 1
        return _Item(1, n_rules=len(self._names) + self._n_generated - n_before, group=alternates)

    def _repeat(self, items: list[_Item]) -> None:
        """`*`, `+`, `?`, `{m}`, `{m,}` or `{m,n}` behind the last item, by handle_repetitions' rules."""
        if not items or not items[-1].n:
            self._fail("a repetition follows nothing that it could repeat")
        low, high = self._counts()
        if max(low, high or 0) > MAX_REPETITION:
            self._fail(f"a repetition asks for {max(low, high or 0)} times; at most {MAX_REPETITION} are allowed")
        if high is not None and high < low:
            self._fail(f"a repetition asks for {low} to {high} times")
        item = items[-1]
        item.n_rules *= max(1, low if high is None else high)
        if item.n_rules > MAX_REPETITION:
            self._fail(f"nested repetitions come to more than {MAX_REPETITION} rules")
        n_optional = 1 if high is None else high - low
        self._n_generated += n_optional
        self._n_elements += n_optional * (item.n + 3)
        # A repetition is part of the item from here on; {0} leaves nothing of it.
        item.n = item.n * low + (n_optional > 0)
        item.times *= max(1, low if high is None else high)
        item.optional = item.optional or low == 0

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

    def _fail(self, why: str) -> NoReturn:
        line = self._text.count("\n", 0, self._at) + 1
        column = self._at - (self._text.rfind("\n", 0, self._at) + 1) + 1
        _refuse(f"{why} (line {line}, column {column})")


# -- what may come first ------------------------------------------------------------------------------------------------


def _check_starts(rules: dict[str, _Rule]) -> None:
    """Refuse left recursion, and too many ways to a first character."""
    nullable = _nullable(rules)
    own: dict[str, int] = {}
    starts: dict[str, Counter[str]] = {}
    for name, rule in rules.items():
        own[name], starts[name] = _starts(rule.alternates, nullable)
    n_waiting = {name: len(found) for name, found in starts.items()}  # rules that may come first and are not counted yet
    users: dict[str, list[str]] = {name: [] for name in rules}
    for name, found in starts.items():
        for used in found:
            users[used].append(name)
    ready = [name for name, n in n_waiting.items() if not n]
    ways: dict[str, int] = {}
    while ready:
        name = ready.pop()
        ways[name] = own[name] + sum(ways[used] * times for used, times in starts[name].items())
        if ways[name] > MAX_STARTS:
            _refuse(f"rule {name[:40]!r} can begin in more than {MAX_STARTS} ways")
        for user in users[name]:
            n_waiting[user] -= 1
            if not n_waiting[user]:
                ready.append(user)
    for name in rules:
        if name not in ways:
            _refuse(f"rule {_in_cycle(name, starts, ways)[:40]!r} can begin with itself (left recursion)")


def _in_cycle(name: str, starts: dict[str, Counter[str]], ways: dict[str, int]) -> str:
    """A rule on the cycle that `name` leads to."""
    seen: set[str] = set()
    while name not in seen:
        seen.add(name)
        name = next(used for used in starts[name] if used not in ways)
    return name


def _nullable(rules: dict[str, _Rule]) -> set[str]:
    """The rules that may be empty, also by way of others."""
    users: dict[str, list[str]] = {name: [] for name in rules}
    for name, rule in rules.items():
        for used in rule.refers:
            users[used].append(name)
    nullable: set[str] = set()
    waiting = list(rules)
    while waiting:
        name = waiting.pop()
        if name not in nullable and any(_may_be_empty(items, nullable) for items in rules[name].alternates):
            nullable.add(name)
            waiting += users[name]
    return nullable


def _may_be_empty(items: Sequence[_Item], nullable: set[str]) -> bool:
    return all(item.optional or _once_may_be_empty(item, nullable) for item in items)


def _once_may_be_empty(item: _Item, nullable: set[str]) -> bool:
    """Whether what is repeated, if it is, may be empty itself."""
    if item.group is not None:
        return any(_may_be_empty(inner, nullable) for inner in item.group)
    return not item.n or item.name in nullable


def _starts(alternates: list[list[_Item]], nullable: set[str]) -> tuple[int, Counter[str]]:
    """Ways to begin with one of the alternates: those within it, and those that lead into a rule, by its name."""
    n_own, into = len(alternates), Counter[str]()
    for items in alternates:
        for item in items:
            once_empty = _once_may_be_empty(item, nullable)
            times = item.times if once_empty else 1
            if item.name is not None:
                into[item.name] += times
            elif item.group is not None:
                inner_own, inner_into = _starts(item.group, nullable)
                n_own += times * inner_own
                for name, n in inner_into.items():
                    into[name] += times * n
            if not (once_empty or item.optional):
                break
    return n_own, into
