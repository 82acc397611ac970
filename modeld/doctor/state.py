"""Can the daemon remember? The folder of its state: whose it is, who has it, what is kept in it, how much room there is."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from modeld.doctor import procfs
from modeld.doctor.procfs import Roots
from modeld.doctor.report import Finding, note, ok, problem, size, warning
from modeld.manager.remembered import Remembered
from modeld.manager.statefile import BAD, FILE, LOCK, MAX_BYTES

LITTLE_BYTES = 16 << 20
JOURNAL = "journal"


def look(roots: Roots, folder: Path | None, *, by_service: bool) -> Iterator[Finding]:
    """`by_service`: it is the service's folder, which systemd makes and gives to its user; who asks need not be able to write."""
    if folder is None:
        yield warning(
            "state_none",
            "there is no place for state: neither STATE_DIRECTORY, XDG_STATE_HOME nor HOME is set",
            "StateDirectory=modeld in the unit, or HOME; without one, a start does not know what answered last, nor what crashed",
        )
        return
    about = str(folder)
    try:
        found = folder.stat()
    except FileNotFoundError:
        yield from _missing(folder, by_service=by_service)
        return
    except OSError as error:
        who = "root can" if os.geteuid() else "the daemon cannot either"
        yield note("state_hidden", f"it cannot be looked at: {error.strerror}; {who}", "run the doctor as root", about=about)
        return
    if not stat.S_ISDIR(found.st_mode):
        yield problem("state_unwritable", "it is no folder: nothing is remembered", "move it away", about=about)
        return
    mode = stat.S_IMODE(found.st_mode)
    if not by_service and not os.access(folder, os.W_OK | os.X_OK):
        yield problem(
            "state_unwritable",
            f"uid {os.geteuid()} cannot write there (owner {found.st_uid}, mode {mode:04o}): nothing is remembered",
            "chown it to the daemon's user, or name another folder with STATE_DIRECTORY",
            about=about,
        )
    elif "ro" in _mount_options(roots, folder):
        yield problem(
            "state_unwritable",
            "its file system is mounted read-only: nothing is remembered over a restart",
            "mount it for writing, or name another folder with STATE_DIRECTORY",
            about=about,
        )
    holder = holder_of(roots.proc, folder / LOCK)
    yield ok(
        "state",
        f"uid {found.st_uid} owns it, mode {mode:04o}"
        + (f"; a daemon (pid {holder}) keeps it" if holder else "; no daemon keeps it"),
        about=about,
        uid=found.st_uid,
        mode=f"{mode:04o}",
        holder=holder,
    )
    if mode & (stat.S_IWOTH | stat.S_IWGRP):
        yield warning(
            "state_open",
            f"others may write it (mode {mode:04o}), and so choose which model a start loads, or lift a quarantine",
            f"chmod 700 {folder}",
            about=about,
        )
    yield from _space(folder)
    yield from _remembered(folder)


def _missing(folder: Path, *, by_service: bool) -> Iterator[Finding]:
    """It is made by a start, where the folder above it lets it."""
    above = next((parent for parent in folder.parents if parent.exists()), Path("/"))
    if by_service or os.access(above, os.W_OK | os.X_OK):
        yield ok("state_new", "not there yet: the first start makes it", about=str(folder))
    else:
        yield problem(
            "state_unwritable",
            f"it is not there, and uid {os.geteuid()} cannot make it in {above}: nothing is remembered over a restart",
            f"make it, or name another folder with STATE_DIRECTORY (mkdir -m 700 {folder})",
            about=str(folder),
        )


def holder_of(proc: Path, lock: Path) -> int | None:
    """The process that holds the folder, by the kernel's table: to try the lock could keep a daemon from starting just now."""
    try:
        found = lock.stat()
    except OSError:
        return None
    # proc_locks(5): 1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE START END; overlays tell another device, so inodes decide
    for line in procfs.lines(proc / "locks"):
        words = line.split()
        if len(words) >= 6 and words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(found.st_ino):
            pid = procfs.whole(words[4])
            return pid if pid is not None and pid > 0 else None
    return None


def _mount_options(roots: Roots, folder: Path) -> frozenset[str]:
    mount = procfs.mount_of(roots.proc, os.path.realpath(folder))
    return mount.options if mount is not None else frozenset()


def _space(folder: Path) -> Iterator[Finding]:
    try:
        found = os.statvfs(folder)
    except OSError:
        return
    free = found.f_bavail * found.f_frsize
    if free < LITTLE_BYTES or (found.f_files and not found.f_favail):
        yield problem(
            "state_full",
            f"{size(free)} and {found.f_favail} files are free on its file system: the state and the journal cannot be written",
            "make room there",
            about=str(folder),
            free_bytes=free,
        )
    else:
        yield ok("state_space", f"{size(free)} are free on its file system", about=str(folder), free_bytes=free)


def _remembered(folder: Path) -> Iterator[Finding]:
    """What a start would go by. Names of models and counts; nothing else is told."""
    about = str(folder / FILE)
    if (folder / BAD).exists():
        yield warning(
            "state_damaged",
            f"{BAD} lies there: a state file that made no sense was set aside, and nothing was remembered at that start",
            "look at what happened to the disk then, and remove it",
            about=str(folder),
        )
    try:
        with (folder / FILE).open("rb") as file:
            remembered = Remembered.from_json(json.loads(file.read(MAX_BYTES + 1)))
    except FileNotFoundError:
        return
    except OSError as error:
        yield note(
            "state_hidden", f"it cannot be read: {error.strerror}", "run the doctor as root or as the daemon's user", about=about
        )
        return
    except (ValueError, RecursionError):
        yield warning(
            "state_damaged",
            "it makes no sense to this version: the next start sets it aside and remembers nothing",
            f"a newer modeld may have written it; else it becomes {BAD} and can be removed",
            about=about,
        )
        return
    last = remembered.wanted
    yield ok(
        "remembered",
        (f"the next start loads {last}" if last else "the next start loads the default model, or none")
        + f"; files known to be sound: {len(remembered.vouched)}",
        about=about,
        last=last,
        vouched=len(remembered.vouched),
    )
    if remembered.trying is not None:
        yield note(
            "state_trying",
            f"{remembered.trying.model_id} is being loaded, or the daemon died while it loaded it",
            "if no daemon runs: its journal has the reason; the next start counts it as a crash",
            about=about,
        )
    for model_id, crashes in remembered.crashes.items():
        if crashes.since is not None:
            hours = max(0.0, time.time() - crashes.since) / 3600
            yield warning(
                "quarantined",
                f"the process died {crashes.n} times in a row while it loaded it; it is not loaded since {hours:.1f} h",
                f"replace its file, or let it be tried again: curl -X DELETE .../quarantine/{model_id}, or a switch with force",
                about=model_id,
                crashes=crashes.n,
            )
