"""Which rows go into the next decode? Slots, for which clients take turns; plan() and commit(). Pure: no clock, no thread."""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass

from modeld.engine import prefix
from modeld.engine.kept import Found, Held, KeptCells
from modeld.engine.prefix import Reuse, Slot
from modeld.engine.sequence import Sequence
from modeld.llm.adapter import Span

MIN_ROWS_SAT_OUT = 16  # of each prompt; with fewer the streams' rows are welcome in the same pass


@dataclass(frozen=True, slots=True)
class Planned:
    """One span of the next decode and the sequence it belongs to."""

    span: Span
    sequence: Sequence


@dataclass(frozen=True, slots=True)
class Placed:
    """A sequence that got a slot now, and what of its prompt the KV cache has already (None: nothing), or what was kept."""

    sequence: Sequence
    slot: int
    reuse: Reuse | None
    kept: Found | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """A running sequence changes its slot: its cells are copied from `source` to `target`, then dropped in `source`.

    Before that, the cells that an ended sequence left in `target` are copied to `rescue`; None: they are given up.
    """

    source: int
    target: int
    rescue: int | None


class Scheduler:
    """Slots, and the sequences that wait for one. Engine thread only."""

    def __init__(
        self,
        n_slots: int,
        n_batch: int,
        n_outputs: int,
        *,
        shares: bool = True,
        kept: KeptCells | None = None,
        n_ctx_slot: int = 0,
    ) -> None:
        """`n_outputs`: rows of one decode that may get logits, at least n_slots. `shares`: cells can be copied and cut
        (Runtime.can_cut); without, nothing is taken over and nobody moves. `kept`: cells from before the model was loaded, of
        which a slot takes n_ctx_slot."""
        self._n_batch = n_batch
        self._n_outputs = n_outputs
        self._shares = shares
        self._kept = kept if shares else None
        self._n_ctx_slot = n_ctx_slot
        self._slots = [Slot(i) for i in range(n_slots)]
        # By client, in the order of their turns: who got a slot goes to the end. None is empty.
        self._waiting: dict[str, OrderedDict[Sequence, None]] = {}
        self._running: dict[Sequence, Slot] = {}  # in the order in which they got their slots
        self._n_ended = 0  # stamps the cells that ended sequences leave, for "least recently used"

    @property
    def n_busy(self) -> int:
        return len(self._running)

    @property
    def n_cells(self) -> int:
        """Tokens that have cells, in all slots. Any thread: the slots stay the same, and a step more or less does not matter."""
        sequences = [(slot.sequence, slot.cached) for slot in self._slots]
        return sum(len(cached) if sequence is None else sequence.n_cached for sequence, cached in sequences)

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    @property
    def running(self) -> list[Sequence]:
        """Those that have a slot, in order of admission."""
        return list(self._running)

    @property
    def sequences(self) -> list[Sequence]:
        """All that have not ended: the running ones first, in order of admission."""
        return [*self._running, *(sequence for queue in self._waiting.values() for sequence in queue)]

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._running or sequence in self._waiting.get(sequence.client, ())

    def slot_of(self, sequence: Sequence) -> int:
        return self._running[sequence].id

    def youngest(self, planned: list[Planned]) -> Planned:
        """The one whose sequence was admitted last."""
        order = {sequence: i for i, sequence in enumerate(self._running)}
        return max(planned, key=lambda item: order[item.sequence])

    def add(self, sequence: Sequence) -> None:
        self._waiting.setdefault(sequence.client, OrderedDict())[sequence] = None

    def remove(self, sequence: Sequence, *, keep_cells: bool = False) -> int | None:
        """Forget a sequence that ended; the id of the slot it had, None if it still waited.

        With `keep_cells` its tokens stay in the slot as a cache until the slot is wanted; else the caller drops them.
        """
        slot = self._running.pop(sequence, None)
        if slot is None:
            del self._waiting[sequence.client][sequence]
            if not self._waiting[sequence.client]:
                del self._waiting[sequence.client]
            return None
        slot.sequence = None
        slot.cached = sequence.tokens[: sequence.n_cached] if keep_cells else ()
        self._n_ended += 1
        slot.last_used = self._n_ended
        return slot.id

    def held(self) -> list[Held]:
        """What the slots hold, the most recently used first: the running sequences', the youngest first, then what ended ones
        left."""
        running = list(reversed(self._running.values()))
        ended = sorted((slot for slot in self._slots if slot.sequence is None), key=lambda slot: -slot.last_used)
        return [Held(slot.id, slot.held) for slot in (*running, *ended)]

    def forget_cache(self) -> list[int]:
        """Give up all that ended sequences left; the slots whose cells the caller drops."""
        slots = [slot for slot in self._slots if slot.sequence is None and slot.cached]
        for slot in slots:
            slot.cached = ()
        return [slot.id for slot in slots]

    def place(self) -> Placed | None:
        """Give a slot to the sequence whose turn it is and that need not wait for a prefix that another one is computing.

        The turn is that of the client with the fewest slots, among equals of the one that got its last one longest ago, and of
        what waits longest of that client's. One at a time: what one takes decides what the next one finds.
        """
        if all(slot.sequence is not None for slot in self._slots):
            return None
        for client in self._turns():
            for sequence in self._waiting[client]:
                if self._shares and prefix.is_being_computed(sequence, self._running):
                    continue
                kept = self._find_kept(sequence)
                n_kept = kept.n_tokens if kept is not None else 0
                slot, reuse = prefix.choose(sequence, self._slots, shares=self._shares, n_kept=n_kept)
                self._end_turn(sequence)
                slot.sequence, slot.cached = sequence, ()
                self._running[sequence] = slot
                return Placed(sequence, slot.id, reuse, kept if reuse is None else None)
        return None

    def _turns(self) -> list[str]:
        """The clients that wait, the one whose turn it is first."""
        if len(self._waiting) < 2:
            return list(self._waiting)
        n_slots = Counter(sequence.client for sequence in self._running)
        return sorted(self._waiting, key=lambda client: n_slots[client])  # keeps the order among equals

    def _end_turn(self, sequence: Sequence) -> None:
        """It waits no more; its client's next turn is behind those of all others. One that comes anew is behind them, too, so
        that no stream of newcomers keeps anybody out."""
        queue = self._waiting.pop(sequence.client)
        del queue[sequence]
        if queue:
            self._waiting[sequence.client] = queue

    def _find_kept(self, sequence: Sequence) -> Found | None:
        if self._kept is None or not sequence.takes_over:
            return None
        return self._kept.find(sequence.tokens[:-1], self._n_ctx_slot)  # the last token's logits are wanted

    def next_move(self) -> Move | None:
        """A move that makes the used slots more contiguous, None when they are.

        libllama splits a batch into passes of contiguous rising slots: with holes, four streams run at the speed of one
        (facts/llama.md, "Row order decides speed"). The outermost sequence goes into the lowest hole.
        """
        used = sorted(slot.id for slot in self._running.values())
        if not self._shares or not used or used[-1] - used[0] == len(used) - 1:
            return None
        hole = next(slot for slot in self._slots[used[0] : used[-1]] if slot.sequence is None)
        source = self._slots[used[-1]]
        sequence = source.sequence
        assert sequence is not None
        rescue = self._rescue(hole)
        hole.sequence, hole.cached = sequence, ()
        source.sequence, source.cached = None, ()
        self._running[sequence] = hole  # keeps its place in the order of admission
        return Move(source.id, hole.id, rescue)

    def _rescue(self, hole: Slot) -> int | None:
        """Another free slot takes over what the hole has cached, if that is worth more than what it has itself."""
        others = [slot for slot in self._slots if slot.sequence is None and slot is not hole]
        target = min(others, key=lambda slot: slot.last_used if slot.cached else 0, default=None)
        if target is None or not hole.cached or (target.cached and target.last_used > hole.last_used):
            return None
        target.cached, target.last_used = hole.cached, hole.last_used
        return target.id

    def plan(self, prompt_budget: int) -> list[Planned]:
        """The spans of the next decode, by slot: a row for each sequence in the generation phase, then prompts.

        Prompts share what is left of n_batch in order of admission; one that does not fit goes on in the next decode.
        While sequences are in the generation phase, prompts get `prompt_budget` rows at most (>= 1), unless those that wait
        for their first token are the majority and one decode reads all of them: then a single long step serves more, and
        16 streams that begin together run at full width 10 % sooner. The streams sit it out, unless it is short: their few
        rows would cost a pass over all weights, for a token each that would not come earlier than a step after it.
        """
        to_read = [len(sequence.tokens) - sequence.n_cached for sequence in self._running if sequence.in_prompt_phase]
        n_generating = len(self._running) - len(to_read)
        room = self._n_batch - n_generating
        in_budget = n_generating > 0 and (len(to_read) <= n_generating or sum(to_read) > room)
        if in_budget:
            room = min(room, prompt_budget)
        sit_out = not in_budget and min(to_read, default=0) >= MIN_ROWS_SAT_OUT and not any(s.is_scoring for s in self._running)
        # Each sequence asks for the logits of one row, except those that want to know about every token of their prompt.
        n_outputs = self._n_outputs - sum(not sequence.is_scoring for sequence in self._running)
        planned = []
        for sequence, slot in self._running.items():
            start, is_scoring = sequence.n_cached, sequence.is_scoring
            if not sequence.in_prompt_phase:
                if sit_out:
                    continue
                rows = sequence.tokens[start:]
            elif (n_most := min(room, n_outputs) if is_scoring else room) > 0:
                rows = sequence.tokens[start : start + n_most]
                room -= len(rows)
                n_outputs -= len(rows) if is_scoring else 0
            else:
                continue
            output = start + len(rows) == len(sequence.tokens)
            planned.append(Planned(Span(slot.id, start, rows, output or is_scoring, is_scoring), sequence))
        planned.sort(key=lambda item: item.span.slot)
        return planned

    def filling(self, n: int, n_ctx_slot: int, token: int) -> list[Span]:
        """`n` rows that nobody needs, by slot, behind what ended sequences left in free slots; none if so many are not free.

        The caller drops them after the decode. The slots lie next to the used ones, so that libllama's pass is not split.
        """
        used = [slot.id for slot in self._running.values()]
        above, below = self._slots[max(used) + 1 :], self._slots[: min(used)][::-1]
        spans: list[Span] = []
        for side in (above, below):
            for slot in side:
                if len(spans) == n or len(slot.cached) >= n_ctx_slot:
                    break
                spans.append(Span(slot.id, len(slot.cached), [token], True))
        return sorted(spans, key=lambda span: span.slot) if len(spans) == n else []

    def commit(self, planned: list[Planned]) -> list[tuple[Sequence, int]]:
        """The decode of `planned` is done: the sequences that have logits now, with the index of their span."""
        ready = []
        for index, item in enumerate(planned):
            item.sequence.n_cached += len(item.span.tokens)
            if item.sequence.n_cached == len(item.sequence.tokens):
                ready.append((item.sequence, index))
        return ready
