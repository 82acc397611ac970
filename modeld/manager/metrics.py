"""How many switches, and how long did they take? SwitchMetrics: counters and histograms for whoever scrapes them."""

from __future__ import annotations

import threading
from collections import Counter

from modeld.metrics import Buckets
from modeld.types import Distribution, SwitchOp

BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)  # upper ends; above: infinity


class SwitchMetrics:
    """Written by the switch thread, read by any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Guards the two below.
        self._ended: Counter[tuple[str, str, str]] = Counter()  # kind, reason, state
        self._seconds: dict[str, Buckets] = {}  # by step or phase, and "total"

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

    def seconds(self) -> dict[str, Distribution]:
        """By step and phase, and `total`."""
        with self._lock:
            return {step: buckets.read() for step, buckets in self._seconds.items()}

    def _observe(self, step: str, seconds: float) -> None:
        self._seconds.setdefault(step, Buckets(BUCKETS_S)).observe(seconds)
