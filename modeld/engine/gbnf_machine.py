"""Where may a text go on in a grammar? Machine: an automaton over bytes, made as far as texts have come.

Each rule is a small network of points: what is read on the way from one to the next, and which rule is entered. A state is a
set of readings: what each waits for next, and where it goes on once the rule it is in has ended (Tail). Readings that wait for
the same are one, whose tails are joined, so a grammar whose readings double with each character (`a ::= "x" a "y" | "x" a "z"`)
costs one character more, not twice as much. States recur, so a byte mostly costs a look into a dict.

libllama follows each reading by itself, without bounds, in C calls that nobody can end.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice, pairwise

from modeld.engine.gbnf import LAST_CHARACTER, Class, Grammar, Group, Item, Ref, Repeat, Text
from modeld.engine.utf8 import Speller, Spelling

MAX_READINGS = 4000  # of one state
MAX_WORK = 200_000  # readings and tails that are looked at for one more byte; some 20 ms at most
MAX_DEPTH = 20_000  # rules within each other
MAX_MEMO = 100_000  # readings, transitions and tails that are remembered; some 20 MB

_TOO_MANY = f"the grammar can be read in more than {MAX_READINGS} ways at once"
_END = -1  # the point behind the root

Waiting = tuple[Spelling, int]  # for these bytes, then at this point
Pair = tuple[int, "Tail | None"]


class GrammarTooCostly(Exception):
    """A text has more readings at once than are followed, or following them takes too long. The message says which."""


class Tail:
    """Where readings go on when the rule that they are in has ended: points, each with a tail of its own."""

    __slots__ = ("depth", "pairs")

    def __init__(self, pairs: frozenset[Pair]) -> None:
        self.pairs = pairs
        self.depth: int = 1 + max((tail.depth for _, tail in pairs if tail is not None), default=0)


class State(dict[int, "State"]):
    """All readings of a text so far; as a dict, the states behind it by column (Machine.columns). Equal ones are one object.

    `may_end`: the text is complete as it is. A state without readings that may not end is dead.
    """

    __slots__ = ("machine", "may_end", "readings", "run")

    def __init__(self, machine: Machine, readings: tuple[tuple[Waiting, Tail], ...], may_end: bool) -> None:
        self.machine = machine
        self.readings = readings
        self.may_end = may_end
        self.run: tuple[State, int] | None = None  # constraint.py's

    def __missing__(self, column: int) -> State:
        return self.machine.after(self, column)

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other


@dataclass(frozen=True, slots=True)
class _Ahead:
    """What is reached from a point without a byte. `only_end`: nothing but the end of its rule."""

    waiting: tuple[Waiting, ...]
    enters: tuple[tuple[int, int], ...]  # the rule, and the point behind it
    ends: bool
    only_end: bool


class Machine:
    """The automaton of one grammar. Any number of texts may be in it, all on one thread."""

    def __init__(self, grammar: Grammar) -> None:
        """Builds the networks of all rules that root leads to. Raises GrammarTooCostly if it has too many beginnings."""
        self.deadline: float | None = (
            None  # of this thread's time (not the clock: the system may be busy); beyond it GrammarTooCostly
        )
        self._speller = Speller()
        self._network = _Network(grammar, self._speller)
        any_character = self._speller.spelled([(0, LAST_CHARACTER)])
        self.any_character = any_character
        self.columns, self.bytes_of = _columns(self._speller.nodes())
        self._ahead: dict[int, _Ahead] = {}
        self._tails: dict[frozenset[Pair], Tail] = {}
        self._states: dict[tuple[frozenset[tuple[Waiting, Tail]], bool], State] = {}
        self._n_memo = 0
        self._work = 0
        self.dead = State(self, (), False)
        self.start = self.dead  # while it is being found
        self.start = self._state({}, [(self._network.root, self._tail(frozenset({(_END, None)})))])

    def after(self, state: State, column: int) -> State:
        """The state behind one byte of that column; remembered in `state`."""
        self._in_time()
        byte = self.bytes_of[column][0]
        inside: dict[Waiting, set[Tail]] = {}
        behind: list[tuple[int, Tail]] = []
        for (spelling, point), tail in state.readings:
            for low, high, follow in spelling.arcs:
                if low <= byte <= high:
                    if follow is None:
                        behind.append((point, tail))
                    else:
                        inside.setdefault((follow, point), set()).add(tail)
                    break
        found = self._state(inside, behind) if inside or behind else self.dead
        self._remember(1)
        state[column] = found
        return found

    # -- from points to states

    def _state(self, readings: dict[Waiting, set[Tail]], reached: list[tuple[int, Tail]]) -> State:
        """The state of `readings` and of what follows the points `reached`."""
        self._work = 0
        may_end = False
        tails_at: dict[int, set[Tail]] = {}
        while reached:
            point, tail = reached.pop()
            tails = tails_at.setdefault(point, set())
            if tail in tails:
                continue
            tails.add(tail)
            if self._reached_from(point).ends:
                self._worked(len(tail.pairs))
                for behind, outer in tail.pairs:
                    if outer is None:
                        may_end = True
                    else:
                        reached.append((behind, outer))
        entered: dict[int, set[Pair]] = {}
        for point, tails in tails_at.items():
            ahead = self._reached_from(point)
            if not ahead.only_end:
                self._go_on(ahead, self._joined(tails), readings, entered)
        # Rules are numbered so that each comes before those it begins with: when one is entered, all its tails are known.
        order = sorted(entered)
        while order:
            rule = heapq.heappop(order)
            ahead = self._reached_from(self._network.entry[rule])
            n_entered = len(entered)
            self._go_on(ahead, self._tail(frozenset(entered[rule])), readings, entered)
            for new in islice(entered, n_entered, None):
                heapq.heappush(order, new)
        return self._interned(tuple((waiting, self._joined(tails)) for waiting, tails in readings.items()), may_end)

    def _go_on(self, ahead: _Ahead, tail: Tail, readings: dict[Waiting, set[Tail]], entered: dict[int, set[Pair]]) -> None:
        self._worked(len(ahead.waiting) + len(ahead.enters))
        for waiting in ahead.waiting:
            readings.setdefault(waiting, set()).add(tail)
        for rule, behind in ahead.enters:
            pairs = entered.setdefault(rule, set())
            if self._reached_from(behind).only_end:  # nothing to come back for, as in `list ::= item list | ""`
                self._worked(len(tail.pairs))
                pairs |= tail.pairs
            else:
                pairs.add((behind, tail))

    def _reached_from(self, point: int) -> _Ahead:
        ahead = self._ahead.get(point)
        if ahead is None:
            self._in_time()
            ahead = self._ahead[point] = self._network.ahead(point)
            self._remember(len(ahead.waiting) + len(ahead.enters) + 1)
        return ahead

    def _joined(self, tails: set[Tail]) -> Tail:
        if len(tails) == 1:
            return next(iter(tails))
        self._worked(sum(len(tail.pairs) for tail in tails))
        return self._tail(frozenset().union(*(tail.pairs for tail in tails)))

    def _tail(self, pairs: frozenset[Pair]) -> Tail:
        tail = self._tails.get(pairs)
        if tail is None:
            tail = self._tails[pairs] = Tail(pairs)
            self._remember(len(pairs) + 1)
            if tail.depth > MAX_DEPTH:
                raise GrammarTooCostly(f"the text nests deeper than {MAX_DEPTH} rules of the grammar")
        return tail

    def _interned(self, readings: tuple[tuple[Waiting, Tail], ...], may_end: bool) -> State:
        if len(readings) > MAX_READINGS:
            raise GrammarTooCostly(_TOO_MANY)
        key = frozenset(readings), may_end
        state = self._states.get(key)
        if state is None:
            state = State(self, readings, may_end) if readings or may_end else self.dead
            self._states[key] = state
            self._remember(len(readings) + 1)
        return state

    def _in_time(self) -> None:
        if self.deadline is not None and time.thread_time() > self.deadline:
            raise GrammarTooCostly("the grammar takes too long for one token")

    def _worked(self, n: int) -> None:
        self._work += n
        if self._work > MAX_WORK:
            raise GrammarTooCostly(f"following the grammar takes more than {MAX_WORK} steps for one character")

    def _remember(self, n: int) -> None:
        """Count what is kept, and begin anew where that is too much: the states in use go on, only what they knew is lost."""
        self._n_memo += n
        if self._n_memo > MAX_MEMO:
            self._n_memo = 0
            for state in self._states.values():
                state.clear()
                state.run = None
            self._states.clear()
            self._tails.clear()
            self._ahead.clear()
            # It is in use for ever, and would hold all that texts that begin anew bring it to know.
            self._states[frozenset(self.start.readings), self.start.may_end] = self.start


class _Network:
    """The points of all rules, and what is between them."""

    def __init__(self, grammar: Grammar, speller: Speller) -> None:
        self._grammar = grammar
        self._speller = speller
        # Of each point: points reached without a byte; or what is read, or which rule is entered, and the point behind it.
        self._free: list[list[int]] = []
        self._reads: dict[int, Waiting] = {}
        self._enters: dict[int, tuple[int, int]] = {}
        self._ends: set[int] = set()
        self._of_character: dict[int, Spelling] = {}
        number = {name: i for i, name in enumerate(grammar.rules)}
        self._number = number
        self.entry: dict[int, int] = {}
        self._nullable = {number[name] for name in grammar.nullable}
        waiting = ["root"]
        while waiting:
            name = waiting.pop()
            if number[name] in self.entry:
                continue
            self._named: set[str] = set()
            start, end = self._point(), self._point()
            self.entry[number[name]] = start
            self._ends.add(end)
            self._between(Group(grammar.rules[name]), start, end)
            waiting += self._named
        self.root = self.entry[number["root"]]

    def _point(self) -> int:
        self._free.append([])
        return len(self._free) - 1

    def _between(self, item: Item, start: int, end: int) -> None:
        """Lay what `item` allows between two points."""
        if isinstance(item, Text):
            for character in item.characters:
                code = ord(character)
                if code not in self._of_character:
                    self._of_character[code] = self._speller.spelled([(code, code)])
                behind = self._point()
                self._reads[start] = self._of_character[code], behind
                start = behind
            self._free[start].append(end)
        elif isinstance(item, Class):
            self._reads[start] = self._speller.spelled(item.ranges), end
        elif isinstance(item, Ref):
            self._named.add(item.name)
            self._enters[start] = self._number[item.name], end
        elif isinstance(item, Group):
            for items in item.alternates:
                at = self._point()
                self._free[start].append(at)
                for inner in items:
                    at = self._laid(inner, at)
                self._free[at].append(end)
        else:
            self._repeat(item, start, end)

    def _laid(self, item: Item, start: int) -> int:
        end = self._point()
        self._between(item, start, end)
        return end

    def _repeat(self, repeat: Repeat, start: int, end: int) -> None:
        for _ in range(repeat.low):
            start = self._laid(repeat.item, start)
        if repeat.high is None:
            loop = self._point()
            self._free[start].append(loop)
            start = loop
            inner = self._point()
            self._free[loop].append(inner)
            self._free[self._laid(repeat.item, inner)].append(loop)
        else:
            for _ in range(repeat.high - repeat.low):
                self._free[start].append(end)
                inner = self._point()
                self._free[start].append(inner)
                start = self._laid(repeat.item, inner)
        self._free[start].append(end)

    def ahead(self, point: int) -> _Ahead:
        """What is reached from there. Raises GrammarTooCostly."""
        seen = {point}
        todo = [point]
        waiting: list[Waiting] = []
        enters: list[tuple[int, int]] = []
        ends = False
        while todo:
            at = todo.pop()
            free = self._free[at]
            if at in self._reads:
                if self._reads[at][0].arcs:  # else it waits for what no text has
                    waiting.append(self._reads[at])
            elif at in self._enters:
                rule, behind = self._enters[at]
                enters.append((rule, behind))
                if rule in self._nullable:
                    free = [*free, behind]
            elif at in self._ends:
                ends = True
            for next_ in free:
                if next_ not in seen:
                    seen.add(next_)
                    todo.append(next_)
            if len(waiting) > MAX_READINGS:
                raise GrammarTooCostly(_TOO_MANY)
        return _Ahead(tuple(waiting), tuple(enters), ends, ends and not waiting and not enters)


def _columns(nodes: Iterable[Spelling]) -> tuple[bytes, list[range]]:
    """Bytes that no class of the grammar tells apart share a column: (column of each byte, bytes of each column)."""
    edges = {0, 128, 256}
    for node in nodes:
        for low, high, _ in node.arcs:
            edges |= {low, high + 1}
    bytes_of = [range(low, high) for low, high in pairwise(sorted(edges))]
    columns = bytearray(256)
    for column, members in enumerate(bytes_of):
        for byte in members:
            columns[byte] = column
    return bytes(columns), bytes_of
