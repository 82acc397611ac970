"""A daemon whose sockets are somebody else's: systemd's own tool hands them over, and a restart loses no connection."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from modeld import exits
from tests.daemon import DEADLINE_S, ROOT, Daemon, demo_config, has_ipv6, kept_beside

# As a service manager: puts the descriptors where they belong, and says so.
HANDS_OVER = """
import os, sys
descriptors, command = [int(text) for text in sys.argv[1].split(",")], sys.argv[2:]
spare = [os.dup(descriptor) for descriptor in descriptors]
for index, descriptor in enumerate(spare):
    os.dup2(descriptor, 3 + index)
    os.set_inheritable(3 + index, True)  # where it was there already
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(spare)), LISTEN_FDNAMES=":".join(["tests.socket"] * len(spare)))
os.execv(command[0], command)
"""


class Handing(Daemon):
    """A daemon that is handed sockets which the test keeps."""

    def __init__(self, config: Path, sockets: Sequence[socket.socket]) -> None:
        for sock in sockets:
            sock.set_inheritable(True)
        numbers = ",".join(str(sock.fileno()) for sock in sockets)
        super().__init__(
            config,
            command=(sys.executable, "-c", HANDS_OVER, numbers, sys.executable, "-m", "modeld"),
            env={**os.environ, "PYTHONDEVMODE": "", "PYTHONPATH": str(ROOT), **kept_beside(config)},
            close_fds=False,
        )


@pytest.fixture
def tool() -> str:
    found = shutil.which("systemd-socket-activate")
    if found is None:
        pytest.skip("systemd-socket-activate is not here: apt-get install systemd")
    return found


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=128) as sock:
        yield sock


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.bind((host, 0))
        return int(sock.getsockname()[1])


def ask(sock: socket.socket, path: str = "/livez") -> bytes:
    """Send a request; the whole answer, once it comes."""
    with sock:
        sock.settimeout(DEADLINE_S)
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: sock.recv(65536), b""))


def connect(place: tuple[str, int] | str) -> socket.socket:
    if isinstance(place, tuple):
        return socket.create_connection(place, DEADLINE_S)
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(DEADLINE_S)
    sock.connect(place)
    return sock


def test_what_systemd_hands_over_is_served_and_left_to_it(tool: str, tmp_path: Path) -> None:
    """TCP of both kinds and a Unix socket. The tool listens, and becomes the daemon with the first connection."""
    config, path = demo_config(tmp_path), str(tmp_path / "m.sock")
    places: list[Any] = [("127.0.0.1", free_port()), path]
    if has_ipv6():
        places.append(("::1", free_port("::1")))
    addresses = [place if isinstance(place, str) else f"{place[0]}:{place[1]}".replace("::1:", "[::1]:") for place in places]
    flags = [flag for address in addresses for flag in ("-l", address)]
    passes = [flag for name in ("STATE_DIRECTORY", "PYTHONPATH") for flag in ("-E", name)]
    names = "--fdname=" + ":".join(["modeld.socket"] * len(places))
    command = [sys.executable, "-m", "modeld", "serve", "--config", str(config), "--host", "0.0.0.0"]
    process = subprocess.Popen(
        [tool, *flags, names, *passes, *command],
        env={**os.environ, "PYTHONPATH": str(ROOT), **kept_beside(config)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if f" as {2 + len(places)}" in line:
                break
        assert [ask(connect(place)).split(b"\r\n")[0] for place in places] == [b"HTTP/1.1 200 OK"] * len(places)
    finally:
        process.terminate()
        _, log = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, log
    assert all(f"listens on {'unix:' if address == path else 'http://'}{address}" in log for address in addresses), log
    assert log.count("listens on") == len(places)
    assert "server.host, server.port and server.unix_socket do not count" in log
    assert "insecure" not in log  # --host is not listened to
    assert os.path.exists(path)  # noqa: PTH110 - a socket: it is systemd's


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--datagram", "-l", "127.0.0.1:{port}"], "family 2, type 2, protocol 17; modeld serves TCP"),
        (["--accept", "-l", "127.0.0.1:{port}"], "does not listen; a socket unit needs Accept=no"),
        (["-l", "0.0.0.0:{port}"], "the sockets that were handed over (ListenStream=): 0.0.0.0 can be reached from other hosts"),
    ],
)
def test_what_cannot_be_served_ends_the_start_with_a_word(tool: str, tmp_path: Path, flags: list[str], says: str) -> None:
    port = free_port()
    command = [sys.executable, "-m", "modeld", "serve", "--config", str(demo_config(tmp_path))]
    process = subprocess.Popen(
        [tool, *(flag.format(port=port) for flag in flags), "-E", "PYTHONPATH", *command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        while " as 3" not in process.stderr.readline():
            pass
        kind = socket.SOCK_DGRAM if "--datagram" in flags else socket.SOCK_STREAM
        with socket.socket(socket.AF_INET, kind) as client:
            client.connect(("127.0.0.1", port))
            if kind == socket.SOCK_DGRAM:
                client.send(b"x")
            line = next(line for line in process.stderr if line.startswith("modeld: "))
            assert says in line
        if "--accept" not in flags:  # there the tool goes on, and the daemon was its child
            assert process.wait(DEADLINE_S) == exits.CONFIG
    finally:
        process.terminate()
        process.communicate(timeout=DEADLINE_S)


def test_a_connection_waits_for_the_daemon_that_is_not_there_yet(listener: socket.socket, tmp_path: Path) -> None:
    config, place = demo_config(tmp_path), listener.getsockname()
    early = connect(place)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, early)
        with Handing(config, [listener]) as daemon:
            assert answer.result(DEADLINE_S).startswith(b"HTTP/1.1 200 ")
            assert (daemon.host, daemon.port) == place
    late = connect(place)  # it has ended, and its queue has not
    late.close()


def test_what_comes_during_a_stop_waits_for_the_next_start(listener: socket.socket, tmp_path: Path) -> None:
    config = demo_config(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        with Handing(config, [listener]) as first:
            first.wait_ready()
            first.process.send_signal(signal.SIGTERM)
            first.wait_line(lambda line: line["msg"].startswith("leaves new connections"))
            answer = pool.submit(ask, connect(listener.getsockname()), "/status")
            assert first.wait() == 0
            assert not answer.done()
        with Handing(config, [listener]):
            assert answer.result(DEADLINE_S).startswith(b"HTTP/1.1 200 ")


def test_no_connection_is_lost_over_restarts(listener: socket.socket, tmp_path: Path) -> None:
    """Four clients that connect anew for each request, and two restarts."""
    config, place = demo_config(tmp_path), listener.getsockname()
    over = threading.Event()

    def client() -> list[bytes]:
        answers = []
        while not over.is_set():
            answers.append(ask(connect(place)).split(b"\r\n")[0])
        return answers

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client) for _ in range(4)]
        try:
            for _ in range(3):
                with Handing(config, [listener]) as daemon:
                    daemon.wait_ready()
        finally:
            over.set()
            with Handing(config, [listener]) as daemon:  # for those that wait
                results = [each.result(DEADLINE_S) for each in clients]
    answers = [answer for each in results for answer in each]
    assert set(answers) == {b"HTTP/1.1 200 OK"}
    assert len(answers) > 100
