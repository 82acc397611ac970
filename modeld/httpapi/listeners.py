"""Where does modeld listen, and who takes the connections in? Listener: one bound socket; Acceptor: one thread for all of them.

http.server's ThreadingHTTPServer brings the socket and the step from readiness to an accepted connection; neither its loop
nor its handler are used. Nothing here asks a resolver: addresses are numbers (HTTPServer.server_bind asks for the
host's own name, seconds where no name server answers).

TCP_DEFER_ACCEPT is left alone: it keeps silent clients away from accept, but in the queue, where they lock others out; accepted,
they are the first to go (places.py).
"""

from __future__ import annotations

import contextlib
import errno
import http.server
import logging
import os
import select
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from modeld.heartbeat import Pulse
from modeld.httpapi import unixsocket
from modeld.httpapi.unixsocket import UnixSocket
from modeld.threads import start_thread

log = logging.getLogger("modeld.http")

_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE_S = 0.02  # after each connection that there was no descriptor or thread for: at 50 a second they cost 1 or 2 % of a core
_LOG_EVERY_S = 10.0
_PORT_TRIES = 16
_HOLD_S = 5.0

Take = Callable[[socket.socket], None]


class NoThread(Exception):
    """The system refuses another thread; whoever raises this has dealt with the connection."""


class ListenError(OSError):
    """An address cannot be had; the message names it."""


class Listener(http.server.ThreadingHTTPServer):
    """One bound and listening socket, made here or handed over."""

    # Of a burst that does not fit the client's kernel tries again after a whole second. The kernel cuts it to its somaxconn.
    request_queue_size = 1024
    allow_reuse_address = True  # connections of the last life that linger in TIME_WAIT are no reason not to start
    timeout = 0  # handle_request never waits: a client that resets before accept must not hold the thread

    def __init__(self, address: tuple[Any, ...] | UnixSocket | socket.socket) -> None:
        """`address`: as the socket module has it, of 2 or 4 parts; or a socket that listens already, which others have, too.

        Raises ListenError.
        """
        self.take: Take | None = None
        self._shortage: OSError | NoThread | None = None  # why the last connection could not be had, or not be served
        self._unix = address if isinstance(address, UnixSocket) else None
        self._inode: tuple[int, int] | None = None
        self.is_handed = isinstance(address, socket.socket)
        if isinstance(address, socket.socket):
            # No socket of this family can be made where a sandbox forbids it, which TCPServer's __init__ would try.
            socketserver.BaseServer.__init__(self, address.getsockname(), _unused_handler)
            self.socket, self.address_family = address, address.family
            if self.is_tcp:
                self.server_name, self.server_port = (str(self.server_address[0]), int(self.server_address[1]))
            self.socket.setblocking(False)
            return
        if isinstance(address, UnixSocket):
            self.address_family = socket.AF_UNIX
        else:
            self.address_family = socket.AF_INET if len(address) == 2 else socket.AF_INET6
        try:
            super().__init__(address if self._unix is None else os.fspath(self._unix.path), _unused_handler)  # type: ignore[arg-type]
        except OSError as error:
            where = f"{address[0]} port {address[1]}" if isinstance(address, tuple) else f"the Unix socket {address.path}"
            raise ListenError(error.errno, f"cannot listen on {where}: {error.strerror or error}") from error
        self.socket.setblocking(False)

    @property
    def url(self) -> str:
        if not self.is_tcp:
            name = self.socket.getsockname()  # bytes with a NUL before them in the abstract namespace
            return f"unix:{name if isinstance(name, str) else '@' + os.fsdecode(name[1:])}"
        host = self.server_name
        return f"http://[{host}]:{self.server_port}" if ":" in host else f"http://{host}:{self.server_port}"

    @property
    def is_tcp(self) -> bool:
        return self.address_family != socket.AF_UNIX

    def server_bind(self) -> None:
        if self._unix is not None:
            self._inode = unixsocket.bind(self.socket, self._unix)
            return
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # one listener, one address
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def server_close(self) -> None:
        if self._unix is not None and self._inode is not None:
            unixsocket.remove(self._unix.path, self._inode)  # first: a path that refuses is worse than none
        super().server_close()

    def accept_one(self) -> OSError | NoThread | None:
        """Take in one connection, if one waits; never waits for it. What ran out, where something did."""
        self._shortage = None
        self.handle_request()
        return self._shortage

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in _SHORTAGES:
                self._shortage = error
            raise

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  socketserver's signature
        assert self.take is not None
        try:
            self.take(request)
        except NoThread as error:
            self._shortage = error

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  socketserver's signature
        log.exception("a fault while accepting a connection")  # noqa: LOG004  socketserver calls this as it handles one


def listen(
    hosts: Sequence[str], port: int, unix_socket: UnixSocket | None = None, handed: Sequence[socket.socket] = ()
) -> list[Listener]:
    """All listeners, or a ListenError and none of them. Port 0 takes one that is free on every host.

    Where sockets were `handed` over, these and no others.
    """
    if handed:
        return [Listener(sock) for sock in handed]
    for tries_left in reversed(range(_PORT_TRIES)):
        listeners: list[Listener] = []
        chosen = port
        try:
            for host in hosts:
                listeners.append(Listener(_socket_address(host, chosen)))
                chosen = chosen or listeners[0].server_port
            if unix_socket is not None:
                listeners.append(Listener(unix_socket))
        except BaseException as error:
            for listener in listeners:
                listener.server_close()
            # The port that the first host gave may be taken on another one.
            if port == 0 and isinstance(error, ListenError) and error.errno == errno.EADDRINUSE and chosen and tries_left:
                continue
            raise
        return listeners
    raise AssertionError("unreachable")


