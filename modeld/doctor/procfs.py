"""What do /proc and /sys say? Small readers that give None for what is not there or makes no sense, and never raise."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MAX_BYTES = 4 << 20
CHUNK_BYTES = 1 << 16  # a sysctl refuses a read of 4 MiB with ENOMEM (proc_sysctl.c, proc_sys_call_handler)
_MAX_DIGITS = 20


@dataclass(frozen=True, slots=True)
class Roots:
    """Where the host's tables are. Another place in tests."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    root: Path = Path("/")  # of etc/os-release and the folders of units


def text(path: Path) -> str | None:
    """The file without the white space at its ends."""
    try:
        with path.open("rb", buffering=0) as file:
            found = bytearray()
            while len(found) < MAX_BYTES and (chunk := file.read(CHUNK_BYTES)):
                found += chunk
            return found.decode("utf-8", "replace").strip()
    except (OSError, ValueError):
        return None


def lines(path: Path) -> list[str]:
    return (text(path) or "").splitlines()


def number(path: Path) -> int | None:
    """A file with one number."""
    return whole(text(path))


def whole(word: str | None) -> int | None:
    """A number in digits, of a size that means something; None for `max`, `unlimited` and the like."""
    if word is None or not re.fullmatch(rf"-?[0-9]{{1,{_MAX_DIGITS}}}", word, re.ASCII):
        return None
    return int(word)


def table(path: Path, unit: int = 1) -> dict[str, int]:
    """Lines `name number` or `Name:   number kB`; numbers times `unit`. Lines that are none are left out."""
    found = {}
    for line in lines(path):
        words = line.replace(":", " ", 1).split()
        if len(words) >= 2 and (value := whole(words[1])) is not None:
            found[words[0]] = value * unit
    return found


def fields(path: Path) -> dict[str, str]:
    """Lines `Name: text`, as in /proc/PID/status; the first of a name counts."""
    found: dict[str, str] = {}
    for line in lines(path):
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name.strip(), value.strip())
    return found


def chosen(path: Path) -> str | None:
    """Of a file like `always [madvise] never` the word in brackets."""
    match = re.search(r"\[([^\]]{1,40})\]", text(path) or "")
    return match[1] if match else None


def cpu_list(word: str | None) -> list[int]:
    """`0-3,8` -> [0, 1, 2, 3, 8]; empty for what is no such list."""
    found: set[int] = set()
    for part in (word or "").strip().split(","):
        match = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", part)
        if match is None:
            return []
        first, last = int(match[1]), int(match[2] or match[1])
        if last - first > 1 << 16:
            return []
        found.update(range(first, last + 1))
    return sorted(found)


# -- limits of a process: /proc/PID/limits


@dataclass(frozen=True, slots=True)
class Limit:
    """None: unlimited."""

    soft: int | None
    hard: int | None


def limits(proc: Path, pid: str) -> Mapping[str, Limit]:
    """By the name in the file: `Max open files`, `Max locked memory`, `Max processes`; empty where it cannot be read."""
    found = {}
    for line in lines(proc / pid / "limits"):
        match = re.match(r"(Max [a-z -]+?)\s{2,}(unlimited|[0-9]{1,20})\s+(unlimited|[0-9]{1,20})", line)
        if match:
            found[match[1]] = Limit(whole(match[2]), whole(match[3]))
    return found


CAP_NET_BIND_SERVICE, CAP_IPC_LOCK, CAP_SYS_ADMIN, CAP_SYS_RESOURCE = 10, 14, 21, 24  # linux/capability.h


def has_capability(proc: Path, pid: str, capability: int) -> bool:
    """In the effective set; False where that cannot be read."""
    mask = fields(proc / pid / "status").get("CapEff", "0")
    return bool(int(mask, 16) >> capability & 1) if re.fullmatch(r"[0-9A-Fa-f]{1,16}", mask) else False


def uid_of(proc: Path, pid: str) -> int | None:
    """The effective one."""
    words = fields(proc / pid / "status").get("Uid", "").split()
    return whole(words[1]) if len(words) >= 2 else None


# -- control groups


@dataclass(frozen=True, slots=True)
class Group:
    """A control group of a process, in one hierarchy. `name` as the host calls it, `folder` where its files are."""

    name: str
    folder: Path


def groups(proc: Path, pid: str, controller: str) -> tuple[int, list[Group]]:
    """The version (1 or 2; 0: no such controller) and the groups from the process's own up to the top that can be seen.

    Of a hybrid host version 1 is taken where it has the controller, as the kernel does.
    """
    mounts = [line.partition(" - ") for line in lines(proc / pid / "mountinfo")]
    members = [line.split(":", 2) for line in lines(proc / pid / "cgroup") if line.count(":") >= 2]
    wanted = [(1, name) for _, names, name in members if controller in names.split(",")]
    wanted += [(2, name) for hierarchy, _, name in members if hierarchy == "0"]
    for version, name in wanted:
        for before, _, after in mounts:
            # proc_pid_mountinfo(5): id, parent, major:minor, root, mount point, ... - type, source, options
            head, tail = before.split(), after.split()
            if len(head) < 5 or len(tail) < 3 or tail[0] != ("cgroup2" if version == 2 else "cgroup"):
                continue
            if version == 1 and controller not in tail[2].split(","):
                continue
            return version, _up(name, _unescaped(head[3]), Path(_unescaped(head[4])))
    return 0, []


def _up(name: str, root: str, point: Path) -> list[Group]:
    """In a container the mount shows a part of the tree, and the name may be one that only the host can follow."""
    root = root.rstrip("/")
    below = name[len(root) :] if f"{name}/".startswith(f"{root}/") else ""
    folder = Path(f"{point}{below.rstrip('/')}")
    if ".." in folder.parts or not folder.is_dir():
        folder = point
    found = []
    while True:
        found.append(Group(name or "/", folder))
        if folder == point or point not in folder.parents:
            return found
        folder, name = folder.parent, name.rpartition("/")[0] or "/"


def _unescaped(word: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), word)


# -- mounts


@dataclass(frozen=True, slots=True)
class Mount:
    point: str
    kind: str  # ext4, nfs4, overlay, ...
    options: frozenset[str]


def mount_of(proc: Path, path: str) -> Mount | None:
    """Where an absolute path lies; by its name alone, so that nothing is asked of a server that may be gone."""
    best: Mount | None = None
    for line in lines(proc / "self" / "mountinfo"):
        before, dash, after = line.partition(" - ")
        head, tail = before.split(), after.split()
        if not dash or len(head) < 6 or not tail:
            continue
        point = _unescaped(head[4])
        inside = path == point or path.startswith(f"{point.rstrip('/')}/")
        if inside and (best is None or len(point) >= len(best.point)):  # a later mount on the same place hides the earlier
            best = Mount(point, tail[0], frozenset(head[5].split(",")))
    return best


# -- files of shell variables


def fields_of_shell(path: Path) -> dict[str, str]:
    """Lines `NAME=value` or `NAME="value"`: os-release(5)."""
    found = {}
    for line in lines(path):
        name, equals, value = line.partition("=")
        if equals and not name.startswith("#"):
            found[name.strip()] = value.strip().strip("\"'")
    return found
