"""How is work watched that nobody can interrupt? Watched has a thread of its own, and the switch thread is on the Lookout.

libllama's load is one C call, and a read from a disk that has gone does not return at all. Such work can be told to end only
where it reports progress, so the thread that waits for it must be another one: that one sees work that stalls, and goes on
taking messages and cancelling meanwhile.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from modeld.errors import LoadFailed, LoadStalled, ModeldError, OpCancelled
from modeld.heartbeat import Pulse
from modeld.manager.state import Lifecycle
from modeld.threads import BIG_STACK_BYTES, start_thread

log = logging.getLogger("modeld.switch")

_BUSY = "an op, or what else there is to do"

N = TypeVar("N")  # what is reported
T = TypeVar("T")  # what comes of it


class Watched(Generic[N, T]):
    """One piece of work. Made and asked by the switch thread; `_run` and `_report` are the work's thread."""

    def __init__(
        self,
        work: Callable[[Callable[[N | None], bool]], T],
        *,
        thread: str,
        ending: Callable[[], ModeldError | None],
        poke: Callable[[], None],
        discard: Callable[[T], None],
    ) -> None:
        """`thread` is the name of its thread. `work` is handed a function that takes its news (None: it goes on) and answers
        False when it is to end. `ending` says why that is.
        `poke` wakes the switch thread. `discard` gets what comes of work that was left to itself.

        Raises LoadFailed when the system has no thread for it.
        """
        self._work = work
        self.ending = ending
        self._poke = poke
        self._discard = discard
        self._news: queue.SimpleQueue[N] = queue.SimpleQueue()
        self._told: ModeldError | None = None  # what the work was told when it reported last
        self._lock = threading.Lock()
        # Guards the four below: whether the work's end is taken or left behind is decided once.
        self._result: list[T] = []  # one, or none
        self._error: Exception | None = None
        self._is_finished = False
        self._is_abandoned = False
        self.heard_at = time.monotonic()  # of the work, last; written by its thread
        try:
            start_thread(thread, self._run, stack_bytes=BIG_STACK_BYTES)
        except RuntimeError as error:
            raise LoadFailed(f"the system refuses another thread: {error}") from error

    # -- the switch thread

    def news(self) -> list[N]:
        """What was reported since the last call, in its order."""
        found = []
        while True:
            try:
                found.append(self._news.get_nowait())
            except queue.Empty:
                return found

    @property
    def is_finished(self) -> bool:
        with self._lock:
            return self._is_finished

    def result(self) -> T:
        """After the end. Raises what the work raised, OpCancelled where it was told to end."""
        with self._lock:
            assert self._is_finished
            result, error = self._result, self._error
        if error is None:
            return result[0]
        if self._told is not None and not isinstance(error, OpCancelled):
            raise OpCancelled(str(self._told)) from error
        raise error

    def abandon(self) -> bool:
        """Leave it to itself: whatever it comes to is discarded by its own thread. False: it has ended by now. Idempotent."""
        with self._lock:
            self._is_abandoned = self._is_abandoned or not self._is_finished
            return self._is_abandoned

    def give_up(self) -> None:
        """Nobody will use what it comes to, or has come to."""
        if not self.abandon():
            for each in self._result:
                self._discard(each)

    # -- the work's thread

    def _run(self) -> None:
        result, error = [], None
        try:
            result = [self._work(self._report)]
        except Exception as raised:  # noqa: BLE001 - result() raises it where somebody waits
            error = raised
        with self._lock:
            self._result, self._error, self._is_finished = result, error, True
            abandoned = self._is_abandoned
        if abandoned:
            log.warning("work that was given up has ended after all")
            for each in result:
                self._discard(each)
        self._poke()

    def _report(self, news: N | None) -> bool:
        self.heard_at = time.monotonic()
        if news is not None:
            self._news.put(news)
            self._poke()
        with self._lock:
            abandoned = self._is_abandoned
        self._told = self.ending()
        return self._told is None and not abandoned


class Lookout:
    """How the switch thread waits in the middle of an op: it goes on with what cannot wait. Its alone."""

    def __init__(self, life: Lifecycle, chores: Callable[[], None], pulse: Pulse) -> None:
        """`chores` is called whenever the thread wakes: messages, and events of ops that ended while they waited. `pulse` is
        the thread's."""
        self._life = life
        self._chores = chores
        self._pulse = pulse

    def wait(self, done: Callable[[], bool], deadline: float) -> bool:
        """Until `done`, which is asked whenever something happens; False: it is `deadline` (monotonic) first."""
        while True:
            seen = self._life.ticks()
            self._chores()
            if done():
                return True
            if not self.pause(seen, deadline):
                return done()

    def pause(self, seen: int, deadline: float) -> bool:
        """Sleep: see Lifecycle.pause."""
        self._pulse.rest()
        try:
            return self._life.pause(seen, deadline)
        finally:
            self._pulse.busy(_BUSY)

    @contextmanager
    def call(self, doing: str) -> Iterator[None]:
        """The thread waits for others, which have pulses of their own: whether they hang is told by these."""
        self._pulse.call(doing)
        try:
            yield
        finally:
            self._pulse.busy(_BUSY)

    def watch(self, what: str, watched: Watched[N, T], on_news: Callable[[N], None], stall_s: float) -> T:
        """What comes of the work, whose news are passed on meanwhile. Raises LoadStalled when there is none for too long."""

        def ended() -> bool:
            finished = watched.is_finished  # before its news is taken: none comes after the end
            for news in watched.news():
                on_news(news)
            return finished

        try:
            while not self.wait(ended, watched.heard_at + stall_s):
                if time.monotonic() - watched.heard_at >= stall_s and watched.abandon():
                    stalled = LoadStalled(f"{what} made no progress for {stall_s:.0f} s (switching.load_stall_timeout_s)")
                    raise watched.ending() or stalled
        except Exception:
            watched.give_up()
            raise
        return watched.result()

    def raise_if_ending(self) -> None:
        """Raises why the running op must end, if it must."""
        if (why := self._life.ending()) is not None:
            raise why
