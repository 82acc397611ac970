"""How is a process started that tries something? With this Python and this modeld, and nothing that users set for Python."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress

from modeld.llm import bundle

# Of the zip file that this runs from: opened when the library is chosen, so that a process which is started later has the modules
# that this one has, also where an upgrade has put another file into its place, or somebody has moved it.
_descriptors: tuple[int, ...] = ()

_PROGRAM = "import sys; sys.path.append(sys.argv[1]); from modeld.llm.{module} import main; main(sys.argv[2])"


def command(module: str, order: Mapping[str, object]) -> list[str]:
    """Runs `modeld.llm.<module>.main` with the order as JSON. It needs descriptors()."""
    place = next((f"/proc/self/fd/{number}" for number in _descriptors), os.fspath(bundle.PACKAGE.parent))
    return [python(), "-I", "-S", "-B", "-c", _PROGRAM.format(module=module), place, json.dumps(order)]


def hold() -> None:
    """From now on the modules stay what they are. Once; what cannot be opened is looked for by its name."""
    global _descriptors
    archive = bundle.zip_file()
    if archive is not None and not _descriptors:
        with suppress(OSError):
            _descriptors = (os.open(archive, os.O_RDONLY | os.O_CLOEXEC),)


def descriptors() -> tuple[int, ...]:
    """What a process that is started keeps open."""
    return _descriptors


def python() -> str:
    """What runs this. Python does not know by itself where it was started without a PATH, as by `env -i bin/modeld`."""
    if sys.executable:
        return sys.executable
    try:
        return os.readlink("/proc/self/exe")  # noqa: PTH115 - as text
    except OSError:  # no /proc
        return sys.executable
