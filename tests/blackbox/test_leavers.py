"""Clients that leave in every way, in the middle of everything: slots, threads and descriptors are as before."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemon import DEADLINE_S, Daemon, demo_config, n_descriptors, n_threads

N_CLIENTS = 200
AT_ONCE = 20


def close(sock: socket.socket) -> None:
    sock.close()


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def half_close(sock: socket.socket) -> None:
    """And never reads on, nor closes before the test ends."""
    sock.shutdown(socket.SHUT_WR)


def stall(_: socket.socket) -> None:
    """Stays, and reads nothing; what it asked for is too much for the buffers in between."""


WAYS: tuple[Callable[[socket.socket], None], ...] = (close, reset, half_close, stall)


def post(path: str, body: dict[str, object]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


LONG = {"prompt": "One day", "max_tokens": 200, "ignore_eos": True}
WHOLE = post("/v1/completions", LONG)
STREAM = post("/v1/completions", {**LONG, "stream": True, "logprobs": 10, "n": 2})
EVENTS = b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n"
ASKS: tuple[bytes, ...] = (
    b"",
    b"GET /livez HT",
    WHOLE[:-5],
    WHOLE,
    STREAM,
    STREAM + STREAM,  # pipelined
    EVENTS,
    post("/switch?wait=60", {"model_id": "demo-calc", "dry_run": True}),
)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """One whose deadlines are short, since some of these clients are met by nothing else."""
    config = demo_config(tmp_path)
    short = "port: 0, head_timeout_s: 2, body_timeout_s: 2, idle_timeout_s: 2, send_timeout_s: 2, heartbeat_s: 1"
    config.write_text(config.read_text().replace("port: 0", short))
    with Daemon(config) as daemon:
        daemon.wait_ready()
        yield daemon


@pytest.fixture
def held() -> Iterator[contextlib.ExitStack]:
    """Closes at the end of the test what the daemon had to do without."""
    with contextlib.ExitStack() as stack:
        yield stack


def test_200_clients_that_leave_in_every_way_leave_nothing_behind(daemon: Daemon, held: contextlib.ExitStack) -> None:
    pid = daemon.process.pid
    chance = random.Random(5)
    daemon.complete(max_tokens=50)

    def figures() -> tuple[int, int]:
        return n_descriptors(pid), n_threads(pid)

    quiet_s, before = time.monotonic() + 1, figures()
    while time.monotonic() < quiet_s:  # the connection that asked last has gone
        before = min(before, figures())
    cases = [(ask, way) for ask in ASKS for way in WAYS] * (N_CLIENTS // (len(ASKS) * len(WAYS)) + 1)
    chance.shuffle(cases)
    readers: list[socket.socket] = []
    for start in range(0, N_CLIENTS, AT_ONCE):
        batch = []
        for ask, way in cases[start : start + AT_ONCE]:
            sock = held.enter_context(socket.create_connection((daemon.host, daemon.port), timeout=DEADLINE_S))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.sendall(ask)
            batch.append((sock, way))
            if ask is EVENTS:
                readers.append(sock)
        for sock, way in batch:
            if chance.random() < 0.5 and way is not stall:
                sock.settimeout(0.05)
                with contextlib.suppress(TimeoutError, ConnectionResetError):
                    sock.recv(100)
            way(sock)
        assert daemon.request("GET", "/livez")[0] == 200
    for sock in readers:  # one that stalls is like one that waits for events: it may stay for ever
        sock.close()
    daemon.wait_status(lambda status: status["slots"]["busy"] == 0 and status["queue"] == 0)
    deadline = time.monotonic() + DEADLINE_S
    while (now := figures()) != before:
        assert time.monotonic() < deadline, f"descriptors and threads: {before} before, {now} after"
    print(f"{N_CLIENTS} clients left; descriptors and threads {before} before, {now} after")
    assert daemon.complete(max_tokens=5)["choices"]
    for status in (200, 408, 499):  # they were let in
        daemon.wait_line(lambda line, status=status: (line.get("target"), line.get("status")) == ("/v1/completions", status))
    assert not [line for line in daemon.lines if line.get("level") == "error"], daemon.lines
