"""A set of libraries for tests of what is handed over: this host's own library as the only variant, stripped, with its stamp."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from scripts.dist.release import LIBRARY, STAMP, digest

ROOT = Path(__file__).resolve().parent.parent


def native_set(folder: Path) -> Path:
    """<folder>/x86-64-v3/: no build takes this long, and the code that packs and chooses cannot tell it from a release."""
    variant = folder / "x86-64-v3"
    variant.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "build" / LIBRARY, variant / LIBRARY)
    subprocess.run(["strip", "--strip-all", os.fspath(variant / LIBRARY)], check=True)
    stamp = json.loads((ROOT / "build" / STAMP).read_text())
    stamp["library_sha256"] = digest(variant / LIBRARY)
    (variant / STAMP).write_text(json.dumps(stamp, indent=2) + "\n")
    return folder
