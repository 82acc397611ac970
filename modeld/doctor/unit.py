"""How does systemd run it? The unit and its drop-ins, how they differ from the shipped one, and what has become of the service.

Of a unit's settings the names are told, never the values: Environment= may hold keys.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modeld.doctor import procfs
from modeld.doctor.files import UNSEEN_FOLDERS, Reader
from modeld.doctor.procfs import Limit, Roots
from modeld.doctor.report import Finding, note, ok, problem, warning
from modeld.doctor.shipped import UNIT, shipped_unit

FOLDERS = ("etc", "run", "usr/local/lib", "usr/lib", "lib")  # systemd.unit(5), best first; below each systemd/system
TIMEOUT_S = 8.0
CREDENTIAL = "modeld-keys"  # modeld.keys.CREDENTIAL; that room needs PyYAML, which may be what is missing
DYNAMIC_UIDS = range(65519, 61183, -1)  # systemd.exec(5), DynamicUser=
PROPERTIES = (
    "LoadState", "ActiveState", "SubState", "UnitFileState", "MainPID", "NeedDaemonReload", "NRestarts", "Result",
    "ExecMainCode", "ExecMainStatus", "LimitNOFILE", "LimitNOFILESoft", "LimitMEMLOCK", "LimitMEMLOCKSoft", "LimitNPROC",
    "LimitNPROCSoft", "TasksMax",
)  # fmt: skip
_LIMITS = {"LimitNOFILE": "Max open files", "LimitMEMLOCK": "Max locked memory", "LimitNPROC": "Max processes"}
_LOG = f"journalctl -u {UNIT} -b | tail -n 50"

Settings = Mapping[str, Sequence[str]]
"""`Service.LimitNOFILE` -> its values, in their order."""


@dataclass(frozen=True, slots=True)
class Service:
    """What is known of it. `config`: the file that its command names. `limits`: what its processes get; None: no unit."""

    findings: tuple[Finding, ...]
    installed: bool = False
    pid: int | None = None  # of the daemon, where it runs
    config: Path | None = None
    limits: Mapping[str, Limit] | None = None
    reader: Reader = field(default_factory=lambda: Reader("", None))
    is_root: bool = False
    state_folder: Path | None = None
    keys: Path | None = None  # the file that it gets keys from as a credential


def look(roots: Roots, config: Path, environ: Mapping[str, str]) -> Service:
    """`config`: what this report is about."""
    files = unit_files(roots.root)
    if not files:
        finding = note(
            "unit_absent",
            f"{UNIT} is not installed here",
            "as a service: docs/systemd.md; in a container, or by hand, none is needed",
        )
        return Service((finding,))
    unit = files[0]
    if unit.is_symlink() and str(unit.readlink()) == os.devnull:
        return Service((problem("unit_masked", f"{unit} is masked", f"systemctl unmask {UNIT}", about=UNIT),), installed=True)
    settings = parse(files, procfs.text)
    shown, why = shown_by_systemctl(environ)
    findings: list[Finding] = [*_installed(roots.root, unit, files, shown)]
    if not shown:
        findings.append(note("systemctl_absent", f"systemd tells nothing of it: {why}", about=UNIT))
    findings += _differences(settings, unit)
    named, program = _command(settings)
    if program is not None and not os.access(roots.root / program.lstrip("/"), os.X_OK):
        advice = "install bin/modeld there, or correct ExecStart="
        findings.append(
            problem("unit_program", f"{program}, which it starts, is not there or not executable", advice, about=UNIT)
        )
    if named != Path(os.path.abspath(config)):  # noqa: PTH100 - by name, not by what links lead to
        findings.append(
            note(
                "unit_config",
                f"it reads {named}; this report is about {config}",
                f"modeld doctor --config {named}",
                about=UNIT,
            )
        )
    findings += _became(shown)
    active = shown.get("ActiveState") in ("active", "activating", "reloading", "deactivating")
    pid = procfs.whole(shown.get("MainPID")) if active else None
    user, is_root = _user(settings)
    state = _last(settings, "Service.StateDirectory")
    if is_root:
        findings.append(
            warning(
                "unit_root",
                "it runs as root: whoever gets the better of the daemon, or of a model file, has the host",
                "DynamicUser=yes with User=modeld, as the shipped unit has it",
                about=UNIT,
            )
        )
    return Service(
        tuple(findings),
        installed=True,
        pid=pid or None,
        config=named,
        limits=limits_of(shown, settings),
        reader=user,
        is_root=is_root,
        keys=_credential(roots.root, settings),
        state_folder=roots.root / "var" / "lib" / state.split()[0] if state else None,
    )


# -- files


def unit_files(root: Path) -> list[Path]:
    """The unit that counts, then its drop-ins in the order in which they are read; empty: no unit."""
    folders = [root / folder / "systemd" / "system" for folder in FOLDERS]
    units = [folder / UNIT for folder in folders if (folder / UNIT).exists() or (folder / UNIT).is_symlink()]
    if not units:
        return []
    dropins: dict[str, Path] = {}
    for folder in folders:
        try:
            found = sorted((folder / f"{UNIT}.d").glob("*.conf"))
        except OSError:
            continue
        for path in found:
            dropins.setdefault(path.name, path)  # of one name, the first folder's
    return [units[0], *(dropins[name] for name in sorted(dropins))]


def parse(files: Sequence[Path], read: object = procfs.text) -> dict[str, list[str]]:
    """Settings of a unit and its drop-ins, as systemd.syntax(7) has them: an empty value takes back those before."""
    assert callable(read)
    found: dict[str, list[str]] = {}
    for path in files:
        section = ""
        text = re.sub(r"\\\n", " ", read(path) or "")
        for line in text.splitlines():
            line = line.strip()
            if line.startswith(("#", ";")) or not line:
                continue
            if line.startswith("[") and line.endswith("]"):
                section = line[1:-1]
                continue
            name, equals, value = line.partition("=")
            if not equals:
                continue
            key = f"{section}.{name.strip()}"
            if value.strip():
                found.setdefault(key, []).append(value.strip())
            else:
                found[key] = []
    return found


def _last(settings: Settings, key: str) -> str | None:
    values = settings.get(key)
    return values[-1] if values else None


def _truth(value: str | None) -> bool:
    return value is not None and value.lower() in ("yes", "true", "on", "1")


def _installed(root: Path, unit: Path, files: Sequence[Path], shown: Mapping[str, str]) -> Iterator[Finding]:
    wants = (root / "etc" / "systemd" / "system").glob(f"*.wants/{UNIT}")
    enabled = shown.get("UnitFileState") or ("enabled" if any(wants) else "disabled")
    active = f"{shown['ActiveState']} ({shown.get('SubState', '')})" if shown.get("ActiveState") else "unknown to systemd"
    dropins = [path.name for path in files[1:]]
    yield ok(
        "unit",
        f"{unit}: {enabled}, {active}" + (f"; drop-ins: {', '.join(dropins)}" if dropins else "; no drop-ins"),
        about=UNIT,
        path=str(unit),
        enabled=enabled,
        active=shown.get("ActiveState"),
        dropins=dropins,
    )
    if enabled == "disabled":
        yield note("unit_disabled", "it is not started when the host starts", f"systemctl enable {UNIT}", about=UNIT)


def _differences(settings: Settings, unit: Path) -> Iterator[Finding]:
    shipped = shipped_unit()
    if shipped is None:
        return
    plain = parse([unit], lambda _path: shipped)
    names = sorted(name for name in {*settings, *plain} if settings.get(name) != plain.get(name))
    names = [name.partition(".")[2] for name in names if not name.startswith(("Unit.", "Install."))]
    if names:
        yield note(
            "unit_differs",
            f"with its drop-ins it differs from the unit of this modeld in {len(names)} settings: {', '.join(names[:30])}",
            "compare after an upgrade: systemctl cat modeld (values are left out here, since they may hold keys)",
            about=UNIT,
            settings=names,
        )


def _command(settings: Settings) -> tuple[Path, str | None]:
    """The configuration and the program that ExecStart= names."""
    try:
        words = shlex.split(_last(settings, "Service.ExecStart") or "")
    except ValueError:
        words = []
    program = words[0].lstrip("@-:+!") if words else ""
    # Each Environment= adds to those before; of one name the last counts.
    named = re.findall(r"(?<![^\s\"'])MODELD_CONFIG=([^\s\"']+)", " ".join(settings.get("Service.Environment", ())))
    path = named[-1] if named else None
    for index, word in enumerate(words):
        if word == "--config" and index + 1 < len(words):
            path = words[index + 1]
        elif word.startswith("--config="):
            path = word.partition("=")[2]
    # Without a name, what a daemon that starts in / takes (config.DEFAULT_PATHS).
    return Path(path or "/etc/modeld/models.yaml"), (program if program.startswith("/") else None)


def _credential(root: Path, settings: Settings) -> Path | None:
    """Of LoadCredential=modeld-keys:PATH; without a path, from systemd's own places."""
    for value in settings.get("Service.LoadCredential", ()):
        name, _, path = value.partition(":")
        if name == CREDENTIAL:
            return root / path.lstrip("/") if path.startswith("/") else root / "etc" / "credstore" / (path or name)
    return None


