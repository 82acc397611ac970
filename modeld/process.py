"""What does this process take of its machine? ProcessFigures, under the names that all of Prometheus' libraries use.

Read from /proc at each scrape; what cannot be read there is left out.
"""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

from modeld.metrics import Family, counter, gauge

_PROC = Path("/proc/self")


class ProcessFigures:
    """A collector."""

    def __init__(self, proc: Path = _PROC) -> None:
        self._proc = proc
        self._started_at = self._start_time()

    def __call__(self) -> Iterator[Family]:
        times = os.times()
        yield counter("process_cpu_seconds", "Time on processors, the system's for it included.", times.user + times.system)
        yield gauge("process_start_time_seconds", "When the process started, since the epoch.", self._started_at)
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        yield gauge("process_max_fds", "Descriptors that may be open.", math.inf if limit == resource.RLIM_INFINITY else limit)
        try:
            pages = (self._proc / "statm").read_text().split()
            page_bytes = os.sysconf("SC_PAGE_SIZE")
            yield gauge("process_virtual_memory_bytes", "Addresses in use.", int(pages[0]) * page_bytes)
            yield gauge("process_resident_memory_bytes", "Memory in use, mapped files included.", int(pages[1]) * page_bytes)
            own_bytes = (int(pages[1]) - int(pages[2])) * page_bytes
            yield gauge("modeld_resident_anonymous_bytes", "Memory in use that is no file's.", own_bytes)
            yield gauge("process_threads", "Threads.", sum(1 for _ in (self._proc / "task").iterdir()))
            # One is the listing's own.
            yield gauge("process_open_fds", "Descriptors that are open.", sum(1 for _ in (self._proc / "fd").iterdir()) - 1)
        except (OSError, ValueError, IndexError):
            return

    def _start_time(self) -> float:
        """To the tick where /proc tells it, else now."""
        try:
            after_name = (self._proc / "stat").read_text().rpartition(")")[2].split()
            ticks = int(after_name[19])  # proc(5): field 22, of which the first two are gone
            return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError):
            return time.time()
