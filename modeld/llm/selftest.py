"""Does a freshly built libllama.so compute what it should? Decodes a small quantized model against stored logits.

    python -m modeld.llm.selftest build/libllama.so

A miscompiled library builds without a word and dies, or lies, at the first decode (docs/building.md). `make build` runs this
last and stamps the library only when it passes. The decode happens in a process of its own, so that its death can be told.
models/selftest.json holds tokens and the logits after the last of them, computed without llama.cpp from the same weights.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeld.errors import ModeldError
from modeld.llm import libllama as C
from modeld.llm.libllama import Library, load_library
from modeld.llm.reference import Reference

REFERENCE = Path(__file__).resolve().parents[2] / "models" / "selftest.json"
LIMIT_S = 120
N_SINGLE = 8


class SelfTestError(Exception):
    """The library must not be used; the message says what it did. Told to who builds, never to a client."""


def check(library: Path, reference: Reference, *, on_one_thread: bool = False) -> float:
    """The largest difference from the stored logits, which is within bounds.

    A batch goes through the matrix kernels, a single token through the vector kernels: both are asked. `on_one_thread` waits
    for no other, however busy the host is. Raises SelfTestError.
    """
    lib = load_library(library)
    lines: list[str] = []
    log = C.ggml_log_callback(lambda _level, text, _data: lines.append((text or b"").decode("utf-8", "replace")))
    lib.llama_log_set(log, None)
    lib.llama_backend_init()
    worst = 0.0
    try:
        for n_single in (0, N_SINGLE):
            got = decode(lib, reference, n_single, on_one_thread)
            differences = [abs(a - b) for a, b in zip(got, reference.logits, strict=True)]
            worst = max(worst, *(math.inf if math.isnan(d) else d for d in differences))
            if not worst <= reference.max_abs_diff:
                raise SelfTestError(
                    f"decoding {reference.name}, {n_single} of {len(reference.tokens)} tokens one at a time, gives logits"
                    f" that are off by {worst:.3g} (allowed: {reference.max_abs_diff:.3g})"
                )
    except SelfTestError:
        sys.stderr.writelines(lines[-20:])
        raise
    finally:
        lib.llama_log_set(C.ggml_log_callback(), None)  # ours ends with this function
    return worst


def decode(lib: Library, reference: Reference, n_single: int, on_one_thread: bool) -> list[float]:
    """The logits after the last token, in a new context: one batch, then the last `n_single` tokens one at a time."""
    with opened(lib, reference, on_one_thread) as context:
        vocab = lib.llama_model_get_vocab(context.model)
        n_vocab = lib.llama_vocab_n_tokens(vocab)
        if n_vocab != len(reference.logits):
            raise SelfTestError(f"{reference.name} has {n_vocab} tokens, the reference {len(reference.logits)} logits")
        head = len(reference.tokens) - n_single
        for start, end in [(0, head), *((i, i + 1) for i in range(head, len(reference.tokens)))]:
            tokens = reference.tokens[start:end]
            n = len(tokens)
            seq = ctypes.pointer(ctypes.c_int32(0))
            batch = C.llama_batch(
                n_tokens=n,
                token=(ctypes.c_int32 * n)(*tokens),
                pos=(ctypes.c_int32 * n)(*range(start, end)),
                n_seq_id=(ctypes.c_int32 * n)(*[1] * n),
                seq_id=(ctypes.POINTER(ctypes.c_int32) * n)(*[seq] * n),
                logits=(ctypes.c_int8 * n)(*[0] * (n - 1), 1),
            )
            code = lib.llama_decode(context.raw, batch)
            if code != 0:
                raise SelfTestError(f"llama_decode of {n} tokens returned {code}")
        return [float(x) for x in lib.llama_get_logits_ith(context.raw, -1)[:n_vocab]]


@dataclass(frozen=True, slots=True)
class Opened:
    model: Any
    raw: Any


@contextmanager
def opened(lib: Library, reference: Reference, on_one_thread: bool) -> Iterator[Opened]:
    model = lib.llama_model_load_from_file(os.fsencode(reference.model), lib.llama_model_default_params())
    if not model:
        raise SelfTestError(f"{reference.model} could not be loaded")
    try:
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = max(256, len(reference.tokens))
        cores = [core for core in sorted(os.sched_getaffinity(0)) if core < C.GGML_MAX_N_THREADS]
        params.n_threads = params.n_threads_batch = 1 if on_one_thread else len(cores)
        context = lib.llama_init_from_model(model, params)
        if not context:
            raise SelfTestError(f"no context could be made for {reference.name}")
        pool = None if on_one_thread else pinned_pool(lib, cores)
        if pool is not None:
            lib.llama_attach_threadpool(context, pool, pool)
        try:
            yield Opened(model, context)
        finally:
            lib.llama_free(context)
            if pool is not None:
                lib.ggml_threadpool_free(pool)
    finally:
        lib.llama_model_free(model)


def pinned_pool(lib: Library, cores: list[int]) -> Any:
    """Compute threads as the daemon has them, one bound to each core: on a busy machine others take minutes."""
    params = C.ggml_threadpool_params()
    lib.ggml_threadpool_params_init(ctypes.byref(params), len(cores))
    for core in cores:
        params.cpumask[core] = True
    params.strict_cpu = True
    params.poll = 50
    params.paused = True  # only then does the thread that calls llama_decode get its core as well (ggml-cpu.c, kickoff)
    return lib.ggml_threadpool_new(ctypes.byref(params))


def check_apart(library: Path, reference: Path) -> str:
    """check() in a process of its own. Returns its line; raises SelfTestError, also when the process was killed."""
    command = [sys.executable, "-m", "modeld.llm.selftest", "--here", "--reference", os.fspath(reference), os.fspath(library)]
    environment = os.environ | {"PYTHONPATH": os.fspath(Path(__file__).resolve().parents[2])}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise SelfTestError(f"{library} was built, but its self-test did not end within {LIMIT_S} s") from None
    if done.returncode == 0:
        return done.stdout.strip()
    said = done.stderr.strip()
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise SelfTestError(
            f"{library} was built but died in its self-test: {name} at the first decode of {reference}.\n{said}\n"
            "The compiler made code that this CPU cannot run, or wrong code. What helps, in this order: another compiler\n"
            "(CXX=clang++ CC=clang make build); without AMX (make build CMAKE_FLAGS=\"-DCMAKE_CXX_FLAGS='-mno-amx-tile"
            " -mno-amx-int8 -mno-amx-bf16'\");\nwithout this CPU's own instructions (make build CMAKE_FLAGS=-DGGML_NATIVE=OFF)."
            " Run `make clean` before each."
        )
    raise SelfTestError(f"{library} was built but failed its self-test:\n{said}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="modeld.llm.selftest", description="Test a built libllama.so against stored logits.")
    parser.add_argument("library", type=Path)
    parser.add_argument("--reference", type=Path, default=REFERENCE)
    parser.add_argument("--here", action="store_true", help="in this process")
    args = parser.parse_args()
    try:
        if args.here:
            reference = Reference.read(args.reference)
            worst = check(args.library, reference)
            print(f"{args.library}: {len(reference.tokens)} tokens, logits within {worst:.2g} of the reference", flush=True)
        else:
            print(check_apart(args.library, args.reference))
    except (SelfTestError, ModeldError) as error:
        print(f"self-test: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
