"""What does the control plane answer to who only looks? /models /status /events and the probes."""

from __future__ import annotations

from collections.abc import Iterator

from modeld.errors import ModeldError
from modeld.events import Event, Snapshot, Subscription, SubscriptionEnded
from modeld.httpapi import schema, sse
from modeld.httpapi.caller import Access
from modeld.httpapi.message import Request, Response, StreamResponse, json_response
from modeld.httpapi.service import Service
from modeld.types import State, Status

_LOADING_RETRY_S = 1
_ERROR_RETRY_S = 10  # somebody has to switch first
_RESTART_RETRY_S = 5


def get_models(_: Request, service: Service) -> Response:
    return json_response(200, {"models": [schema.model_info_json(info) for info in service.models()]})


def get_status(_: Request, service: Service) -> Response:
    """The entity tag is what If-Match of /switch takes."""
    status = service.status()
    return json_response(200, schema.status_json(status), {"ETag": f'"{status.generation}"'})


def get_livez(_: Request, __: Service) -> Response:
    """The process serves; it asks nobody, so that a busy or stuck model cannot fail it."""
    return json_response(200, {"status": "ok"})


def get_readyz(_: Request, service: Service) -> Response:
    status = service.status()
    body: schema.Json = {"state": status.state.value, "current_model": status.current_model}
    if status.stopping:
        body["stopping"] = True
    if _answers(status):
        return json_response(200, body)
    return json_response(503, body, {"Retry-After": str(_retry_s(status))})


def get_health(request: Request, service: Service) -> Response:
    """llama-server's bodies, which its users' scripts compare. Why a load failed (paths) is for who may use the daemon."""
    status = service.status()
    if _answers(status):
        return json_response(200, {"status": "ok"})
    message = "Loading model"
    if status.stopping:
        message = "The server is stopping"
    elif status.state is State.ERROR:
        may_know = Access.USE in request.caller.may
        message = status.error.message if status.error and may_know else "No model is loaded"
    error = {"code": 503, "message": message, "type": "unavailable_error"}
    return json_response(503, {"error": error}, {"Retry-After": str(_retry_s(status))})


def _retry_s(status: Status) -> int:
    if status.stopping:
        return _RESTART_RETRY_S
    return _LOADING_RETRY_S if status.state is State.LOADING else _ERROR_RETRY_S


def _answers(status: Status) -> bool:
    """A model does; or, with auto_switch, the next request brings one."""
    return not status.stopping and status.state is State.READY and (status.current_model is not None or status.auto_switch)


# -- events


def get_events(request: Request, service: Service) -> StreamResponse:
    last_event_id = sse.last_event_id(request.head.field("last-event-id"), request.query("last_event_id"))
    request.ticket.begin_stream()
    subscription = service.subscribe(last_event_id)
    request.on_client_gone(subscription.close)
    writes = _event_writes(subscription, request.limits.heartbeat_s)
    return StreamResponse(writes, error_frame=_error_event, fields=sse.FIELDS, endless=True)


def _event_writes(subscription: Subscription, heartbeat_s: float) -> Iterator[tuple[bytes, ...]]:
    wait_s = 0.0  # a replay sends what was missed, or a comment: its head must not wait for an event that may be far
    before = sse.RETRY  # the first event
    if subscription.first is not None:
        first, *more = _first_frames(subscription.first)
        yield before + first, *more
        before, wait_s = b"", heartbeat_s
    while True:
        try:
            events = subscription.take(wait_s)
        except SubscriptionEnded:
            return
        if events:
            first, *more = [_frame(event) for event in events]
            yield before + first, *more
            before = b""
        else:
            yield (sse.KEEP_ALIVE,)
        wait_s = heartbeat_s


def _first_frames(first: Snapshot) -> tuple[bytes, ...]:
    snapshot = sse.event_frame(first.id, "snapshot", schema.status_json(first.status))
    if not first.resync:
        return (snapshot,)
    reason = "the events after Last-Event-ID are no longer held; a snapshot follows"
    return sse.event_frame(first.id, "resync", {"reason": reason}), snapshot


def _frame(event: Event) -> bytes:
    return sse.event_frame(event.id, event.name, dict(event.data))


def _error_event(error: ModeldError) -> bytes:
    """A fault of ours in the middle of the stream: a comment, so that no reader takes it for an event with an id."""
    return f": {error.code}\n\n".encode()
