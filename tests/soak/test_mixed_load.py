"""Ten minutes of everything at once, with a switch every ten seconds: no status that nobody expects, no memory that grows.

MODELD_SOAK_S makes it longer, MODELD_MIXED_S sets it whatever it is.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import statistics
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon, StreamReader, demo_config, n_descriptors, n_threads, resident_mb
from tests.http.raw_client import RawClient
from tests.scrapes import scrape_text
from tests.storm import settle

pytestmark = pytest.mark.soak

SWITCH_EVERY_S = 10.0
WARM_UP_S = 60.0  # the heap and libllama's buffers find their size
MAX_SLOPE_MB_PER_MIN = 1.0
MAX_LIVEZ_P99_S = 0.050

LOOKED_AT = (
    "/models", "/status", "/ops", "/v1/models", "/props", "/readyz", "/healthz", "/health", "/livez", "/openapi.json",
)  # fmt: skip
CUT = frozenset({"model_switched", "model_loading"})  # how a switch may end a generation
HOSTILE = (
    ("BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n", {405}),
    ("DELETE /models HTTP/1.1\r\nHost: localhost\r\n\r\n", {405}),
    ("GET /models HTTP/1.1\r\n\r\n", {400}),
    ("GET /models HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", {400}),
    ("GET /models\r\n\r\n", {400}),
    ("GET /models HTTP/3.0\r\nHost: localhost\r\n\r\n", {505}),
    ("GET /models HTTP/1.1\nHost: localhost\n\n", {400}),
    ("POST /switch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1\r\n\r\n{", {400}),
    ("POST /switch HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n\r\n", {415}),
    ("POST /switch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9999999\r\n\r\n", {413}),
    ("POST /switch HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", {400}),
    ("GET /models HTTP/1.1\r\nHost: localhost\r\n" + "X-Long: " + "x" * 9000 + "\r\n\r\n", {431}),
)


class Load:
    """Clients that go on until `stop`; what they met is counted, what they should not have met is kept."""

    def __init__(self, daemon: Daemon, seed: int) -> None:
        self.daemon = daemon
        self.stop = threading.Event()
        self.lock = threading.Lock()  # guards the four below
        self.met: Counter[str] = Counter()
        self.failures: list[str] = []
        self.livez_s: list[float] = []
        self.resident: list[tuple[float, float]] = []
        self.random = random.Random(seed)
        self.threads: list[threading.Thread] = []

    def start(self, step: Callable[[random.Random], str | None], pause_s: float = 0.0) -> None:
        rng = random.Random(self.random.random())

        def run() -> None:
            while not self.stop.is_set():
                try:
                    if met := step(rng):
                        with self.lock:
                            self.met[f"{step.__name__}: {met}"] += 1
                except Exception:  # noqa: BLE001 - told at the end, with its trace
                    with self.lock:
                        self.failures.append(f"{step.__name__}: {traceback.format_exc()}")
                    if len(self.failures) > 20:
                        self.stop.set()
                self.stop.wait(pause_s)

        thread = threading.Thread(target=run, name=step.__name__)
        self.threads.append(thread)
        thread.start()

    # -- who asks

    def streamer(self, rng: random.Random) -> str:
        body = {"prompt": "Once upon a time", "max_tokens": rng.randint(20, 200), "seed": rng.randrange(1000)}
        with self.stream("/v1/completions", body) as stream:
            if stream.response.status != 200:
                return self.refused(stream.response.status, json.loads(stream.response.read()))
            for _ in stream:
                pass
            if stream.done:
                return "done"
            code = stream.frames[-1]["error"]["code"]
            assert code in CUT, stream.frames[-1]
            return f"cut by {code}"

    def leaver(self, rng: random.Random) -> str:
        with self.stream("/v1/completions", {"prompt": "One day", "ignore_eos": True, "max_tokens": 400}) as stream:
            if stream.response.status != 200:
                return self.refused(stream.response.status, json.loads(stream.response.read()))
            for _ in itertools.islice(stream, rng.randint(0, 5)):
                pass
        return "left"

    def whole(self, rng: random.Random) -> str:
        body: dict[str, Any] = {"messages": [{"role": "user", "content": f"{rng.randint(1, 99)}+{rng.randint(1, 99)}="}]}
        body["max_tokens"] = 16
        if rng.random() < 0.3:
            body["response_format"] = {"type": "json_object"}
        status, _, answer = self.daemon.request("POST", "/v1/chat/completions", body)
        if status != 200:
            return self.refused(status, answer)
        assert answer["choices"][0]["finish_reason"] in ("stop", "length"), answer
        return "200"

    def looker(self, rng: random.Random) -> str:
        path = rng.choice(LOOKED_AT)
        status, _, _ = self.daemon.request("GET", path)
        allowed = {200, 503} if path in ("/props", "/readyz", "/healthz", "/health") else {200}
        assert status in allowed, (path, status)
        return f"{path} {status}"

    def scraper(self, _: random.Random) -> str:
        assert "modeld_state" in scrape_text(self.daemon.host, self.daemon.port)
        return "200"

    def tokenizer(self, rng: random.Random) -> str:
        status, _, answer = self.daemon.request("POST", "/tokenize", {"content": "word " * rng.randint(1, 2000)})
        return "200" if status == 200 else self.refused(status, answer)

    def attacker(self, rng: random.Random) -> str:
        data, expected = rng.choice(HOSTILE)
        client = RawClient((self.daemon.host, self.daemon.port))
        try:
            status = client.send(data).answer().status
        finally:
            client.close()
        assert status in expected, (data[:80], status)
        return str(status)

    def prober(self, _: random.Random) -> str:
        began = time.monotonic()
        assert self.daemon.request("GET", "/livez")[0] == 200
        took = time.monotonic() - began
        with self.lock:
            self.livez_s.append(took)
        return "200"

    def scales(self, _: random.Random) -> None:
        with self.lock:
            self.resident.append((time.monotonic(), resident_mb(self.daemon.process.pid)))

    # -- what they share

    def stream(self, path: str, body: dict[str, Any]) -> StreamReader:
        return self.daemon.stream(path, body)

    def refused(self, status: int, answer: dict[str, Any]) -> str:
        code = answer["error"]["code"]
        assert status == 503, (status, answer)
        assert code in CUT, (status, answer)
        return f"503 {code}"


def slope_per_min(samples: list[tuple[float, float]]) -> float:
    """Of the least squares line through (seconds, value)."""
    if len(samples) < 2:
        return 0.0
    return 60 * statistics.linear_regression([at for at, _ in samples], [value for _, value in samples]).slope


def test_ten_minutes_of_mixed_load_with_a_switch_every_ten_seconds(tmp_path: Path) -> None:
    seconds = float(os.environ.get("MODELD_MIXED_S") or max(600.0, float(os.environ.get("MODELD_SOAK_S") or 0)))
    seed = int(os.environ.get("MODELD_STORM_SEED") or random.randrange(2**32))
    print(f"MODELD_STORM_SEED={seed} asks the same again")
    # Without cells that are kept: they may take what the budget gives, and here that is never used up.
    with Daemon(demo_config(tmp_path, "switching: {kv_keep_bytes: 0}\n", one_thread=True)) as daemon:
        daemon.wait_ready()
        pid = daemon.process.pid
        before = n_descriptors(pid), n_threads(pid)
        load = Load(daemon, seed)
        for step, pause_s in (
            (load.streamer, 0.0), (load.streamer, 0.05), (load.streamer, 0.2), (load.leaver, 0.1), (load.whole, 0.05),
            (load.looker, 0.02), (load.scraper, 1.0), (load.tokenizer, 0.1), (load.attacker, 0.02), (load.prober, 0.05),
            (load.scales, 1.0),
        ):  # fmt: skip
            load.start(step, pause_s)
        options: list[dict[str, object]] = [
            {}, {"on_inflight": "drain", "drain_timeout_s": 5}, {"strategy": "overlap"}, {"strategy": "auto"},
        ]  # fmt: skip
        end = time.monotonic() + seconds
        n_switches = 0
        try:
            for option, target in zip(itertools.cycle(options), itertools.cycle(("demo-calc", "demo-stories"))):
                due = min(time.monotonic() + SWITCH_EVERY_S, end)
                if load.stop.wait(max(0.0, due - time.monotonic())) or time.monotonic() >= end:
                    break
                record = daemon.switched(target, **option)
                assert record["state"] == "succeeded", record
                n_switches += 1
        finally:
            load.stop.set()
            for thread in load.threads:
                thread.join()
        print_figures(load, seconds, n_switches)
        assert not load.failures, f"{len(load.failures)} failures\n" + "\n".join(load.failures[:5])
        settle(daemon, before)
        status = daemon.get("/status")
        assert (status["state"], status["generation"]) == ("ready", n_switches + 1)
        steady = [sample for sample in load.resident if sample[0] > load.resident[0][0] + WARM_UP_S]
        if steady and steady[-1][0] - steady[0][0] > 240:  # a few switches alone have no slope to speak of
            assert slope_per_min(steady) < MAX_SLOPE_MB_PER_MIN, steady
        if len(load.livez_s) >= 1000:  # fewer have no 99th percentile to speak of
            assert statistics.quantiles(load.livez_s, n=100)[98] < MAX_LIVEZ_P99_S
    faults = [line for line in daemon.lines if line.get("level") == "error" or "exception" in line or "raw" in line]
    assert not faults, faults[:5]


def print_figures(load: Load, seconds: float, n_switches: int) -> None:
    steady = [sample for sample in load.resident if sample[0] > load.resident[0][0] + WARM_UP_S]
    quantiles = statistics.quantiles(load.livez_s, n=1000)
    print(f"{sum(load.met.values())} answers in {seconds:.0f} s with {n_switches} switches")
    for met, n in sorted(load.met.items()):
        print(f"  {n:7d} {met}")
    first, last = load.resident[0][1], load.resident[-1][1]
    print(f"resident MB {first:.1f} -> {last:.1f}; slope after {WARM_UP_S:.0f} s: {slope_per_min(steady):.3f} MB/min")
    p50, p99, p999 = (1000 * quantiles[i] for i in (499, 989, 998))
    print(f"/livez ms: p50 {p50:.1f}, p99 {p99:.1f}, p99.9 {p999:.1f}, of {len(load.livez_s)}")
