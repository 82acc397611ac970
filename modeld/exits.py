"""What does the process end with? The exit statuses of all commands; docs/command-line.md has the table."""

from __future__ import annotations

OK = 0
FAILED = 1  # it was done and failed, or the daemon refuses it for a reason that waiting does not change
USAGE = 2  # argparse's own
UNREACHABLE = 3  # no daemon answered: nobody listens, no name, TLS, time, not modeld, the connection ended
NOT_NOW = 4  # the daemon cannot do it now: no model answers, the queue is full, a cooldown; later it may
DENIED = 5  # no key, an unknown one, or one whose scope is not enough
CUT = 6  # somebody else ended it: an op was cancelled or superseded, an answer cut by a switch or by the daemon's stop
RUNS_ON = 7  # the time to wait is over; the op goes on
CONFIG = 78  # sysexits.h, EX_CONFIG
INTERRUPTED = 130  # as the shell says it of SIGINT
