"""Who listens, and how many are served at once? HttpServer: one address, one accept thread, a bounded number of connections.

ThreadingHTTPServer brings the listening socket and the accept loop; its request parser is not used, since it accepts
what RFC 9112 forbids (see head.py). Every thread is named `modeld-*` and joined by `close`.
"""

from __future__ import annotations

import contextlib
import errno
import http.server
import itertools
import logging
import os
import socket
import socketserver
import threading
import time
from typing import Any

from modeld.clientlimits import LimitPolicy
from modeld.errors import TooManyConnections
from modeld.heartbeat import Pulse
from modeld.httpapi.auth import Gate
from modeld.httpapi.connection import Connection
from modeld.httpapi.exchange import Exchange, Site, serve
from modeld.httpapi.followers import Followers
from modeld.httpapi.limits import Limits
from modeld.httpapi.quotas import Quotas
from modeld.httpapi.service import Service
from modeld.httpapi.watch import ClientWatch
from modeld.threads import start_thread

log = logging.getLogger("modeld.http")

_STACK_BYTES = 1 << 20
_SHED_PAUSE_S = 0.05
_SHED_LOG_EVERY_S = 10.0
_FORCED_END_S = 5.0  # for handlers to end once their sockets are shut down and their work is cancelled


class HttpServer:
    """Serves one Service on one address. `start` and `close` from one thread; the rest from any."""

    def __init__(
        self,
        service: Service,
        host: str,
        port: int,
        limits: Limits | None = None,
        *,
        gate: Gate | None = None,
        quotas: Quotas | None = None,
    ) -> None:
        """Bind and listen; port 0 takes a free one. `gate` absent: no keys, and no names but localhost. `quotas`: no bounds.

        Raises OSError where the address cannot be had.
        """
        self._limits = limits or Limits()
        self._cond = threading.Condition()
        # Guards all below. Notified when a connection ends.
        self._connections: dict[Connection, bool] = {}  # -> whether a request is being answered
        self._places: dict[Connection, threading.BoundedSemaphore] = {}  # which each of them holds
        self._ended: list[threading.Thread] = []  # past their last act; joined by close
        self._leaving = False  # no response promises another one
        self._stopping = False
        self._slots = threading.BoundedSemaphore(self._limits.connections)
        self._refusals = threading.BoundedSemaphore(self._limits.refusals)
        self._numbers = itertools.count(1)
        self._accept_thread: threading.Thread | None = None
        self._pulse = Pulse("modeld-accept")
        self._listener = _Listener(self, host, port)
        self._closing = os.eventfd(0, os.EFD_CLOEXEC)  # readable once no connection is to wait for another request
        self._watch = ClientWatch()
        self._followers = Followers(self._limits, self._release)
        self._site = Site(
            service, self._watch, self._followers, self._is_stopping, gate or Gate(), quotas or Quotas(LimitPolicy())
        )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port as bound."""
        return self._listener.server_name, self._listener.server_port

    @property
    def url(self) -> str:
        host, port = self.address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def pulses(self) -> tuple[Pulse, ...]:
        return self._pulse, self._watch.pulse, self._followers.pulse

    def start(self) -> None:
        self._watch.start()
        self._followers.start()
        # The shutdown of the listening socket ends the wait, so the loop has nothing to look for by itself.
        self._accept_thread = start_thread(
            self._pulse.thread, lambda: self._listener.serve_forever(poll_interval=3600), pulse=self._pulse
        )

    def begin_stop(self) -> None:
        """Answer on, but end each connection with the next response. Idempotent."""
        with self._cond:
            self._leaving = True

    def stop_accepting(self) -> None:
        """Refuse new connections and end the idle ones; running requests go on. Idempotent."""
        with self._cond:
            if self._stopping:
                return
            self._stopping = True
        self._listener.stopping.set()
        if self._accept_thread is not None:
            with contextlib.suppress(OSError):
                self._listener.socket.shutdown(socket.SHUT_RDWR)  # wakes the accept loop
            self._listener.shutdown()
            self._accept_thread.join()
        self._listener.server_close()
        os.eventfd_write(self._closing, 1)  # none is added any more, and none becomes busy

    def close(self, deadline_s: float) -> None:
        """Stop accepting, let running responses end until the deadline, then cut them; join every thread. Idempotent.

        Streams do not end by themselves: the service ends their generations and subscriptions, before or meanwhile.
        """
        deadline = time.monotonic() + deadline_s
        self.stop_accepting()
        with self._cond:
            self._cond.wait_for(lambda: not self._connections, deadline - time.monotonic())
            late = list(self._connections)
        if late:
            log.warning("cutting %d connections that are still busy after %g s", len(late), deadline_s)
            for connection in late:
                connection.hang_up()  # the watch sees it too and cancels what the handler waits for
        with self._cond:
            if not self._cond.wait_for(lambda: not self._connections, _FORCED_END_S):
                log.error("%d connections do not end; their threads are left behind", len(self._connections))
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
        """Give the connection a thread, if there is one to give; never waits."""
        if self._slots.acquire(blocking=False):
            self._start_connection(sock, self._slots, refuse=False)
        elif self._refusals.acquire(blocking=False):
            self._start_connection(sock, self._refusals, refuse=True)
        else:
            sock.close()

    def _start_connection(self, sock: socket.socket, slots: threading.BoundedSemaphore, *, refuse: bool) -> None:
        try:
            connection = Connection(sock, self._limits, self._closing)
        except OSError:  # reset before we got to it
            sock.close()
            slots.release()
            return
        with self._cond:
            self._connections[connection] = False
            self._places[connection] = slots
            self._ended = [thread for thread in self._ended if thread.is_alive()]

        def run() -> None:
            done = True
            try:
                if refuse:
                    self._refuse(connection)
                else:
                    done = serve(connection, self._site, _Turnstile(self, connection))
            finally:
                with self._cond:
                    self._ended.append(threading.current_thread())
                if done:
                    self._release(connection)

        try:
            start_thread(f"modeld-http-{next(self._numbers)}", run, stack_bytes=_STACK_BYTES)
        except RuntimeError:
            log.exception("no thread for a connection")
            sock.close()
            self._release(connection)

    # -- connection threads

    def _refuse(self, connection: Connection) -> None:
        message = f"all {self._limits.connections} connections are in use"
        error = TooManyConnections(message, retry_after_s=1)
        Exchange(connection, self._site).refuse(error)
        connection.finish()

    def _release(self, connection: Connection) -> None:
        """It is closed. Its own thread or the followers'."""
        with self._cond:
            self._places.pop(connection).release()
            del self._connections[connection]
            self._cond.notify_all()

    def _is_stopping(self) -> bool:
        with self._cond:
            return self._stopping or self._leaving

    def _set_busy(self, connection: Connection, busy: bool) -> bool:
        """Whether the connection may go on; not once the server is stopping."""
        with self._cond:
            if not self._stopping:
                self._connections[connection] = busy
            return not self._stopping


