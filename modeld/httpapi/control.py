"""What does the control plane answer to who only looks? /models /status /events."""

from __future__ import annotations

from collections.abc import Iterator

from modeld.errors import ModeldError
from modeld.events import Event, Snapshot, Subscription, SubscriptionEnded
from modeld.httpapi import schema, sse
from modeld.httpapi.message import Request, Response, StreamResponse, json_response
from modeld.httpapi.service import Service


def get_models(_: Request, service: Service) -> Response:
    return json_response(200, {"models": [schema.model_info_json(info) for info in service.models()]})


def get_status(_: Request, service: Service) -> Response:
    """The entity tag is what If-Match of /switch takes."""
    status = service.status()
    return json_response(200, schema.status_json(status), {"ETag": f'"{status.generation}"'})


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
