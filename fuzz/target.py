"""What is a fuzz target, and may one input take so much? Target, and `run`, which holds each input to bounds of time and memory.

Nothing here needs atheris: the test that replays the kept inputs uses the same `run`.
"""

from __future__ import annotations

import functools
import importlib
import resource
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus"

# For one input, also under instrumentation on a busy machine: thread time does not count while others have the core.
MAX_CPU_S = 2.0
MAX_GROWTH_BYTES = 64 << 20  # of the largest resident size so far


@dataclass(frozen=True, slots=True)
class Target:
    """`check` says what became of an input: "read", or the name of the error that refused it. It raises for a fault of ours.

    `seeds` are what a corpus begins with, `words` what is put into inputs beside chance.
    """

    modules: tuple[str, ...]  # those whose lines count
    check: Callable[[bytes], str]
    seeds: Callable[[], Iterable[bytes]]
    words: tuple[bytes, ...]
    max_bytes: int


def names() -> list[str]:
    """Every target of this folder: fuzz_NAME.py holds TARGET."""
    return sorted(path.stem.removeprefix("fuzz_") for path in HERE.glob("fuzz_*.py"))


def named(name: str) -> Target:
    target = importlib.import_module(f"fuzz.fuzz_{name}").TARGET
    assert isinstance(target, Target)
    return target


@functools.cache
def folder() -> Path:
    """Where targets write an input that has to be a file; whoever runs them clears TMPDIR away."""
    return Path(tempfile.mkdtemp(prefix="modeld-fuzz-"))


def run(target: Target, data: bytes) -> str:
    """Check one input; AssertionError where it took more than the bounds."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.thread_time()
    outcome = target.check(data)
    cpu_s = time.thread_time() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
    assert cpu_s < MAX_CPU_S, f"{len(data)} bytes took {cpu_s:.1f} s; at most {MAX_CPU_S} are allowed"
    assert grown < MAX_GROWTH_BYTES, f"{len(data)} bytes took {grown} bytes of memory; at most {MAX_GROWTH_BYTES} are allowed"
    return outcome
