"""Whose threads should compute: OpenMP's or ggml's own pool? Tokens/s of each, on quiet cores and beside a busy neighbour.

    cmake -S . -B build/openmp -DGGML_OPENMP=ON && cmake --build build/openmp --target libllama -j
    python bench/threads.py build/libllama.so build/openmp/libllama.so

Each figure is taken in a process of its own (OpenMP reads its settings once), all settings in turn, for some rounds; the
table has the median of each. docs/building.md has the one that decided.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, os.fspath(ROOT))

from bench.make_model import make  # noqa: E402
from modeld.llm import libllama as C  # noqa: E402
from modeld.llm.selftest import pinned_pool  # noqa: E402

ROWS = (1, 4, 16)


@dataclass(frozen=True, slots=True)
class Setting:
    title: str
    openmp: bool
    pinned_pool: bool = False
    environment: tuple[tuple[str, str], ...] = ()


SETTINGS = (
    Setting("OpenMP, as upstream builds it", openmp=True),
    Setting("OpenMP, OMP_PROC_BIND=true", openmp=True, environment=(("OMP_PROC_BIND", "true"),)),
    Setting("own pool, pinned (strict_cpu, poll 50)", openmp=False, pinned_pool=True),
    Setting("own threads, no pool attached", openmp=False),
)


def generate(library: Path, model: Path, *, bound: bool, seconds: float) -> dict[int, float]:
    """Tokens/s of a decode of 1, 4 and 16 rows, one for each sequence."""
    cores = sorted(os.sched_getaffinity(0))  # before the library: with OMP_PROC_BIND libgomp binds this thread to one core
    lib = C.load_library(library)
    log = C.ggml_log_callback(lambda *_: None)
    lib.llama_log_set(log, None)
    lib.llama_backend_init()
    handle = lib.llama_model_load_from_file(os.fsencode(model), lib.llama_model_default_params())
    if not handle:
        raise SystemExit(f"{model} could not be loaded")
    found = {}
    for rows in ROWS:
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 512 * rows, 512, 512, rows
        params.n_threads = params.n_threads_batch = len(cores)
        context = lib.llama_init_from_model(handle, params)
        pool = pinned_pool(lib, cores) if bound else None
        if pool:
            lib.llama_attach_threadpool(context, pool, pool)
        found[rows] = tokens_per_second(lib, context, rows, seconds)
        lib.llama_free(context)
        if pool:
            lib.ggml_threadpool_free(pool)
    lib.llama_model_free(handle)
    return found


def tokens_per_second(lib: C.Library, context: Any, rows: int, seconds: float) -> float:
    ids = [ctypes.c_int32(i) for i in range(rows)]
    pos = (ctypes.c_int32 * rows)()
    batch = C.llama_batch(
        n_tokens=rows,
        token=(ctypes.c_int32 * rows)(*range(1000, 1000 + rows)),
        pos=pos,
        n_seq_id=(ctypes.c_int32 * rows)(*[1] * rows),
        seq_id=(ctypes.POINTER(ctypes.c_int32) * rows)(*map(ctypes.pointer, ids)),
        logits=(ctypes.c_int8 * rows)(*[1] * rows),
    )
    steps, started = -3, 0.0  # three to warm up
    while steps < 500:
        if steps == 0:
            started = time.perf_counter()
        elif steps > 0 and time.perf_counter() - started > seconds:
            break
        pos[:] = [steps + 3] * rows
        code = lib.llama_decode(context, batch)
        if code != 0:
            raise SystemExit(f"llama_decode returned {code}")
        steps += 1
    return rows * steps / (time.perf_counter() - started)


def measure(setting: Setting, library: Path, model: Path, seconds: float) -> dict[int, float]:
    command = [sys.executable, __file__, "--one", str(setting.pinned_pool), os.fspath(library), os.fspath(model), str(seconds)]
    done = subprocess.run(command, env=os.environ | dict(setting.environment), capture_output=True, text=True, check=True)
    return {int(rows): rate for rows, rate in json.loads(done.stdout).items()}


def main() -> None:
    if len(sys.argv) == 6 and sys.argv[1] == "--one":
        bound, one, weights, seconds = sys.argv[2:]
        print(json.dumps(generate(Path(one), Path(weights), bound=bound == "True", seconds=float(seconds))))
        return
    parser = argparse.ArgumentParser(description="Compare OpenMP with ggml's own thread pool.")
    parser.add_argument("own", type=Path, help="libllama.so built with GGML_OPENMP=OFF")
    parser.add_argument("openmp", type=Path, help="libllama.so built with GGML_OPENMP=ON")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure")
    args = parser.parse_args()
    model = make("q05", library=args.own)
    rows_of = " / ".join(map(str, ROWS))
    print(f"q05, {len(os.sched_getaffinity(0))} cores, generation tokens/s for {rows_of} rows, medians of {args.rounds}\n")
    print("| | quiet | one busy neighbour |\n|---|---|---|")
    figures: dict[tuple[str, bool], list[dict[int, float]]] = {}
    for _ in range(args.rounds):
        for busy in (False, True):
            neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
            try:
                for setting in SETTINGS:
                    library = args.openmp if setting.openmp else args.own
                    figures.setdefault((setting.title, busy), []).append(measure(setting, library, model, args.seconds))
            finally:
                if neighbour is not None:
                    neighbour.kill()
                    neighbour.wait()
    for setting in SETTINGS:
        columns = []
        for busy in (False, True):
            taken = figures[setting.title, busy]
            columns.append(" / ".join(f"{statistics.median(one[rows] for one in taken):.1f}" for rows in ROWS))
        print(f"| {setting.title} | {' | '.join(columns)} |")
    print(f"\nload average at the end (others on the machine spoil the first column): {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
