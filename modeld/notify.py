"""What is the service manager told? Notifier: systemd's protocol, one datagram a message to $NOTIFY_SOCKET (sd_notify(3))."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Mapping

from modeld.types import State, Status

log = logging.getLogger("modeld")

_MAX_STATUS_CHARS = 200


class Notifier:
    """Says nothing where nobody listens. Any thread; it never waits and never raises: a message that cannot be sent is logged."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._socket: socket.socket | None = None
        self.watchdog_s = _watchdog_s(environ) if self._address is not None else None  # within which it wants `alive`; None: not
        self._status = ""  # told last; the same again is not
        if self._address is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def ready(self) -> None:
        """It listens; or a reload is over."""
        self._send("READY=1")

    def reloading(self) -> None:
        """The configuration is read again; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1", "STATUS=stopping")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def status(self, status: Status) -> None:
        """For who reads `systemctl status`."""
        if (text := status_text(status)) != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def close(self) -> None:
        """Idempotent."""
        if self._socket is not None:
            self._socket.close()

    def _send(self, *lines: str) -> None:
        if self._socket is None or self._address is None:
            return
        try:
            self._socket.sendto("\n".join(lines).encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, self._address)
        except OSError as error:
            log.warning("the service manager does not hear %s: %s", lines[0], error)


def status_text(status: Status) -> str:
    """One line. Pure."""
    if status.stopping:
        return "stopping"
    if status.state is State.LOADING:
        op = status.op
        return f"loading {op.target_model_id}" if op is not None and op.target_model_id is not None else "loading"
    if status.current_model is not None:
        return f"{status.current_model} answers"
    if status.error is not None:
        return f"no model answers: {' '.join(status.error.message.split())}"[:_MAX_STATUS_CHARS]
    return "no model is loaded"


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
