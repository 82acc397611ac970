"""Where does freed memory go? Back to the system, so that what a model took is there again when it has gone."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
# glibc's own thresholds move with what is freed, up to these; fixed there from the start, one load is like the next. The
# vocabulary and its maps (60 MB with 152,000 tokens) and buffers below 32 MB come from the heap, and the next model's go
# into the same pages, which saves the switch 40 of 420 ms (0.5B model).
_MMAP_THRESHOLD_BYTES = 32 << 20
_TRIM_THRESHOLD_BYTES = 64 << 20
# malloc_trim gives back the top of the first arena only. With one for each thread, the resident size of a daemon that
# switches under load wandered by 14 MB with the luck of which thread's arena a buffer came from.
_ARENAS = 1
# For the buffers of a context: pages of their own, which come untouched and go when they are freed. In recycled heap pages
# a compute buffer counts as resident from the start, in fresh ones only as far as it was ever used.
_MAPPED_BYTES = 1 << 20


def _libc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    # musl has neither; it gives pages back by itself
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None


def settle_allocator() -> None:
    """Fix glibc's thresholds for this process. Before its first thread, which would have an arena of its own, and others after
    it would share that; see mallopt(3). Idempotent."""
    libc = _libc()
    if libc is not None:
        libc.mallopt(M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)
        libc.mallopt(M_ARENA_MAX, _ARENAS)


@contextmanager
def large_blocks_mapped() -> Iterator[None]:
    """Blocks of 1 MiB and more that are allocated meanwhile are mappings of their own, unless the heap has a free block for them.

    glibc asks the heap first, whatever the threshold: the 60 MB that a vocabulary leaves there take the next buffers. With its
    pages given back before, such a buffer still comes untouched.

    By the load's thread, and by who saves cells: should both do so at once, the first to end ends it for both,
    and some blocks come from the heap.
    """
    libc = _libc()
    if libc is not None:
        libc.mallopt(M_MMAP_THRESHOLD, _MAPPED_BYTES)
    try:
        yield
    finally:
        if libc is not None:
            libc.mallopt(M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)


def give_back_freed_memory() -> None:
    """Return the free pages of all arenas (malloc_trim(3)). Some milliseconds; at the end of a load, good or failed, and within
    one between the weights and the context.

    Not between an unload and a load, whose vocabulary takes the pages again. What is left of them after that a context must not
    take as they are: its compute buffers, used in part, would be resident in whole, or not, with the luck of their place (45 or
    58 MB after 50 cancelled loads of a 0.5B model).
    """
    libc = _libc()
    if libc is not None:
        libc.malloc_trim(ctypes.c_size_t(0))
