"""What does a handler get and give? Request, Response and StreamResponse; no sockets."""

from __future__ import annotations

import http
import json
import re
import urllib.parse
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field

from modeld.errors import InvalidRequest, ModeldError
from modeld.events import Subscription
from modeld.httpapi.caller import Caller
from modeld.httpapi.head import RequestHead
from modeld.httpapi.limits import Limits
from modeld.httpapi.quotas import Ticket
from modeld.httpapi.record import Record
from modeld.metrics import Registry

# RFC 9110 5.5. Values that come from a client or a file pass here: a CR LF in one would begin a field of the sender's
# own (http.server's send_header lets it through).
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")

Writes = Generator[tuple[bytes, ...], None, None]
"""Closed when the client left before the end."""

LAST_FRAME = b""  # may follow the last frame of a stream in the same write; saves a write and a packet


@dataclass(slots=True)
class Request:
    """One request whose head and body were read and found valid.

    `record` is what the log and the metrics will tell of it; handlers add what they know.
    `ticket` is its place among the requests of its client.
    `registry` has what the metrics tell now.
    `reply_fields` go with whatever answers the request, an error too; handlers add to it.
    `on_client_gone` registers the one call back that ends the work: it comes from the watch thread when the client
    leaves, or from the handler's own thread when the response could not be delivered whole.
    `try_write` sends frames of a stream whose first write is out, without waiting; another thread may call it while the
    handler waits for it. False: the rest goes out with the stream's next write, which may be empty, and must come.
    """

    record: Record
    caller: Caller
    ticket: Ticket
    head: RequestHead
    params: Mapping[str, str]  # from the path: {"op_id": "..."}; decoded
    body: bytes
    limits: Limits
    registry: Registry
    on_client_gone: Callable[[Callable[[], None]], None]
    try_write: Callable[[tuple[bytes, ...]], bool]
    reply_fields: dict[str, str] = field(default_factory=dict)

    @property
    def request_id(self) -> str:
        return self.record.request_id

    def take_body(self) -> bytes:
        """The body, which this forgets: a request that waits for minutes holds what was read out of it, and not both."""
        body, self.body = self.body, b""
        return body

    def query(self, name: str) -> str | None:
        """The first value of a query parameter; None where it is absent."""
        return next(iter(self.queries(name)), None)

    def has_query(self, name: str) -> bool:
        """Whether the parameter is there, with a value or without."""
        return bool(self.queries(name))

    def queries(self, name: str) -> list[str]:
        """All values of a query parameter, in their order."""
        try:
            pairs = urllib.parse.parse_qsl(self.head.query, keep_blank_values=True, errors="strict", max_num_fields=100)
        except ValueError:
            raise InvalidRequest("the query string is not UTF-8, or has more than 100 parameters") from None
        return [value for key, value in pairs if key == name]


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer."""

    status: int
    body: bytes
    fields: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class StreamResponse:
    """A status 200 whose body comes in writes; each is one or more frames that are ready now.

    `writes` may raise: the stream then ends with `error_frame` of the error and is otherwise complete. The status line
    goes out with the first write.
    """

    writes: Writes
    error_frame: Callable[[ModeldError], bytes]
    fields: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "text/event-stream"


@dataclass(frozen=True, slots=True)
class EventsResponse:
    """A status 200 whose body is `first`, and then the events of the subscription as they come (see followers.py).

    It ends when its caller's key is revoked, with `error_frame` of that. `figures`: with a look at the load now and then.
    """

    first: tuple[bytes, ...]  # frames
    before: bytes  # goes in front of the next event's lines
    subscription: Subscription
    error_frame: Callable[[ModeldError], bytes]
    fields: Mapping[str, str] = field(default_factory=dict)
    figures: bool = False


def json_response(status: int, value: object, fields: Mapping[str, str] | None = None) -> Response:
    return Response(status, json.dumps(value).encode(), fields or {})


def encode_head(status: int, fields: Iterable[tuple[str, str]], encoded: bytes = b"") -> bytes:
    """Status line, fields, lines that are `encoded` already, and the blank line.

    Raises ValueError for a value that would not stay on its line.
    """
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    lines = [f"HTTP/1.1 {status} {phrase}"]
    for name, value in fields:
        if not _FIELD_VALUE.fullmatch(value):
            raise ValueError(f"response field {name} has a value that is not one line: {value[:80]!r}")
        lines.append(f"{name}: {value}")
    return ("\r\n".join(lines) + "\r\n").encode("latin-1") + encoded + b"\r\n"


def chunk(frame: bytes) -> bytes:
    """One chunk of the chunked coding; an empty one ends the body (RFC 9112 7.1)."""
    return b"%x\r\n%b\r\n" % (len(frame), frame)
