"""When may a model that keeps failing be tried again? Cooldowns: failures in a row, counted by entry and file. Pure.

Written by the switch thread, read by any: a record is never changed, only replaced.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from modeld.errors import ModelCooldown
from modeld.manager.tenant import Identity
from modeld.types import ModelSpec

MAX_COOLDOWN_S = 3600


@dataclass(frozen=True, slots=True)
class Failures:
    """Of one entry with one file, in a row. `until`: on the clock that the caller uses."""

    spec: ModelSpec
    identity: Identity | None
    n: int
    until: float
    message: str


class Cooldowns:
    def __init__(self) -> None:
        self._failures: dict[str, Failures] = {}

    def failed(
        self, spec: ModelSpec, identity: Identity | None, message: str, now: float, *, allowed: int, cooldown_s: int
    ) -> Failures:
        """One more failure. From the `allowed`-th in a row (0: never) the model has to wait."""
        known = self._failures.get(spec.id)
        n = known.n + 1 if known is not None and (known.spec, known.identity) == (spec, identity) else 1
        wait_s = min(MAX_COOLDOWN_S, cooldown_s * 2.0 ** min(n - allowed, 20)) if allowed and n >= allowed else 0
        failures = Failures(spec, identity, n, now + wait_s, message)
        self._failures[spec.id] = failures
        return failures

    def succeeded(self, model_id: str) -> None:
        self._failures.pop(model_id, None)

    def refusal(self, spec: ModelSpec, identity: Identity | None, now: float) -> ModelCooldown | None:
        """Why the model is not tried now; None: it may be. Another entry or another file begins anew."""
        known = self._failures.get(spec.id)
        if known is None or now >= known.until or (known.spec, known.identity) != (spec, identity):
            return None
        left_s = math.ceil(known.until - now)
        return ModelCooldown(
            f"{spec.id!r} failed {known.n} times in a row and is tried again in {left_s} s (force does it now); "
            f"the last reason: {known.message}",
            retry_after_s=left_s,
        )
