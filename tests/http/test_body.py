"""Which bodies are read, which are refused. Pure: the source is bytes."""

from __future__ import annotations

import pytest

from modeld.errors import HeadersTooLarge, InvalidRequest, PayloadTooLarge, RequestTimeout
from modeld.httpapi.body import read_body
from modeld.httpapi.head import parse_head

CHUNKED = parse_head(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")


class Bytes:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def read_line(self, max_bytes: int, deadline: float) -> bytes:
        line, found, rest = self.data.partition(b"\r\n")
        if len(line) > max_bytes:
            raise HeadersTooLarge("line")
        if not found:
            raise RequestTimeout("no more")
        self.data = rest
        return line

    def read_exactly(self, n_bytes: int, deadline: float) -> bytes:
        if len(self.data) < n_bytes:
            raise RequestTimeout("no more")
        data, self.data = self.data[:n_bytes], self.data[n_bytes:]
        return data


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (b"0\r\n\r\nNEXT", b""),
        (b"3\r\nabc\r\n0\r\n\r\nNEXT", b"abc"),
        (b"3;x=y\r\nabc\r\n00A \t;q\r\n0123456789\r\n0\r\nX-T: 1\r\nY:\r\n\r\nNEXT", b"abc0123456789"),
    ],
)
def test_chunks_are_joined_and_nothing_more_is_read(raw, body):
    source = Bytes(raw)
    assert read_body(source, CHUNKED, 100, 0.0) == body
    assert source.data == b"NEXT"


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"\r\n", InvalidRequest),
        (b"+3\r\nabc\r\n0\r\n\r\n", InvalidRequest),
        (b"0x3\r\nabc\r\n0\r\n\r\n", InvalidRequest),
        (b"3 \r\nabc\r\n0\r\n\r\n", InvalidRequest),
        (b" 3\r\nabc\r\n0\r\n\r\n", InvalidRequest),
        (b"3_0\r\nabc\r\n0\r\n\r\n", InvalidRequest),
        (b"3;\n\r\nabc\r\n0\r\n\r\n", InvalidRequest),
        (b"3;a\x00\r\nabc\r\n0\r\n\r\n", InvalidRequest),
        (b"3\r\nabcd\r\n0\r\n\r\n", InvalidRequest),
        (b"3\r\nabc\n\n0\r\n\r\n", InvalidRequest),
        (b"0\r\nno colon\r\n\r\n", InvalidRequest),
        (b"0\r\nX : 1\r\n\r\n", InvalidRequest),
        (b"0\r\nContent-Length: 9\r\n\r\n", InvalidRequest),
        (b"0\r\nTRANSFER-ENCODING: chunked\r\n\r\n", InvalidRequest),
        (b"0\r\nHost: evil\r\n\r\n", InvalidRequest),
        (b"0\r\nAuthorization: Bearer x\r\n\r\n", InvalidRequest),
        (b"0\r\n" + b"X: 1\r\n" * 21 + b"\r\n", InvalidRequest),
        (b"123456789\r\n", InvalidRequest),
        (b"65\r\n", PayloadTooLarge),
        (b"32\r\n" + b"x" * 50 + b"\r\n33\r\n", PayloadTooLarge),
        (b"1;" + b"a" * 90 + b"\r\nx\r\n1;" + b"a" * 90 + b"\r\n", PayloadTooLarge),
        (b"1;" + b"a" * 300 + b"\r\n", HeadersTooLarge),
        (b"3\r\nab", RequestTimeout),
        (b"3\r\nabc\r\n", RequestTimeout),
    ],
)
def test_chunked_bodies_that_are_refused(raw, error):
    with pytest.raises(error):
        read_body(Bytes(raw), CHUNKED, 100, 0.0)


def test_a_length_is_checked_before_anything_is_read():
    head = parse_head(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 101\r\n\r\n")
    source = Bytes(b"x" * 101)
    with pytest.raises(PayloadTooLarge, match="101 bytes, 100 are allowed"):
        read_body(source, head, 100, 0.0)
    assert len(source.data) == 101
