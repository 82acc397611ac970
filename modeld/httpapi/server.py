"""How many are served at once, and on which threads? HttpServer: a thread for each connection, a bounded number of them.

Listeners take the connections in (listeners.py), `Places` decides who may stay, `serve` answers (conversation.py). Every thread
is named `modeld-*` and joined by `close`.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from modeld.clientlimits import LimitPolicy
from modeld.errors import TooManyConnections
from modeld.heartbeat import Pulse
from modeld.httpapi import schema
from modeld.httpapi.auth import Gate
from modeld.httpapi.connection import Connection, Disconnected
from modeld.httpapi.conversation import serve
from modeld.httpapi.exchange import Exchange, Site
from modeld.httpapi.followers import Followers
from modeld.httpapi.limits import Limits
from modeld.httpapi.listeners import Acceptor, NoThread, listen
from modeld.httpapi.load import LoadFeed
from modeld.httpapi.message import encode_head, json_response
from modeld.httpapi.metrics import Meter
from modeld.httpapi.places import Places, Verdict
from modeld.httpapi.quotas import Quotas
from modeld.httpapi.service import Service
from modeld.httpapi.unixsocket import UnixSocket
from modeld.httpapi.watch import ClientWatch
from modeld.metrics import Family, Registry, by_label, gauge
from modeld.threads import start_thread

log = logging.getLogger("modeld.http")

_STACK_BYTES = 1 << 20
TURNED_AWAY = ("refused", "dropped", "let_go", "descriptors", "threads")  # why; see docs/metrics.md
_SETTLE_S = 0.1  # for connections that were told to go: each needs a turn of its thread
_LOG_EVERY_S = 10.0
_FORCED_END_S = 5.0  # for handlers to end once their sockets are shut down and their work is cancelled


class HttpServer:
    """Serves one Service. `start` and `close` from one thread; the rest from any."""

    def __init__(
        self,
        service: Service,
        host: str | Sequence[str],
        port: int,
        limits: Limits | None = None,
        unix_socket: UnixSocket | None = None,
        *,
        handed: Sequence[socket.socket] = (),
        gate: Gate | None = None,
        quotas: Quotas | None = None,
        registry: Registry | None = None,
    ) -> None:
        """Bind all addresses and listen; port 0 takes a free one. `handed`: sockets that listen already, instead of all those;
        they are closed with the server, whatever others do with them. `gate` absent: no keys, and no names but localhost.
        `quotas`: no bounds. `registry`: what `/metrics` tells beside what the server and the service do.

        Raises ListenError where an address cannot be had.
        """
        self._limits = limits or Limits()
        self._cond = threading.Condition()
        # Guards all below. Notified when a connection ends.
        self._places: Places[Connection] = Places(
            self._limits.connections, self._limits.refusals, self._limits.connections_per_address
        )
        self._ended: list[threading.Thread] = []  # past their last act; joined by close
        self._leaving = False  # no response promises another one
        self._stopping = False
        self._turned_away = Counter[str]()
        self._numbers = itertools.count(1)
        self._told_s = float("-inf")  # the accept thread's: when it logged that connections had to go
        self._listeners = listen([host] if isinstance(host, str) else host, port, unix_socket, handed)
        self._acceptor = Acceptor(self._listeners, self._admit, self._make_room)
        self._watch = ClientWatch()
        self._followers = Followers(self._limits, self._release, LoadFeed(service.figures))
        self._closing = os.eventfd(0, os.EFD_CLOEXEC)  # readable once no connection is to wait for another request
        self._meter = Meter(registry or Registry(), service)
        self._meter.registry.collect(self._connection_families)
        self._site = Site(
            service,
            self._watch,
            self._followers,
            self._is_stopping,
            gate or Gate(),
            quotas or Quotas(LimitPolicy()),
            self._depending,
            self._meter,
        )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the first TCP listener, as bound."""
        first = next(listener for listener in self._listeners if listener.is_tcp)
        return first.server_name, first.server_port

    @property
    def url(self) -> str:
        return self.urls[0]

    @property
    def urls(self) -> list[str]:
        """One for each listener, in the order of the configuration; a Unix socket's, `unix:PATH`, is the last."""
        return [listener.url for listener in self._listeners]

    def pulses(self) -> tuple[Pulse, ...]:
        return self._acceptor.pulse, self._watch.pulse, self._followers.pulse

    def _connection_families(self) -> tuple[Family, ...]:
        with self._cond:
            n_open, n_busy = len(self._places), self._places.n_answered
        turned_away = self.turned_away()
        return (
            gauge("modeld_http_connections", "Connections that are open.", n_open),
            gauge("modeld_http_connections_busy", "Of these, with a request that is being answered.", n_busy),
            gauge("modeld_http_connections_limit", "Connections that may be open.", self._limits.connections),
            by_label(
                "counter", "modeld_http_connections_turned_away", "Connections that found no place, or had to go for others.",
                ("reason",), {(reason,): turned_away.get(reason, 0) for reason in TURNED_AWAY},
            ),
        )  # fmt: skip

    def turned_away(self) -> dict[str, int]:
        """Connections since the start that found no place, no thread or no descriptor, and those that had to go for others."""
        with self._cond:
            return {**self._turned_away, **self._acceptor.shortages()}

    def start(self) -> None:
        self._watch.start()
        self._followers.start()
        self._acceptor.start()

    def begin_stop(self) -> None:
        """Answer on, but end each connection with the next response. Idempotent."""
        with self._cond:
            self._leaving = True

    def hold(self) -> bool:
        """Leave what waits at handed sockets, and what comes, to the next process: see Acceptor.hold."""
        return self._acceptor.hold()

    def stop_accepting(self) -> None:
        """Refuse new connections and end the idle ones; running requests go on. Idempotent."""
        with self._cond:
            if self._stopping:
                return
            self._stopping = True
        self._acceptor.close()
        os.eventfd_write(self._closing, 1)  # none is added any more, and none becomes busy

    def close(self, deadline_s: float) -> None:
        """Stop accepting, let running responses end until the deadline, then cut them; join every thread. Idempotent.

        Streams do not end by themselves: the service ends their generations and subscriptions, before or meanwhile.
        """
        deadline = time.monotonic() + deadline_s
        self.stop_accepting()
        with self._cond:
            self._cond.wait_for(lambda: not len(self._places), deadline - time.monotonic())
            late = list(self._places)
        if late:
            log.warning("cutting %d connections that are still busy after %g s", len(late), deadline_s)
            for connection in late:
                connection.hang_up()  # the watch sees it too and cancels what the handler waits for
        with self._cond:
            if not self._cond.wait_for(lambda: not len(self._places), _FORCED_END_S):
                log.error("%d connections do not end; their threads are left behind", len(self._places))
            ended, self._ended = self._ended, []
        for thread in ended:
            thread.join()
        self._followers.close()
        self._watch.close()
        if self._closing >= 0:
            os.close(self._closing)
            self._closing = -1

    # -- accept thread

    def _admit(self, sock: socket.socket) -> None:
        """Give the connection a thread, if there is a place. Raises NoThread where the system has none."""
        try:
            connection = Connection(sock, self._limits, self._closing)
        except OSError:  # reset before we got to it
            sock.close()
            return
        with self._cond:
            self._cond.wait_for(lambda: not self._places.is_settling, _SETTLE_S)
            verdict, leaver = self._places.admit(connection, connection.client_address)
            self._turned_away["refused"] += verdict is Verdict.REFUSE
            self._turned_away["dropped"] += verdict is Verdict.DROP
            self._turned_away["let_go"] += leaver is not None
            self._ended = [thread for thread in self._ended if thread.is_alive()]
        if leaver is not None:
            leaver.hang_up()
            self._tell_of_crowd()
        if verdict is Verdict.DROP:
            sock.close()
            return
        try:
            start_thread(f"modeld-http-{next(self._numbers)}", lambda: self._run(connection, verdict), stack_bytes=_STACK_BYTES)
        except RuntimeError as error:
            self._release(connection)
            self._answer_without_thread(connection)
            raise NoThread(str(error)) from error

    def _tell_of_crowd(self) -> None:
        now = time.monotonic()
        if now - self._told_s >= _LOG_EVERY_S:
            self._told_s = now
            n_gone = self.turned_away()["let_go"]
            log.warning("%s; the oldest unfinished ones go (%d so far)", self._all_in_use(), n_gone)

    def _all_in_use(self) -> str:
        per_address = self._limits.connections_per_address
        of_address = f", or the {per_address} that one address may have" if per_address else ""
        return f"all {self._limits.connections} connections are in use{of_address}"

    def _make_room(self) -> None:
        with self._cond:
            leaver = self._places.send_oldest_away()
            self._turned_away["let_go"] += leaver is not None
        if leaver is not None:
            leaver.hang_up()

    def _answer_without_thread(self, connection: Connection) -> None:
        """What fits into the socket at once: 503. The request is read away first, as far as it has come: closing with bytes
        unread takes the answer back.
        """
        error = TooManyConnections("there is no thread for another connection", retry_after_s=1)
        body = json_response(error.status, schema.error_json(error), schema.error_fields(error))
        fields = [("Content-Type", body.content_type), ("Content-Length", str(len(body.body))), ("Connection", "close")]
        connection.read_away()
        with contextlib.suppress(Disconnected):
            connection.send_some(encode_head(body.status, [*fields, *body.fields.items()]) + body.body)
        connection.sock.close()

    # -- connection threads

    def _run(self, connection: Connection, verdict: Verdict) -> None:
        done = True
        try:
            if verdict is Verdict.REFUSE:
                self._refuse(connection)
            else:
                done = serve(connection, self._site, _Turnstile(self, connection))
        finally:
            with self._cond:
                self._ended.append(threading.current_thread())
            if done:
                self._release(connection)

    def _refuse(self, connection: Connection) -> None:
        error = TooManyConnections(self._all_in_use(), retry_after_s=1)
        Exchange(connection, self._site).refuse(error)
        connection.finish()

    def _release(self, connection: Connection) -> None:
        """It is closed, or about to be. Its own thread, the accept thread or the followers'."""
        with self._cond:
            self._places.leave(connection)
            self._cond.notify_all()

    def _is_stopping(self) -> bool:
        with self._cond:
            return self._stopping or self._leaving

    @contextlib.contextmanager
    def _depending(self, connection: Connection) -> Iterator[None]:
        """While a body is read, or a whole answer is not taken: it may have to go for others, if nobody is left whose head is
        unfinished."""
        with self._cond:
            self._places.depend(connection)
        try:
            yield
        finally:
            with self._cond:
                self._places.stay(connection)

    def _begin(self, connection: Connection) -> bool:
        with self._cond:
            return not self._stopping and self._places.begin(connection)

    def _wait_for_next(self, connection: Connection) -> bool:
        with self._cond:
            return not self._stopping and self._places.wait(connection)


class _Turnstile:
    """One connection's way to tell its server whether a request is being answered."""

    def __init__(self, server: HttpServer, connection: Connection) -> None:
        self._server = server
        self._connection = connection

    def enter(self) -> bool:
        return self._server._begin(self._connection)

    def leave(self) -> bool:
        return self._server._wait_for_next(self._connection)
