"""The fuzz targets of fuzz/: every kept input passes, all are run by `make fuzz`, and a fault that one finds is told and kept."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import sha1
from pathlib import Path

import pytest

from fuzz import target
from fuzz.target import CORPUS

ROOT = Path(__file__).resolve().parent.parent
NAMES = target.names()
MAX_INPUTS = 500  # of all targets: they are replayed with every run of the tests
MAX_CORPUS_BYTES = 300 << 10


def kept(name: str) -> list[Path]:
    return sorted((CORPUS / name).iterdir())


@pytest.fixture
def files_of_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    target.folder.cache_clear()
    yield
    target.folder.cache_clear()


@pytest.mark.usefixtures("files_of_inputs")
@pytest.mark.parametrize("name", NAMES)
def test_every_kept_input_passes(name: str) -> None:
    tested = target.named(name)
    files = kept(name)
    assert files, f"fuzz/corpus/{name} is empty"
    outcomes = Counter(target.run(tested, data) for data in (*(path.read_bytes() for path in files), *tested.seeds()))
    assert outcomes["read"], "nothing is good in it"
    assert len(outcomes) > 1, "nothing is bad in it"


@pytest.mark.parametrize("name", NAMES)
def test_kept_inputs_are_small_and_named_by_what_they_hold(name: str) -> None:
    for path in kept(name):
        raw = path.read_bytes()
        assert path.name == sha1(raw, usedforsecurity=False).hexdigest()
        assert len(raw) <= target.named(name).max_bytes


def test_the_corpus_stays_small() -> None:
    sizes = [path.stat().st_size for name in NAMES for path in kept(name)]
    assert len(sizes) <= MAX_INPUTS
    assert sum(sizes) <= MAX_CORPUS_BYTES


def test_every_target_is_run_by_make_fuzz_and_has_a_corpus() -> None:
    told = re.search(r"^FUZZ \?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert told is not None
    assert sorted(told[1].split()) == NAMES
    assert sorted(path.name for path in CORPUS.iterdir()) == NAMES
    assert all(f"`{name}`" in (ROOT / "docs" / "building.md").read_text() for name in NAMES)


BOUNDS = """
import time
from fuzz import target
def check(data):
    if data == b"slow":
        end = time.thread_time() + target.MAX_CPU_S
        while time.thread_time() < end: pass
    elif data == b"large":
        bytearray(b"x") * (2 * target.MAX_GROWTH_BYTES)
    return "read"
tested = target.Target((), check, tuple, (), 9)
for data in (b"", b"slow", b"large"):
    try:
        print(target.run(tested, data))
    except AssertionError as error:
        print(error)
"""


def test_an_input_that_takes_too_much_time_or_memory_is_a_fault() -> None:
    # Through a shell: an exec keeps the largest size of the process before it, and that of the tests is larger than the bound.
    command = ["sh", "-c", '"$0" -c "$1"; exit $?', sys.executable, BOUNDS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    read, slow, large = done.stdout.splitlines()
    assert read == "read"
    assert re.fullmatch(r"4 bytes took \d+\.\d s; at most 2\.0 are allowed", slow)
    assert re.fullmatch(r"5 bytes took \d+ bytes of memory; at most 67108864 are allowed", large)


# -- with atheris -----------------------------------------------------------------------------------------------------

Fuzz = Callable[..., subprocess.CompletedProcess[str]]

BROKEN = """
from fuzz.target import Target
def check(data):
    assert b"!" not in data, "no exclamation, please"
    return "read"
TARGET = Target((), check, lambda: [b"ok", b"not ok!"], (b"!",), 64)
"""


@pytest.fixture
def fuzz(tmp_path: Path) -> Fuzz:
    """Runs `python -m fuzz` with a work folder of its own, and a target more, `broken`."""
    pytest.importorskip("atheris", reason="atheris is not installed (it has wheels for x86-64 Linux alone)")
    (tmp_path / "fuzz").mkdir()
    (tmp_path / "fuzz" / "fuzz_broken.py").write_text(BROKEN)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fuzz", "--work", str(tmp_path / "work"), *arguments]
        environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=100, check=False)

    return run


def test_an_input_that_breaks_a_target_is_kept_and_its_path_printed(fuzz: Fuzz) -> None:
    done = fuzz("broken", "--seconds", "5")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "AssertionError: no exclamation, please" in done.stdout
    told = re.search(r"^the input: (\S+)$", done.stdout, re.MULTILINE)
    assert told is not None, done.stdout
    assert b"!" in Path(told[1]).read_bytes()
    again = fuzz("broken", "--try", told[1])
    assert again.returncode == 1
    assert "no exclamation, please" in again.stderr


@pytest.mark.soak
def test_a_short_run_finds_nothing_and_prints_what_it_reached(fuzz: Fuzz) -> None:
    done = fuzz("head", "--seconds", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    told = re.search(r"^head: 5 s, (\d+) executions, \d+/s, (\d+) edges, \d+ features, corpus (\d+) inputs", done.stdout)
    assert told is not None, done.stdout
    assert all(int(number) > 10 for number in told.groups())
    assert re.search(r"^  modeld/httpapi/head\.py: \d+\.\d % of \d+ lines", done.stdout, re.MULTILINE)
