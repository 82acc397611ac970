"""How is a process started that tries something? With this Python and this modeld, and nothing that users set for Python."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping

from modeld.llm import bundle

_PROGRAM = "import sys; sys.path.append(sys.argv[1]); from modeld.llm.{module} import main; main(sys.argv[2])"


def command(module: str, order: Mapping[str, object]) -> list[str]:
    """Runs `modeld.llm.<module>.main` with the order as JSON."""
    program = _PROGRAM.format(module=module)
    return [python(), "-I", "-S", "-B", "-c", program, os.fspath(bundle.PACKAGE.parent), json.dumps(order)]


def python() -> str:
    """What runs this. Python does not know by itself where it was started without a PATH, as by `env -i bin/modeld`."""
    if sys.executable:
        return sys.executable
    try:
        return os.readlink("/proc/self/exe")  # noqa: PTH115 - as text
    except OSError:  # no /proc
        return sys.executable
