"""How many threads compute, and on which cores? What the affinity mask and the cgroup's quota leave to this process."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

from modeld.llm.libllama import GGML_MAX_N_THREADS

log = logging.getLogger("modeld.engine")


def usable_cores() -> list[int]:
    """The cores this process may run on, cut to what its CPU quota pays for; ascending, at least one."""
    try:
        cores = sorted(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = list(range(os.cpu_count() or 1))
    quota = _cgroup_quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    if quota is not None:
        cores = cores[: max(1, math.ceil(quota))]
    return [core for core in cores if core < GGML_MAX_N_THREADS] or [0]


def compute_cores(n_threads: int) -> list[int]:
    """The cores for `n_threads` compute threads, one each; 0 means all usable ones.

    More threads than cores only spin against each other, and ggml aborts when it cannot make one, so the number is
    clamped and the log says so.
    """
    cores = usable_cores()
    if n_threads > len(cores):
        log.warning(
            "n_threads: %d asked, %d cores are usable (affinity, cgroup quota): %d threads", n_threads, len(cores), len(cores)
        )
    return cores[: n_threads or len(cores)]


def _cgroup_quota(membership: Path, root: Path) -> float | None:
    """The smallest `cpu.max` on the way from the process's cgroup (v2) up to the root, in cores; None: no limit."""
    try:
        lines = membership.read_text("ascii", "replace").splitlines()
    except OSError:
        return None
    # cgroup v2 has the one line `0::/path` (Documentation/admin-guide/cgroup-v2.rst, "Processes")
    path = next((line[3:] for line in lines if line.startswith("0::")), None)
    if path is None:
        return None
    group, quotas = root / path.lstrip("/"), []
    while True:
        try:
            quota, period = (group / "cpu.max").read_text("ascii").split()
            if quota != "max":
                quotas.append(int(quota) / int(period))
        except (OSError, ValueError, ZeroDivisionError):
            pass  # the root has no such file, and a container may hide its parents
        if group == root or root not in group.parents:
            return min(quotas, default=None)
        group = group.parent
