"""Has the engine of a model died too often to be loaded again without being asked? Deaths, within a window. Pure."""

from __future__ import annotations

from collections import deque

from modeld.errors import EngineFailed

MAX_RELOADS = 3  # of one model whose engine dies again and again, within
RELOAD_WINDOW_S = 600.0


class Deaths:
    def __init__(self) -> None:
        self._at: dict[str, deque[float]] = {}  # by model id, within RELOAD_WINDOW_S

    def count(self, model_id: str, death: Exception | None, now: float) -> EngineFailed | None:
        """One more; an error when there were too many. `now`: on the caller's clock."""
        deaths = self._at.setdefault(model_id, deque(maxlen=MAX_RELOADS + 1))
        deaths.append(now)
        recent = sum(now - at <= RELOAD_WINDOW_S for at in deaths)
        if recent <= MAX_RELOADS:
            return None
        return EngineFailed(
            f"the engine of {model_id!r} died {recent} times within {RELOAD_WINDOW_S / 60:.0f} minutes, so it is not "
            f"loaded again by itself (POST /switch does); the last reason: {death}"
        )
