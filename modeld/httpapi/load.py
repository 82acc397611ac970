"""How busy is the daemon, for those who watch it live? LoadFeed: the event `figures`, once a second at most."""

from __future__ import annotations

import time
from collections.abc import Callable

from modeld.httpapi import sse
from modeld.httpapi.schema import Json
from modeld.types import Figures

INTERVAL_S = 1.0


class LoadFeed:
    """What moves without an event of the hub. Nothing of it is kept or numbered: it is neither in the ring nor replayed, so that
    it pushes no event of a switch out, and a reader that misses one misses nothing that the next one does not say.

    Confined to the thread of Followers, which looks only while somebody watches.
    """

    def __init__(self, read: Callable[[], Figures]) -> None:
        """`read` waits for nothing that computes or loads."""
        self._read = read
        self._looked_at = float("-inf")
        self._rows = (0, 0)  # of prompts and of generation, at that look
        self._told: Json = {}
        self._frame = b""

    @property
    def due(self) -> float:
        """When to look next, of time.monotonic()."""
        return self._looked_at + INTERVAL_S

    def latest(self) -> bytes:
        """For who begins to watch: what the last look saw, or a new one where that is long ago."""
        return self.look() if time.monotonic() >= self.due else self._frame

    def look(self) -> bytes:
        """The frame for all who watch: the same object as before where it says the same."""
        now, figures = time.monotonic(), self._read()
        status, engine, cells = figures.status, figures.engine, figures.cells
        rows, seconds = (engine.n_rows_prompt, engine.n_rows_generation), now - self._looked_at
        # After a time in which nobody watched, the first look has nothing to compare with.
        prompt, generation = (
            (round(max(0, new - old) / seconds, 1) for new, old in zip(rows, self._rows, strict=True))
            if seconds < 3 * INTERVAL_S
            else (0.0, 0.0)
        )
        self._looked_at, self._rows = now, rows
        told: Json = {
            "slots": {"total": status.load.slots_total, "busy": status.load.slots_busy},
            "queue": status.load.queued,
            "waiting": status.waiting,
            "queued_ops": status.queued_ops,
            "tokens_per_s": {"prompt": prompt, "generation": generation},
            "kv_cells": {"total": cells.n_total, "used": cells.n_used},
        }
        if told != self._told:
            self._told, self._frame = told, sse.passing_frame("figures", told)
        return self._frame
