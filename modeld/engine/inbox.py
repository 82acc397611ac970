"""How do handlers reach an engine's thread? Inbox: places, submissions, cancellations, the stop, and the load it tells of."""

from __future__ import annotations

import copy
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from modeld.errors import ModeldError, QueueFull
from modeld.heartbeat import Pulse
from modeld.types import Load, Share

queue_log = logging.getLogger("modeld.queue")

T = TypeVar("T")


class Inbox(Generic[T]):
    """What one engine is asked for, as items of type T. Methods are grouped by the thread that calls them.

    An engine keeps what its own messages depend on under `lock`, too, and may look into the fields while it holds it.
    """

    def __init__(self, model_id: str, n_slots: int, capacity: int, describe_full: Callable[[int, int], str]) -> None:
        """`capacity`: places, for requests that run or wait. `describe_full` gets slots in use and places taken when no
        place is left, and says so."""
        self.capacity = capacity
        self._model_id = model_id
        self._n_slots = n_slots
        self._describe_full = describe_full
        self.pulse = Pulse("modeld-engine")  # the engine thread's
        self.lock = threading.Condition()
        # Guards all below; notified when a submission, a cancellation or the stop arrives. Never held in a decode.
        self.submitted: deque[T] = deque()
        self.cancelled: deque[T] = deque()
        self.n_open = 0  # places taken: admitted and not ended, those being tokenized included
        self.n_busy = 0  # slots in use
        self.n_served = 0  # of the places taken, those that have a slot
        self._waiting: dict[str, int] = {}  # of the places taken, those whose turn has not come, by client; none is 0
        self.stop: ModeldError | None = None  # why nothing is accepted any more
        self._on_idle: Callable[[], None] = lambda: None
        self._went_idle = False  # the last open one has ended, and _on_idle was not called yet

    # -- handlers

    def most(self, share: Share) -> int:
        """How many places one request can have at all."""
        return min(self.capacity, self._n_slots + share.max_queued) if share.max_queued else self.capacity

    def reserve(self, n: int, share: Share) -> None:
        """Take n places (1..most) for what is about to be tokenized, all or none. Raises QueueFull, or why it stopped."""
        with self.lock:
            self._check_open()
            own = self._waiting.get(share.client, 0)
            # Who waits while slots are free is on the way into one: of all that are open, so many are left over.
            n_left_over = min(own + n, self.n_open + n - self._n_slots)
            if self.n_open + n > self.capacity:
                full = f"{self._describe_full(self.n_busy, self.n_open)}: model '{self._model_id}' takes no more now; try again"
            elif share.max_queued and n_left_over > share.max_queued:
                full = (
                    f"{own} requests of this client wait for model '{self._model_id}' and this one asks for {n} more; its share "
                    f"of the queue is {share.max_queued} (limits.max_queued); try again"
                )
            else:
                self.n_open += n
                self._waiting[share.client] = own + n
                return
            n_waiting = self.n_open - self.n_served
        queue_log.warning("queue full", extra={"model_id": self._model_id, "waiting": n_waiting, "waiting_of_client": own})
        raise QueueFull(full, retry_after_s=1)

    def release(self, n: int, client: str) -> None:
        """Give back places that led to no submission."""
        with self.lock:
            self.n_open -= n
            self._wait_no_more(client, n)
            idle, on_idle = self.n_open == 0, self._on_idle
        if idle:
            on_idle()

    def submit(self, items: Iterable[T]) -> None:
        """Hand over what has its places. Raises why the engine stopped; the places are then still the caller's."""
        with self.lock:
            self._check_open()
            self.submitted += items
            self.lock.notify()

    def _wait_no_more(self, client: str, n: int = 1) -> None:
        """`lock` held."""
        if left := self._waiting[client] - n:
            self._waiting[client] = left
        else:
            del self._waiting[client]

    def _check_open(self) -> None:
        if self.stop is not None:
            raise copy.copy(self.stop)  # a copy: each raise adds its traceback

    # -- any thread

    def cancel(self, items: Iterable[T]) -> None:
        """Ask the engine to end these, unless they have ended meanwhile."""
        with self.lock:
            self.cancelled += items
            self.lock.notify()

    def load(self) -> Load:
        """Busy slots, and the places taken that have none."""
        with self.lock:
            return Load(self._n_slots, self.n_busy, self.n_open - self.n_served)

    # -- the switch thread

    def on_idle(self, callback: Callable[[], None]) -> None:
        """Call this whenever the last open one has ended: see EngineRunner.on_idle."""
        with self.lock:
            self._on_idle = callback

    def close(self, reason: ModeldError, abort: Callable[[], None]) -> None:
        """Accept nothing more, and `abort` the running decode. Idempotent."""
        with self.lock:
            if self.stop is None:
                self.stop = reason
                abort()  # under the same lock as `stop`: no later decode exists that it could hit by mistake
            self.lock.notify()

    # -- the engine thread

    def wait(self, has_work: Callable[[], bool]) -> None:
        """Until there is a message, or work in any case. `lock` held."""

        def is_there() -> bool:
            return bool(self.submitted or self.cancelled) or self.stop is not None or has_work()

        if not is_there():
            self.pulse.rest()
            self.lock.wait_for(is_there)
        self.pulse.busy("a step")

    def take(self) -> tuple[deque[T], deque[T]]:
        """All submissions and cancellations. `lock` held."""
        submitted, self.submitted = self.submitted, deque()
        cancelled, self.cancelled = self.cancelled, deque()
        return submitted, cancelled

    def note(self, n_busy: int, n_served: int, placed: Iterable[str] = ()) -> None:
        """What the engine works on now. `placed`: the client of each that has waited and got its slot."""
        with self.lock:
            self.n_busy, self.n_served = n_busy, n_served
            for client in placed:
                self._wait_no_more(client)

    def leave(self, n: int, n_busy: int, n_served: int, waited: Iterable[str] = ()) -> None:
        """n have ended: their places are free before their end is told. `waited`: the client of each of them that had no slot
        yet. The others as in note()."""
        with self.lock:
            self.n_open -= n
            self.n_busy, self.n_served = n_busy, n_served
            for client in waited:
                self._wait_no_more(client)
            if n:
                self._went_idle = self.n_open == 0

    def tell_if_idle(self) -> None:
        """Say that the last open one has ended, unless there is another by now. After its end was told; no lock held."""
        if not self._went_idle:  # only this thread sets it
            return
        with self.lock:
            self._went_idle = False
            idle, on_idle = self.n_open == 0, self._on_idle
        if idle:
            on_idle()

    def end(self, reason: ModeldError) -> tuple[ModeldError, deque[T]]:
        """Accept nothing more, for `reason` unless there was one before: which of them it is, and what was not taken yet."""
        with self.lock:
            if self.stop is None:
                self.stop = reason
            submitted, self.submitted = self.submitted, deque()
            return self.stop, submitted
