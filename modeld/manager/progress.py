"""How does a load's progress become events? Progress: whole percents, rising within a step, steps in their order.

Whatever the factory reports (repeats, numbers out of range, a step that was over), what leaves here keeps the contract:
every step goes from 0 to 100, no number comes twice, and steps never interleave. A step that fails stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable

from modeld.types import Step

ORDER = tuple(Step)
BESIDE = (Step.MMAP, Step.WARMUP)  # of a load beside the old model, which is not unloaded before it


class Progress:
    """One op's progress. Switch thread only."""

    def __init__(self, emit: Callable[[Step, int], None], order: tuple[Step, ...] = ORDER) -> None:
        self._emit = emit
        self._order = order
        self._at = -1  # index of the step that runs
        self._pct = 100  # of that step

    def report(self, step: Step, pct: int) -> None:
        """The step has come to `pct`; a later step than the last one ends those before it."""
        index = self._order.index(step)
        while self._at < index:
            self._advance(100)
            self._at += 1
            self._pct = -1
            self._advance(0)
        if self._at == index:
            self._advance(min(max(int(pct), 0), 100))

    def finish(self) -> None:
        """All steps are done."""
        self.report(self._order[-1], 100)

    def _advance(self, pct: int) -> None:
        if pct > self._pct:
            self._pct = pct
            self._emit(self._order[self._at], pct)
