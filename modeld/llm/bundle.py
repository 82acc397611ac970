"""Where is libllama.so? In MODELD_LIBRARY, inside the zip file that bin/modeld is, in the checkout, or beside the package.

A source build has one, for the CPU that built it. A release has a set, one for each kind of CPU, of which variants.py chooses.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from modeld.errors import LibraryMismatch
from modeld.llm import stamp as stamps
from modeld.llm.stamp import Stamp

LIBRARY = "libllama.so"
STAMP = "libllama.stamp.json"
SET = "libraries"  # the folder of a set, beside the package's modules or in the zip file: SET/<variant>/LIBRARY
PACKAGE = Path(__file__).resolve().parent.parent


def library_path() -> tuple[Path, Stamp]:
    """A path for dlopen, and the stamp of what lies there, compared already. Of the one library, where there is no set.

    The library of the zip file becomes a file without a name (/proc/self/fd/N) which lives as long as the process: call
    this once. Raises LibraryMismatch when there is none, or it is not the one that this modeld was built with.
    """
    named = os.environ.get("MODELD_LIBRARY")
    if named:
        path = Path(named)
        if not path.is_file():
            raise LibraryMismatch(f"MODELD_LIBRARY is {named}, where no file is")
        return path, stamps.verify(path)
    archive = zip_file()
    if archive is not None:
        return from_zip(archive)
    places = _places()
    for path in places:
        if path.is_file():
            return path, stamps.verify(path)
    raise LibraryMismatch(
        f"there is no {LIBRARY} in {places[0].parent} or {places[1].parent}; run `make build`, or set MODELD_LIBRARY"
    )


@dataclass(frozen=True, slots=True)
class Taken:
    """A library of a set that may be opened: its digest is the stamp's. `close` where it is not wanted."""

    path: Path
    stamp: Stamp
    descriptor: int | None  # of a file without a name, which `path` is of this process

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)


@dataclass(frozen=True, slots=True)
class LibrarySet:
    """Complete libraries, each for a kind of CPU: folders in `where`, a folder or the zip file. Any thread."""

    where: Path
    in_zip: bool
    variants: tuple[str, ...]  # in no order

    def stamp(self, variant: str) -> Stamp:
        """Raises LibraryMismatch when there is none or it is another binding's. Nothing is said about the library itself."""
        where = f"{self._place(variant)}/{STAMP}"
        try:
            if self.in_zip:
                with zipfile.ZipFile(self.where) as archive:
                    text = archive.read(f"{SET}/{variant}/{STAMP}")
            else:
                text = (self.where / variant / STAMP).read_bytes()
        except (OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise LibraryMismatch(f"{where} cannot be read: {error}") from None
        stamp = stamps.parse(text.decode("utf-8", "replace"), where=where)
        stamps.check_binding(stamp, where=self._place(variant))
        return stamp

    def take(self, variant: str) -> Taken:
        """From the zip file: copied into memory (0.05 s). Raises LibraryMismatch, as for one that is damaged."""
        stamp = self.stamp(variant)
        place = f"{self._place(variant)}/{LIBRARY}"
        try:
            if not self.in_zip:
                path = self.where / variant / LIBRARY
                stamps.check_library(stamp, stamps.digest_of(path), where=place)
                return Taken(path, stamp, None)
            with zipfile.ZipFile(self.where) as archive, archive.open(f"{SET}/{variant}/{LIBRARY}") as source:
                descriptor, digest = copy_to_nameless_file(source)
        except (OSError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise LibraryMismatch(f"{place} cannot be read: {error}") from None
        taken = Taken(Path(f"/proc/self/fd/{descriptor}"), stamp, descriptor)
        try:
            stamps.check_library(stamp, digest, where=place)
        except LibraryMismatch:
            taken.close()
            raise
        return taken

    def _place(self, variant: str) -> str:
        return f"{self.where}/{SET}/{variant}" if self.in_zip else f"{self.where}/{variant}"


def library_set() -> LibrarySet | None:
    """The set that this modeld comes with; None where it has one library, or MODELD_LIBRARY names one."""
    if os.environ.get("MODELD_LIBRARY"):
        return None
    archive = zip_file()
    if archive is not None:
        with zipfile.ZipFile(archive) as file:
            members = [name.split("/") for name in file.namelist()]
        variants = [parts[1] for parts in members if len(parts) == 3 and parts[0] == SET and parts[2] == LIBRARY]
        return LibrarySet(archive, in_zip=True, variants=tuple(variants)) if variants else None
    if any(place.is_file() for place in _places()):
        return None
    folder = PACKAGE / SET
    variants = [path.parent.name for path in folder.glob(f"*/{LIBRARY}")]
    return LibrarySet(folder, in_zip=False, variants=tuple(variants)) if variants else None


def _places() -> tuple[Path, Path]:
    return PACKAGE.parent / "build" / LIBRARY, PACKAGE / LIBRARY


def zip_file() -> Path | None:
    """The zip file that this module was imported from; None when it lies in a folder."""
    archive = getattr(__spec__.loader, "archive", None) if __spec__ is not None else None
    return Path(archive) if archive else None


def from_zip(archive: Path) -> tuple[Path, Stamp]:
    with zipfile.ZipFile(archive) as bundle:
        try:
            stamp = stamps.parse(bundle.read(STAMP).decode(), where=f"{archive}/{STAMP}")
            source = bundle.open(LIBRARY)
        except KeyError as error:
            raise LibraryMismatch(f"{archive} is incomplete: {error.args[0]}; run `make build`") from None
        stamps.check_binding(stamp, where=str(archive))
        stamps.check_cpu(stamp, where=str(archive))
        with source:
            descriptor, digest = copy_to_nameless_file(source)
        stamps.check_library(stamp, digest, where=f"{archive}/{LIBRARY}")
    return Path(f"/proc/self/fd/{descriptor}"), stamp


def copy_to_nameless_file(source: IO[bytes]) -> tuple[int, str]:
    """A descriptor that stays open, and the digest of what was copied. In memory, or where that may not be executed, on disk."""
    try:
        descriptor = os.memfd_create(LIBRARY)
        try:
            os.truncate(descriptor, mmap.PAGESIZE)
            mmap.mmap(descriptor, mmap.PAGESIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC).close()
        except OSError:  # SELinux and sysctl vm.memfd_noexec can forbid it
            os.close(descriptor)
            raise
    except (AttributeError, OSError):
        descriptor, name = tempfile.mkstemp(prefix="modeld-", suffix=".so")  # mode 0600
        Path(name).unlink()  # the descriptor keeps it; nobody else can open it, and nothing is left behind
    digest = hashlib.sha256()
    try:
        with os.fdopen(os.dup(descriptor), "wb") as target:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                target.write(chunk)
    except BaseException:  # a damaged zip file, a full disk
        os.close(descriptor)
        raise
    return descriptor, digest.hexdigest()
