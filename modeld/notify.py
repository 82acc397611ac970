"""What is the service manager told? Notifier: systemd's protocol, one datagram a message to $NOTIFY_SOCKET (sd_notify(3))."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Mapping

from modeld.types import State, Status

log = logging.getLogger("modeld")

WAIT_S = 5.0  # for room in the service manager's queue, with what it must hear: it kills who says no READY=1
PROGRESS_EVERY_S = 0.5  # percents of one step are told so often at most; what comes next is told at once

_MAX_STATUS_CHARS = 200


class Notifier:
    """Says nothing where nobody listens. Any thread; never raises: a message that cannot be sent is logged.

    `ready`, `reloading` and `stopping` wait for room in a full queue, WAIT_S at most; the others never wait.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._socket: socket.socket | None = None
        self.watchdog_s = _watchdog_s(environ) if self._address is not None else None  # within which it wants `alive`; None: not
        self._lock = threading.Lock()
        # Guards all below, and makes statuses leave in the order in which they are said. Sending under it does not wait.
        self._status = ""  # what holds
        self._told = ""  # what was heard last
        self._told_doing: object = None  # the op and the step that it was about
        self._told_at = float("-inf")
        self._stops_until = float("-inf")  # monotonic; the end of a stop that has begun
        self._extension_s = 0.0
        if self._address is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            # struct timeval: a send without MSG_DONTWAIT sleeps so long until the reader has made room (socket(7)).
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(WAIT_S), 0))

    def ready(self) -> None:
        """It listens; or a reload is over."""
        self._send("READY=1", waits=True)

    def reloading(self) -> None:
        """The configuration is read again; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}", waits=True)

    def stopping(self, takes_s: float, extension_s: float) -> None:
        """The end begins and takes `takes_s` at most. Until then this and each `alive` ask for `extension_s` more, should
        TimeoutStopSec= be less; that has to be longer than it takes to the next `alive`."""
        with self._lock:
            self._stops_until = time.monotonic() + takes_s
            self._extension_s = extension_s
            self._status = self._told = "stopping"
            lines = ["STOPPING=1", "STATUS=stopping", *self._extension()]
        self._send(*lines, waits=True)

    def alive(self) -> None:
        """All threads are well. Tells the status, too, where that was held back or not heard."""
        with self._lock:
            status, lines = self._status, ["WATCHDOG=1", *self._extension()]
            if status != self._told:
                lines.append(f"STATUS={status}")
            if self._send(*lines):
                self._told = status

    def status(self, status: Status) -> None:
        """For who reads `systemctl status`. Percents of one step are told PROGRESS_EVERY_S apart at least."""
        op = status.op
        doing = (status.state, op.op_id, op.phase, op.step) if op is not None else None
        now = time.monotonic()
        with self._lock:
            self._status = text = status_text(status)
            if text == self._told or (doing is not None and doing == self._told_doing and now - self._told_at < PROGRESS_EVERY_S):
                return
            self._told_at, self._told_doing = now, doing
            if self._send(f"STATUS={text}"):
                self._told = text

    def close(self) -> None:
        """Idempotent."""
        if self._socket is not None:
            self._socket.close()

    def _extension(self) -> list[str]:  # _lock held
        """Time until the next message, and not past the end that was announced. A stop that hangs is ended by the service
        manager then, or as soon as a thread is stuck and `alive` is not called any more."""
        left_s = min(self._extension_s, self._stops_until - time.monotonic())
        return [f"EXTEND_TIMEOUT_USEC={int(left_s * 1e6)}"] if left_s > 0 else []

    def _send(self, *lines: str, waits: bool = False) -> bool:
        """Whether it was heard."""
        if self._socket is None or self._address is None:
            return True
        flags = socket.MSG_NOSIGNAL if waits else socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT
        try:
            self._socket.sendto("\n".join(lines).encode(), flags, self._address)
        except OSError as error:
            log.warning("the service manager does not hear %s: %s", lines[0], error)
            return False
        return True


def status_text(status: Status) -> str:
    """One line: "qwen answers", "loading qwen 43 % (mmap)", "tiny answers; loading qwen 7 % (prefetch)". Pure."""
    if status.stopping:
        return "stopping"
    parts = [f"{status.current_model} answers"] if status.current_model is not None else []
    if (op := status.op) is not None:
        doing = f"loading {op.target_model_id}" if op.target_model_id is not None else "unloading"
        part = op.phase or op.step
        parts.append(doing if part is None or op.pct is None else f"{doing} {op.pct} % ({part})")
    elif status.state is State.LOADING:
        parts.append("loading")
    elif not parts and status.error is not None:
        parts.append(f"no model answers: {' '.join(status.error.message.split())}")
    return "; ".join(parts)[:_MAX_STATUS_CHARS] or "no model is loaded"


def _address(text: str) -> str | None:
    """A path, or `@` and a name in the abstract namespace."""
    if not text:
        return None
    if text[0] not in "/@" or len(text) < 2:
        log.warning("$NOTIFY_SOCKET is %r, which is neither a path nor an abstract name; nobody is told anything", text)
        return None
    return "\0" + text[1:] if text[0] == "@" else text


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    """As sd_watchdog_enabled(3): it may be meant for another process, and then it is none of ours."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    with contextlib.suppress(ValueError):
        if (usec := int(environ.get("WATCHDOG_USEC", "0"))) > 0:
            return usec / 1e6
    return None
