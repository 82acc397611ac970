"""Where is what outlives the process kept? StateFile: one small file that is replaced as a whole, and the lock on its folder.

A write is a temporary file and a rename, so whoever kills the process leaves the old content or the new one. What a loss of
power leaves depends on `sync`, which costs milliseconds and is called when nobody waits.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from modeld.manager.remembered import Identity, IdentityOf, ModelFile, Quarantine, Remembered, StartChoice
from modeld.policy import AtStart

log = logging.getLogger("modeld.switch")

FILE = "state.json"
NEW = "state.json.new"  # being written
BAD = "state.json.bad"  # was found and could not be understood
LOCK = "lock"
MAX_BYTES = 8 << 20  # what 256 paths of 4096 characters can come to


def state_folder(config_path: Path, environ: Mapping[str, str]) -> Path | None:
    """The folder of a daemon that reads that configuration; None: there is no place for one.

    systemd's STATE_DIRECTORY, else a folder for this configuration below XDG_STATE_HOME or ~/.local/state: two daemons of
    one user remember different things.
    """
    given = environ.get("STATE_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given)
    path = Path(os.path.abspath(config_path))  # noqa: PTH100 - without resolving links: the name is what the operator chose
    name = f"{path.stem}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    for variable, below in (("XDG_STATE_HOME", "modeld"), ("HOME", ".local/state/modeld")):
        base = environ.get(variable, "")
        if os.path.isabs(base):  # noqa: PTH117 - "" is no path
            return Path(base, below, name)
    return None


class StateFile:
    """What is remembered, on disk as long as the folder allows it. Made by the main thread, then for the switch thread only,
    but `remembered`, `problem` and `sync`: any thread.

    Nothing here raises for what a disk or another program does: memory goes on, `problem` says what is wrong (None: nothing),
    and the log says it once.
    """

    def __init__(self, folder: Path | None, clock: Callable[[], float] = time.time) -> None:
        """None: nothing is kept. Counts the crash if the process before died while it loaded a model."""
        self.folder: Path | None = None  # None as well where the folder cannot be had; the journal goes with it
        self.problem: str | None = None
        self.remembered = Remembered()
        self.died_loading: ModelFile | None = None  # what the process before was loading when it died
        self._default_model: str | None = None
        self._lock: int | None = None
        if folder is not None and self._take(folder):
            self.folder = folder
            _discard(folder / NEW)  # of a process that was killed while it wrote
            self.remembered = self._read(folder / FILE)
        self.died_loading = self.remembered.trying
        if self.died_loading is not None:
            self.remembered = self.remembered.after_death(clock())
            self._write()
            log.warning("the last process died while it loaded a model", extra={"model_id": self.died_loading.model_id})

    def close(self) -> None:
        """Let another daemon have the folder. Nothing is written any more. Idempotent."""
        self.folder = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def at_start(
        self, registry_ids: Collection[str], default_model: str | None, at_start: AtStart, identity_of: IdentityOf
    ) -> StartChoice:
        """Which model this start loads, and why. Nothing is written: what comes of it is."""
        self._default_model = default_model
        choice = self.remembered.choose(registry_ids, default_model, at_start, identity_of)
        if self.died_loading is None:
            return choice
        return replace(choice, reason=f"{choice.reason}; the last process died while it loaded {self.died_loading.model_id!r}")

    def configured(self, default_model: str | None) -> None:
        """The configuration was read again. Kept with the next load or unload: until then the file has the last word."""
        self._default_model = default_model

    # -- what the switch thread tells

    def trying(self, model_id: str, identity: Identity | None) -> None:
        """A load begins. If the process dies before `loaded`, `unloaded` or `ended`, it died of this."""
        self._change(self.remembered.after_trying(ModelFile(model_id, identity)))

    def loaded(self, model_id: str, identity: Identity | None, path: str) -> None:
        self._change(self.remembered.after_loaded(ModelFile(model_id, identity), path, self._default_model))

    def unloaded(self) -> None:
        """Somebody asked for no model at all: the next start loads none, either."""
        self._change(self.remembered.after_unloaded(self._default_model))

    def ended(self) -> None:
        """The load failed or was cancelled."""
        self._change(self.remembered.after_ended())

    def back_to(self, before: Remembered) -> None:
        """What was told since then did not come about."""
        self._change(before)

    def lift(self, model_id: str) -> None:
        """Crashes and quarantine of that model are forgotten."""
        self._change(self.remembered.after_lift(model_id))

    def vouch(self, path: str, identity: Identity | None) -> None:
        """That file was loaded well, if not here. None: no file was seen, so nothing can be vouched for."""
        self._change(self.remembered.after_vouched(path, identity))

    # -- what it asks

    def is_vouched(self, path: str, identity: Identity | None) -> bool:
        return self.remembered.is_vouched(path, identity)

    def quarantine_of(self, model_id: str, identity: Identity | None) -> Quarantine | None:
        """None as well where the file was replaced since."""
        return self.remembered.quarantine_of(model_id, identity)

    # -- the disk

    def sync(self) -> None:
        """What was written outlives a loss of power, too, from here on. Takes as long as the disk takes."""
        folder = self.folder
        if folder is None or self.problem is not None:
            return
        try:
            # The folder may be a link: with DynamicUser= systemd makes it one, from /var/lib to /var/lib/private.
            for path, kind in ((folder / FILE, os.O_NOFOLLOW | os.O_NONBLOCK), (folder, os.O_DIRECTORY)):
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | kind)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        except FileNotFoundError:
            return  # nothing was written yet
        except OSError as error:
            self._note(f"cannot sync {folder / FILE}: {error.strerror}")

    def _take(self, folder: Path) -> bool:
        """Make the folder and lock it. The system gives the lock back when the process ends, however it ends."""
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            self._lock = os.open(folder / LOCK, flags, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            assert self._lock is not None
            os.close(self._lock)
            self._lock = None
            self._note(f"another daemon keeps its state in {folder}; STATE_DIRECTORY names another folder")
            return False
        except OSError as error:
            self._note(f"cannot keep state in {folder}: {error.strerror}")
            return os.path.isdir(folder)  # noqa: PTH112 - which raises nothing; a read-only one can still be read, and a file system without locks be written
        return True

    def _read(self, path: Path) -> Remembered:
        """What the file says; one that makes no sense is set aside, and nothing is remembered."""
        try:
            return Remembered.from_json(json.loads(_content(path)))
        except FileNotFoundError:
            return Remembered()
        except (OSError, ValueError, RecursionError) as error:
            log.warning("%s is set aside as %s and nothing is remembered: %s", path, BAD, error)
        try:
            _discard(path.with_name(BAD))
            path.rename(path.with_name(BAD))
        except OSError as error:
            self._note(f"cannot set {path} aside: {error.strerror}")
        return Remembered()

    def _change(self, after: Remembered) -> None:
        if after == self.remembered and self.problem is None:
            return
        self.remembered = after
        self._write()

    def _write(self) -> None:
        if self.folder is None:
            return
        data = json.dumps(self.remembered.to_json()).encode() + b"\n"  # indent= would leave the C encoder: 0.7 ms, not 0.1
        new, path = self.folder / NEW, self.folder / FILE
        try:
            # O_EXCL: what stands there by that name is nothing of ours, and writing to it might block or go elsewhere.
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
            finally:
                os.close(descriptor)
            os.rename(new, path)  # noqa: PTH104 - beside the calls it belongs to
        except OSError as error:
            _discard(new)
            self._note(f"cannot write {path}: {error.strerror}")
            return
        if self.problem is not None:
            log.info("state is kept again in %s", path)
            self.problem = None

    def _note(self, problem: str) -> None:
        if self.problem is None:
            log.warning("what is loaded is not remembered for the next start: %s", problem)
        self.problem = problem


def _content(path: Path) -> bytes:
    """Raises OSError, and ValueError for what cannot be a state file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no regular file")
        data = b""
        while len(data) <= MAX_BYTES and (more := os.read(descriptor, MAX_BYTES + 1 - len(data))):
            data += more
    finally:
        os.close(descriptor)
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    return data


def _discard(path: Path) -> None:
    """Where it cannot be removed, what comes next fails, and says so."""
    with contextlib.suppress(OSError):
        path.unlink()
