"""What is configured, who can change it, and whom does it let in? Told without a word of what stands in the files."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeld.doctor.report import Finding, note, ok, problem, warning

if TYPE_CHECKING:
    from modeld.config import Config

MAX_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Configured:
    """`config` without its keys; None where it cannot be read."""

    path: Path
    config: Config | None
    findings: tuple[Finding, ...]


def read(flag: Path | None, environ: Mapping[str, str], credential: Path | None = None) -> Configured:
    """Step by step as serve does it (config.resolve), so that what is wrong with keys does not hide the models.

    `credential`: the file that the service which reads this configuration gets keys from.
    """
    from modeld import config as configs  # here: without PyYAML this raises, and costs this answer alone
    from modeld.errors import ConfigError

    path = configs.find_config(flag, environ)
    how = "--config" if flag is not None else "MODELD_CONFIG" if environ.get("MODELD_CONFIG") else "the default"
    if not path.exists() and not path.is_symlink():
        advice = "write one (docs/configuration.md begins with an example), or name it with --config or MODELD_CONFIG"
        finding = problem(
            "config_missing", f"no configuration is there ({how}): the daemon does not start", advice, about=str(path)
        )
        return Configured(path, None, (finding,))
    try:
        config = configs.load_config(path)
    except ConfigError as error:
        return Configured(path, None, (*_writers(path), _invalid(path, error.message)))
    findings = [
        ok(
            "config",
            f"{len(config.models)} model{'s' * (len(config.models) != 1)}, {config.default_model or 'none'} by default ({how})",
            about=str(path),
            models=len(config.models),
            default_model=config.default_model,
        ),
        *_writers(path),
    ]
    over: dict[str, Any] = {}
    for variable, key in configs.ENVIRONMENT.items():
        if environ.get(variable):  # set but empty is how a unit file or a compose file unsets one
            try:
                over[key] = configs.setting(variable, key, environ[variable])
            except ConfigError as error:
                findings.append(_invalid(path, error.message))
    server = replace(config.server, **over)
    findings += _keys(config, server.host, environ, credential)
    return Configured(path, replace(config, server=server), tuple(findings))


def _keys(config: Config, hosts: tuple[str, ...], environ: Mapping[str, str], credential: Path | None) -> Iterator[Finding]:
    from modeld import keys
    from modeld.errors import ConfigError

    server = config.server
    try:
        found = keys.load_keys(server.api_key_file, environ)
    except ConfigError as error:
        yield problem(
            "keys_invalid",
            f"the daemon does not start: {'; '.join(error.message.splitlines()[:MAX_SHOWN])}",  # which never quotes a line
            "correct the lines that are named; a file of keys is a file of its own with mode 600 or 640",
        )
        return
    reachable = [host for host in hosts if keys.exposed(host)]
    where = ", ".join(reachable)
    if credential is not None:
        yield _credential(credential)
    if found:
        admins = sum(key.admin for key in found)
        yield ok("keys", f"{len(found)} key{'s' * (len(found) != 1)}, {admins} with scope admin", keys=len(found), admins=admins)
        if server.api_key_file is not None:
            yield from _key_file(server.api_key_file)
        if environ.get(keys.VARIABLE):
            yield note(
                "keys_variable",
                f"{keys.VARIABLE} holds keys: root and the daemon's user can read it in /proc, and container tools show it",
                "a file with mode 600 or a systemd credential is better (docs/security.md)",
            )
    elif credential is not None:
        pass  # which is told already
    elif reachable and not server.insecure:
        yield problem(
            "exposed",
            f"the daemon does not start: {where} can be reached from other hosts, and there are no keys",
            f"give keys (server.api_key_file, {keys.VARIABLE}, the credential {keys.CREDENTIAL}), or listen on 127.0.0.1",
        )
    elif reachable:
        yield warning(
            "insecure",
            f"whoever reaches {where} may use and switch models: server.insecure is true and there are no keys",
            "give keys, or listen on 127.0.0.1 behind a proxy that asks for them",
        )
    else:
        yield note(
            "keys_none",
            "no keys: every user of this host, and whatever runs in its containers with host networking, may switch models",
            "where that is too many, give keys (docs/security.md)",
        )
    if "*" in server.allowed_hosts:
        yield warning(
            "any_host",
            'server.allowed_hosts has "*": web pages may reach this daemon by a name that they let point here (DNS rebinding)',
            "list the names by which clients call it",
        )
    if server.unix_socket is not None and int(server.unix_socket_mode, 8) & stat.S_IWOTH:
        yield note(
            "socket_open",
            f"server.unix_socket_mode is {server.unix_socket_mode}: every user of this host may connect",
            "0660 with unix_socket_owner lets in one group",
        )


def _credential(path: Path) -> Finding:
    """systemd reads it as root, whatever its mode, and does not start the service without it."""
    about = str(path)
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        found = (
            "the unit gives the service keys from this file (LoadCredential=), and it is not there: the service does not start"
        )
        return problem("keys_credential_missing", found, "make it, root's with mode 600: lines NAME SCOPE KEY", about=about)
    except OSError:
        mode = 0  # hidden from who asks, as it should be
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        found = f"every user of this host may read the keys, or change them (mode {mode:04o})"
        return warning("keys_readable", found, "chmod 600", about=about)
    return ok("keys_credential", "the unit gives the service keys from this file (LoadCredential=)", about=about)


def _key_file(path: Path) -> Iterator[Finding]:
    """What load_keys lets pass, and still is worth a word."""
    try:
        found = path.stat()
    except OSError:
        return
    if found.st_mode & stat.S_IWGRP:
        yield warning(
            "keys_writable",
            f"a whole group may change the keys (mode {stat.S_IMODE(found.st_mode):04o}, group {found.st_gid})",
            "chmod 640 or 600",
            about=str(path),
        )


def _writers(path: Path) -> Iterator[Finding]:
    """Who can write the configuration, or put another file in its place, decides what the daemon opens."""
    for what, one in (("the configuration", path), ("its folder", path.resolve().parent)):
        try:
            found = one.stat()
        except OSError:
            continue
        mode = stat.S_IMODE(found.st_mode)
        sticky = stat.S_ISDIR(found.st_mode) and mode & stat.S_ISVTX
        if mode & stat.S_IWOTH and not sticky:
            yield warning(
                "config_writable",
                f"every user of this host may write {what} (mode {mode:04o}), and so choose which files the daemon opens",
                f"chmod o-w {one}",
                about=str(one),
                mode=f"{mode:04o}",
            )
        elif found.st_uid not in (0, os.geteuid()):
            yield note(
                "config_owner",
                f"uid {found.st_uid} owns {what} (mode {mode:04o}) and can change it",
                "who can write it is the operator; for a service that is root",
                about=str(one),
                uid=found.st_uid,
            )


# -- mistakes, without what they quote


def _invalid(path: Path, message: str) -> Finding:
    """ConfigError's lines name file, line and key path, and often what was found there, which may be anything: that is cut."""
    lines = message.splitlines()
    said = [_without_quotes(line) for line in lines[:MAX_SHOWN]]
    if more := len(lines) - len(said):
        said.append(f"and {more} more")
    return problem(
        "config_invalid",
        f"the daemon does not start: {'; '.join(said)}",
        "`modeld check` tells each mistake in full; this report leaves out what stands in the file",
        about=str(path),
        mistakes=len(lines),
    )


