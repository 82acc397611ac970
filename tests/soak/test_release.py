"""`make release`: each library runs on the CPUs that it is for and on no lesser one, and two trees make the same bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from modeld.llm import stamp, variants
from modeld.llm.bundle import LibrarySet
from tests.daemon import ROOT, Daemon, demo_config, kept_beside

pytestmark = [pytest.mark.soak, pytest.mark.skipif(os.uname().machine != "x86_64", reason="releases are for x86-64")]

DIES = 128 + 4  # how qemu tells SIGILL


@pytest.fixture(scope="module")
def release() -> Path:
    """The set, of this tree."""
    subprocess.run(["make", "-s", "release", "UNTESTED=1"], cwd=ROOT, check=True)
    return ROOT / "build" / "release"


@pytest.fixture(scope="module")
def other_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this tree, somewhere else, with nothing built. llama.cpp and the environment are the same."""
    tree = tmp_path_factory.mktemp("another") / "place" / "altogether"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    (tree / ".venv").symlink_to(ROOT / ".venv")
    (tree / "third_party" / "llama.cpp").symlink_to((ROOT / "third_party" / "llama.cpp").resolve())
    return tree


def bundled(tree: Path, target: Path) -> bytes:
    script, libraries = tree / "scripts" / "bundle.py", tree / "build" / "release"
    subprocess.run([sys.executable, script, target, "--libraries", libraries], check=True)
    return target.read_bytes()


def test_two_trees_make_the_same_bytes(release: Path, other_tree: Path, tmp_path: Path) -> None:
    subprocess.run(["make", "-s", "release", "UNTESTED=1"], cwd=other_tree, check=True)
    other = other_tree / "build" / "release"
    names = sorted(path.relative_to(release) for path in release.rglob("*") if path.is_file())
    assert len(names) == 2 * len(variants.NAMES)
    assert names == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    assert [name for name in names if (release / name).read_bytes() != (other / name).read_bytes()] == []
    assert bundled(ROOT, tmp_path / "one") == bundled(other_tree, tmp_path / "two")


def test_nothing_of_a_release_is_built_again(release: Path) -> None:
    done = subprocess.run(["make", "-s", "release", "UNTESTED=1"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == ""


@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="no qemu-x86_64 (Debian: qemu-user), which can be a lesser CPU")
@pytest.mark.parametrize(
    ("cpu", "variant", "runs"),
    [
        ("Nehalem", "x86-64-v2", True),
        ("Nehalem", "x86-64-v3", False),
        ("Haswell-noTSX", "x86-64-v3", True),
        ("Haswell-noTSX", "x86-64-v4", False),
    ],
)
def test_each_runs_on_the_cpus_that_it_is_for(release: Path, tmp_path: Path, cpu: str, variant: str, *, runs: bool) -> None:
    python = os.path.realpath(sys.executable)
    library = release / variant / "libllama.so"
    done = subprocess.run(
        ["qemu-x86_64", "-cpu", cpu, python, "-m", "modeld.llm.selftest", "--here", library],
        cwd=tmp_path,  # where it leaves its core
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in ((0,) if runs else (DIES, -4)), done.stderr
    assert ("within" in done.stdout) == runs


def test_a_release_serves_with_the_best_that_runs_here(release: Path, tmp_path: Path) -> None:
    bundled(ROOT, tmp_path / "modeld")
    found = LibrarySet(release, in_zip=False, variants=variants.NAMES)
    best = next(name for name in variants.NAMES if not stamp.lacking(found.stamp(name)))
    config = demo_config(tmp_path)
    env = os.environ | kept_beside(config)
    with Daemon(config, command=(sys.executable, str(tmp_path / "modeld")), env=env) as daemon:
        line = daemon.wait_line(lambda line: line.get("msg") == "library")
        assert line["variant"] == best
        daemon.wait_ready()
        assert daemon.complete(max_tokens=8)["choices"][0]["text"]
