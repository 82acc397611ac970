"""Whose is the Unix socket, and who may connect to it? Made with no moment of wider rights, replaced when it is a dead one's.

The folder should be writable for the daemon only: who may rename things there can put another socket in this one's place.
Owners are numbers, or names that stand in /etc/passwd and /etc/group: `pwd` and `grp` ask whatever the host is configured
to ask, a directory on the network, too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_PASSWD = Path("/etc/passwd")
_GROUP = Path("/etc/group")
_UNCHANGED = -1  # chown(2)


@dataclass(frozen=True, slots=True)
class UnixSocket:
    path: Path
    mode: int
    owner: str | None  # "user", "user:group", ":group"; None: the process's


def bind(sock: socket.socket, place: UnixSocket) -> tuple[int, int]:
    """Bind to the path and give it owner and mode; returns device and inode. Raises OSError, and leaves nothing behind then."""
    uid, gid = _ids(place.owner)
    _remove_dead(place.path)
    # Linux makes the file with the rights of the descriptor, cut by the umask: no other thread's files are touched by that.
    os.fchmod(sock.fileno(), 0o600 & place.mode)
    sock.bind(os.fspath(place.path))
    try:
        made = place.path.lstat()
        if (uid, gid) != (_UNCHANGED, _UNCHANGED):
            os.chown(place.path, uid, gid, follow_symlinks=False)
        place.path.chmod(place.mode)  # the last: until now only we could connect
    except OSError:
        place.path.unlink()
        raise
    return made.st_dev, made.st_ino


def remove(path: Path, ours: tuple[int, int]) -> None:
    """Unlink the socket, unless another one is there by now."""
    with contextlib.suppress(OSError):
        found = path.lstat()
        if (found.st_dev, found.st_ino) == ours:
            path.unlink()


def hidden_uids(uids: Iterable[int], uid_map: Path = Path("/proc/self/uid_map")) -> list[int]:
    """Those that this process can tell from no others: its user namespace does not know them (user_namespaces(7)), and their
    connections come from the overflow uid, 65534. A service with PrivateUsers=yes knows root and its own user."""
    try:
        ranges = [[int(word) for word in line.split()] for line in uid_map.read_text("ascii").splitlines()]
    except (OSError, ValueError):
        return []
    return [uid for uid in uids if not any(inside <= uid < inside + length for inside, _, length in ranges)]


def _remove_dead(path: Path) -> None:
    """Make way where the path is the socket of a process that has ended. Raises OSError where it is anything else."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise FileExistsError(errno.EEXIST, "is there already, and is no socket", os.fspath(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a listener whose queue is full lives, too
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            remove(path, (found.st_dev, found.st_ino))
            return
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), os.fspath(path))


def _ids(owner: str | None) -> tuple[int, int]:
    user, _, group = (owner or "").partition(":")
    return _id(user, _PASSWD), _id(group, _GROUP)


def _id(name: str, table: Path) -> int:
    """Third column of the line that begins with the name, in passwd(5) as in group(5)."""
    if not name:
        return _UNCHANGED
    if name.isdecimal():
        return int(name)
    for line in table.read_text(errors="replace").splitlines():
        columns = line.split(":")
        if columns[0] == name and len(columns) > 2 and columns[2].isdecimal():
            return int(columns[2])
    raise OSError(errno.EINVAL, f"{name!r} is not in {table}; a number is taken, too")
