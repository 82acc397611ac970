"""Who computes embeddings? The engine thread of a model that gives them: inbox, decodes, vectors, cancel, close.

Nothing is generated here and nothing stays in the KV cache, so this loop shares no more than the runtime with engine.py's.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from modeld.engine.packing import Packed, Packing
from modeld.engine.vectors import EmbeddingJob
from modeld.errors import EngineFailed, LoadFailed, ModeldError, QueueFull, RequestCancelled
from modeld.llm.adapter import DecodeAborted, DecodeInvalid, NoKvRoom, Runtime, Span
from modeld.threads import BIG_STACK_BYTES, start_thread
from modeld.types import Load

log = logging.getLogger("modeld.engine")
queue_log = logging.getLogger("modeld.queue")


class EmbeddingEngine:
    """Inputs of all requests share the decodes of one runtime, whose `pooling` says how it makes vectors."""

    def __init__(self, runtime: Runtime, model_id: str, *, queue_size: int, on_death: Callable[[Exception], None]) -> None:
        """`queue_size`: requests that may wait beyond the slots. `on_death` is called from the engine thread, once, if it
        dies by itself; it must not call back into the engine."""
        self._runtime = runtime
        self._model_id = model_id
        self._capacity = runtime.n_slots + queue_size
        self._on_death = on_death
        self._packing = Packing(runtime.n_slots, runtime.n_batch, runtime.describe().n_ctx)
        self._jobs: set[EmbeddingJob] = set()  # received and not ended; engine thread only
        self._inbox = threading.Condition()
        # Guards the six below; notified when a job, a cancellation or the stop arrives. Never held in a decode.
        self._submitted: deque[EmbeddingJob] = deque()
        self._cancelled: deque[EmbeddingJob] = deque()
        self._n_open = 0  # admitted and not ended, those being tokenized included
        self._n_busy = 0  # slots in the decode that runs
        self._n_served = 0  # requests that have one of them
        self._stop: ModeldError | None = None  # why nothing is accepted any more
        self._warm = threading.Event()  # set when the first decode has been tried
        self._warmup_error: Exception | None = None  # read after _warm
        self._thread: threading.Thread | None = None

    # -- the switch thread

    def start(self) -> None:
        """Start the thread and wait for its warmup: one decode of one token. Raises LoadFailed if that fails."""
        try:
            self._thread = start_thread("modeld-engine", self._run, stack_bytes=BIG_STACK_BYTES)
        except RuntimeError as error:
            raise LoadFailed(f"the system refuses another thread: {error}") from error
        self._warm.wait()
        if self._warmup_error is not None:
            self._thread.join()
            raise LoadFailed(f"the model was loaded but its first decode failed: {self._warmup_error}") from self._warmup_error

    def close(self, reason: ModeldError) -> None:
        """End every request with `reason` and join the thread; a running decode is aborted. Idempotent."""
        with self._inbox:
            if self._stop is None:
                self._stop = reason
                self._runtime.set_abort(True)  # no later decode exists that it could hit by mistake
            self._inbox.notify()
        if self._thread is not None:
            self._thread.join()

    # -- handlers

    def reserve(self) -> None:
        """Take a place for a request that is about to be tokenized. Raises QueueFull, or why the engine is closed."""
        with self._inbox:
            if self._stop is not None:
                raise copy.copy(self._stop)  # a copy: each raise adds its traceback
            n_open = self._n_open
            if n_open < self._capacity:
                self._n_open += 1
                return
        queue_log.warning("queue full", extra={"model_id": self._model_id, "waiting": n_open})
        raise QueueFull(
            f"{n_open} requests for embeddings are open: model '{self._model_id}' takes no more now; try again", retry_after_s=1
        )

    def release(self) -> None:
        """Give back a place that led to no submission."""
        with self._inbox:
            self._n_open -= 1

    def submit(self, inputs: Sequence[Sequence[int]]) -> EmbeddingJob:
        """Hand over a request that has a place. Raises why the engine is closed; the place is then still the caller's."""
        job = EmbeddingJob(self._model_id, inputs, self._cancel)
        with self._inbox:
            if self._stop is not None:
                raise copy.copy(self._stop)
            self._submitted.append(job)
            self._inbox.notify()
        return job

    def _cancel(self, job: EmbeddingJob) -> None:
        with self._inbox:
            self._cancelled.append(job)
            self._inbox.notify()

    def load(self) -> Load:
        """Busy slots are inputs of the decode that runs; queued are the requests that have none in it."""
        with self._inbox:
            return Load(self._runtime.n_slots, self._n_busy, self._n_open - self._n_served)

    # -- the engine thread

    def _run(self) -> None:
        died: Exception | None = None
        try:
            self._warm_up()
            if self._warmup_error is None:
                while self._receive():
                    self._step()
        except Exception as error:  # the thread's top: whatever it was, nobody may wait for ever
            died = error
            log.exception("the engine died", extra={"model_id": self._model_id})
        reason = self._fail_all(died)
        if died is not None:
            self._on_death(reason)

    def _warm_up(self) -> None:
        """Prove that the model computes: the vector of one token."""
        try:
            self._runtime.decode([Span(0, 0, (0,), True)])
            if self._runtime.pooling != "none":
                self._runtime.vectors([0])
            self._runtime.forget(0)
        except Exception as error:  # noqa: BLE001 - start() raises it where somebody waits
            self._warmup_error = error
        finally:
            self._warm.set()

    def _receive(self) -> bool:
        """Wait for work and take all messages. False: stop."""
        with self._inbox:
            self._inbox.wait_for(lambda: self._submitted or self._cancelled or self._stop is not None or self._packing.has_work)
            if self._stop is not None:
                return False
            submitted, self._submitted = self._submitted, deque()
            cancelled, self._cancelled = self._cancelled, deque()
        for job in submitted:
            self._jobs.add(job)
            self._packing.add(job)
        for job in cancelled:
            if job in self._jobs:  # else it ended by itself meanwhile
                self._fail(job, RequestCancelled("the client left"))
        return True

    def _step(self) -> None:
        packed = self._packing.plan()
        if not packed:
            return
        jobs = dict.fromkeys(item.input.job for item in packed)
        self._note(len(packed), len(jobs))
        try:
            self._runtime.decode([item.span for item in packed])
        except DecodeAborted:
            return  # close() alone aborts: its reason is what is received next
        except (NoKvRoom, DecodeInvalid) as error:
            # What is admitted fits, so this is a model whose memory works otherwise.
            log.error("requests failed: %s", error, extra={"model_id": self._model_id})
            self._note(0, 0)
            self._forget(packed)
            for job in jobs:
                self._fail(job, EngineFailed(f"the model could not compute these embeddings: {error}"))
            return
        complete = self._packing.commit(packed)
        vectors = self._runtime.vectors([item.span.slot for item in complete])
        self._forget(complete)
        self._note(0, 0)
        for item, vector in zip(complete, vectors, strict=True):
            if item.input.job.put(item.input.index, vector):
                self._leave(item.input.job)
                item.input.job.finish()

    def _note(self, n_busy: int, n_served: int) -> None:
        with self._inbox:
            self._n_busy, self._n_served = n_busy, n_served

    def _forget(self, packed: list[Packed]) -> None:
        for item in packed:
            self._runtime.forget(item.span.slot)

    def _fail(self, job: EmbeddingJob, error: ModeldError) -> None:
        for slot in self._packing.remove(job):
            self._runtime.forget(slot)
        self._leave(job)
        job.fail(error)

    def _leave(self, job: EmbeddingJob) -> None:
        """The job's place is free before its end is told."""
        self._jobs.remove(job)
        with self._inbox:
            self._n_open -= 1

    def _fail_all(self, died: Exception | None) -> ModeldError:
        """The thread ends: refuse what comes, fail what is there. Why it stopped."""
        with self._inbox:
            if self._stop is None:
                cause = self._warmup_error or died
                self._stop = EngineFailed(f"the engine of model '{self._model_id}' died: {cause}", retry_after_s=1)
            reason = self._stop
            jobs = [*self._jobs, *self._submitted]
            self._jobs.clear()
            self._submitted.clear()
            self._n_open -= len(jobs)
            self._n_busy = self._n_served = 0
        for job in jobs:
            job.fail(copy.copy(reason))  # each handler raises its own
        return reason
