"""Who brings text to the handlers? One thread, once a step: the engine does not wake sixteen threads before its next decode."""

from __future__ import annotations

import logging
import queue
from collections.abc import Iterable

from modeld.engine.stream import TokenStream
from modeld.heartbeat import Pulse
from modeld.threads import start_thread

log = logging.getLogger("modeld.engine")


class Delivery:
    """The thread `modeld-deliver` of one engine. `step` from the engine thread, `close` by its owner."""

    def __init__(self) -> None:
        """Raises RuntimeError when the system refuses another thread."""
        self._steps: queue.SimpleQueue[Iterable[TokenStream] | None] = queue.SimpleQueue()
        self.pulse = Pulse("modeld-deliver")
        self._thread = start_thread(self.pulse.thread, self._run, pulse=self.pulse)

    def step(self, streams: Iterable[TokenStream]) -> None:
        """These got chunks in one step of the engine."""
        self._steps.put(streams)

    def close(self) -> None:
        """Deliver what was handed over, end the thread and join it. Once."""
        self._steps.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (streams := self._steps.get()) is not None:
            self.pulse.busy("delivering a step")
            for stream in streams:
                try:
                    stream.deliver()
                except Exception:  # the thread's top: without it no stream of this model would be delivered to again
                    log.exception("a fault while delivering; one stream may wait for its next step")
            self.pulse.rest()
