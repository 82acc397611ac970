"""How answers go over the wire: in one write, without Nagle's wait, whole before the end, with no line too many."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
import tracemalloc
from collections.abc import Callable

import pytest
from fake_service import FakeService
from raw_client import RawClient

from modeld.errors import RequestTimeout
from modeld.httpapi.connection import Connection
from modeld.httpapi.limits import Limits
from modeld.httpapi.message import encode_head
from modeld.httpapi.server import HttpServer

Connect = Callable[[], RawClient]
POST = "POST /tokenize HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"


@pytest.fixture
def sends(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was handed to the kernel, piece by piece, and that Nagle's algorithm was off."""
    sent: list[bytes] = []

    def spy_on(name: str) -> None:
        send = getattr(Connection, name)

        def spy(self: Connection, data: bytes) -> int | None:
            assert self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            sent.append(data)
            return send(self, data)  # type: ignore[no-any-return]

        monkeypatch.setattr(Connection, name, spy)

    spy_on("send")  # all of it
    spy_on("send_some")  # what fits
    return sent


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\nb", "a\rb", "a\0b"])
def test_a_value_that_would_begin_another_line_is_never_sent(value: str):
    with pytest.raises(ValueError, match="not one line"):
        encode_head(200, [("X-Request-Id", value)])


def test_a_head_and_its_body_are_one_write(client: RawClient, sends: list[bytes]):
    body = client.request("GET", "/v1/models").body
    assert len(sends) == 1
    assert sends[0].endswith(b"\r\n\r\n" + body)


def test_the_head_of_a_stream_goes_out_with_its_first_frame_and_each_frame_is_a_chunk(client, sends, service: FakeService):
    answer = client.request("POST", "/v1/completions", {"prompt": "x", "stream": True})
    assert b"\r\n\r\n" in sends[0]
    assert b"Hello" in sends[0]
    assert answer.fields["transfer-encoding"] == "chunked"
    assert "content-length" not in answer.fields
    assert all(chunk.startswith(b"data: ") and chunk.endswith(b"\n\n") for chunk in answer.chunks)
    assert sends[-1].endswith(b"0\r\n\r\n")


def test_a_stream_that_is_cut_has_no_last_chunk(server: HttpServer, client: RawClient, service: FakeService):
    service.script = ["Hello"]
    client.post_only("POST", "/v1/completions", {"prompt": "x", "stream": True}).until(b"Hello")
    server.close(0.1)
    data = client.buffer
    with contextlib.suppress(ConnectionResetError):
        data += client.rest()
    assert not data.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (POST + f"Content-Length: {2 << 20}\r\n\r\n" + " " * (2 << 20), 413),
        (POST.replace("tokenize", "none") + f"Content-Length: {1 << 19}\r\n\r\n" + " " * (1 << 19), 404),
        ("GET /livez\r\n\r\n" + " " * (1 << 19), 400),
        ("GET /livez HTTP/1.1\r\n\r\n" + " " * (1 << 19), 400),
    ],
)
def test_a_refusal_arrives_whole_though_its_request_is_still_being_sent(connect: Connect, request_bytes: str, status: int):
    for _ in range(20):  # a close with unread input resets, sooner or later: http.server loses 8 of 20 answers
        client = connect().send(request_bytes)
        assert client.answer().status == status
        assert client.rest() == b""


@pytest.mark.parametrize("limits", [Limits(body_s=0.3, linger_s=0.1)])
@pytest.mark.parametrize(("framing", "body"), [("Content-Length: 900", "x"), ("Transfer-Encoding: chunked", "1\r\nx\r\n")])
def test_a_body_that_trickles_is_closed_at_its_deadline(client: RawClient, framing: str, body: str):
    start = time.monotonic()
    client.send(POST + framing + "\r\n\r\n")
    client.sock.settimeout(0.02)
    for byte in itertools.cycle(body.encode()):
        assert time.monotonic() - start < 10
        client.sock.send(bytes([byte]))
        try:
            client.buffer += client.sock.recv(1000)
            break
        except TimeoutError:
            continue
    assert 0.3 <= time.monotonic() - start < 2
    client.sock.settimeout(10)
    assert client.answer().status == 408


def test_a_length_that_is_only_announced_takes_no_memory():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = Connection(ours, Limits())
        theirs.send(b"x" * 10)
        tracemalloc.start()
        try:
            with pytest.raises(RequestTimeout):
                connection.read_exactly(1 << 20, time.monotonic() + 0.05)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 200 << 10  # one piece of a read is 64 KiB
