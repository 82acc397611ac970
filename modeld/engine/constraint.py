"""Which pieces may come next in an answer? CompiledGrammar and GrammarConstraint: a grammar's machine over a vocabulary.

One piece is a walk of a few bytes through the machine. All pieces are a walk over the vocabulary in the order of its bytes:
what begins with refused bytes is passed over at once, and so is what extends a piece by characters after which the machine is
known to be where it was, or one step further (inside a string, say). What was found for a state is kept for a while.
"""

from __future__ import annotations

import time
from array import array
from collections import OrderedDict

from modeld.engine.gbnf import MAX_BYTES, parse_gbnf
from modeld.engine.gbnf_machine import GrammarTooCostly, Machine, State
from modeld.errors import InvalidRequest, ModeldError
from modeld.llm.adapter import NON_ASCII, PieceTree, Selection

MAX_STEP_S = 0.5  # of computing, for one look or one piece; a request that needs more would hold up the others
N_SELECTIONS_KEPT = 8
_FEW = 2  # pieces that are looked at one by one
_MAX_AHEAD = 24  # characters
_CHECK_EVERY = 1024  # pieces


class CompiledGrammar:
    """One grammar, ready for any number of answers. Made on any thread, then the engine thread's."""

    def __init__(self, text: str, *, max_bytes: int = MAX_BYTES, param: str = "grammar") -> None:
        """Raises InvalidRequest on `param`."""
        self.param = param
        try:
            self.machine = Machine(parse_gbnf(text, max_bytes=max_bytes, param=param))
        except GrammarTooCostly as error:
            raise InvalidRequest(f"the grammar cannot be used: {error}", param=param) from None
        self._selections: OrderedDict[State, Selection] = OrderedDict()

    def begin(self) -> GrammarConstraint:
        """For one more answer."""
        return GrammarConstraint(self)

    def selection(self, state: State, pieces: PieceTree) -> Selection:
        """What may come behind `state`. Raises GrammarTooCostly."""
        found = self._selections.get(state)
        if found is None:
            found = _selection(_Walk(self.machine, pieces).allowed(state), pieces)
            self._selections[state] = found
            if len(self._selections) > N_SELECTIONS_KEPT:
                self._selections.popitem(last=False)
        self._selections.move_to_end(state)
        return found


class GrammarConstraint:
    """How far one answer has come in its grammar: adapter.Constraint. Engine thread only."""

    def __init__(self, grammar: CompiledGrammar) -> None:
        self.problem: ModeldError | None = None
        self._grammar = grammar
        self._state = grammar.machine.start

    @property
    def may_end(self) -> bool:
        return self._state.may_end

    def allows(self, piece: bytes) -> bool:
        return bool(piece) and self._after(piece) is not self._grammar.machine.dead

    def accept(self, piece: bytes) -> None:
        self._state = self._after(piece)

    def selection(self, pieces: PieceTree) -> Selection:
        self._begin_step()
        try:
            return self._grammar.selection(self._state, pieces)
        except GrammarTooCostly as error:
            return self._give_up(error)

    def _after(self, piece: bytes) -> State:
        self._begin_step()
        machine, state = self._grammar.machine, self._state
        try:
            for byte in piece:
                state = state[machine.columns[byte]]
        except GrammarTooCostly as error:
            self._give_up(error)
            return machine.dead
        return state

    def _begin_step(self) -> None:
        self._grammar.machine.deadline = time.thread_time() + MAX_STEP_S

    def _give_up(self, error: GrammarTooCostly) -> Selection:
        """The answer ends here, with `problem`."""
        self.problem = InvalidRequest(f"the answer cannot go on: {error}", param=self._grammar.param)
        self._state = self._grammar.machine.dead
        return Selection(array("i"), are_allowed=True)


