"""A connection's writes: what does not fit without waiting goes out with the next send, in order and once."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from modeld.httpapi.connection import Connection, Disconnected
from modeld.httpapi.limits import Limits

PIECE = bytes(range(256)) * 4096  # 1 MB: more than a socket takes at once


@pytest.fixture
def ends() -> Iterator[tuple[Connection, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    try:
        yield Connection(ours, Limits(send_s=5)), theirs
    finally:
        ours.close()
        theirs.close()


def read(sock: socket.socket, n_bytes: int) -> bytes:
    data = b""
    while len(data) < n_bytes:
        piece = sock.recv(min(65536, n_bytes - len(data)))
        assert piece, f"the end came after {len(data)} of {n_bytes} bytes"
        data += piece
    return data


def test_what_fits_goes_out_at_once(ends: tuple[Connection, socket.socket]) -> None:
    connection, peer = ends
    assert connection.try_send(b"abc")
    assert connection.try_send(b"def")
    assert read(peer, 6) == b"abcdef"
    assert connection.sent_bytes == 6


def test_the_rest_goes_out_before_what_is_sent_next(ends: tuple[Connection, socket.socket]) -> None:
    connection, peer = ends
    assert not connection.try_send(PIECE)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(read(peer, len(PIECE) + 4)))
    reader.start()
    connection.send(b"next")
    reader.join(10)
    assert received == [PIECE + b"next"]
    assert connection.sent_bytes == len(PIECE) + 4
    assert connection.try_send(b"more"), "nothing is left over"


def test_an_empty_send_finishes_what_was_left(ends: tuple[Connection, socket.socket]) -> None:
    connection, peer = ends
    first = connection.try_send(b"a")
    connection.send(b"")
    assert first
    assert read(peer, 1) == b"a"


def test_a_broken_connection_is_told_by_the_next_send(ends: tuple[Connection, socket.socket]) -> None:
    connection, peer = ends
    peer.close()
    assert not connection.try_send(b"abc")
    with pytest.raises(Disconnected):
        connection.send(b"")
