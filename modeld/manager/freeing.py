"""Who gives a closed model's memory back while the next one begins to load? Freeing: a thread that somebody waits for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from modeld.manager.tenant import Tenant
from modeld.threads import start_thread

log = logging.getLogger("modeld.switch")

# What may be missing without a word: the next model's vocabulary comes while this one goes.
SLACK_BYTES = 96 << 20


class Freeing:
    """Frees one closed tenant on the thread `modeld-free`. Made and waited for by the switch thread.

    Giving 350 MB back takes some 60 ms, reading the vocabulary of the next model 200 ms: side by side, the switch costs no
    more than the load. The next load waits here before it takes memory itself (OpenRunner), so the two models never
    hold their weights at once.
    """

    def __init__(self, tenant: Tenant | None, resident_bytes: Callable[[], int]) -> None:
        """None: there is nothing to free."""
        self._thread: threading.Thread | None = None
        if tenant is None or tenant.runner is None:
            return
        self._tenant = tenant
        self._runner = tenant.runner
        self._resident_bytes = resident_bytes
        try:
            self._thread = start_thread("modeld-free", self._free)
        except RuntimeError:  # the system has no thread for us
            self._free()

    def wait(self) -> None:
        """Until the memory is back. Idempotent; any thread."""
        if self._thread is not None:
            self._thread.join()

    def _free(self) -> None:
        fields = {"model_id": self._tenant.spec.id}
        before = self._resident_bytes()
        try:
            self._runner.free()
        except Exception:
            log.exception("freeing a model failed; what it holds is lost", extra=fields)
            return
        freed, taken = before - self._resident_bytes(), self._tenant.resident_bytes
        log.info("model freed", extra={**fields, "freed_bytes": freed, "taken_bytes": taken})
        if freed + SLACK_BYTES < taken / 2:
            log.warning("the memory did not come back: the model took %d bytes, %d are free again", taken, freed, extra=fields)
