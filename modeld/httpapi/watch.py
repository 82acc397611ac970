"""Which client left without a word? One thread asks the kernel, for all requests that wait.

A handler that waits for tokens or events does not touch its socket, so it would learn at its next write at the
earliest. EPOLLRDHUP comes with a FIN or a half close, EPOLLHUP and EPOLLERR with a reset; none of them is hidden by
pipelined bytes that nobody has read (as a MSG_PEEK would be). An epoll set rather than poll(): a socket that is added
is watched at once, without waking the thread for each request.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable

from modeld.heartbeat import Pulse
from modeld.threads import start_thread

log = logging.getLogger("modeld.http")

_GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class ClientWatch:
    """Calls back, once, when the peer of a watched socket is gone. `add` and `remove` from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Guards _callbacks and, with it, what is in _epoll: a descriptor is in both or in neither. Not held in calls back.
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._closed = False
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        self.pulse = Pulse("modeld-watch")
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = start_thread(self.pulse.thread, self._run, pulse=self.pulse)

    def add(self, fd: int, on_gone: Callable[[], None]) -> None:
        """Watch fd until `remove`, which must come before fd is closed. `on_gone` runs on the watch thread: it must not wait."""
        with self._lock:
            if self._closed:
                return
            self._epoll.register(fd, _GONE)  # first: where the kernel has no room for it, there is nothing to remove
            self._callbacks[fd] = on_gone

    def remove(self, fd: int) -> None:
        """Idempotent. A call back that has begun may still be running when this returns."""
        with self._lock:
            if self._callbacks.pop(fd, None) is not None:
                self._epoll.unregister(fd)

    def close(self) -> None:
        """End and join the thread; nothing is called back afterwards. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._callbacks.clear()
        os.eventfd_write(self._wake, 1)
        if self._thread is not None:
            self._thread.join()
        self._epoll.close()
        os.close(self._wake)

    # -- watch thread

    def _run(self) -> None:
        while True:
            self.pulse.rest()
            left = self._epoll.poll()
            self.pulse.busy("telling requests that their clients left")
            for fd, _ in left:
                if fd == self._wake:
                    self.pulse.rest()
                    return
                if on_gone := self._take_gone(fd):
                    try:
                        on_gone()
                    except Exception:  # one request's fault must not end the watch of all others
                        log.exception("telling a request that its client left failed")

    def _take_gone(self, fd: int) -> Callable[[], None] | None:
        """The call back of a descriptor whose peer is gone now.

        The number may have been closed and given to another connection since the epoll woke: so the kernel is asked
        again, under the lock that keeps it from being removed (and thus closed) meanwhile.
        """
        with self._lock:
            if fd not in self._callbacks:
                return None
            again = select.poll()
            again.register(fd, select.POLLRDHUP)
            if not again.poll(0):
                return None
            self._epoll.unregister(fd)
            return self._callbacks.pop(fd)
