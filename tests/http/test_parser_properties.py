"""What holds of the parser for any bytes, however they are cut into packets. No sockets but one that nothing is sent over."""

from __future__ import annotations

import itertools
import re
import socket
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modeld.errors import ClientError, HeadersTooLarge, ModeldError
from modeld.httpapi.body import read_body
from modeld.httpapi.connection import Connection, Disconnected, EndOfInput
from modeld.httpapi.head import RequestHead, find_end, parse_head
from modeld.httpapi.limits import Limits
from tests.http.smuggling import VECTORS

LIMITS = Limits(head_bytes=600, head_fields=20, head_line_bytes=200, body_bytes=300)
thoroughly = settings(max_examples=500, deadline=None, database=None)

# -- bytes

PIECES = st.sampled_from([
    b"GET ", b"POST ", b"/", b"*", b" HTTP/1.1", b" HTTP/1.0", b"\r\n", b"\r\n\r\n", b"Host: h\r\n", b"Host:", b"\n", b"\r", b":",
    b" ", b"\t", b"Content-Length: ", b"5", b"0", b"Transfer-Encoding: ", b"chunked", b"\x00", b"\xff", b",", b"http://", b"%",
    b"[", b"Expect: ", b"100-continue", b"Connection: close", b"0\r\n", b"5\r\nhello\r\n", b";", b"a" * 250,
])  # fmt: skip
junk = st.lists(PIECES | st.binary(max_size=3), max_size=30).map(b"".join)
token = st.text("!#$%&'*+.^_`|~-09azAZ", min_size=1, max_size=12)
field_value = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]) | st.just("\t"), max_size=30).map(
    lambda text: text.strip(" \t")
)
blanks = st.text(" \t", max_size=3)
SEPARATE = {"host", "content-length", "transfer-encoding", "expect", "connection", "content-type", "authorization", "origin"}
fields = st.lists(st.tuples(token.filter(lambda name: name.lower() not in SEPARATE), blanks, field_value, blanks), max_size=8)
path = st.lists(st.text("abAB09-._~!$&'()*+,;=:@\"{|}^`<>[]", max_size=6) | st.just("%2f"), max_size=4).map(
    lambda s: "/" + "/".join(s)
)
query = st.none() | st.text("ab09/?&=+-._~\\|{}", max_size=12)


