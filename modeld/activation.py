"""Which listening sockets did the service manager hand over? take: as sd_listen_fds(3), and each one is looked at first."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import MutableMapping
from dataclasses import dataclass

from modeld.errors import ConfigError

FIRST = 3  # SD_LISTEN_FDS_START
MAX_SOCKETS = 64
VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")

_FAMILIES = {socket.AF_INET: "TCP over IPv4", socket.AF_INET6: "TCP over IPv6", socket.AF_UNIX: "a Unix stream socket"}
_IPPROTO_MPTCP = 262  # linux/in.h
_PROTOCOLS = (0, socket.IPPROTO_TCP, _IPPROTO_MPTCP)


@dataclass(frozen=True, slots=True)
class Handed:
    """One listening stream socket of somebody else's: TCP or Unix. It is closed at the end, and stays open over there."""

    socket: socket.socket
    name: str  # FileDescriptorName= of the socket unit; "" where nobody gave one

    @property
    def host(self) -> str | None:
        """The address that it listens on; None for a Unix socket."""
        return None if self.socket.family == socket.AF_UNIX else str(self.socket.getsockname()[0])


def take(environ: MutableMapping[str, str]) -> tuple[Handed, ...]:
    """The sockets that are meant for this process, from now on closed on exec; the variables are removed, so that no child
    takes them for its own. Once, before anything else opens descriptors or starts processes.

    Raises ConfigError for what modeld cannot serve: starting again would not change it.
    """
    pid, count, names, _ = (environ.pop(name, None) for name in VARIABLES)
    if count is None or pid is None:
        return ()
    if not _is_number(pid):
        raise ConfigError(f"LISTEN_PID is {pid[:40]!r}, which is no process id")
    if int(pid) != os.getpid():
        return ()  # they were meant for a process that started this one: as sd_listen_fds(3) has it
    if not _is_number(count) or int(count) > MAX_SOCKETS:
        raise ConfigError(f"LISTEN_FDS is {count[:40]!r}; expected how many sockets are handed over, 0..{MAX_SOCKETS}")
    n = int(count)
    texts = names.split(":") if names else [""] * n
    if len(texts) != n:
        raise ConfigError(f"LISTEN_FDNAMES has {len(texts)} names for {n} sockets (LISTEN_FDS)")
    with contextlib.ExitStack() as taken:
        handed = tuple(_checked(FIRST + index, text, taken) for index, text in enumerate(texts))
        taken.pop_all()
    return handed


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def _checked(descriptor: int, name: str, taken: contextlib.ExitStack) -> Handed:
    """Raises ConfigError. `taken` closes the socket, should this or another one be refused."""
    where = f"descriptor {descriptor}{f' ({name[:80]!a})' if name else ''}, which was handed over to listen on,"
    try:
        is_socket = stat.S_ISSOCK(os.fstat(descriptor).st_mode)
        os.set_inheritable(descriptor, False)
    except OSError as error:
        raise ConfigError(f"{where} is not there: {error.strerror} (LISTEN_FDS)") from None
    if not is_socket:
        raise ConfigError(f"{where} is no socket; modeld serves stream sockets (ListenStream=)")
    try:
        sock = taken.enter_context(socket.socket(fileno=descriptor))
        fits = sock.family in _FAMILIES and sock.type == socket.SOCK_STREAM
        fits = fits and (sock.family == socket.AF_UNIX or sock.proto in _PROTOCOLS)
        listens = fits and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    except OSError as error:
        raise ConfigError(f"{where} cannot be looked at: {error.strerror}") from None
    if not fits:
        kinds = ", ".join(_FAMILIES.values())
        kind = f"family {int(sock.family)}, type {int(sock.type)}, protocol {sock.proto}"
        raise ConfigError(f"{where} has {kind}; modeld serves {kinds} (ListenStream=)")
    if not listens:
        raise ConfigError(f"{where} does not listen; a socket unit needs Accept=no, one modeld serves all connections")
    return Handed(sock, name)
