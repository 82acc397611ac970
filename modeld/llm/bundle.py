"""Where is libllama.so? In MODELD_LIBRARY, inside the zip file that bin/modeld is, in the checkout, or beside the package."""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
import zipfile
from pathlib import Path
from typing import IO

from modeld.errors import LibraryMismatch
from modeld.llm import stamp as stamps
from modeld.llm.stamp import Stamp

LIBRARY = "libllama.so"
STAMP = "libllama.stamp.json"
PACKAGE = Path(__file__).resolve().parent.parent


def library_path() -> tuple[Path, Stamp]:
    """A path for dlopen, and the stamp of what lies there, compared already.

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
    places = (PACKAGE.parent / "build" / LIBRARY, PACKAGE / LIBRARY)
    for path in places:
        if path.is_file():
            return path, stamps.verify(path)
    raise LibraryMismatch(
        f"there is no {LIBRARY} in {places[0].parent} or {places[1].parent}; run `make build`, or set MODELD_LIBRARY"
    )


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
    with os.fdopen(os.dup(descriptor), "wb") as target:
        while chunk := source.read(1 << 20):
            digest.update(chunk)
            target.write(chunk)
    return descriptor, digest.hexdigest()