class _Turnstile:
    """One connection's way to tell its server whether a request is being answered."""

    def __init__(self, server: HttpServer, connection: Connection) -> None:
        self._server = server
        self._connection = connection

    def enter(self) -> bool:
        return self._server._set_busy(self._connection, True)

    def leave(self) -> bool:
        return self._server._set_busy(self._connection, False)


class _Listener(http.server.ThreadingHTTPServer):
    """The listening socket. Accept thread, except for what HttpServer calls from outside."""

    request_queue_size = 128
    allow_reuse_address = True

    def __init__(self, owner: HttpServer, host: str, port: int) -> None:
        family, address = _resolve(host, port)
        self.address_family = family
        self._owner = owner
        self.stopping = threading.Event()
        self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._shed_logged_s = float("-inf")
        try:
            super().__init__(address, _unused_handler)
        except BaseException:
            self._close_reserve()
            raise
        # A client that resets before accept would leave a blocking accept, and with it the shutdown, waiting.
        self.socket.setblocking(False)

    def server_bind(self) -> None:
        """As socketserver; HTTPServer's asks the resolver for its own name, seconds on a host without DNS."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # one listener, one address
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def service_actions(self) -> None:
        """socketserver calls this after each look for connections, before it sleeps again."""
        self._owner._pulse.rest()

    def get_request(self) -> tuple[socket.socket, Any]:
        self._owner._pulse.busy("accepting a connection")
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._shed(error)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  socketserver's signature
        self._owner._admit(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  socketserver's signature
        log.exception("a fault while accepting a connection")  # noqa: LOG004  socketserver calls this as it handles one

    def server_close(self) -> None:
        super().server_close()
        self._close_reserve()

    def _shed(self, error: OSError) -> None:
        """Out of descriptors the waiting connection stays readable and accept would spin: take it with a descriptor
        kept for this, close it, and pause.
        """
        now = time.monotonic()
        if now - self._shed_logged_s >= _SHED_LOG_EVERY_S:
            self._shed_logged_s = now
            log.error("cannot accept: %s; dropping connections until there are descriptors again", error)
        self._close_reserve()
        with contextlib.suppress(OSError):
            self.socket.accept()[0].close()
        with contextlib.suppress(OSError):
            self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self.stopping.wait(_SHED_PAUSE_S)

    def _close_reserve(self) -> None:
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1


def _unused_handler(*_: Any) -> Any:
    raise AssertionError("connections go to HttpServer._admit")


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """The address to bind: IPv4 where a name has both, since that is what most clients of localhost try."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, address
