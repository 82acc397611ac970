"""What does the process end with? The exit statuses of all commands."""

from __future__ import annotations

OK = 0
FAILED = 1
USAGE = 2  # argparse's own
CONFIG = 78  # sysexits.h, EX_CONFIG
INTERRUPTED = 130  # as the shell says it of SIGINT
