"""What does a file with keys hold, and may nobody else read it? For the daemon's key file and for a client's."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from modeld.errors import ConfigError
from modeld.printable import printable

MAX_BYTES = 64 << 10

_BY_OTHERS = stat.S_IROTH | stat.S_IWOTH


def shown(path: Path) -> str:
    """For a message."""
    text = str(path)
    return printable(text if len(text) <= 300 else f"...{text[-297:]}")


def check_private(path: Path, mode: int) -> None:
    """Raises ConfigError where any user of the host may read or write a file of that mode."""
    if mode & _BY_OTHERS:
        mode = stat.S_IMODE(mode)
        raise ConfigError(f"{shown(path)}: every user of this host may read or write it (mode {mode:04o}); chmod 640 or 600")


def read_private(path: Path, *, private: bool, expected: str) -> str:
    """The text of a file with keys, at most MAX_BYTES; what is not ASCII, in no key, is replaced.

    `private`: refuse a file that any user of the host may read or write. `expected`: what a message says it should hold.
    Raises ConfigError.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as opened:  # Path.open takes no opener
            mode = os.fstat(opened.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigError(f"{shown(path)}: expected a file with keys, found something else")
            if private:
                check_private(path, mode)
            data = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{shown(path)}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # a NUL in the path
        raise ConfigError(f"{shown(path)}: cannot be read: {error}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{shown(path)}: more than {MAX_BYTES} bytes; expected {expected}")
    return data.decode("ascii", errors="replace")


def _open_at_once(path: str, flags: int) -> int:
    """A pipe, too, which would hang the start until somebody writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)
