"""Which switches were there, also before this process? Journal: a JSON line for each ended op, in two files of bounded size."""

from __future__ import annotations

import json
import logging
import os
import stat
import threading
from collections.abc import Mapping
from pathlib import Path

log = logging.getLogger("modeld.switch")

FILE = "ops.jsonl"
OLDER = "ops.jsonl.1"
MAX_BYTES = 1 << 20  # of one file
MAX_LINE_BYTES = 64 << 10


class Journal:
    """Any thread. Nothing here raises for what a disk does: the op has ended all the same. The log says it once."""

    def __init__(self, folder: Path | None) -> None:
        """None: nothing is kept. A folder belongs to one process (StateFile.folder)."""
        self.problem: str | None = None
        self._folder = folder
        self._lock = threading.Lock()
        # Guards the two files, so that nobody reads them between the renaming and the next line. Held for one small write,
        # or for reading 2 MiB at most.

    def append(self, record: Mapping[str, object]) -> None:
        """Write one line at once: a reader sees all of it or nothing. What JSON has no word for is written as its str()."""
        if self._folder is None:
            return
        line = json.dumps(record, default=str).encode() + b"\n"  # ASCII, so a line feed is the end of the record
        if len(line) > MAX_LINE_BYTES:
            self._note(f"an op's record has {len(line)} bytes, more than {MAX_LINE_BYTES}")
            return
        with self._lock:
            try:
                self._write(self._folder, line)
            except OSError as error:
                self._note(f"cannot write {self._folder / FILE}: {error.strerror}")
            else:
                self.problem = None

    def recent(self, n: int) -> list[dict[str, object]]:
        """The last `n` records, the newest last; fewer where there are fewer. Lines that are no records are left out."""
        if self._folder is None or n <= 0:
            return []
        with self._lock:
            contents = [_tail(self._folder / name) for name in (FILE, OLDER)]
        found: list[dict[str, object]] = []
        for content in contents:
            for line in reversed(content.split(b"\n")):
                if len(found) == n:
                    break
                record = _record(line)
                if record is not None:
                    found.append(record)
        return found[::-1]

    def _write(self, folder: Path, line: bytes) -> None:
        descriptor = _open(folder)
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise OSError(0, "it is no regular file")
            size = facts.st_size
            if size + len(line) > MAX_BYTES:
                (folder / FILE).replace(folder / OLDER)
                os.close(descriptor)
                descriptor = -1
                descriptor = _open(folder)
                size = 0
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line  # a line that was cut short by a full disk must not take this one with it
            n_written = os.write(descriptor, line)
            if n_written < len(line):
                raise OSError(0, f"{n_written} of {len(line)} bytes were written")
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _note(self, problem: str) -> None:
        if self.problem is None:
            log.warning("the journal of switches has a gap: %s", problem)
        self.problem = problem


def _open(folder: Path) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    return os.open(folder / FILE, flags, 0o600)


def _tail(path: Path) -> bytes:
    """The last MAX_BYTES of it, from the beginning of a line; nothing where it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            return b""
        begin = max(0, facts.st_size - MAX_BYTES)
        content = os.pread(descriptor, MAX_BYTES, begin)
    except OSError:
        return b""
    finally:
        os.close(descriptor)
    return content if begin == 0 else content.partition(b"\n")[2]


def _record(line: bytes) -> dict[str, object] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
