"""Which daemon is asked, and with which key? Flags, environment, client.yaml, default.

A key never stands on a command line, where every user of the host can read it. A key of client.yaml is meant for the server of
that file and is sent to no other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from modeld.cli.failures import usage
from modeld.errors import ConfigError
from modeld.printable import printable
from modeld.privatefile import check_private, read_private, shown

if TYPE_CHECKING:
    from modeld.yamltree import Node

SERVER_VARIABLE = "MODELD_SERVER"
KEY_VARIABLE = "MODELD_API_KEY"
FILE = "client.yaml"
SYSTEM_FOLDER = Path("/etc/modeld")
DEFAULT_SERVER = "http://127.0.0.1:8080"
KEYS = ("server", "key_file", "key")

_EXPECTED = "the key alone on one line"
_PORTS = {"http": 80, "https": 443}
_KEY = re.compile(r"[\x21-\x7e]{1,512}")
_HOST = re.compile(r"\[[0-9A-Fa-f:.]+(%25[A-Za-z0-9._~-]+)?\]|[^\s/?#@:\[\]\\]+")
_MAX_PORT = 65535
_MAX_SERVER = 2000


@dataclass(frozen=True, slots=True)
class Target:
    """`base` goes before each path (a proxy's prefix; mostly empty). `path` is that of a Unix socket, where `scheme` is unix."""

    scheme: str  # http, https, unix
    host: str = "localhost"
    port: int = 0
    base: str = ""
    path: str = ""
    source: str = ""  # where the address comes from, for a message
    key: str | None = None
    key_source: str = ""

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix:{printable(self.path)}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{printable(host)}{port}{printable(self.base)}"

    def __repr__(self) -> str:
        return f"<Target {self}>"  # never the key


def find_target(server: str | None, key_file: Path | None, environ: Mapping[str, str]) -> Target:
    """`server`, `key_file`: the flags. Raises ConfigError, for --server Failure; messages name the source, and never a key."""
    file = _find_file(environ)
    written = _read_file(file) if file is not None else {}
    filed, filed_source = _server_of(written, file)
    if server is not None:
        try:
            target = parse_server(server, "--server")
        except ConfigError as error:
            raise usage(error.message) from None
    elif environ.get(SERVER_VARIABLE):
        target = parse_server(environ[SERVER_VARIABLE], SERVER_VARIABLE)
    else:
        target = parse_server(filed, filed_source)
    if key_file is not None:
        return _with_key(target, read_key(key_file), f"--key-file {shown(key_file)}")
    if environ.get(KEY_VARIABLE):
        return _with_key(target, environ[KEY_VARIABLE].strip(), KEY_VARIABLE)
    if file is None or not ({"key", "key_file"} & set(written)):
        return target
    meant = parse_server(filed, filed_source)
    if _place(meant) != _place(target):
        return target
    return _filed_key(target, written, file)


def _place(target: Target) -> tuple[object, ...]:
    """With the prefix: behind one proxy there may be daemons of several owners."""
    return target.scheme, target.host.lower(), target.port, target.base, target.path


def parse_server(text: str, source: str) -> Target:
    """http://HOST[:PORT][/PREFIX], https://..., unix:/PATH. Raises ConfigError."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        path = path.removeprefix("//") if path.startswith("///") else path
        if not path.startswith("/") or "\0" in path:
            raise _bad_server(text, source, "the path of a Unix socket must begin with /")
        return Target("unix", path=path, source=source)
    match = re.fullmatch(r"(https?)://([^/?#]*)(/[^?#\s\x00-\x1f\x7f]*)?", text, re.IGNORECASE | re.ASCII)
    if match is None or not text.isascii() or len(text) > _MAX_SERVER:
        raise _bad_server(text, source, "")
    scheme, place, base = match[1].lower(), match[2], (match[3] or "").rstrip("/")
    if "@" in place:
        raise ConfigError(
            f"{source}: a server's address holds no user and no password; keys come from --key-file, {KEY_VARIABLE} or {FILE}"
        )
    host, port = place, _PORTS[scheme]
    if (parts := re.fullmatch(r"(.+?):([0-9]{1,5})", place)) is not None and (parts[1].endswith("]") or ":" not in parts[1]):
        host, port = parts[1], int(parts[2])
    if _HOST.fullmatch(host) is None or not 0 < port <= _MAX_PORT:
        raise _bad_server(text, source, "")
    return Target(scheme, host.strip("[]").replace("%25", "%"), port, base, source=source)


def read_key(file: Path) -> str:
    """The key that a file holds, alone on its line; lines that begin with # are passed over. Raises ConfigError."""
    text = read_private(_expanded(file), private=True, expected=_EXPECTED)
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if len(lines) == 1 and len(lines[0]) == 1:
        return lines[0][0]
    found = f"{len(lines)} lines" if len(lines) != 1 else f"{len(lines[0])} words"
    hint = "; a daemon's key file holds NAME SCOPE KEY, a client's the KEY" if any(len(words) == 3 for words in lines) else ""
    raise ConfigError(f"{shown(file)}: expected {_EXPECTED}, found {found}{hint}")


def _expanded(file: Path) -> Path:
    try:
        return file.expanduser()
    except RuntimeError:  # no such user; or ~ without HOME, and no entry in passwd
        raise ConfigError(f"{shown(file)}: there is no home directory that ~ stands for here; write the whole path") from None


# -- client.yaml


def _find_file(environ: Mapping[str, str]) -> Path | None:
    """The first that is there: the user's own, then the host's."""
    folders = []
    if environ.get("XDG_CONFIG_HOME", "").startswith("/"):
        folders.append(Path(environ["XDG_CONFIG_HOME"]) / "modeld")
    elif environ.get("HOME"):
        folders.append(Path(environ["HOME"]) / ".config" / "modeld")
    folders.append(SYSTEM_FOLDER)
    return next((folder / FILE for folder in folders if os.path.lexists(folder / FILE)), None)


def _read_file(file: Path) -> Mapping[str, Node]:
    from modeld import yamltree  # PyYAML costs more time than all else here: only where there is a file

    root = yamltree.read(file, f"a mapping with {', '.join(KEYS)}")
    if not isinstance(root.value, Mapping):
        raise ConfigError(f"{shown(file)}:{root.line}: expected a mapping with {', '.join(KEYS)}, found something else")
    for name, node in root.value.items():
        at = f"{shown(file)}:{node.line}: {printable(name[:80])}"
        if name not in KEYS:
            raise ConfigError(f"{at}: no such key; known are {', '.join(KEYS)}")
        if not isinstance(node.value, str) or not node.value:
            raise ConfigError(f"{at}: expected text{' in quotes' if node.text is not None else ''}")  # never what was found
    if "key" in root.value and "key_file" in root.value:
        raise ConfigError(f"{shown(file)}:{root.value['key'].line}: key: key and key_file are both given; one of them is enough")
    if "key" in root.value:
        try:
            check_private(file, file.stat().st_mode)
        except OSError as error:
            raise ConfigError(f"{shown(file)}: cannot be read: {error.strerror}") from None
    return root.value


def _server_of(written: Mapping[str, Node], file: Path | None) -> tuple[str, str]:
    if file is None or "server" not in written:
        return DEFAULT_SERVER, "the default"
    node = written["server"]
    assert isinstance(node.value, str)
    return node.value, f"{shown(file)}:{node.line}: server"


def _filed_key(target: Target, written: Mapping[str, Node], file: Path) -> Target:
    node = written.get("key") or written["key_file"]
    assert isinstance(node.value, str)
    at = f"{shown(file)}:{node.line}"
    if "key" in written:
        return _with_key(target, node.value, f"{at}: key")
    named = _expanded(Path(node.value))
    named = named if named.is_absolute() else file.parent / named
    return _with_key(target, read_key(named), f"{shown(named)} ({at}: key_file)")


def _with_key(target: Target, key: str, source: str) -> Target:
    if _KEY.fullmatch(key) is None:
        raise ConfigError(f"{source}: a key is 1..512 printable ASCII characters without spaces")
    return replace(target, key=key, key_source=source)


def _bad_server(text: str, source: str, why: str) -> ConfigError:
    """A password may stand in what is no address."""
    said = "" if "@" in text else f" found {printable(text[:120])!r};"
    return ConfigError(f"{source}: expected http://HOST[:PORT], https://HOST[:PORT] or unix:/PATH,{said} {why}".rstrip(" ;,"))
