"""How do modeld's values look in JSON, and what do the small requests say? (For generation see parameters.py.)

Shapes are those of the contract; times are seconds since the epoch as floats.
"""

from __future__ import annotations

from dataclasses import dataclass

from modeld.errors import MethodNotAllowed, ModeldError, RateLimitExceeded, Unavailable, UnsupportedMediaType
from modeld.httpapi.fields import Fields, missing, token_ids
from modeld.httpapi.strictjson import parse_object
from modeld.types import LoadedModel, ModelInfo, OpError, ReloadResult, SamplingParams, Status, SwitchOp, SwitchPlan

Json = dict[str, object]


# -- requests


def check_content_type(value: str | None) -> None:
    """A page of another site can send text/plain without asking first, but not application/json (CORS preflight).

    Raises UnsupportedMediaType.
    """
    media_type = (value or "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType(f"Content-Type is {ascii(value) if value else 'missing'}; send application/json")


@dataclass(frozen=True, slots=True)
class TokenizeRequest:
    content: str
    add_special: bool
    parse_special: bool
    with_pieces: bool


def parse_tokenize(body: bytes) -> TokenizeRequest:
    """Defaults as llama-server's. Raises InvalidRequest."""
    fields = Fields(parse_object(body))
    return TokenizeRequest(
        content=fields.required_string("content"),
        add_special=fields.boolean("add_special", False),
        parse_special=fields.boolean("parse_special", True),
        with_pieces=fields.boolean("with_pieces", False),
    )


def parse_detokenize(body: bytes) -> tuple[int, ...]:
    """Raises InvalidRequest."""
    tokens = Fields(parse_object(body)).array("tokens")
    if tokens is None:
        raise missing("tokens", "an array of token ids")
    return token_ids(tokens, "tokens")


# -- answers


def status_json(status: Status) -> Json:
    return {
        "state": status.state.value,
        "current_model": status.current_model,
        "error": op_error_json(status.error),
        "op": op_json(status.op) if status.op else None,
        "queued_ops": status.queued_ops,
        "last_op": op_json(status.last_op) if status.last_op else None,
        "slots": {"total": status.load.slots_total, "busy": status.load.slots_busy},
        "queue": status.load.queued,
        "generation": status.generation,
        "version": status.version,
        "uptime_s": round(status.uptime_s, 3),
        "last_progress_at": status.op.last_progress_at if status.op else None,
        "retiring_model": status.retiring_model,
        "auto_switch": status.auto_switch,
        "waiting": status.waiting,
        "config_stale": status.config_stale,
        "config_error": status.config_error,
        "quarantined": list(status.quarantined),
        "diverting": status.diverting,
        "stopping": status.stopping,
    }


def op_json(op: SwitchOp) -> Json:
    return {
        "op_id": op.op_id,
        "kind": op.kind.value,
        "reason": op.reason.value,
        "target_model_id": op.target_model_id,
        "state": op.state.value,
        "cancelling": op.cancelling,
        "strategy": op.strategy.value if op.strategy else None,
        "phase": op.phase.value if op.phase else None,
        "step": op.step.value if op.step else None,
        "pct": op.pct,
        "error": op_error_json(op.error),
        "rolled_back_to": op.rolled_back_to,
        "queued_at": op.queued_at,
        "started_at": op.started_at,
        "ended_at": op.ended_at,
        "steps_ms": {step: round(ms, 3) for step, ms in op.steps_ms.items()},
    }


def plan_json(plan: SwitchPlan) -> Json:
    return {
        "dry_run": True,
        "target_model_id": plan.target_model_id,
        "ok": plan.error is None,
        "action": plan.action,
        "strategy": plan.strategy.value,
        "leaves": plan.leaves,
        "error": op_error_json(plan.error),
    }


def reload_json(result: ReloadResult) -> Json:
    return {
        "changed": result.changed,
        "models": result.models,
        "added": list(result.added),
        "removed": list(result.removed),
        "altered": list(result.altered),
        "restart_needed": list(result.restart_needed),
    }


def op_error_json(error: OpError | None) -> Json | None:
    if error is None:
        return None
    return {"code": error.code, "message": error.message, "model_id": error.model_id, "op_id": error.op_id}


def model_info_json(info: ModelInfo) -> Json:
    return {
        "id": info.id,
        "name": info.name,
        "path": info.path,
        "quant": info.quant,
        "family": info.family,
        "state": info.state,
        "size_bytes": info.size_bytes,
        "n_params": info.n_params,
        "n_ctx_train": info.n_ctx_train,
        "n_ctx": info.n_ctx,
        "n_parallel": info.n_parallel,
        "chat_template": info.chat_template,
    }


def openai_model_json(model: LoadedModel) -> Json:
    """`meta` as llama-server gives it."""
    return {
        "id": model.id,
        "object": "model",
        "created": int(model.loaded_at),
        "owned_by": "modeld",
        "meta": {
            "n_vocab": model.n_vocab,
            "n_ctx": model.n_ctx_slot,
            "n_ctx_train": model.n_ctx_train,
            "n_embd": model.n_embd,
            "n_params": model.n_params,
            "description": model.description,
        },
    }


def openai_entry_json(info: ModelInfo) -> Json:
    """A registered model that is not loaded: nobody knows when it was made, so `created` is 0."""
    return {"id": info.id, "object": "model", "created": 0, "owned_by": "modeld", "meta": None}


def props_json(model: LoadedModel, version: str) -> Json:
    """llama-server's /props, as far as modeld has its fields."""
    sampling = SamplingParams()
    return {
        "default_generation_settings": {
            "n_ctx": model.n_ctx_slot,
            "params": {
                "temperature": sampling.temperature,
                "top_k": sampling.top_k,
                "top_p": sampling.top_p,
                "min_p": sampling.min_p,
                "typical_p": sampling.typical_p,
                "repeat_penalty": sampling.repeat_penalty,
                "repeat_last_n": sampling.repeat_last_n,
                "presence_penalty": sampling.presence_penalty,
                "frequency_penalty": sampling.frequency_penalty,
                "n_predict": -1,
            },
        },
        "total_slots": model.n_slots,
        "pooling": model.pooling,
        "model_alias": model.id,
        "model_path": model.path,
        "modalities": {"vision": False, "audio": False},
        "chat_template": model.chat_template or "",
        "chat_template_engine": model.chat_template_engine,
        "chat_template_caps": {"supports_tools": model.shows_tools, "supports_tool_calls": model.shows_tool_calls},
        "tool_call_format": model.tool_call_format,
        "bos_token": model.bos_piece,
        "eos_token": model.eos_piece,
        "build_info": f"modeld {version}",
    }


def piece_json(piece: bytes) -> str | list[int]:
    """As llama-server: text where it is UTF-8, else the bytes as numbers."""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return list(piece)


def error_json(error: ModeldError) -> Json:
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def error_fields(error: ModeldError) -> dict[str, str]:
    """The header fields that an error brings.

    The OpenAI clients repeat 409, 429 and 5xx by themselves after Retry-After, unless told that waiting cures nothing.
    """
    fields: dict[str, str] = {}
    if isinstance(error, MethodNotAllowed):  # with no method at all, too (RFC 9110 10.2.1)
        fields["Allow"] = ", ".join(error.allow)
    if error.status == 401:
        fields["WWW-Authenticate"] = 'Bearer realm="modeld"'
    if error.status in (409, 507) or error.code in ("no_model", "model_quarantined"):
        fields["x-should-retry"] = "false"
    elif error.status == 429 or isinstance(error, Unavailable):
        fields["Retry-After"] = str(error.retry_after_s or 1)
        if isinstance(error, RateLimitExceeded):  # the OpenAI clients look for this first
            fields["retry-after-ms"] = str(error.retry_after_ms)
    elif error.retry_after_s is not None:
        fields["Retry-After"] = str(error.retry_after_s)
    return fields
