"""What do requests cost that wait for a slot? Tokens/s of 16 running streams while others wait, and memory for each that waits.

Throughput: the same 16 streams with 0, 1, 4, 16 and 64 requests behind them, in turn; counted from the moment when all are
in the queue to the end of the first stream. Memory: what the anonymous part of the resident size grows by when 100
requests come to wait, in a fresh process, so that nothing goes where an earlier request was.
"""

from __future__ import annotations

import http.client
import json
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench import load
from bench.make_model import make
from bench.servers import Server, Settings

STREAMS = 16
WAITING = (0, 1, 4, 16, 64)
TOKENS = {"tiny": 300, "q05": 24}  # of each stream: some 1.5 s
DEADLINE_S = 30.0
N_WAITING = 100
PROMPT_WORDS = (20, 3000)
LIMIT_KIB = 64


def slots_and_queue(address: str) -> tuple[int, int]:
    """Slots in use, requests that wait."""
    connection = http.client.HTTPConnection(address, timeout=DEADLINE_S)
    try:
        connection.request("GET", "/status")
        status = json.loads(connection.getresponse().read())
        return status["slots"]["busy"], status["queue"]
    finally:
        connection.close()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Looks every 5 ms. Raises RequestFailed after DEADLINE_S."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            raise load.RequestFailed(f"after {DEADLINE_S:g} s there are still not {what}")
        time.sleep(0.005)


@contextmanager
def running(address: str, streams: list[load.Completion]) -> Iterator[None]:
    """All of them stream inside; they are answered in full when it ends. Raises RequestFailed."""
    failures: list[Exception] = []

    def work() -> None:
        try:
            load.run(address, streams)
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        wait_until(lambda: bool(failures) or all(stream.arrivals for stream in streams), f"{len(streams)} streams")
        yield
    finally:
        thread.join()
    if failures:
        raise failures[0]


@contextmanager
def waiting(address: str, n: int, n_words: int, rng: random.Random) -> Iterator[float]:
    """`n` requests wait inside, then leave; the mean size of their prompts in bytes."""
    requests = [load.Completion(load.words(rng, n_words), 1, seed=1, cache_prompt=False) for _ in range(n)]
    with ExitStack() as sockets:
        for request in requests:
            sockets.enter_context(request.connect(address))
        wait_until(lambda: slots_and_queue(address) == (STREAMS, n), f"{STREAMS} streams with {n} requests behind them")
        yield statistics.mean(request.prompt_bytes for request in requests) if n else 0.0
    wait_until(lambda: slots_and_queue(address)[1] == 0, "0 requests that wait")


def rate_with(address: str, n: int, tokens: int, seed: int) -> float:
    """Tokens/s of the running streams while `n` requests wait."""
    rng = random.Random(seed)
    streams = [load.Completion(load.words(rng, 8), tokens, seed=i, cache_prompt=False) for i in range(STREAMS)]
    with ExitStack() as stack:
        queue = stack.enter_context(ExitStack())
        with running(address, streams):
            queue.enter_context(waiting(address, n, 20, rng))
            begin = time.perf_counter()
        end = min(stream.ended for stream in streams)
    if end - begin < 0.2:
        raise load.RequestFailed(f"the streams ended {end - begin:.2f} s after {n} requests waited: nothing to measure")
    # Some tokens show no text at once (half a character), so frames are scaled to the tokens that usage tells.
    made = sum(sum(begin < t <= end for t in s.frame_times) * s.max_tokens / len(s.frame_times) for s in streams)
    return made / (end - begin)


def measure_rates(model: Path, repeat: int) -> list[dict[str, Any]]:
    settings = Settings(model, n_ctx=STREAMS * 1024, n_parallel=STREAMS)
    found: dict[int, list[float]] = {n: [] for n in WAITING}
    with tempfile.TemporaryDirectory() as folder, Server("modeld", settings, Path(folder)) as server:
        load.stream(server.address, streams=STREAMS, tokens=16, seed=0)  # what is paid once is not measured
        for i in range(repeat):
            for n in WAITING if i % 2 == 0 else reversed(WAITING):
                found[n].append(rate_with(server.address, n, TOKENS[model.stem], seed=i))
    rows = []
    for n in WAITING:
        ratios = [rate / alone for rate, alone in zip(found[n], found[0], strict=True)]
        rows.append(
            {
                "model": model.stem,
                "waiting": n,
                "tokens_per_s": round(statistics.median(found[n]), 1),
                "ratio": round(statistics.median(ratios), 3),
                "ratios": [round(ratio, 3) for ratio in ratios],
            }
        )
    return rows


def anonymous_kib(pid: int) -> int:
    """Exactly; the counters of /proc/PID/status may lack 64 pages a thread."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def measure_memory(model: Path, n_words: int) -> dict[str, Any]:
    settings = Settings(model, n_ctx=STREAMS * 4096, n_parallel=STREAMS)
    rng = random.Random(n_words)
    with tempfile.TemporaryDirectory() as folder, Server("modeld", settings, Path(folder)) as server:
        load.stream(server.address, streams=STREAMS, tokens=64, seed=0)
        streams = [load.Completion(load.words(rng, 8), 1500, seed=i, cache_prompt=False) for i in range(STREAMS)]
        with running(server.address, streams):
            with waiting(server.address, 2, n_words, rng):  # what the first ones pay for all
                pass
            before = anonymous_kib(server.pid)
            with waiting(server.address, N_WAITING, n_words, rng) as prompt_bytes:
                grown = anonymous_kib(server.pid) - before
            if any(stream.ended for stream in streams):
                raise load.RequestFailed("a stream ended before all requests waited: its slot was given away")
    return {
        "model": model.stem,
        "prompt_words": n_words,
        "prompt_kib": round(prompt_bytes / 1024, 1),
        "kib_a_request": round(grown / N_WAITING, 1),
        "limit_kib": round(LIMIT_KIB + prompt_bytes / 1024, 1),
    }


def measure(repeat: int) -> dict[str, Any]:
    rates, memory = [], []
    print(f"{'model':<5} {'waiting':>7} {'tokens/s':>9} {'ratio':>6}   ratios to none waiting")
    for name in TOKENS:
        for row in measure_rates(make(name), repeat):
            rates.append(row)
            print(
                f"{row['model']:<5} {row['waiting']:>7} {row['tokens_per_s']:>9} {row['ratio']:>6}   {row['ratios']}", flush=True
            )
    print("memory for each request that waits, KiB: its prompt, all of it, allowed")
    for n_words in PROMPT_WORDS:
        row = measure_memory(make("tiny"), n_words)
        memory.append(row)
        print(f"{n_words:>5} words: {row['prompt_kib']:>6} {row['kib_a_request']:>6} {row['limit_kib']:>6}", flush=True)
    return {"rates": rates, "memory": memory}
