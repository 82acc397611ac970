"""What does a client see? Streamed completions over raw sockets: throughput, first token, gaps. Standard library only.

    python bench/load.py stream HOST:PORT --streams 16 --tokens 64    N streams at once
    python bench/load.py holes HOST:PORT                              4 streams in slots 0, 2, 5, 7
    python bench/load.py prefix HOST:PORT --words 600                 N requests that share words nobody has seen before
    python bench/load.py stall HOST:PORT --words 1500                 3 streams run, a long prompt arrives

Each prints one line of JSON. A request that failed, or whose `usage` is not what was asked, fails the run. All sockets are
read by one thread, which notes the time and keeps the bytes; JSON is parsed when everything is over. So the client takes
little of the cores that the server needs, and the same from every server.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import random
import selectors
import socket
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

WORDS = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which one "
    "you were all her she there would their we him been has when who will no more if out so up said what its about than "
    "into them can only other time new some could these two may first then do any like my now over such our man me even"
).split()

# llama-server's own defaults, but said: nobody's defaults are compared.
SAMPLING = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
TIMEOUT_S = 300.0

Result = dict[str, Any]


class RequestFailed(Exception):
    """A request did not give what was asked for; a run with one of those has no figures."""


def words(rng: random.Random, n: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(n))


class Completion:
    """One streamed /v1/completions request, driven by run()."""

    def __init__(self, prompt: str, max_tokens: int, *, delay_s: float = 0.0, **extra: object) -> None:
        """`delay_s`: seconds after the start of the run."""
        asked = {"prompt": prompt, "max_tokens": max_tokens, "stream": True, "ignore_eos": True}
        self._body = json.dumps({**asked, "stream_options": {"include_usage": True}, **SAMPLING, **extra}).encode()
        self.prompt_bytes = len(prompt.encode())
        self.max_tokens = max_tokens
        self.delay_s = delay_s
        self.after_first: Completion | None = None  # starts when this one's first text has come
        self.started = 0.0
        self.ended = 0.0
        self.arrivals: list[tuple[float, bytes]] = []
        self.frame_times: list[float] = []  # of the frames that carry text
        self.text = ""  # after check()

    def connect(self, address: str) -> socket.socket:
        host, port = address.rsplit(":", 1)
        sock = socket.create_connection((host, int(port)), timeout=TIMEOUT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.started = time.perf_counter()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(self._body)}\r\nConnection: close\r\n\r\n"
        )
        sock.sendall(head.encode() + self._body)
        return sock

    def receive(self, sock: socket.socket) -> bool:
        """Keep what has arrived. False: the answer is over."""
        data = sock.recv(1 << 16)
        self.arrivals.append((time.perf_counter(), data))
        if data and b"[DONE]" not in data:  # a mark that two reads tear apart is followed by the end of the connection
            return True
        self.ended = self.arrivals[-1][0]
        return False

    def has_text(self) -> bool:
        """Whether the last arrival has the first frames of the stream in it; a head alone does not count."""
        return b"data: " in self.arrivals[-1][1]

    def check(self) -> None:
        """Parse what came. Raises RequestFailed unless it is all that was asked for."""
        n_generated, rest, done = 0, b"", False
        status = self.arrivals[0][1].split(b"\r\n", 1)[0] if self.arrivals else b"no answer"
        if b" 200" not in status:
            raise RequestFailed(b"".join(data for _, data in self.arrivals).decode(errors="replace")[:2000] or "no answer")
        for when, data in self.arrivals:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if not line.startswith(b"data: "):
                    continue
                if line.strip() == b"data: [DONE]":
                    done = True
                    continue
                frame = json.loads(line[6:])
                if "error" in frame:
                    raise RequestFailed(json.dumps(frame["error"]))
                if frame.get("usage"):
                    n_generated = frame["usage"]["completion_tokens"]
                if text := "".join(choice.get("text", "") for choice in frame.get("choices", ())):
                    self.frame_times.append(when)
                    self.text += text
        if not done:
            raise RequestFailed("the stream ended without [DONE]")
        if n_generated != self.max_tokens:
            raise RequestFailed(f"usage says {n_generated} tokens, asked for {self.max_tokens}")

    @property
    def first_s(self) -> float:
        return self.frame_times[0] - self.started

    def gaps(self) -> list[float]:
        return [b - a for a, b in itertools.pairwise(self.frame_times)]


def run(address: str, requests: Iterable[Completion]) -> float:
    """Drive the requests and those that start after them until all are answered; wall seconds. Raises RequestFailed."""
    begin = time.perf_counter()
    waiting = sorted(requests, key=lambda r: r.delay_s)
    everything: list[Completion] = []
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as sockets:

        def start(request: Completion) -> None:
            sock = sockets.enter_context(request.connect(address))
            selector.register(sock, selectors.EVENT_READ, request)
            everything.append(request)

        while waiting or selector.get_map():
            while waiting and waiting[0].delay_s <= time.perf_counter() - begin:
                start(waiting.pop(0))
            timeout = waiting[0].delay_s - (time.perf_counter() - begin) if waiting else TIMEOUT_S
            ready = selector.select(max(0.0, timeout))
            if not ready and not waiting:
                raise RequestFailed(f"nothing arrived in {TIMEOUT_S:g} s")
            for key, _ in ready:
                request: Completion = key.data
                if not request.receive(key.fileobj):  # type: ignore[arg-type]
                    selector.unregister(key.fileobj)
                if request.after_first is not None and request.has_text():
                    following, request.after_first = request.after_first, None
                    start(following)
    seconds = max(r.ended for r in everything) - begin
    for request in everything:
        request.check()
    return seconds


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def stream(address: str, *, streams: int, tokens: int, seed: int) -> Result:
    """N prompts of 60 words at once."""
    rng = random.Random(seed)
    requests = [Completion(words(rng, 60), tokens, seed=seed * 1000 + i, cache_prompt=False) for i in range(streams)]
    seconds = run(address, requests)
    gaps = [gap for r in requests for gap in r.gaps()]
    return {
        "tokens_per_s": streams * tokens / seconds,
        "ttft_median_ms": statistics.median(r.first_s for r in requests) * 1e3,
        "ttft_max_ms": max(r.first_s for r in requests) * 1e3,
        "gap_p50_ms": percentile(gaps, 0.5) * 1e3,
        "gap_p99_ms": percentile(gaps, 0.99) * 1e3,
        "gap_max_ms": max(gaps) * 1e3,
        "frames_per_token": sum(len(r.frame_times) for r in requests) / (streams * tokens),
    }


def holes(address: str, *, seed: int, kept: tuple[int, ...] = (0, 2, 5, 7)) -> Result:
    """Eight streams start one after another, so each gets the next slot; four end early. What the others then make."""
    rng = random.Random(seed)
    requests = [Completion(words(rng, 20), 120 if i in kept else 32, seed=seed * 1000 + i, cache_prompt=False) for i in range(8)]
    for request, following in itertools.pairwise(requests):
        request.after_first = following
    run(address, requests[:1])
    long = [r for i, r in enumerate(requests) if i in kept]
    short = [r for i, r in enumerate(requests) if i not in kept]
    if min(r.ended for r in short) < requests[-1].started:
        raise RequestFailed("a short stream ended before the last one started: its slot was used again")
    begin, end = max(r.ended for r in short), min(r.ended for r in long)
    if end - begin < 0.05:
        raise RequestFailed("the long streams were over before the short ones")
    # Some tokens show no text at once (half a character), so frames are scaled to the tokens that usage tells.
    tokens = sum(sum(begin < t <= end for t in r.frame_times) * r.max_tokens / len(r.frame_times) for r in long)
    return {"tokens_per_s": tokens / (end - begin)}


def prefix(address: str, *, streams: int, n_words: int, seed: int) -> Result:
    """N requests at once that share fresh words; then N more that share the same."""
    rng = random.Random(seed)
    shared = words(rng, n_words)
    found: Result = {}
    for name in ("cold", "warm"):
        requests = [Completion(f"{shared} question {i} {words(rng, 5)}", 8, seed=i) for i in range(streams)]
        found[f"{name}_s"] = run(address, requests)
        found[f"{name}_ttft_median_ms"] = statistics.median(r.first_s for r in requests) * 1e3
    return found


def stall(address: str, *, n_words: int, seed: int) -> Result:
    """Three streams run; after a second a long prompt arrives."""
    rng = random.Random(seed)
    running = [Completion(words(rng, 20), 160, seed=i, cache_prompt=False) for i in range(3)]
    late = Completion(words(rng, n_words), 4, seed=9, cache_prompt=False, delay_s=1.0)
    run(address, [*running, late])
    if min(r.ended for r in running) < late.started:
        raise RequestFailed("the running streams ended before the long prompt came")
    gaps = [gap for r in running for gap in r.gaps()]
    return {
        "gap_max_ms": max(gaps) * 1e3,
        "gap_p99_ms": percentile(gaps, 0.99) * 1e3,
        "gap_p50_ms": percentile(gaps, 0.5) * 1e3,
        "late_ttft_ms": late.first_s * 1e3,
    }


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("stream", "holes", "prefix", "stall"))
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--words", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    kinds: dict[str, Callable[[], Result]] = {
        "stream": lambda: stream(args.address, streams=args.streams, tokens=args.tokens, seed=args.seed),
        "holes": lambda: holes(args.address, seed=args.seed),
        "prefix": lambda: prefix(args.address, streams=args.streams, n_words=args.words, seed=args.seed),
        "stall": lambda: stall(args.address, n_words=args.words, seed=args.seed),
    }
    print(json.dumps({name: round(value, 4) for name, value in kinds[args.kind]().items()}))


if __name__ == "__main__":
    main()
