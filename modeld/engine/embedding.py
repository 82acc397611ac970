"""Who computes embeddings? The engine of a model that gives them: its decodes, vectors, cancellations, ends.

Nothing is generated here and nothing stays in the KV cache, so this loop shares inbox and thread with engine.py's, no more.
"""

from __future__ import annotations

import copy
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

from modeld.engine.counts import Counts
from modeld.engine.inbox import Inbox
from modeld.engine.packing import Packed, Packing
from modeld.engine.thread import EngineThread
from modeld.engine.vectors import EmbeddingJob
from modeld.errors import EngineFailed, ModeldError, RequestCancelled
from modeld.heartbeat import Pulse
from modeld.llm.adapter import DecodeAborted, DecodeInvalid, NoKvRoom, Runtime, Span
from modeld.types import Load, Share

log = logging.getLogger("modeld.engine")


class EmbeddingEngine:
    """Inputs of all requests share the decodes of one runtime, whose `pooling` says how it makes vectors."""

    def __init__(self, runtime: Runtime, model_id: str, *, queue_size: int, on_death: Callable[[Exception], None]) -> None:
        """`queue_size`: requests that may wait beyond the slots. `on_death` is called from the engine thread, once, if it
        dies by itself; it must not call back into the engine."""
        self._runtime = runtime
        self._model_id = model_id
        self._packing = Packing(runtime.n_slots, runtime.n_batch, runtime.describe().n_ctx)
        self.counts = Counts()
        self._jobs: set[EmbeddingJob] = set()  # received and not ended; engine thread only
        self._inbox: Inbox[EmbeddingJob] = Inbox(
            model_id,
            runtime.n_slots,
            runtime.n_slots + queue_size,
            lambda _n_busy, n_open: f"{n_open} requests for embeddings are open",
        )
        self._thread = EngineThread(
            model_id, self._inbox, warm_up=self._warm_up, step=self._go_on, fail_all=self._fail_all, on_death=on_death
        )

    # -- the switch thread

    def start(self) -> None:
        """Start the thread and wait for its warmup: one decode of one token. Raises LoadFailed if that fails."""
        self._thread.start()

    def on_idle(self, callback: Callable[[], None]) -> None:
        self._inbox.on_idle(callback)

    def close(self, reason: ModeldError) -> None:
        """End every request with `reason` and join the thread; a running decode is aborted. Idempotent."""
        self._inbox.close(reason, lambda: self._runtime.set_abort(True))
        self._thread.join()

    # -- handlers

    def reserve(self, share: Share) -> None:
        """Take a place for a request that is about to be tokenized. Raises QueueFull, or why the engine is closed."""
        self._inbox.reserve(1, share)

    def release(self, client: str) -> None:
        """Give back a place that led to no submission."""
        self._inbox.release(1, client)

    def submit(self, inputs: Sequence[Sequence[int]], client: str) -> EmbeddingJob:
        """Hand over a request that has a place. Raises why the engine is closed; the place is then still the caller's."""
        job = EmbeddingJob(self._model_id, inputs, self._cancel, client)
        self._inbox.submit([job])
        return job

    def _cancel(self, job: EmbeddingJob) -> None:
        self._inbox.cancel([job])

    def load(self) -> Load:
        """Busy slots are inputs of the decode that runs; queued are the requests that have none in it."""
        return self._inbox.load()

    def pulses(self) -> tuple[Pulse, ...]:
        return (self._inbox.pulse,)

    def n_cells(self) -> int:
        """KV cells that hold something between two decodes: none."""
        return 0

    # -- the engine thread

    def _warm_up(self) -> None:
        """Prove that the model computes: the vector of one token."""
        self._runtime.decode([Span(0, 0, (0,), True)])
        if self._runtime.pooling != "none":
            self._runtime.vectors([0])
        self._runtime.forget(0)

    def _go_on(self) -> bool:
        """Wait for work, and do one decode of it. False: stop."""
        if not self._receive():
            return False
        self._step()
        self.counts.rested()
        return True

    def _receive(self) -> bool:
        """Wait for work and take all messages. False: stop."""
        with self._inbox.lock:
            self._inbox.wait(lambda: self._packing.has_work)
            self.counts.woke()
            if self._inbox.stop is not None:
                return False
            submitted, cancelled = self._inbox.take()
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
        self._inbox.note(len(packed), len(jobs))
        self._inbox.pulse.call("a decode")
        start = time.monotonic()
        try:
            self._runtime.decode([item.span for item in packed])
        except DecodeAborted:
            self.counts.aborted(time.monotonic() - start)
            return  # close() alone aborts: its reason is what is received next
        except (NoKvRoom, DecodeInvalid) as error:
            # What is admitted fits, so this is a model whose memory works otherwise.
            log.error("requests failed: %s", error, extra={"model_id": self._model_id})
            self._inbox.note(0, 0)
            self._forget(packed)
            for job in jobs:
                self._fail(job, EngineFailed(f"the model could not compute these embeddings: {error}"))
            return
        seconds = time.monotonic() - start - self._runtime.waited_s
        self.counts.decoded(seconds, n_prompt=sum(len(item.span.tokens) for item in packed), n_generation=0)
        self._inbox.pulse.busy("what comes after a decode")
        complete = self._packing.commit(packed)
        vectors = self._runtime.vectors([item.span.slot for item in complete])
        self._forget(complete)
        self._inbox.note(0, 0)
        for item, vector in zip(complete, vectors, strict=True):
            if item.input.job.put(item.input.index, vector):
                self._leave(item.input.job)
                item.input.job.finish()

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
        self._inbox.leave(1, 0, 0, (job.client,))  # it has waited until now: its inputs get their slots one by one

    def _fail_all(self, reason: ModeldError, submitted: deque[EmbeddingJob]) -> None:
        """The thread ends: fail what is there."""
        jobs = [*self._jobs, *submitted]
        self._jobs.clear()
        self._inbox.leave(len(jobs), 0, 0, [job.client for job in jobs])
        for job in jobs:
            job.fail(copy.copy(reason))  # each handler raises its own
