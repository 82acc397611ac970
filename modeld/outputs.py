"""What if standard input, output or error is closed, unread, or on a full disk? No traceback, and a true exit status.

A command that is asked for an outcome goes on without its output: what becomes of a pipe says nothing about a switch.
"""

from __future__ import annotations

import os
import sys
from typing import TextIO

from modeld import exits


def open_closed() -> None:
    """Whatever of the descriptors 0, 1 and 2 is closed leads to /dev/null. Before anything else is opened.

    Else a socket or a file would get that number, and what a library or a child writes to standard error would go into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            opened = open(number, "w" if number else "r", encoding="utf-8", closefd=False)  # noqa: SIM115 - for good
            setattr(sys, name, opened)


def write(out: TextIO, text: str) -> int | None:
    """At once; what its encoding lacks, as an escape. None: it is written; else the exit status that this alone comes to.

    0: who read it has had enough. 1: it cannot be written, which is told on standard error. All that follows goes nowhere.
    """
    encoding = out.encoding or "utf-8"  # a StringIO has none
    try:
        out.write(text.encode(encoding, "backslashreplace").decode(encoding))
        out.flush()
    except BrokenPipeError:
        _forget(out)
        return exits.OK
    except OSError as error:
        _forget(out)
        tell(sys.stderr, f"standard output cannot be written: {error.strerror}")
        return exits.FAILED
    return None


def tell(err: TextIO, text: str) -> None:
    """As the program's own word. Where nobody can be told, the exit status is left."""
    try:
        err.write(f"modeld: {text}\n")
        err.flush()
    except OSError:
        _forget(err)


def _forget(out: TextIO) -> None:
    """What is left in the buffer would be written, and fail, once more when the interpreter ends: with status 120."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, out.fileno())
    os.close(nowhere)
