"""How is the one libllama of this process opened? Backend: checked, typed, its log lines in `logging` and in a ring."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from typing import Any

from modeld.llm import libllama as C
from modeld.llm.libllama import Library, load_library
from modeld.llm.memory import settle_allocator
from modeld.llm.variants import Chosen, choose

log = logging.getLogger("modeld.llama")

_LEVELS = {
    C.GGML_LOG_LEVEL_DEBUG: logging.DEBUG,
    # Info is hundreds of lines a load: of interest to who looks for a fault, noise to everybody else.
    C.GGML_LOG_LEVEL_INFO: logging.DEBUG,
    C.GGML_LOG_LEVEL_WARN: logging.WARNING,
    C.GGML_LOG_LEVEL_ERROR: logging.ERROR,
}
_RING_LINES = 200


class LogRing:
    """libllama's last lines with their level, so that a failed load can say why.

    The C library calls `_on_line` from whichever thread logs, ours or its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Guards _lines and _partial. Nothing is logged or called while it is held.
        self._lines: deque[tuple[int, str]] = deque(maxlen=_RING_LINES)
        self._partial: list[str] = []
        self._level = C.GGML_LOG_LEVEL_INFO
        self._hushed: set[object] = set()  # who aborts a decode on purpose; changed by any thread, in one operation each
        self.callback = C.ggml_log_callback(self._on_line)  # kept: C holds it for the life of the process

    def hush(self, who: object, on: bool) -> None:
        """While a decode of `who` is aborted on purpose, what libllama reports as errors is not logged as such. Any thread."""
        (self._hushed.add if on else self._hushed.discard)(who)

    def _on_line(self, level: int, text: bytes | None, _user_data: Any) -> None:
        """Never raises: the caller is C."""
        try:
            line = self._complete(level, (text or b"").decode("utf-8", "replace"))
            if line is not None:
                level = logging.DEBUG if self._hushed else _LEVELS.get(line[0], logging.DEBUG)
                log.log(level, "%s", line[1])
        except Exception:  # noqa: S110, BLE001 - it would be printed by ctypes and lost; a log line is not worth it
            pass

    def _complete(self, level: int, text: str) -> tuple[int, str] | None:
        with self._lock:
            if level != C.GGML_LOG_LEVEL_CONT:
                self._level = level
                self._partial.clear()
            self._partial.append(text)
            if not text.endswith("\n"):
                return None  # goes on; libllama prints its dots one by one
            line = "".join(self._partial).strip()
            self._partial.clear()
            if not line:
                return None
            self._lines.append((self._level, line))
            return self._level, line

    def clear(self) -> None:
        with self._lock:
            self._lines.clear()

    def errors(self) -> list[str]:
        """The error lines since clear(), oldest first; the warnings when there is no error."""
        with self._lock:
            lines = list(self._lines)
        for wanted in (C.GGML_LOG_LEVEL_ERROR, C.GGML_LOG_LEVEL_WARN):
            found = [text for level, text in lines if level == wanted]
            if found:
                return found
        return []


class Backend:
    """The library, opened once for the life of the process: it is never closed, C++ statics would not survive it."""

    def __init__(self, lib: Library, chosen: Chosen) -> None:
        self.lib = lib
        self.chosen = chosen
        self.stamp = chosen.stamp
        self.path = os.fspath(chosen.path)
        self.variant = chosen.variant  # "native", or the kind of CPU that a release's library is for
        self.ring = LogRing()
        settle_allocator()
        lib.llama_log_set(self.ring.callback, None)  # once, before the first load
        lib.llama_backend_init()


_backend_lock = threading.Lock()
_backend: Backend | None = None  # guarded by _backend_lock


def backend() -> Backend:
    """The opened library; opens it on the first call, the best of a set (variants.choose), and remembers nothing. Any thread.

    Raises LibraryMismatch, with both sides named, when the library is missing, untested or another one, or does not run here.
    """
    global _backend
    with _backend_lock:
        if _backend is None:
            _backend = _opened(choose())
        return _backend


def open_backend(chosen: Chosen) -> Backend:
    """Opens that library before anybody calls backend(). Raises LibraryMismatch."""
    global _backend
    with _backend_lock:
        assert _backend is None, "the library of this process is open already"
        _backend = _opened(chosen)
        return _backend


def _opened(chosen: Chosen) -> Backend:
    return Backend(load_library(chosen.path), chosen)
