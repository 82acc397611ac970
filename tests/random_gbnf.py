"""Random documents of a grammar, for tests: a reader of GBNF of its own, and a walk that comes to an end."""

from __future__ import annotations

import random
import re
from typing import Any

_TOKENS = re.compile(r'\s*(?:("(?:\\.|[^"\\])*")|(\[(?:\\.|[^\]\\])*\])|([\w-]+)|(\{\d+(?:,\d*)?\}|[*+?])|([()|]))')
_CHARACTER = re.compile(r"\\x(..)|\\u(....)|\\U(.{8})|\\(.)|(.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}
MANY = 4  # what an unbounded repetition comes to, at most
DEEP = 40


def walk(grammar: str, chance: random.Random, *, deep: int = DEEP) -> str:
    """One document of `grammar`, as the converter writes it: a rule a line. From `deep` on the shortest way is taken."""
    rules = {}
    for line in grammar.splitlines():
        name, _, body = line.partition(" ::= ")
        items = [match.groups() for match in _TOKENS.finditer(body)]
        rules[name], rest = _alternates(items)
        assert not rest, line
    return "".join(_Walk(rules, chance, deep).rule("root", 0))


def random_grammar(chance: random.Random) -> str:
    """A grammar of a few rules over a small alphabet, which a text can come to the end of; a rule a line.

    No rule begins with itself: each alternate begins with a character, or with a rule further down.
    """
    n = chance.randint(1, 5)
    lines = []
    for i in range(n):
        name = "root" if i == 0 else f"r{i}"
        alternates = [_random_sequence(chance, i, n, 2) for _ in range(chance.randint(1, 3))]
        if chance.random() < 0.2:
            alternates.append('""')
        lines.append(f"{name} ::= {' | '.join([_random_text(chance), *alternates])}")
    return "\n".join(lines) + "\n"


def _random_sequence(chance: random.Random, i: int, n: int, depth: int) -> str:
    first = f"r{chance.randint(i + 1, n - 1)}" if i + 1 < n and chance.random() < 0.4 else _random_text(chance)
    items = [first] if chance.random() < 0.8 or not first.startswith("r") else [first, _random_text(chance)]
    n_refs = 0
    for _ in range(chance.randint(0, 3)):
        kind = chance.random()
        if kind < 0.35:
            item = _random_text(chance)
        elif kind < 0.6 and first.startswith(('"', "[")) and n_refs < 1:
            name = chance.randrange(n)
            items.append("root" if name == 0 else f"r{name}")
            n_refs += 1
            continue
        elif kind < 0.8 and depth:
            inner = " | ".join(_random_sequence(chance, n, n, depth - 1) for _ in range(chance.randint(1, 2)))
            item = f"({inner})"
        else:
            item = _random_text(chance)
        items.append(item + chance.choice(["", "", "", "?", "*", "+", "{2}", "{1,3}", "{0,2}"]))
    return " ".join(items)


def _random_text(chance: random.Random) -> str:
    return chance.choice(['"a"', '"b"', '"ab"', '" "', "[a-c]", "[0-9]", '"é"', "[à-ü]", "[ -~]", '"the"', "[日-本]", r'"\"\n"'])


def _alternates(items: list[Any]) -> tuple[list[Any], list[Any]]:
    alternates: list[list[Any]] = [[]]
    while items:
        literal, class_, name, counts, mark = items[0]
        if mark == ")":
            break
        items = items[1:]
        if mark == "|":
            alternates.append([])
        elif mark == "(":
            inner, items = _alternates(items)
            assert items[0][4] == ")"
            items = items[1:]
            alternates[-1].append(("group", inner))
        elif counts:
            alternates[-1].append(("repeat", alternates[-1].pop(), *_counts(counts)))
        elif literal is not None:
            alternates[-1].append(("text", "".join(map(chr, _characters(literal[1:-1])))))
        elif class_ is not None:
            alternates[-1].append(("class", _ranges(class_[1:-1])))
        else:
            alternates[-1].append(("rule", name))
    return alternates, items


def _counts(text: str) -> tuple[int, int]:
    if text[0] != "{":
        return {"*": (0, MANY), "+": (1, MANY), "?": (0, 1)}[text]
    low, comma, high = text[1:-1].partition(",")
    return int(low), int(high) if high else int(low) + (MANY if comma else 0)


def _characters(text: str) -> list[int]:
    found = []
    for match in _CHARACTER.finditer(text):
        code = match[1] or match[2] or match[3]
        found.append(int(code, 16) if code else ord(_ESCAPES.get(match[4], match[4]) if match[4] else match[5]))
    return found


def _ranges(text: str) -> list[tuple[int, int]]:
    assert text[0] != "^"
    parts = [match[0] for match in _CHARACTER.finditer(text)]
    ranges = []
    while parts:
        low = high = _characters(parts[0])[0]
        if len(parts) > 2 and parts[1] == "-":
            high = _characters(parts[2])[0]
            parts = parts[2:]
        ranges.append((low, high))
        parts = parts[1:]
    return ranges


class _Walk:
    def __init__(self, rules: dict[str, Any], chance: random.Random, deep: int) -> None:
        self._rules, self._chance, self._deep = rules, chance, deep
        self._height: dict[str, float] = dict.fromkeys(rules, float("inf"))
        changed = True
        while changed:
            changed = False
            for name, alternates in rules.items():
                height = 1 + min(self._of(items) for items in alternates)
                if height < self._height[name]:
                    self._height[name], changed = height, True

    def _of(self, items: list[Any]) -> float:
        return max((self._of_item(item) for item in items), default=0)

    def _of_item(self, item: Any) -> float:
        if item[0] == "rule":
            return self._height[item[1]]
        if item[0] == "group":
            return min(self._of(items) for items in item[1])
        return self._of_item(item[1]) if item[0] == "repeat" and item[2] else 0

    def rule(self, name: str, depth: int) -> list[str]:
        return self._choose(self._rules[name], depth + 1)

    def _choose(self, alternates: list[Any], depth: int) -> list[str]:
        if depth > self._deep:
            items = min(alternates, key=self._of)
        else:
            items = self._chance.choice([items for items in alternates if self._of(items) < float("inf")])
        return [text for item in items for text in self._item(item, depth)]

    def _item(self, item: Any, depth: int) -> list[str]:
        if item[0] == "text":
            return [item[1]]
        if item[0] == "class":
            return [chr(self._chance.randint(*self._chance.choice(item[1])))]
        if item[0] == "rule":
            return self.rule(item[1], depth)
        if item[0] == "group":
            return self._choose(item[1], depth)
        _, inner, low, high = item
        times = low if depth > self._deep else self._chance.choice([low, high, self._chance.randint(low, high)])
        return [text for _ in range(times) for text in self._item(inner, depth)]
