"""The state file: what is there after any end of the process, and that nothing it may hold stops a start."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeld.manager import statefile
from modeld.manager.remembered import Identity, ModelFile, Remembered
from modeld.manager.statefile import BAD, FILE, LOCK, MAX_BYTES, NEW, StateFile, state_folder
from modeld.policy import AtStart
from tests.short_files import files_no_longer_than

ROOT = Path(__file__).resolve().parent.parent
A: Identity = (1, 10, 100, 1000)
B: Identity = (1, 20, 200, 2000)
NOW = 1000.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@contextmanager
def opened(folder: Path | None) -> Iterator[StateFile]:
    """A life of a daemon, ended as kill -9 does it: nothing is written at the end."""
    with closing(StateFile(folder, clock=lambda: NOW)) as state:
        yield state


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# -- from one life to the next


def test_the_next_life_knows_what_the_last_one_did(folder: Path) -> None:
    with opened(folder) as state:
        assert state.at_start(["a", "b"], "b", AtStart.LAST, lambda _id: None).model_id == "b"
        state.trying("a", A)
        state.loaded("a", A, "/models/a")
        state.vouch("/models/b", B)
        before = state.remembered
    with opened(folder) as state:
        assert state.remembered == before
        assert (state.died_loading, state.problem) == (None, None)
        assert state.is_vouched("/models/a", A)
        assert state.is_vouched("/models/b", B)
        assert state.at_start(["a", "b"], "b", AtStart.LAST, lambda _id: None).model_id == "a"
        state.unloaded()
    with opened(folder) as state:
        assert state.at_start(["a", "b"], "b", AtStart.LAST, lambda _id: None).model_id is None


def test_a_process_that_dies_in_a_load_twice_leaves_a_quarantine(folder: Path) -> None:
    with opened(folder) as state:
        state.loaded("a", A, "/models/a")
        state.trying("b", B)
    with opened(folder) as state:
        assert state.died_loading == ModelFile("b", B)
        choice = state.at_start(["a", "b"], None, AtStart.LAST, lambda _id: B)
        assert (choice.model_id, choice.quarantined) == ("a", ())
        assert "died while it loaded 'b'" in choice.reason
        state.trying("b", B)
    with opened(folder) as state:
        quarantine = state.quarantine_of("b", B)
        assert quarantine is not None
        assert (quarantine.crashes, quarantine.since) == (2, NOW)
    with opened(folder) as state:
        assert state.died_loading is None  # it is counted once
        state.lift("b")
    with opened(folder) as state:
        assert state.quarantine_of("b", B) is None


def test_a_load_that_failed_while_the_process_lived_is_no_crash(folder: Path) -> None:
    with opened(folder) as state:
        state.trying("b", B)
        state.ended()
    with opened(folder) as state:
        assert state.died_loading is None
        assert not state.remembered.crashes


def test_a_default_that_changed_while_the_daemon_ran_counts_as_said_before_the_next_load(folder: Path) -> None:
    with opened(folder) as state:
        state.at_start(["a", "b"], "a", AtStart.LAST, lambda _id: None)
        state.loaded("a", A, "/models/a")
        state.configured("b")
    with opened(folder) as state:
        assert state.at_start(["a", "b"], "b", AtStart.LAST, lambda _id: None).model_id == "b"
        state.loaded("a", A, "/models/a")
    with opened(folder) as state:
        assert state.at_start(["a", "b"], "b", AtStart.LAST, lambda _id: None).model_id == "a"


def test_without_a_folder_memory_goes_on() -> None:
    with opened(None) as state:
        state.trying("a", A)
        state.loaded("a", A, "/models/a")
        state.sync()
        assert state.remembered.wanted == "a"
        assert (state.folder, state.problem) == (None, None)


def test_nobody_else_may_read_it(folder: Path) -> None:
    before = os.umask(0)
    try:
        with opened(folder) as state:
            state.loaded("a", A, "/models/a")
            state.sync()
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {name: stat.S_IMODE((folder / name).stat().st_mode) for name in names(folder)} == {FILE: 0o600, LOCK: 0o600}


def test_the_same_again_is_not_written_again(folder: Path) -> None:
    with opened(folder) as state:
        state.loaded("a", A, "/models/a")
        inode = (folder / FILE).stat().st_ino
        state.loaded("a", A, "/models/a")
        state.ended()
        state.lift("a")
        assert (folder / FILE).stat().st_ino == inode


def test_sync_brings_file_and_folder_to_the_disk(folder: Path) -> None:
    synced: list[str] = []

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    with opened(folder) as state:
        state.sync()  # nothing is there yet
        with patch.object(os, "fsync", fsync):
            state.loaded("a", A, "/models/a")
            assert synced == []
            state.sync()
        assert synced == [FILE, folder.name]
        state.sync()
        assert state.problem is None


def test_a_folder_that_is_a_link_keeps_its_state(folder: Path, tmp_path: Path) -> None:
    """systemd's StateDirectory= with DynamicUser=: /var/lib/modeld leads to /var/lib/private/modeld."""
    folder.mkdir(parents=True, exist_ok=True)
    (tmp_path / "link").symlink_to(folder)
    with opened(tmp_path / "link") as state:
        state.loaded("a", A, "/models/a")
        state.sync()
        assert state.problem is None


