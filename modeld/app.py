"""What was asked for on the command line? Finds the command and runs it; arguments.py has what there is."""

from __future__ import annotations

import importlib
import sys

from modeld import exits, outputs
from modeld.arguments import COMMANDS, parser


def main(argv: list[str] | None = None) -> int:
    """The program. Exit status: exits.py; what each means for a command is in its manual."""
    outputs.open_closed()
    try:
        args = parser().parse_args(argv)
    except SystemExit:  # of --help and the like, too
        outputs.write(sys.stdout, "")
        raise
    command = next(command for command in COMMANDS if command.name == args.command)
    module, _, function = command.run.partition(":")
    try:
        return int(getattr(importlib.import_module(module), function)(args))
    except KeyboardInterrupt:
        return exits.INTERRUPTED
