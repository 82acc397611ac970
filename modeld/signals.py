"""Which signal does what? Signals: one thread waits for them, none of them interrupts another."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from modeld.threads import start_thread


class Signals:
    """SIGTERM and SIGINT: the first one asks for a clean stop, the second leaves at once. SIGHUP: read the configuration again.
    Main thread.

    They are blocked for all threads from the start and taken by sigwait: a handler would run between any two bytecodes of
    the main thread, also while it holds a lock that the handler needs.
    """

    STOP = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, (*self.STOP, signal.SIGHUP))

    def wait(self, on_hangup: Callable[[], None]) -> str:
        """The name of the first one that asks for the end; from then on the next one ends the process."""
        while (number := signal.sigwait((*self.STOP, signal.SIGHUP))) == signal.SIGHUP:
            on_hangup()
        start_thread("modeld-signals", self._leave_at_the_next)
        return signal.Signals(number).name

    def _leave_at_the_next(self) -> None:
        os._exit(128 + signal.sigwait(self.STOP))  # no clean-up at all: somebody has waited long enough
