"""What does the process do that tries a model file? It loads it, decodes a few tokens, looks at the numbers, and reports.

Started by modeld.llm.probe with one argument, a JSON object; answers with one line of JSON. A file that ends libllama ends this
process and no other. It gives way to the daemon in everything: less of the cores, first to go when memory is short, and no
copy of the weights: they stay mapped, so that beside page cache it needs little memory.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import resource
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modeld.llm.context import Context
    from modeld.llm.model import Model
    from modeld.types import ModelSpec

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_DUMPABLE = 4
NICENESS = 10  # a tenth of what a compute thread of the daemon gets on the same core, and enough to get on
STACK_BYTES = 128 << 20  # libllama recurses; the kernel keeps so much room below the main thread's stack (mmap_base)
N_CTX = 256  # cells; libllama makes no fewer
N_BATCH = 32
TEXT = "Once upon a time"


def main(order: str) -> None:
    """Never returns: the process ends with status 0 when the report has been written, good or bad."""
    values: dict[str, Any] = json.loads(order)
    report = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints must not be taken for the report
    settle(values["parent_pid"], values["memory_limit_bytes"])
    # Imported here: from now on this process is nice, bounded, and mortal.
    import logging

    from modeld.errors import ModeldError
    from modeld.llm.adapter import DecodeFatal, DecodeInvalid, NoKvRoom
    from modeld.llm.backend import open_backend
    from modeld.llm.variants import trusted

    logging.disable(logging.WARNING)  # the last line on stderr should be about what ended the process
    try:
        open_backend(trusted(values["variant"]))
        found = attempt(values["spec"])
    except (ModeldError, DecodeFatal, DecodeInvalid, NoKvRoom) as error:
        found = {"ok": False, "reason": str(error)}
    except MemoryError:
        found = {"ok": False, "reason": "it needs more memory than it was allowed"}
    os.write(report, (json.dumps(found) + "\n").encode())
    os._exit(0)


def settle(parent_pid: int, memory_limit_bytes: int | None, niceness: int = NICENESS) -> None:
    """Die with the parent, leave no core, take little. What a sandbox forbids is left out."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it has died already
        os._exit(1)
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # a handler that cores are piped to does not heed RLIMIT_CORE (core(5))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the daemon takes SIGTERM by sigwait, and blocks are inherited
    with suppress(OSError):
        os.nice(niceness)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_STACK: STACK_BYTES}
    if memory_limit_bytes is not None:
        limits[resource.RLIMIT_DATA] = memory_limit_bytes  # mapped weights do not count; those read into memory do
    for limit, value in limits.items():
        _, hard = resource.getrlimit(limit)
        with suppress(OSError, ValueError):
            resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def attempt(values: dict[str, Any]) -> dict[str, Any]:
    """The report on the ModelSpec that `values` has the fields of. Raises what a load or a decode raises."""
    from modeld.llm.available import resident
    from modeld.llm.backend import backend
    from modeld.llm.context import Context
    from modeld.llm.model import Model
    from modeld.types import ModelSpec

    spec = small(ModelSpec(**values | {"path": Path(values["path"]), "tensor_split": ()}))
    model = Model(backend(), spec, lambda _pct: True, repack=False)
    context = Context(backend(), model, spec)
    tokens = model.vocab.tokenize(TEXT, add_special=True, parse_special=False)[: context.n_batch] or [0]
    wrong = not_finite(decoded(model, context, tokens))
    if wrong is not None:
        return {"ok": False, "reason": f"{spec.path}: it decodes {len(tokens)} tokens, but {wrong}"}
    memory = resident()
    context.close()
    model.close()
    return {"ok": True, "peak_bytes": memory.peak_bytes, "own_bytes": memory.own_bytes}


def small(spec: ModelSpec) -> ModelSpec:
    """The entry's own settings, but one short slot, one thread, and no memory that the model that answers may need.

    On the CPU alone: a GPU's memory is the serving model's. What ends a load or a decode is in the file, not in the place.
    """
    return dataclasses.replace(
        spec,
        n_ctx=N_CTX,
        n_parallel=1,
        n_batch=N_BATCH,
        n_ubatch=N_BATCH,
        n_threads=1,
        cpu_pinning="off",
        n_gpu_layers=0,
        load_mode="mmap",
    )


def decoded(model: Model, context: Context, tokens: Sequence[int]) -> Sequence[float]:
    """The logits after the last token; of a model for embeddings its vector; nothing for the pooling `none`."""
    from modeld.llm.adapter import DecodeInvalid, Span
    from modeld.llm.backend import backend

    context.decode([Span(0, 0, tuple(tokens), output=True)])
    if context.pooling is not None:
        return () if context.pooling == "none" else context.vector(0)
    logits = backend().lib.llama_get_logits_ith(context, context.row(0))
    if not logits:
        raise DecodeInvalid(f"{model.path}: the decode left no logits")
    return [*logits[: model.vocab.n_tokens]]


def not_finite(numbers: Sequence[float]) -> str | None:
    """What is wrong with logits or a vector; None: nothing. Minus infinity is how a model forbids a token."""
    n_wrong = sum(1 for number in numbers if not number < float("inf"))  # NaN is not less than anything
    if n_wrong:
        return f"{n_wrong} of the {len(numbers)} numbers it gives are NaN or infinite"
    if numbers and max(numbers) == float("-inf"):
        return f"all of the {len(numbers)} numbers it gives are minus infinity"
    return None
