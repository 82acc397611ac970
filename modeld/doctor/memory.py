"""Is there memory for the models? What the host and the cgroups have, what each model needs, and settings of the kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from modeld.doctor import procfs
from modeld.doctor.procfs import Roots
from modeld.doctor.report import Fact, Finding, note, ok, problem, size, warning
from modeld.llm.footprint import Footprint
from modeld.types import ModelSpec

_V1_NO_LIMIT = 1 << 62  # what memory.limit_in_bytes says without a limit lies above
_KERNEL_DEFAULT_MAPS = 65530
_MAPS_OWN = 4096  # of the interpreter, libllama, and a model's tensors in buffers
_MAPS_A_THREAD = 2  # its stack and the guard


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes, and what sets the bound."""

    bytes: int
    source: str


@dataclass(frozen=True, slots=True)
class Memory:
    """What a model can count on. None: not known."""

    ceiling: Room | None  # all that there is, for all processes together
    free: Room | None  # what may be taken now, what the running daemon has included: a switch gives it back first


def measure(roots: Roots, pid: str, *, is_daemon: bool) -> tuple[Memory, list[Finding]]:
    """`pid`: of the daemon that runs, or `self`."""
    info = procfs.table(roots.proc / "meminfo", 1 << 10)
    total, available = info.get("MemTotal"), info.get("MemAvailable")
    held = procfs.table(roots.proc / pid / "status", 1 << 10).get("VmRSS", 0) if is_daemon else 0
    findings: list[Finding] = []
    ceiling = Room(total, "MemTotal") if total is not None else None
    free = Room(available + held, "MemAvailable") if available is not None else None
    if total is None or available is None:
        findings.append(note("memory_unknown", f"{roots.proc / 'meminfo'} does not tell how much memory there is"))
    else:
        swap = info.get("SwapTotal", 0)
        findings.append(
            ok(
                "memory",
                f"{size(available)} of {size(total)} are available"
                + (f"; swap: {size(swap - info.get('SwapFree', 0))} of {size(swap)} used" if swap else "; no swap")
                + (f"; the daemon holds {size(held)}" if is_daemon else ""),
                total_bytes=total,
                available_bytes=available,
                swap_bytes=swap,
                daemon_bytes=held if is_daemon else None,
            )
        )
    version, groups = procfs.groups(roots.proc, pid, "memory")
    for group in groups:
        limit, used = _limit(version, group.folder)
        if limit is None:
            continue
        source = f"cgroup {group.name}"
        room = max(0, limit - used)
        findings.append(
            note(
                "memory_limit",
                f"{source} may take {size(limit)} and has {size(used)}, page cache included",
                "mapped weights count while they are page cache; over the limit the kernel ends a process (memory.max)",
                limit_bytes=limit,
                used_bytes=used,
            )
        )
        ceiling = min((one for one in (ceiling, Room(limit, source)) if one is not None), key=lambda one: one.bytes)
        free = min((one for one in (free, Room(room + held, source)) if one is not None), key=lambda one: one.bytes)
    return Memory(ceiling, free), findings


def _limit(version: int, folder: Path) -> tuple[int | None, int]:
    """The group's limit in bytes, and what it has without the cache that the kernel can drop."""
    names = ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",)
    known = [value for name in names if (value := procfs.number(folder / name)) is not None and 0 <= value < _V1_NO_LIMIT]
    used = procfs.number(folder / ("memory.current" if version == 2 else "memory.usage_in_bytes")) or 0
    stat = procfs.table(folder / "memory.stat")
    cache = stat.get("inactive_file" if version == 2 else "total_inactive_file", 0)
    return min(known, default=None), max(0, used - cache)


