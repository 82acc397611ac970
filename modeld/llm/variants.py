"""Which library of a set does this CPU run? choose(): the best that decodes the reference right, in a process of its own.

What a CPU says of itself only rules out what would be tried in vain. A hypervisor, a container's seccomp filter, a kernel without
room for the registers, a microcode that took an instruction back, a compiler's fault: all of it shows in a decode, and nowhere
else. The choice is remembered for this set and this CPU; a source build has one library, and nothing is tried.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from modeld.errors import LibraryMismatch
from modeld.llm import bundle, interpreter
from modeld.llm import stamp as stamps
from modeld.llm.bundle import LibrarySet, Taken
from modeld.llm.ending import how_it_ended
from modeld.llm.stamp import Stamp

log = logging.getLogger("modeld")

NAMES = ("x86-64-amx", "x86-64-v4", "x86-64-v3", "x86-64-v2")  # best first; cmake/Variants.cmake has what is in them
NATIVE = "native"  # the one library of a source build
FORCE = "MODELD_CPU_VARIANT"
FILE = "variant.json"  # in the state folder
LIMIT_S = 20.0  # for one try, which takes 0.2 s: all four within the 90 s that systemd gives a start
MAX_FILE_BYTES = 1 << 16
CPUINFO = Path("/proc/cpuinfo")
MODALIAS = Path("/sys/devices/system/cpu/modalias")  # vendor, family, model and features in one line

_IDENTITY = re.compile(
    r"^(vendor_id|cpu family|model|model name|stepping|microcode|flags"
    r"|CPU (?:implementer|architecture|variant|part|revision)|Features)\s*:\s*(.*)$",
    re.MULTILINE,
)


class Verdict(StrEnum):
    RUNS = "runs"
    LACKS = "lacks"  # the CPU says that it lacks instructions; not tried
    DIED = "died"
    WRONG = "wrong"  # it runs and computes something else
    HUNG = "hung"
    DAMAGED = "damaged"  # not the file that was built; not tried
    FAILED = "failed"  # the process that was to try it could not be started


class How(StrEnum):
    ONLY = "the only library"
    FORCED = "MODELD_CPU_VARIANT names it"
    REMEMBERED = "remembered"
    TRIED = "the first that computes right"


@dataclass(frozen=True, slots=True)
class Tried:
    """What became of one variant. `str` is for people."""

    variant: str
    verdict: Verdict
    detail: str  # which instructions, which signal, off by how much
    seconds: float
    lasting: bool = False  # this CPU cannot run it, and another try would end alike

    def __str__(self) -> str:
        return f"{self.variant}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Chosen:
    """The library of this process, and how it was found. `ended` when the process ends in order."""

    variant: str
    path: Path  # for dlopen
    stamp: Stamp
    how: How
    tried: tuple[Tried, ...] = ()  # in the order of the tries; the last runs. Nothing of what was remembered
    seconds: float = 0.0
    memory: Memory | None = None

    def ended(self) -> None:
        """The process did not die of it: the next start may take it again without a try. Idempotent; any thread."""
        if self.memory is not None:
            self.memory.write(self.variant, running=False)

    @property
    def passed_over(self) -> tuple[Tried, ...]:
        return tuple(tried for tried in self.tried if tried.verdict is not Verdict.RUNS)


@dataclass(frozen=True, slots=True)
class Survey:
    """What each library does on this host, and which one a start takes. For `modeld doctor`."""

    where: Path
    tried: tuple[Tried, ...]  # best first, all of them
    chosen: str | None  # None: none runs
    why: str


def choose(folder: Path | None = None) -> Chosen:
    """The library for this process, its digest compared. Takes what the tries take: 0.2 s each, nothing where one is remembered.

    `folder` is where the choice is remembered (None: nowhere); it need not be there, and what cannot be written costs the next
    start its tries. Environment: MODELD_LIBRARY names a file, MODELD_CPU_VARIANT a variant of the set.

    Raises LibraryMismatch: no library is there, or none runs here, and what became of each.
    """
    begin = time.monotonic()
    interpreter.hold()
    found = bundle.library_set()
    forced = os.environ.get(FORCE, "")
    if found is None:
        return _only(forced)
    if forced:
        taken, tried = _tried(found, forced) if forced in found.variants else (None, None)
        if tried is None:
            raise LibraryMismatch(f"MODELD_CPU_VARIANT is {forced!r}, but {found.where} has {', '.join(_ordered(found))}")
        if taken is None:
            raise LibraryMismatch(
                f"MODELD_CPU_VARIANT names a library that does not run here: {tried}; unset it, or name another variant"
            )
        return _chosen(forced, taken, How.FORCED, (tried,), begin)
    memory = _memory(folder, found)
    remembered = memory.read() if memory is not None else None
    if remembered in found.variants:
        assert remembered is not None
        with contextlib.suppress(LibraryMismatch):  # damaged since: the tries say so
            return _chosen(remembered, found.take(remembered), How.REMEMBERED, (), begin, memory)
    results: list[Tried] = []
    for variant in _ordered(found):
        taken, tried = _tried(found, variant)
        if taken is not None:
            # A better one that hung, was killed or could not be read may run the next time: nothing is remembered then.
            keep = memory if all(result.lasting for result in results) else None
            return _chosen(variant, taken, How.TRIED, (*results, tried), begin, keep)
        results.append(tried)
    raise LibraryMismatch(
        f"none of the {len(results)} libraries in {found.where} runs here ({'; '.join(map(str, results))});"
        " build modeld from source on this host: make build"
    )


def trusted(variant: str) -> Chosen:
    """The library that the parent process uses, without a try. Raises LibraryMismatch."""
    found = bundle.library_set()
    if found is None:
        return _only("")
    return _chosen(variant, found.take(variant), How.FORCED, (), time.monotonic())


def survey(folder: Path | None = None) -> Survey:
    """Tries every library there is, one after the other: up to 0.2 s each, LIMIT_S where one hangs. Remembers nothing.

    `folder` as in choose(): whether a start would take what is remembered there. Raises LibraryMismatch where there is none.
    """
    found = bundle.library_set()
    if found is None:
        path, stamp = bundle.library_path()
        tried = try_library(Taken(path, stamp, _descriptor(path)), NATIVE)
        runs = tried.verdict is Verdict.RUNS
        return Survey(path, (tried,), NATIVE if runs else None, How.ONLY)
    results = []
    for variant in _ordered(found):
        taken, tried = _tried(found, variant)
        results.append(tried)
        if taken is not None:
            taken.close()
    running = [tried.variant for tried in results if tried.verdict is Verdict.RUNS]
    forced = os.environ.get(FORCE, "")
    if forced:
        return Survey(found.where, tuple(results), forced if forced in running else None, How.FORCED)
    memory = _memory(folder, found)
    remembered = memory.read() if memory is not None else None
    if remembered in found.variants:
        return Survey(found.where, tuple(results), remembered, f"{How.REMEMBERED} from an earlier start")
    return Survey(found.where, tuple(results), running[0] if running else None, How.TRIED if running else "none runs here")


def try_library(taken: Taken, variant: str, limit_s: float | None = None) -> Tried:
    """Decodes the reference in a process of its own, which is gone afterwards. Any thread that outlives the call."""
    begin = time.monotonic()
    limit_s = LIMIT_S if limit_s is None else limit_s
    order = {"parent_pid": os.getpid(), "library": os.fspath(taken.path)}

    def tried(verdict: Verdict, detail: str, *, lasting: bool = False) -> Tried:
        return Tried(variant, verdict, detail, time.monotonic() - begin, lasting)

    try:
        done = subprocess.run(
            interpreter.command("librarytrial", order),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},  # else an abort forks a debugger
            timeout=limit_s,
            check=False,
            start_new_session=True,
            pass_fds=(*interpreter.descriptors(), *(() if taken.descriptor is None else (taken.descriptor,))),
        )
    except subprocess.TimeoutExpired:
        return tried(Verdict.HUNG, f"did not decode the reference within {limit_s:g} s")
    except (OSError, ValueError) as error:
        return tried(Verdict.FAILED, f"the process that was to try it could not be started: {error}")
    try:
        report: Mapping[str, Any] = json.loads(done.stdout)
    except ValueError:
        how = how_it_ended(done.returncode, done.stderr)
        return tried(Verdict.DIED, f"died {how}", lasting=done.returncode == -signal.SIGILL)
    if "off_by" in report:
        return tried(Verdict.RUNS, f"runs, logits within {report['off_by']:.2g} of the reference")
    return tried(Verdict.WRONG, str(report["reason"]))


def identity(found: LibrarySet, *, cpuinfo: Path = CPUINFO, modalias: Path = MODALIAS) -> str | None:
    """A digest of the set and of the CPU: another host, another microcode, another release make another one.

    None: nothing tells which CPU this is, so nothing can be remembered about it.
    """
    libraries = []
    for variant in sorted(found.variants):
        with contextlib.suppress(LibraryMismatch):
            libraries.append([variant, found.stamp(variant).library_sha256])
    texts = []
    for path in (cpuinfo, modalias):
        try:
            texts.append(path.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            texts.append("")
    # Of all cores, which need not be alike. A sandbox may hide the first (ProcSubset=pid) and leave the second.
    cpus = sorted(set(_IDENTITY.findall(texts[0]))) or texts[1].split()
    if not cpus:
        return None
    return hashlib.sha256(json.dumps([libraries, cpus]).encode()).hexdigest()


class Memory:
    """The remembered choice, a file in the state folder. Nothing here raises: without it each start tries.

    While a process runs, the file says so. One that finds it so at its start knows that the last process did not end in order,
    and does not trust the choice: whatever the reason was, a try is cheap.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._path = folder / FILE
        self._key = key

    def read(self) -> str | None:
        """None: nothing is remembered for this set and this CPU, or the process that chose it did not end in order."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                values = json.loads(file.read(MAX_FILE_BYTES))
            if values["key"] != self._key or values["running"]:
                return None
            return str(values["variant"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None

    def write(self, variant: str, *, running: bool) -> None:
        """A file that is renamed into place. On disk some seconds later, which is early enough."""
        data = json.dumps({"variant": variant, "running": running, "key": self._key}).encode() + b"\n"
        new = self._path.with_name(f"{FILE}.new")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            new.unlink(missing_ok=True)  # of a process that was killed while it wrote
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            new.rename(self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                new.unlink()
            # The rest of the state is missed as well, and the switch thread's warning says so.
            log.debug("which library was chosen is not remembered: %s", error)


def _memory(folder: Path | None, found: LibrarySet) -> Memory | None:
    key = identity(found) if folder is not None else None
    return Memory(folder, key) if folder is not None and key is not None else None


def _only(forced: str) -> Chosen:
    if forced and not os.environ.get("MODELD_LIBRARY"):
        raise LibraryMismatch(
            f"MODELD_CPU_VARIANT is {forced!r}, but this modeld has one library, for the CPU that built it; unset it"
        )
    path, stamp = bundle.library_path()
    return Chosen(stamp.flags.get("variant", NATIVE), path, stamp, How.ONLY)


def _chosen(variant: str, taken: Taken, how: How, tried: tuple[Tried, ...], begin: float, memory: Memory | None = None) -> Chosen:
    if memory is not None:
        memory.write(variant, running=True)
    return Chosen(variant, taken.path, taken.stamp, how, tried, time.monotonic() - begin, memory)


def _tried(found: LibrarySet, variant: str) -> tuple[Taken | None, Tried]:
    """The library, where it runs, and what became of it."""
    begin = time.monotonic()
    try:
        stamp = found.stamp(variant)
        if lacking := stamps.lacking(stamp):
            detail = f"this CPU lacks {', '.join(lacking)}"
            return None, Tried(variant, Verdict.LACKS, detail, time.monotonic() - begin, lasting=True)
        taken = found.take(variant)
    except LibraryMismatch as error:
        return None, Tried(variant, Verdict.DAMAGED, str(error), time.monotonic() - begin)
    tried = try_library(taken, variant)
    if tried.verdict is not Verdict.RUNS:
        taken.close()
        return None, tried
    return taken, tried


def _ordered(found: LibrarySet) -> list[str]:
    """Best first; what this modeld does not know by name comes last."""
    return sorted(found.variants, key=lambda name: (NAMES.index(name) if name in NAMES else len(NAMES), name))


def _descriptor(path: Path) -> int | None:
    match = re.fullmatch(r"/proc/self/fd/(\d+)", os.fspath(path))
    return int(match[1]) if match else None
