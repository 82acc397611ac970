"""How are bytes moved over one socket, each wait under an absolute deadline? Confined to the connection's thread.

The socket never blocks: an operation is tried first and the poll is only asked when it would block, which is one system
call for a write that fits. Ends of time are points of `time.monotonic()`, so a trickle of bytes does not move them
(http.server's `timeout` starts anew with each byte).
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time

from modeld.errors import HeadersTooLarge, InvalidRequest, RequestTimeout
from modeld.httpapi.caller import UNIX, Peer
from modeld.httpapi.head import find_end
from modeld.httpapi.limits import Limits

_PIECE = 64 << 10
_UCRED = "iII"  # struct ucred: pid, uid, gid


class Disconnected(Exception):
    """The client closed or reset the connection, or stopped reading for longer than the send deadline."""


class EndOfInput(Disconnected):
    """The client sends no more, in the middle of a request; it may still be reading the answers to those before."""


class _ServerCloses(Disconnected):
    """No further request is waited for."""


class Connection:
    """One accepted TCP connection. Only `hang_up` and `try_send` may be called by another thread."""

    def __init__(self, sock: socket.socket, limits: Limits, closing: int | None = None) -> None:
        """`closing` is a descriptor that becomes readable when no further request is to be waited for; None: that never comes."""
        self.sock = sock
        self.limits = limits
        self.client_address = _client_address(sock)
        self.peer = Peer(self.client_address, _peer_uid(sock))
        self.sent_bytes = 0
        self._unsent = b""  # what try_send left
        self._buffer = bytearray()  # received and not yet consumed; may hold the start of a pipelined request
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)
        self._closing = closing
        self._readable_or_closing = select.poll()
        self._readable_or_closing.register(sock, select.POLLIN)
        if closing is not None:
            self._readable_or_closing.register(closing, select.POLLIN)
        self._writable = select.poll()
        self._writable.register(sock, select.POLLOUT)
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # A peer that vanished without a FIN: found by what it does not acknowledge, or by probes while nothing is sent.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(limits.unacknowledged_s * 1000))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)

    # -- reading

    def read_head(self, first: bool) -> bytes | None:
        """The next request head with its blank line; None where the client has no further request, or the server closes.

        Raises RequestTimeout, InvalidRequest, HeadersTooLarge; EndOfInput, Disconnected in the middle of a head.
        """
        limits = self.limits
        deadline = time.monotonic() + (limits.head_s if first else limits.idle_s)
        try:
            # RFC 9112 2.2: one blank line is skipped, which some clients send after a body. It begins no request: nobody
            # waits for an answer to it, and a 408 would be taken for the answer to what is asked next.
            skipped_blank = False
            while not self._buffer or (not skipped_blank and b"\r\n".startswith(self._buffer)):
                if self._buffer == b"\r\n":
                    self._buffer.clear()
                    skipped_blank = True
                self._fill_unless_closing(deadline)
        except (RequestTimeout, Disconnected):
            return None
        if not skipped_blank and self._buffer.startswith(b"\r\n"):
            del self._buffer[:2]
        if not first:
            deadline = time.monotonic() + limits.head_s
        checked = 0
        while True:
            end = find_end(self._buffer, checked, limits.head_bytes)
            if end:
                head = bytes(self._buffer[:end])
                del self._buffer[:end]
                return head
            checked = len(self._buffer)
            try:
                self._fill_unless_closing(deadline)
            except _ServerCloses:
                return None
            except RequestTimeout:
                raise RequestTimeout(f"the request head did not arrive within {limits.head_s:g} s") from None

    def read_line(self, max_bytes: int, deadline: float) -> bytes:
        """One line without its CR LF, for the chunked coding.

        A line that ends in LF alone is refused when it comes: its sender waits for an answer and not for a deadline.
        Raises InvalidRequest, HeadersTooLarge, RequestTimeout, Disconnected.
        """
        while (end := self._buffer.find(b"\n", 0, max_bytes + 2)) < 0:
            if len(self._buffer) >= max_bytes + 2:
                raise HeadersTooLarge(f"a line of the chunked body is longer than {max_bytes} bytes")
            self._fill(deadline)
        line = bytes(self._buffer[: end + 1])
        if not line.endswith(b"\r\n"):
            raise InvalidRequest("a line of the chunked body ends in LF alone (RFC 9112 section 7.1)")
        del self._buffer[: end + 1]
        return line[:-2]

    def read_exactly(self, n_bytes: int, deadline: float) -> bytes:
        """n_bytes, which the caller has checked against its cap. Raises RequestTimeout, Disconnected."""
        while len(self._buffer) < n_bytes:
            self._fill(deadline)
        data = bytes(self._buffer[:n_bytes])
        del self._buffer[:n_bytes]
        return data

    def skip(self, n_bytes: int, deadline: float) -> None:
        """Read n_bytes away without keeping them. Raises RequestTimeout; Disconnected, also as soon as the server closes."""
        while n_bytes > len(self._buffer):
            n_bytes -= len(self._buffer)
            self._buffer.clear()
            self._fill_unless_closing(deadline)
        del self._buffer[:n_bytes]

    @property
    def has_input(self) -> bool:
        """Whether bytes beyond what was consumed have come already."""
        return bool(self._buffer)

    def _fill(self, deadline: float) -> None:
        """Append what the socket has, waiting for it until the deadline."""
        while not self._has_filled():
            self._wait(self._readable, deadline)

    def _fill_unless_closing(self, deadline: float) -> None:
        """As _fill; raises _ServerCloses as soon as nothing has come and the server closes."""
        while not self._has_filled():
            ready = self._wait(self._readable_or_closing, deadline)
            if all(fd == self._closing for fd, _ in ready):
                raise _ServerCloses

    def _has_filled(self) -> bool:
        try:
            data = self.sock.recv(_PIECE)
        except BlockingIOError:
            return False
        except OSError as error:
            raise Disconnected(str(error)) from error
        if not data:
            raise EndOfInput("the client closed its side")
        self._buffer += data
        return True

    @staticmethod
    def _wait(poll: select.poll, deadline: float) -> list[tuple[int, int]]:
        remaining_s = deadline - time.monotonic()
        # Rounded up: a poll of 0 ms for the last fraction would spin.
        if remaining_s <= 0 or not (ready := poll.poll(int(remaining_s * 1000) + 1)):
            raise RequestTimeout("the client did not go on within its time")
        return ready

    # -- writing

    def send(self, data: bytes) -> None:
        """Hand all of data to the kernel. Raises Disconnected, also when the client stopped reading."""
        if self._unsent:
            data, self._unsent = self._unsent + data, b""
        if not data:
            return
        try:
            n_sent = self.sock.send(data)
        except BlockingIOError:
            n_sent = 0
        except OSError as error:
            raise Disconnected(str(error)) from error
        if n_sent < len(data):
            self._send_slowly(memoryview(data)[n_sent:])
        self.sent_bytes += len(data)

    def try_send(self, data: bytes) -> bool:
        """Hand over what fits without waiting. False: the rest, or an error, is left to the next `send`, which must come.

        The one method that another thread may call, while the connection's own thread waits for it.
        """
        try:
            n_sent = self.sock.send(data)
        except OSError:  # would block, or broken: then the next send meets that, too
            n_sent = 0
        self.sent_bytes += n_sent
        self._unsent = data[n_sent:]
        return not self._unsent

    def send_some(self, data: bytes | memoryview) -> int:
        """Hand over what the kernel takes without waiting; how many bytes that was. Raises Disconnected."""
        try:
            n_sent = self.sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise Disconnected(str(error)) from error
        self.sent_bytes += n_sent
        return n_sent

    def _send_slowly(self, rest: memoryview) -> None:
        deadline = time.monotonic() + self.limits.send_s
        while rest:
            try:
                self._wait(self._writable, deadline)
                rest = rest[self.sock.send(rest) :]
            except BlockingIOError:
                continue
            except RequestTimeout:
                raise Disconnected(f"the client took no more bytes for {self.limits.send_s:g} s") from None
            except OSError as error:
                raise Disconnected(str(error)) from error

    # -- the end

    def finish(self) -> None:
        """Close so that the client gets the last response whole.

        A close with unread input sends RST, and RST throws away what the client has not read yet (RFC 9112 9.6): so
        the sending side is shut down first and what still comes is read away for a moment.
        """
        with contextlib.suppress(OSError, Disconnected, RequestTimeout):
            self.sock.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + self.limits.linger_s
            while True:
                self._buffer.clear()
                self._fill(deadline)
                if time.monotonic() >= deadline:
                    break
        self.sock.close()

    def read_away(self) -> bool:
        """Throw away what has come, without waiting; False once the client has closed its side, or is gone."""
        try:
            return bool(self.sock.recv(_PIECE))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def abort(self) -> None:
        """Close at once; what the client has not read is thrown away (a reader that stalled would hold it in the kernel)."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def hang_up(self) -> None:
        """Wake the connection's thread out of whatever it waits for. Any thread; the owner still closes.

        What the client sends after this is answered by a reset, which may overtake the last response: only for one that had
        its time.
        """
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)


def _client_address(sock: socket.socket) -> str:
    """The IP address at the other end; UNIX for a Unix socket. Raises OSError where the client has left already."""
    return str(sock.getpeername()[0]) if sock.family in (socket.AF_INET, socket.AF_INET6) else UNIX


def _peer_uid(sock: socket.socket) -> int | None:
    """unix(7), SO_PEERCRED: of the process that connected, at that moment. None for TCP."""
    if sock.family != socket.AF_UNIX:
        return None
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(_UCRED))
    return int(struct.unpack(_UCRED, credentials)[1])
