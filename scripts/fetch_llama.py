#!/usr/bin/env python3
"""Where does third_party/llama.cpp come from? From the source distribution that third_party/llama.cpp.lock pins.

    make fetch                          # through pip, which knows how this host reaches the package index
    make fetch SDIST=FILE.tar.gz        # the same file, brought by hand; MODELD_LLAMA_SDIST=FILE does the same
    cp -r somewhere/llama.cpp third_party/      # or upstream's tree itself: it is taken as it is

Nothing is done when the pinned tree is there. A tree is put in place by one rename: an interrupted fetch leaves nothing half.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "third_party" / "llama.cpp.lock"
TREE = ROOT / "third_party" / "llama.cpp"
MARKER = ".modeld-fetched"  # inside a tree that this script put there; holds the hash of what it came from

# pip wants a package's metadata before it hands out the archive. Upstream's build backend would make it by downloading
# scikit-build-core and CMake, unpinned, and running both. The archive is pinned, so its name and version are known: this
# stand-in tells pip those, and no code from outside runs.
BACKEND = "scikit_build_core/build.py"
BACKEND_STAND_IN = """
import pathlib

def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    folder = pathlib.Path(metadata_directory, "{folder}")
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\\nName: {package}\\nVersion: {version}\\n")
    return folder.name
"""


class FetchError(Exception):
    """The message says what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Lock:
    package: str
    version: str
    sha256: str
    size: int
    tree: str
    commit: str
    llama_h_sha256: str

    @classmethod
    def read(cls, path: Path) -> Lock:
        return cls(**tomllib.loads(path.read_text(encoding="utf-8")))

    @property
    def title(self) -> str:
        return f"{self.package} {self.version} (llama.cpp {self.commit})"


def fetch(lock: Lock, tree: Path, sdist: Path | None) -> str:
    """Puts the pinned tree at `tree` unless one is there. Returns one line that says what was done."""
    found = what_is_there(tree)
    if found == lock.sha256:
        return f"{show(tree)} is {lock.title} already"
    if found == "by hand":
        if sdist is not None:
            raise FetchError(f"{show(tree)} was put there by hand; remove it first to take {sdist} instead")
        return f"{show(tree)} was put there by hand and is taken as it is"

    started = time.monotonic()
    tree.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=tree.parent) as name:
        work = Path(name)
        archive = sdist if sdist is not None else download(lock, work)
        verify(archive, lock)
        fresh = work / "tree"
        count = unpack(archive, lock.tree, fresh)
        (fresh / MARKER).write_text(lock.sha256 + "\n", encoding="utf-8")
        if tree.exists():  # ours, of an older pin; or an empty folder
            tree.rename(work / "old")
        fresh.rename(tree)
    return f"{show(tree)} is {lock.title} now: {count} files, {time.monotonic() - started:.0f} s"


def what_is_there(tree: Path) -> str | None:
    """None, "by hand", or the hash of the archive that this script took it from."""
    if (tree / MARKER).is_file():
        return (tree / MARKER).read_text(encoding="utf-8").strip()
    if (tree / "include" / "llama.h").is_file():
        return "by hand"
    if tree.exists() and any(tree.iterdir()):
        raise FetchError(f"{show(tree)} is there, but holds no include/llama.h: put upstream's whole tree there, or remove it")
    return None


