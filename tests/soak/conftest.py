"""What several of the long tests want made once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.dist.twice import copy_tree
from tests.daemon import ROOT
from tests.dist_set import native_set

OLD = "0.0.9"


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles of `make dist`, unpacked: "new" is this version, "old" the same as an older one."""
    folder = tmp_path_factory.mktemp("bundles")
    older = folder / "tree"
    copy_tree(older)
    init = older / "modeld" / "__init__.py"
    init.write_text(re.sub(r'__version__ = ".*"', f'__version__ = "{OLD}"', init.read_text()))
    found = {}
    for name, place in (("new", ROOT), ("old", older)):
        command = [sys.executable, "-m", "scripts.dist", "--out", os.fspath(folder / name), "--fast", *libraries()]
        subprocess.run(command, cwd=place, check=True, env=os.environ | {"SOURCE_DATE_EPOCH": "1767225600"})
        [archive] = (folder / name).glob("*.tar.gz")
        subprocess.run(["tar", "-xzf", os.fspath(archive), "-C", os.fspath(folder / name)], check=True)
        found[name] = folder / name / archive.name.removesuffix(".tar.gz")
    return found


def libraries() -> list[str]:
    """The set of `make release`; where there is none, this host's own library as the only one of a set."""
    if list((ROOT / "build" / "release").glob("*/libllama.so")):
        return ["--libraries", os.fspath(ROOT / "build" / "release")]
    return ["--libraries", os.fspath(native_set(ROOT / "build" / "native-set")), "--allow-native"]
