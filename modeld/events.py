"""Who is told what, in which order? Event, EventHub, Subscription: rising ids and a ring of recent events for all readers.

The switch thread publishes; it hands in, with each event, the daemon's status as that event left it, so that a snapshot
and the id it stands at are one thing, taken under one lock.

There is one ring and no queue for each subscriber: a subscription is a position in the ring. Publishing costs the same
whoever reads, a slow reader costs no memory, and it is dropped only when the ring has run over what it has not read yet.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import islice

from modeld.errors import ShuttingDown, TooManyConnections
from modeld.types import Status

RING_SIZE = 1024  # events that a slow or reconnecting client can still get; one load makes about 200
MAX_SUBSCRIBERS = 256


@dataclass(frozen=True, slots=True)
class Event:
    """`id` is `<start of the process>-<number>`; `data` is JSON-ready and never mutated."""

    id: str
    name: str
    data: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The status as the event `id` left it; the first thing a subscriber gets unless it resumes.

    `resync`: the client named an id that is no longer held, or of an earlier life.
    """

    id: str
    status: Status
    resync: bool


class SubscriptionEnded(Exception):
    """No event will come any more: the subscription or the hub was closed, or the reader fell behind and was dropped.

    A dropped reader has missed events; it reconnects with the last id it got and is told to resync.
    """


class EventHub:
    """Numbers events, keeps the last RING_SIZE of them and wakes whoever reads."""

    def __init__(self, status: Status, max_subscribers: int = MAX_SUBSCRIBERS) -> None:
        """`status` is what the daemon says before the first event; a snapshot of it has number 0."""
        self._start = f"{time.time_ns():x}{os.getpid():x}"  # another one in each life of the daemon; no '-' inside
        self._max_subscribers = max_subscribers
        self._cond = threading.Condition()
        # Guards all below. Notified on every event and every close; nobody writes to a socket while holding it.
        self._status = status  # as the latest event left it
        self._last = 0  # number of the latest event
        self._ring: deque[Event] = deque(maxlen=RING_SIZE)  # numbers _last-len+1 .. _last
        self._subscribers: set[Subscription] = set()
        self._wakes: set[Callable[[], None]] = set()  # called after each event and at the end, without the lock
        self._closed = False

    def publish(self, name: str, data: Mapping[str, object], status: Status) -> Event:
        """Append an event that left the daemon in `status`. Switch thread; never waits for a reader."""
        with self._cond:
            self._last += 1
            event = Event(self._id(self._last), name, data)
            self._ring.append(event)
            self._status = status
            self._cond.notify_all()
            wakes = tuple(self._wakes)
        for wake in wakes:
            wake()
        return event

    def subscribe(self, last_event_id: str | None, status_now: Status) -> Subscription:
        """Follow from now on, or from the event after `last_event_id` where the ring still holds it.

        What moves without events (queued ops, load, uptime) is taken from `status_now`.
        Raises ShuttingDown, TooManyConnections.
        """
        with self._cond:
            if self._closed:
                raise ShuttingDown("the daemon is stopping")
            if len(self._subscribers) >= self._max_subscribers:
                raise TooManyConnections(f"{self._max_subscribers} clients follow the events already", retry_after_s=10)
            resumed = self._number(last_event_id) if last_event_id else None
            if resumed is not None:
                subscription = Subscription(self, None, resumed + 1)
            else:
                status = replace(
                    self._status, queued_ops=status_now.queued_ops, load=status_now.load, uptime_s=status_now.uptime_s
                )
                snapshot = Snapshot(self._id(self._last), status, resync=bool(last_event_id))
                subscription = Subscription(self, snapshot, self._last + 1)
            self._subscribers.add(subscription)
        return subscription

    @property
    def n_subscribers(self) -> int:
        with self._cond:
            return len(self._subscribers)

    def close(self) -> None:
        """End every subscription after what it has not read yet. Idempotent."""
        with self._cond:
            self._closed = True
            self._subscribers.clear()
            self._cond.notify_all()
            wakes = tuple(self._wakes)
        for wake in wakes:
            wake()

    # -- called by Subscription

    def _take(self, subscription: Subscription, timeout_s: float | None) -> tuple[Event, ...]:
        with self._cond:
            self._cond.wait_for(lambda: self._last >= subscription._next or subscription not in self._subscribers, timeout_s)
            skip = subscription._next - (self._last - len(self._ring) + 1)
            if skip < 0:
                self._subscribers.discard(subscription)
                raise SubscriptionEnded(f"{-skip} events were lost: the reader is more than {RING_SIZE} events behind")
            events = tuple(islice(self._ring, skip, None))
            if not events and subscription not in self._subscribers:
                raise SubscriptionEnded("the subscription was closed")
            subscription._next = self._last + 1
        return events

    def _on_event(self, wake: Callable[[], None]) -> None:
        with self._cond:
            self._wakes.add(wake)

    def _drop(self, subscription: Subscription) -> None:
        with self._cond:
            if subscription in self._subscribers:
                self._subscribers.remove(subscription)
                self._cond.notify_all()

    # -- _cond held

    def _id(self, number: int) -> str:
        return f"{self._start}-{number}"

    def _number(self, event_id: str) -> int | None:
        """The number of an id from which a reader can go on; None where it cannot (or the id is none of ours)."""
        start, _, digits = event_id.partition("-")
        if start != self._start or not (digits.isascii() and digits.isdigit()) or len(digits) > 18:
            return None
        number = int(digits)
        held_from = self._last - len(self._ring) + 1
        return number if held_from - 1 <= number <= self._last and event_id == self._id(number) else None


class Subscription:
    """A place in the event stream. One thread takes; `close` may come from any."""

    def __init__(self, hub: EventHub, first: Snapshot | None, next_number: int) -> None:
        self.first = first  # None: a replay, which starts with what was missed
        self._hub = hub
        self._next = next_number  # guarded by the hub's lock

    def take(self, timeout_s: float | None) -> tuple[Event, ...]:
        """All events that are pending, as soon as there is one; () when the time is over.

        Raises SubscriptionEnded.
        """
        return self._hub._take(self, timeout_s)

    def on_event(self, wake: Callable[[], None]) -> None:
        """Call `wake` after each event, and when the hub closes, for a reader that takes with no time to wait.

        It runs on the thread that publishes, must not wait, and stays for the life of the hub: a reader of many subscriptions
        gives the same one for all, and is called once.
        """
        self._hub._on_event(wake)

    def close(self) -> None:
        """Idempotent; a take that waits ends."""
        self._hub._drop(self)
