"""What release is this? Version, time, floors, names of the files, and the set of libraries that goes into all of them.

Everything below is a function of the tree and of the set, and of nothing else: not of the folder, the clock, the user or the umask.
So two people who build one commit with one compiler get the same bytes, and can tell each other so by a digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeld import __version__
from scripts.dist import elf

ROOT = Path(__file__).resolve().parent.parent.parent
LIBRARY = "libllama.so"
STAMP = "libllama.stamp.json"

# The oldest of each that is promised: those of Debian 12. A library that wants a newer glibc is not packed.
GLIBC = (2, 36)
PYTHON = (3, 11)

# What the time of everything is where neither SOURCE_DATE_EPOCH nor git tells one: 2026-01-01.
NO_COMMIT = 1767225600


class DistError(Exception):
    """The message says what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One library of the set, whose stamp was compared with it."""

    name: str  # x86-64-v3
    library: Path
    stamp_path: Path
    stamp: dict[str, Any]

    @property
    def sha256(self) -> str:
        return str(self.stamp["library_sha256"])


@dataclass(frozen=True, slots=True)
class Release:
    version: str
    epoch: int  # seconds since 1970: SOURCE_DATE_EPOCH
    commit: str  # of this project; "unknown" without git
    libraries: Path  # the set: <variant>/libllama.so
    variants: tuple[Variant, ...]
    glibc: tuple[int, int]  # what the libraries want

    @property
    def folder(self) -> str:
        """The bundle's top folder, and its name without .tar.gz."""
        return f"modeld-{self.version}-linux-x86_64"

    @property
    def deb(self) -> str:
        return f"modeld_{self.version}_amd64.deb"

    @property
    def wheel(self) -> str:
        return f"modeld-{self.version}-py3-none-{self.platform}.whl"

    @property
    def platform(self) -> str:
        """PEP 600: pip itself refuses the wheel where glibc is older than the floor."""
        return f"manylinux_{GLIBC[0]}_{GLIBC[1]}_x86_64"

    @property
    def environment(self) -> dict[str, str]:
        """For the tools that are called: one time, one language, no bytecode left in the tree."""
        fixed = {"SOURCE_DATE_EPOCH": str(self.epoch), "LC_ALL": "C", "TZ": "UTC", "PYTHONDONTWRITEBYTECODE": "1"}
        return os.environ | fixed


def read(libraries: Path, *, allow_native: bool = False) -> Release:
    """Looks at the set and refuses one that must not leave the house. Raises DistError.

    `allow_native` lets a library pass that was built for this host's CPU: tests have no other.
    """
    libraries = libraries.resolve()
    variants = tuple(_variant(folder) for folder in sorted(libraries.glob("*")) if (folder / LIBRARY).is_file())
    if not variants:
        raise DistError(f"{libraries} holds no VARIANT/{LIBRARY}; run `make release`, or name another set: make dist LIBRARIES=FOLDER")
    native = [variant.name for variant in variants if variant.stamp["flags"].get("GGML_NATIVE") == "ON"]
    if native and not allow_native:
        raise DistError(f"{', '.join(native)} in {libraries} was built for this host's CPU alone; `make release` builds for others")
    glibc = max(elf.read(variant.library).glibc for variant in variants)
    if glibc > GLIBC:
        raise DistError(
            f"the libraries in {libraries} want glibc {dotted(glibc)}, {dotted(GLIBC)} is promised; build them on the oldest system"
            " that is to be served (Debian 12)"
        )
    return Release(__version__, epoch(), _git("rev-parse", "HEAD") or "unknown", libraries, variants, glibc)


def _variant(folder: Path) -> Variant:
    library, stamp_path = folder / LIBRARY, folder / STAMP
    try:
        stamp = json.loads(stamp_path.read_bytes())
        expected = stamp["library_sha256"]
    except (OSError, ValueError, KeyError):
        raise DistError(f"{library} has no stamp that can be read beside it, so nobody has tested it; run `make release`") from None
    if digest(library) != expected:
        raise DistError(f"{library} is not the library that {stamp_path.name} was written for; run `make release`")
    wanted = set(elf.read(library).needed)
    foreign = sorted(wanted - {"libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2", "libpthread.so.0", "libdl.so.2"})
    if foreign:
        raise DistError(f"{library} wants {', '.join(foreign)}, which a fresh host may lack; only libraries for the CPU are handed over")
    return Variant(folder.name, library, stamp_path, stamp)


def digest(path: Path) -> str:
    """sha256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def epoch() -> int:
    """Seconds since 1970 that stand for the time of everything: SOURCE_DATE_EPOCH, else the last commit."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if given and not given.isdecimal():
        raise DistError(f"SOURCE_DATE_EPOCH is {given!r}, not seconds since 1970")
    return int(given or _git("log", "-1", "--format=%ct") or NO_COMMIT)


def _git(*args: str) -> str:
    """What git answers about the tree that this file lies in; nothing for a tree that came as an archive."""
    if not (ROOT / ".git").exists():
        return ""
    done = subprocess.run(["git", "-C", os.fspath(ROOT), *args], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
