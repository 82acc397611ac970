"""Which keys open the daemon, and may it do without? Key file, variable, systemd credential -> ApiKeys; hosts -> exposed or not.

A line is `NAME SCOPE KEY`: scope `use` or `admin`, the key itself or `sha256:` and its digest. Errors name source and line, and
never quote a line: whatever stands where it should not may be a key.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from modeld.errors import ConfigError
from modeld.privatefile import read_private, shown
from modeld.types import ApiKey

VARIABLE = "MODELD_API_KEYS"
CREDENTIAL = "modeld-keys"  # a file of this name in $CREDENTIALS_DIRECTORY: LoadCredential=modeld-keys:... of a unit

MAX_FINDINGS = 20  # named in one error
MIN_KEY_LENGTH = 16

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SCOPES = ("use", "admin")
_KEY = re.compile(rf"[\x21-\x7e]{{{MIN_KEY_LENGTH},512}}")
_DIGEST = re.compile(r"sha256:([0-9A-Fa-f]{64})")
_RESERVED = "anonymous"  # who brings no key has this name in logs
_EXPECTED = "lines NAME SCOPE KEY"


def load_keys(file: Path | None, environ: Mapping[str, str]) -> tuple[ApiKey, ...]:
    """The keys of all sources that are there. Raises ConfigError with a line for each finding.

    A source that holds no key is an error: a file that was cut off must not open the daemon to everybody.
    """
    keys: list[ApiKey] = []
    first: dict[str | bytes, str] = {}  # name or digest -> where it stands
    findings: list[str] = []
    for source, text in _sources(file, environ):
        n_before = len(keys) + len(findings)
        for number, line in enumerate(text.split("\n"), 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            at = f"{source}:{number}"
            try:
                key = _parse(words)
            except ValueError as error:
                findings.append(f"{at}: {error}")
                continue
            if key.name in first:
                findings.append(f"{at}: the name is that of {first[key.name]}")
            elif key.digest in first:
                findings.append(f"{at}: the key is that of {first[key.digest]}; each name needs its own")
            keys.append(key)
            first.setdefault(key.name, at)
            first.setdefault(key.digest, at)
        if len(keys) + len(findings) == n_before:
            findings.append(f"{source}: holds no key; expected lines NAME SCOPE KEY")
    if (more := len(findings) - MAX_FINDINGS) > 0:
        findings[MAX_FINDINGS:] = [f"keys: and {more} more"]
    if findings:
        raise ConfigError("\n".join(findings))
    return tuple(keys)


def check_exposure(
    hosts: Iterable[str], keys: tuple[ApiKey, ...], *, insecure: bool, handed_hosts: Iterable[str] | None = None
) -> None:
    """Raises ConfigError where other hosts could use the daemon without a key, and nobody said that they may.

    `hosts` are `server.host`; the addresses of sockets that were handed over count instead.
    """
    open_to_all = [host for host in (hosts if handed_hosts is None else handed_hosts) if exposed(host)]
    where = "server.host" if handed_hosts is None else "the sockets that were handed over (ListenStream=)"
    if open_to_all and not keys and not insecure:
        raise ConfigError(
            f"{where}: {', '.join(open_to_all)} can be reached from other hosts, and there are no keys. Either give keys "
            f"(server.api_key_file, {VARIABLE} or the systemd credential {CREDENTIAL}), or listen on 127.0.0.1 or ::1, "
            "or let everybody in with server.insecure: true"
        )


def exposed(host: str) -> bool:
    """Whether another host may reach it: all but loopback. A name counts as exposed; asking for its address may take long."""
    name = host.lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True


# -- the sources


def _sources(file: Path | None, environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Name and text of each."""
    folder = environ.get("CREDENTIALS_DIRECTORY")
    credentials = Path(folder) if folder else None
    if file is not None:
        # systemd gives credentials the modes it likes, in a folder that nobody else can enter.
        yield shown(file), read_private(file, expected=_EXPECTED, private=credentials is None or credentials not in file.parents)
    if environ.get(VARIABLE):  # set but empty is how a unit file or a compose file unsets one
        yield VARIABLE, environ[VARIABLE]
    if credentials is not None and (credential := credentials / CREDENTIAL) != file and _is_there(credential):
        yield shown(credential), read_private(credential, expected=_EXPECTED, private=False)


def _is_there(path: Path) -> bool:
    """Also where it cannot be looked at: reading it tells why."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def _parse(words: list[str]) -> ApiKey:
    """Raises ValueError with what is wrong, in a message without a word of the line: the key may stand where a name should."""
    if len(words) != 3:
        raise ValueError(f"expected three words, NAME SCOPE KEY, found {len(words)}")
    name, scope, key = words
    if not _NAME.fullmatch(name) or name == _RESERVED:
        raise ValueError(f"the name must be 1..64 characters of A-Z a-z 0-9 . _ - and not {_RESERVED}")
    if scope not in _SCOPES:
        raise ValueError(f"the scope must be one of {', '.join(_SCOPES)}")
    if key.startswith("sha256:"):
        match = _DIGEST.fullmatch(key)
        if match is None:
            raise ValueError("after sha256: 64 hexadecimal digits are expected")
        digest = bytes.fromhex(match[1])
    elif _KEY.fullmatch(key):
        digest = hashlib.sha256(key.encode()).digest()
    else:
        raise ValueError(f"the key must be {MIN_KEY_LENGTH}..512 printable ASCII characters")
    return ApiKey(name, scope == "admin", digest)
