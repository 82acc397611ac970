"""What is one opened model to the manager? Tenant: its entry, its file, its runner, who is on the way into it."""

from __future__ import annotations

from dataclasses import dataclass

from modeld.manager.runner import Runner
from modeld.types import ModelSpec

Identity = tuple[int, int, int, int]


@dataclass(eq=False, slots=True)
class Tenant:
    """One model that was opened; `death` and all below it are guarded by the Lifecycle's condition, the rest is set before
    it is shared."""

    spec: ModelSpec
    identity: Identity | None  # of its file, before it was opened
    runner: Runner | None = None
    resident_bytes: int = 0  # by which the process grew when it was loaded
    death: Exception | None = None
    n_entering: int = 0  # requests that were let in and have not reached the runner's own count yet
    since: float = 0.0  # when it began to answer, on the monotonic clock
    used_at: float = 0.0  # when a request last entered, or the last one ended
    leave_by: float = 0.0  # while it retires: when its last requests are cut; during ready_delay_s: when admission stops
