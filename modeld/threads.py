"""How does a thread get its stack? One place sets the process-wide stack size, so that no thread gets another's."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from modeld.heartbeat import Pulse

log = logging.getLogger("modeld")

# Virtual, not resident: 30,000 equal letters recurse once a character in some pre-tokenizers (std::regex) and need
# far more than 8 MiB; prompts are capped at 1 MiB (shared facts, "Never fork ... Tokenizing recurses").
BIG_STACK_BYTES = 512 << 20
SMALL_STACK_BYTES = 1 << 20

_start_lock = threading.Lock()
# threading.stack_size is global: it is set, used by start() and reset while this lock is held. start() returns only
# when the new thread runs, so the size has been taken by then.


def start_thread(
    name: str,
    target: Callable[[], None],
    *,
    stack_bytes: int = SMALL_STACK_BYTES,
    daemon: bool = True,
    pulse: Pulse | None = None,
) -> threading.Thread:
    """Start a named thread with a stack of its own size; an exception that ends it is logged with its name, and `pulse` tells it.

    Raises RuntimeError when the system refuses another thread.
    """

    def run() -> None:
        try:
            target()
        except Exception as error:
            if pulse is not None:
                pulse.died(error)
            log.exception("thread %s ended by an exception", name)

    thread = threading.Thread(target=run, name=name, daemon=daemon)
    with _start_lock:
        before = threading.stack_size(stack_bytes)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    return thread
