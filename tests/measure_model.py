"""What does a model really take? Run as a process of its own: loads one as the daemon does and prints what it measured.

`python -m tests.measure_model PATH key=value...` (the keys of ModelSpec) prints one JSON object; bytes, out of libllama's log
and of /proc/self/status.
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from modeld.types import ModelSpec

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20


@dataclass(frozen=True)
class Measured:
    kv_bytes: int  # KV buffers and those of recurrent states; libllama gives hundredths of a MiB
    n_kv_buffers: int
    compute_bytes: int  # compute and output buffers
    anonymous_bytes: int  # resident memory that is no file's, after one full batch


def measure(spec: ModelSpec) -> Measured:
    default = ModelSpec(id=spec.id, path=spec.path)
    values = {field.name: getattr(spec, field.name) for field in fields(ModelSpec)}
    changed = [f"{name}={value}" for name, value in values.items() if value != getattr(default, name)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.measure_model", str(spec.path), *changed],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def main(path: str, *changed: str) -> None:
    from modeld.llm.adapter import Span
    from modeld.llm.runtime import LlamaRuntime

    values = dict(pair.split("=", 1) for pair in changed)
    more = {name: int(value) if value.isdigit() else value for name, value in values.items()}
    spec = ModelSpec(id="x", path=Path(path), **more)  # type: ignore[arg-type]
    lines: list[str] = []
    log = logging.getLogger("modeld.llama")
    log.setLevel(logging.DEBUG)
    log.addHandler(_Kept(lines))
    import modeld.llm.backend as opened

    opened.backend()
    before = _anonymous()
    runtime = LlamaRuntime(spec, lambda _step, _pct: True)
    n_rows = min(spec.n_ubatch, runtime.n_batch, runtime.n_ctx_slot - 1)
    runtime.decode([Span(0, 0, [1] * n_rows, output=True)])
    anonymous = _anonymous() - before
    runtime.close()
    kv = _mib(lines, r"(?:KV|RS) buffer size = +([\d.]+) MiB")
    compute = _mib(lines, r"(?:compute|output) buffer size = +([\d.]+) MiB")
    print(json.dumps(asdict(Measured(sum(kv), len(kv), sum(compute), anonymous))))


class _Kept(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())


def _mib(lines: Sequence[str], pattern: str) -> list[int]:
    return [round(float(match[1]) * MIB) for line in lines if (match := re.search(pattern, line))]


def _anonymous() -> int:
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) << 10


if __name__ == "__main__":
    main(*sys.argv[1:])
