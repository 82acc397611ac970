"""What became of each switch? OpLog: one record an op, from queued to ended, with a bounded memory of ended ones.

Pure bookkeeping: no lock, no thread. The Lifecycle owns one and calls it with its condition held.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

from modeld.errors import NotFound, QueueFull
from modeld.types import OpError, OpState, Step, SwitchOp

HISTORY_SIZE = 256  # ended ops that can still be asked for
QUEUE_SIZE = 256  # ops that may wait


class OpLog:
    def __init__(self) -> None:
        self._ops: dict[str, SwitchOp] = {}
        self._queued: deque[str] = deque()  # in the order they were accepted
        self._running: str | None = None
        self._ended: deque[str] = deque()  # at most HISTORY_SIZE, the latest at the right
        self._step_began = 0.0  # monotonic

    def __len__(self) -> int:
        """Ops that wait."""
        return len(self._queued)

    def __iter__(self) -> Iterator[SwitchOp]:
        """Ops that wait, in their order."""
        return (self._ops[op_id] for op_id in self._queued)

    @property
    def running(self) -> SwitchOp | None:
        return self._ops[self._running] if self._running is not None else None

    @property
    def last(self) -> SwitchOp | None:
        """The op that ended last."""
        return self._ops[self._ended[-1]] if self._ended else None

    def get(self, op_id: str) -> SwitchOp:
        """Raises NotFound."""
        try:
            return self._ops[op_id]
        except KeyError:
            raise NotFound(f"no op {op_id!r}; the daemon remembers the last {HISTORY_SIZE} ended ones") from None

    def add(self, target_model_id: str) -> SwitchOp:
        """Raises QueueFull."""
        if len(self._queued) >= QUEUE_SIZE:
            raise QueueFull(f"{QUEUE_SIZE} switches wait already", retry_after_s=10)
        op = SwitchOp(f"op-{secrets.token_hex(8)}", target_model_id, OpState.QUEUED, queued_at=time.time())
        self._ops[op.op_id] = op
        self._queued.append(op.op_id)
        return op

    def start_next(self) -> SwitchOp:
        assert self._running is None, "ops run one at a time"
        self._running = self._queued.popleft()
        self._step_began = time.monotonic()
        return self._change(self._running, state=OpState.RUNNING, started_at=time.time())

    def step(self, step: Step, pct: int) -> SwitchOp:
        """The running op has come to `pct` of `step`; 100 ends the step and takes its time."""
        assert self._running is not None
        steps_ms = self._ops[self._running].steps_ms
        if pct == 100:
            now = time.monotonic()
            steps_ms = {**steps_ms, step.value: round((now - self._step_began) * 1000, 3)}
            self._step_began = now
        return self._change(self._running, step=step, pct=pct, steps_ms=steps_ms)

    def end(self, state: OpState, error: OpError | None) -> SwitchOp:
        """The running op has ended."""
        assert self._running is not None
        op_id, self._running = self._running, None
        return self._end(op_id, state, error)

    def cancel_next(self, error: OpError) -> SwitchOp:
        """The first op that waits ends without having run; its id is put into the error."""
        op_id = self._queued.popleft()
        target = self._ops[op_id].target_model_id
        return self._end(op_id, OpState.CANCELLED, replace(error, op_id=op_id, model_id=target))

    # -- helpers

    def _end(self, op_id: str, state: OpState, error: OpError | None) -> SwitchOp:
        assert state.ended
        if len(self._ended) == HISTORY_SIZE:
            del self._ops[self._ended.popleft()]
        self._ended.append(op_id)
        return self._change(op_id, state=state, error=error, ended_at=time.time())

    def _change(self, op_id: str, **fields: object) -> SwitchOp:
        op = replace(self._ops[op_id], **fields)  # type: ignore[arg-type]
        self._ops[op_id] = op
        return op
