"""Would this model file end the process? It is tried in a process of its own first, which may die of it.

Damage to a GGUF's container libllama refuses, but some values that it accepts abort it: a number of layers out of range in the
load, an epsilon that is not a number in the first decode (facts/llama.md). What that process does is in modeld.llm.trial.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

from modeld.errors import OpCancelled, ProbeFailed
from modeld.llm import interpreter
from modeld.llm.backend import backend
from modeld.llm.ending import how_it_ended
from modeld.types import ModelSpec

log = logging.getLogger("modeld.switch")

WAIT_S = 0.1  # between two questions whether to go on
REAP_S = 5.0  # a process that was killed is gone in milliseconds, unless it hangs in the kernel
TAIL_BYTES = 1 << 14  # what is kept of each of its outputs

# -I -S: nothing of the environment and no site-packages, which the trial needs none of. Appended, so that a folder with other
# packages in it hides no standard module.


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a trial that went well took, in seconds and in bytes of the other process."""

    seconds: float
    peak_bytes: int  # with the mapped weights
    own_bytes: int  # without them


def probe(
    spec: ModelSpec, on_wait: Callable[[], bool], *, timeout_s: float, memory_limit_bytes: int | None = None
) -> ProbeResult:
    """Load the file and decode a few tokens, elsewhere. Any thread that outlives the call: its end would end the trial.

    `on_wait` is asked ten times a second and answers False to end it. `memory_limit_bytes` bounds what the process allocates;
    mapped weights do not count. It takes the time of a load from the page cache without repacking, and a decode on one thread.

    Raises ProbeFailed when the file is refused, when it ends the process, after `timeout_s`, or when the process cannot be
    started; OpCancelled. In any case the process is gone afterwards.
    """
    begin = time.monotonic()
    order = {
        "parent_pid": os.getpid(),
        "memory_limit_bytes": memory_limit_bytes,
        "variant": backend().variant,
        "spec": _fields(spec),
    }
    try:
        process = subprocess.Popen(
            interpreter.command("trial", order),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},  # else an abort forks a debugger
            start_new_session=True,
            pass_fds=interpreter.descriptors(),
        )
    except (OSError, ValueError) as error:
        raise ProbeFailed(f"{spec.path}: the process that was to try it could not be started: {error}") from None
    try:
        report, said = _outputs(process, spec, on_wait, timeout_s)
        status = process.wait(REAP_S)  # all its outputs are closed: it is about to be gone
    except subprocess.TimeoutExpired:
        raise ProbeFailed(f"{spec.path}: the process that tried it closed its outputs and did not end") from None
    finally:
        _end(process)
    found = _parsed(report)
    limit = "" if memory_limit_bytes is None else f" (it was allowed {memory_limit_bytes >> 20} MiB of memory)"
    if found is None:
        raise ProbeFailed(f"{spec.path}: the process that tried it ended {how_it_ended(status, said)}{limit}")
    if not found["ok"]:
        reason = str(found["reason"])
        raise ProbeFailed(reason + limit if "memory" in reason else reason)
    return ProbeResult(time.monotonic() - begin, int(found["peak_bytes"]), int(found["own_bytes"]))


def _fields(spec: ModelSpec) -> dict[str, object]:
    """The spec for JSON, which carries bytes of a path that are no UTF-8 as they are in a str. Without what may be long."""
    return dataclasses.asdict(spec) | {"path": os.fspath(spec.path), "chat_template": None}


def _outputs(
    process: subprocess.Popen[bytes], spec: ModelSpec, on_wait: Callable[[], bool], timeout_s: float
) -> tuple[bytes, bytes]:
    """The ends of what it writes to stdout and stderr, when both are closed, which its end does at the latest."""
    deadline = time.monotonic() + timeout_s
    tails: dict[IO[bytes], bytearray] = {}
    with selectors.DefaultSelector() as selector:
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            tails[pipe] = bytearray()
            selector.register(pipe, selectors.EVENT_READ, tails[pipe])
        while selector.get_map():
            if not on_wait():
                raise OpCancelled(f"{spec.path}: trying it was cancelled")
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise ProbeFailed(f"{spec.path}: the process that tried it did not end within {timeout_s:g} s and was killed")
            for key, _ in selector.select(min(WAIT_S, left_s)):
                chunk = os.read(key.fd, TAIL_BYTES)
                if not chunk:
                    selector.unregister(key.fileobj)
                key.data.extend(chunk)
                del key.data[:-TAIL_BYTES]
    report, said = tails.values()
    return bytes(report), bytes(said)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill it with whatever it started, if it has not ended; reap it; close the pipes."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        try:
            process.wait(REAP_S)
        except subprocess.TimeoutExpired:  # it waits for a disk or a server that does not answer
            log.warning("process %d, which tried a model, was killed but has not ended", process.pid)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _parsed(report: bytes) -> dict[str, Any] | None:
    """The report; None when it did not get as far as writing a whole one."""
    try:
        found = json.loads(report)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
