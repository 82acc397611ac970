"""Where does work run that may recurse deep? TokenizePool: two threads with a big stack; handlers wait for their answer."""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from modeld.errors import LoadFailed, ModeldError
from modeld.heartbeat import Pulse
from modeld.threads import BIG_STACK_BYTES, start_thread

T = TypeVar("T")
N_THREADS = 2


class TokenizePool:
    """Runs tokenizing, templates and vocabulary look-ups of one model. `run` from any thread, `close` by the owner."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        # Guards _closed together with the put that depends on it: no job is queued behind the threads' end.
        self._closed: ModeldError | None = None
        self._threads: list[threading.Thread] = []
        self.pulses = tuple(Pulse(f"modeld-tokenize-{i}") for i in range(N_THREADS))
        try:
            for pulse in self.pulses:
                work = partial(self._work, pulse)
                self._threads.append(start_thread(pulse.thread, work, stack_bytes=BIG_STACK_BYTES, pulse=pulse))
        except RuntimeError as error:
            failed = LoadFailed(f"the system refuses another thread: {error}")
            self.close(failed)
            raise failed from error

    def run(self, job: Callable[[], T]) -> T:
        """The job's result, or its exception; waits. Raises why the pool is closed."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed is not None:
                raise copy.copy(self._closed)
            self._jobs.put((job, future))
        return future.result()

    def close(self, reason: ModeldError) -> None:
        """Refuse new jobs, fail the queued ones with the reason, let the running ones end, join. Idempotent."""
        with self._lock:
            if self._closed is None:
                self._closed = reason
                for _ in self._threads:
                    self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self, pulse: Pulse) -> None:
        while (item := self._jobs.get()) is not None:
            self._do(*item, pulse)
            pulse.rest()

    def _do(self, job: Callable[[], Any], future: Future[Any], pulse: Pulse) -> None:
        with self._lock:
            closed = self._closed
        if closed is not None:
            future.set_exception(copy.copy(closed))
            return
        # A long text may take a tokenizer long (1 MB of emoji took 38 s before cmake/TokenizerMend.cmake): a client must not make
        # that look like a fault of ours, for which the service manager ends the daemon.
        pulse.call("a job of a handler")
        try:
            future.set_result(job())
        except BaseException as error:  # noqa: BLE001 - raised again where the caller waits
            future.set_exception(error)
