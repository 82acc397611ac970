"""How is a load watched that nobody can interrupt? Loading: it runs on `modeld-load`, and the switch thread looks on.

libllama's load is one C call. It can be told to end only where it reports progress, so the thread that waits for it must be
another one: that one sees a load that stalls, and goes on answering for all other ops meanwhile.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from modeld.errors import LoadFailed, ModeldError, OpCancelled
from modeld.manager.runner import OnDeath, OpenRunner, Runner
from modeld.threads import BIG_STACK_BYTES, start_thread
from modeld.types import ModelSpec, Step

log = logging.getLogger("modeld.switch")


class Loading:
    """One call of the factory. Made and asked by the switch thread; `_run` and `_on_progress` are the load's thread."""

    def __init__(
        self,
        open_runner: OpenRunner,
        spec: ModelSpec,
        on_death: OnDeath,
        *,
        wait_for_memory: Callable[[], None],
        ending: Callable[[], ModeldError | None],
        poke: Callable[[], None],
    ) -> None:
        """`wait_for_memory` returns when the model before has given its memory back. `ending` says why the load is to end.
        `poke` wakes the switch thread. Raises LoadFailed when the system has no thread for it."""
        self._open_runner = open_runner
        self._spec = spec
        self._on_death = on_death
        self._wait_for_memory = wait_for_memory
        self._ending = ending
        self._poke = poke
        self._news: queue.SimpleQueue[tuple[Step, int]] = queue.SimpleQueue()
        self._told: ModeldError | None = None  # what the load was told when it asked last
        self._lock = threading.Lock()
        # Guards the four below: whether the load's end is taken or left behind is decided once.
        self._runner: Runner | None = None
        self._error: Exception | None = None
        self._is_finished = False
        self._is_abandoned = False
        self.heard_at = time.monotonic()  # of the load, last; written by its thread
        try:
            start_thread("modeld-load", self._run, stack_bytes=BIG_STACK_BYTES)
        except RuntimeError as error:
            raise LoadFailed(f"the system refuses another thread: {error}") from error

    # -- the switch thread

    def news(self) -> list[tuple[Step, int]]:
        """What was reported since the last call, in its order."""
        found = []
        while True:
            try:
                found.append(self._news.get_nowait())
            except queue.Empty:
                return found

    @property
    def is_finished(self) -> bool:
        with self._lock:
            return self._is_finished

    def result(self) -> Runner:
        """After the end: the runner. Raises what the load raised, OpCancelled where it was told to end."""
        with self._lock:
            assert self._is_finished
            runner, error = self._runner, self._error
        if runner is not None:
            return runner
        assert error is not None
        if self._told is not None and not isinstance(error, OpCancelled):
            raise OpCancelled(str(self._told)) from error
        raise error

    def abandon(self) -> bool:
        """Leave it to itself: whatever it comes to is freed by its own thread. False: it has ended by now."""
        with self._lock:
            self._is_abandoned = not self._is_finished
            return self._is_abandoned

    # -- the load's thread

    def _run(self) -> None:
        runner, error = None, None
        try:
            runner = self._open_runner(self._spec, self._on_progress, self._on_death)
        except Exception as raised:  # noqa: BLE001 - result() raises it where somebody waits
            error = raised
        with self._lock:
            self._runner, self._error, self._is_finished = runner, error, True
            abandoned = self._is_abandoned
        if abandoned:
            log.warning("a load that was given up has ended after all", extra={"model_id": self._spec.id})
            if runner is not None:
                runner.close(LoadFailed("this load was given up"))
                runner.free()
        self._poke()

    def _on_progress(self, step: Step, pct: int) -> bool:
        self._wait_for_memory()
        self.heard_at = time.monotonic()
        self._news.put((step, pct))
        self._poke()
        with self._lock:
            abandoned = self._is_abandoned
        self._told = self._ending()
        return self._told is None and not abandoned
