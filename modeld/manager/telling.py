"""What is told of an op while it runs? Teller: the record, the event and the log line of each step, always together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from modeld.manager.state import Lifecycle
from modeld.types import FileFacts, Phase, Step, SwitchOp

log = logging.getLogger("modeld.switch")

Publish = Callable[..., None]
"""publish(name, op, **data): an event of the op, which left the daemon in the status that holds now."""


class Teller:
    """The switch thread's alone."""

    def __init__(self, life: Lifecycle, publish: Publish) -> None:
        self._life = life
        self.event = publish
        self._begun: str | None = None  # the op whose model_switch_started was published last

    def start(self, op: SwitchOp, steps: Sequence[Step], **data: object) -> None:
        """The op began; `steps` are the ones that will report percents."""
        self._begun = op.op_id
        self.event("model_switch_started", op, steps=[step.value for step in steps], **data)

    def has_begun(self, op: SwitchOp) -> bool:
        return self._begun == op.op_id

    def step(self, op: SwitchOp, facts: FileFacts, step: Step, pct: int) -> None:
        """The running op has come to `pct` of the step; `facts` are its file's."""
        op = self._life.step(step, pct)
        data: dict[str, object] = {}
        if step is Step.MMAP and facts.size_bytes is not None:
            data = {"bytes": facts.size_bytes * pct // 100, "bytes_total": facts.size_bytes}
        self.event("model_loading_progress", op, step=step.value, pct=pct, **data)
        if pct == 100:
            log.info("%s done", step, extra={**op_fields(op), "ms": op.steps_ms[step.value]})

    def phase(self, op: SwitchOp, phase: Phase, pct: int, done: int = 0, total: int = 0, **data: object) -> None:
        """The running op has come to `pct` of the phase; bytes done and in all, 0 and 0 where it has none."""
        op = self._life.phase(phase, pct)
        if total:
            data |= {"bytes": done, "bytes_total": total}
        self.event("model_switch_phase", op, phase=phase.value, pct=pct, **data)
        if pct == 100:
            log.info("%s done", phase, extra={**op_fields(op), "ms": op.steps_ms[phase.value]})


def op_fields(op: SwitchOp) -> dict[str, object]:
    """What every log line of an op carries."""
    return {"op_id": op.op_id, "model_id": op.target_model_id}
