"""How many threads compute, and on which cores? What the affinity mask and the cgroup's quota leave to this process."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path

from modeld.llm.libllama import GGML_MAX_N_THREADS

log = logging.getLogger("modeld.engine")


@dataclass(frozen=True, slots=True)
class ComputePlan:
    """`n_threads` compute threads, each bound to one of as many `cores`; with `cores` empty the system places them."""

    n_threads: int
    cores: tuple[int, ...]


def compute_plan(n_threads: int, pinning: str) -> ComputePlan:
    """`n_threads`: 0 means the usable cores. `pinning`: auto, on or off.

    More threads than cores only spin against each other, and ggml aborts when it cannot make one, so the number is
    clamped and the log says so. `auto` binds when the threads take every core the process may run on: with fewer, the
    choice of cores would be a guess, and a second process that guesses alike computes on the same ones.
    """
    allowed = _allowed_cores()
    quota = _cgroup_quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    n_usable = len(allowed) if quota is None else min(len(allowed), max(1, math.ceil(quota)))
    if n_threads > n_usable:
        log.warning(
            "n_threads: %d asked, %d cores are usable (affinity, cgroup quota): %d threads", n_threads, n_usable, n_usable
        )
    n = min(n_threads or n_usable, n_usable)
    bound = pinning == "on" or (pinning == "auto" and n == len(allowed))
    return ComputePlan(n, tuple(allowed[:n]) if bound else ())


def _allowed_cores() -> list[int]:
    """The cores this process may run on; ascending, at least one."""
    try:
        cores = sorted(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = list(range(os.cpu_count() or 1))
    return [core for core in cores if core < GGML_MAX_N_THREADS] or [0]


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
