"""Who writes the events to all who follow them? Followers: one thread for the idle connections of /events.

A thread for each reader would do, but 1,000 of them wake up for each event, and each takes the interpreter lock from the
engine and from the load that makes the event: a switch that took 0.1 s took 2 s. Here an event is encoded once, and what is
pending goes out with one call for each reader. A handler hands its connection over once the head and the first frames are
out (`add`), and its thread ends.

A follower is in exactly one of three queues: `silent` (gets a comment when nothing came for a while), `stalled` (its kernel did
not take all; it is cut when it does not go on), `leaving` (its stream has ended; what it still sends is read away, so that the
last bytes arrive). Nothing is taken from the hub for one that is stalled: what it misses stays in the hub's ring, and who falls
out of that finds the stream ended.

Who watches the load gets a look at it once a second (load.py), unless stalled: then it misses looks, and gets the latest once it
is not.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from modeld.events import RING_SIZE, Event, Subscription, SubscriptionEnded
from modeld.heartbeat import Pulse
from modeld.httpapi import sse
from modeld.httpapi.connection import Connection, Disconnected
from modeld.httpapi.limits import Limits
from modeld.httpapi.load import LoadFeed
from modeld.httpapi.message import LAST_FRAME, chunk
from modeld.threads import start_thread

log = logging.getLogger("modeld.http")

_GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class BegunResponse(Protocol):
    """The exchange that has begun the response; all on the thread of Followers."""

    def refusal(self) -> bytes:
        """The last frame, where the caller is let in no longer; else nothing."""

    def settle(self) -> None:
        """Its end goes out now. Idempotent."""

    def conclude(self) -> None:
        """It is over. Once."""


@dataclass(slots=True, eq=False)
class Follower:
    """A connection whose response is the events from now on. The thread of Followers closes both it and the subscription."""

    connection: Connection
    subscription: Subscription
    chunked: bool
    response: BegunResponse
    before: bytes  # goes in front of the next event's lines
    figures: bool = False  # it watches the load, too
    unsent: bytes | memoryview = b""
    last: bool = False  # nothing comes behind what is unsent


class _Queue:
    """Followers in the order in which their time is over; all get the same time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until: dict[Follower, float] = {}

    def put(self, follower: Follower) -> None:
        """At the end, also where it is here already."""
        self._until.pop(follower, None)
        self._until[follower] = time.monotonic() + self._seconds

    def discard(self, follower: Follower) -> None:
        self._until.pop(follower, None)

    def __contains__(self, follower: Follower) -> bool:
        return follower in self._until

    def members(self) -> list[Follower]:
        return list(self._until)

    def next(self) -> float | None:
        """When the first one's time is over."""
        return next(iter(self._until.values()), None)

    def due(self) -> list[Follower]:
        now = time.monotonic()
        found = []
        for follower, until in self._until.items():
            if until > now:
                break
            found.append(follower)
        return found


