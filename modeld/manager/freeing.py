"""Who gives a closed model's memory back, and when? Freeing: a thread that begins when it is told to."""

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
    """Frees one closed tenant on the thread `modeld-free`, once it is told to begin. Made and told by the switch thread.

    Giving 350 MB back takes some 60 ms, and the page tables are locked meanwhile: a load beside it takes as much longer (on
    some kernels more). Where memory has room for both models, it begins when the switch is over; where it has not, at once, and
    the load waits for it before it takes memory itself (OpenRunner), so that the two never hold their weights together.
    """

    def __init__(self, tenant: Tenant | None, resident_bytes: Callable[[], int]) -> None:
        """None: there is nothing to free."""
        self._tenant = tenant if tenant is not None and tenant.runner is not None else None
        self._resident_bytes = resident_bytes
        self._thread: threading.Thread | None = None

    def begin(self, afterwards: Callable[[], None] | None = None) -> None:
        """Start to free, and call `afterwards` then. Idempotent."""
        if self._tenant is None or self._thread is not None:
            return

        def run() -> None:
            self._free()
            if afterwards is not None:
                afterwards()

        try:
            self._thread = start_thread("modeld-free", run)
        except RuntimeError:  # the system has no thread for us
            run()
            self._tenant = None

    def wait(self) -> None:
        """Until the memory is back, if it has begun. Idempotent; any thread."""
        if self._thread is not None:
            self._thread.join()

    def finish(self) -> None:
        """Begin, and wait. Idempotent."""
        self.begin()
        self.wait()

    def _free(self) -> None:
        assert self._tenant is not None
        assert self._tenant.runner is not None
        fields = {"model_id": self._tenant.spec.id}
        before = self._resident_bytes()
        try:
            self._tenant.runner.free()
        except Exception:
            log.exception("freeing a model failed; what it holds is lost", extra=fields)
            return
        freed, taken = before - self._resident_bytes(), self._tenant.resident_bytes
        log.info("model freed", extra={**fields, "freed_bytes": freed, "taken_bytes": taken})
        if freed + SLACK_BYTES < taken / 2:
            log.warning("the memory did not come back: the model took %d bytes, %d are free again", taken, freed, extra=fields)