def _socket_address(host: str, port: int) -> tuple[Any, ...]:
    """As bind takes it without asking anybody: an IPv6 scope is given as the number of its interface. Raises ListenError."""
    if ":" not in host:
        return host, port
    address, _, scope = host.partition("%")
    try:
        scope_id = int(scope) if scope.isdecimal() else socket.if_nametoindex(scope) if scope else 0
    except OSError as error:
        raise ListenError(error.errno, f"cannot listen on {host}: there is no interface {scope}") from error
    return address, port, 0, scope_id


class Acceptor:
    """The thread `modeld-accept`. `start` and `close` from one thread."""

    def __init__(self, listeners: Sequence[Listener], take: Take, make_room: Callable[[], None]) -> None:
        """`take` gets each connection, on the thread, and must not wait; it raises NoThread where there is none for it.

        `make_room` is called when descriptors or threads have run out.
        """
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._take = take
        self._make_room = make_room
        self._stopping = threading.Event()
        self._holding = threading.Event()
        self._held = threading.Event()
        self.pulse = Pulse("modeld-accept")
        self._thread: threading.Thread | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._reserve = _spare_descriptor()
        self._shortages: Counter[str] = Counter({"descriptors": 0, "threads": 0})  # written by the thread alone
        self._logged_s = float("-inf")

    def start(self) -> None:
        for listener in self._listeners.values():
            listener.take = self._take
        self._thread = start_thread(self.pulse.thread, self._run, pulse=self.pulse)

    def close(self) -> None:
        """Accept no more: end and join the thread, close the sockets. Once."""
        self._stopping.set()
        os.eventfd_write(self._wake, 1)
        if self._thread is not None:
            self._thread.join()
        for listener in self._listeners.values():
            listener.server_close()
        os.close(self._wake)
        if self._reserve >= 0:
            os.close(self._reserve)

    def hold(self) -> bool:
        """Leave what waits at handed sockets, and what comes, to the process that is next to have them. False: there are none.

        When it returns no connection is taken in from these any more. Any thread; idempotent.
        """
        if not any(listener.is_handed for listener in self._listeners.values()):
            return False
        self._holding.set()
        os.eventfd_write(self._wake, 1)
        if self._thread is not None and not self._held.wait(_HOLD_S):
            log.error("the accept thread does not hear that it is to take no more connections")
        return True

    def shortages(self) -> dict[str, int]:
        """How many connections there was no descriptor, or no thread, for. Any thread."""
        return dict(self._shortages)

    # -- the thread

    def _run(self) -> None:
        ready = select.poll()
        ready.register(self._wake, select.POLLIN)
        for fd in self._listeners:
            ready.register(fd, select.POLLIN)
        while not self._stopping.is_set():
            self.pulse.rest()
            waiting = ready.poll()
            self.pulse.busy("accepting connections")
            if self._holding.is_set() and not self._held.is_set():
                self._leave_handed(ready)
                continue
            for fd, _ in waiting:
                if fd != self._wake and not self._stopping.is_set():
                    self._accept(self._listeners[fd])
        self.pulse.rest()

    def _leave_handed(self, ready: select.poll) -> None:
        for fd, listener in self._listeners.items():
            if listener.is_handed:
                ready.unregister(fd)
        os.eventfd_read(self._wake)
        if self._stopping.is_set():  # close wrote to it, too, and sleeps until the loop ends
            os.eventfd_write(self._wake, 1)
        self._held.set()

    def _accept(self, listener: Listener) -> None:
        shortage = listener.accept_one()
        if isinstance(shortage, NoThread):
            self._short("threads", shortage)
        elif shortage is not None:
            self._short("descriptors", shortage)
            self._drop_one(listener)

    def _short(self, of: str, error: Exception) -> None:
        """A connection that waits stays readable, and the loop would spin: so room is made, and time is given for it."""
        self._shortages[of] += 1
        now = time.monotonic()
        if now - self._logged_s >= _LOG_EVERY_S:
            log.error("out of %s for connections (%d so far): %s", of, self._shortages[of], error)
            self._logged_s = now
        self._make_room()
        self._stopping.wait(_PAUSE_S)

    def _drop_one(self, listener: Listener) -> None:
        """Take the connection that waits with a descriptor kept for this, and close it, unless making room has helped."""
        with contextlib.suppress(OSError):
            spare = _spare_descriptor()
            if self._reserve < 0:
                self._reserve = spare
            else:
                os.close(spare)
            return
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1
            with contextlib.suppress(OSError):
                listener.socket.accept()[0].close()
            with contextlib.suppress(OSError):
                self._reserve = _spare_descriptor()


def _spare_descriptor() -> int:
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def _unused_handler(*_: Any) -> Any:
    raise AssertionError("connections go to Acceptor's take")
