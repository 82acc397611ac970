"""How many connections do the process's descriptors carry? Raised to what is configured, else fewer connections.

A connection is a descriptor. Whatever clients do, a switch (model files, the pipes of the process that tries one), a reload
and the state file must still get theirs: so connections never take the last ones.
"""

from __future__ import annotations

import logging
import resource

log = logging.getLogger("modeld")

# Of the daemon itself: 11 at rest, 15 and more in a switch (counted in /proc/PID/fd), and some to spare.
OWN = 32


def connections_that_fit(wanted: int, extra: int) -> int:
    """`wanted`, or as many as the hard limit of descriptors leaves; at least one. `extra`: connections beyond, for a moment."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + extra + OWN
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return wanted
    if hard == resource.RLIM_INFINITY or needed <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        return wanted
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    fitting = max(1, hard - extra - OWN)
    log.warning("%d descriptors (RLIMIT_NOFILE) are too few for max_connections %d: serving %d at once", hard, wanted, fitting)
    return fitting
