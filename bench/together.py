"""What do two loaded models give together? Both generating at once against one at a time; in turns, and each on its own pool."""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.inprocess import PARAMS, prompts_of, spec_of
from modeld.daemon import SWITCH_INTERVAL_S
from modeld.engine.runner import EngineRunner
from modeld.errors import ModelSwitched
from modeld.llm import pool
from modeld.llm.runtime import LlamaRuntime
from modeld.types import GenerateRequest


def generate(runners: list[EngineRunner], n_streams: int, n_tokens: int, seed: int) -> float:
    """Tokens/s of all together, each runner with n_streams."""

    def handle(runner: EngineRunner, prompt: tuple[int, ...]) -> None:
        asked = GenerateRequest("r", (prompt,), max_tokens=n_tokens, sampling=PARAMS, cache_prompt=False)
        stream = runner.submit(asked)
        while not any(chunk.end for chunk in stream.take(None, lambda _chunks: True) or ()):
            pass

    prompts = prompts_of(n_streams, seed)
    threads = [threading.Thread(target=handle, args=(runner, prompt)) for runner in runners for prompt in prompts]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(threads) * n_tokens / (time.perf_counter() - start)


@contextmanager
def separate_pools() -> Iterator[None]:
    """Each context with a pool of its own and no turns, as without modeld.llm.pool."""
    pool_for, give_back, take, wake = pool._pool_for, pool._give_back, pool.Turns.take, pool._wake
    pool._pool_for = pool.ThreadPool
    pool._give_back = lambda pool: pool.close()
    pool._wake = lambda *_args, **_options: None
    pool.Turns.take = lambda *_args: True  # type: ignore[method-assign]
    try:
        yield
    finally:
        pool._pool_for, pool._give_back, pool._wake = pool_for, give_back, wake
        pool.Turns.take = take  # type: ignore[method-assign]


def run(model: Path, n_streams: int, n_tokens: int, repeat: int) -> tuple[float, float]:
    """Tokens/s of one model and of both, medians of `repeat`."""
    spec = spec_of(model, n_streams)
    runners = [EngineRunner(spec, LlamaRuntime, lambda _step, _pct: True, lambda _error: None, queue_size=64) for _ in range(2)]
    alone, both = [], []
    try:
        for runner in runners:
            runner._runtime.prepare(PARAMS)
            generate([runner], n_streams, 8, 0)
        for seed in range(repeat):
            alone.append(statistics.mean(generate([runner], n_streams, n_tokens, seed) for runner in runners))
            both.append(generate(runners, n_streams, n_tokens, seed))
    finally:
        for runner in runners:
            runner.close(ModelSwitched("the benchmark is over"))
            runner.free()
    return statistics.median(alone), statistics.median(both)


def measure(model: Path, n_tokens: int, repeat: int) -> list[dict[str, Any]]:
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    rows = []
    for n_streams in (1, 4):
        alone, in_turns = run(model, n_streams, n_tokens, repeat)
        with separate_pools():
            alone_separate, separate = run(model, n_streams, n_tokens, repeat)
        rows.append(
            {
                "model": model.stem,
                "streams": n_streams,
                "tokens": n_tokens,
                "alone_per_s": round(alone, 1),
                "in_turns_per_s": round(in_turns, 1),
                "separate_per_s": round(separate, 1),
                "in_turns_ratio": round(in_turns / alone, 3),
                "separate_ratio": round(separate / alone_separate, 3),
            }
        )
    return rows
