"""Who computes? The engine: its step loop, cancellations, ends. The only caller of the runtime's hot methods."""

from __future__ import annotations

import copy
import logging
import time
from collections import deque
from collections.abc import Callable

from modeld.engine.cells import Cells
from modeld.engine.counts import Counts
from modeld.engine.delivery import Delivery
from modeld.engine.inbox import Inbox
from modeld.engine.kept import KeptCells
from modeld.engine.pace import Pace
from modeld.engine.scheduler import Planned, Scheduler
from modeld.engine.scoring import score_prompts, score_sampled
from modeld.engine.sequence import Sequence
from modeld.engine.stream import TokenStream
from modeld.engine.thread import EngineThread
from modeld.engine.width import Width
from modeld.errors import EngineFailed, InvalidRequest, LoadFailed, ModeldError, RequestCancelled
from modeld.heartbeat import Pulse
from modeld.llm.adapter import DecodeAborted, DecodeInvalid, NoKvRoom, Runtime, Span
from modeld.types import Chunk, Failed, Finished, Load, SamplingParams, Share

log = logging.getLogger("modeld.engine")

# A slot whose client left is to be free within 50 ms; sampling for the others comes on top of what a decode still takes.
MAX_WAIT_FOR_SLOT_S = 0.03
# What the first of several requests waits for the others: as long as they keep coming, and for one that comes alone.
MAX_GATHER_S, QUIET_S = 0.02, 0.001


