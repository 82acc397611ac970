"""When is a C object freed, and by whom? Handle: one owner closes it, after its children; a leak is reported, not freed."""

from __future__ import annotations

import ctypes
import logging
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

log = logging.getLogger("modeld.llama")

_open_lock = threading.Lock()
_open: Counter[str] = Counter()  # kind -> handles not closed; guarded by _open_lock


def open_handles() -> dict[str, int]:
    """How many handles of each kind are open in this process; empty when all are closed."""
    with _open_lock:
        return {kind: n for kind, n in _open.items() if n}


def _count(kind: str, by: int) -> None:
    with _open_lock:
        _open[kind] += by


def _report_leak(kind: str, address: int) -> None:
    # Not freed here: a finalizer may run on any thread, also while a C call uses the object.
    log.error("a %s at %#x was dropped without close(); its memory is lost until the process ends", kind, address)


class Handle:
    """A C pointer with one owner, passed to C as it is (`_as_parameter_`). After close, ctypes refuses it (ArgumentError).

    Confined to its owner's thread. A child keeps its parent alive and counted, so that a model is never freed under its
    context: close() of a parent with open children raises RuntimeError.
    """

    kind = "handle"

    def __init__(self, raw: Any, free: Callable[[Any], None], parent: Handle | None = None) -> None:
        """`raw` is a non-NULL typed pointer; `free` is called with it once."""
        self._raw = raw
        self._free = free
        self._parent = parent
        self._n_children = 0
        if parent is not None:
            parent._n_children += 1
        _count(self.kind, 1)
        address = int(_address(raw))
        # atexit=False: at exit a C call may still run.
        self._leak = weakref.finalize(self, _report_leak, self.kind, address)
        self._leak.atexit = False

    @property
    def _as_parameter_(self) -> Any:
        if self._raw is None:
            raise RuntimeError(f"this {self.kind} is closed")
        return self._raw

    @property
    def closed(self) -> bool:
        return self._raw is None

    def close(self) -> None:
        """Free the object. Idempotent."""
        if self._raw is None:
            return
        if self._n_children:
            raise RuntimeError(f"this {self.kind} has {self._n_children} open children; close them first")
        raw, self._raw = self._raw, None
        self._leak.detach()
        try:
            self._free(raw)
        finally:
            _count(self.kind, -1)
            if self._parent is not None:
                self._parent._n_children -= 1
                self._parent = None


def _address(raw: Any) -> int:
    return ctypes.cast(raw, ctypes.c_void_p).value or 0
