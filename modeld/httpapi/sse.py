"""What are the bytes of server-sent events? Frames, the keep-alive comment, Last-Event-ID (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import json
from collections.abc import Mapping

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"

# Milliseconds until a browser comes back to /events, which else waits 3 to 5 s. Goes before an event's other lines: a client
# in Python takes a `retry:` that stands alone for an empty event. Never on /v1/*.
RETRY = b"retry: 1000\n"

# no-transform and X-Accel-Buffering keep proxies from compressing or collecting what should arrive at once.
FIELDS: Mapping[str, str] = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}

_MAX_ID_LENGTH = 128


def event_frame(event_id: str, name: str, data: object) -> bytes:
    """An event with id and name, for /events. JSON has no line breaks, so the data is one line."""
    return f"id: {_one_line(event_id)}\nevent: {_one_line(name)}\ndata: {json.dumps(data)}\n\n".encode()


def passing_frame(name: str, data: object) -> bytes:
    """An event without an id: whoever comes back with Last-Event-ID goes on behind the last one that had one."""
    return f"event: {_one_line(name)}\ndata: {json.dumps(data)}\n\n".encode()


def data_frame(data: object) -> bytes:
    """A frame without id and name: on /v1/* anything else makes the official clients fail."""
    return f"data: {json.dumps(data)}\n\n".encode()


def last_event_id(header: str | None, query: str | None) -> str | None:
    """Where the client wants to go on: the header of a browser's reconnect, or the query of one that cannot set headers.

    The header is newer where both are given. Empty means from now on; one that is too long is no id of ours and is cut,
    so that it is answered with a resync like any other unknown one.
    """
    value = header or query
    return value[:_MAX_ID_LENGTH] if value else None


def _one_line(value: str) -> str:
    if "\n" in value or "\r" in value or "\0" in value:
        raise ValueError(f"{value[:80]!r} does not fit on one line of an event")
    return value
