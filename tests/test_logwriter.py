"""A log whose reader stalls, leaves or has no room stops nobody who logs; what is lost is counted."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modeld import logwriter
from modeld.logs import JsonFormatter
from modeld.logwriter import N_LINES, LogWriter

DEADLINE_S = 10.0


class Pipe:
    """A pipe of one page, and who reads it when the test says."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, 4096)

    def read_all(self) -> list[dict[str, object]]:
        """Every line until the writing end is closed."""
        with os.fdopen(self.reader, "rb") as file:
            return [json.loads(line) for line in file]


@pytest.fixture
def pipe() -> Pipe:
    return Pipe()


@pytest.fixture
def writer(pipe: Pipe) -> Iterator[LogWriter]:
    writer = LogWriter(pipe.writer)
    writer.setFormatter(JsonFormatter())
    yield writer
    writer.close()


def line(text: str) -> logging.LogRecord:
    return logging.makeLogRecord({"name": "modeld.test", "levelno": logging.INFO, "levelname": "INFO", "msg": text})


def log(writer: LogWriter, n: int) -> None:
    for i in range(n):
        writer.handle(line(f"line {i}"))


def closed(pipe: Pipe, writer: LogWriter) -> list[dict[str, object]]:
    """What the reader gets when the log ends."""
    lines: list[dict[str, object]] = []
    reader = threading.Thread(target=lambda: lines.extend(pipe.read_all()))
    reader.start()
    writer.close()
    os.close(pipe.writer)
    reader.join(DEADLINE_S)
    assert not reader.is_alive()
    return lines


def test_the_last_lines_are_out_when_it_is_closed(pipe: Pipe, writer: LogWriter) -> None:
    log(writer, 1000)
    assert [said["msg"] for said in closed(pipe, writer)] == [f"line {i}" for i in range(1000)]
    assert writer.n_dropped == 0


def test_a_reader_who_stalls_holds_up_nobody_and_hears_what_was_lost(pipe: Pipe, writer: LogWriter) -> None:
    started = time.monotonic()
    log(writer, 2 * N_LINES)
    assert time.monotonic() - started < DEADLINE_S
    n_dropped = writer.n_dropped
    assert 0 < n_dropped <= N_LINES
    lines = closed(pipe, writer)
    assert sum(said["msg"] != "log lines were dropped" for said in lines) == 2 * N_LINES - n_dropped
    assert sum(int(str(said["lines"])) for said in lines if said["msg"] == "log lines were dropped") == n_dropped


def test_a_reader_who_never_comes_back_does_not_hold_up_the_end(pipe: Pipe, writer: LogWriter, monkeypatch) -> None:
    monkeypatch.setattr(logwriter, "CLOSE_S", 0.1)
    log(writer, 500)
    started = time.monotonic()
    writer.close()
    writer.close()
    assert time.monotonic() - started < 5.0
    closed(pipe, writer)  # the thread ends, too


def test_a_reader_who_has_gone_costs_the_lines_alone(pipe: Pipe, writer: LogWriter) -> None:
    os.close(pipe.reader)
    log(writer, 10)
    writer.close()
    os.close(pipe.writer)
    assert writer.n_dropped == 10


def test_a_full_disk_costs_the_lines_alone() -> None:
    with Path("/dev/full").open("wb") as full:
        writer = LogWriter(full.fileno())
        writer.setFormatter(JsonFormatter())
        log(writer, 10)
        writer.close()
        assert writer.n_dropped == 10


def test_a_disk_that_was_full_for_long_has_the_number_of_all_lost_lines(
    pipe: Pipe, writer: LogWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = threading.Semaphore(0)

    def full(_fd: int, _data: bytes) -> int:
        tried.release()
        return 0

    write_all = logwriter.write_all
    monkeypatch.setattr(logwriter, "write_all", full)
    for _ in range(3):
        log(writer, 1)
        assert tried.acquire(timeout=DEADLINE_S)
    monkeypatch.setattr(logwriter, "write_all", write_all)
    log(writer, 1)
    lines = closed(pipe, writer)
    assert writer.n_dropped == 3
    assert [said.get("lines") for said in lines if said["msg"] == "log lines were dropped"] == [3]


def test_a_line_that_a_full_disk_has_cut_spoils_no_other(pipe: Pipe, writer: LogWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    n_left, write, tried = [100], os.write, threading.Semaphore(0)

    def fills(fd: int, data: memoryview) -> int:
        if not n_left[0]:
            tried.release()
            raise OSError(errno.ENOSPC, "no space left")
        n_written = write(fd, data[: n_left[0]])
        n_left[0] -= n_written
        return n_written

    monkeypatch.setattr(os, "write", fills)
    log(writer, 1)
    log(writer, 1)
    assert tried.acquire(timeout=DEADLINE_S)
    monkeypatch.undo()
    writer.handle(line("whole"))
    writer.close()
    os.close(pipe.writer)
    with os.fdopen(pipe.reader, "rb") as file:
        written = file.read().splitlines()
    said = []
    for each in written:
        with contextlib.suppress(ValueError):
            said.append(json.loads(each)["msg"])
    assert said[-2:] == ["whole", "log lines were dropped"]
    assert len(said) < len(written)  # there was a torn one


def test_a_loss_with_no_line_behind_it_is_told_at_the_end(pipe: Pipe, writer: LogWriter) -> None:
    broken = line("%d")
    broken.args = ("secret",)
    writer.handle(broken)
    assert [said["lines"] for said in closed(pipe, writer)] == [1]


def test_a_line_that_cannot_be_made_costs_that_line_alone(pipe: Pipe, writer: LogWriter) -> None:
    broken = line("%d")
    broken.args = ("secret",)
    writer.handle(broken)
    writer.handle(line("whole"))
    lines = closed(pipe, writer)
    assert [said["msg"] for said in lines] == ["whole", "log lines were dropped"]
    assert "secret" not in str(lines)


def test_a_descriptor_that_does_not_wait_is_waited_for(pipe: Pipe, writer: LogWriter) -> None:
    os.set_blocking(pipe.writer, False)
    log(writer, 1000)
    assert len(closed(pipe, writer)) == 1000


def test_what_is_logged_after_the_end_is_counted(pipe: Pipe, writer: LogWriter) -> None:
    assert closed(pipe, writer) == []
    log(writer, 3)
    assert writer.n_dropped == 3
