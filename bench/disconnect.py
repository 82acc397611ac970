"""How soon is a slot free when its client leaves? FIN, RST and half close, while the prompt is read and while text streams.

The time runs from the socket call to the first answer of `/status` that counts one busy slot less. `/status` is asked on a kept
connection every 2 ms, so a figure is at most that and one answer too large; the median distance of two answers is
reported. Beside other streams it is also looked at what the leaving cost them: exact usage, and the same greedy text as
without anybody who leaves.
"""

from __future__ import annotations

import random
import re
import select
import socket
import statistics
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import load
from bench.servers import Server, Settings

POLL_S = 0.002
DEADLINE_S = 10.0
LIMIT_MS = 50.0
PROMPT_WORDS = 1500
_BUSY = re.compile(rb'"busy": ?(\d+)')


@dataclass(frozen=True, slots=True)
class Case:
    """Who leaves how, and beside whom."""

    how: str  # fin | rst | half close
    phase: str  # prompt | generation: of the one that leaves
    streams: int  # that run beside it
    prompts: int = 0  # of PROMPT_WORDS, read at the same time

    @property
    def title(self) -> str:
        beside = f"{self.streams} streams" if self.streams else "alone"
        return f"{self.how}, {self.phase} phase, {beside}" + (" and a long prompt" if self.prompts else "")


CASES = (
    *(Case(how, phase, n) for phase in ("prompt", "generation") for n in (0, 3) for how in ("fin", "rst", "half close")),
    Case("fin", "generation", 15),
    Case("fin", "generation", 3, prompts=1),
)


class StatusPoll:
    """A kept connection that asks `/status`."""

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self._sock = socket.create_connection((host, int(port)), timeout=load.TIMEOUT_S)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = f"GET /status HTTP/1.1\r\nHost: {address}\r\n\r\n".encode()
        self.distances: list[float] = []  # seconds between two answers in wait()

    def busy(self) -> int:
        """Slots in use."""
        self._sock.sendall(self._request)
        answer = b""
        while (found := _BUSY.search(answer)) is None or not answer.endswith(b"}"):
            more = self._sock.recv(1 << 16)
            if not more:
                raise load.RequestFailed(f"/status closed the connection after {answer[:200]!r}")
            answer += more
        return int(found[1])

    def wait(self, n_busy: int) -> float:
        """The time of the first answer with so many. Raises RequestFailed after DEADLINE_S."""
        last = time.perf_counter()
        deadline = last + DEADLINE_S
        while last < deadline:
            busy = self.busy()
            now = time.perf_counter()
            if busy == n_busy:
                return now
            self.distances.append(now - last)
            last = now
            time.sleep(POLL_S)
        raise load.RequestFailed(f"{busy} slots are busy after {DEADLINE_S:g} s, expected were {n_busy}")

    def close(self) -> None:
        self._sock.close()


def leave(sock: socket.socket, how: str) -> float:
    """Leave; the time just before."""
    if how == "rst":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif how == "fin":  # with unread bytes a close would send RST
        while _received(sock):
            pass
    start = time.perf_counter()
    if how == "half close":
        sock.shutdown(socket.SHUT_WR)
    else:
        sock.close()
    return start


def _received(sock: socket.socket) -> bytes:
    """What has come, without waiting; nothing where nothing has."""
    return sock.recv(1 << 16) if select.select([sock], [], [], 0)[0] else b""


def company(n: int, tokens: int) -> list[load.Completion]:
    """Streams whose text is the same in every run."""
    rng = random.Random(1)
    return [load.Completion(load.words(rng, 12), tokens, temperature=0, cache_prompt=False) for _ in range(n)]


@contextmanager
def running(address: str, streams: list[load.Completion]) -> Iterator[None]:
    """Inside, all of them have begun to answer; after, all were answered in full. Raises RequestFailed."""
    if not streams:
        yield
        return
    failures: list[Exception] = []

    def work() -> None:
        try:
            load.run(address, streams)
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        while thread.is_alive() and not all(stream.arrivals for stream in streams):
            time.sleep(0.005)
        yield
        if not thread.is_alive() and not failures:
            raise load.RequestFailed("the streams beside were over before the last client left")
    finally:
        thread.join()
        if failures:
            raise failures[0]


