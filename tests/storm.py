"""Many clients at once that ask at random and leave at random, over raw sockets; and what must be true of every answer."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from typing import Any

from tests.daemon import DEADLINE_S, Daemon, n_descriptors, n_threads
from tests.http.raw_client import Answer, RawClient, data_frames
from tests.random_requests import Asked, Model, check_error, check_stream, check_whole, random_request

N_CLIENTS = 8
# Where a client leaves, in the order in which a request passes these points.
POINTS = ("connected", "in the head", "in the body", "sent", "in the answer's head", "in the stream")
WAYS = ("close", "reset", "half close")


@dataclass(frozen=True)
class Leaving:
    point: str
    way: str
    n: int  # bytes, or chunks of the stream, until then


class Storm:
    """`n_requests` by 8 clients; `run` blocks until all have ended. The same seed asks the same requests in the same order."""

    def __init__(self, daemon: Daemon, models: dict[str, Model], seed: int, n_requests: int, *, switch_every: int) -> None:
        self.ends: Counter[str] = Counter()
        self.failures: list[str] = []
        self.fully_sent: set[str] = set()  # ids of requests that had one answer each
        self._daemon, self._models, self._seed = daemon, models, seed
        self._numbers = iter(range(n_requests))
        self._switch_every = switch_every
        self._lock = threading.Lock()  # guards all above

    def run(self) -> None:
        clients = [threading.Thread(target=self._client) for _ in range(N_CLIENTS)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()

    def _client(self) -> None:
        raw: RawClient | None = None
        while not self.failures:
            with self._lock:
                number = next(self._numbers, None)
            if number is None:
                break
            r = random.Random(f"{self._seed}-{number}")
            asked = random_request(r)
            leaving = Leaving(r.choice(POINTS), r.choice(WAYS), r.randint(1, 12)) if r.random() < 0.3 else None
            try:
                if number % self._switch_every == self._switch_every - 1:
                    self._daemon.switch(r.choice(sorted(self._models)))
                if raw is None:
                    raw = RawClient((self._daemon.host, self._daemon.port))
                    raw.sock.settimeout(DEADLINE_S)
                end = self._leave(raw, number, asked, leaving) if leaving else self._ask(raw, number, asked)
                with self._lock:
                    self.ends[end] += 1
                if leaving or r.random() < 0.3:
                    raw.close()
                    raw = None
                if end in ("model_loading", "model_switched"):
                    self._daemon.wait_ready()
            except Exception:  # noqa: BLE001 - it is told with the request that led to it
                with self._lock:
                    self.failures.append(f"request {number} of seed {self._seed}: {asked} {leaving}\n{traceback.format_exc()}")
        if raw is not None:
            raw.close()

    # -- one request

    def _bytes(self, number: int, asked: Asked) -> tuple[bytes, bytes]:
        body = json.dumps(asked.body, ensure_ascii=number % 2 == 0).encode()
        lines = (
            f"POST {asked.path} HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: {self._id(number)}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return lines.encode(), body

    def _id(self, number: int) -> str:
        return f"storm-{self._seed}-{number}"

    def _ask(self, raw: RawClient, number: int, asked: Asked) -> str:
        """A client that stays: the whole answer, checked."""
        raw.send(b"".join(self._bytes(number, asked)))
        with self._lock:
            self.fully_sent.add(self._id(number))
        answer = raw.answer("POST")
        assert not raw.buffer, f"bytes after the answer: {raw.buffer[:200]!r}"
        assert answer.fields["x-request-id"] == self._id(number)
        return self._check(asked, answer)

    def _check(self, asked: Asked, answer: Answer) -> str:
        if answer.status != 200:
            return check_error(asked, answer.status, answer.json["error"], self._models.values())
        model = self._models[answer.fields["x-model-id"]]
        if asked.body.get("stream"):
            return check_stream(asked, data_frames(answer.body), model)
        return check_whole(asked, json.loads(answer.body.decode()), model)

    def _leave(self, raw: RawClient, number: int, asked: Asked, leaving: Leaving) -> str:
        """A client that goes away: nothing to check but that what came whole is sound."""
        head, body = self._bytes(number, asked)
        at = POINTS.index(leaving.point)
        with contextlib.suppress(ConnectionError):
            if at == POINTS.index("in the head"):
                raw.send(head[: leaving.n * 7])
            elif at == POINTS.index("in the body"):
                raw.send(head + body[: min(leaving.n, len(body) - 1)])
            elif at >= POINTS.index("sent"):
                raw.send(head + body)
            if at == POINTS.index("in the answer's head"):
                raw.buffer += raw.sock.recv(leaving.n)
            elif at == POINTS.index("in the stream"):
                self._read_chunks(raw, leaving.n)
            if leaving.way == "reset":
                raw.reset()
            elif leaving.way == "half close":
                raw.half_close()
                raw.rest()  # until the server closes, too
        return f"left {leaving.point}"

    def _read_chunks(self, raw: RawClient, n: int) -> None:
        head = raw.until(b"\r\n\r\n")
        if b"chunked" in head:
            for _ in range(n):
                if not (chunk := raw.chunk()):
                    return
                data_frames(chunk)


def models_of(daemon: Daemon) -> dict[str, Model]:
    """What both demo models make of the prompts; leaves the storyteller loaded."""
    daemon.wait_ready()
    models = []
    for model_id in ("demo-calc", "demo-stories"):
        assert daemon.switch_and_wait(model_id)["state"] == "succeeded"
        models.append(Model.loaded(daemon))
    return {model.id: model for model in models}


def check_log(daemon: Daemon, storm: Storm) -> None:
    """After the daemon has ended: one line for each request, and no fault."""
    requests = Counter(line["request_id"] for line in daemon.lines if line.get("msg") == "request")
    assert all(requests[request_id] == 1 for request_id in storm.fully_sent)
    assert max(requests.values()) == 1
    faults = [line for line in daemon.lines if line.get("level") == "error" or "exception" in line or "raw" in line]
    assert not faults, faults[:5]


def settle(daemon: Daemon, before: tuple[int, int]) -> None:
    """Wait until nothing is left of the clients: no slot, no queue, as many descriptors and threads as before."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        status, now = daemon.get("/status"), (n_descriptors(daemon.process.pid), n_threads(daemon.process.pid))
        idle = status["slots"]["busy"] == 0 and status["queue"] == 0 and status["op"] is None and status["queued_ops"] == 0
        # The request that asks has a connection, and a thread, of its own.
        if idle and now[0] <= before[0] and now[1] <= before[1]:
            return
        assert time.monotonic() < deadline, f"left behind: {status}, descriptors and threads {now}, before {before}"


def every_slot_answers(daemon: Daemon) -> None:
    """As many streams at once as there are slots, each of which gets its first frame while all others still run."""
    n_slots = daemon.get("/status")["slots"]["total"]
    body = {"prompt": "Once", "ignore_eos": True, "max_tokens": 250}
    with contextlib.ExitStack() as stack:
        streams: list[Any] = [stack.enter_context(daemon.stream("/v1/completions", body)) for _ in range(n_slots)]
        readers = [iter(stream) for stream in streams]
        for reader in readers:
            next(reader)
        for reader in readers:
            for _ in reader:
                pass
        assert all(stream.done for stream in streams)
        assert [stream.frames[-1]["choices"][0]["finish_reason"] for stream in streams] == ["length"] * n_slots
