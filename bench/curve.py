"""What does `max_step_ms` choose between? Longest gap in running streams against a late long prompt's first token."""

from __future__ import annotations

import random
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import load
from bench.servers import Server, Settings

MAX_STEP_MS = (50, 100, 250, 500, 1000)
PROMPT_WORDS = 1500
FIGURES = ("gap_max_ms", "gap_p99_ms", "late_ttft_ms")


def stall(address: str, max_step_ms: int, seed: int) -> load.Result:
    """As load.stall, with streams that last as long as the prompt needs at this pace and not much longer."""
    rng = random.Random(seed)
    n_tokens = 48 + 7000 // max_step_ms
    running = [load.Completion(load.words(rng, 20), n_tokens, seed=i, cache_prompt=False) for i in range(3)]
    late = load.Completion(load.words(rng, PROMPT_WORDS), 1, seed=9, cache_prompt=False, delay_s=0.5)
    load.run(address, [*running, late])
    if min(stream.ended for stream in running) < late.ended:
        raise load.RequestFailed("a running stream ended before the late prompt was read")
    gaps = [gap for stream in running for gap in stream.gaps()]
    return {
        "gap_max_ms": max(gaps) * 1e3,
        "gap_p99_ms": load.percentile(gaps, 0.99) * 1e3,
        "late_ttft_ms": late.first_s * 1e3,
    }


def measure(model: Path, repeat: int) -> list[dict[str, Any]]:
    """One server for each setting, stopped while it is not its turn; each repetition takes all of them, every other one
    backwards. Prints the table."""
    found: dict[int, list[load.Result]] = {step_ms: [] for step_ms in MAX_STEP_MS}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        servers = {}
        for step_ms in MAX_STEP_MS:
            settings = Settings(model, n_ctx=16384, n_parallel=4, max_step_ms=step_ms)
            servers[step_ms] = stack.enter_context(Server("modeld", settings, Path(folder)))
            load.prefix(servers[step_ms].address, streams=2, n_words=200, seed=0)  # what is paid once is not measured
            servers[step_ms].pause()
        for i in range(repeat):
            for step_ms in MAX_STEP_MS if i % 2 == 0 else reversed(MAX_STEP_MS):
                servers[step_ms].resume()
                found[step_ms].append(stall(servers[step_ms].address, step_ms, seed=i))
                servers[step_ms].pause()
    print(f"{'max_step_ms':>11} {'longest gap':>12} {'p99 gap':>9} {'late first token':>17}   ms; gaps, first tokens of each run")
    rows = []
    for step_ms in MAX_STEP_MS:
        values = {figure: [round(run[figure], 1) for run in found[step_ms]] for figure in FIGURES}
        medians = {figure: round(statistics.median(values[figure]), 1) for figure in FIGURES}
        rows.append({"max_step_ms": step_ms, **medians, "values": values})
        gap, p99, ttft = (medians[figure] for figure in FIGURES)
        print(f"{step_ms:>11} {gap:>12} {p99:>9} {ttft:>17}   {values['gap_max_ms']} {values['late_ttft_ms']}")
    return rows
