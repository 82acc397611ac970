"""Do the limits of the process carry what is configured? Descriptors, threads, locked memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from modeld.descriptors import OWN
from modeld.doctor import procfs
from modeld.doctor.procfs import Limit, Roots
from modeld.doctor.report import Fact, Finding, note, ok, problem, size, warning
from modeld.httpapi.limits import Limits
from modeld.llm.footprint import Footprint
from modeld.types import ModelSpec

REFUSALS = Limits().refusals
THREADS_OWN = 64  # of the daemon beside connections: accept, switch, engine, tokenize, log, and those that compute


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose limits: of a process that runs, and what systemd would give the service where that is not running."""

    pid: str  # of the daemon, or `self`
    whose: str  # for people
    is_daemon: bool = False
    unit_limits: Mapping[str, Limit] | None = None  # by the names of /proc/PID/limits
    is_root: bool = False  # the daemon is, or would be, root's


def wanted_threads(max_connections: int) -> int:
    """Each connection has one."""
    return max_connections + REFUSALS + THREADS_OWN


def findings(
    roots: Roots,
    subject: Subject,
    max_connections: int,
    specs: Sequence[ModelSpec],
    needs: Mapping[str, Footprint | None],
) -> Iterator[Finding]:
    limits = dict(procfs.limits(roots.proc, subject.pid))
    if subject.unit_limits is not None and not subject.is_daemon:
        limits.update(subject.unit_limits)
    if not limits:
        yield note("limits_unknown", f"the limits of {subject.whose} cannot be read from {roots.proc}")
    else:
        yield from _descriptors(limits.get("Max open files"), subject, max_connections)
        yield from _locked(roots, limits.get("Max locked memory"), subject, specs, needs)
    yield from _threads(roots, limits.get("Max processes"), subject, wanted_threads(max_connections))


def _descriptors(limit: Limit | None, subject: Subject, max_connections: int) -> Iterator[Finding]:
    if limit is None:
        return
    needed = max_connections + REFUSALS + OWN
    facts: dict[str, Fact] = {"hard": limit.hard, "needed": needed}
    if limit.hard is not None and limit.hard < needed:
        served = max(1, limit.hard - REFUSALS - OWN)
        yield problem(
            "descriptors_few",
            f"{limit.hard} descriptors at most for {subject.whose} (RLIMIT_NOFILE): max_connections {max_connections} needs "
            f"{needed}, so {served} are served at once",
            f"LimitNOFILE={needed} or more in the unit, `ulimit -Hn {needed}` in the shell, or a smaller server.max_connections",
            more=facts,
        )
    else:
        most = "any number of" if limit.hard is None else limit.hard
        found = f"{most} descriptors for {subject.whose}; max_connections {max_connections} needs {needed}"
        yield ok("descriptors", found, more=facts)


def _threads(roots: Roots, limit: Limit | None, subject: Subject, needed: int) -> Iterator[Finding]:
    """Root is not held to RLIMIT_NPROC; everybody is to pids.max."""
    bounds: list[tuple[int, str, str]] = []
    if limit is not None and limit.soft is not None and not subject.is_root:
        bounds.append((limit.soft, "RLIMIT_NPROC", "LimitNPROC= in the unit, or `ulimit -u` in the shell"))
    _, groups = procfs.groups(roots.proc, subject.pid, "pids")
    for group in groups:
        if (most := procfs.number(group.folder / "pids.max")) is not None:
            used = 0 if subject.is_daemon else procfs.number(group.folder / "pids.current") or 0
            bounds.append((most - used, f"pids.max of cgroup {group.name}", "TasksMax=, or the container's pids limit"))
    for name in ("threads-max", "pid_max"):
        if (most := procfs.number(roots.proc / "sys" / "kernel" / name)) is not None:
            bounds += [(most, f"kernel.{name}", f"sysctl kernel.{name}")]
    if subject.unit_limits is not None and not subject.is_daemon and (tasks := subject.unit_limits.get("TasksMax")) is not None:
        bounds = [bound for bound in bounds if not bound[1].startswith("pids.max")]
        if tasks.hard is not None:
            bounds.append((tasks.hard, "TasksMax of the unit", "TasksMax= in the unit"))
    if not bounds:
        return
    least, source, how = min(bounds)
    if least < needed:
        yield problem(
            "threads_few",
            f"{max(0, least)} more threads for {subject.whose} ({source}): each connection has one, {needed} may be needed",
            f"raise it ({how}), or take a smaller server.max_connections",
            most=least,
            needed=needed,
        )
    else:
        yield ok("threads", f"{least} threads for {subject.whose} ({source}); {needed} may be needed", most=least, needed=needed)


def _locked(
    roots: Roots, limit: Limit | None, subject: Subject, specs: Sequence[ModelSpec], needs: Mapping[str, Footprint | None]
) -> Iterator[Finding]:
    locking = [spec for spec in specs if spec.load_mode == "mlock"]
    if not locking or limit is None:
        return
    # A daemon under the unit has no capabilities, whoever starts it; one that is started here has those of this process.
    exempt = subject.unit_limits is None and procfs.has_capability(roots.proc, subject.pid, procfs.CAP_IPC_LOCK)
    for spec in locking:
        footprint = needs.get(spec.id)
        if limit.soft is None or exempt:
            why = "CAP_IPC_LOCK" if limit.soft is not None else "no limit"
            yield ok("mlock", f"{subject.whose} may lock its weights in memory ({why})", about=spec.id)
        elif footprint is None:
            yield warning(
                "mlock_unknown",
                f"{subject.whose} may lock {size(limit.soft)} (RLIMIT_MEMLOCK); how large its weights are is not known",
                "LimitMEMLOCK=infinity in the unit",
                about=spec.id,
            )
        elif footprint.weights_bytes > limit.soft:
            yield problem(
                "mlock_limit",
                f"load_mode is mlock with {size(footprint.weights_bytes)} of weights, and {subject.whose} may lock "
                f"{size(limit.soft)} (RLIMIT_MEMLOCK): the rest is not locked, and the log says so with each load",
                "LimitMEMLOCK=infinity in the unit (the shipped one has it), `ulimit -l unlimited` in the shell, "
                "--ulimit memlock=-1 for a container; or load_mode: auto",
                about=spec.id,
                limit_bytes=limit.soft,
                needed_bytes=footprint.weights_bytes,
            )
        else:
            yield ok("mlock", f"{subject.whose} may lock {size(limit.soft)}; its weights fit", about=spec.id)
