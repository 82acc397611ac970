"""How does one request become one response? Read, route, check, call, send; the error boundary and the access log.

Confined to the connection's thread. Whatever goes wrong ends here: a typed error becomes its JSON answer, anything else
is logged with its trace and becomes a 500 that says nothing but the request id.
"""

from __future__ import annotations

import contextlib
import enum
import http
import logging
import re
import time
import traceback
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from email.utils import formatdate

from modeld.errors import InternalError, ModeldError, RequestCancelled, RequestTimeout
from modeld.httpapi import accesslog, browser, schema
from modeld.httpapi.auth import Gate
from modeld.httpapi.body import check_length, read_body
from modeld.httpapi.caller import Access, Caller
from modeld.httpapi.connection import Connection, Disconnected
from modeld.httpapi.followers import Follower, Followers
from modeld.httpapi.head import RequestHead, parse_head
from modeld.httpapi.message import (
    LAST_FRAME,
    EventsResponse,
    Request,
    Response,
    StreamResponse,
    chunk,
    encode_head,
    json_response,
)
from modeld.httpapi.metrics import Meter
from modeld.httpapi.quotas import Quotas, Ticket
from modeld.httpapi.record import CLIENT_GONE, Record
from modeld.httpapi.router import Route, known_path, match, options
from modeld.httpapi.service import Service
from modeld.httpapi.watch import ClientWatch

log = logging.getLogger("modeld.http")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# No Content-Length either: of 304 it would be that of the answer with content (RFC 9110 8.6).
_WITHOUT_CONTENT = (http.HTTPStatus.NO_CONTENT, http.HTTPStatus.NOT_MODIFIED)
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Site:
    """What all exchanges of one server share."""

    service: Service
    watch: ClientWatch
    followers: Followers
    stopping: Callable[[], bool]  # the server closes: no response promises another one
    gate: Gate
    quotas: Quotas
    depending: Callable[[Connection], AbstractContextManager[None]]  # while its client is waited for
    meter: Meter


class After(enum.Enum):
    """What becomes of a connection whose request was answered."""

    NEXT = "next"  # it can carry another one
    CLOSE = "close"
    HANDED_OVER = "handed over"  # it is the followers' now


