"""How much memory could a model take now? What the kernel, the cgroups and the devices say, and whether a model fits into it.

What is available here can be taken without swapping and without pushing out what this process has mapped: the weights of the
model that answers are page cache, which the kernel counts as available, but a model without its weights in memory is useless.
So is the new one: its weights count in full as needed, mapped or not.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from modeld.llm import libllama as C
from modeld.llm.libllama import Library

PROC = Path("/proc")
NO_LIMIT = (1 << 63) - 1
_V1_NO_LIMIT = 1 << 62  # what memory.limit_in_bytes says without a limit lies above: LONG_MAX, rounded to pages
_KINDS = {
    C.GGML_BACKEND_DEVICE_TYPE_CPU: "cpu",
    C.GGML_BACKEND_DEVICE_TYPE_GPU: "gpu",
    C.GGML_BACKEND_DEVICE_TYPE_IGPU: "igpu",
}


@dataclass(frozen=True, slots=True)
class Available:
    """Bytes of the host's memory, and what sets the bound: `MemAvailable` or `cgroup /its/path`."""

    bytes: int
    source: str


@dataclass(frozen=True, slots=True)
class Resident:
    """Memory of this process, in bytes: its own (anonymous), mapped from files, and the most that both ever were together."""

    own_bytes: int  # RssAnon
    mapped_bytes: int  # RssFile
    peak_bytes: int  # VmHWM


@dataclass(frozen=True, slots=True)
class Device:
    """Where ggml can compute. `kind`: cpu, gpu, igpu (memory shared with the host), or other."""

    name: str
    kind: str
    free_bytes: int
    total_bytes: int


def available_bytes(proc: Path = PROC) -> Available:
    """The least of MemAvailable and what each cgroup from this process's up to the root leaves. Any thread; reads some files.

    Where nothing can be read, nothing is known to be short: NO_LIMIT.
    """
    least = Available(NO_LIMIT, "nothing that is known")
    host = _numbers(proc / "meminfo").get("MemAvailable")
    if host is not None:
        least = Available(max(0, (host << 10) - resident(proc).mapped_bytes), "MemAvailable")
    for room in _cgroup_rooms(proc):
        least = min(least, room, key=lambda found: found.bytes)
    return least


def resident(proc: Path = PROC) -> Resident:
    """Zeros where /proc cannot be read. Kernels before 6.16 count per core and are off by up to 128 KiB for each."""
    found = _numbers(proc / "self" / "status")
    return Resident(found.get("RssAnon", 0) << 10, found.get("RssFile", 0) << 10, found.get("VmHWM", 0) << 10)


def devices(lib: Library) -> list[Device]:
    """All of ggml's devices, the CPU among them. Any thread; ggml-backend.h, ggml_backend_dev_*."""
    found = []
    for index in range(lib.ggml_backend_dev_count()):
        device = lib.ggml_backend_dev_get(index)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        lib.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        name = (lib.ggml_backend_dev_name(device) or b"").decode("utf-8", "replace")
        found.append(Device(name, _KINDS.get(lib.ggml_backend_dev_type(device), "other"), free.value, total.value))
    return found


def shortage(
    model_id: str,
    available: Available,
    *,
    weights_bytes: int,
    kv_bytes: int,
    compute_bytes: int,
    leaving_id: str | None = None,
    freed_bytes: int = 0,
) -> str | None:
    """Why the model does not fit, with the numbers; None: it fits. Pure.

    `freed_bytes`: what the model `leaving_id` gives back first, its weights included; 0 for one that stays meanwhile.
    """
    needed = weights_bytes + kv_bytes + compute_bytes
    there = available.bytes + freed_bytes
    if needed <= there:
        return None
    unit, name = (1 << 30, "GiB") if max(needed, there) >= 1 << 30 else (1 << 20, "MiB")

    def of(n_bytes: int) -> str:
        return f"{n_bytes / unit:.2f}"

    back = f" plus {of(freed_bytes)} that model {leaving_id} gives back" if freed_bytes else ""
    return (
        f"model {model_id} needs about {of(needed)} {name} (weights {of(weights_bytes)}, KV cells {of(kv_bytes)}, computing"
        f" {of(compute_bytes)}); {of(there)} {name} are available ({available.source} {of(available.bytes)}{back})"
    )


