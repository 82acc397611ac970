"""Are the models' files there, whole, and readable for whom they are meant? Asked of each in a process of its own."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modeld.doctor import procfs
from modeld.doctor.procfs import Roots
from modeld.doctor.report import Finding, note, ok, problem, size, warning
from modeld.llm.footprint import Footprint, estimate
from modeld.llm.gguf import files_of, inspect
from modeld.types import ModelSpec

NETWORK_KINDS = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "glusterfs", "lustre", "9p", "afs", "beegfs")
UNSEEN_FOLDERS = {
    "/home": "ProtectHome",
    "/root": "ProtectHome",
    "/run/user": "ProtectHome",
    "/tmp": "PrivateTmp",  # noqa: S108
    "/var/tmp": "PrivateTmp",  # noqa: S108
}


@dataclass(frozen=True, slots=True)
class Reader:
    """Who is to read the models beside who asks. `uid` None: nobody else. Groups: all of them, the first one included."""

    name: str
    uid: int | None = None
    groups: tuple[int, ...] = ()
    unseen: tuple[str, ...] = ()  # folders that its sandbox hides


@dataclass(frozen=True, slots=True)
class Looked:
    findings: tuple[Finding, ...]
    footprint: Footprint | None = None


def look(roots: Roots, spec: ModelSpec, reader: Reader) -> Looked:
    """Opens the file, reads its head, compares its size with it. Its SHA-256 is `modeld verify`'s to compute."""
    path = spec.path
    try:
        found = path.stat()
    except FileNotFoundError:
        advice = "put the file there, or correct the path in the configuration (it is relative to that file)"
        return Looked((problem("model_missing", f"{path} is not there", advice, about=spec.id),))
    except OSError as error:
        return Looked((_unreadable(spec, error.strerror or "cannot be looked at", f"uid {os.geteuid()}"),))
    if not stat.S_ISREG(found.st_mode):
        advice = "name the GGUF file (of a split model the first shard)"
        return Looked((problem("model_bad", f"{path} is no regular file", advice, about=spec.id),))
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        return Looked((_unreadable(spec, error.strerror or "cannot be read", f"uid {os.geteuid()}"),))
    facts = inspect(spec)
    findings: list[Finding] = []
    if facts.problem is not None:
        findings.append(
            problem(
                "model_bad",
                f"{path}: {facts.problem}",
                "copy or download it again, and compare it (`modeld verify`); it is refused before anything is loaded",
                about=spec.id,
                size_bytes=found.st_size,
            )
        )
    mount = procfs.mount_of(roots.proc, os.path.realpath(path))
    kind = mount.kind if mount is not None else "unknown"
    if facts.problem is None:
        described = ", ".join(part for part in (facts.family, facts.quant) if part)
        findings.append(
            ok(
                "model",
                f"{path}: {size(facts.size_bytes or found.st_size)}, whole, {described or 'of an unknown kind'}, on {kind}",
                about=spec.id,
                path=str(path),
                size_bytes=facts.size_bytes,
                filesystem=kind,
            )
        )
    findings += _place(spec, kind, found)
    findings += _for_reader(spec, files_of(path), reader)
    return Looked(tuple(findings), estimate(spec) if facts.problem is None else None)


def unanswered(spec: ModelSpec, failure: str) -> Finding:
    """The process that looked did not come back with an answer."""
    return problem(
        "model_unanswering",
        f"{spec.path}: looking at it {failure}",
        "see whether its file system answers (a server that is gone holds whoever asks for its files): `stat` it by hand",
        about=spec.id,
    )


def _unreadable(spec: ModelSpec, why: str, who: str) -> Finding:
    return problem(
        "model_unreadable",
        f"{spec.path}: {who} cannot read it: {why}",
        "chmod a+r the file and a+x each folder above it, or give a group that the daemon has (SupplementaryGroups=)",
        about=spec.id,
    )


def _place(spec: ModelSpec, kind: str, found: os.stat_result) -> Iterator[Finding]:
    if kind in NETWORK_KINDS or kind.startswith("fuse"):
        yield note(
            "model_remote",
            f"its file lies on {kind}: mapped weights that are not in the page cache are fetched in the middle of a decode",
            "copy it to a local disk, or load_mode: none (read into memory once) or mlock",
            about=spec.id,
            filesystem=kind,
        )
    if found.st_mode & stat.S_IWOTH:
        yield warning(
            "model_writable",
            f"every user of this host may write {spec.path} (mode {stat.S_IMODE(found.st_mode):04o})",
            "chmod o-w: a model file is run with the daemon's rights in the end; sha256 in its entry refuses another one",
            about=spec.id,
        )


# -- as the service would see it


def _for_reader(spec: ModelSpec, files: list[Path], reader: Reader) -> Iterator[Finding]:
    for folder in reader.unseen:
        if spec.path.is_relative_to(folder):
            yield problem(
                "model_unseen",
                f"{spec.path} lies below {folder}, hidden from {reader.name} ({UNSEEN_FOLDERS.get(folder)}=)",
                "put it into a folder like /srv/models",
                about=spec.id,
            )
            return
    if reader.uid is None or os.geteuid() != 0:
        return
    for file in files:
        why = refusal_to(file, reader)
        if why is not None:
            yield _unreadable(spec, why, f"{reader.name} (uid {reader.uid})")
            return


def refusal_to(file: Path, reader: Reader) -> str | None:
    """Why that user cannot read the file; None: it can. Really tried, by a process that has become that user; root only."""
    assert reader.uid is not None
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        said = b"failed"
        try:
            os.setgroups(list(reader.groups))
            gid = reader.groups[0] if reader.groups else reader.uid
            os.setresgid(gid, gid, gid)
            os.setresuid(reader.uid, reader.uid, reader.uid)
            try:
                os.close(os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
                said = b""
            except OSError as error:
                said = (error.strerror or "refused").encode()
        finally:
            os.write(write_end, said)
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as answer:
        said = answer.read()
    os.waitpid(pid, 0)
    return said.decode() or None