class Exchange:
    """One request and its response on a connection; `run` once."""

    def __init__(self, connection: Connection, site: Site) -> None:
        self._connection = connection
        self._site = site
        self._limits = connection.limits
        self._rules = site.gate.rules
        self._record = Record(uuid.uuid4().hex)
        self._reply_fields: dict[str, str] = {}
        self._head: RequestHead | None = None
        self._origin: str | None = None  # of another site, which may read the answer
        self._access = Access.OPEN  # what the route asks for
        self._ticket: Ticket | None = None
        self._unread_bytes = 0  # of the request's body; -1: unknown, the connection cannot be kept
        self._on_gone: Callable[[], None] | None = None
        self._error_frame: Callable[[ModeldError], bytes] | None = None  # of events that are followed
        self._failed = False  # the handler raised
        self._sent_before = connection.sent_bytes
        self._finished = False  # what the handler wanted to say was handed to the kernel, all of it

    def run(self, raw_head: bytes) -> After:
        """Answer the request with that head. Raises Disconnected where the client left before it had its answer."""
        after = After.CLOSE
        try:
            response = self._answer(raw_head)
            if isinstance(response, EventsResponse) and not self._is_head():
                self._begin_events(response)
                after = After.HANDED_OVER
                return after
            keep = self._may_keep(response)
            self._send(response, keep)
            after = After.NEXT if keep and self._skip_unread() else After.CLOSE
            return after
        except Disconnected:
            self._record.status = CLIENT_GONE
            raise
        finally:
            if after is not After.HANDED_OVER:
                self.conclude()

    def conclude(self) -> None:
        """The last act, whichever thread comes to it: the connection's, or the followers' where they took it over."""
        try:
            self._site.watch.remove(self._connection.sock.fileno())
            if self._on_gone is not None and not self._finished:
                self._on_gone()
        finally:  # whatever fails there: else its client would have one request open for ever
            self._end()

    def _skip_unread(self) -> bool:
        """Read the rest of the body away; False where it does not come. The request was answered, so that is no error."""
        if not self._unread_bytes:
            return True
        try:
            with self._site.depending(self._connection):  # who was refused, and sends no body, holds no place against others
                self._connection.skip(self._unread_bytes, time.monotonic() + self._limits.body_s)
        except (RequestTimeout, Disconnected):
            return False
        return True

    def refuse(self, error: ModeldError) -> None:
        """Answer something that is no request: a head that did not come, or came wrong, or one connection too many."""
        self._unread_bytes = -1
        try:
            self._send(self._error_response(error), keep=False)
        except Disconnected:
            self._record.status = CLIENT_GONE
        self._end()

    # -- the answer

    def _answer(self, raw_head: bytes) -> Response | StreamResponse | EventsResponse:
        self._unread_bytes = -1
        record = self._record
        try:
            head = parse_head(raw_head, self._limits.head_fields, self._limits.head_line_bytes)
            self._head = head
            record.method, record.target = head.method, head.target
            if _REQUEST_ID.fullmatch(given := head.field("x-request-id") or ""):
                record.request_id = given
            if not head.expects_continue and not head.chunked:
                self._unread_bytes = head.content_length or 0
            # Everything that can refuse the request by its head comes before its body is asked for (RFC 9110 10.1.1).
            self._origin = self._rules.browser.admit(head, on_unix=self._connection.peer.uid is not None)
            if head.method == "OPTIONS":
                return self._options(head)
            route, params = self._route(head)
            record.route = route.path
            caller = self._check(route, head)
            self._ticket = ticket = self._site.quotas.enter(caller, route.counts, self._reply_fields)
            request = Request(
                record=record,
                caller=caller,
                ticket=ticket,
                head=head,
                params=params,
                body=self._read_body(head),
                limits=self._limits,
                registry=self._site.meter.registry,
                on_client_gone=self._watch_client,
                try_write=self._try_write,
                reply_fields=self._reply_fields,
            )
            return route.handler(request, self._site.service)
        except RequestCancelled as error:
            raise Disconnected("the client left while its request ran") from error
        except ModeldError as error:
            self._failed = True
            return self._error_response(error)
        except Disconnected:
            raise
        except Exception as error:  # noqa: BLE001 - the boundary
            _log_fault("a fault while answering", record, error)
            self._failed = True
            return self._error_response(self._internal_error())

    def _options(self, head: RequestHead) -> Response:
        """A browser's preflight has no key; what it is told is the same for each path."""
        if self._origin is not None and browser.is_preflight(head):
            return Response(204, b"", browser.PREFLIGHT)
        self._admit(head, Access.USE)
        return Response(204, b"", {"Allow": ", ".join(options(head.path))})

    def _route(self, head: RequestHead) -> tuple[Route, Mapping[str, str]]:
        try:
            return match(head.method, head.path)
        except ModeldError:
            self._admit(head, Access.USE)  # who has no key is not told which paths there are
            raise

    def _admit(self, head: RequestHead, access: Access) -> Caller:
        self._access = access
        caller = self._rules.keys.admit(head, access, self._connection.peer)
        self._record.caller = caller.name
        return caller

    def _check(self, route: Route, head: RequestHead) -> Caller:
        """All that can be refused by the head alone. Raises what refuses it."""
        caller = self._admit(head, route.access)
        if route.method == "POST":
            schema.check_content_type(head.field("content-type"))
        check_length(head, self._limits.body_bytes)
        return caller

    def _read_body(self, head: RequestHead) -> bytes:
        if head.expects_continue and head.has_body and not self._connection.has_input:
            self._connection.send(_CONTINUE)
        self._unread_bytes = -1  # while it is being read, and after it came wrong
        deadline = time.monotonic() + self._limits.body_s
        with self._site.depending(self._connection) if head.has_body else contextlib.nullcontext():
            body = read_body(self._connection, head, self._limits.body_bytes, deadline)
        self._unread_bytes = 0
        return body

    def _watch_client(self, on_gone: Callable[[], None]) -> None:
        assert self._on_gone is None, "one call back a request"
        self._on_gone = on_gone
        self._site.watch.add(self._connection.sock.fileno(), on_gone)

    def _internal_error(self) -> InternalError:
        return InternalError(f"internal error; the log has it under request id {self._record.request_id}")

    # -- sending

    def _may_keep(self, response: Response | StreamResponse | EventsResponse) -> bool:
        """A body that nobody read would be taken for the next request: it is read away if it is short, else we close.

        HTTP/1.0 does not know the chunked coding: the only end that a stream has there is the end of the connection.
        """
        head = self._head
        if head is None or not head.keep_alive or self._site.stopping():
            return False
        return 0 <= self._unread_bytes <= self._limits.drain_bytes and (head.minor >= 1 or isinstance(response, Response))

    def _send(self, response: Response | StreamResponse | EventsResponse, keep: bool) -> None:
        if isinstance(response, Response):
            self._send_whole(response, keep)
        elif isinstance(response, StreamResponse):
            self._send_stream(response, keep)
        else:  # HEAD: nobody is going to follow
            response.subscription.close()
            self.settle()
            self._connection.send(self._stream_head("text/event-stream", response.fields, keep))

    def _send_whole(self, response: Response, keep: bool) -> None:
        self.settle()
        self._record.status = response.status
        fields = [] if "Cache-Control" in response.fields else [("Cache-Control", "no-store")]
        if response.status not in _WITHOUT_CONTENT:
            fields += [("Content-Type", response.content_type), ("Content-Length", str(len(response.body)))]
        head = self._encode_head(response.status, keep, fields, response.fields)
        # One write: a head alone in its packet would wait for its acknowledgement at some clients.
        data = head if self._is_head() else head + response.body
        if n_sent := self._connection.send_some(data):
            data = data[n_sent:]
        if data:
            # Else who has no key could hold all places, for send_s each, by asking again and again and reading nothing.
            with self._site.depending(self._connection):
                self._connection.send(data)
        self._finished = not self._failed

    def _send_stream(self, response: StreamResponse, keep: bool) -> None:
        """Chunked, so that the end of the stream is told apart from a cut; HTTP/1.0 has only the close for an end."""
        pending = self._stream_head(response.content_type, response.fields, keep)  # goes out with the first frames
        if self._is_head():
            self._connection.send(pending)
            return
        chunked = self._is_chunked()
        ended = False
        with contextlib.closing(self._frames(response)) as writes:  # also where a write fails: it has something to settle
            for frames in writes:
                if ended := bool(frames) and frames[-1] == LAST_FRAME:
                    self.settle()
                self._connection.send(pending + b"".join(map(chunk, frames) if chunked else frames))
                pending = b""
        if pending or (chunked and not ended):
            self._connection.send(pending + (chunk(LAST_FRAME) if chunked else b""))

    def _begin_events(self, response: EventsResponse) -> None:
        """Send how they begin and give the connection away; it is closed when they end."""
        chunked = self._is_chunked()
        frames = b"".join(map(chunk, response.first) if chunked else response.first)
        self._error_frame = response.error_frame
        try:
            self._connection.send(self._stream_head("text/event-stream", response.fields, keep=False) + frames)
        except Disconnected:
            response.subscription.close()
            raise
        follower = Follower(self._connection, response.subscription, chunked, self, response.before, response.figures)
        self._site.followers.add(follower)

    def refusal(self) -> bytes:
        """The rules may be others than when the events began: the frame that ends them, or nothing. Followers' thread."""
        rules = self._site.gate.rules
        if rules is self._rules or self._head is None or self._error_frame is None:
            return b""
        self._rules = rules
        try:
            self._admit(self._head, self._access)
        except ModeldError as error:
            self._record.code = error.code
            return self._error_frame(error)
        return b""

    def _stream_head(self, content_type: str, own: Mapping[str, str], keep: bool) -> bytes:
        self._record.status = 200
        fields = [("Content-Type", content_type)]
        if self._is_chunked():
            fields.append(("Transfer-Encoding", "chunked"))
        return self._encode_head(200, keep, fields, own)

    def _try_write(self, frames: tuple[bytes, ...]) -> bool:
        return self._connection.try_send(b"".join(map(chunk, frames) if self._is_chunked() else frames))

    def _is_chunked(self) -> bool:
        return self._head is not None and self._head.minor >= 1

    def _frames(self, response: StreamResponse) -> Generator[tuple[bytes, ...], None, None]:
        try:
            with contextlib.closing(response.writes) as writes:
                yield from writes
            self._finished = True
        except RequestCancelled as error:
            raise Disconnected("the client left while its request ran") from error
        except ModeldError as error:
            self._record.code = error.code
            self.settle()
            yield (response.error_frame(error),)
        except Exception as error:  # noqa: BLE001 - the boundary
            _log_fault("a fault while streaming", self._record, error)
            self._record.code = InternalError.code
            self.settle()
            yield (response.error_frame(self._internal_error()),)

    def _encode_head(self, status: int, keep: bool, fields: list[tuple[str, str]], own: Mapping[str, str]) -> bytes:
        constant = browser.constant_fields(self._origin, own)
        return encode_head(status, [*self._common_fields(keep), *fields, *own.items()], constant)

    def _common_fields(self, keep: bool) -> list[tuple[str, str]]:
        fields = [("Server", "modeld"), ("Date", formatdate(usegmt=True)), ("X-Request-Id", self._record.request_id)]
        fields += self._reply_fields.items()
        if not keep:
            fields.append(("Connection", "close"))
        elif self._head is not None and self._head.minor == 0:
            fields.append(("Connection", "keep-alive"))
        return fields

    def _is_head(self) -> bool:
        return self._head is not None and self._head.method == "HEAD"

    def _error_response(self, error: ModeldError) -> Response:
        self._record.code = error.code
        return json_response(error.status, schema.error_json(error), schema.error_fields(error))

    # -- the end

    def settle(self) -> None:
        """What the request took is counted before its client can see its end. Idempotent."""
        if self._ticket is not None:
            record = self._record
            self._ticket.end(record.prompt_tokens - record.cached_tokens + record.completion_tokens)

    def _end(self) -> None:
        self.settle()
        record = self._record
        record.ended = time.monotonic()
        if record.route is None and self._head is not None:  # refused before the route was looked for
            record.route = known_path(self._head.path)
        record.n_bytes = self._connection.sent_bytes - self._sent_before
        self._site.meter.ended(record)
        log.info("request", extra=accesslog.fields(record))


def _log_fault(what: str, record: Record, error: Exception) -> None:
    """Where it happened and of what kind it is; not what it says, which may quote the request."""
    trace = "".join(traceback.format_tb(error.__traceback__)) + type(error).__name__
    log.error("%s", what, extra={"request_id": record.request_id, "route": record.route, "exception": trace})
