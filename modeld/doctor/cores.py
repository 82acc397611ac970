"""What can compute here? The processor, the cores that a daemon may use and how many of them, and what slows them down."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from modeld.doctor import procfs
from modeld.doctor.procfs import Roots
from modeld.doctor.report import Finding, note, ok, warning
from modeld.llm.stamp import cpu_flags
from modeld.types import ModelSpec

BUSY = 0.5  # of the cores are taken by others: a measured speed says little
STOLEN = 0.02
THROTTLED = 0.05  # of the periods
DYNAMIC_DRIVERS = ("intel_pstate", "amd-pstate-epp")  # whose governor `powersave` is the usual one and goes up under load
# A few words for the many that cpuinfo has: what the kernels of ggml are chosen by.
X86_KINDS = (
    ("amx_int8", "AMX"), ("avx512_vnni", "AVX-512 with VNNI"), ("avx512f", "AVX-512"), ("avx_vnni", "AVX-VNNI"), ("avx2", "AVX2"),
    ("fma", "FMA"), ("f16c", "F16C"),
)  # fmt: skip
ARM_KINDS = (("sve", "SVE"), ("i8mm", "I8MM"), ("asimddp", "dot product"), ("asimdhp", "half precision"), ("asimd", "NEON"))


def processor(roots: Roots) -> Iterator[Finding]:
    cpuinfo = roots.proc / "cpuinfo"
    fields = procfs.fields(cpuinfo)
    flags = cpu_flags(cpuinfo)
    if not flags:
        yield note("processor_unknown", f"{cpuinfo} names no instructions: what the processor can is not known here")
        return
    words = set(fields.get("flags", fields.get("Features", "")).split())
    kinds = [kind for word, kind in (*X86_KINDS, *ARM_KINDS) if word in words]
    name = fields.get("model name") or _arm_name(fields) or "a processor without a name"
    yield ok(
        "processor",
        f"{name}: {', '.join(kinds) or 'no instructions that ggml has kernels for'}"
        + (", in a virtual machine" if "hypervisor" in words else ""),
        name=name,
        flags=flags,
    )


def _arm_name(fields: dict[str, str]) -> str | None:
    """arm64's cpuinfo has numbers: MIDR_EL1's parts."""
    if "CPU implementer" not in fields:
        return None
    return f"an arm64 processor (implementer {fields['CPU implementer'][:10]}, part {fields.get('CPU part', 'unknown')[:10]})"


def cores(roots: Roots, pid: str, models: Sequence[ModelSpec], *, is_daemon: bool) -> Iterator[Finding]:
    """`pid`: of the daemon that runs, or `self`."""
    whose = f"the daemon (pid {pid})" if is_daemon else "a process that is started like this one"
    online = procfs.cpu_list(procfs.text(roots.sys / "devices" / "system" / "cpu" / "online"))
    allowed = procfs.cpu_list(procfs.fields(roots.proc / pid / "status").get("Cpus_allowed_list"))
    version, quota, group = cpu_quota(roots.proc, pid)
    n_allowed = len(allowed) or len(online)
    if not n_allowed:
        yield note("cores_unknown", "neither /proc nor /sys tell how many cores there are")
        return
    n_usable = n_allowed if quota is None else min(n_allowed, max(1, math.ceil(quota)))
    yield ok(
        "cores",
        f"{n_usable} compute threads for {whose}: {len(online) or 'unknown'} cores are online, {n_allowed} allowed"
        + (f", {quota:.2f} by the quota of cgroup {group}" if quota is not None else ", no quota"),
        online=len(online),
        allowed=n_allowed,
        quota=quota,
        usable=n_usable,
    )
    if quota is not None and version == 1:
        yield warning(
            "quota_v1",
            f"cgroup {group} (version 1) allows {quota:.2f} cores; modeld reads quotas of version 2 only and would start "
            f"{n_allowed} threads, which are stopped together when the quota is used up",
            f"set n_threads: {max(1, math.floor(quota))} for each model, or boot with cgroup v2",
            quota=quota,
        )
    elif quota is not None and quota < n_allowed:
        yield note(
            "quota",
            f"cgroup {group} allows {quota:.2f} of {n_allowed} cores: {n_usable} threads compute and are not bound to cores",
            "a cpuset (AllowedCPUs=, --cpuset-cpus) gives whole cores and steadier times than a quota",
            quota=quota,
        )
    yield from _throttling(roots.proc, pid)
    for spec in models:
        if spec.n_threads > n_usable:
            yield warning(
                "threads_over",
                f"n_threads is {spec.n_threads}, {n_usable} cores can be used: {n_usable} threads compute",
                f"set n_threads: {n_usable}, or 0 for as many as there are",
                about=spec.id,
                n_threads=spec.n_threads,
                usable=n_usable,
            )
    yield from _numa(roots.sys, allowed)
    yield from _governor(roots.sys, allowed or online)
    yield from _load(roots.proc, len(online) or n_allowed)


def cpu_quota(proc: Path, pid: str) -> tuple[int, float | None, str]:
    """The cgroup version, the least quota on the way up in cores (None: no limit), and the group that has it."""
    version, groups = procfs.groups(proc, pid, "cpu")
    least: tuple[float, str] | None = None
    for group in groups:
        if version == 2:
            quota, _, period = (procfs.text(group.folder / "cpu.max") or "").partition(" ")
        else:
            quota = procfs.text(group.folder / "cpu.cfs_quota_us") or ""
            period = procfs.text(group.folder / "cpu.cfs_period_us") or ""
        n_quota, n_period = procfs.whole(quota), procfs.whole(period)
        if n_quota is None or n_period is None or n_quota <= 0 or n_period <= 0:
            continue  # "max", -1
        if least is None or n_quota / n_period < least[0]:
            least = n_quota / n_period, group.name
    return (version, *least) if least is not None else (version, None, "")


def _throttling(proc: Path, pid: str) -> Iterator[Finding]:
    _, groups = procfs.groups(proc, pid, "cpu")
    for group in groups:
        stat = procfs.table(group.folder / "cpu.stat")
        periods, throttled = stat.get("nr_periods", 0), stat.get("nr_throttled", 0)
        if periods > 0 and throttled / periods > THROTTLED:
            yield warning(
                "throttled",
                f"cgroup {group.name} was stopped by its quota in {throttled} of {periods} periods ({throttled / periods:.0%})",
                "raise the quota, or give the models fewer n_threads",
                periods=periods,
                throttled=throttled,
            )


def _numa(sys: Path, allowed: Sequence[int]) -> Iterator[Finding]:
    nodes = {}
    for folder in sorted((sys / "devices" / "system" / "node").glob("node[0-9]*")):
        cpus = procfs.cpu_list(procfs.text(folder / "cpulist"))
        match = re.search(r"MemTotal:\s*([0-9]{1,18}) kB", procfs.text(folder / "meminfo") or "")
        if match and int(match[1]):
            nodes[folder.name] = (cpus, int(match[1]) << 10)
    if len(nodes) < 2:
        return
    used = [name for name, (cpus, _) in nodes.items() if not allowed or set(cpus) & set(allowed)]
    shares = ", ".join(f"{name}: {len(cpus)} cores, {total / (1 << 30):.0f} GiB" for name, (cpus, total) in nodes.items())
    advice = "a model that fits into one node is faster when it stays there: numactl --cpunodebind=0 --membind=0, or in the unit "
    yield note(
        "numa",
        f"{len(nodes)} NUMA nodes ({shares}), of which {len(used)} may be used",
        advice + "AllowedCPUs= with NUMAPolicy=bind and NUMAMask=" if len(used) > 1 else "",
        nodes=len(nodes),
        used=len(used),
    )


def _governor(sys: Path, used: Sequence[int]) -> Iterator[Finding]:
    governors: Counter[str] = Counter()
    slow = 0
    for core in used:
        folder = sys / "devices" / "system" / "cpu" / f"cpu{core}" / "cpufreq"
        governor = procfs.text(folder / "scaling_governor")
        if governor is None:
            continue
        governors[governor[:20]] += 1
        dynamic = procfs.text(folder / "scaling_driver") in DYNAMIC_DRIVERS
        preference = procfs.text(folder / "energy_performance_preference")
        slow += preference == "power" if dynamic else governor == "powersave"
    if not governors:
        return  # a virtual machine has none
    found = ", ".join(f"{name} on {n}" for name, n in governors.items())
    if slow:
        yield warning(
            "governor",
            f"the clock is held down to save power on {slow} of {governors.total()} cores (cpufreq: {found})",
            "cpupower frequency-set -g performance, or write it to /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
            slow=slow,
        )
    else:
        yield ok("governor_ok", f"cpufreq: {found} cores", governors=dict(governors))


def _load(proc: Path, n_cores: int) -> Iterator[Finding]:
    words = (procfs.text(proc / "loadavg") or "").split()
    try:
        load = float(words[0])
    except (IndexError, ValueError):
        return
    if 0 <= load < math.inf and load > BUSY * n_cores:
        yield note(
            "load",
            f"{load:.1f} processes wanted {n_cores} cores in the last minute: speeds that are measured now are lower than usual",
            "a model computes on all its cores at once and waits for the slowest: leave it cores of its own (AllowedCPUs=)",
            load=load,
        )
    cpu = next((line.split()[1:] for line in procfs.lines(proc / "stat") if line.startswith("cpu ")), [])
    times = [value for word in cpu[:8] if (value := procfs.whole(word)) is not None]
    if len(times) == 8 and sum(times) > 0 and times[7] / sum(times) > STOLEN:
        yield note(
            "stolen",
            f"the host of this virtual machine kept {times[7] / sum(times):.1%} of its time since it started (steal)",
            "the cores are shared with others: bound compute threads wait for each other at each step; ask for cores of its own",
            share=round(times[7] / sum(times), 4),
        )
