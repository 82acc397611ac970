"""One KV cache for all slots, or a stream for each? Tokens/s of a bare loop with either, at short and at long contexts."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from bench.bare import Bare
from bench.inprocess import PARAMS, on_thread
from modeld.llm.backend import backend
from modeld.types import ModelSpec

# Streams, tokens of each prompt, tokens of each answer.
SHAPES = ((4, 60, 48), (16, 60, 48), (8, 600, 32), (16, 600, 32))


def run(model: Path, shape: tuple[int, int, int], *, unified: bool, seed: int) -> float:
    """Generated tokens/s once all prompts are in."""
    n_streams, n_prompt, n_tokens = shape
    lib: Any = backend().lib
    defaults = lib.llama_context_default_params

    def params() -> Any:
        found = defaults()
        found.kv_unified = unified
        return found

    lib.llama_context_default_params = params
    try:
        n_cells = n_streams * (-(-(n_prompt + n_tokens) // 256) * 256)
        bare = Bare(ModelSpec(id=model.stem, path=model, n_ctx=n_cells, n_parallel=n_streams, n_batch=n_streams * n_prompt))
    finally:
        lib.llama_context_default_params = defaults
    prompts = [[300 + (seed + 31 * stream + 7 * i) % 20_000 for i in range(n_prompt)] for stream in range(n_streams)]
    try:
        seconds = on_thread(lambda: bare.generate(prompts, n_tokens, PARAMS)[1])
    finally:
        bare.close()
    return n_streams * (n_tokens - 1) / seconds


def measure(model: Path, repeat: int) -> list[dict[str, Any]]:
    """Pairs of runs, the order alternating; medians."""
    rows = []
    for shape in SHAPES:
        pairs = []
        for i in range(repeat):
            order = (False, True) if i % 2 == 0 else (True, False)
            per_s = {unified: run(model, shape, unified=unified, seed=i) for unified in order}
            pairs.append((per_s[False], per_s[True]))
        n_streams, n_prompt, n_tokens = shape
        rows.append(
            {
                "model": model.stem,
                "streams": n_streams,
                "prompt": n_prompt,
                "tokens": n_tokens,
                "separate_per_s": round(statistics.median(separate for separate, _ in pairs), 1),
                "unified_per_s": round(statistics.median(unified for _, unified in pairs), 1),
                "ratio": round(statistics.median(separate / unified for separate, unified in pairs), 3),
            }
        )
    return rows
