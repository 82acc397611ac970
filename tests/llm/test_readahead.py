"""read_ahead: what is cached is passed over, the rest is read, and its progress can end it."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from modeld.errors import LoadFailed
from modeld.llm import readahead
from modeld.llm.readahead import CHUNK_BYTES, cached_bytes, read_ahead

SIZE = 20 * CHUNK_BYTES + 500_001


def drop_cache(path: Path) -> None:
    """Put the file on the disk and out of the page cache; that works where the file system has a disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    assert cached_bytes(path) == 0, f"{path.parent} is a file system in memory? set TMPDIR to one on a disk"


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        path = tmp_path / name
        path.write_bytes(os.urandom(CHUNK_BYTES) * (SIZE // CHUNK_BYTES) + b"x" * (SIZE % CHUNK_BYTES))
        return path

    return make


@pytest.fixture(params=["cachestat", "samples"])
def asked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of asking: the second one is what a file of somebody else's, and a kernel before 6.5, leave."""
    if request.param == "samples":
        monkeypatch.setattr(readahead, "_SYS_CACHESTAT", 100_000)  # ENOSYS
    return str(request.param)


def go_on(_done: int, _total: int) -> bool:
    return True


@pytest.mark.usefixtures("asked")
def test_all_shards_are_cached_afterwards(make: Callable[[str], Path]) -> None:
    shards = [make("a"), make("b")]
    for path in shards:
        drop_cache(path)
    told: list[tuple[int, int]] = []
    found = read_ahead(shards, lambda done, total: told.append((done, total)) or True)  # type: ignore[func-returns-value]
    assert (found.total_bytes, found.cached_bytes, found.read_bytes) == (2 * SIZE, 0, 2 * SIZE)
    assert found.finished
    assert found.seconds > 0
    assert [cached_bytes(path) for path in shards] == [SIZE, SIZE]
    assert told == sorted(set(told)), "bytes rise"
    assert (told[0], told[-1]) == ((0, 2 * SIZE), (2 * SIZE, 2 * SIZE))
    assert max(b[0] - a[0] for a, b in pairwise(told)) <= CHUNK_BYTES


@pytest.mark.usefixtures("asked")
def test_a_cached_file_is_not_read(make: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = make("a")
    read_ahead([path], go_on)
    monkeypatch.setattr(readahead, "_read", lambda *_: pytest.fail("was read"))
    told: list[int] = []
    found = read_ahead([path], lambda done, _total: told.append(done) or True)  # type: ignore[func-returns-value]
    assert (found.cached_bytes, found.read_bytes, found.finished) == (SIZE, 0, True)
    assert told == [SIZE]


@pytest.mark.usefixtures("asked")
def test_what_is_cached_of_a_file_is_passed_over(make: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = make("a")
    drop_cache(path)
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # only what is asked for, for as long as the descriptor is open
    os.pread(fd, 3 * CHUNK_BYTES, 5 * CHUNK_BYTES)
    os.close(fd)
    assert cached_bytes(path) == 3 * CHUNK_BYTES
    starts: list[int] = []
    read = readahead._read

    def record(path: Path, fd: int, target: memoryview, start: int) -> None:
        starts.append(start // CHUNK_BYTES)
        read(path, fd, target, start)

    monkeypatch.setattr(readahead, "_read", record)
    found = read_ahead([path], go_on)
    assert (found.cached_bytes, found.read_bytes, found.finished) == (3 * CHUNK_BYTES, SIZE - 3 * CHUNK_BYTES, True)
    assert starts == [i for i in range(21) if i not in (5, 6, 7)]


@pytest.mark.parametrize("n_chunks", [0, 1, 7])
def test_its_progress_ends_it_within_one_chunk(make: Callable[[str], Path], n_chunks: int) -> None:
    path = make("a")
    drop_cache(path)
    found = read_ahead([path], lambda done, _total: done < n_chunks * CHUNK_BYTES)
    assert (found.read_bytes, found.finished) == (n_chunks * CHUNK_BYTES, False)


def test_an_exception_in_the_progress_leaves_no_descriptor(make: Callable[[str], Path]) -> None:
    paths = [make("a"), make("b")]
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(ZeroDivisionError):
        read_ahead(paths, lambda done, total: 1 // 0 > 0)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_that_becomes_shorter_is_told(make: Callable[[str], Path]) -> None:
    path = make("a")
    drop_cache(path)

    def truncate(done: int, _total: int) -> bool:
        if done == 2 * CHUNK_BYTES:
            os.truncate(path, 2 * CHUNK_BYTES + 100)
        return True

    with pytest.raises(LoadFailed, match=rf"{path}: ends at byte {2 * CHUNK_BYTES + 100} now"):
        read_ahead([path], truncate)


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_what_cannot_be_read_is_told_with_path_and_reason(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    reason = {"missing": "No such file", "folder": "Is a directory", "pipe": "Not a regular file"}[kind]
    for call in (lambda: read_ahead([path], go_on), lambda: cached_bytes(path)):
        with pytest.raises(LoadFailed, match=f"{path}: cannot be read: {reason}"):
            call()


def test_an_empty_file_has_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    found = read_ahead([tmp_path / "empty"], go_on)
    assert (found.total_bytes, found.finished) == (0, True)


def test_a_file_system_that_tells_nothing_counts_as_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readahead, "_SYS_CACHESTAT", 100_000)
    with Path("/proc/self/stat").open("rb") as file:  # EOPNOTSUPP
        assert readahead._Residency(file.fileno()).cached_bytes(0, 4096) == 0
