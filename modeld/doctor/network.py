"""Is the address free, or who answers there? Asked on loopback: a few requests that compute nothing."""

from __future__ import annotations

import contextlib
import errno
import http.client
import ipaddress
import json
import os
import re
import socket
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from modeld import __version__
from modeld.doctor import procfs
from modeld.doctor.procfs import Roots
from modeld.doctor.report import Fact, Finding, note, ok, problem, warning

TIMEOUT_S = 5.0
MAX_BODY_BYTES = 1 << 20
MAX_UPTIME_S = 1e10
LISTEN = "0A"  # /proc/net/tcp: TCP_LISTEN
ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - how to reach what listens there
DAEMON = "modeld"  # its Server header


@dataclass(frozen=True, slots=True)
class Address:
    """Where a daemon listens or is asked. `unix`: the path of a socket, else host and port. `scheme`: http or https."""

    host: str = ""
    port: int = 0
    unix: str = ""
    scheme: str = "http"

    def __str__(self) -> str:
        if self.unix:
            return f"unix:{self.unix}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Reached:
    """`daemon`: a modeld answers; `pid`: of who listens, where that can be seen."""

    findings: tuple[Finding, ...]
    daemon: bool = False
    pid: int | None = None


def parse_server(text: str) -> Address:
    """`http://host:port`, `https://...` or `unix:/path`. Raises ValueError with what is wrong."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/"):
            raise ValueError(f"unix: takes an absolute path, found {text[:80]!r}")
        return Address(unix=path)
    if "@" in text:  # which is not repeated
        raise ValueError("an address holds no user and no password; a key comes from MODELD_API_KEY")
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"expected http://HOST:PORT, https://HOST or unix:/PATH, found {text[:80]!r}")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(
            f"the daemon itself is asked, without a prefix for paths: expected http://HOST:PORT, found {text[:80]!r}"
        )
    return Address(parts.hostname, parts.port or (443 if parts.scheme == "https" else 80), scheme=parts.scheme)


def look(roots: Roots, address: Address, key: str | None, *, is_ours: bool) -> Reached:
    """`is_ours`: the daemon would listen there; else it is only asked (`--server`)."""
    about = str(address)
    refusal: OSError | None = None
    if is_ours and address.unix:
        if (settled := _socket_place(Path(address.unix))) is not None:
            return Reached((settled,))
    elif is_ours:
        if address.port == 0:
            return Reached((ok("port_any", "port 0: a free one is taken at each start", about=about),))
        refusal = _bind(address)
        if refusal is None:
            return Reached((ok("port_free", "free: a daemon that is started now gets it", about=about),))
        if refusal.errno not in (errno.EADDRINUSE, errno.EACCES):
            found = f"nobody can listen there: {_words(refusal)}"
            advice = "see the addresses that this host has (ip addr), and correct server.host"
            return Reached((problem("address_missing", found, advice, about=about),))
    pid = _listener(roots.proc, address)
    if pid == 1 and procfs.text(roots.proc / "1" / "comm") == "systemd":
        found = "systemd listens there for it: the first connection starts the daemon, so none was made"
        return Reached((note("socket_activated", found, about=about),))
    try:
        answer = _get(address, "/livez", None)
    except OSError as error:
        return Reached((_unanswered(roots, address, error, refusal, pid, is_ours=is_ours),), pid=pid)
    except http.client.HTTPException:
        return Reached((_taken(roots, about, pid, "what answers is not HTTP"),), pid=pid)
    if answer.server != DAEMON:
        return Reached((_taken(roots, about, pid, f"an HTTP server that is not modeld answers ({answer.status})"),), pid=pid)
    return Reached(tuple(_daemon(address, answer, key, pid)), daemon=True, pid=pid)


# -- nobody answers


def _bind(address: Address) -> OSError | None:
    """Why a daemon that is started now would not get it; None: it would. Bound as it does that, and let go without listening."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    host, _, scope = address.host.partition("%")
    try:
        target: tuple[Any, ...] = (host, address.port)
        if scope:
            target = (host, address.port, 0, int(scope) if scope.isdecimal() else socket.if_nametoindex(scope))
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(target)
    except OSError as error:
        return error
    return None


def _unanswered(
    roots: Roots, address: Address, error: OSError, refusal: OSError | None, pid: int | None, *, is_ours: bool
) -> Finding:
    about = str(address)
    if isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT:
        found = f"something accepts connections there and does not answer within {TIMEOUT_S:g} s"
        advice = "see what it is (ss -ltnp); a modeld that hangs is ended by its watchdog under systemd, else restart it"
        return problem("silent", found, advice, about=about, pid=pid)
    if not is_ours:
        advice = "see whether it runs, and where"
        return problem("unreachable", f"no daemon can be reached: {_words(error)}", advice, about=about)
    if address.unix and error.errno == errno.ECONNREFUSED:
        return ok("socket_stale", "a socket lies there that nobody listens on: the next start replaces it", about=about)
    if refusal is not None and refusal.errno == errno.EACCES:
        first = procfs.number(roots.proc / "sys" / "net" / "ipv4" / "ip_unprivileged_port_start")
        found = f"uid {os.geteuid()} may not listen there: ports below {first or 1024} need CAP_NET_BIND_SERVICE"
        advice = "a port from 1024 on, or AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit"
        return problem("port_privileged", found, advice, about=about)
    return _taken(roots, about, pid, f"it is in use, and nobody answers ({_words(error)})")


