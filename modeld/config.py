"""What is modeld configured to do? YAML, environment and flags -> Config; errors name file, line and key path."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from modeld import yamltree
from modeld.clientlimits import ClientLimits, LimitPolicy
from modeld.errors import ConfigError
from modeld.keys import check_exposure, load_keys
from modeld.policy import SwitchPolicy
from modeld.printable import printable
from modeld.settings import LIMIT_KEYS, LIMITED_NAME, MODEL_KEYS, SERVER_KEYS, SWITCHING_KEYS, Key
from modeld.types import ApiKey, ModelSpec
from modeld.yamltree import Node

MAX_FINDINGS = 50  # named in one error
MAX_SOCKET_PATH_BYTES = 107  # unix(7), sun_path without its last NUL


@dataclass(frozen=True, slots=True)
class ServerConfig:
    host: tuple[str, ...] = ("127.0.0.1",)
    port: int = 8080
    unix_socket: Path | None = None
    unix_socket_mode: str = "0660"
    unix_socket_owner: str | None = None
    queue_size: int = 128
    max_connections: int = 512
    max_connections_per_address: int = 0
    max_event_clients: int = 256
    max_head_bytes: int = 16384
    max_head_fields: int = 100
    max_head_line_bytes: int = 8190
    max_body_bytes: int = 1048576
    max_drain_bytes: int = 65536
    head_timeout_s: int = 10
    body_timeout_s: int = 30
    idle_timeout_s: int = 15
    send_timeout_s: int = 10
    linger_s: int = 1
    unacknowledged_timeout_s: int = 20
    heartbeat_s: int = 15
    generation_timeout_s: int = 0
    stop_delay_s: int = 0
    stop_timeout_s: int = 20
    stuck_after_s: int = 30
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    api_key_file: Path | None = None
    unix_admin_uids: tuple[int, ...] | None = None  # None: root and our own
    unix_use_uids: tuple[int, ...] = ()
    insecure: bool = False
    log_level: str = "info"
    log_format: str = "auto"


@dataclass(frozen=True, slots=True)
class Config:
    server: ServerConfig
    models: tuple[ModelSpec, ...]
    default_model: str | None  # loaded at start
    path: Path
    switching: SwitchPolicy = field(default_factory=SwitchPolicy)
    limits: LimitPolicy = field(default_factory=LimitPolicy)
    keys: tuple[ApiKey, ...] = ()  # of the file, the variable and the credential


ENVIRONMENT: Mapping[str, str] = {
    "MODELD_HOST": "host",
    "MODELD_PORT": "port",
    "MODELD_LOG_LEVEL": "log_level",
    "MODELD_LOG_FORMAT": "log_format",
}
"""Variables that stand for a key of `server`; MODELD_CONFIG names the file."""

DEFAULT_PATHS = (Path("configs/models.yaml"), Path("/etc/modeld/models.yaml"))


# -- what callers use ------------------------------------------------------------------------------------------------


def resolve(
    *,
    config: Path | None = None,
    host: str | None = None,  # several: with commas
    port: int | None = None,
    environ: Mapping[str, str] = os.environ,
    handed_hosts: Sequence[str] | None = None,
) -> Config:
    """The configuration in force, keys included: flag, then environment, then file, then default. Raises ConfigError.

    `handed_hosts`: the addresses of sockets that were handed over and count instead of `server.host`; None: none were.
    """
    settled = load_config(find_config(config, environ))
    over: dict[str, Any] = {}
    for variable, name in ENVIRONMENT.items():
        if environ.get(variable):  # set but empty is how a unit file or a compose file unsets one
            over[name] = setting(variable, name, environ[variable])
    for name, value in (("host", host), ("port", port)):
        if value is not None:
            over[name] = setting(f"--{name}", name, str(value))
    server = replace(settled.server, **over)
    keys = load_keys(server.api_key_file, environ)
    check_exposure(server.host, keys, insecure=server.insecure, handed_hosts=handed_hosts)
    return replace(settled, server=server, keys=keys)


def find_config(flag: Path | None, environ: Mapping[str, str]) -> Path:
    """The file that is read. It need not exist, except that the first default is taken only where it does."""
    if flag is not None:
        return flag
    if environ.get("MODELD_CONFIG"):
        return Path(environ["MODELD_CONFIG"])
    here, system = DEFAULT_PATHS
    return here if here.exists() else system


def load_config(path: Path) -> Config:
    """Parse one file. Raises ConfigError with a line for each finding."""
    root = yamltree.read(path)
    if not isinstance(root.value, Mapping):
        raise ConfigError(f"{path}:{root.line}: expected a mapping with the key models, found {root}")
    walk = _Walk(path)
    config = walk.config(root.value)
    if walk.findings:
        shown = [f"{path}:{line}: {what}" for line, what in sorted(walk.findings)[:MAX_FINDINGS]]
        if more := len(walk.findings) - len(shown):
            shown.append(f"{path}: and {more} more")
        raise ConfigError("\n".join(shown))
    return config


# -- walking the file ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Walk:
    """One pass over one file; what is wrong is collected, so that one run tells all of it."""

    path: Path
    findings: list[tuple[int, str]] = field(default_factory=list)  # line, what

    def config(self, root: Mapping[str, Node]) -> Config:
        self.known("", root, ("server", "switching", "limits", "default_model", "models"))
        server = self.server(root.get("server"))
        switching = SwitchPolicy(**self.section("switching", root.get("switching"), SWITCHING_KEYS))
        limits = self.limits(root.get("limits"))
        models: list[ModelSpec] = []
        listed = root.get("models")
        if listed is None:
            self.findings.append((1, "models: missing; expected a list of models (it may be empty: [])"))
        elif not isinstance(listed.value, tuple):
            self.expected(listed, "models", "a list of models (it may be empty: [])")
        else:
            lines: dict[str, int] = {}
            for index, node in enumerate(listed.value):
                spec = self.model(f"models[{index}]", node)
                if spec is None:
                    continue
                if spec.id in lines:
                    self.say(node, f"models[{index}].id", f"{spec.id!r} is the id of the model on line {lines[spec.id]} too")
                lines.setdefault(spec.id, node.line)
                models.append(spec)
        default = self.default_model(root.get("default_model"), models)
        return Config(server, tuple(models), default, self.path, switching, limits)

    def limits(self, node: Node | None) -> LimitPolicy:
        """`per_key` has the same keys once more for each name; what it does not say is as for everybody."""
        if node is None or not isinstance(node.value, Mapping) or (named := node.value.get("per_key")) is None:
            return LimitPolicy(ClientLimits(**self.section("limits", node, LIMIT_KEYS)))
        others = {name: value for name, value in node.value.items() if name != "per_key"}
        each = ClientLimits(**self.section("limits", Node(node.line, others), LIMIT_KEYS))
        if not isinstance(named.value, Mapping):
            self.expected(named, "limits.per_key", "a mapping of names of keys")
            return LimitPolicy(each)
        per_key = {}
        for name, entry in named.value.items():
            try:
                LIMITED_NAME.parse(Node(entry.line, name))
            except ValueError:
                self.say(entry, f"limits.per_key.{name[:80]}", f"expected a name of {LIMITED_NAME.expected}")
            else:
                per_key[name] = replace(each, **self.section(f"limits.per_key.{name}", entry, LIMIT_KEYS))
        return LimitPolicy(each, per_key)

    def server(self, node: Node | None) -> ServerConfig:
        values = self.section("server", node, SERVER_KEYS)
        given = node.value if node is not None and isinstance(node.value, Mapping) else {}
        for key in ("api_key_file", "unix_socket"):
            if values.get(key) is None:
                continue
            try:
                values[key] = path = self.beside(values[key])
                if key == "unix_socket" and (length := len(os.fsencode(path))) > MAX_SOCKET_PATH_BYTES:
                    raise ValueError(f"{path} has {length} bytes; the path of a socket may have {MAX_SOCKET_PATH_BYTES}")
            except (RuntimeError, OSError, ValueError) as error:  # RuntimeError: ~somebody who does not exist
                self.say(given[key], f"server.{key}", str(error))
        server = ServerConfig(**values)
        if not server.host and server.unix_socket is None:
            self.say(given["host"], "server.host", "no address and no unix_socket: nobody could reach the daemon")
        return server

    def default_model(self, node: Node | None, models: Sequence[ModelSpec]) -> str | None:
        if node is None:
            return models[0].id if models else None
        if node.value is None:
            return None
        ids = [spec.id for spec in models]
        if node.value not in ids and not self.findings:  # a model that is wrong itself may be the one that is meant
            known = ", ".join(ids[:20]) or "none is listed"
            self.say(node, "default_model", f"expected the id of a model ({known}) or null, found {node}{_nearest(node, ids)}")
        return str(node.value)

    def model(self, where: str, node: Node) -> ModelSpec | None:
        before = len(self.findings)
        values = self.section(where, node, MODEL_KEYS)
        if isinstance(node.value, Mapping):
            for name in ("id", "path"):
                if name not in node.value:
                    self.say(node, f"{where}.{name}", "missing")
        if len(self.findings) > before or not isinstance(node.value, Mapping):
            return None
        try:
            values["path"] = self.beside(str(values["path"]))
        except (RuntimeError, OSError) as error:  # ~somebody who does not exist
            self.say(node.value["path"], f"{where}.path", str(error))
            return None
        values.setdefault("name", values["id"])
        spec = ModelSpec(**values)
        if "n_ubatch" not in values:
            spec = replace(spec, n_ubatch=min(spec.n_ubatch, spec.n_batch))
        self.agree(where, node.value, spec)
        return spec

    def agree(self, where: str, given: Mapping[str, Node], spec: ModelSpec) -> None:
        """What no key can say for itself."""
        if spec.n_ubatch > spec.n_batch:
            self.say(given["n_ubatch"], f"{where}.n_ubatch", f"{spec.n_ubatch} is more than n_batch ({spec.n_batch})")
        if spec.n_batch < spec.n_parallel:
            node = given.get("n_batch", given.get("n_parallel"))
            assert node is not None
            self.say(node, f"{where}.n_batch", f"{spec.n_batch} is less than n_parallel ({spec.n_parallel}): one token a slot")
        if 0 < spec.n_ctx < spec.n_parallel:
            at = f"{where}.n_ctx"
            self.say(given["n_ctx"], at, f"{spec.n_ctx} is less than n_parallel ({spec.n_parallel}): one cell a slot")
        if spec.flash_attn == "off" and spec.cache_type_v not in ("f32", "f16", "bf16"):
            at = f"{where}.cache_type_v"
            self.say(given["cache_type_v"], at, f"{spec.cache_type_v} needs flash attention, and flash_attn is off")
        if spec.embeddings == "off" and spec.pooling is not None:
            at = f"{where}.pooling"
            self.say(given["pooling"], at, f"{spec.pooling} says how embeddings are made, and embeddings is off")

    def beside(self, text: str) -> Path:
        """Absolute; `..` is taken away only where that cannot change the meaning: the directory has no links left."""
        return Path(os.path.normpath(self.path.parent.resolve() / Path(text).expanduser()))

    def section(self, where: str, node: Node | None, keys: Sequence[Key]) -> dict[str, Any]:
        """The values that a mapping gives, by key; what is wrong is left out."""
        if node is None:
            return {}
        if not isinstance(node.value, Mapping):
            self.expected(node, where, "a mapping")
            return {}
        self.known(where, node.value, [key.name for key in keys])
        values: dict[str, Any] = {}
        for key in keys:
            if (given := node.value.get(key.name)) is None:
                continue
            try:
                values[key.name] = key.kind.parse(given)
            except ValueError as error:
                self.say(given, f"{where}.{key.name}", str(error) or f"expected {key.kind.expected}, found {given}")
        return values

    def known(self, where: str, entries: Mapping[str, Node], names: Sequence[str]) -> None:
        for name, node in entries.items():
            if name not in names:
                at = f"{where}.{name}" if where else name
                self.say(node, at[:200], f"unknown key{_nearest(Node(node.line, name), names)}")

    def expected(self, node: Node, where: str, expected: str) -> None:
        self.say(node, where, f"expected {expected}, found {node}")

    def say(self, node: Node, where: str, what: str) -> None:
        self.findings.append((node.line, f"{printable(where)}: {what}"))


def _nearest(node: Node, names: Sequence[str]) -> str:
    """A suggestion for a name that was mistyped."""
    near = difflib.get_close_matches(str(node.value)[:100], names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def setting(source: str, name: str, text: str) -> object:
    """One key of `server` from a flag or a variable, which are text always."""
    kind = next(key.kind for key in SERVER_KEYS if key.name == name)
    number = name in _NUMBERS and re.fullmatch(r"[0-9]{1,9}", text) is not None
    try:
        return kind.parse(Node(0, int(text) if number else text, text))
    except ValueError as error:
        raise ConfigError(f"{source}: {str(error) or f'expected {kind.expected}, found {text[:80]!r}'}") from None


_NUMBERS = {item.name for item in fields(ServerConfig) if isinstance(item.default, int)}
