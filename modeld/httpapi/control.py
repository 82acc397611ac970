"""What does the control plane answer to who only looks? /models /status /events."""

from __future__ import annotations

from modeld.errors import ModeldError, ShuttingDown
from modeld.events import Snapshot, SubscriptionEnded
from modeld.httpapi import schema, sse
from modeld.httpapi.caller import Access
from modeld.httpapi.message import EventsResponse, Request, Response, json_response
from modeld.httpapi.service import Service


def get_models(_: Request, service: Service) -> Response:
    return json_response(200, {"models": [schema.model_info_json(info) for info in service.models()]})


def get_status(request: Request, service: Service) -> Response:
    """The entity tag is what If-Match of /switch takes."""
    status = service.status()
    return json_response(200, schema.status_json(status), {"ETag": f'"{status.generation}"', **_scope(request)})


def _scope(request: Request) -> dict[str, str]:
    """What the caller may: a page or a program need not try what is refused."""
    return {"X-Modeld-Scope": "admin" if Access.ADMIN in request.caller.may else "use"}


# -- events


def get_events(request: Request, service: Service) -> EventsResponse:
    last_event_id = sse.last_event_id(request.head.field("last-event-id"), request.query("last_event_id"))
    figures = request.has_query("figures")
    request.ticket.begin_stream()
    subscription = service.subscribe(last_event_id)
    before = sse.RETRY  # the first event
    if subscription.first is not None:
        first, *more = _first_frames(subscription.first)
    else:
        try:
            missed = subscription.take(0)
        except SubscriptionEnded:
            raise ShuttingDown("the daemon is stopping") from None
        # A replay sends what was missed, or a comment: its head must not wait for an event that may be far.
        first, *more = [sse.event_frame(event.id, event.name, dict(event.data)) for event in missed] or [b""]
    frames, before = ((before + first, *more), b"") if first else ((sse.KEEP_ALIVE,), before)
    return EventsResponse(frames, before, subscription, _error_event, {**sse.FIELDS, **_scope(request)}, figures)


def _first_frames(first: Snapshot) -> tuple[bytes, ...]:
    snapshot = sse.event_frame(first.id, "snapshot", schema.status_json(first.status))
    if not first.resync:
        return (snapshot,)
    reason = "the events after Last-Event-ID are no longer held; a snapshot follows"
    return sse.event_frame(first.id, "resync", {"reason": reason}), snapshot


def _error_event(error: ModeldError) -> bytes:
    """What ends the stream before its time: a comment, so that no reader takes it for an event with an id."""
    return f": {error.code}\n\n".encode()
