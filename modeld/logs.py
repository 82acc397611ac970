"""How does a log line look? Text for a person at a terminal, one JSON object a line for everybody else."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping

from modeld.logwriter import LogWriter

# What a LogRecord carries by itself; every other attribute came in through `extra`.
_STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}

# sd-daemon(3): what stands before a line is its priority, which the journal takes off (SyslogLevelPrefix=, on by default).
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_PRIORITY_DEBUG = 7


def configure(level: str, log_format: str, fd: int) -> LogWriter:
    """Send the log to `fd`, as `log_format` says, by a writer that the caller closes.

    `auto`: text on a terminal, `journal` where the descriptor is the journal's, JSON elsewhere.
    """
    if log_format == "auto":
        log_format = "text" if os.isatty(fd) else "journal" if is_journal(fd, os.environ) else "json"
    writer = LogWriter(fd)
    writer.setFormatter({"text": TextFormatter, "json": JsonFormatter, "journal": JournalFormatter}[log_format]())
    root = logging.getLogger()
    root.handlers[:] = [writer]
    logging.raiseExceptions = False  # a line that cannot be made is counted; a traceback in its place would quote it
    set_level(level)
    return writer


def standard_error() -> int:
    """The descriptor to log to. Somebody may have started us without one: its number goes to whatever is opened next then."""
    return sys.stderr.fileno() if sys.stderr is not None else os.open(os.devnull, os.O_WRONLY)


def set_level(level: str) -> None:
    """Another least severity, from now on."""
    logging.getLogger().setLevel(level.upper())


def is_journal(fd: int, environ: Mapping[str, str]) -> bool:
    """Whether what is written to fd goes to the journal: systemd says by device and inode which descriptor does."""
    facts = os.fstat(fd)
    return environ.get("JOURNAL_STREAM") == f"{facts.st_dev}:{facts.st_ino}"


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


class JournalFormatter(JsonFormatter):
    """As JSON, after `<N>`."""

    def format(self, record: logging.LogRecord) -> str:
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), _PRIORITY_DEBUG)
        return f"<{priority}>{super().format(record)}"


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
