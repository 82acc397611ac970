"""Who gives a closed model's memory back while the next one begins to load? Freeing: a thread that somebody waits for."""

from __future__ import annotations

import logging
import threading

from modeld.manager.runner import Runner
from modeld.threads import start_thread

log = logging.getLogger("modeld.switch")


class Freeing:
    """Frees one closed runner on the thread `modeld-free`. Made and waited for by the switch thread.

    Giving 350 MB back takes some 60 ms, reading the vocabulary of the next model 200 ms: side by side, the switch costs no
    more than the load. The next load waits here before it takes memory itself (OpenRunner), so the two models never
    hold their weights at once.
    """

    def __init__(self, runner: Runner | None) -> None:
        """None: there is nothing to free."""
        self._thread: threading.Thread | None = None
        if runner is None:
            return
        self._runner = runner
        try:
            self._thread = start_thread("modeld-free", self._free)
        except RuntimeError:  # the system has no thread for us
            self._free()

    def wait(self) -> None:
        """Until the memory is back. Idempotent."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _free(self) -> None:
        try:
            self._runner.free()
        except Exception:
            log.exception("freeing a model failed; what it holds is lost", extra={"model_id": self._runner.spec.id})
