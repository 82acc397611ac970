"""How does an op outlive the daemon? A record of the journal for each that ended, and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from modeld.policy import Strategy
from modeld.types import OpError, OpKind, OpReason, OpState, SwitchOp


def record_of(op: SwitchOp) -> dict[str, Any]:
    error = op.error
    return {
        "op_id": op.op_id,
        "kind": op.kind.value,
        "reason": op.reason.value,
        "target_model_id": op.target_model_id,
        "state": op.state.value,
        "strategy": op.strategy.value if op.strategy is not None else None,
        "error": None if error is None else {"code": error.code, "message": error.message, "model_id": error.model_id},
        "rolled_back_to": op.rolled_back_to,
        "queued_at": op.queued_at,
        "started_at": op.started_at,
        "ended_at": op.ended_at,
        "steps_ms": op.steps_ms,
    }


def recalled(records: Iterable[dict[str, Any]]) -> list[SwitchOp]:
    """The ops of those records that are whole; the file may be of another version, or somebody's work."""
    ops = []
    for record in records:
        try:
            ops.append(_op(record))
        except (KeyError, TypeError, ValueError):
            continue
    return ops


def _op(record: dict[str, Any]) -> SwitchOp:
    op_id = _text(record["op_id"])
    target = record["target_model_id"]
    said = record["error"]
    error = None if said is None else OpError(_text(said["code"]), _text(said["message"]), said.get("model_id"), op_id)
    strategy = record["strategy"]
    return SwitchOp(
        op_id,
        None if target is None else _text(target),
        OpState(record["state"]),
        queued_at=float(record["queued_at"]),
        kind=OpKind(record["kind"]),
        reason=OpReason(record["reason"]),
        strategy=None if strategy is None else Strategy(strategy),
        error=error,
        rolled_back_to=None if record["rolled_back_to"] is None else _text(record["rolled_back_to"]),
        started_at=None if record["started_at"] is None else float(record["started_at"]),
        ended_at=float(record["ended_at"]),
        steps_ms={_text(name): float(ms) for name, ms in record["steps_ms"].items()},
    )


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > 1 << 16:
        raise TypeError
    return value
