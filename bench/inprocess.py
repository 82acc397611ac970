"""What does the engine cost? Its tokens/s against a bare loop of llama_decode with the same chains, in one run."""

from __future__ import annotations

import random
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.bare import Bare
from modeld.daemon import SWITCH_INTERVAL_S
from modeld.engine.runner import EngineRunner
from modeld.errors import ModelSwitched
from modeld.llm.runtime import LlamaRuntime
from modeld.types import Failed, GenerateRequest, ModelSpec, SamplingParams

N_PROMPT = 60
PARAMS = SamplingParams(temperature=0.8, top_k=40, ignore_eos=True)


def spec_of(model: Path, n_streams: int) -> ModelSpec:
    return ModelSpec(id=model.stem, path=model, n_ctx=512 * max(16, n_streams), n_parallel=max(16, n_streams))


def prompts_of(n_streams: int, seed: int) -> list[tuple[int, ...]]:
    rng = random.Random(seed)
    return [tuple(rng.randrange(300, 30_000) for _ in range(N_PROMPT)) for _ in range(n_streams)]


def on_thread(job: Callable[[], float]) -> float:
    """On a thread of its own: the one that decodes is bound to a core, and the main thread must stay free."""
    result: list[float] = []
    thread = threading.Thread(target=lambda: result.append(job()))
    thread.start()
    thread.join()
    return result[0]


def run_bare(model: Path, n_streams: int, n_tokens: int, seed: int) -> float:
    bare = Bare(spec_of(model, n_streams))
    try:
        return on_thread(lambda: bare.generate(prompts_of(n_streams, seed), n_tokens, PARAMS)[0])
    finally:
        bare.close()


def run_engine(model: Path, n_streams: int, n_tokens: int, seed: int) -> float:
    """One handler thread a stream, which takes its text as an HTTP handler does."""
    runner = EngineRunner(spec_of(model, n_streams), LlamaRuntime, lambda _step, _pct: True, lambda _error: None, queue_size=64)
    failures: list[object] = []

    def handle(prompt: tuple[int, ...], i: int) -> None:
        stream = runner.submit(GenerateRequest(str(i), (prompt,), max_tokens=n_tokens, sampling=PARAMS))
        end = None
        while end is None:
            end = next((chunk.end for chunk in stream.take(None, lambda _chunks: True) or () if chunk.end), None)
        if isinstance(end, Failed) or end.usage.completion_tokens != n_tokens:
            failures.append(end)

    try:
        # ignore_eos looks once at the whole vocabulary, when the first request asks for it; that is not what is measured
        runner._runtime.prepare(PARAMS)
        threads = [threading.Thread(target=handle, args=(p, i)) for i, p in enumerate(prompts_of(n_streams, seed))]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - start
    finally:
        runner.close(ModelSwitched("the benchmark is over"))
        runner.free()
    if failures:
        raise RuntimeError(f"requests failed: {failures}")
    return seconds


def measure(model: Path, streams: tuple[int, ...], n_tokens: int, repeat: int) -> list[dict[str, Any]]:
    """Pairs of runs, the order alternating; medians of tokens/s and of the ratios."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    rows = []
    for n_streams in streams:
        pairs = []
        for i in range(repeat):
            runs = {"bare": run_bare, "engine": run_engine}
            names = list(runs) if i % 2 == 0 else list(reversed(runs))
            seconds = {name: runs[name](model, n_streams, n_tokens, i) for name in names}
            pairs.append((n_streams * n_tokens / seconds["bare"], n_streams * n_tokens / seconds["engine"]))
        rows.append(
            {
                "model": model.stem,
                "streams": n_streams,
                "tokens": n_tokens,
                "bare_tokens_per_s": round(statistics.median(bare for bare, _ in pairs), 1),
                "engine_tokens_per_s": round(statistics.median(engine for _, engine in pairs), 1),
                "ratio": round(statistics.median(engine / bare for bare, engine in pairs), 3),
                "ratios": [round(engine / bare, 3) for bare, engine in pairs],
            }
        )
    return rows
