"""What does a shared library want of its host? The libraries that it names, and the newest glibc whose symbols it uses.

Read from the file itself (Elf64, little endian): a build needs no binutils for it, and a test compares it with readelf.
Source: System V ABI, "Dynamic Section"; LSB, "Symbol Versioning" (Elf64_Verneed, Elf64_Vernaux).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_DYNAMIC, _VERNEED = 6, 0x6FFFFFFE  # sh_type: SHT_DYNAMIC, SHT_GNU_verneed
_NEEDED = 1  # d_tag: DT_NEEDED


@dataclass(frozen=True, slots=True)
class Wants:
    needed: tuple[str, ...]  # libm.so.6
    versions: tuple[str, ...]  # GLIBC_2.34, GLIBCXX_3.4.30

    @property
    def glibc(self) -> tuple[int, int]:
        found = [match for name in self.versions if (match := re.fullmatch(r"GLIBC_(\d+)\.(\d+)(?:\.\d+)?", name))]
        return max(((int(match[1]), int(match[2])) for match in found), default=(0, 0))


@dataclass(frozen=True, slots=True)
class _Section:
    type: int
    offset: int
    size: int
    link: int
    info: int


def read(path: Path) -> Wants:
    """Raises ValueError for what is no 64-bit little-endian ELF file with sections."""
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"{path} is no 64-bit little-endian ELF file")
    (start,) = struct.unpack_from("<Q", data, 0x28)  # e_shoff
    size, count = struct.unpack_from("<HH", data, 0x3A)  # e_shentsize, e_shnum
    sections = [_section(data, start + index * size) for index in range(count)]
    needed: list[str] = []
    versions: set[str] = set()
    for section in sections:
        if section.type == _DYNAMIC:
            strings = sections[section.link].offset
            entries = struct.iter_unpack("<qQ", data[section.offset : section.offset + section.size])
            needed += [_text(data, strings + value) for tag, value in entries if tag == _NEEDED]
        elif section.type == _VERNEED:
            versions.update(_versions(data, section, sections[section.link].offset))
    return Wants(tuple(sorted(needed)), tuple(sorted(versions)))


def _section(data: bytes, offset: int) -> _Section:
    _, kind, _, _, start, size, link, info = struct.unpack_from("<IIQQQQII", data, offset)
    return _Section(kind, start, size, link, info)


def _versions(data: bytes, section: _Section, strings: int) -> Iterator[str]:
    at = section.offset
    for _ in range(section.info):
        _, n_names, _, first, following = struct.unpack_from("<HHIII", data, at)
        name_at = at + first
        for _ in range(n_names):
            _, _, _, name, after = struct.unpack_from("<IHHII", data, name_at)
            yield _text(data, strings + name)
            name_at += after
        at += following


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode("ascii")
