"""Which rows go into the next decode? Slots, first come first served; plan() and commit(). Pure: no clock, no thread."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from modeld.engine.sequence import Sequence
from modeld.llm.adapter import Span


@dataclass(slots=True)
class Slot:
    """A place in the KV cache; `id` is the seq_id."""

    id: int
    sequence: Sequence | None = None


@dataclass(frozen=True, slots=True)
class Planned:
    """One span of the next decode and the sequence it belongs to."""

    span: Span
    sequence: Sequence


class Scheduler:
    """Slots, and the sequences that wait for one. Engine thread only."""

    def __init__(self, n_slots: int, n_batch: int) -> None:
        self._n_batch = n_batch
        self._slots = [Slot(i) for i in range(n_slots)]
        self._waiting: deque[Sequence] = deque()
        self._running: dict[Sequence, Slot] = {}  # in the order in which they got their slots

    @property
    def n_busy(self) -> int:
        return len(self._running)

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    @property
    def sequences(self) -> list[Sequence]:
        """All that have not ended: the running ones first, in order of admission."""
        return [*self._running, *self._waiting]

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._running or sequence in self._waiting

    def youngest(self, planned: list[Planned]) -> Planned:
        """The one whose sequence was admitted last."""
        order = {sequence: i for i, sequence in enumerate(self._running)}
        return max(planned, key=lambda item: order[item.sequence])

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> int | None:
        """Forget a sequence that ended; the id of the slot it had, None if it still waited."""
        slot = self._running.pop(sequence, None)
        if slot is None:
            self._waiting.remove(sequence)
            return None
        slot.sequence = None
        return slot.id

    def place(self) -> list[Sequence]:
        """Give the lowest free slots to those who wait longest; the sequences that got one now.

        The lowest, since libllama splits a batch into passes of contiguous rising slots (facts/llama.md).
        """
        placed = []
        for slot in self._slots:
            if not self._waiting:
                break
            if slot.sequence is None:
                slot.sequence = self._waiting.popleft()
                self._running[slot.sequence] = slot
                placed.append(slot.sequence)
        return placed

    def plan(self) -> list[Planned]:
        """The spans of the next decode, by slot: a row for each sequence in the generation phase, then prompts.

        Prompts share what is left of n_batch in order of admission; one that does not fit goes on in the next decode.
        """
        room = self._n_batch - sum(not sequence.in_prompt_phase for sequence in self._running)
        planned = []
        for sequence, slot in self._running.items():
            if not sequence.in_prompt_phase:
                span = Span(slot.id, sequence.n_past, (sequence.last_token,), True)
            elif room > 0:
                start = sequence.n_prompt_done
                piece = sequence.prompt[start : start + room]
                room -= len(piece)
                span = Span(slot.id, start, piece, start + len(piece) == len(sequence.prompt))
            else:
                continue
            planned.append(Planned(span, sequence))
        planned.sort(key=lambda item: item.span.slot)
        return planned

    def commit(self, planned: list[Planned]) -> list[tuple[Sequence, int]]:
        """The decode of `planned` is done: the sequences that have logits now, with the index of their span."""
        ready = []
        for index, item in enumerate(planned):
            if item.sequence.in_prompt_phase:
                item.sequence.n_prompt_done += len(item.span.tokens)
            if item.span.output:
                ready.append((item.sequence, index))
        return ready