def _user(settings: Settings) -> tuple[Reader, bool]:
    """Who the service is, and whether that is root."""
    name = _last(settings, "Service.User")
    dynamic = _truth(_last(settings, "Service.DynamicUser"))
    if not dynamic and name in (None, "root", "0"):
        return Reader("root", None), True
    groups: list[int] = []
    try:
        found = pwd.getpwnam(name) if name and not name.isdecimal() else pwd.getpwuid(int(name)) if name else None
    except (KeyError, ValueError):
        found = None
    if found is not None:
        uid: int | None = found.pw_uid
        groups = os.getgrouplist(found.pw_name, found.pw_gid)
    else:
        uid = next((uid for uid in DYNAMIC_UIDS if not _is_known(uid)), None) if dynamic else None
        groups = [uid] if uid is not None else []
    for word in " ".join(settings.get("Service.SupplementaryGroups", ())).split():
        gid = _gid(word)
        if gid is not None:
            groups.append(gid)
    hidden = {"ProtectHome": _last(settings, "Service.ProtectHome"), "PrivateTmp": _last(settings, "Service.PrivateTmp")}
    unseen = tuple(
        folder
        for folder, setting in UNSEEN_FOLDERS.items()
        if (_truth(hidden[setting]) or hidden[setting] in ("tmpfs", "disconnected") or (dynamic and setting == "PrivateTmp"))
    )
    return Reader(f"the service's user {name or 'modeld'}", uid, tuple(groups), unseen), False


