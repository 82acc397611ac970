"""Against whom? llama-server and llama-batched-bench from the pinned source, with upstream's options, built once.

B   with the mend of cmake/AmxMend.cmake, as our library has it: the fair opponent
A   with AMX left out: what somebody falls back to whose compiler needs the mend; the same as B on a CPU without AMX
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE / ".cache" / "peers"
PROGRAMS = ("llama-server", "llama-batched-bench")


def names() -> tuple[str, ...]:
    """The peers worth measuring on this CPU."""
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    return ("B", "A") if "amx_tile" in flags.split() else ("B",)


def program(peer: str, name: str) -> Path:
    """The path of a peer's program; built when it is not there (4 minutes on 2 cores)."""
    path = CACHE / peer / "bin" / name
    if not path.is_file():
        build(peer)
    return path


def build(peer: str) -> None:
    folder = CACHE / peer
    if all((folder / "bin" / name).is_file() for name in PROGRAMS):
        return
    print(f"building peer {peer} into {folder}", file=sys.stderr, flush=True)
    cmake = shutil.which("cmake") or os.fspath(Path(sys.executable).with_name("cmake"))
    commit = tomllib.loads((HERE.parent / "third_party" / "llama.cpp.lock").read_text())["commit"]
    amx = "OFF" if peer == "A" else "ON"
    configure: list[str | Path] = [
        cmake,
        "-S",
        HERE / "llama_server",
        "-B",
        folder,
        f"-DPEER_AMX={amx}",
        f"-DLLAMA_BUILD_COMMIT={commit}",
    ]
    if shutil.which("ninja") and "CMAKE_GENERATOR" not in os.environ:
        configure += ["-G", "Ninja"]
    jobs = str(len(os.sched_getaffinity(0)))
    compile_: list[str | Path] = [cmake, "--build", folder, "-j", jobs, "--target", *PROGRAMS]
    for command in (configure, compile_):
        subprocess.run(command, check=True, stdout=sys.stderr)


def build_all() -> None:
    for peer in names():
        build(peer)
    if "A" not in names():
        print("peer A is not built: this CPU has no AMX, so it would be the same program as B", file=sys.stderr)
