"""Are all threads well? Watchdog: looks now and then, says in the log who is stuck, and tells nobody that all is well then."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from modeld.heartbeat import Heartbeat
from modeld.threads import start_thread

log = logging.getLogger("modeld")


class Watchdog:
    """The thread `modeld-watchdog`. Main thread: start, close."""

    def __init__(self, heartbeats: Callable[[], Sequence[Heartbeat]], alive: Callable[[], None], interval_s: float) -> None:
        """`alive` is called at each look that finds all threads well."""
        self._heartbeats = heartbeats
        self._alive = alive
        self._interval_s = interval_s
        self._unwell: set[str] = set()  # threads that were told of
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Once."""
        self._thread = start_thread("modeld-watchdog", self._run)

    def close(self) -> None:
        """Idempotent."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def look(self) -> bool:
        """One look: whether all are well."""
        unwell = {beat.thread: beat for beat in self._heartbeats() if not beat.ok}
        for thread, beat in unwell.items():
            if thread not in self._unwell:
                log.error("a thread is not well: %s", beat, extra={"unwell": thread, "doing": beat.doing})
        for thread in self._unwell.difference(unwell):
            log.warning("a thread is well again: %s", thread, extra={"well": thread})
        self._unwell = set(unwell)
        if not unwell:
            self._alive()
        return not unwell

    def _run(self) -> None:
        while True:
            self.look()
            if self._closed.wait(self._interval_s):
                return
