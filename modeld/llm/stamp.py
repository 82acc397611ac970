"""Is this libllama.so the one that was built and tested for this binding? The stamp beside it says, before it is opened.

A ctypes call into a library with another layout corrupts memory in silence, so nothing is called before the comparison.
`make build` writes the stamp last, after the self-test: a library that was changed, not tested or half built has none
that fits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from modeld.errors import LibraryMismatch
from modeld.llm.libllama import LLAMA_COMMIT, LLAMA_H_SHA256

UNKNOWN_COMMIT = "unknown"
# Of /proc/cpuinfo's flags, those that name instructions; the others (mitigations, virtualization) change with the kernel.
INSTRUCTIONS = re.compile(
    r"avx|amx|fma|f16c|bmi|s?sse|pni$|gfni|vaes|vpclmul|movbe|adx|abm|popcnt|sha_ni|sve|asimd|i8mm|bf16|dotprod|fphp"
)


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a library was made from. Digests are sha256 in hex."""

    llama_commit: str
    llama_h_sha256: str
    flags: dict[str, str]  # compiler, build type, backends, options of ggml, the AMX mend (cmake/Flags.cmake)
    cpu_flags: list[str]  # instructions that the library may use: the building host's, or the variant's; empty: not known
    library_sha256: str
    layout_sha256: str  # of the C file by which the compiler checked the binding (modeld.llm.abi)


def stamp_path(library: Path) -> Path:
    """libllama.so -> libllama.stamp.json in the same folder."""
    return library.with_suffix(".stamp.json")


def verify(library: Path) -> Stamp:
    """The stamp of a library that may be opened. Reads the whole file (8 MB: 6 ms).

    Raises LibraryMismatch, which names both sides, when there is no stamp, or it is another library's or another header's.
    """
    if not library.is_file():
        raise LibraryMismatch(f"{library} is not there; `make build` makes build/libllama.so")
    path = stamp_path(library)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise LibraryMismatch(
            f"{library} has no {path.name} beside it, so it has not passed the self-test of a build; run `make build`"
        ) from None
    stamp = parse(text, where=str(path))
    check_binding(stamp, where=str(library))
    check_cpu(stamp, where=str(library))
    with library.open("rb") as file:
        check_library(stamp, hashlib.file_digest(file, "sha256").hexdigest(), where=str(library))
    return stamp


def parse(text: str, *, where: str) -> Stamp:
    try:
        values = json.loads(text)
        return Stamp(**{field.name: values[field.name] for field in fields(Stamp)})
    except (ValueError, TypeError, KeyError) as error:
        raise LibraryMismatch(f"{where} is not a stamp of `make build` ({error!r}); run `make build`") from None


def check_binding(stamp: Stamp, *, where: str) -> None:
    """The library's llama.h must be the one that modeld/llm/libllama.py was written for."""
    if stamp.llama_h_sha256 != LLAMA_H_SHA256:
        raise LibraryMismatch(
            f"{where} was built from llama.cpp {stamp.llama_commit} (llama.h {stamp.llama_h_sha256[:12]}...), but this modeld is"
            f" written for {LLAMA_COMMIT} (llama.h {LLAMA_H_SHA256[:12]}...); run `make build` in this modeld's source tree"
        )


def check_cpu(stamp: Stamp, *, where: str) -> None:
    """A library built for another CPU ends the process at its first unknown instruction."""
    if missing := lacking(stamp):
        raise LibraryMismatch(
            f"{where} was built for a CPU with {', '.join(missing)}, which this host's lacks; build it here, or for every"
            ' CPU of its kind: make build CMAKE_FLAGS="-DGGML_NATIVE=OFF"'
        )


def lacking(stamp: Stamp) -> list[str]:
    """The instructions that the library may use and this host's CPU does not name. None where Linux names none at all, as in a
    sandbox without /proc/cpuinfo: nothing is known then."""
    named = cpu_flags() if stamp.cpu_flags else []
    return sorted(set(stamp.cpu_flags) - set(named)) if named else []


def check_library(stamp: Stamp, digest: str, *, where: str) -> None:
    if digest != stamp.library_sha256:
        raise LibraryMismatch(
            f"{where} is not the library that was tested: its sha256 is {digest[:12]}..., the stamp's"
            f" {stamp.library_sha256[:12]}...; run `make build`"
        )


def write(library: Path, *, llama_h: Path, layout_check: Path, flags: dict[str, str]) -> Stamp:
    """Stamps a library that has just passed its self-test. Of a variant's flags, `needs` becomes cpu_flags."""
    header = digest_of(llama_h)
    needs = flags.get("needs", "").split()
    native = cpu_flags() if flags.get("GGML_NATIVE") == "ON" else []
    stamp = Stamp(
        llama_commit=LLAMA_COMMIT if header == LLAMA_H_SHA256 else UNKNOWN_COMMIT,
        llama_h_sha256=header,
        flags={name: value for name, value in flags.items() if name != "needs"},
        cpu_flags=sorted(needs) or native,
        library_sha256=digest_of(library),
        layout_sha256=digest_of(layout_check),
    )
    path = stamp_path(library)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(asdict(stamp), indent=2) + "\n", encoding="utf-8")
    part.replace(path)
    return stamp


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """The instruction sets of this host that a compiler may use for -march=native; empty where Linux does not name them."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)  # x86; arm64
    return sorted(name for name in (match[1].split() if match else []) if INSTRUCTIONS.match(name))


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(prog="modeld.llm.stamp", description="Stamp a library that has passed its self-test.")
    parser.add_argument("library", type=Path)
    parser.add_argument("--llama-h", type=Path, required=True)
    parser.add_argument("--layout-check", type=Path, required=True, help="the C file that modeld.llm.abi generated")
    parser.add_argument("--flags", type=Path, required=True, help="what CMake wrote: a line NAME=VALUE for each flag")
    args = parser.parse_args()
    lines = args.flags.read_text(encoding="utf-8").splitlines()
    flags = dict(line.split("=", 1) for line in lines if line)
    stamp = write(args.library, llama_h=args.llama_h, layout_check=args.layout_check, flags=flags)
    print(f"{args.library}: llama.cpp {stamp.llama_commit}, sha256 {stamp.library_sha256[:12]}...; stamped")


if __name__ == "__main__":
    main()
