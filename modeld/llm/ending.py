"""How did a process end that left no report? how_it_ended(): by which signal, and its last words."""

from __future__ import annotations

import re
import signal

LINE_CHARS = 300


def how_it_ended(status: int, said: bytes) -> str:
    """For a sentence that begins with `it ended`: `by SIGABRT: ops.cpp:1: GGML_ASSERT(...) failed`. Pure."""
    lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
    how = f"with status {status}"
    if status < 0:
        try:
            how = f"by {signal.Signals(-status).name}"
        except ValueError:  # a real-time signal
            how = f"by signal {-status}"
    if -status == signal.SIGKILL:
        how += ", as the kernel ends one when memory is short"
    if not lines:
        return how
    last = re.sub(r"^\S*/(?=[^/\s]+:\d+: )", "", lines[-1])  # the folder that libllama was built in
    return f"{how}: {last[:LINE_CHARS]}"
