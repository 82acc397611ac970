"""What became of each switch? OpLog: one record an op, from queued to ended, with a bounded memory of ended ones.

Pure bookkeeping: no lock, no thread. The Lifecycle owns one and calls it with its condition held.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

from modeld.errors import NotFound, QueueFull
from modeld.policy import Strategy, SwitchOptions
from modeld.types import OpError, OpKind, OpReason, OpState, Phase, Step, SwitchOp

HISTORY_SIZE = 256  # ended ops that can still be asked for
QUEUE_SIZE = 256  # ops that may wait
DEFAULTS = SwitchOptions()


class OpLog:
    def __init__(self) -> None:
        self._ops: dict[str, SwitchOp] = {}
        self._queued: deque[str] = deque()  # in the order they were accepted
        self._running: str | None = None
        self._ended: deque[str] = deque()  # at most HISTORY_SIZE, the latest at the right
        self._began = 0.0  # monotonic: when the running op's step or phase did

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

    @property
    def last_accepted(self) -> SwitchOp | None:
        """Of those that run or wait, the one that is to end last."""
        return self._ops[self._queued[-1]] if self._queued else self.running

    def history(self) -> list[SwitchOp]:
        """All that are remembered, the newest first: those that wait, the one that runs, those that have ended."""
        ids = [*self._ended, *([self._running] if self._running is not None else []), *self._queued]
        return [self._ops[op_id] for op_id in reversed(ids)]

    def get(self, op_id: str) -> SwitchOp:
        """Raises NotFound."""
        try:
            return self._ops[op_id]
        except KeyError:
            raise NotFound(f"no op {op_id!r}; the daemon remembers the last {HISTORY_SIZE} ended ones") from None

    def recall(self, ended: Iterable[SwitchOp]) -> None:
        """Remember ops that ended in an earlier life of the daemon, oldest first; before any other."""
        for op in ended:
            if op.op_id not in self._ops and op.state.ended:
                self._ops[op.op_id] = op
                self._remember_ended(op.op_id)

    def add(
        self,
        target_model_id: str | None,
        *,
        kind: OpKind = OpKind.SWITCH,
        reason: OpReason = OpReason.REQUEST,
        options: SwitchOptions = DEFAULTS,
    ) -> SwitchOp:
        """Raises QueueFull."""
        if len(self._queued) >= QUEUE_SIZE:
            raise QueueFull(f"{QUEUE_SIZE} switches wait already", retry_after_s=10)
        op = SwitchOp(
            f"op-{secrets.token_hex(8)}",
            target_model_id,
            OpState.QUEUED,
            queued_at=time.time(),
            kind=kind,
            reason=reason,
            options=options,
        )
        self._ops[op.op_id] = op
        self._queued.append(op.op_id)
        return op

    def start_next(self) -> SwitchOp:
        assert self._running is None, "ops run one at a time"
        self._running = self._queued.popleft()
        self._began = time.monotonic()
        now = time.time()
        return self._change(self._running, state=OpState.RUNNING, started_at=now, last_progress_at=now)

    def step(self, step: Step, pct: int) -> SwitchOp:
        """The running op has come to `pct` of `step`; 100 ends the step and takes its time."""
        return self._progress(step.value, pct, phase=None, step=step)

    def phase(self, phase: Phase, pct: int) -> SwitchOp:
        """The running op has come to `pct` of `phase`; 100 ends it and takes its time."""
        return self._progress(phase.value, pct, phase=None if pct == 100 else phase)

    def take_strategy(self, strategy: Strategy) -> SwitchOp:
        assert self._running is not None
        return self._change(self._running, strategy=strategy)

    def cancelling(self) -> SwitchOp:
        """The running op was told to end."""
        assert self._running is not None
        return self._change(self._running, cancelling=True)

    def end(self, state: OpState, error: OpError | None, *, rolled_back_to: str | None = None) -> SwitchOp:
        """The running op has ended."""
        assert self._running is not None
        op_id, self._running = self._running, None
        return self._end(op_id, state, error, rolled_back_to=rolled_back_to)

    def cancel(self, op_id: str, error: OpError) -> SwitchOp:
        """An op that waits ends without having run; its id and target are put into the error."""
        self._queued.remove(op_id)
        return self._end(op_id, OpState.CANCELLED, replace(error, op_id=op_id, model_id=self._ops[op_id].target_model_id))

    # -- helpers

    def _progress(self, name: str, pct: int, **fields: object) -> SwitchOp:
        assert self._running is not None
        steps_ms = self._ops[self._running].steps_ms
        if pct == 0:
            self._began = time.monotonic()
        elif pct == 100:
            steps_ms = {**steps_ms, name: round((time.monotonic() - self._began) * 1000, 3)}
        return self._change(self._running, pct=pct, steps_ms=steps_ms, last_progress_at=time.time(), **fields)

    def _end(self, op_id: str, state: OpState, error: OpError | None, *, rolled_back_to: str | None = None) -> SwitchOp:
        assert state.ended
        self._remember_ended(op_id)
        return self._change(
            op_id, state=state, error=error, rolled_back_to=rolled_back_to, phase=None, cancelling=False, ended_at=time.time()
        )

    def _remember_ended(self, op_id: str) -> None:
        if len(self._ended) == HISTORY_SIZE:
            del self._ops[self._ended.popleft()]
        self._ended.append(op_id)

    def _change(self, op_id: str, **fields: object) -> SwitchOp:
        op = replace(self._ops[op_id], **fields)  # type: ignore[arg-type]
        self._ops[op_id] = op
        return op