def _socket_place(path: Path) -> Finding | None:
    """None: a socket lies there, and can be asked."""
    about = f"unix:{path}"
    try:
        found = path.lstat()
    except OSError:
        found = None
    if found is not None and stat.S_ISSOCK(found.st_mode):
        return None
    if found is not None:
        what = "what lies there is no socket, and stays: the daemon does not start"
        return problem("socket_taken", what, "move it away, or name another path", about=about)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return problem(
            "socket_unwritable",
            f"uid {os.geteuid()} cannot make a socket in {path.parent}",
            "RuntimeDirectory=modeld in the unit makes /run/modeld; or make the folder, and give it to the daemon's user",
            about=about,
        )
    return ok("port_free", "free: a daemon that is started now gets it", about=about)


def _taken(roots: Roots, about: str, pid: int | None, what: str) -> Finding:
    name = procfs.text(roots.proc / str(pid) / "comm") if pid is not None else None
    who = f", of process {pid} ({(name or 'unknown')[:40]})" if pid is not None else ""
    return problem(
        "port_taken",
        f"{what}{who}: a daemon that is started now cannot listen there",
        "end that program, or choose another server.port" + ("" if pid is not None else " (`ss -ltnp` as root names it)"),
        about=about,
        pid=pid,
    )


# -- a daemon answers


def _daemon(address: Address, live: _Answer, key: str | None, pid: int | None) -> Iterator[Finding]:
    about = str(address)
    status, how = _asked(address, "/status", key)
    if status is None:
        said = {401: "it wants a key", 403: "the key may not ask", 421: "it does not go by that name"}
        why = said.get(how, f"status {how}") if isinstance(how, int) else how
        yield note(
            "daemon_locked",
            f"modeld answers{_by(pid)} in {live.ms:.0f} ms; what it does is not told: {why}",
            "give a key of scope use in MODELD_API_KEY" if how in (401, 403) else "",
            about=about,
            pid=pid,
        )
    else:
        yield from _status(status, live, about, pid, _library(address, key))
    with contextlib.suppress(OSError, http.client.HTTPException):
        verbose = _get(address, "/livez?verbose", None)
        stuck = re.findall(r"^\[-\]([a-z0-9-]{1,40}) ", verbose.body.decode("utf-8", "replace"), re.MULTILINE)
        if stuck:
            yield problem(
                "daemon_stuck",
                f"threads that hang: {', '.join(stuck[:20])}",
                "its log has the stacks (SIGABRT writes them); restart it, and report them",
                about=about,
                threads=stuck[:20],
            )


def _status(status: Mapping[str, Any], live: _Answer, about: str, pid: int | None, library: str | None) -> Iterator[Finding]:
    version, state, current = (str(status.get(name))[:80] for name in ("version", "state", "current_model"))
    op = status.get("op")
    running = f", {str(op.get('step'))[:20]} of {str(op.get('target_model_id'))[:80]}" if isinstance(op, dict) else ""
    facts: dict[str, Fact] = {"version": version, "state": state, "current_model": current, "pid": pid, "library": library}
    uptime = status.get("uptime_s")
    facts["uptime_s"] = round(uptime, 1) if isinstance(uptime, int | float) and 0 <= uptime < MAX_UPTIME_S else None
    since = _since(status.get("uptime_s"))
    yield ok(
        "daemon",
        f"modeld {version} answers{_by(pid)} in {live.ms:.0f} ms: {state}, {current}{running}, up for {since}"
        + (f"; library {library}" if library else ""),
        about=about,
        more=facts,
    )
    if version != __version__:
        yield warning(
            "daemon_version",
            f"modeld {version} runs, this is {__version__}: what is said here of settings and memory is this one's opinion",
            "restart the daemon after an upgrade",
            about=about,
        )
    error = status.get("error")
    if isinstance(error, dict):
        said = f"{str(error.get('code'))[:40]}: {str(error.get('message'))[:300]}"
        make = problem if state == "error" else warning
        yield make(
            "daemon_error",
            f"no model answers: {said}" if state == "error" else f"the last switch failed: {said}",
            "correct what it says, then switch again (modeld switch, POST /switch)",
            about=about,
            code=str(error.get("code"))[:40],
        )
    if status.get("config_error"):
        yield problem(
            "daemon_config",
            "the daemon runs on an older configuration: the file as it is now was refused",
            "`modeld check` says why; correct it, it is read again by itself",
            about=about,
        )
    elif status.get("config_stale"):
        yield note("daemon_stale", "the loaded model's entry was changed since: a switch to it loads it anew", about=about)
    quarantined = status.get("quarantined")
    if isinstance(quarantined, list) and quarantined:
        yield warning(
            "daemon_quarantined",
            f"not loaded any more, since the process died of them: {', '.join(str(one)[:128] for one in quarantined[:20])}",
            "replace the file, or DELETE /quarantine/{model_id}",
            about=about,
        )


