"""How does a model file get into the page cache before it is loaded? Read in chunks, with progress, passing over what is there.

libllama maps a file with MAP_POPULATE before its first progress report, so a cold file stands at 0 % and cannot be cancelled.
Read ahead, it is loaded from memory: the bar is honest and the outage short, since who answers goes on answering meanwhile.

What is cached is asked of the kernel, by cachestat(2) (Linux 6.5; 352 MB in 1.4 ms). It answers only who owns the file or may
write it, and so does mincore(2), which tells everybody else that all is there. For them, and on older kernels, one byte in each
64 KiB is read with RWF_NOWAIT, which fails where the kernel would have to wait for the disk (352 MB: 5 ms); a MiB with a hole in
it is then read as a whole. To read the cached file instead costs 37 ms.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from modeld.errors import LoadFailed
from modeld.llm.ggufreader import open_regular

CHUNK_BYTES = 1 << 20  # a cancellation waits for one: 50 ms on a disk of 20 MB/s; bigger ones are no faster (measured)
SAMPLE_BYTES = 1 << 16  # a sample stands for so much

_SYS_CACHESTAT = 451  # asm/unistd.h; one number for all architectures since 5.x, but alpha


@dataclass(frozen=True, slots=True)
class ReadAhead:
    """What a read-ahead came to. `finished`: every byte was in the cache at some time; False: it was told to end."""

    total_bytes: int
    cached_bytes: int  # were there already
    read_bytes: int
    seconds: float
    finished: bool


def read_ahead(paths: Sequence[Path], on_progress: Callable[[int, int], bool]) -> ReadAhead:
    """Bring all of the files (one model's shards) into the page cache. Any thread; releases the GIL while it reads.

    `on_progress(done_bytes, total_bytes)` is called before the first byte is read, with what is cached already, and after each
    MiB; it answers False to end it. Raises LoadFailed for a file that cannot be read or has become shorter.

    It blocks in read(2). A disk or a server that does not answer (NFS) holds this thread until it does, and nothing called
    from this thread can end that: who must not wait for ever watches the progress from another thread.
    """
    begin = time.monotonic()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with ExitStack() as stack:
        files = [(path, *_opened(path, stack)) for path in paths]
        # Asked for all before the first byte is read: from then on the kernel reads ahead of us, and counts as cached what is
        # still on its way from the disk.
        missing = [(path, fd, chunk) for path, fd, size in files for chunk in _chunks(fd, size) if chunk.n_cached < chunk.n]
        total = sum(size for _, _, size in files)
        n_missing = sum(chunk.n - chunk.n_cached for _, _, chunk in missing)
        done = cached = total - n_missing
        going = on_progress(done, total)
        for path, fd, chunk in missing:
            if not going:
                break
            _read(path, fd, buffer[: chunk.n], chunk.start)
            done += chunk.n - chunk.n_cached
            going = on_progress(done, total)
    return ReadAhead(total, cached, done - cached, time.monotonic() - begin, finished=done == total)


def cached_bytes(path: Path) -> int:
    """How much of the file is in the page cache; where the kernel does not tell (see above), by samples. Raises LoadFailed."""
    with ExitStack() as stack:
        fd, size = _opened(path, stack)
        return sum(chunk.n_cached for chunk in _chunks(fd, size))


def _opened(path: Path, stack: ExitStack) -> tuple[int, int]:
    """A descriptor that the stack closes, and the file's size."""
    try:
        file = stack.enter_context(open_regular(path))
        return file.fileno(), os.fstat(file.fileno()).st_size
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise _unreadable(path, error) from None


def _read(path: Path, fd: int, target: memoryview, start: int) -> None:
    at = 0
    while at < len(target):
        try:
            n = os.preadv(fd, [target[at:]], start + at)
        except OSError as error:
            raise _unreadable(path, error) from None
        if n == 0:
            raise LoadFailed(f"{path}: ends at byte {start + at} now: it has become shorter while it was read")
        at += n


def _unreadable(path: Path, error: Exception) -> LoadFailed:
    return LoadFailed(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}")


# -- what is cached --------------------------------------------------------------------------------------------------


class _Chunk(NamedTuple):
    start: int
    n: int
    n_cached: int


def _chunks(fd: int, size: int) -> Iterator[_Chunk]:
    residency = _Residency(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # a sample that fails fetches its page, and not megabytes around it
    whole = residency.cached_bytes(0, size) == size  # one question instead of one a MiB: true of most second switches
    if whole:
        yield _Chunk(0, size, size)
    for start in range(size if whole else 0, size, CHUNK_BYTES):
        n = min(CHUNK_BYTES, size - start)
        yield _Chunk(start, n, residency.cached_bytes(start, n))
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_NORMAL)


class _Range(ctypes.Structure):
    """linux/mman.h, struct cachestat_range."""

    _fields_ = (("off", ctypes.c_uint64), ("len", ctypes.c_uint64))


class _Statistics(ctypes.Structure):
    """linux/mman.h, struct cachestat: counts of pages."""

    _fields_ = (
        ("nr_cache", ctypes.c_uint64),
        ("nr_dirty", ctypes.c_uint64),
        ("nr_writeback", ctypes.c_uint64),
        ("nr_evicted", ctypes.c_uint64),
        ("nr_recently_evicted", ctypes.c_uint64),
    )


_syscall = ctypes.CDLL(None).syscall
_syscall.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.POINTER(_Range), ctypes.POINTER(_Statistics), ctypes.c_long)
_syscall.restype = ctypes.c_long


class _Residency:
    """How much of one open file is in the page cache: the best way that the kernel allows for this file."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._ask = self._by_cachestat

    def cached_bytes(self, start: int, n: int) -> int:
        """Of the n bytes from `start` on, a multiple of the page size."""
        return self._ask(start, n)

    def _by_cachestat(self, start: int, n: int) -> int:
        pages = _Statistics()
        if _syscall(_SYS_CACHESTAT, self._fd, ctypes.byref(_Range(start, n)), ctypes.byref(pages), 0) != 0:
            # EPERM: somebody else's file, or a sandbox; ENOSYS: an old kernel
            self._ask = self._by_samples
            return self._by_samples(start, n)
        return min(int(pages.nr_cache) * mmap.PAGESIZE, n)

    def _by_samples(self, start: int, n: int) -> int:
        """n or 0. The first sample that fails ends it, since it makes the kernel fetch that page: of a cold file one a MiB."""
        byte = bytearray(1)
        for at in range(start, start + n, SAMPLE_BYTES):
            try:
                os.preadv(self._fd, [byte], at, os.RWF_NOWAIT)
            except OSError:  # EAGAIN; EOPNOTSUPP of a file system that never tells, whose files are read then
                return 0
        return n