def _without_quotes(line: str) -> str:
    """`FILE:7: server.port: expected a whole number` of `FILE:7: server.port: expected a whole number 0..65535, found 'x'`."""
    variable = re.match(r"(MODELD_[A-Z_]+): ", line)
    if variable:
        return f"{variable[1]} has a value that it cannot have"
    read = re.search(r": cannot be read: [A-Z][A-Za-z ]+$", line)
    if read:
        return f"it {read[0][2:]}"
    match = re.match(r".*?:([0-9]+): (.*)$", line)
    if match is None:
        return "a mistake without a line"
    number, rest = match.groups()
    where = re.match(r"([a-z0-9_.\[\]]+): ", rest)
    words = re.split(r"[.\[]", re.sub(r"[0-9]*\]", "", where[1])) if where else []
    known = bool(words) and all(word in _words() for word in words if word)
    what = re.search(r": (missing|unknown key|expected .{1,150}?)(?:, found |, but |; |$)", f": {rest}")
    parts = [f"line {number}", where[1] if where and known else "", what[1] if what else "a mistake"]
    return ": ".join(part for part in parts if part)


def _words() -> set[str]:
    from modeld.settings import LIMIT_KEYS, MODEL_KEYS, SERVER_KEYS, SWITCHING_KEYS

    tables = (SERVER_KEYS, SWITCHING_KEYS, LIMIT_KEYS, MODEL_KEYS)
    return {key.name for table in tables for key in table} | {"server", "switching", "limits", "models", "default_model"}
