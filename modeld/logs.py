"""How does a log line look? Text for a person at a terminal, one JSON object a line for everybody else."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TextIO

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")

# What a LogRecord carries by itself; every other attribute came in through `extra`.
_STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}


def configure(level: str, log_format: str | None, stream: TextIO | None = None) -> None:
    """Send the log to `stream` (stderr), as `log_format` says; None: text on a terminal, JSON elsewhere."""
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    as_text = log_format == "text" or (log_format is None and stream.isatty())
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level(level)


def set_level(level: str) -> None:
    """Another least severity, from now on."""
    logging.getLogger().setLevel(level.upper())


class JsonFormatter(logging.Formatter):
    """`{"ts", "level", "logger", "msg", ...extra}`; a traceback is one string under "exception"."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "ts": _timestamp(record, "%Y-%m-%dT%H:%M:%S") + "Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        line.update((key, value) for key, value in _extra(record).items() if key not in line)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # ASCII only: whatever a model file or a client put into it, the line stays one line in any terminal or journal.
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """`12:00:01.123 info  switch  model ready  op_id=... ms=...`, controls escaped."""

    def format(self, record: logging.LogRecord) -> str:
        logger = record.name.removeprefix("modeld.")
        extra = "".join(f"  {key}={value}" for key, value in _extra(record).items())
        text = f"{record.getMessage()}{extra}"
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
        line = f"{_timestamp(record, '%H:%M:%S')} {record.levelname.lower():<7} {logger:<7} {text}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _timestamp(record: logging.LogRecord, layout: str) -> str:
    """UTC, with milliseconds."""
    return f"{time.strftime(layout, time.gmtime(record.created))}.{int(record.msecs):03d}"
