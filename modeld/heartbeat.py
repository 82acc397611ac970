"""Is a thread stuck? Pulse: what one thread does and since when, written by it alone; Heartbeat: what that comes to now."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """`doing` is None for a thread that sleeps until there is something to do; `age_s` is 0 then."""

    thread: str
    age_s: float  # since it began what it does
    doing: str | None
    ok: bool  # neither stuck nor ended by an exception

    def __str__(self) -> str:
        return f"{self.thread}: {self.doing} for {self.age_s:.0f} s" if self.doing is not None else f"{self.thread}: at rest"


class Pulse:
    """One thread's. That thread writes, anybody reads: a step costs a look at the clock and one reference that is replaced
    as a whole, and no lock.

    A thread that sleeps on its condition is well for ever, as is one inside a call that takes as long as it takes (a load, a
    decode); anything else is stuck when it takes too long.
    """

    __slots__ = ("_doing", "_is_dead", "thread")

    def __init__(self, thread: str) -> None:
        self.thread = thread
        self._doing: tuple[str, float, bool] | None = None  # what, since when (monotonic), whether it may take its time
        self._is_dead = False

    # -- its thread

    def rest(self) -> None:
        """It is about to sleep until there is something to do."""
        self._doing = None

    def busy(self, doing: str) -> None:
        """It does something that is over soon."""
        self._doing = (doing, time.monotonic(), False)

    def call(self, doing: str) -> None:
        """It makes one call that may take its time."""
        self._doing = (doing, time.monotonic(), True)

    def died(self, error: BaseException) -> None:
        """The exception ends it."""
        self._is_dead = True
        self._doing = (f"ended by {type(error).__name__}", time.monotonic(), False)

    # -- any thread

    def beat(self, stuck_after_s: float, *, now: float | None = None) -> Heartbeat:
        """How it is at `now` of time.monotonic()."""
        doing = self._doing  # once: it may be another one at the next look
        if doing is None:
            return Heartbeat(self.thread, 0.0, None, ok=True)
        what, since, takes_its_time = doing
        age_s = max((time.monotonic() if now is None else now) - since, 0.0)
        return Heartbeat(self.thread, age_s, what, ok=not self._is_dead and (takes_its_time or age_s <= stuck_after_s))


def one_of_each(heartbeats: Iterable[Heartbeat]) -> list[Heartbeat]:
    """The worst of each thread name: two models that are loaded have an engine each."""
    worst: dict[str, Heartbeat] = {}
    for beat in heartbeats:
        known = worst.setdefault(beat.thread, beat)
        if (known.ok, -known.age_s) > (beat.ok, -beat.age_s):
            worst[beat.thread] = beat
    return list(worst.values())
