"""How many switches, and how long did they take? SwitchMetrics: counters and histograms for whoever scrapes them."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass

from modeld.types import SwitchOp

BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)  # upper ends; above: infinity


@dataclass(frozen=True, slots=True)
class Histogram:
    """`counts[i]`: observations up to BUCKETS_S[i] and above the bucket before; the last one has no upper end."""

    counts: tuple[int, ...]
    sum_s: float

    @property
    def n(self) -> int:
        return sum(self.counts)


class SwitchMetrics:
    """Written by the switch thread, read by any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Guards the three below.
        self._ended: Counter[tuple[str, str, str]] = Counter()  # kind, reason, state
        self._counts: dict[str, list[int]] = {}  # by step or phase, and "total"
        self._sums: dict[str, float] = {}

    def ended(self, op: SwitchOp) -> None:
        with self._lock:
            self._ended[op.kind.value, op.reason.value, op.state.value] += 1
            for step, ms in op.steps_ms.items():
                self._observe(step, ms / 1000)
            if op.started_at is not None and op.ended_at is not None:
                self._observe("total", max(0.0, op.ended_at - op.started_at))

    def ops(self) -> dict[tuple[str, str, str], int]:
        """Ended ops by kind, reason and state."""
        with self._lock:
            return dict(self._ended)

    def seconds(self) -> dict[str, Histogram]:
        """By step and phase, and `total`."""
        with self._lock:
            return {step: Histogram(tuple(counts), self._sums[step]) for step, counts in self._counts.items()}

    def _observe(self, step: str, seconds: float) -> None:
        counts = self._counts.setdefault(step, [0] * (len(BUCKETS_S) + 1))
        counts[bisect_left(BUCKETS_S, seconds)] += 1
        self._sums[step] = self._sums.get(step, 0.0) + seconds
