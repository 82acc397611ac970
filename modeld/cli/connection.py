"""How does a request reach the daemon, and what came back? HTTP over TCP, TLS, a Unix socket; every fault is a Failure."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from modeld import __version__, exits
from modeld.cli import failures
from modeld.cli.failures import Failure
from modeld.cli.record import Record, shown
from modeld.cli.target import FILE, KEY_VARIABLE, SERVER_VARIABLE, Target

MAX_ANSWER_BYTES = 64 << 20
MAX_ERROR_BYTES = 1 << 20
IDLE_S = 60.0  # the daemon sends a comment each 15 s: a stream that is silent for so long has no other end
_PIECE = 1 << 16
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND = 401, 403, 404


@dataclass(frozen=True, slots=True)
class Answer:
    """`body` is the JSON object that came."""

    status: int
    fields: Mapping[str, str]  # names in lower case
    body: Record


class Stream:
    """A response that is read line by line. Not for two threads."""

    def __init__(self, response: http.client.HTTPResponse, sock: socket.socket | None) -> None:
        self.response = response
        self._sock = sock

    def readline(self, limit: int, timeout_s: float | None) -> bytes:
        """One line, at most `limit` bytes of it; empty at the end. Raises TimeoutError, OSError, HTTPException."""
        if self._sock is not None:
            self._sock.settimeout(timeout_s)
        try:
            return self.response.readline(limit)
        except (
            AttributeError,
            ValueError,
        ) as error:  # http.client, where a chunk's size is no number or the peer closed between chunks
            raise http.client.HTTPException(str(error)) from None


class Client:
    """Asks one daemon; each request has a connection of its own. `timeout_s`: to connect, and for a whole answer."""

    def __init__(self, target: Target, timeout_s: float) -> None:
        self.target = target
        self.timeout_s = timeout_s

    def get(self, path: str) -> Answer:
        return self.ask("GET", path)

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        fields: Mapping[str, str] | None = None,
        *,
        scope: str = "use",
        timeout_s: float | None = None,
        good: tuple[int, ...] = (200, 202),
    ) -> Answer:
        """`scope`: what a key must have for it, for a message. `timeout_s`: another time for the answer; 0: none at all.

        Raises Failure for whatever is no JSON object with one of the statuses in `good`.
        """
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        with self._sent(method, path, body, fields, limit_s) as stream:
            answer = Answer(stream.response.status, _fields(stream.response), self._json(stream, limit_s))
        if answer.status not in good:
            raise self._refused(answer, scope)
        return answer

    @contextlib.contextmanager
    def open(
        self,
        method: str,
        path: str,
        body: object = None,
        fields: Mapping[str, str] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Iterator[Stream]:
        """A stream of events. `timeout_s`: for its head; None: that of the client; 0: none. Raises Failure where none comes."""
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        with self._sent(method, path, body, fields, limit_s) as stream:
            response = stream.response
            if response.status != http.client.OK:
                raise self._refused(Answer(response.status, _fields(response), self._json(stream, limit_s)), "use")
            if not (response.getheader("Content-Type") or "").startswith("text/event-stream"):
                raise self._not_modeld(response, b"")
            yield stream

    # -- sending

    @contextlib.contextmanager
    def _sent(self, method: str, path: str, body: object, fields: Mapping[str, str] | None, limit_s: float) -> Iterator[Stream]:
        head = {"User-Agent": f"modeld/{__version__}", "Accept": "application/json, text/event-stream", "Connection": "close"}
        if self.target.key is not None:
            head["Authorization"] = f"Bearer {self.target.key}"
        if body is not None:
            head["Content-Type"] = "application/json"
        data = None if body is None else json.dumps(body).encode()
        connection = self._connection()
        try:
            try:
                connection.connect()
            except (OSError, ValueError, UnicodeError) as error:
                raise self._unreachable(error) from None
            sock = connection.sock
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.settimeout(limit_s or None)
            try:
                connection.request(method, self.target.base + path, data, {**head, **(fields or {})})
                response = connection.getresponse()
            except TimeoutError:
                raise self._silent(limit_s) from None
            except http.client.RemoteDisconnected:
                raise failures.lost(f"{self.target} closed the connection without an answer") from None
            except http.client.HTTPException as error:
                raise self._no_http(error) from None
            except (OSError, ValueError) as error:
                raise failures.lost(f"the connection to {self.target} broke: {_reason(error)}") from None
            with response:
                yield Stream(response, sock)
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        target = self.target
        if target.scheme == "unix":
            return _UnixConnection(target.path, self.timeout_s)
        if target.scheme == "https":
            return http.client.HTTPSConnection(target.host, target.port, timeout=self.timeout_s or None)
        return _TcpConnection(target.host, target.port, timeout=self.timeout_s or None)

    # -- what came

    def _json(self, stream: Stream, limit_s: float) -> Record:
        response = stream.response
        limit = MAX_ANSWER_BYTES if response.status == http.client.OK else MAX_ERROR_BYTES
        data = self._whole(stream, limit, limit_s)
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise self._not_modeld(response, data)
        return Record(value)

    def _whole(self, stream: Stream, limit: int, limit_s: float) -> bytes:
        deadline = time.monotonic() + limit_s if limit_s else None
        parts: list[bytes] = []
        n_bytes = 0
        try:
            while piece := stream.response.read1(_PIECE):
                parts.append(piece)
                n_bytes += len(piece)
                if n_bytes > limit:
                    raise Failure(
                        f"{self.target} answers with more than {limit} bytes", code=failures.NOT_MODELD, status=exits.UNREACHABLE
                    )
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError
        except TimeoutError:
            raise self._silent(limit_s) from None
        except (OSError, ValueError, AttributeError, http.client.HTTPException) as error:
            raise failures.lost(f"the connection to {self.target} broke in the middle of an answer: {_reason(error)}") from None
        if stream.response.length:  # read1 says nothing of what is missing
            raise failures.lost(f"the connection to {self.target} ended {stream.response.length} bytes before the answer did")
        return b"".join(parts)

    # -- faults in words

    def _unreachable(self, error: Exception) -> Failure:
        target = self.target
        if (verification := _verify_message(error)) is not None:
            return _reach(
                f"{target}: its certificate is not trusted: {verification}. The system's certificates count; "
                "SSL_CERT_FILE names another file of them"
            )
        reason = _reason(error)
        if isinstance(error, TimeoutError):
            reason = f"no connection within {self.timeout_s:g} s"
        hint = ""
        if target.scheme == "http" and target.port == http.client.HTTP_PORT:
            hint = f" modeld's own port is 8080: http://{shown(target.host)}:8080."
        elif type(error).__module__ == "ssl":
            hint = " Does it speak TLS at all? Then http:// is its address; modeld itself has no TLS, a proxy in front of it may."
        return _reach(
            f"no daemon can be reached at {target} ({reason}; this address is from: {target.source}).{hint} "
            f"Does it run there (`modeld serve`)? --server URL, {SERVER_VARIABLE} or server in {FILE} give another address"
        )

    def _silent(self, limit_s: float) -> Failure:
        return _reach(f"{self.target} has not answered within {limit_s:g} s; --timeout S waits longer")

    def _no_http(self, error: http.client.HTTPException) -> Failure:
        return Failure(
            f"what listens at {self.target} does not speak HTTP as expected: {shown(str(error) or type(error).__name__, 200)}",
            code=failures.NOT_MODELD,
            status=exits.UNREACHABLE,
        )

    def _not_modeld(self, response: http.client.HTTPResponse, data: bytes) -> Failure:
        kind = shown(response.getheader("Content-Type") or "no type", 100)
        begins = f", which begins with {shown(data[:60].decode(errors='replace'), 60)!r}" if data.strip() else ""
        moved = response.getheader("Location")
        to = f"; it points to {shown(moved, 200)}, which is not followed" if moved and 300 <= response.status < 400 else ""
        return Failure(
            f"what answers at {self.target} is not modeld: status {response.status} with {kind}{begins}{to}",
            code=failures.NOT_MODELD,
            status=exits.UNREACHABLE,
        )

    def _refused(self, answer: Answer, scope: str) -> Failure:
        error = answer.body.record("error")
        code = error.text("code") or "unknown"
        message = error.message() or f"{self.target} answers with status {answer.status} and no message"
        status = failures.exit_status(code, answer.status)
        if answer.status == _UNAUTHORIZED:
            message += f". {self._about_key(scope)}"
        elif answer.status == _FORBIDDEN and code == "permission_denied":
            message += f". This needs scope {scope}; {self._about_key(scope)}"
        if answer.status == _NOT_FOUND and message.startswith("there is no /"):
            message += f"; is {self.target} a modeld of this version ({__version__})?"
        if (
            (wait := answer.fields.get("retry-after", "")).isascii()
            and wait.isdecimal()
            and len(wait) < 7
            and status == exits.NOT_NOW
        ):
            message += f"; try again in {wait} s"
        return Failure(message, code=code, status=status, param=error.text("param") or None)

    def _about_key(self, scope: str) -> str:
        if self.target.key is not None:
            return f"The key came from {self.target.key_source}"
        return (
            f"No key was sent; a key of scope {scope} comes from --key-file FILE, {KEY_VARIABLE}, "
            f"or key_file in {FILE}, which counts for the server of that file only"
        )


class _TcpConnection(http.client.HTTPConnection):
    def connect(self) -> None:
        """As http.client's, but with the host as bytes: a str takes the codec of international names, 6 ms to import."""
        address = (self.host.encode("ascii"), self.port)
        self.sock = socket.create_connection(address, self.timeout)  # type: ignore[arg-type]  # getaddrinfo takes bytes, too
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s or None)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _fields(response: http.client.HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.getheaders()}


def _reach(message: str) -> Failure:
    return Failure(message, code=failures.UNREACHABLE, status=exits.UNREACHABLE)


def _verify_message(error: Exception) -> str | None:
    """Why a certificate is not trusted. Without importing ssl, which http.client has imported where there is one."""
    said = getattr(error, "verify_message", None)
    return shown(said, 200) if isinstance(said, str) else None


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return shown(error.strerror.lower(), 200)
    return shown(str(error) or type(error).__name__, 200)