def download(lock: Lock, work: Path) -> Path:
    """The archive, by pip. pip compares the hash as well, so that a wrong one is not even unpacked for its metadata."""
    stand_in = work / "stand-in" / BACKEND
    stand_in.parent.mkdir(parents=True)
    folder = f"{lock.package.replace('-', '_')}-{lock.version}.dist-info"
    stand_in.write_text(BACKEND_STAND_IN.format(folder=folder, package=lock.package, version=lock.version), encoding="utf-8")
    wanted = work / "wanted.txt"
    wanted.write_text(f"{lock.package}=={lock.version} --hash=sha256:{lock.sha256}\n", encoding="utf-8")
    landing = work / "landing"
    scratch = work / "pip"
    scratch.mkdir()
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-cache-dir"),
        *("--no-deps", "--no-binary", lock.package, "--no-build-isolation", "--require-hashes"),
        *("-r", os.fspath(wanted), "-d", os.fspath(landing)),
    ]
    environment = os.environ | {"PYTHONPATH": os.fspath(work / "stand-in"), "TMPDIR": os.fspath(scratch)}
    say(f"fetching {lock.title}, {lock.size / 1e6:.1f} MB")
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        output = watch(process, scratch, lock.size)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    archives = list(landing.glob("*.tar.gz"))
    if process.returncode != 0 or len(archives) != 1:
        raise FetchError(
            f"pip could not bring {lock.package} {lock.version} (exit status {process.returncode}):\n{output.rstrip()}\n"
            "Without a way to the package index: bring the file by hand and run `make fetch SDIST=FILE`,"
            f" or put llama.cpp's tree (commit {lock.commit}) at {show(TREE)}."
        )
    return archives[0]


def watch(process: subprocess.Popen[str], scratch: Path, total: int) -> str:
    """Tells how far pip's download is until pip ends: on one line of a terminal, every few seconds elsewhere."""
    terminal = sys.stderr.isatty()
    done = 0
    while True:
        try:
            output, _ = process.communicate(timeout=0.2 if terminal else 3)
        except subprocess.TimeoutExpired:
            size = largest_archive(scratch)
            if size > done:
                done = size
                print(f"  {done / 1e6:5.1f} of {total / 1e6:.1f} MB", end="\r" if terminal else "\n", file=sys.stderr, flush=True)
        else:
            return output


def largest_archive(scratch: Path) -> int:
    sizes = [0]
    for folder, _, names in os.walk(scratch):  # does not mind what pip removes meanwhile
        for name in names:
            if name.endswith(".tar.gz"):
                with contextlib.suppress(OSError):  # pip has just moved it
                    sizes.append(Path(folder, name).stat().st_size)
    return max(sizes)


def verify(archive: Path, lock: Lock) -> None:
    try:
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FetchError(f"cannot read {archive}: {error.strerror}") from None
    if digest != lock.sha256:
        raise FetchError(f"{archive.name} is not {lock.title}:\n  its sha256 is {digest}\n  the lock wants   {lock.sha256}")


def unpack(archive: Path, inner: str, target: Path) -> int:
    """Copies the regular files below TOP/inner into target, whatever else the archive holds. Returns their number."""
    say(f"unpacking {inner}")
    below = PurePosixPath(inner).parts
    count = 0
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            inside = parts[1 + len(below) :]
            if parts[1 : 1 + len(below)] != below or not member.isfile() or inside == (".git",):
                continue
            if not inside or ".." in inside:
                raise FetchError(f"{archive.name} holds a file with the name {member.name!r}; nothing was unpacked")
            path = target.joinpath(*inside)
            path.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(member)
            assert source is not None  # a regular file
            with source, path.open("xb") as file:
                shutil.copyfileobj(source, file)
            if member.mode & 0o100:
                path.chmod(0o755)
            count += 1
    if not (target / "include" / "llama.h").is_file():
        raise FetchError(f"{archive.name} holds no {inner}/include/llama.h")
    return count


def show(path: Path) -> str:
    return os.fspath(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def say(text: str) -> None:
    print(f"fetch: {text}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Bring the llama.cpp that third_party/llama.cpp.lock pins.")
    parser.add_argument(
        "--sdist", type=Path, default=os.environ.get("MODELD_LLAMA_SDIST") or None, help="the archive, if it is here"
    )
    parser.add_argument("--lock", type=Path, default=LOCK)
    parser.add_argument("--tree", type=Path, default=TREE)
    args = parser.parse_args()
    try:
        say(fetch(Lock.read(args.lock), args.tree, args.sdist))
    except FetchError as error:
        print(f"fetch: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