def _selection(allowed: list[tuple[int, int]], pieces: PieceTree) -> Selection:
    """The tokens of these ranges of the tree, or the others, whichever are fewer."""
    n_allowed = sum(end - start for start, end in allowed)
    n_pieces = len(pieces.texts)
    if 2 * n_allowed > n_pieces:
        edges = [0, *(edge for span in allowed for edge in span), n_pieces]
        spans = list(zip(edges[::2], edges[1::2], strict=True))
    else:
        spans = allowed
    tokens = array("i")
    for start, end in spans:
        tokens.extend(pieces.tokens[start:end])
    return Selection(array("i", sorted(tokens)), are_allowed=spans is allowed)


class _Walk:
    """One look at a whole vocabulary."""

    def __init__(self, machine: Machine, pieces: PieceTree) -> None:
        self._machine = machine
        self._pieces = pieces
        self._ascii = [0 if members[0] > 127 else _bits(members) for members in machine.bytes_of]

    def allowed(self, state: State) -> list[tuple[int, int]]:
        """Ranges of the tree, apart from each other and in its order. Raises GrammarTooCostly."""
        machine, pieces = self._machine, self._pieces
        dead, columns = machine.dead, machine.columns
        texts, shared, shorter, ends = pieces.texts, pieces.shared, pieces.shorter, pieces.ends
        states = [state] * (pieces.longest + 1)  # behind each number of bytes of what was last looked at
        found: list[tuple[int, int]] = []
        start = i = n_looked = 0  # start..i is allowed and not in `found` yet
        n_pieces = len(texts)
        while i < n_pieces:
            n_looked += 1
            if n_looked % _CHECK_EVERY == 0 and machine.deadline is not None and time.thread_time() > machine.deadline:
                raise GrammarTooCostly("the grammar takes too long for one token")
            text = texts[i]
            depth = shared[i]
            at = states[depth]
            for byte in text[depth:] if depth else text:
                at = at[columns[byte]]
                depth += 1
                states[depth] = at
                if at is dead:
                    if start < i:
                        found.append((start, i))
                    i += 1
                    while shared[i] >= depth:  # what begins with the refused bytes, too
                        i = shorter[i]
                    start = i
                    break
            else:
                end = ends[i]
                i = end if end - i > _FEW and self._all_of(at, i) else i + 1
        if start < n_pieces:
            found.append((start, n_pieces))
        return found

    def _all_of(self, state: State, i: int) -> bool:
        """Whether `state`, which is behind piece i, takes all that extends it."""
        need, n_characters = self._pieces.needs[i], self._pieces.heights[i]
        if state.run is None:
            state.run = self._run(state)
        behind, takes = state.run
        if need & ~takes:
            return False
        while behind is not state and n_characters > 1:
            if n_characters > _MAX_AHEAD:
                return False
            state = behind
            if state.run is None:
                state.run = self._run(state)
            behind, takes = state.run
            if need & ~takes:
                return False
            n_characters -= 1
        return True

    def _run(self, state: State) -> tuple[State, int]:
        """The state that most characters lead to, and those characters: a bit for each of ASCII, and NON_ASCII for all others."""
        lead_to: dict[State, int] = {}
        for column, bits in enumerate(self._ascii):
            if bits:
                behind = state[column]
                if behind is not self._machine.dead:
                    lead_to[behind] = lead_to.get(behind, 0) | bits
        if not lead_to:
            return self._machine.dead, 0
        behind, takes = max(lead_to.items(), key=lambda item: item[1].bit_count())
        return behind, takes | NON_ASCII if self._all_others_lead(state, behind) else takes

    def _all_others_lead(self, state: State, target: State) -> bool:
        columns = self._machine.columns
        todo = [(self._machine.any_character, state)]
        seen = set(todo)
        while todo:
            spelling, at = todo.pop()
            for low, high, follow in spelling.arcs:
                if high < 128:
                    continue
                for column in range(columns[max(low, 128)], columns[high] + 1):
                    behind = at[column]
                    if behind is self._machine.dead or (follow is None and behind is not target):
                        return False
                    if follow is not None and (follow, behind) not in seen:
                        seen.add((follow, behind))
                        todo.append((follow, behind))
        return True


def _bits(members: range) -> int:
    return sum(1 << byte for byte in members)
