"""What was asked for on the command line? Finds the command and runs it; arguments.py has what there is."""

from __future__ import annotations

import importlib

from modeld import exits
from modeld.arguments import COMMANDS, parser


def main(argv: list[str] | None = None) -> int:
    """The program. Exit status: exits.py; what each means for a command is in its manual."""
    args = parser().parse_args(argv)
    command = next(command for command in COMMANDS if command.name == args.command)
    module, _, function = command.run.partition(":")
    try:
        return int(getattr(importlib.import_module(module), function)(args))
    except KeyboardInterrupt:
        return exits.INTERRUPTED
