"""Which requests in HTTP/2 might a proxy turn into bytes of HTTP/1.1 that say something else? The table, and the frames.

In HTTP/2 a name, a value or a length can hold what ends a line or a message in HTTP/1.1; the proxy has to notice.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from tests.http.smuggling import CARRIER, HIDDEN, LAST, N

Fields = tuple[tuple[str, str], ...]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
END_STREAM, END_HEADERS, ACK = 1, 4, 1


@dataclass(frozen=True)
class Vector:
    name: str
    fields: Fields
    data: str
    trailers: Fields = ()

    def numbered(self, number: int) -> bytes:
        end = END_STREAM if not self.data and not self.trailers else 0
        frames = _frame(HEADERS, END_HEADERS | end, _block(self.fields))
        if self.data:
            frames += _frame(DATA, 0 if self.trailers else END_STREAM, self.data.encode("latin-1"))
        if self.trailers:
            frames += _frame(HEADERS, END_HEADERS | END_STREAM, _block(self.trailers))
        return frames.replace(b"=000", f"={number:03}".encode())


def request(
    *more: tuple[str, str], method: str = "POST", path: str = CARRIER, authority: str = "h", scheme: str = "http"
) -> Fields:
    pseudo = ((":method", method), (":scheme", scheme), (":authority", authority), (":path", path))
    return (*pseudo, ("content-type", "application/json"), *more)


def vectors() -> Iterator[Vector]:
    for value in (
        "0", "1", f"{N - 1}", f"{N + 1}", f"+{N}", f"-{N}", f"0x{N:x}", f"{N}, {N}", f"{N} ", "", "9" * 25,
        f"{N}\r\nx: y", f"{N}\0",
    ):  # fmt: skip
        yield Vector(f"content-length {value!r}", request(("content-length", value)), HIDDEN)
    yield Vector("two lengths", request(("content-length", "0"), ("content-length", f"{N}")), HIDDEN)
    yield Vector("a length that is right", request(("content-length", f"{N}")), HIDDEN)
    yield Vector("no length", request(), HIDDEN)
    for name in ("transfer-encoding", "Transfer-Encoding", "transfer-encoding ", " transfer-encoding", "transfer_encoding", "te"):
        yield Vector(f"chunked as {name!r}", request((name, "chunked")), LAST + HIDDEN)
    yield Vector("chunked beside a length", request(("transfer-encoding", "chunked"), ("content-length", f"{N}")), HIDDEN)
    for end in ("\r\n", "\n", "\r", "\0", "\r\n "):
        yield Vector(f"a coding behind {end!r} in a value", request(("x", f"y{end}transfer-encoding: chunked")), LAST + HIDDEN)
        yield Vector(f"a coding behind {end!r} in a name", request((f"x: y{end}transfer-encoding", "chunked")), LAST + HIDDEN)
        yield Vector(f"a request behind {end!r} in a value", request(("x", f"y{end}{end}{HIDDEN}"), method="GET"), "")
        yield Vector(
            f"a request behind {end!r} in the path", request(path=f"{CARRIER} HTTP/1.1{end}Host: h{end}{end}{HIDDEN}"), ""
        )
        yield Vector(f"a request behind {end!r} in the authority", request(authority=f"h{end}{end}{HIDDEN}", method="GET"), "")
        yield Vector(
            f"a request behind {end!r} in the method", request(method=f"GET /livez?carrier=000 HTTP/1.1{end}{end}GET"), ""
        )
        yield Vector(f"a field behind {end!r} in a cookie", request(("cookie", f"a=b{end}content-length: {N}")), HIDDEN)
    for name in ("x y", "x:", ":", "", "x\xe9", "X-Upper", "x(", "\t"):
        yield Vector(f"a field named {name!r}", request((name, "y")), HIDDEN)
    for path in (
        "",
        "livez?carrier=000",
        "*",
        "http://evil/livez?carrier=000",
        "/livez?carrier=000 x",
        "/livez?carrier=000#x",
        "//h/?carrier=000",
    ):
        yield Vector(f"path {path!r}", request(path=path, method="GET"), "")
    yield Vector("another host beside the authority", request(("host", "evil")), HIDDEN)
    yield Vector("two hosts beside the authority", request(("host", "h"), ("host", "evil")), HIDDEN)
    yield Vector("a scheme that is a target", request(scheme="http://h/livez?smuggled=000#"), HIDDEN)
    yield Vector("two paths", request((":path", "/livez?smuggled=000")), HIDDEN)
    yield Vector("a pseudo field that is unknown", request((":x", "y")), HIDDEN)
    yield Vector("CONNECT", request(method="CONNECT"), HIDDEN)
    for method in ("GET", "HEAD", "DELETE", "GET /x HTTP/1.1", "get\t"):
        yield Vector(f"a body with {method!r}", request(method=method), HIDDEN)
    for field in (
        ("connection", "content-length"),
        ("connection", "close"),
        ("upgrade", "h2c"),
        ("expect", "100-continue"),
        ("keep-alive", "1"),
    ):
        yield Vector(f"{field[0]}: {field[1]}", request(field), HIDDEN)
    for field in (
        ("content-length", "0"),
        ("transfer-encoding", "chunked"),
        ("x", f"y\r\n\r\n{HIDDEN}"),
        (":path", "/livez?smuggled=000"),
    ):
        yield Vector(f"a trailer {field[0]}: {field[1][:10]!r}", request(), HIDDEN, trailers=(field,))


VECTORS = tuple(vectors())


def innocent(number: int) -> bytes:
    """A request whose answer names what was asked."""
    return _frame(HEADERS, END_HEADERS | END_STREAM, _block(request(method="GET", path=f"/none-{number:03}")))


def exchange(address: tuple[str, int], frames: bytes) -> bytes:
    """The data of the answer to one stream; empty where there is none: it was reset, or the connection ended."""
    data, buffer = b"", b""
    with socket.create_connection(address, timeout=10) as sock, contextlib.suppress(ConnectionResetError, BrokenPipeError):
        sock.sendall(PREFACE + _frame(SETTINGS, 0, b"", stream=0) + frames)
        while True:
            while len(buffer) < 9 or len(buffer) < 9 + int.from_bytes(buffer[:3], "big"):
                if not (piece := sock.recv(65536)):
                    return data
                buffer += piece
            size, kind, flags = int.from_bytes(buffer[:3], "big"), buffer[3], buffer[4]
            payload, buffer = buffer[9 : 9 + size], buffer[9 + size :]
            if kind == DATA:
                data += payload
            if kind == SETTINGS and not flags & ACK:
                sock.sendall(_frame(SETTINGS, ACK, b"", stream=0))
            if kind in (RST_STREAM, GOAWAY) or (kind in (DATA, HEADERS) and flags & END_STREAM):
                return data
    return data


def _frame(kind: int, flags: int, payload: bytes, stream: int = 1) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _block(fields: Fields) -> bytes:
    """HPACK (RFC 7541 6.2.2): each field a literal that is not indexed, its strings as they are."""
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in fields)


def _string(text: str) -> bytes:
    """RFC 7541 5.1 and 5.2."""
    data = text.encode("latin-1")
    n = len(data)
    if n < 127:
        return bytes([n]) + data
    length, n = b"\x7f", n - 127
    while n >= 128:
        length, n = length + bytes([n % 128 + 128]), n // 128
    return length + bytes([n]) + data