def one(address: str, case: Case, poll: StatusPoll, rng: random.Random) -> float:
    """Seconds from leaving to the free slot."""
    beside = case.streams + case.prompts
    n_words, wait_s = (PROMPT_WORDS, 0.6) if case.phase == "prompt" else (8, 0.1)
    victim = load.Completion(load.words(rng, n_words), 400, seed=1, cache_prompt=False)
    sock = victim.connect(address)
    try:
        poll.wait(case.streams + 1)
        if case.phase == "generation":
            while b"data: " not in sock.recv(1 << 16):
                pass
        with long_prompts(address, case, rng, poll):
            time.sleep(rng.uniform(0.02, wait_s))
            if case.phase == "prompt" and (answer := _received(sock)):
                raise load.RequestFailed(f"the prompt of {PROMPT_WORDS} words was over before its client left: {answer[:500]!r}")
            start = leave(sock, case.how)
            return poll.wait(beside) - start
    finally:
        sock.close()


@contextmanager
def long_prompts(address: str, case: Case, rng: random.Random, poll: StatusPoll) -> Iterator[None]:
    """The case's long prompts are being read inside; they leave at the end."""
    prompts = [load.Completion(load.words(rng, PROMPT_WORDS), 1, seed=1, cache_prompt=False) for _ in range(case.prompts)]
    socks = [prompt.connect(address) for prompt in prompts]
    try:
        if socks:
            poll.wait(case.streams + 1 + case.prompts)
        yield
        if any(_received(sock) for sock in socks):
            raise load.RequestFailed("the long prompt was over before the slot was free")
    finally:
        for sock in socks:
            sock.close()
        if socks:
            poll.wait(case.streams)


def measure_case(address: str, case: Case, repeat: int, texts: dict[int, list[str]]) -> dict[str, Any]:
    """`texts`: what company() says alone, by its number."""
    rng = random.Random(case.title)
    streams = company(case.streams, 128)
    poll = StatusPoll(address)
    try:
        poll.wait(0)
        with running(address, streams):
            if streams:
                poll.wait(case.streams)
            seconds = [one(address, case, poll, rng) for _ in range(repeat)]
        poll.wait(0)
    finally:
        poll.close()
    same = sum(stream.text == text for stream, text in zip(streams, texts[case.streams], strict=True))
    ordered = [round(s * 1e3, 1) for s in seconds]
    return {
        "case": case.title,
        "median_ms": round(statistics.median(ordered), 1),
        "p95_ms": load.percentile(ordered, 0.95),
        "max_ms": max(ordered),
        "resolution_ms": round(statistics.median(poll.distances) * 1e3, 1) if poll.distances else None,
        "values_ms": ordered,
        "streams_same_text": f"{same}/{len(streams)}",
    }


def measure(model: Path, repeat: int) -> dict[str, Any]:
    settings = Settings(model, n_ctx=16 * 2560, n_parallel=20)
    with tempfile.TemporaryDirectory() as folder, Server("modeld", settings, Path(folder)) as server:
        load.stream(server.address, streams=2, tokens=16, seed=0)  # what is paid once is not measured
        texts: dict[int, list[str]] = {0: []}
        for n in {case.streams for case in CASES} - {0}:
            streams = company(n, 128)
            load.run(server.address, streams)
            texts[n] = [stream.text for stream in streams]
        print(f"{'who leaves, how, beside whom':<56} {'median':>7} {'p95':>7} {'max':>7} ms   resolution   same text")
        rows = []
        for case in CASES:
            row = measure_case(server.address, case, repeat, texts)
            rows.append(row)
            print(
                f"{row['case']:<56} {row['median_ms']:>7} {row['p95_ms']:>7} {row['max_ms']:>7}      {row['resolution_ms']:>7}"
                f"   {row['streams_same_text']:>9}",
                flush=True,
            )
    return {"limit_ms": LIMIT_MS, "rows": rows}
