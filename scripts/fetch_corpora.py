#!/usr/bin/env python3
"""Where do the requests that tests replay come from? From gunicorn's source distribution, which third_party/gunicorn.lock pins.

Its tests hold requests that a server must refuse and requests that it must read. Only these files are unpacked, into build/,
and nothing of them is run. `make test` calls this.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from scripts.sdist import ROOT, FetchError, Pin, download, say, show, unpack, verify

LOCK = ROOT / "third_party" / "gunicorn.lock"
BACKEND = "setuptools/build_meta.py"


def folder_of(pin: Pin) -> Path:
    return ROOT / "build" / "corpora" / f"{pin.package}-{pin.version}"


def fetch(pin: Pin, folder: Path) -> str:
    """Puts the corpora at `folder` unless they are there. Returns one line that says what was done."""
    if folder.is_dir():
        return f"{show(folder)} is there already"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as name:
        work = Path(name)
        archive = download(pin, BACKEND, work)
        verify(archive, pin)
        count = unpack(archive, pin.tree, work / "tree")
        (work / "tree").rename(folder)
    return f"{show(folder)} has {count} files of {pin.title} now"


def main() -> int:
    pin = Pin.read(LOCK)
    try:
        say(fetch(pin, folder_of(pin)))
    except FetchError as error:
        print(f"fetch: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
