"""What is each library of a release worth on this CPU? Tokens/s of prompts and of generation, each in a process of its own.

    python bench/variants.py build/release/*/libllama.so build/libllama.so

All libraries in turn, for some rounds; the table has the median of each. docs/building.md has one.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, os.fspath(ROOT))

from bench.make_model import make  # noqa: E402
from bench.threads import ROWS, generate  # noqa: E402
from modeld.llm import libllama as C  # noqa: E402
from modeld.llm import stamp  # noqa: E402
from modeld.llm.selftest import pinned_pool  # noqa: E402

PROMPT = 512
COLUMNS = ("prompt", *map(str, ROWS))


def prompts(library: Path, model: Path, seconds: float) -> float:
    """Tokens/s of prompts of 512 tokens, each in one decode."""
    lib = C.load_library(library)
    log = C.ggml_log_callback(lambda *_: None)  # the one of generate() is gone
    lib.llama_log_set(log, None)
    handle = lib.llama_model_load_from_file(os.fsencode(model), lib.llama_model_default_params())
    cores = sorted(os.sched_getaffinity(0))
    params = lib.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = PROMPT
    params.n_threads = params.n_threads_batch = len(cores)
    context = lib.llama_init_from_model(handle, params)
    pool = pinned_pool(lib, cores)
    lib.llama_attach_threadpool(context, pool, pool)
    seq = ctypes.pointer(ctypes.c_int32(0))
    batch = C.llama_batch(
        n_tokens=PROMPT,
        token=(ctypes.c_int32 * PROMPT)(*range(1000, 1000 + PROMPT)),
        pos=(ctypes.c_int32 * PROMPT)(*range(PROMPT)),
        n_seq_id=(ctypes.c_int32 * PROMPT)(*[1] * PROMPT),
        seq_id=(ctypes.POINTER(ctypes.c_int32) * PROMPT)(*[seq] * PROMPT),
        logits=(ctypes.c_int8 * PROMPT)(*[0] * (PROMPT - 1), 1),
    )
    n, started = -1, 0.0  # one to warm up
    while n < 1 or time.perf_counter() - started < seconds:
        if n == 0:
            started = time.perf_counter()
        lib.llama_memory_seq_rm(lib.llama_get_memory(context), -1, -1, -1)
        if lib.llama_decode(context, batch) != 0:
            raise SystemExit(f"{library}: llama_decode failed")
        n += 1
    rate = PROMPT * n / (time.perf_counter() - started)
    lib.llama_free(context)
    lib.ggml_threadpool_free(pool)
    lib.llama_model_free(handle)
    return rate


def measure(library: Path, model: Path, seconds: float) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", os.fspath(library), os.fspath(model), str(seconds)]
    return dict(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def main() -> None:
    if len(sys.argv) == 5 and sys.argv[1] == "--one":
        library, weights, seconds = Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])
        found = {str(rows): rate for rows, rate in generate(library, weights, bound=True, seconds=seconds).items()}
        print(json.dumps(found | {"prompt": prompts(library, weights, seconds)}))
        return
    parser = argparse.ArgumentParser(description="Compare the libraries of a release.")
    parser.add_argument("libraries", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure")
    args = parser.parse_args()
    model = make("q05", library=args.libraries[-1])
    figures: dict[Path, list[dict[str, float]]] = {library: [] for library in args.libraries}
    for _ in range(args.rounds):
        for library, taken in figures.items():
            taken.append(measure(library, model, args.seconds))
    print(f"q05, {len(os.sched_getaffinity(0))} cores, tokens/s, medians of {args.rounds} (load {os.getloadavg()[0]:.1f})\n")
    print(f"| | prompts of {PROMPT} | {' | '.join(f'{rows} rows' for rows in ROWS)} |\n|---|---|{'---|' * len(ROWS)}")
    for library, taken in figures.items():
        medians = (f"{statistics.median(one[column] for one in taken):.0f}" for column in COLUMNS)
        print(f"| {stamp.verify(library).flags.get('variant', 'native')} | {' | '.join(medians)} |")


if __name__ == "__main__":
    main()
