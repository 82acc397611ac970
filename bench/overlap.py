"""What does an overlap cost those who stream? Gaps between tokens, and requests that fail, while the next model is loaded beside.

Eight clients stream all the time, each with a new request as soon as its last one has ended, and a ninth asks something short
again and again. Then `strategy: overlap`. The step before it is what the gaps are compared with.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import random
import selectors
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench import load
from bench.servers import said
from bench.switching import ALWAYS_THE, GREEDY, call, settings_of, start_servers, two_models

N_CLIENTS = 8
N_PARALLEL = 16  # so that the short requests find a slot
STREAM_TOKENS = (60, 160)  # of the clients' requests, at random
SHORT_TOKENS, SHORT_PAUSE_S = 4, 0.25
BEFORE_S, AFTER_S = 4.0, 2.0
ALLOWED_STEPS, ALLOWED_S = 2, 0.5


class Crowd:
    """The clients: one thread reads all of their sockets. Made and ended by crowd()."""

    def __init__(self, address: str, seed: int) -> None:
        self._address = address
        self._rng = random.Random(seed)
        self._stop = threading.Event()
        self.requests: list[load.Completion] = []  # in the order of their starts; to be read after the end

    def stop(self) -> None:
        self._stop.set()

    def run(self) -> None:
        """Until stop(): then what runs is read to its end, and nothing new begins."""
        with selectors.DefaultSelector() as selector, contextlib.ExitStack() as sockets:

            def start(*, streams: bool) -> None:
                n_words, n_tokens = (20, self._rng.randint(*STREAM_TOKENS)) if streams else (8, SHORT_TOKENS)
                prompt = load.words(self._rng, n_words)
                request = load.Completion(prompt, n_tokens, cache_prompt=False, **GREEDY, **ALWAYS_THE)
                self.requests.append(request)
                sock = sockets.enter_context(request.connect(self._address))
                selector.register(sock, selectors.EVENT_READ, (request, streams))

            # When each of them begins its next request. They come one after another, so that they are not in step.
            now = time.monotonic()
            due = [(now + i * 0.05, i, True) for i in range(N_CLIENTS)] + [(now + 1.0, N_CLIENTS, False)]
            while selector.get_map() or not self._stop.is_set():
                now = time.monotonic()
                while due and due[0][0] <= now and not self._stop.is_set():
                    start(streams=heapq.heappop(due)[2])
                timeout = due[0][0] - now if due and not self._stop.is_set() else 0.2
                for key, _ in selector.select(max(0.0, timeout)):
                    request, streams = key.data
                    if not request.receive(key.fileobj):
                        selector.unregister(key.fileobj)
                        again = time.monotonic() + (0.0 if streams else SHORT_PAUSE_S)
                        heapq.heappush(due, (again, len(self.requests), streams))


@contextmanager
def crowd(address: str, seed: int) -> Iterator[Crowd]:
    clients = Crowd(address, seed)
    thread = threading.Thread(target=clients.run)
    thread.start()
    try:
        yield clients
    finally:
        clients.stop()
        thread.join()


def n_failed(requests: list[load.Completion]) -> int:
    failed = 0
    for request in requests:
        try:
            request.check()
        except load.RequestFailed as error:
            failed += 1
            print(f"failed: {error}")
    return failed


def one_overlap(address: str, target: str, seed: int) -> dict[str, Any]:
    with crowd(address, seed) as clients:
        time.sleep(BEFORE_S)
        begin = time.perf_counter()
        op = call(address, "POST", "/switch?wait=120", {"model_id": target, "strategy": "overlap"})
        ready = time.perf_counter()
        retire(address)
        gone = time.perf_counter()
        time.sleep(AFTER_S)
    failed = n_failed(clients.requests)
    pairs = [pair for request in clients.requests for pair in itertools.pairwise(request.frame_times)]
    step_s = statistics.median(b - a for a, b in pairs if begin - BEFORE_S / 2 < a and b < begin)
    before_s = max(b - a for a, b in pairs if begin - BEFORE_S / 2 < a and b < begin)
    longest_s, ended = max((b - a, b) for a, b in pairs if b > begin)
    longest_s_loading = max(b - a for a, b in pairs if b > begin and a < ready)
    new = [request.first_s for request in clients.requests if begin < request.started < gone and request.frame_times]
    return {
        "strategy": op["strategy"],
        "requests": len(clients.requests),
        "begun_meanwhile": len(new),
        "failed": failed,
        "switch_s": ready - begin,
        "until_gone_s": gone - begin,
        "step_ms": step_s * 1e3,
        "longest_before_ms": before_s * 1e3,
        "longest_gap_ms": longest_s * 1e3,
        "longest_ended_s": ended - begin,
        "longest_while_loading_ms": longest_s_loading * 1e3,
        "allowed_ms": (ALLOWED_STEPS * step_s + ALLOWED_S) * 1e3,
        "first_token_max_ms": max(new) * 1e3,
        "steps_ms": op["steps_ms"],
    }


def retire(address: str) -> None:
    """Until the replaced model's requests have ended and it is gone."""
    while call(address, "GET", "/status")["retiring_model"] is not None:
        time.sleep(0.02)


def measure(repeat: int) -> dict[str, Any]:
    models = two_models()
    rounds = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        settings = settings_of(models, n_parallel=N_PARALLEL)
        (server,) = start_servers(stack, settings, Path(folder), ("modeld",))
        server.resume()
        for i in range(repeat):
            rounds.append(one_overlap(server.address, models[(i + 1) % 2].stem, seed=i))
            row = {k: round(v, 1) if isinstance(v, float) else v for k, v in rounds[-1].items()}
            print(row, flush=True)
        command = said(server.command)
    figures = ("switch_s", "until_gone_s", "step_ms", "longest_before_ms", "longest_gap_ms", "allowed_ms", "first_token_max_ms")
    return {
        "clients": N_CLIENTS,
        **{figure: round(statistics.median(each[figure] for each in rounds), 3) for figure in figures},
        "failed": sum(each["failed"] for each in rounds),
        "within": [each["longest_gap_ms"] <= each["allowed_ms"] for each in rounds],
        "rounds": [{k: round(v, 3) if isinstance(v, float) else v for k, v in each.items()} for each in rounds],
        "command": command,
    }
