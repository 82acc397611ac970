"""Do any bytes break the HTTP parser? An input is what comes through one connection: heads and bodies, one behind the other.

It is read by the real Connection twice, whole and in pieces, which must give the same requests; a simpler reader finds them
in the bytes. What was read is written again and read again, which must give the same, too.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from fuzz.target import Target
from modeld.errors import (
    ExpectationFailed,
    HeadersTooLarge,
    InvalidRequest,
    ModeldError,
    NotImplementedByServer,
    PayloadTooLarge,
    RequestTimeout,
    VersionNotSupported,
)
from modeld.httpapi.body import read_body
from modeld.httpapi.connection import Connection, Disconnected
from modeld.httpapi.head import RequestHead, parse_head
from modeld.httpapi.limits import Limits
from tests.http.smuggling import VECTORS

MAX_PIECES = 60  # packets that wait in a socket pair
MAX_REQUESTS = 8
MAX_BYTES = 9000
LIMITS = Limits(head_bytes=8400, body_bytes=4096)  # in one packet; a head may have a line that is too long

# What the docstrings of read_head, parse_head and read_body allow.
HEAD_ERRORS = (RequestTimeout, InvalidRequest, HeadersTooLarge, Disconnected)
PARSE_ERRORS = (InvalidRequest, HeadersTooLarge, NotImplementedByServer, VersionNotSupported, ExpectationFailed)
BODY_ERRORS = (InvalidRequest, HeadersTooLarge, PayloadTooLarge, RequestTimeout, Disconnected)


@dataclass(frozen=True, slots=True)
class Served:
    requests: tuple[tuple[RequestHead, bytes], ...]
    end: str  # why no more were read


def check(data: bytes) -> str:
    if not data:
        return "Disconnected"
    whole = serve([data])
    step = max(1 + data[-1] % 7, -(-len(data) // MAX_PIECES))
    pieces = serve([data[at : at + step] for at in range(0, len(data), step)])
    # Where a fault is seen depends on how much has come, and so may its name; what was read before it does not.
    assert pieces.requests == whole.requests, f"in pieces of {step} bytes {pieces}, whole {whole}"
    assert (pieces.end == "closed") == (whole.end == "closed"), f"in pieces of {step} bytes {pieces.end}, whole {whole.end}"
    at = 0
    for head, body in whole.requests:
        at = _check_bytes(data, at, head, body)
        _check_head(head)
        _check_body(head, body, step)
    return "read" if whole.requests else whole.end


def serve(pieces: list[bytes]) -> Served:
    """Read requests as the server does until one is wrong, or the last."""
    # Packets keep their borders, so that each piece is one recv.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for piece in pieces:
            theirs.send(piece)
        theirs.shutdown(socket.SHUT_WR)
        requests: list[tuple[RequestHead, bytes]] = []
        connection = Connection(ours, LIMITS)
        end = "closed"
        while end == "closed" and len(requests) < MAX_REQUESTS:
            try:
                raw = connection.read_head(first=not requests)
            except HEAD_ERRORS as error:
                end = _name(error)
                break
            if raw is None:
                break
            try:
                head = parse_head(raw, LIMITS.head_fields)
            except PARSE_ERRORS as error:
                end = _name(error)
                break
            try:
                body = read_body(connection, head, LIMITS.body_bytes, math.inf)
            except BODY_ERRORS as error:
                end = _name(error)
                break
            requests.append((head, body))
            if not head.keep_alive:
                break
        return Served(tuple(requests), end)


def _name(error: Exception) -> str:
    if isinstance(error, ModeldError):
        assert 400 <= error.status < 600, error
        assert error.message.isprintable(), f"a message with control characters: {error.message!r}"
    return type(error).__name__


def _check_bytes(data: bytes, at: int, head: RequestHead, body: bytes) -> int:
    """That the bytes at `at` are this request, by a reader that knows less. Where the next one begins."""
    while data.startswith(b"\r\n", at):
        at += 2
    end = data.index(b"\r\n\r\n", at) + 4
    assert data[at:].startswith(f"{head.method} {head.target} HTTP/1.{head.minor}\r\n".encode())
    if not head.chunked:
        end += head.content_length or 0
        assert data[:end].endswith(body)
        return end
    told = bytearray()
    while True:
        line, end = _line(data, end)
        size = int(line.partition(b";")[0].rstrip(b" \t").decode("ascii"), 16)
        if size == 0:
            break
        told += data[end : end + size]
        assert data[end + size : end + size + 2] == b"\r\n", f"a chunk that ends otherwise: {data[end : end + size + 2]!r}"
        end += size + 2
    assert told == body, f"read {body!r}, sent {bytes(told)!r}"
    while line:
        line, end = _line(data, end)
        assert not line or b":" in line
    return end


def _line(data: bytes, at: int) -> tuple[bytes, int]:
    end = data.index(b"\r\n", at)
    assert not set(data[at:end]) & set(b"\r\n\0"), f"in a line of the framing: {data[at:end]!r}"
    return data[at:end], end + 2


def _check_head(head: RequestHead) -> None:
    assert head.minor in (0, 1)
    assert head.host or head.minor == 0
    assert not (head.chunked and head.content_length is not None)
    for name, value in head.fields:
        assert name.isascii(), name
        assert name == name.lower()
        assert not set(name + value) & set("\r\n\0"), (name, value)
        assert value == value.strip(" \t")
    assert head.path.startswith("/") or (head.method, head.path) in (("OPTIONS", "*"), ("CONNECT", "")), head.path
    lines = [f"{head.method} {head.target} HTTP/1.{head.minor}", *(f"{name}: {value}" for name, value in head.fields)]
    again = parse_head("\r\n".join([*lines, "", ""]).encode("latin-1"), LIMITS.head_fields)
    assert again == head, f"written and read again: {again}, was {head}"


def _check_body(head: RequestHead, body: bytes, step: int) -> None:
    assert len(body) <= LIMITS.body_bytes
    if not head.chunked:
        assert len(body) == (head.content_length or 0)
        return
    step = max(step, len(body) // 32, 1)
    chunks = [body[at : at + step] for at in range(0, len(body), step)]
    raw = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    post = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    again = serve([post + raw])
    # The framing of small chunks counts, so that one body may be too large in other chunks.
    assert again.end == "PayloadTooLarge" or [told for _, told in again.requests] == [body], f"in chunks of {step}: {again}"


def seeds() -> Iterator[bytes]:
    def head(*lines: str) -> bytes:
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    get, post = "GET / HTTP/1.1", "POST /v1/completions HTTP/1.1"
    yield head(get, "Host: h")
    yield head(get, "Host: h") * 3
    yield head("GET /a%20b?x=1&y HTTP/1.1", "Host: [::1]:8080", "X-A:  two words \t", "X-A: \xe9")
    yield head("GET / HTTP/1.0", "Connection: keep-alive") + head("GET / HTTP/1.0")
    yield head("OPTIONS * HTTP/1.1", "Host: h", "Origin: http://h", "Authorization: Bearer x")
    yield head("CONNECT h:443 HTTP/1.1", "Host: h") + b"\x16\x03\x01"
    yield head("GET http://other:99/x?y HTTP/1.1", "Host: h", "Connection: close, upgrade")
    yield head(post, "Host: h", "Content-Length: 5", "Content-Type: application/json", "Expect: 100-continue") + b"hello"
    chunked = head(post, "Host: h", "Transfer-Encoding: chunked")
    yield chunked + b"3;x=y\r\nabc\r\n00A \t;q\r\n0123456789\r\n0\r\nX-T: 1\r\nY:\r\n\r\n" + head(get, "Host: h")
    yield chunked + b"3\r\nabcd\r\n0\r\n\r\n"
    yield chunked + b"0\r\nHost: x\r\n\r\n"
    yield chunked + b"0\r\n" + b"X: 1\r\n" * 21 + b"\r\n"
    yield chunked + b"1;" + b"a" * 300 + b"\r\n"
    yield chunked + b"fff\r\n" + b"x" * 0xFFF + b"\r\n2\r\nxx\r\n0\r\n\r\n"
    yield chunked + b"3\r\nabcXX0\r\n\r\n"
    yield head(post, "Host: h", "Content-Length: 1", "Transfer-Encoding: chunked")
    yield head(post, "Host: h", "Transfer-Encoding: gzip, chunked")
    yield head(post, "Host: h", "Content-Length: 1", "Content-Length: 2")
    yield head(post, "Host: h", "Content-Length: 9999")
    yield head("GET / HTTP/2.0", "Host: h")
    yield head(get, "Host: h", "Expect: magic")
    yield head(get, *["X: 1"] * 101)
    yield head(get, "Host: h", "X: " + "a" * 8190)
    yield head(get, "Host: h", "X: " + "a" * 4200, "X: " + "a" * 4200)
    yield b"GET / HTTP/1.1\nHost: h\n\n"
    yield b"\r\n" + head(get, "Host: h", "X : 1")
    yield b"\x16\x03\x01\x02\x00\x01"
    yield from (vector.raw.encode("latin-1") for vector in VECTORS if len(vector.raw) <= MAX_BYTES)


WORDS = tuple(
    b"\r\n|\r\n\r\n|GET |POST |OPTIONS * |CONNECT h:1 |HTTP/1.1|HTTP/1.0|Host: |Content-Length: |Transfer-Encoding: chunked|"
    b"Connection: |close|keep-alive|Expect: 100-continue|Content-Type: |Authorization: |Origin: |http://|https://|0\r\n\r\n|1\r\n|"
    b"%20|[::1]|;|,|: ".split(b"|")
)

TARGET = Target(
    modules=("modeld.httpapi.head", "modeld.httpapi.body"), check=check, seeds=seeds, words=WORDS, max_bytes=MAX_BYTES
)