# -- two daemons


def test_a_second_daemon_leaves_the_folder_alone_until_the_first_has_gone(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(folder) as first:
        first.loaded("a", A, "/models/a")
        with opened(folder) as second:
            assert second.folder is None
            assert second.problem is not None
            assert len(warnings(caplog)) == 1
            second.trying("b", B)
            second.sync()
            second.loaded("b", B, "/models/b")
            assert second.remembered.wanted == "b"
        first.ended()
    with opened(folder) as third:
        assert (third.remembered.wanted, third.problem) == ("a", None)


def test_the_lock_does_not_live_on_in_a_child(folder: Path) -> None:
    """As a probe or a tool that the daemon started and left behind."""
    with opened(folder):
        command = [sys.executable, "-c", "print(input('runs\\n'))"]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False)
        assert child.stdout is not None
        assert child.stdout.readline() == b"runs\n"  # before that it may still be on its way from fork to exec
    try:
        with opened(folder) as state:
            assert state.problem is None
    finally:
        child.communicate(b"\n")


# -- what a disk may do


def test_a_full_disk_is_said_once_and_what_was_there_stays(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(folder) as state:
        state.loaded("a", A, "/models/a")
        with files_no_longer_than(10):
            state.trying("b", B)
            state.loaded("b", B, "/models/b")
        assert state.problem is not None
        assert os.strerror(errno.EFBIG) in state.problem
        assert state.remembered.wanted == "b"
        assert len(warnings(caplog)) == 1
        assert names(folder) == {FILE, LOCK}
    with opened(folder) as state:
        assert state.remembered.wanted == "a"


def test_what_could_not_be_written_is_written_as_soon_as_it_can(folder: Path) -> None:
    with opened(folder) as state:
        state.loaded("a", A, "/models/a")
        with files_no_longer_than(10):
            state.loaded("b", B, "/models/b")
        state.ended()  # changes nothing by itself
        assert state.problem is None
    with opened(folder) as state:
        assert state.remembered.wanted == "b"


def test_a_folder_that_is_removed_under_a_running_daemon_is_said_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(folder) as state:
        shutil.rmtree(folder)
        state.trying("a", A)
        state.loaded("a", A, "/models/a")
        state.sync()
        assert state.problem is not None
        assert len(warnings(caplog)) == 1
        folder.mkdir()
        state.unloaded()
        assert state.problem is None


@pytest.mark.parametrize("below", ["file", "file/below", "x" * 300, "loop"])
def test_a_folder_that_cannot_be_made_does_not_stop_a_start(tmp_path: Path, below: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with opened(tmp_path / below) as state:
        state.trying("a", A)
        state.loaded("a", A, "/models/a")
        assert (state.folder, state.remembered.wanted) == (None, "a")
        assert state.problem is not None
    assert len(warnings(caplog)) == 1


# -- what a file may hold


def write(data: bytes) -> Callable[[Path], None]:
    return lambda path: (path.write_bytes(data), None)[1]


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def directory(path: Path) -> None:
    path.mkdir()
    (path / "content").touch()


def of_tomorrow(path: Path) -> None:
    path.write_text(json.dumps({**Remembered().to_json(), "version": 2}))


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + (1 << 40))


HOSTILE: dict[str, Callable[[Path], None]] = {
    "empty": write(b""),
    "zeros": write(bytes(512)),  # what some file systems make of a loss of power
    "cut": write(b'{"version": 1, "last_g'),
    "no UTF-8": write(b'{"version": "\xff"}'),
    "deep": write(b"[" * 200_000),
    "deep object": write(b'{"version": 1, "trying": ' + b'{"a":' * 900 + b"1" + b"}" * 901),
    "a long number": write(b'{"version": ' + b"9" * 100_000 + b"}"),
    "other types": write(b'{"version": 1, "last_good": 5}'),
    "another version": of_tomorrow,
    "huge": huge,
    "directory": directory,
    "pipe": os.mkfifo,
    "link": link_to("/etc/hostname"),
    "link to nothing": link_to("nowhere"),
    "link to itself": link_to(FILE),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("earlier", [None, "file"])
def test_a_file_that_makes_no_sense_is_set_aside(
    folder: Path, make: Callable[[Path], None], earlier: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    folder.mkdir()
    if earlier is not None:
        (folder / BAD).write_text(earlier)
    make(folder / FILE)
    inode = (folder / FILE).lstat().st_ino
    with opened(folder) as state:
        assert (state.remembered, state.problem) == (Remembered(), None)
        assert (folder / BAD).lstat().st_ino == inode
        [warning] = warnings(caplog)
        assert BAD in warning
        state.loaded("a", A, "/models/a")
    with opened(folder) as state:
        assert state.remembered.wanted == "a"
    assert names(folder) == {FILE, BAD, LOCK}


def test_what_cannot_be_set_aside_is_said_and_memory_goes_on(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.mkdir()
    directory(folder / FILE)
    directory(folder / BAD)
    with opened(folder) as state:
        state.loaded("a", A, "/models/a")
        state.unloaded()
        assert state.problem is not None
        assert state.remembered.last_good == ModelFile("a", A)
    assert len(warnings(caplog)) == 2  # what is wrong with the file, and that nothing is kept


def test_the_stray_of_a_killed_write_is_removed_and_never_written_through(folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    precious = tmp_path / "precious"
    precious.write_text("stays")
    (folder / NEW).symlink_to(precious)
    with opened(folder) as state:
        assert names(folder) == {LOCK}
        (folder / NEW).symlink_to(precious)
        state.loaded("a", A, "/models/a")
        assert os.strerror(errno.EEXIST) in str(state.problem)
        state.unloaded()  # what stood in the way is gone now
        assert state.problem is None
    assert precious.read_text() == "stays"


# -- killed at any moment


class Killed(BaseException):
    """What kill -9 is to a process; nothing in the state file catches it."""


class DyingOs:
    """`os`, in which the process dies at its n-th call that changes the disk: before it, or after half of a write."""

    def __init__(self, n: int) -> None:
        self._left = n
        self._open: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _die(self) -> bool:
        self._left -= 1
        return self._left < 0

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        if flags & os.O_EXCL and self._die():
            raise Killed
        descriptor = os.open(path, flags, mode)
        self._open.add(descriptor)
        return descriptor

    def close(self, descriptor: int) -> None:
        os.close(descriptor)
        self._open.remove(descriptor)

    def end(self) -> None:
        """The system closes what the process had open, its lock among it."""
        for descriptor in list(self._open):
            self.close(descriptor)

    def write(self, descriptor: int, data: memoryview) -> int:
        if self._die():
            os.write(descriptor, data[: len(data) // 2])
            raise Killed
        return os.write(descriptor, data)

    def rename(self, old: Path, new: Path) -> None:
        if self._die():
            raise Killed
        old.rename(new)


IDENTITIES = st.sampled_from([A, B, (1, 20, 200, 2001), None])
MODELS = st.sampled_from(["a", "b", "c"])
CALLS = st.one_of(
    st.tuples(st.just("trying"), MODELS, IDENTITIES),
    st.tuples(st.just("loaded"), MODELS, IDENTITIES, st.sampled_from(["/models/1", "/models/2"])),
    st.tuples(st.just("ended")),
    st.tuples(st.just("unloaded")),
    st.tuples(st.just("lift"), MODELS),
    st.tuples(st.just("vouch"), st.sampled_from(["/models/1", "/models/2"]), IDENTITIES),
    st.tuples(st.just("configured"), st.one_of(st.none(), MODELS)),
    st.tuples(st.just("sync")),
)
LIVES = st.lists(st.tuples(st.lists(CALLS, max_size=8), st.integers(0, 25)), min_size=1, max_size=6)


@given(LIVES)
@settings(max_examples=300, deadline=None)
def test_whenever_the_process_is_killed_the_next_one_finds_what_was_before_or_after_the_call(lives: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        possible = [Remembered()]  # what the next life may find
        for calls, kill_at in lives:
            dying, twin = DyingOs(kill_at), None
            with patch.object(statefile, "os", dying):
                try:
                    state = StateFile(folder, clock=lambda: NOW)
                    expected = [memory.after_death(NOW) for memory in possible]
                    assert state.remembered in expected
                    possible = [state.remembered]
                    twin = StateFile(None, clock=lambda: NOW)
                    twin.remembered = state.remembered
                    for method, *arguments in calls:
                        getattr(twin, method)(*arguments)
                        possible = [possible[-1], twin.remembered]
                        getattr(state, method)(*arguments)
                        possible = [twin.remembered]
                        assert (state.remembered, state.problem) == (twin.remembered, None)
                except Killed:
                    if twin is None:  # it died while it counted the death of the one before
                        possible += [memory.after_death(NOW) for memory in possible]
                dying.end()
            assert names(folder) <= {FILE, LOCK, NEW}


CHILD = """
import os, random, sys
from pathlib import Path
from modeld.manager.statefile import StateFile

state = StateFile(Path(sys.argv[1]))
random.seed(int(sys.argv[2]))
state.at_start(["good", "bad"], "good", "last", lambda model_id: None)
while True:
    for model_id, inode in (("good", 1), ("bad", 2)):
        os.write(1, b".")
        state.trying(model_id, (1, inode, 100, 1000))
        if model_id == "bad":
            state.ended()
        elif random.random() < 0.8:
            state.loaded(model_id, (1, inode, 100, 1000), "/models/good")
        else:
            state.unloaded()
"""


def test_kill_9_at_any_moment_leaves_a_file_that_can_be_read_and_accuses_nobody_else(folder: Path) -> None:
    chance = random.Random(9)
    folder.mkdir()
    died_in: list[str] = []  # what each process was loading when it was killed
    for n in range(30):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder), str(n)], cwd=ROOT, stdout=subprocess.PIPE, bufsize=0)
        with child:
            assert child.stdout is not None
            for _ in range(chance.randrange(1, 60)):
                assert child.stdout.read(1) == b"."
            child.kill()
        found = Remembered()
        if (folder / FILE).exists():
            found = Remembered.from_json(json.loads((folder / FILE).read_bytes()))
        if found.trying is not None:
            died_in.append(found.trying.model_id)
        with closing(StateFile(folder, clock=lambda: NOW)) as state:
            assert state.problem is None
            assert state.remembered == found.after_death(NOW)
            quarantined = state.at_start(["good", "bad"], "good", AtStart.LAST, lambda _id: None).quarantined
            for row in quarantined:
                assert died_in.count(row.model_id) >= 2
        assert names(folder) <= {FILE, LOCK}


# -- where it is


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"STATE_DIRECTORY": "/var/lib/modeld", "HOME": "/home/me"}, "/var/lib/modeld"),
        ({"STATE_DIRECTORY": "/var/lib/modeld:/var/lib/more"}, "/var/lib/modeld"),
        ({"XDG_STATE_HOME": "/x", "HOME": "/home/me"}, "/x/modeld/models-1a0c8284"),
        (
            {"STATE_DIRECTORY": "", "XDG_STATE_HOME": "relative", "HOME": "/home/me"},
            "/home/me/.local/state/modeld/models-1a0c8284",
        ),
        ({"HOME": "relative"}, None),
        ({}, None),
    ],
)
def test_the_folder_is_the_units_or_one_of_this_configuration(environ: dict[str, str], expected: str | None) -> None:
    found = state_folder(Path("/etc/modeld/models.yaml"), environ)
    assert (None if found is None else str(found)) == expected


def test_two_configurations_have_two_folders_and_one_has_one_from_wherever_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {"HOME": "/home/me"}
    assert state_folder(Path("models.yaml"), environ) == state_folder(tmp_path / "models.yaml", environ)
    assert state_folder(Path("models.yaml"), environ) != state_folder(tmp_path / "more" / "models.yaml", environ)
