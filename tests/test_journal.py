"""The journal of ended ops: bounded, whole lines, and readable whatever happened to it."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from modeld.manager.journal import FILE, MAX_BYTES, MAX_LINE_BYTES, OLDER, Journal
from tests.short_files import files_no_longer_than


def numbers(journal: Journal, n: int = 10**6) -> list[Any]:
    return [record["n"] for record in journal.recent(n)]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_next_process_reads_what_the_last_one_wrote(tmp_path: Path) -> None:
    record = {"op_id": "op-1", "kind": "switch", "error": None, "steps_ms": {"mmap": 1.5}, "message": "a\nb\u2028\udcff"}
    Journal(tmp_path).append(record)
    journal = Journal(tmp_path)
    journal.append({"n": 2})
    assert journal.recent(10) == [record, {"n": 2}]
    assert journal.recent(1) == [{"n": 2}]
    assert journal.recent(0) == []
    assert oct((tmp_path / FILE).stat().st_mode & 0o777) == "0o600"


def test_what_json_has_no_word_for_is_written_as_text(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append({"path": Path("/models/a")})
    assert journal.recent(1) == [{"path": "/models/a"}]


def test_without_a_folder_nothing_is_kept() -> None:
    journal = Journal(None)
    journal.append({"n": 1})
    assert (journal.recent(5), journal.problem) == ([], None)


def test_nothing_was_written_yet(tmp_path: Path) -> None:
    assert Journal(tmp_path).recent(5) == []
    assert list(tmp_path.iterdir()) == []


def test_two_files_of_bounded_size_hold_the_newest(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    n_records, padding = 60, "x" * 60_000
    for n in range(n_records):
        journal.append({"n": n, "padding": padding})
        assert all(path.stat().st_size <= MAX_BYTES for path in tmp_path.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {FILE, OLDER}
    kept = numbers(journal)
    assert kept == list(range(n_records - len(kept), n_records))
    assert len(kept) > MAX_BYTES // 61_000  # one full file, and what the newer one has
    for n in (1, 3, 20):
        assert numbers(journal, n) == kept[-n:]


def test_a_record_that_is_too_long_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(tmp_path)
    journal.append({"n": 1, "message": "x" * MAX_LINE_BYTES})
    journal.append({"n": 2, "message": "x" * (MAX_LINE_BYTES - 40)})
    assert numbers(journal) == [2]
    assert len(warnings(caplog)) == 1


def test_lines_that_are_no_records_are_left_out(tmp_path: Path) -> None:
    lines = [b'{"n": 1}', b"", b"null", b"[1]", b'{"n": ', b"\xff\xfe", b"[" * 100_000, b"9" * 10_000, bytes(100), b'{"n": 2}']
    (tmp_path / OLDER).write_bytes(b"\n".join(lines))
    (tmp_path / FILE).write_bytes(b'{"n": 3}\r\n')
    journal = Journal(tmp_path)
    assert numbers(journal) == [1, 2, 3]
    assert numbers(journal, 2) == [2, 3]


def test_a_line_that_was_cut_short_costs_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(tmp_path)
    journal.append({"n": 1})
    with files_no_longer_than((tmp_path / FILE).stat().st_size + 3):
        journal.append({"n": 2})
        journal.append({"n": 3})
        assert os.strerror(errno.EFBIG) in str(journal.problem)
    assert len(warnings(caplog)) == 1
    journal.append({"n": 4})
    assert numbers(journal) == [1, 4]
    assert journal.problem is None


def test_of_a_file_that_is_too_long_only_the_end_is_read(tmp_path: Path) -> None:
    line = json.dumps({"n": 0, "inner": {"n": -1}}) + "\n"
    (tmp_path / FILE).write_text(line * (2 * MAX_BYTES // len(line)) + '{"n": 1}\n')
    journal = Journal(tmp_path)
    found = numbers(journal)
    assert found[-2:] == [0, 1]
    assert MAX_BYTES - 2 * len(line) < len(found) * len(line) <= MAX_BYTES + len(line)
    journal.append({"n": 2})
    assert numbers(journal, 2) == [1, 2]
    assert (tmp_path / FILE).read_bytes() == b'{"n": 2}\n'


@pytest.mark.parametrize("name", [FILE, OLDER])
@pytest.mark.parametrize("kind", ["directory", "pipe", "link", "no folder"])
def test_what_stands_in_the_way_harms_nobody(tmp_path: Path, name: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    folder, precious = tmp_path / "state", tmp_path / "precious"
    folder.mkdir()
    precious.write_text("stays")
    journal = Journal(folder)
    if kind == "directory":
        (folder / name).mkdir()
    elif kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "link":
        (folder / name).symlink_to(precious)
    else:
        shutil.rmtree(folder)
    for n in range(3):
        journal.append({"n": n})
    writable = name == OLDER and kind != "no folder"
    assert numbers(journal) == ([0, 1, 2] if writable else [])
    assert (journal.problem is None) == writable
    assert len(warnings(caplog)) == (0 if writable else 1)
    assert precious.read_text() == "stays"


def test_a_reader_never_sees_a_record_twice_or_half(tmp_path: Path) -> None:
    """Also not while the files change places."""
    journal = Journal(tmp_path)
    written = threading.Event()

    def write() -> None:
        try:
            for n in range(400):
                journal.append({"n": n, "padding": "x" * 20_000})
        finally:
            written.set()

    def read() -> None:
        while not written.is_set():
            found = numbers(journal, 60)
            assert found == list(range(found[0], found[0] + len(found))) if found else True

    with ThreadPoolExecutor() as pool:
        for job in [pool.submit(write), pool.submit(read), pool.submit(read)]:
            job.result(timeout=60)