def _is_known(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _gid(word: str) -> int | None:
    import grp

    try:
        return int(word) if word.isdecimal() else grp.getgrnam(word).gr_gid
    except KeyError:
        return None


# -- systemd


def shown_by_systemctl(environ: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Properties of the service, or none and why."""
    program = shutil.which("systemctl", path=environ.get("PATH", os.defpath))
    if program is None:
        return {}, "systemctl is not here"
    command = [program, "show", UNIT, f"--property={','.join(PROPERTIES)}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return {}, f"systemctl did not answer within {TIMEOUT_S:g} s"
    except OSError as error:
        return {}, f"systemctl: {error.strerror}"
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"systemctl ended with status {done.returncode}"]
        return {}, words[0][:160]
    pairs = (line.partition("=") for line in done.stdout.splitlines())
    return {name: value for name, equals, value in pairs if equals and value}, ""


def _became(shown: Mapping[str, str]) -> Iterator[Finding]:
    result = shown.get("Result", "success")
    restarts = procfs.whole(shown.get("NRestarts")) or 0
    if shown.get("ActiveState") == "failed":
        yield problem(
            "unit_failed",
            f"the service failed ({result}; exit status {shown.get('ExecMainStatus', 'unknown')}, {restarts} restarts)",
            f"{_LOG}; status 78 is a bad configuration (`modeld check`), then systemctl reset-failed {UNIT} and start it",
            about=UNIT,
            result=result,
            restarts=restarts,
        )
    elif restarts:
        yield warning(
            "unit_restarts",
            f"systemd had to start it again {restarts} times",
            f"the reason is before each start: {_LOG}",
            about=UNIT,
            restarts=restarts,
        )
    if shown.get("NeedDaemonReload") == "yes":
        yield warning(
            "unit_stale",
            "its files were changed since systemd read them",
            f"systemctl daemon-reload && systemctl restart {UNIT}",
            about=UNIT,
        )


def limits_of(shown: Mapping[str, str], settings: Settings) -> dict[str, Limit]:
    """What its processes get: as systemd says it, else as its files do."""
    found = {}
    for name, kernel_name in _LIMITS.items():
        if name in shown:
            soft = shown.get(f"{name}Soft", shown[name])
            found[kernel_name] = Limit(procfs.whole(soft), procfs.whole(shown[name]))
        elif (value := _last(settings, f"Service.{name}")) is not None:
            soft, colon, hard = value.partition(":")
            found[kernel_name] = Limit(_size(soft), _size(hard if colon else soft))
    tasks = shown.get("TasksMax") or _last(settings, "Service.TasksMax")
    if tasks is not None and not tasks.endswith("%"):
        found["TasksMax"] = Limit(_size(tasks), _size(tasks))
    return found


def _size(word: str) -> int | None:
    """`65536`, `8G`; None: infinity."""
    match = re.fullmatch(r"([0-9]{1,19})([KMGT]?)", word.strip())
    return int(match[1]) << 10 * " KMGT".index(match[2] or " ") if match else None
