"""Where does freed memory go? Back to the system, so that what a model took is there again when it has gone."""

from __future__ import annotations

import ctypes
import sys

# malloc.h. glibc's own values move with what is freed: after the first large buffer it keeps up to 32 MB blocks in its
# arenas, and twice as much at the top of each, which malloc_trim does not touch.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
# Large enough that a request's candidate array (12 bytes for each token of the vocabulary) stays in the heap, small
# enough that KV cells, compute buffers and repacked weights are mappings of their own, gone when they are freed.
_MMAP_THRESHOLD_BYTES = 4 << 20
_TRIM_THRESHOLD_BYTES = 1 << 20


def _libc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    # musl has neither; it gives pages back by itself
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None


def settle_allocator() -> None:
    """Fix glibc's thresholds for this process. Once, before the first model; see mallopt(3)."""
    libc = _libc()
    if libc is not None:
        libc.mallopt(M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)


def give_back_freed_memory() -> None:
    """Return the free pages of all arenas (malloc_trim(3)). Some milliseconds; after a load or an unload.

    With the thresholds, the resident size of a daemon that switches under load stays within 2 MB; without either it wandered by
    more than 10 MB with the luck of which thread's arena a buffer came from.
    """
    libc = _libc()
    if libc is not None:
        libc.malloc_trim(ctypes.c_size_t(0))
