"""Libraries that a CPU does not run, or that compute wrong: copies of the built one with other code where a decode comes by."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from pathlib import Path

LIBRARY = Path(__file__).resolve().parent.parent / "build" / "libllama.so"
CALLED = b"ggml_graph_compute"  # by each decode

FAULTS = {
    "illegal": b"\x0f\x0b",  # ud2: what an instruction is that the CPU does not have
    "hangs": b"\xeb\xfe",  # jmp to itself
    "wrong": b"\x31\xc0\xc3",  # xor eax, eax; ret: success, and nothing is computed
    # kill(getpid(), SIGABRT): mov eax, 39; syscall; mov edi, eax; mov esi, 6; mov eax, 62; syscall
    "aborts": b"\xb8\x27\x00\x00\x00\x0f\x05\x89\xc7\xbe\x06\x00\x00\x00\xb8\x3e\x00\x00\x00\x0f\x05",
}


def put(library_set: Path, variant: str, fault: str | None = None) -> Path:
    """A variant of a set: the built library, with that fault; its stamp says that it passed all the same."""
    folder = library_set / variant
    folder.mkdir(parents=True)
    library = Path(shutil.copy(LIBRARY, folder))
    if fault is not None:
        code = bytearray(library.read_bytes())
        start = function_offset(code, CALLED)
        code[start : start + len(FAULTS[fault])] = FAULTS[fault]
        library.write_bytes(code)
    stamp = json.loads(LIBRARY.with_suffix(".stamp.json").read_text())
    stamp["library_sha256"] = hashlib.sha256(library.read_bytes()).hexdigest()
    stamp["flags"]["variant"] = variant
    library.with_suffix(".stamp.json").write_text(json.dumps(stamp))
    return library


def function_offset(elf: bytes | bytearray, name: bytes) -> int:
    """Where in the file the code of an exported function begins. elf(5), 64 bits, little endian."""
    sections_at, n_sections = struct.unpack_from("<40xQ12xH", elf)  # e_shoff, e_shnum
    sections = [struct.unpack_from("<IIQQQQIIQQ", elf, sections_at + 64 * i) for i in range(n_sections)]
    [(symbols_at, symbols_bytes, strings)] = [(s[4], s[5], sections[s[6]][4]) for s in sections if s[1] == 11]  # SHT_DYNSYM
    for at in range(symbols_at, symbols_at + symbols_bytes, 24):
        name_at, address = struct.unpack_from("<I4xQ", elf, at)
        if elf[strings + name_at : strings + name_at + len(name) + 1] == name + b"\0":
            break
    else:
        raise AssertionError(f"no {name!r} is exported")
    table_at, n_segments = struct.unpack_from("<32xQ16xH", elf)  # e_phoff, e_phnum
    for at in range(table_at, table_at + 56 * n_segments, 56):
        kind, offset, start, n_bytes = struct.unpack_from("<I4xQQ8xQ", elf, at)
        if kind == 1 and start <= address < start + n_bytes:  # PT_LOAD
            return int(offset + address - start)
    raise AssertionError(f"{name!r} lies in no segment")
