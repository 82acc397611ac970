"""A log line is one line, whatever it carries."""

from __future__ import annotations

import io
import json
import logging
import sys
from typing import Any

import pytest

from modeld.logs import JsonFormatter, TextFormatter, configure


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


@pytest.mark.parametrize(("log_format", "is_json"), [("json", True), ("text", False), (None, True)])
def test_the_format_is_json_where_no_terminal_reads(log_format: str | None, is_json: bool) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    try:
        configure("info", log_format, stream)
        logging.getLogger("modeld.test").info("hello")
        logging.getLogger("modeld.test").debug("quiet")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert stream.getvalue().startswith("{") == is_json
    assert len(stream.getvalue().splitlines()) == 1