class Engine:
    """Continuous batching over one runtime: sequences join and leave between two decodes."""

    def __init__(
        self,
        runtime: Runtime,
        model_id: str,
        *,
        queue_size: int,
        max_step_s: float,
        on_death: Callable[[Exception], None],
        kept: KeptCells | None,
    ) -> None:
        """`queue_size`: requests that may wait beyond the slots. `max_step_s`: what a step may take while streams run and a
        prompt is read. `on_death` is called from the engine thread, once, if it dies by itself; it must not call back into
        the engine. `kept`: where beginnings may have been computed before the model was loaded."""
        self._runtime = runtime
        self._model_id = model_id
        self._scheduler = Scheduler(
            runtime.n_slots,
            runtime.n_batch,
            runtime.n_outputs,
            shares=runtime.can_cut,
            kept=kept,
            n_ctx_slot=runtime.n_ctx_slot,
        )
        self._cells = Cells(runtime, self._scheduler, kept)
        self.counts = Counts()
        self._pace = Pace(max_step_s)
        self._width = Width(runtime.row_block)
        self._inbox: Inbox[Sequence] = Inbox(
            model_id,
            runtime.n_slots,
            runtime.n_slots + queue_size,
            lambda n_busy, n_open: f"{n_busy} requests run and {n_open - n_busy} wait",
        )
        self._decoding: dict[Sequence, int] = {}  # rows in the decode that runs, of each sequence that has a slot
        self._decode_end_s = 0.0  # when that decode is expected to be over, on the monotonic clock
        self._decode_lost = False  # the last decode was aborted, and others had rows in it: the next one is not
        # The three above are guarded by the inbox's lock, too.
        self._touched: dict[TokenStream, None] = {}  # streams that got chunks since the last delivery; engine thread only
        self._delivery: Delivery | None = None
        self._thread = EngineThread(
            model_id, self._inbox, warm_up=self._warm_up, step=self._go_on, fail_all=self._fail_all, on_death=on_death
        )

    # -- the switch thread

    def start(self) -> None:
        """Start the threads and wait for the warmup: one decode, one token. Raises LoadFailed if that fails."""
        try:
            self._delivery = Delivery()
        except RuntimeError as error:
            raise LoadFailed(f"the system refuses another thread: {error}") from error
        try:
            self._thread.start()
        except LoadFailed:
            self._join()
            raise

    def on_idle(self, callback: Callable[[], None]) -> None:
        self._inbox.on_idle(callback)

    def close(self, reason: ModeldError) -> None:
        """End every request with `reason` and join the thread; a running decode is aborted. Idempotent."""
        self._inbox.close(reason, lambda: self._runtime.set_abort(True))
        self._join()

    def keep_cells(self) -> None:
        """After close: keep what the slots hold for when the model is loaded again. What a dead engine left is not trusted."""
        if not self._thread.died:
            self._cells.keep()

    def _join(self) -> None:
        self._thread.join()
        if self._delivery is not None:  # after the engine's thread, whose last chunks it delivers
            self._delivery.close()
            self._delivery = None

    # -- handlers

    def reserve(self, n: int, share: Share) -> None:
        """Take places for the choices of a request that is about to be tokenized, all or none.

        Raises QueueFull, InvalidRequest when there will never be so many, or why the engine is closed.
        """
        if n > (most := self._inbox.most(share)):
            raise InvalidRequest(
                f"the request asks for {n} answers (prompts times n) at once; model '{self._model_id}' takes "
                f"{most} at most ({self._runtime.n_slots} slots, the others wait)"
            )
        self._inbox.reserve(n, share)

    def release(self, n: int, client: str) -> None:
        """Give back places that led to no submission."""
        self._inbox.release(n, client)

    def submit(self, sequences: list[Sequence]) -> TokenStream:
        """Hand over the choices of a request, which have their places. Raises why the engine is closed; the places are then
        still the caller's."""
        stream = TokenStream(self._model_id, len(sequences), lambda: self._cancel(sequences))
        now = time.monotonic()
        for index, sequence in enumerate(sequences):
            sequence.stream, sequence.index, sequence.submitted_at = stream, index, now
        self._inbox.submit(sequences)
        return stream

    def _cancel(self, sequences: list[Sequence]) -> None:
        with self._inbox.lock:
            self._inbox.cancelled += sequences
            if self._is_worth_aborting(sequences):
                self._runtime.set_abort(True)
            self._inbox.lock.notify()

    def _is_worth_aborting(self, sequences: list[Sequence]) -> bool:
        """Whether the running decode holds up slots of sequences that are for nobody any more. The lock is held."""
        rows = [self._decoding[sequence] for sequence in sequences if sequence in self._decoding]
        if not rows:
            return False  # they have no slots, or nothing runs
        own, n_rows = sum(rows), sum(self._decoding.values())
        if own == n_rows:
            return True
        # The others' rows are decoded again. So that clients that come and go cannot stop the others, every second decode
        # ends; and a memory that cannot be cut would lose all of a sequence.
        if self._decode_lost or not self._runtime.can_cut:
            return False
        return 2 * own > n_rows or self._decode_end_s - time.monotonic() > MAX_WAIT_FOR_SLOT_S

    # -- any thread

    def load(self) -> Load:
        return self._inbox.load()

    def pulses(self) -> tuple[Pulse, ...]:
        delivery = self._delivery  # which close() takes away
        return (self._inbox.pulse,) if delivery is None else (self._inbox.pulse, delivery.pulse)

    def n_cells(self) -> int:
        """KV cells that hold something, a step more or less."""
        return self._scheduler.n_cells

    # -- the engine thread

    def _warm_up(self) -> None:
        """Prove that the model computes: decode one token, sample one."""
        self._runtime.decode([Span(0, 0, (0,), True)])
        sampler = self._runtime.sampler(SamplingParams(temperature=0), 0, ())
        try:
            self._runtime.sample([(sampler, 0)])
        finally:
            sampler.close()
        self._runtime.forget(0)

    def _go_on(self) -> bool:
        """Wait for work, and do one step of it. False: stop."""
        if not self._receive():
            return False
        self._step()
        self._deliver()
        self.counts.rested()
        return True

    def _receive(self) -> bool:
        """Wait for work and take all messages. False: stop."""
        with self._inbox.lock:
            self._inbox.wait(lambda: self._scheduler.has_work)
            self.counts.woke()
            if not self._scheduler.has_work:
                self._gather()
            if self._inbox.stop is not None:
                return False
            submitted, cancelled = self._inbox.take()
        for sequence in submitted:
            self._scheduler.add(sequence)
        for sequence in cancelled:
            if sequence in self._scheduler:  # else it ended by itself meanwhile
                self._end(sequence, Chunk("", Failed(RequestCancelled("the client left"), sequence.usage_so_far), sequence.index))
        self._deliver()  # their handlers need not wait for the decode that comes
        clients = []
        while (placed := self._scheduler.place()) is not None:
            clients.append(placed.sequence.client)
            self._cells.take_over(placed)
            self.counts.placed(placed)
            placed.sequence.sampler = self._runtime.sampler(
                placed.sequence.sampling, placed.sequence.seed, placed.sequence.tokens, placed.sequence.constraint
            )
        self._cells.close_holes()
        n_busy = self._scheduler.n_busy
        self._inbox.note(n_busy, n_busy, clients)
        return True

    def _gather(self) -> None:
        """Nothing runs yet: wait a moment for requests that come together with the first one. The lock is held.

        Alone it would have a decode of its own, and then sit out theirs. Who is being tokenized is known; who is still being
        read is not, so one more quiet millisecond passes after each.
        """
        inbox, until = self._inbox, time.monotonic() + MAX_GATHER_S
        while inbox.stop is None and not inbox.cancelled:
            n_before, left_s = inbox.n_open, until - time.monotonic()
            known = len(inbox.submitted) < n_before
            if left_s <= 0 or not (inbox.lock.wait(left_s if known else min(left_s, QUIET_S)) or inbox.n_open > n_before):
                return

    def _step(self) -> None:
        planned = self._scheduler.plan(self._pace.budget())
        if not planned:
            return
        try:
            n_before = self._decode(planned)
        except DecodeAborted:
            for item in planned:
                self._cells.resync(item.sequence)
            return
        except NoKvRoom as error:
            # Slots own their cells, so this is a model whose memory works otherwise. What ended sequences left goes first,
            # then the youngest gives way.
            if not self._cells.forget_cache():
                self._give_up(self._scheduler.youngest(planned), error)
            return
        except DecodeInvalid as error:
            for item in planned:
                self._give_up(item, error)
            return
        score_prompts(self._runtime, planned)
        ready = []
        for sequence, index in self._scheduler.commit(planned):
            if sequence.limit:
                ready.append((sequence, n_before + index))
            else:
                self._end(sequence, sequence.finish_prompt())
        if ready:
            self._sample(ready)

    def _sample(self, ready: list[tuple[Sequence, int]]) -> None:
        """One token for each of the sequences, which have logits in the span of that index."""
        tokens = self._runtime.sample([(sequence.sampler, index) for sequence, index in ready if sequence.sampler is not None])
        self.counts.sampled([sequence for sequence, _ in ready], self._scheduler.running)
        logprobs = score_sampled(self._runtime, ready, tokens)
        for (sequence, _), token in zip(ready, tokens, strict=True):
            piece = self._runtime.piece_or_eog(token, markers=sequence.shows_markers)
            chunk = sequence.accept(token, piece, logprobs.get(sequence))
            if chunk.end is None:
                sequence.stream.put(chunk)
                self._touched[sequence.stream] = None
            else:
                self._end(sequence, chunk)

    def _deliver(self) -> None:
        """After a step, so that nobody is woken before all has been sampled."""
        if self._touched:
            assert self._delivery is not None
            self._delivery.step(self._touched)
            self._touched = {}

    def _decode(self, planned: list[Planned]) -> int:
        """Run the decode, open to be aborted, and measure it. How many spans it had before the planned ones."""
        n_generating = sum(not item.sequence.in_prompt_phase for item in planned)
        rows = dict.fromkeys(self._scheduler.running, 0) | {item.sequence: len(item.span.tokens) for item in planned}
        n_prompt = sum(rows.values()) - n_generating
        filling = [] if n_prompt else self._filling(planned)
        n_before = sum(span.slot < planned[0].span.slot for span in filling)
        start = time.monotonic()
        with self._inbox.lock:
            if self._inbox.stop is not None:
                raise DecodeAborted("the engine is closed")
            self._decoding = rows
            self._decode_end_s = start + self._pace.expected_s(n_generating, n_prompt)
        lost = False
        self._inbox.pulse.call("a decode")
        try:
            self._runtime.decode([*filling[:n_before], *(item.span for item in planned), *filling[n_before:]])
        except DecodeAborted:
            lost = len(planned) > 1
            self.counts.aborted(time.monotonic() - start)
            self._cells.drop(filling)
            raise
        finally:
            self._inbox.pulse.busy("what comes after a decode")
            with self._inbox.lock:
                # Under the same lock as the flag is set: a late one must not hit the next decode.
                self._decoding = {}
                self._decode_lost = lost
                if self._inbox.stop is None:
                    self._runtime.set_abort(False)
        seconds = time.monotonic() - start - self._runtime.waited_s  # what another model computed says nothing of this one
        self._cells.drop(filling)
        self._pace.measured(n_generating, n_prompt, seconds)
        self.counts.decoded(seconds, n_prompt=n_prompt, n_generation=n_generating, n_filling=len(filling))
        if not n_prompt:
            self._width.measured(len(planned) + len(filling), seconds)
        return n_before

    def _filling(self, planned: list[Planned]) -> list[Span]:
        """Rows that nobody needs, where a step with them is cheaper than one without."""
        n, n_slots = len(planned), self._runtime.n_slots
        n_more = self._width.choose(n, n_slots - n) - n
        if not n_more:
            return []
        return self._scheduler.filling(n_more, self._runtime.n_ctx_slot, planned[0].span.tokens[0])

    def _give_up(self, item: Planned, error: Exception) -> None:
        log.error("request failed: %s", error, extra={"model_id": self._model_id, "slot": item.span.slot})
        failed = Failed(EngineFailed(f"the model could not go on with this request: {error}"), item.sequence.usage_so_far)
        self._end(item.sequence, Chunk("", failed, item.sequence.index))

    def _end(self, sequence: Sequence, last: Chunk) -> None:
        """The one way out for a sequence that the scheduler knows: slot and chain are free before its end is told."""
        # A client that left may come back with the same prompt; what failed is not trusted.
        sound = isinstance(last.end, Finished) or (isinstance(last.end, Failed) and isinstance(last.end.error, RequestCancelled))
        keep_cells = self._runtime.can_cut and sequence.cache_prompt and sound
        slot = self._scheduler.remove(sequence, keep_cells=keep_cells)
        if slot is not None and not keep_cells:
            self._runtime.forget(slot)
        if sequence.sampler is not None:
            sequence.sampler.close()
            sequence.sampler = None
        n_busy = self._scheduler.n_busy
        self._inbox.leave(1, n_busy, n_busy, (sequence.client,) if slot is None else ())
        sequence.stream.put(last)
        self._touched[sequence.stream] = None

    def _fail_all(self, reason: ModeldError, submitted: deque[Sequence]) -> None:
        """The thread ends: fail what is there."""
        for sequence in submitted:
            self._scheduler.add(sequence)
        # The runtime is not asked to forget: after a fatal decode it may refuse, and the context is freed next anyway.
        sequences = self._scheduler.sequences
        waiting = sequences[self._scheduler.n_busy :]
        for sequence in sequences:
            if sequence.sampler is not None:
                sequence.sampler.close()
            failed = Failed(copy.copy(reason), sequence.usage_so_far)  # each handler raises its own
            sequence.stream.put(Chunk("", failed, sequence.index))
            self._touched[sequence.stream] = None
        self._deliver()
        self._inbox.leave(len(sequences), 0, 0, [sequence.client for sequence in waiting])