class Followers:
    """`start` and `close` from one thread, `add` and `wake` from any; all else on the thread `modeld-events`."""

    def __init__(self, limits: Limits, release: Callable[[Connection], None], load: LoadFeed) -> None:
        """`release` is told of each connection that was closed here."""
        self._release = release
        self._load = load
        self._lock = threading.Lock()
        # Guards _added, _closed and, with it, that the descriptor of _wake is ours.
        self._added: list[Follower] = []
        self._closed = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(self._wake, select.EPOLLIN)
        self.pulse = Pulse("modeld-events")
        self._thread: threading.Thread | None = None
        # The thread's own:
        self._by_fd: dict[int, Follower] = {}
        self._watching: dict[Follower, bytes] = {}  # the load, and the look at it that each was sent last; of those in _by_fd
        self._silent = _Queue(limits.heartbeat_s)
        self._stalled = _Queue(limits.send_s)
        self._leaving = _Queue(limits.linger_s)
        self._encoded: dict[str, bytes] = {}  # by the event's id; frames that followers may still want
        self._joined: dict[tuple[str, str, bool], bytes] = {}  # of this round: first and last event, chunked

    def start(self) -> None:
        self._thread = start_thread(self.pulse.thread, self._run, pulse=self.pulse)

    def add(self, follower: Follower) -> None:
        """Take it over; what its connection has sent so far is all in the kernel's hands."""
        with self._lock:
            if not self._closed:
                self._added.append(follower)
                os.eventfd_write(self._wake, 1)
                return
        self._drop(follower)

    def wake(self) -> None:
        """There are events. Never waits."""
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """End and join the thread; followers that are left are cut. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            os.eventfd_write(self._wake, 1)
        if self._thread is not None:
            self._thread.join()
        for follower in [*self._by_fd.values(), *self._added]:
            self._drop(follower)
        self._epoll.close()
        os.close(self._wake)

    # -- the thread

    def _run(self) -> None:
        while not self._closed:
            self.pulse.rest()
            ready = self._epoll.poll(self._patience_s())
            self.pulse.busy("writing events to those who follow them")
            for fd, happened in ready:
                if fd == self._wake:
                    os.eventfd_read(self._wake)
                    self._take_over()
                    self._tell_all()
                elif (follower := self._by_fd.get(fd)) is not None:
                    self._guarded(self._happened, follower, happened)
            self._look_at_the_clock()
        self.pulse.rest()

    def _patience_s(self) -> float:
        """Until the first follower's time is over, or the next look at the load is due."""
        ends = [end for queue in (self._silent, self._stalled, self._leaving) if (end := queue.next()) is not None]
        if self._watching:
            ends.append(self._load.due)
        return max(0.0, min(ends) - time.monotonic()) if ends else -1

    def _take_over(self) -> None:
        with self._lock:
            added, self._added = self._added, []
        for follower in added:
            self._guarded(self._register, follower)

    def _register(self, follower: Follower) -> None:
        fd = follower.connection.sock.fileno()
        self._by_fd[fd] = follower
        self._silent.put(follower)
        self._epoll.register(fd, select.EPOLLRDHUP)
        follower.subscription.on_event(self.wake)
        if follower.figures:
            self._watching[follower] = b""
            self._pass(follower, self._load.latest())

    def _tell_all(self) -> None:
        for follower in self._silent.members():
            self._guarded(self._tell, follower)
        self._joined.clear()

    def _look_at_the_clock(self) -> None:
        for follower in self._silent.due():
            self._guarded(self._keep_alive, follower)
        for follower in (*self._stalled.due(), *self._leaving.due()):
            self._drop(follower)
        if self._watching and time.monotonic() >= self._load.due:
            self._look_at_the_load()

    def _look_at_the_load(self) -> None:
        try:
            frame = self._load.look()
        except Exception:  # whatever it is, events go on
            log.exception("a fault while looking at the load")
            self._watching.clear()
            return
        for follower, told in list(self._watching.items()):
            if told is not frame:  # it has moved, or moved while this one was stalled, or when somebody else began to watch
                self._guarded(self._pass, follower, frame)

    def _guarded(self, step: Callable[..., None], follower: Follower, *more: object) -> None:
        """One follower's fault must not end the streams of all others."""
        try:
            step(follower, *more)
        except Disconnected:
            self._drop(follower)
        except Exception:
            log.exception("a fault while writing events; the connection is cut")
            self._drop(follower)

    # -- one follower

    def _happened(self, follower: Follower, happened: int) -> None:
        if follower in self._leaving:
            if not follower.connection.read_away():
                self._drop(follower)
        elif happened & _GONE:
            self._drop(follower)
        elif happened & select.EPOLLOUT:
            unsent, follower.unsent = follower.unsent, b""
            self._send(follower, unsent)
            if not follower.unsent and not follower.last:
                self._tell(follower)

    def _tell(self, follower: Follower) -> None:
        """Send all that is pending; at the end of the subscription, the end of the stream.

        Events and the end behind them may have come with one wake, and nobody wakes again for the end: so it looks until it
        finds nothing.
        """
        while follower in self._silent:
            try:
                events = follower.subscription.take(0)
            except SubscriptionEnded:
                self._end(follower)
                return
            if not events:
                return
            if refusal := follower.response.refusal():
                self._end(follower, refusal)
            else:
                self._send_events(follower, events)

    def _send_events(self, follower: Follower, events: tuple[Event, ...]) -> None:
        if follower.before:
            frames = [self._frame(event) for event in events]
            frames[0], follower.before = follower.before + frames[0], b""
            self._send(follower, b"".join(map(chunk, frames) if follower.chunked else frames))
        else:
            self._send(follower, self._bytes_of(events, follower.chunked))

    def _pass(self, follower: Follower, frame: bytes) -> None:
        """Send what is not kept: one that has not taken what came before gets what holds then, once it has."""
        if follower not in self._silent:
            return
        self._watching[follower] = frame
        if refusal := follower.response.refusal():
            self._end(follower, refusal)
        else:
            self._send(follower, chunk(frame) if follower.chunked else frame)

    def _keep_alive(self, follower: Follower) -> None:
        if refusal := follower.response.refusal():
            self._end(follower, refusal)
        else:
            self._send(follower, chunk(sse.KEEP_ALIVE) if follower.chunked else sse.KEEP_ALIVE)

    def _end(self, follower: Follower, frame: bytes = b"") -> None:
        """The last frame, where there is one, and the end of the stream."""
        follower.subscription.close()
        follower.response.settle()
        follower.last = True
        last = chunk(frame) + chunk(LAST_FRAME) if frame else chunk(LAST_FRAME)
        self._send(follower, last if follower.chunked else frame)

    def _bytes_of(self, events: tuple[Event, ...], chunked: bool) -> bytes:
        key = (events[0].id, events[-1].id, chunked)
        data = self._joined.get(key)
        if data is None:
            frames = map(self._frame, events)
            data = self._joined[key] = b"".join(map(chunk, frames) if chunked else frames)
        return data

    def _frame(self, event: Event) -> bytes:
        frame = self._encoded.get(event.id)
        if frame is None:
            if len(self._encoded) >= RING_SIZE:
                del self._encoded[next(iter(self._encoded))]
            frame = self._encoded[event.id] = sse.event_frame(event.id, event.name, dict(event.data))
        return frame

    def _send(self, follower: Follower, data: bytes | memoryview) -> None:
        """Hand over what fits; the rest waits until the kernel has room. Raises Disconnected."""
        n_sent = follower.connection.send_some(data) if data else 0
        if n_sent < len(data):
            follower.unsent = memoryview(data)[n_sent:]
            if follower not in self._stalled:  # its time runs on while it takes a little
                self._silent.discard(follower)
                self._stalled.put(follower)
                self._epoll.modify(follower.connection.sock, select.EPOLLRDHUP | select.EPOLLOUT)
            return
        if follower in self._stalled:
            self._stalled.discard(follower)
            self._epoll.modify(follower.connection.sock, select.EPOLLRDHUP)
        if not follower.last:
            self._silent.put(follower)
            return
        self._silent.discard(follower)
        self._leaving.put(follower)
        with contextlib.suppress(OSError):
            follower.connection.sock.shutdown(socket.SHUT_WR)
        self._epoll.modify(follower.connection.sock, select.EPOLLRDHUP | select.EPOLLIN)

    def _drop(self, follower: Follower) -> None:
        """Close it. A connection whose end went out whole has nothing unread at the other side that a reset could take away."""
        fd = follower.connection.sock.fileno()
        if self._by_fd.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)
        for queue in (self._silent, self._stalled, self._leaving):
            queue.discard(follower)
        self._watching.pop(follower, None)
        follower.subscription.close()
        if follower.last and not follower.unsent:
            follower.connection.sock.close()
        else:
            follower.connection.abort()
        try:
            follower.response.conclude()
        except Exception:
            log.exception("a fault at the end of a stream of events")
        self._release(follower.connection)
