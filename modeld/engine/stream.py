"""How do answers get from the engine to a handler? TokenStream: each choice of a request ends with one Finished or Failed."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable

from modeld.types import Chunk

log = logging.getLogger("modeld.engine")

Sink = Callable[[list[Chunk]], bool]
"""Takes chunks without waiting, none of them an end; False: the handler must go on itself."""


class TokenStream:
    """The answers to one request on their way.

    `put` is the engine's and wakes nobody: the engine must not lose the interpreter lock to the handlers before its next
    decode runs. `deliver` is the delivery thread's: it gives what is pending to the handler's sink, or wakes the handler.
    `take` is the handler's, `cancel` anybody's.
    """

    def __init__(self, model_id: str, n_choices: int, on_cancel: Callable[[], None]) -> None:
        """`on_cancel` sends the owner a message; it is called outside the lock, at most once."""
        self.model_id = model_id
        self._on_cancel = on_cancel
        self._pending: deque[Chunk] = deque()  # appended by the engine thread, without the lock; emptied under it
        self._ended = [False] * n_choices  # the engine thread's
        self._cond = threading.Condition()
        # Guards all below, and that one thread at a time empties _pending. Notified when the handler must go on itself.
        self._sink: Sink | None = None  # while the handler waits
        self._n_delivered = 0
        self._sink_gave_up = False
        self._cancelled = False

    # -- the engine thread (and, for requests that never reached it, whoever closes the engine)

    def put(self, chunk: Chunk) -> None:
        """Add a choice's chunk. Raises RuntimeError after the choice's end."""
        if self._ended[chunk.index]:
            raise RuntimeError(f"choice {chunk.index} of this stream has ended already")
        self._ended[chunk.index] = chunk.end is not None
        if chunk.text or chunk.end is not None or chunk.logprobs:
            self._pending.append(chunk)

    # -- the delivery thread

    def deliver(self) -> None:
        """Bring what is pending to the handler: through its sink while it waits with one, else by waking it."""
        with self._cond:
            if not self._pending:
                return  # the handler was there first
            # A sink that could not take all keeps the rest for its handler, which wakes late under load: nothing may pass it.
            if self._sink is not None and not self._sink_gave_up:
                # Taken out before it is looked at: the engine may add to what is pending at any moment, an end, too.
                chunks = self._drained()
                if any(chunk.end for chunk in chunks):
                    self._pending.extendleft(reversed(chunks))
                elif self._sunk(chunks):
                    return
            self._cond.notify()

    def _sunk(self, chunks: list[Chunk]) -> bool:
        """Whether the handler need not wake, its sink having sent them. _cond held."""
        assert self._sink is not None
        try:
            if self._sink(chunks):
                self._n_delivered += 1
                return True
        except Exception:  # one request's fault must not end the delivery of all others
            log.exception("a fault while delivering text")
            self._pending.extendleft(reversed(chunks))  # the handler meets it, too, and says so
        self._sink_gave_up = True
        return False

    # -- the handler

    def take(self, timeout_s: float | None, sink: Sink | None = None, until: float = math.inf) -> list[Chunk] | None:
        """What is pending, one chunk a choice, as soon as there is any; None when nothing came for `timeout_s`, and at
        `until` (of time.monotonic()) in any case.

        With a sink, that is given what comes while this waits, on the delivery thread; then only ends come back here, and
        an empty list when the sink could not take all. After the last end there is nothing to wait for.
        """
        with self._cond:
            self._sink = sink
            try:
                while not self._pending and not self._sink_gave_up:
                    n_before = self._n_delivered
                    left_s = until - time.monotonic()
                    wait_s = min(left_s, timeout_s if timeout_s is not None else left_s)
                    woken = wait_s > 0 and self._cond.wait(None if wait_s == math.inf else wait_s)
                    if not woken and not self._pending and (wait_s == left_s or n_before == self._n_delivered):
                        return None
                self._sink_gave_up = False
                return self._drained()
            finally:
                self._sink = None

    def _drained(self) -> list[Chunk]:
        """All pending chunks, those of one choice joined. _cond held."""
        pending = self._pending
        first = pending.popleft() if pending else None
        if first is None:
            return []
        if not pending:
            return [first]
        joined: dict[int, list[Chunk]] = {first.index: [first]}
        while pending:
            chunk = pending.popleft()
            joined.setdefault(chunk.index, []).append(chunk)
        return [_joined(chunks) for chunks in joined.values()]

    # -- any thread

    def cancel(self) -> None:
        """Ask the engine to end the request; its slots are free within one decode step. Idempotent."""
        with self._cond:
            if self._cancelled:
                return
            self._cancelled = True
        self._on_cancel()


def _joined(chunks: list[Chunk]) -> Chunk:
    if len(chunks) == 1:
        return chunks[0]
    logprobs = tuple(logprob for chunk in chunks for logprob in chunk.logprobs)
    return Chunk("".join([chunk.text for chunk in chunks]), chunks[-1].end, chunks[0].index, logprobs)
