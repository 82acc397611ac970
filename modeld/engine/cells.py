"""How do the KV cells of a slot come to hold what its sequence needs? Taken over, restored, moved, cut, and kept at the end."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial

from modeld.engine.kept import Found, KeptCells, worth_keeping
from modeld.engine.scheduler import Placed, Scheduler
from modeld.engine.sequence import Sequence
from modeld.llm.adapter import Runtime, Span, StateNotSaved

log = logging.getLogger("modeld.engine")


class Cells:
    """Carries out in the runtime what the scheduler decides about slots. Engine thread only, but for keep()."""

    def __init__(self, runtime: Runtime, scheduler: Scheduler, kept: KeptCells | None) -> None:
        self._runtime = runtime
        self._scheduler = scheduler
        self._kept = kept

    def take_over(self, placed: Placed) -> None:
        """Bring the slot's cells to what the sequence shares with others or with what was kept, or empty them."""
        reuse, slot = placed.reuse, placed.slot
        if placed.kept is not None and self._restore(slot, placed.kept):
            placed.sequence.n_cached = placed.sequence.n_reused = placed.kept.n_tokens
            return
        if reuse is not None:
            if reuse.source != slot:
                self._runtime.copy(reuse.source, slot)
            if reuse.n_tokens == reuse.n_held or self._runtime.truncate(slot, reuse.n_tokens):
                placed.sequence.n_cached = placed.sequence.n_reused = reuse.n_tokens
                return
        self._runtime.forget(slot)

    def _restore(self, slot: int, found: Found) -> bool:
        """Whether the slot holds the beginning that was found. If not it may hold anything."""
        assert self._kept is not None
        if self._runtime.is_copying(slot):  # rare: it gives what ended to another sequence that was placed just now
            return False
        n_held = len(found.kept.tokens)
        if self._runtime.restore(slot, found.kept.state) and self._runtime.n_past(slot) == n_held:
            self._kept.use(found.kept)
            return found.n_tokens == n_held or self._runtime.truncate(slot, found.n_tokens)
        log.warning("kept cells of %d tokens were refused; they are computed again", n_held, extra={"slot": slot})
        self._kept.drop(found.kept)
        return False

    def keep(self) -> None:
        """Keep what the slots hold, as far as it is worth it and the budget goes. When the engine thread has ended."""
        if self._kept is None or not self._runtime.can_cut:
            return
        try:
            chosen = worth_keeping(self._scheduler.held(), self._runtime.saved_bytes, self._kept.budget_bytes)
            for held, n_bytes in reversed(chosen):  # each one counts as more recently used than those before it
                self._kept.add(held.tokens, n_bytes, partial(self._runtime.save, held.slot))
        except StateNotSaved as error:
            log.warning("cells are not kept: %s", error)

    def close_holes(self) -> None:
        """Make the used slots contiguous."""
        while (move := self._scheduler.next_move()) is not None:
            if move.rescue is not None:
                self._runtime.copy(move.target, move.rescue)
            self._runtime.copy(move.source, move.target)
            self._runtime.forget(move.source)

    def resync(self, sequence: Sequence) -> None:
        """After an abort: finished ubatches stay in the cache, and the last token is decoded again for its logits."""
        slot = self._scheduler.slot_of(sequence)
        n_held = self._runtime.n_past(slot)
        n_kept = min(n_held, len(sequence.tokens) - 1)
        if sequence.is_scoring:  # the logits of what the aborted decode finished are lost
            n_kept = min(n_kept, max(0, sequence.n_scored - 1))
        if n_kept < n_held and not self._runtime.truncate(slot, n_kept):
            self._runtime.forget(slot)
            n_kept = 0
        sequence.n_cached = n_kept

    def drop(self, filling: Iterable[Span]) -> None:
        """What filled a step goes; what ended sequences left in those slots stays."""
        for span in filling:
            self._runtime.truncate(span.slot, span.pos)

    def forget_cache(self) -> bool:
        """Give up all that ended sequences left; whether there was any."""
        slots = self._scheduler.forget_cache()
        for slot in slots:
            self._runtime.forget(slot)
        return bool(slots)