def models(
    memory: Memory, needs: Mapping[str, Footprint | None], specs: Sequence[ModelSpec], *, overlap: bool, has_gpu: bool
) -> Iterator[Finding]:
    """A finding a model, and one on two of them at once where `overlap` is configured. Pure."""
    for spec in specs:
        footprint = needs.get(spec.id)
        if footprint is None:
            yield note("model_memory_unknown", "what it takes cannot be estimated from its file", about=spec.id)
            continue
        parts = (
            f"about {size(footprint.total)}: weights {size(footprint.weights_bytes)}, KV cache {size(footprint.kv_bytes)}, "
            f"intermediate results {size(footprint.compute_bytes)}"
        )
        facts: dict[str, Fact] = {"needed_bytes": footprint.total}
        if has_gpu and spec.n_gpu_layers != 0:
            yield note(
                "model_memory_gpu", f"{parts}; how much of it is the GPU's is not looked at here", about=spec.id, more=facts
            )
        elif memory.ceiling is not None and footprint.total > memory.ceiling.bytes:
            yield problem(
                "model_too_big",
                f"{parts}; all there is are {size(memory.ceiling.bytes)} ({memory.ceiling.source})",
                "a smaller quantization, a smaller n_ctx or n_parallel, cache_type_k and cache_type_v q8_0; or more memory"
                + (" for that cgroup (MemoryMax=, a container's limit)" if "cgroup" in memory.ceiling.source else ""),
                about=spec.id,
                more=facts,
                ceiling_bytes=memory.ceiling.bytes,
            )
        elif memory.free is not None and footprint.total > memory.free.bytes:
            yield warning(
                "model_tight",
                f"{parts}; {size(memory.free.bytes)} are there now ({memory.free.source}), so a switch to it is refused (507)",
                "end what else takes memory here, or make the model smaller (n_ctx, n_parallel, a smaller quantization)",
                about=spec.id,
                more=facts,
                free_bytes=memory.free.bytes,
            )
        else:
            yield ok("model_memory", parts, about=spec.id, more=facts)
    known = {spec.id: footprint.total for spec in specs if (footprint := needs.get(spec.id)) is not None}
    if overlap and memory.ceiling is not None and not has_gpu:
        pairs = [pair for pair in combinations(known, 2) if known[pair[0]] + known[pair[1]] > memory.ceiling.bytes]
        if pairs:
            one, other = max(pairs, key=lambda pair: known[pair[0]] + known[pair[1]])
            yield warning(
                "overlap_too_big",
                f"switching.strategy is overlap; pairs of models that do not fit together: {len(pairs)}; {one} and {other} "
                f"take about {size(known[one] + known[other])} of {size(memory.ceiling.bytes)}",
                "strategy: auto loads side by side where both fit, and one after the other where they do not",
                pairs=len(pairs),
            )


def kernel(roots: Roots, *, max_threads: int, from_zip: bool) -> Iterator[Finding]:
    """Settings that change what loads and threads may take. `max_threads`: what the daemon may come to."""
    vm = roots.proc / "sys" / "vm"
    if procfs.number(vm / "overcommit_memory") == 2:
        info = procfs.table(roots.proc / "meminfo", 1 << 10)
        left = info.get("CommitLimit", 0) - info.get("Committed_AS", 0)
        yield warning(
            "overcommit",
            f"vm.overcommit_memory is 2: {size(max(0, left))} may still be promised to processes, stacks of threads included",
            "vm.overcommit_memory=0, or a higher vm.overcommit_ratio: each thread reserves a stack that it rarely touches",
            left_bytes=left,
        )
    maps = procfs.number(vm / "max_map_count")
    needed = _MAPS_OWN + _MAPS_A_THREAD * max_threads
    if maps is not None and maps < needed:
        yield warning(
            "maps_few",
            f"vm.max_map_count is {maps}; {max_threads} threads may need {needed} mappings, and the next one then fails",
            f"sysctl vm.max_map_count={max(_KERNEL_DEFAULT_MAPS, needed)}, or a smaller server.max_connections",
            max_map_count=maps,
            needed=needed,
        )
    noexec = procfs.number(vm / "memfd_noexec")
    if noexec and from_zip:
        yield note(
            "memfd_noexec",
            f"vm.memfd_noexec is {noexec}: the library in bin/modeld is written to a nameless file in TMPDIR instead of memory",
            "TMPDIR must be on a file system that is not mounted noexec",
            memfd_noexec=noexec,
        )
    pages = procfs.chosen(roots.sys / "kernel" / "mm" / "transparent_hugepage" / "enabled")
    if pages is not None:
        yield ok("huge_pages", f"transparent huge pages: {pages}; modeld does not ask for them", enabled=pages)
    pressure = _pressure(roots.proc / "pressure" / "memory")
    if pressure is not None and pressure >= 5:
        yield warning(
            "memory_pressure",
            f"processes waited for memory {pressure:.0f} % of the last minute (PSI)",
            "memory is short now: mapped weights are read from disk again and again",
            avg60=pressure,
        )
    swappiness, swap = procfs.number(vm / "swappiness"), procfs.table(roots.proc / "swaps")
    info = procfs.table(roots.proc / "meminfo", 1 << 10)
    used = info.get("SwapTotal", 0) - info.get("SwapFree", 0)
    if used > info.get("SwapTotal", 0) // 2 > 0:
        yield warning(
            "swap_used",
            f"{size(used)} of swap are used (vm.swappiness {swappiness}): a KV cache there comes back page by page",
            "more memory or smaller models; load_mode: mlock keeps weights in memory, not the KV cache",
            used_bytes=used,
            swappiness=swappiness,
            areas=len(swap),
        )


def _pressure(path: Path) -> float | None:
    """Percent of the last minute in which some process waited (Documentation/accounting/psi.rst)."""
    for line in procfs.lines(path):
        words = dict(word.partition("=")[::2] for word in line.split()[1:])
        if line.startswith("some "):
            try:
                return float(words["avg60"])
            except (KeyError, ValueError):
                return None
    return None
