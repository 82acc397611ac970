#!/usr/bin/env python3
"""Where does third_party/llama.cpp come from? From the source distribution that third_party/llama.cpp.lock pins.

    make fetch                          # through pip, which knows how this host reaches the package index
    make fetch SDIST=FILE.tar.gz        # the same file, brought by hand; MODELD_LLAMA_SDIST=FILE does the same
    cp -r somewhere/llama.cpp third_party/      # or upstream's tree itself: it is taken as it is

Nothing is done when the pinned tree is there. A tree is put in place by one rename: an interrupted fetch leaves nothing half.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from scripts.sdist import ROOT, FetchError, Pin, download, say, show, unpack, verify

LOCK = ROOT / "third_party" / "llama.cpp.lock"
TREE = ROOT / "third_party" / "llama.cpp"
MARKER = ".modeld-fetched"  # inside a tree that this script put there; holds the hash of what it came from
BACKEND = "scikit_build_core/build.py"


@dataclass(frozen=True, slots=True)
class Lock(Pin):
    commit: str
    llama_h_sha256: str

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
        archive = sdist if sdist is not None else bring(lock, work)
        verify(archive, lock)
        fresh = work / "tree"
        count = unpack(archive, lock.tree, fresh)
        if not (fresh / "include" / "llama.h").is_file():
            raise FetchError(f"{archive.name} holds no {lock.tree}/include/llama.h")
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


def bring(lock: Lock, work: Path) -> Path:
    try:
        return download(lock, BACKEND, work)
    except FetchError as error:
        raise FetchError(
            f"{error}\nWithout a way to the package index: bring the file by hand and run `make fetch SDIST=FILE`,"
            f" or put llama.cpp's tree (commit {lock.commit}) at {show(TREE)}."
        ) from None


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