@st.composite
def messages(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A valid request and its body."""
    body = draw(st.binary(max_size=100))
    lines = [f"{draw(token)} {draw(path)} HTTP/1.1", "Host: h"]
    lines += [f"{name}:{before}{value}{after}" for name, before, value, after in draw(fields)]
    if not draw(st.booleans()):
        return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode("latin-1") + body, body
    head = "\r\n".join([*lines, "Transfer-Encoding: chunked", "", ""]).encode("latin-1")
    coded, rest = b"", body
    while rest:
        size = draw(st.integers(1, len(rest)))
        extension = draw(st.sampled_from(["", ";a", " ;a=b", ';a="b;c"']))
        coded += f"{'0' * draw(st.integers(0, 2))}{size:x}{extension}\r\n".encode() + rest[:size] + b"\r\n"
        rest = rest[size:]
    trailers = draw(st.sampled_from([b"", b"X: y\r\n", b"X:\r\nContent-Type: a/b\r\n"]))
    return head + coded + b"0\r\n" + trailers + b"\r\n", body


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(ends)]


places = st.lists(st.integers(0, 1 << 16), max_size=12)

# -- the reader


class Fed(Connection):
    """A connection that gets these packets, and then the end."""

    def __init__(self, sock: socket.socket, packets: Sequence[bytes]) -> None:
        super().__init__(sock, LIMITS)
        self._packets = list(packets)

    def _has_filled(self) -> bool:
        if not self._packets:
            raise EndOfInput("no more packets")
        self._buffer += self._packets.pop(0)
        return True


Outcome = tuple[RequestHead, bytes] | tuple[type[Exception], str]


@pytest.fixture(scope="module")
def sock() -> Iterable[socket.socket]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours


def read(sock: socket.socket, packets: Sequence[bytes]) -> list[Outcome]:
    """Every request in the packets, up to the first error; the server stops there, too."""
    connection = Fed(sock, packets)
    outcomes: list[Outcome] = []
    try:
        while (raw := connection.read_head(first=not outcomes)) is not None:
            head = parse_head(raw, LIMITS.head_fields, LIMITS.head_line_bytes)
            outcomes.append((head, read_body(connection, head, LIMITS.body_bytes, 0.0)))
            if not head.keep_alive:
                break
    except (ModeldError, Disconnected) as error:
        outcomes.append((type(error), str(error)))
    return outcomes


# -- what holds


@thoroughly
@given(junk)
def test_any_bytes_are_a_head_or_a_typed_error(raw: bytes):
    try:
        end = find_end(raw, 0, 600)
        head = parse_head(raw[:end] if end else raw + b"\r\n\r\n", 20, 200)
    except ClientError as error:
        if error.status in (400, 417, 431, 501, 505):
            return
        raise
    assert not (head.chunked and head.content_length is not None)
    assert head.minor in (0, 1)
    assert head.host or head.minor == 0
    assert re.fullmatch(r"/[!-~]*|\*|", head.path)
    for name, value in head.fields:
        assert re.fullmatch(r"[!-9;-@\[-~]+", name)
        assert re.fullmatch(r"[\t\x20-\x7e\x80-\xff]*", value)
        assert value == value.strip(" \t")


@thoroughly
@given(token.filter(lambda method: method != "CONNECT"), path, query, st.integers(0, 1), fields)
def test_a_valid_head_is_read_as_it_was_written(method, path, query, minor, fields):
    target = path if query is None else f"{path}?{query}"
    lines = [f"{name}:{before}{value}{after}" for name, before, value, after in fields]
    raw = "\r\n".join([f"{method} {target} HTTP/1.{minor}", "Host: h:80", *lines, "", ""]).encode("latin-1")
    assert find_end(raw, 0, 1 << 16) == len(raw)
    head = parse_head(raw)
    assert (head.method, head.target, head.path, head.query) == (method, target, path, query or "")
    assert (head.minor, head.host, head.content_length, head.chunked) == (minor, "h:80", None, False)
    assert head.fields == (("host", "h:80"), *((name.lower(), value) for name, _, value, _ in fields))


@thoroughly
@given(junk, places)
@example(b"GET / HTTP/1.1\r\nX: " + b"a" * 700 + b"\0\r\n\r\n", [650])
@example(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello", [60])
def test_any_bytes_are_read_alike_however_they_are_cut(sock: socket.socket, data: bytes, places: list[int]):
    assert read(sock, cut(data, places)) == read(sock, [data])


@thoroughly
@given(st.lists(messages(), min_size=1, max_size=3), places, st.booleans())
def test_requests_and_their_bodies_are_read_whole_however_they_are_cut(sock: socket.socket, sent, places, blank: bool):
    data = (b"\r\n" if blank else b"").join(raw for raw, _ in sent)
    outcomes = read(sock, cut(data, places))
    bodies = [body for head, body in outcomes if isinstance(head, RequestHead)]
    if all(isinstance(head, RequestHead) for head, _ in outcomes):
        assert bodies == [body for _, body in sent]
    else:  # heads may be drawn that are longer than what is allowed here, and nothing else
        assert outcomes[-1][0] is HeadersTooLarge
        assert bodies == [body for _, body in sent][: len(bodies)]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_vectors_are_read_alike_in_one_packet_and_byte_by_byte(sock: socket.socket, vector):
    data = vector.raw.encode("latin-1")[:3000]
    assert read(sock, [bytes([byte]) for byte in data]) == read(sock, [data])


@thoroughly
@given(junk)
def test_any_bytes_are_a_chunked_body_or_a_typed_error(sock: socket.socket, data: bytes):
    head = parse_head(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
    connection = Fed(sock, [data])
    try:
        body = read_body(connection, head, LIMITS.body_bytes, 0.0)
    except (ClientError, EndOfInput):
        return
    assert len(body) <= LIMITS.body_bytes
