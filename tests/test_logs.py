"""A log line is one line, whatever it carries."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from modeld.logs import JournalFormatter, JsonFormatter, TextFormatter, configure, is_journal, set_level


def record(message: str, *args: object, exc_info: Any = None, **extra: object) -> logging.LogRecord:
    logger = logging.getLogger("modeld.switch")
    return logger.makeRecord(logger.name, logging.INFO, __file__, 1, message, args, exc_info, extra=extra)


def test_json_carries_level_logger_message_and_extra() -> None:
    line = json.loads(JsonFormatter().format(record("model %s", "ready", op_id="op-1", ms=12.5)))
    assert line["ts"].endswith("Z")
    del line["ts"]
    assert line == {"level": "info", "logger": "modeld.switch", "msg": "model ready", "op_id": "op-1", "ms": 12.5}


@pytest.mark.parametrize("hostile", ["a\nb", "\x1b[31mred", "\r", "\u2028", "\x00"])
def test_controls_never_reach_the_terminal(hostile: str) -> None:
    for formatter in (JsonFormatter(), TextFormatter()):
        line = formatter.format(record("got %s", hostile, target=hostile))
        assert line.isprintable(), line


def test_an_exception_is_part_of_the_line() -> None:
    try:
        raise KeyError("why")
    except KeyError:
        one = record("failed", exc_info=sys.exc_info())
    assert "KeyError: 'why'" in json.loads(JsonFormatter().format(one))["exception"]
    assert "KeyError: 'why'" in TextFormatter().format(one)


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """As it was, afterwards."""
    root = logging.getLogger()
    handlers, level, raises = root.handlers[:], root.level, logging.raiseExceptions
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = raises


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[IO[bytes]]:
    with (tmp_path / "log").open("w+b") as file:
        yield file


def logged(log_format: str, file: IO[bytes]) -> str:
    """What a line at level info, after one at debug, comes to."""
    writer = configure("info", log_format, file.fileno())
    logging.getLogger("modeld.test").debug("quiet")
    logging.getLogger("modeld.test").info("hello")
    writer.close()
    file.seek(0)
    [line] = file.read().decode().splitlines()
    return line


@pytest.mark.parametrize(("log_format", "start"), [("json", "{"), ("journal", "<6>{"), ("auto", "{")])
def test_the_format_is_json_where_no_terminal_reads(log_format: str, start: str, root, log_file: IO[bytes]) -> None:
    line = logged(log_format, log_file)
    assert line.startswith(start)
    assert json.loads(line[line.index("{") :])["msg"] == "hello"


def test_text_has_no_braces(root, log_file: IO[bytes]) -> None:
    assert logged("text", log_file).endswith("info    test    hello")


def test_a_descriptor_that_systemd_calls_the_journal_gets_priorities(root, log_file: IO[bytes], monkeypatch) -> None:
    facts = os.fstat(log_file.fileno())
    monkeypatch.setenv("JOURNAL_STREAM", f"{facts.st_dev}:{facts.st_ino}")
    assert logged("auto", log_file).startswith("<6>{")


@pytest.mark.parametrize("value", ["", "1:2", "x", "0:0", None])
def test_another_descriptor_is_not_the_journal(value: str | None, log_file: IO[bytes]) -> None:
    assert not is_journal(log_file.fileno(), {} if value is None else {"JOURNAL_STREAM": value})


@pytest.mark.parametrize(
    ("level", "priority"), [("DEBUG", 7), ("INFO", 6), ("WARNING", 4), ("ERROR", 3), ("CRITICAL", 2)]
)  # fmt: skip
def test_each_level_has_its_priority(level: str, priority: int) -> None:
    one = record("text")
    one.levelno, one.levelname = logging.getLevelNamesMapping()[level], level
    line = JournalFormatter().format(one)
    assert line.startswith(f"<{priority}>{{")
    assert json.loads(line[3:])["level"] == level.lower()


def test_another_level_holds_at_once(root, log_file: IO[bytes]) -> None:
    writer = configure("error", "json", log_file.fileno())
    logging.getLogger("modeld.test").info("quiet")
    set_level("info")
    logging.getLogger("modeld.test").info("loud")
    writer.close()
    log_file.seek(0)
    assert [json.loads(line)["msg"] for line in log_file] == ["loud"]
