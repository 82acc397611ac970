"""How does an engine's thread begin and end? EngineThread: a warmup, steps until the inbox stops, an end for everybody."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from modeld.engine.inbox import Inbox
from modeld.errors import EngineFailed, LoadFailed, ModeldError
from modeld.threads import BIG_STACK_BYTES, start_thread

log = logging.getLogger("modeld.engine")

T = TypeVar("T")


class EngineThread(Generic[T]):
    """The thread `modeld-engine` of one loaded model. `start` and `join` by its owner."""

    def __init__(
        self,
        model_id: str,
        inbox: Inbox[T],
        *,
        warm_up: Callable[[], None],
        step: Callable[[], bool],
        fail_all: Callable[[ModeldError, deque[T]], None],
        on_death: Callable[[Exception], None],
    ) -> None:
        """All are called on the thread. `warm_up` proves that the model computes, or raises. `step` does what there is to do;
        False: the inbox has stopped. `fail_all` ends what is open with the reason, and what was not taken from the inbox.
        `on_death`: once, last, if the thread dies by itself; it must not call back into the engine."""
        self._model_id = model_id
        self._inbox = inbox
        self._warm_up = warm_up
        self._step = step
        self._fail_all = fail_all
        self._on_death = on_death
        self._warm = threading.Event()  # set when the first decode has been tried
        self._warmup_error: Exception | None = None  # read after _warm
        self.died = False  # by itself; read after join()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start it and wait for the warmup. Raises LoadFailed if that fails; the thread has ended then."""
        try:
            self._thread = start_thread(self._inbox.pulse.thread, self._run, stack_bytes=BIG_STACK_BYTES, pulse=self._inbox.pulse)
        except RuntimeError as error:
            raise LoadFailed(f"the system refuses another thread: {error}") from error
        self._warm.wait()
        if self._warmup_error is not None:
            self._thread.join()
            raise LoadFailed(f"the model was loaded but its first decode failed: {self._warmup_error}") from self._warmup_error

    def join(self) -> None:
        """Until it has ended; at once if it never began."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        died: Exception | None = None
        try:
            self._try_to_warm_up()
            if self._warmup_error is None:
                while self._step():
                    self._inbox.tell_if_idle()
            self._inbox.pulse.rest()  # nothing comes any more but the end
        except Exception as error:  # the thread's top: whatever it was, nobody may wait for ever
            died = error
            self._inbox.pulse.died(error)
            self.died = True
            log.exception("the engine died", extra={"model_id": self._model_id})
        cause = self._warmup_error or died
        failed = EngineFailed(f"the engine of model '{self._model_id}' died: {cause}", retry_after_s=1)
        reason, submitted = self._inbox.end(failed)
        self._fail_all(reason, submitted)
        self._inbox.tell_if_idle()
        if died is not None:
            self._on_death(reason)

    def _try_to_warm_up(self) -> None:
        self._inbox.pulse.call("warmup")
        try:
            self._warm_up()
        except Exception as error:  # noqa: BLE001 - start() raises it where somebody waits
            self._warmup_error = error
        finally:
            self._warm.set()
