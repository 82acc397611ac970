"""Does libllama survive these files? Run as a process of its own: what ends it is not the tests' end.

`python -m tests.try_models PATH...` loads each file as the daemon does, decodes one token and samples one, and says so line by
line: `begin PATH`, then `ran PATH` or `refused PATH REASON`. A `begin` without the other is the one that ended the process.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modeld.types import ModelSpec

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 60


def spec_of(path: Path) -> ModelSpec:
    """The entry with which a file is tried, and looked at before."""
    return ModelSpec(id="x", path=path, n_ctx=256, n_parallel=1, n_batch=32, n_ubatch=32, n_threads=1, cpu_pinning="off")


@dataclass(frozen=True)
class Outcome:
    end: str  # ran | refused | died
    reason: str = ""  # of a refusal; of a death, the exit status and what was written last


def outcomes(paths: Sequence[Path]) -> dict[Path, Outcome]:
    """Try each file; a new process goes on behind one that ended the last.

    Raises subprocess.TimeoutExpired where one hangs.
    """
    found: dict[Path, Outcome] = {}
    todo = list(paths)
    while todo:
        done = subprocess.run(
            [sys.executable, "-m", "tests.try_models", *map(str, todo)],
            cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        )  # fmt: skip
        begun = None
        for line in done.stdout.splitlines():
            word, _, rest = line.partition(" ")
            path, _, reason = rest.partition(" ")
            if word == "begin":
                begun = Path(path)
            elif word in ("ran", "refused"):
                found[Path(path)] = Outcome(word, reason)
        if begun is None:
            raise RuntimeError(f"no file was tried: {done.stderr[-2000:]}")
        if begun not in found:
            found[begun] = Outcome("died", f"{done.returncode}: {' '.join(done.stderr.split())[-300:]}")
        todo = [path for path in todo if path not in found]
    return found


def main(paths: Sequence[str]) -> None:
    from modeld.errors import ModeldError
    from modeld.llm.adapter import Span
    from modeld.llm.runtime import LlamaRuntime
    from modeld.types import SamplingParams

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for path in paths:
        print("begin", path, flush=True)
        try:
            runtime = LlamaRuntime(spec_of(Path(path)), lambda _step, _pct: True)
        except ModeldError as error:
            print("refused", path, " ".join(error.message.split()), flush=True)
            continue
        try:
            if runtime.pooling is not None:
                runtime.decode([Span(0, 0, [1], output=True)])
                runtime.vectors([0])
            else:
                runtime.decode([Span(0, 0, [1], output=True)])
                for params in (SamplingParams(temperature=0.0), SamplingParams()):
                    sampler = runtime.sampler(params, 1, [1])
                    runtime.sample([(sampler, 0)])
                    sampler.close()
        except Exception as error:  # noqa: BLE001 - whatever is told is no death
            print("refused", path, " ".join(f"{type(error).__name__}: {error}".split()), flush=True)
        else:
            print("ran", path, flush=True)
        finally:
            runtime.close()


if __name__ == "__main__":
    main(sys.argv[1:])
