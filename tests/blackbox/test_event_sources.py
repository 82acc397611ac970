"""EventSource of npm and of a browser come back to /events 20 times, cut wherever it hurts, and have lost no event."""

from __future__ import annotations

import contextlib
import json
import queue
import select
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modeld.httpapi.description import document
from tests.browser import Pages, browsing
from tests.daemon import DEADLINE_S, ROOT, Daemon, EventReader, demo_config

N_CUTS = 20
NAMES = [branch["properties"]["event"]["const"] for branch in document("")["components"]["schemas"]["Event"]["oneOf"]]
SCRIPT = ROOT / "tests" / "node" / "events.mjs"

Seen = tuple[str | None, str]
"""An event's id and name; None: the connection was lost."""

PAGE = """
let seen = [];
let telling = Promise.resolve();
const source = new EventSource(URL);
const tell = () => {
    const body = JSON.stringify(seen);
    seen = [];
    telling = telling.then(() => fetch("/told", {method: "POST", body}));
};
const see = (event, name) => {
    seen.push([event.lastEventId, name]);
    if (name === "snapshot" || name === "model_ready") tell();
};
for (const name of NAMES) source.addEventListener(name, (event) => see(event, name));
source.onerror = () => seen.push([null, "error"]);
"""


class Cutter:
    """A proxy that moves bytes, and cuts: after so many bytes of the daemon's, which may be in the middle of an event."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._cond = threading.Condition()
        # Guards the two below. Notified at each cut.
        self._left: int | None = None  # bytes until the next cut
        self.n_cuts = 0
        self._threads: list[threading.Thread] = []
        self._end, self._stop = socket.socketpair()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._start(self._accept)

    def cut_after(self, n_bytes: int) -> None:
        with self._cond:
            self._left = n_bytes

    def wait_cut(self, n: int) -> None:
        """The n-th is done."""
        with self._cond:
            assert self._cond.wait_for(lambda: self.n_cuts >= n, DEADLINE_S), f"{self.n_cuts} cuts of {n} within {DEADLINE_S} s"

    def close(self) -> None:
        self._stop.close()
        for thread in self._threads:
            thread.join(DEADLINE_S)
        self._listener.close()
        self._end.close()

    def _start(self, run: Callable[..., None], *args: socket.socket) -> None:
        self._threads.append(threading.Thread(target=run, args=args))
        self._threads[-1].start()

    def _accept(self) -> None:
        while self._end not in select.select([self._listener, self._end], [], [])[0]:
            self._start(self._carry, self._listener.accept()[0])

    def _carry(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as daemon, contextlib.suppress(ConnectionError):
            while self._end not in (ready := select.select([client, daemon, self._end], [], [])[0]):
                if client in ready:
                    if not (data := client.recv(65536)):
                        return
                    daemon.sendall(data)
                if daemon in ready:
                    data = daemon.recv(65536)
                    let_through, cut = self._let_through(data)
                    client.sendall(let_through)
                    if cut:
                        self._cut(client)
                    if cut or not data:
                        return

    def _let_through(self, data: bytes) -> tuple[bytes, bool]:
        with self._cond:
            if self._left is None:
                return data, False
            let_through = data[: self._left]
            self._left -= len(let_through)
            return let_through, self._left == 0

    def _cut(self, client: socket.socket) -> None:
        """One is reset, the next one is closed."""
        with self._cond:
            if self.n_cuts % 2:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            self._left = None
            self.n_cuts += 1
            self._cond.notify_all()


@pytest.fixture
def pages() -> Iterator[Pages]:
    pages = Pages()
    yield pages
    pages.close()


@pytest.fixture
def daemon(tmp_path: Path, pages: Pages) -> Iterator[Daemon]:
    """Pages of the test's site may use it."""
    config = demo_config(tmp_path, one_thread=True)
    config.write_text(config.read_text().replace("port: 0}", f"port: 0, cors_origins: ['http://app.example:{pages.port}']}}"))
    with Daemon(config) as daemon:
        daemon.wait_ready()
        yield daemon


@pytest.fixture
def cutter(daemon: Daemon) -> Iterator[Cutter]:
    cutter = Cutter((daemon.host, daemon.port))
    yield cutter
    cutter.close()


def newest_id(daemon: Daemon) -> str:
    with daemon.events() as events:
        return str(next(iter(events)).id)


def switch_and_cut(daemon: Daemon, cutter: Cutter, see: Callable[[str], list[Seen]]) -> None:
    """`see` gives what the client has seen, up to the event with that id; the first time, up to its snapshot ("").

    What it saw is compared with what an uninterrupted reader got meanwhile.
    """
    uninterrupted: queue.SimpleQueue[Seen] = queue.SimpleQueue()

    def read(events: EventReader) -> None:
        for event in events:
            uninterrupted.put((event.id, event.name))

    seen = see("")
    with daemon.events() as events:
        reader = threading.Thread(target=read, args=(events,))
        reader.start()
        try:
            for n in range(N_CUTS):
                # From at once to the middle of a replay; the head has about 600 bytes, and a switch 10,000.
                cutter.cut_after(1 + (n * 397) % 4000)
                assert daemon.switched(("demo-calc", "demo-stories")[n % 2])["state"] == "succeeded"
                cutter.wait_cut(n + 1)
            assert daemon.switched("demo-calc")["state"] == "succeeded"
            last = newest_id(daemon)
            whole = [uninterrupted.get(timeout=DEADLINE_S)]
            while whole[-1][0] != last:
                whole.append(uninterrupted.get(timeout=DEADLINE_S))
        finally:
            events.hang_up()
            reader.join(DEADLINE_S)
    seen += see(last)
    n_lost = seen.count((None, "error"))
    came = [one for one in seen if one[0] is not None]
    assert came == whole, f"{len(came)} events, {n_lost} connections lost, {len(whole)} events uninterrupted"
    numbers = [int(str(event_id).rpartition("-")[2]) for event_id, _ in came]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert n_lost >= N_CUTS
    print(f"{len(came)} events, {n_lost} connections lost")


def test_the_event_source_of_npm_loses_nothing(daemon: Daemon, cutter: Cutter) -> None:
    node = shutil.which("node")
    if node is None or not (SCRIPT.parent / "node_modules" / "eventsource").is_dir():
        pytest.skip("eventsource is not installed: it takes node (>= 18) and npm (Debian: nodejs, npm), then `make test`")
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    command = [node, str(SCRIPT), f"http://127.0.0.1:{cutter.port}/events", ",".join(NAMES)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)

    def see(last: str) -> list[Seen]:
        seen: list[Seen] = []
        while not seen or (last and seen[-1][0] != last):
            event_id, name = json.loads(lines.get(timeout=DEADLINE_S))
            seen.append((event_id, name))
        return seen

    reader = threading.Thread(target=read)
    reader.start()
    try:
        switch_and_cut(daemon, cutter, see)
    finally:
        process.kill()
        process.wait()
        reader.join()
        assert process.stdout is not None
        process.stdout.close()


def test_the_event_source_of_a_browser_loses_nothing(daemon: Daemon, cutter: Cutter, pages: Pages, tmp_path: Path) -> None:
    pages.script = PAGE.replace("URL", json.dumps(f"http://127.0.0.1:{cutter.port}/events")).replace("NAMES", json.dumps(NAMES))

    def see(last: str) -> list[Seen]:
        seen: list[Seen] = []
        while not seen or (last and seen[-1][0] != last):
            seen += [(event_id, name) for event_id, name in pages.told()]
        return seen

    with browsing(tmp_path, f"http://app.example:{pages.port}/"):
        switch_and_cut(daemon, cutter, see)