# -- cgroups ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Version:
    """What the two kinds of cgroups call things (Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst)."""

    limits: tuple[str, ...]
    usage: str
    # In memory.stat, with the groups below counted in.
    page_cache: tuple[str, ...]
    mapped: str  # the part of the page cache that processes have mapped
    kernel_caches: str | None


_V2 = _Version(
    limits=("memory.max", "memory.high"),
    usage="memory.current",
    page_cache=("inactive_file", "active_file"),
    mapped="file_mapped",
    kernel_caches="slab_reclaimable",
)
_V1 = _Version(
    limits=("memory.limit_in_bytes",),
    usage="memory.usage_in_bytes",
    page_cache=("total_inactive_file", "total_active_file"),
    mapped="total_mapped_file",
    kernel_caches=None,
)


def _cgroup_rooms(proc: Path) -> Iterator[Available]:
    """What each group with a limit leaves, from the process's own up to the uppermost that can be seen."""
    for version, name, folder, top in _cgroups(proc):
        while True:
            room = _room(version, folder)
            if room is not None:
                yield Available(room, f"cgroup {name}")
            if folder == top:
                break
            folder, name = folder.parent, name.rpartition("/")[0] or "/"


def _cgroups(proc: Path) -> Iterator[tuple[_Version, str, Path, Path]]:
    """Of each hierarchy that limits memory: the process's group by name and by folder, and where the hierarchy is mounted."""
    try:
        members = (proc / "self" / "cgroup").read_text("utf-8", "replace").splitlines()
        mounts = (proc / "self" / "mountinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return
    for line in members:
        hierarchy, controllers, name = line.split(":", 2)
        if hierarchy == "0":
            version, kind, option = _V2, "cgroup2", None
        elif "memory" in controllers.split(","):
            version, kind, option = _V1, "cgroup", "memory"
        else:
            continue
        for mount in mounts:
            # proc_pid_mountinfo(5): id, parent, major:minor, root, mount point, ... - type, source, options
            before, _, after = mount.partition(" - ")
            root, point = (_unescaped(text) for text in before.split()[3:5])
            filesystem, *_, options = after.split()
            if filesystem != kind or (option and option not in options.split(",")):
                continue
            # In a container the mount shows a part of the tree, and the name may be one that only the host can follow.
            below = name[len(root.rstrip("/")) :] if f"{name}/".startswith(f"{root.rstrip('/')}/") else ""
            folder = Path(point + below.rstrip("/"))
            if ".." in folder.parts or not folder.is_dir():
                folder = Path(point)
            yield version, name, folder, Path(point)
            break


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _room(version: _Version, folder: Path) -> int | None:
    """Bytes that the group may still take; None without a limit."""
    limits = [limit for name in version.limits if (limit := _number(folder / name)) is not None and limit < _V1_NO_LIMIT]
    usage = _number(folder / version.usage)
    if not limits or usage is None:
        return None
    stat = _numbers(folder / "memory.stat")
    unmapped = max(0, sum(stat.get(name, 0) for name in version.page_cache) - stat.get(version.mapped, 0))
    kernels = stat.get(version.kernel_caches, 0) if version.kernel_caches else 0
    return max(0, min(limits) - usage + unmapped + kernels)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text("ascii").strip()
    except (OSError, ValueError):
        return None
    return int(text) if text.isdecimal() else None  # "max"


def _numbers(path: Path) -> Mapping[str, int]:
    """Lines `name number` or `Name: number kB`; empty where the file cannot be read."""
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return {}
    words = (line.split() for line in lines)
    return {word[0].rstrip(":"): int(word[1]) for word in words if len(word) >= 2 and word[1].isdecimal()}
