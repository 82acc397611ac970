"""What do the routes answer that change something? /switch /unload /ops /reload /quarantine."""

from __future__ import annotations

import enum
import re
import threading
from dataclasses import dataclass, replace
from typing import TypeVar

from modeld import errors
from modeld.errors import InvalidRequest, ModeldError
from modeld.httpapi import schema
from modeld.httpapi.fields import Fields, brief
from modeld.httpapi.message import Request, Response, json_response
from modeld.httpapi.service import Service
from modeld.httpapi.strictjson import parse_object
from modeld.policy import OnBusy, OnFailure, OnInflight, Strategy, SwitchOptions
from modeld.types import OpState, SwitchOp

MAX_WAIT_S = 3600.0
MAX_DRAIN_S = 86_400
MAX_READY_DELAY_S = 3600
MAX_LISTED = 256

E = TypeVar("E", bound=enum.StrEnum)


@dataclass(frozen=True, slots=True)
class SwitchRequest:
    model_id: str
    options: SwitchOptions
    dry_run: bool


def post_switch(request: Request, service: Service) -> Response:
    asked = parse_switch(request.body, service.default_options())
    wait_s, if_match = _wait_s(request), _if_match(request)
    if asked.dry_run:
        return json_response(200, schema.plan_json(service.plan(asked.model_id, asked.options)))
    op, joined = service.switch(asked.model_id, asked.options, if_match=if_match)
    return _accepted(request, service, op, wait_s, joined=joined)


def post_unload(request: Request, service: Service) -> Response:
    options = parse_options(Fields(parse_object(request.body or b"{}")), service.default_options())
    wait_s = _wait_s(request)
    op, joined = service.unload(options, if_match=_if_match(request))
    return _accepted(request, service, op, wait_s, joined=joined)


def get_ops(request: Request, service: Service) -> Response:
    limit = MAX_LISTED
    if (text := request.query("limit")) is not None:
        if re.fullmatch(r"[0-9]{1,4}", text) is None or not 1 <= int(text) <= MAX_LISTED:
            raise InvalidRequest(f"limit is {brief(text)}; allowed is 1 to {MAX_LISTED}", param="limit")
        limit = int(text)
    return json_response(200, {"ops": [schema.op_json(op) for op in service.ops()[:limit]]})


def get_op(request: Request, service: Service) -> Response:
    return json_response(200, schema.op_json(service.op(request.params["op_id"])))


def delete_op(request: Request, service: Service) -> Response:
    """200: it has ended by that; 202: it was told to."""
    op = service.cancel(request.params["op_id"])
    return json_response(200 if op.state.ended else 202, schema.op_json(op))


def post_reload(request: Request, service: Service) -> Response:
    parse_object(request.body or b"{}")  # nothing in it counts, but what is no object was meant for somebody else
    return json_response(200, schema.reload_json(service.reload()))


def delete_quarantine(request: Request, service: Service) -> Response:
    service.lift_quarantine(request.params["model_id"])
    return json_response(200, {"model_id": request.params["model_id"], "quarantined": False})


# -- the requests


def parse_switch(body: bytes, defaults: SwitchOptions) -> SwitchRequest:
    """Raises InvalidRequest."""
    fields = Fields(parse_object(body))
    model_id = fields.required_string("model_id")
    if not model_id:
        raise InvalidRequest("model_id is empty; GET /models lists the ids", param="model_id")
    return SwitchRequest(model_id, parse_options(fields, defaults), fields.boolean("dry_run", False))


def parse_options(fields: Fields, defaults: SwitchOptions) -> SwitchOptions:
    """Raises InvalidRequest."""
    return replace(
        defaults,
        on_inflight=_choice(fields, "on_inflight", defaults.on_inflight, OnInflight),
        drain_timeout_s=fields.number("drain_timeout_s", defaults.drain_timeout_s, 0, MAX_DRAIN_S),
        on_busy=_choice(fields, "on_busy", defaults.on_busy, OnBusy),
        on_failure=_choice(fields, "on_failure", defaults.on_failure, OnFailure),
        strategy=_choice(fields, "strategy", defaults.strategy, Strategy),
        ready_delay_s=fields.number("ready_delay_s", defaults.ready_delay_s, 0, MAX_READY_DELAY_S),
        force=fields.boolean("force", False),
    )


def _choice(fields: Fields, member: str, default: E, kind: type[E]) -> E:
    text = fields.string(member)
    if text is None:
        return default
    try:
        return kind(text)
    except ValueError:
        raise InvalidRequest(f"{member} is {brief(text)}; allowed are {', '.join(kind)}", param=member) from None


def _wait_s(request: Request) -> float | None:
    """How long the answer may wait for the op's end; None: not at all."""
    text = request.query("wait")
    if text is None:
        return None
    # As languages write a float, 0.30000000000000004 and 1e-06 too: whoever asks computes what is left of its own time.
    if re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,20})?(e-[0-9]{1,2})?", text) is None or float(text) > MAX_WAIT_S:
        raise InvalidRequest(f"wait is {brief(text)}; allowed is 0 to {MAX_WAIT_S:.0f} seconds", param="wait")
    return float(text)


def _if_match(request: Request) -> int | None:
    """The generation that the client has seen, as an entity tag or bare."""
    text = request.head.field("if-match")
    if text is None or text.strip() == "*":
        return None
    match = re.fullmatch(r'"?([0-9]{1,18})"?', text.strip())
    if match is None:
        raise InvalidRequest(f"If-Match is {brief(text)}; the generation of /status is expected", param="If-Match")
    return int(match[1])


# -- the answers


def _accepted(request: Request, service: Service, op: SwitchOp, wait_s: float | None, *, joined: bool) -> Response:
    fields = {"Location": f"/ops/{op.op_id}"}
    if wait_s is None:
        accepted: schema.Json = {"op_id": op.op_id, "target_model_id": op.target_model_id, "state": op.state.value}
        if joined:
            accepted["joined"] = True
        return json_response(202, accepted, fields)
    gone = threading.Event()

    def leave() -> None:
        gone.set()
        service.look_again()

    request.on_client_gone(leave)
    op = service.wait_op(op.op_id, wait_s, gone.is_set)
    return json_response(_status_of(op), schema.op_json(op) | {"joined": joined}, fields)


def _status_of(op: SwitchOp) -> int:
    """What an op came to, as a status: 200 it succeeded, 202 it goes on, 409 it was cancelled, else that of its error."""
    if not op.state.ended:
        return 202
    if op.state is OpState.SUCCEEDED:
        return 200
    if op.state is OpState.CANCELLED or op.error is None:
        return 409
    return _STATUS_BY_CODE.get(op.error.code, 500)


def _kinds(kind: type[ModeldError]) -> list[type[ModeldError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _kinds(child))]


_STATUS_BY_CODE = {kind.code: kind.status for kind in _kinds(errors.ModeldError)}