def _library(address: Address, key: str | None) -> str | None:
    """Which of a release's libraries the daemon has open, or `native`: a label of modeld_build_info (docs/metrics.md)."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        answer = _get(address, "/metrics", key)
        found = re.search(rb'^modeld_build_info\{[^}\n]*cpu_variant="([a-z0-9-]{1,40})"', answer.body, re.MULTILINE)
        if answer.status == 200 and found:
            return found[1].decode()
    return None


def _by(pid: int | None) -> str:
    return f" (pid {pid})" if pid is not None else ""


def _since(seconds: Any) -> str:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < MAX_UPTIME_S:
        return "an unknown time"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


# -- asking


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    server: str
    body: bytes
    ms: float


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _get(address: Address, target: str, key: str | None) -> _Answer:
    """Raises OSError and HTTPException. No proxy of the environment is used."""
    begin = time.monotonic()
    host = ANY.get(address.host, address.host)
    connection: http.client.HTTPConnection
    if address.unix:
        connection = _UnixConnection(address.unix)
    elif address.scheme == "https":
        connection = http.client.HTTPSConnection(host, address.port, timeout=TIMEOUT_S)
    else:
        connection = http.client.HTTPConnection(host, address.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", target, headers={"Authorization": f"Bearer {key}"} if key else {})
        response = connection.getresponse()
        body = response.read(MAX_BODY_BYTES)
        return _Answer(response.status, response.getheader("Server", ""), body, (time.monotonic() - begin) * 1000)
    finally:
        connection.close()


def _asked(address: Address, target: str, key: str | None) -> tuple[dict[str, Any] | None, int | str]:
    """The JSON of a 200; else None, and the status or what is wrong. The key goes to what says that it is modeld, alone."""
    try:
        answer = _get(address, target, key)
        if answer.status != 200:
            return None, answer.status
        found = json.loads(answer.body)
    except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
        return None, type(error).__name__
    return (found, 200) if isinstance(found, dict) else (None, "its answer is no object")


def _words(error: OSError) -> str:
    return error.strerror or type(error).__name__


# -- who listens


def _listener(proc: Path, address: Address) -> int | None:
    """The process that listens on the port, where /proc shows it: one's own processes, and to root all."""
    inodes = _unix_inodes(proc, address.unix) if address.unix else _tcp_inodes(proc, address)
    if not inodes:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    # Process 1 last: systemd keeps a socket that it has given to a daemon.
    pids = sorted((path for path in _listed(proc) if path.name.isdecimal() and path.name != "1"), key=lambda path: int(path.name))
    for folder in (*pids, proc / "1"):
        for descriptor in _listed(folder / "fd"):
            with contextlib.suppress(OSError):
                if str(descriptor.readlink()) in wanted:
                    return int(folder.name)
    return None


def _tcp_inodes(proc: Path, address: Address) -> set[str]:
    """Of sockets that listen there, or on all addresses."""
    hosts = {"0" * 8, "0" * 32, _as_in_proc(address.host)}
    found = set()
    for name in ("tcp", "tcp6"):
        for line in procfs.lines(proc / "self" / "net" / name):
            words = line.split()  # proc_pid_net(5): sl, local address, remote address, state, ..., inode
            if len(words) < 10 or words[3] != LISTEN:
                continue
            host, _, port = words[1].partition(":")
            if port == f"{address.port:04X}" and (host in hosts or address.host in ANY):
                found.add(words[9])
    return found


def _as_in_proc(host: str) -> str:
    """In 32-bit words of the machine's byte order."""
    try:
        packed = ipaddress.ip_address(host.partition("%")[0]).packed
    except ValueError:
        return ""
    words = (packed[at : at + 4] for at in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)


def _unix_inodes(proc: Path, path: str) -> set[str]:
    found = set()
    for line in procfs.lines(proc / "self" / "net" / "unix"):
        words = line.split(maxsplit=7)  # Num, RefCount, Protocol, Flags, Type, St, Inode, Path
        if len(words) == 8 and words[7] == path and words[3] == "00010000":  # __SO_ACCEPTCON
            found.add(words[6])
    return found


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
