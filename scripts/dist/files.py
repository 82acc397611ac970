"""How do files get their places? Tree: paths and what lies there, written with fixed modes and times, or read into an archive."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class File:
    data: bytes
    mode: int = 0o644


class Tree:
    """Relative paths with slashes, in sorted order. Nothing of the building host (owner, umask, time of a file) is kept."""

    def __init__(self) -> None:
        self._files: dict[str, File] = {}

    def add(self, path: str, data: bytes | str, *, mode: int = 0o644) -> None:
        assert not path.startswith("/"), path
        assert ".." not in path.split("/"), path
        assert path not in self._files, f"{path} is there twice"
        self._files[path] = File(data.encode() if isinstance(data, str) else data, mode)

    def copy(self, path: str, source: Path, *, mode: int = 0o644) -> None:
        self.add(path, source.read_bytes(), mode=mode)

    def graft(self, folder: str, other: Tree) -> None:
        """Everything of another tree, below a folder of this one."""
        for path, file in other.items():
            self.add(f"{folder}/{path}", file.data, mode=file.mode)

    def items(self) -> Iterator[tuple[str, File]]:
        for path in sorted(self._files):
            yield path, self._files[path]

    def folders(self) -> list[str]:
        """Each folder that a file lies in, parents first; not the top one."""
        found = {"/".join(parts[:n]) for path in self._files for parts in [path.split("/")] for n in range(1, len(parts))}
        return sorted(found)

    def sums(self, algorithm: str = "sha256") -> str:
        """Lines `digest  path`, as sha256sum and md5sum write and read them."""
        lines = (f"{hashlib.new(algorithm, file.data, usedforsecurity=False).hexdigest()}  {path}\n" for path, file in self.items())
        return "".join(lines)

    def write(self, folder: Path, epoch: int) -> None:
        """Into an empty folder. Modes are set, not asked for: the umask changes nothing."""
        for name in ("", *self.folders()):
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name).chmod(0o755)
        for path, file in self.items():
            (folder / path).write_bytes(file.data)
            (folder / path).chmod(file.mode)
            os.utime(folder / path, (epoch, epoch))
        for name in ("", *self.folders()):
            os.utime(folder / name, (epoch, epoch))

    def tar_gz(self, top: str, epoch: int, *, level: int = 9) -> bytes:
        """Everything below one folder. ustar: names of this project are short, and no tar writes these bytes otherwise."""
        buffer = io.BytesIO()
        # mtime 0 and no name in gzip's head, as `gzip -n` does.
        with gzip.GzipFile(fileobj=buffer, mode="wb", filename="", mtime=0, compresslevel=level) as packed:
            with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for name in (top, *(f"{top}/{folder}" for folder in self.folders())):
                    tar.addfile(_info(name, epoch, kind=tarfile.DIRTYPE, mode=0o755))
                for path, file in self.items():
                    tar.addfile(_info(f"{top}/{path}", epoch, mode=file.mode, size=len(file.data)), io.BytesIO(file.data))
        return buffer.getvalue()


def _info(name: str, epoch: int, *, mode: int, kind: bytes = tarfile.REGTYPE, size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size, info.mtime = kind, mode, size, epoch
    info.uid = info.gid = 0
    return info


def gz(data: bytes | str) -> bytes:
    """As `gzip -9n`: the same bytes each time."""
    return gzip.compress(data.encode() if isinstance(data, str) else data, compresslevel=9, mtime=0)


def replaced(text: str, *changes: tuple[str, str]) -> str:
    """With each old text changed to the new one. A text that is not there has been reworded, and this must hear of it."""
    for old, new in changes:
        if old not in text:
            raise ValueError(f"there is no {old!r} to replace")
        text = text.replace(old, new)
    return text
