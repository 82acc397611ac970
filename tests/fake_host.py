"""Made-up trees of /proc and /sys: a host with cgroup v1 or v2, quotas, arm64, huge numbers or garbage."""

from __future__ import annotations

from pathlib import Path

from modeld.doctor.procfs import Roots

GIB = 1 << 30

STATUS = "Name:\tpython\nUid:\t1000\t1000\t1000\t1000\nCapEff:\t0000000000000000\nCpus_allowed_list:\t0-7\nVmRSS:\t  204800 kB\n"
LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units
Max processes             63000                63000                processes
Max open files            1024                 524288               files
Max locked memory         8388608              8388608              bytes
"""
X86 = "processor\t: 0\nmodel name\t: Made-up CPU\nflags\t\t: fpu sse4_2 avx avx2 fma f16c avx512f avx512_vnni hypervisor\n"
ARM64 = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm sve\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"
MEMINFO = "MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\nSwapTotal:             0 kB\nSwapFree:              0 kB\n"

PLAIN = {
    "proc/self/status": STATUS,
    "proc/self/limits": LIMITS,
    "proc/self/cgroup": "0::/\n",
    "proc/self/mountinfo": "",
    "proc/cpuinfo": X86,
    "proc/meminfo": MEMINFO,
    "proc/loadavg": "0.10 0.20 0.30 1/100 4711\n",
    "proc/stat": "cpu  1000 0 500 90000 10 0 5 0 0 0\n",
    "proc/sys/kernel/threads-max": "127000\n",
    "proc/sys/kernel/pid_max": "4194304\n",
    "proc/sys/vm/overcommit_memory": "0\n",
    "proc/sys/vm/max_map_count": "65530\n",
    "sys/devices/system/cpu/online": "0-7\n",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
}


def host(folder: Path, **changed: str | None) -> Roots:
    """A healthy host of 8 cores and 16 GiB; `changed` by the names of `PLAIN` (None: not there), or other files."""
    return made(folder, {**PLAIN, **changed})


def made(folder: Path, files: dict[str, str | None]) -> Roots:
    for name, text in files.items():
        if text is not None:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return Roots(folder / "proc", folder / "sys", folder)


def cgroup_v2(folder: Path, name: str, files: dict[str, str]) -> dict[str, str]:
    """The files of a process in that group, whose hierarchy is mounted in `folder`."""
    point = folder / "cgroup"
    return {
        "proc/self/cgroup": f"0::{name}\n",
        "proc/self/mountinfo": f"31 23 0:28 / {point} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n",
        **{f"cgroup{name}/{file}": text for file, text in files.items()},
    }


def cgroup_v1(folder: Path, controller: str, name: str, files: dict[str, str]) -> dict[str, str]:
    point = folder / "cgroup" / controller
    return {
        "proc/self/cgroup": f"5:{controller}:{name}\n1:name=systemd:/\n0::/\n",
        "proc/self/mountinfo": f"35 31 0:32 / {point} rw - cgroup cgroup rw,{controller}\n",
        **{f"cgroup/{controller}{name}/{file}": text for file, text in files.items()},
    }
