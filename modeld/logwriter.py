"""Who writes the log? LogWriter: one thread, so that a reader who stalls, or a disk that is full, stops nobody else.

A thread that logs makes its line and lays it down. There is room for so many lines; while they are not taken, further ones are
dropped and counted, and when the reader goes on, a line tells how many.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections import deque

from modeld.threads import start_thread

N_LINES = 8192
_LINES_A_WRITE = 256
CLOSE_S = 2.0  # for the last lines at the end


class LogWriter(logging.Handler):
    """The handler of all loggers, and the thread `modeld-log`. Any thread logs; its owner closes it."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._cond = threading.Condition()
        # Guards all below. Notified when there is a line for a writer that has none, and at the end. Not held while writing.
        self._lines: deque[str] = deque()
        self._n_dropped = 0
        self._n_untold = 0  # of these, since the last line that tells of it
        self._closing = False
        self._thread = start_thread("modeld-log", self._run)

    @property
    def n_dropped(self) -> int:
        """Lines that were not written: nobody took them in time, or the write failed."""
        with self._cond:
            return self._n_dropped

    def emit(self, record: logging.LogRecord) -> None:
        """Lay the line down; never waits for its reader."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - a line that cannot be made must not stop what it tells of
            self._drop(1)
            return
        with self._cond:
            if len(self._lines) >= N_LINES or self._closing:
                self._n_dropped += 1
                self._n_untold += 1
                return
            self._lines.append(line)
            self._cond.notify()

    def close(self) -> None:
        """Write what is laid down, for CLOSE_S at most, and end. What is logged later is lost. Idempotent."""
        with self._cond:
            if self._closing:
                return
            self._closing = True
            self._cond.notify()
        self._thread.join(CLOSE_S)
        super().close()

    def _drop(self, n: int, *, n_untold: int = 0) -> None:
        """`n_untold`: those dropped before whose loss was to be told and was not."""
        with self._cond:
            self._n_dropped += n
            self._n_untold += n + n_untold

    # -- the writer's thread

    def _run(self) -> None:
        is_torn = False  # what was written last ends in the middle of a line
        while True:
            with self._cond:
                self._cond.wait_for(lambda: self._lines or self._closing)
                lines = [self._lines.popleft() for _ in range(min(len(self._lines), _LINES_A_WRITE))]
                n_untold, self._n_untold = self._n_untold, 0
            text = [*lines, self._format_loss(n_untold)] if n_untold else lines
            data = "".join(f"{line}\n" for line in text).encode("utf-8", "backslashreplace")
            if is_torn:
                data = b"\n" + data
            n_written = write_all(self._fd, data)
            if n_written < len(data):
                self._drop(len(lines), n_untold=n_untold)
            if n_written:
                is_torn = data[n_written - 1 : n_written] != b"\n"
            if not lines:  # the end
                return

    def _format_loss(self, n: int) -> str:
        record = {
            "name": "modeld",
            "levelno": logging.WARNING,
            "levelname": "WARNING",
            "msg": "log lines were dropped",
            "lines": n,
        }
        return self.format(logging.makeLogRecord(record))


def write_all(fd: int, data: bytes) -> int:
    """However long it takes. How many bytes were taken: fewer where the reader has gone or the disk is full; it may be another
    one, or have room, by the next line."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # somebody who shares it has made it so
            _wait_writable(fd)
        except OSError:
            break
    return len(data) - len(view)


def _wait_writable(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll()
