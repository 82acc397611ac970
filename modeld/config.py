"""What is modeld configured to do? YAML, environment and flags -> Config; errors name file, line and key path.

Three tables, SERVER_KEYS, SWITCHING_KEYS and MODEL_KEYS, say of every key what it takes, its default and what it is for; they
drive the parsing and docs/configuration.md.
"""

from __future__ import annotations

import difflib
import enum
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from modeld import yamltree
from modeld.errors import ConfigError
from modeld.policy import AtStart, OnBusy, OnFailure, OnInflight, Strategy, SwitchPolicy
from modeld.types import ModelSpec
from modeld.yamltree import Node

MAX_FINDINGS = 50  # named in one error


@dataclass(frozen=True, slots=True)
class ServerConfig:
    host: str = "127.0.0.1"
    port: int = 8080
    queue_size: int = 128
    max_connections: int = 512
    generation_timeout_s: int = 0
    log_level: str = "info"
    log_format: str = "auto"


@dataclass(frozen=True, slots=True)
class Config:
    server: ServerConfig
    models: tuple[ModelSpec, ...]
    default_model: str | None  # loaded at start
    path: Path
    switching: SwitchPolicy = field(default_factory=SwitchPolicy)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a key takes. `parse` raises ValueError for anything else; one with text says more than `expected` does."""

    expected: str
    parse: Callable[[Node], object]


@dataclass(frozen=True, slots=True)
class Key:
    name: str
    kind: Kind
    default: str  # as the documentation shows it; the value itself is the dataclass field's
    doc: str


# -- the kinds of values ---------------------------------------------------------------------------------------------


def _whole(low: int, high: int, also: str = "") -> Kind:
    def parse(node: Node) -> int:
        if isinstance(node.value, bool) or not isinstance(node.value, int) or not low <= node.value <= high:
            raise ValueError
        return node.value

    return Kind(f"a whole number {low}..{high}{also}", parse)


def _text(max_length: int) -> Kind:
    def parse(node: Node) -> str:
        if isinstance(node.value, str) and 0 < len(node.value) <= max_length and "\0" not in node.value:
            return node.value
        if isinstance(node.value, bool | int | float):
            raise ValueError(f"expected text, found {node}: put it in quotes")
        raise ValueError

    return Kind(f"text of 1..{max_length} characters", parse)


def _pattern(expected: str, pattern: str) -> Kind:
    def parse(node: Node) -> str:
        if isinstance(node.value, bool | int | float):
            raise ValueError(f"expected {expected}, found {node}: put it in quotes")
        if not isinstance(node.value, str) or re.fullmatch(pattern, node.value) is None:
            raise ValueError
        return node.value

    return Kind(expected, parse)


def _choice(*names: str) -> Kind:
    def parse(node: Node) -> str:
        # The text as it is written: YAML reads an unquoted on or off as a truth value.
        if node.text not in names:
            raise ValueError
        return node.text

    return Kind("one of " + ", ".join(names), parse)


def _member(kind: type[enum.StrEnum]) -> Kind:
    by_name = _choice(*kind)
    return Kind(by_name.expected, lambda node: kind(str(by_name.parse(node))))


def _truth() -> Kind:
    def parse(node: Node) -> bool:
        if not isinstance(node.value, bool):
            raise ValueError
        return node.value

    return Kind("true or false", parse)


def _or_null(kind: Kind) -> Kind:
    return Kind(f"{kind.expected}, or null", lambda node: None if node.value is None else kind.parse(node))


def _parse_sha256(node: Node) -> str:
    if node.text is None or re.fullmatch(r"[0-9A-Fa-f]{64}", node.text) is None:
        raise ValueError
    return node.text.lower()


def _parse_seed(node: Node) -> int | None:
    if isinstance(node.value, bool) or not isinstance(node.value, int) or not -1 <= node.value < 1 << 32:
        raise ValueError
    return node.value if node.value >= 0 else None


def _parse_tensor_split(node: Node) -> tuple[float, ...]:
    if not isinstance(node.value, tuple) or len(node.value) > 16:  # 16: llama_max_devices()
        raise ValueError
    shares = []
    for item in node.value:
        if isinstance(item.value, bool) or not isinstance(item.value, int | float) or not 0 <= item.value < math.inf:
            raise ValueError
        shares.append(float(item.value))
    if shares and not any(shares):
        raise ValueError
    return tuple(shares)


_ID = _pattern("1..128 characters of A-Z a-z 0-9 . _ : -", r"[A-Za-z0-9._:-]{1,128}")
POOLINGS = ("none", "mean", "cls", "last")
_CACHE_TYPE = _choice("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")

SERVER_KEYS: tuple[Key, ...] = (
    Key("host", _pattern("a host name or an address", r"[0-9A-Za-z._:%-]{1,253}"), "127.0.0.1", "Address to listen on."),
    Key("port", _whole(0, 65535), "8080", "Port to listen on; 0 takes a free one."),
    Key("queue_size", _whole(0, 65536), "128", "Requests that may wait for a slot; one more gets 429 `queue_full`."),
    Key("max_connections", _whole(1, 65536), "512", "Connections served at once; one more gets 503."),
    Key("generation_timeout_s", _whole(0, 86_400), "0", "What a generation may take, the queue included; 0: no limit."),
    Key("log_level", _choice("debug", "info", "warning", "error"), "info", "Least severity that is logged."),
    Key("log_format", _choice("auto", "text", "json"), "auto", "`auto`: text on a terminal, JSON elsewhere."),
)

SWITCHING_KEYS: tuple[Key, ...] = (
    Key("on_inflight", _member(OnInflight), "cancel", "What becomes of running requests: cut, or given time to end."),
    Key("drain_timeout_s", _whole(0, 86_400), "300", "How much time `drain` gives; the model that an overlap replaced, too."),
    Key("on_busy", _member(OnBusy), "queue", "A switch while others run or wait: behind them, refused, or instead of them."),
    Key("on_failure", _member(OnFailure), "rollback", "After a failed load: the model before comes back, or none answers."),
    Key("strategy", _member(Strategy), "replace", "`overlap`: the new model is loaded beside the old; `auto`: where both fit."),
    Key("at_start", _member(AtStart), "last", "`last`: load what answered last, else `default_model`; `default`: always that."),
    Key("cooldown_failures", _whole(0, 100), "3", "Failures in a row after which a model has to wait; 0: never."),
    Key("cooldown_s", _whole(1, 3600), "60", "How long, at first; each further failure doubles it, up to an hour."),
    Key("load_stall_timeout_s", _whole(0, 86_400), "120", "A load that makes no progress for so long has failed; 0: never."),
    Key("prefetch", _truth(), "true", "Read the file ahead while the old model still answers."),
    Key("probe", _truth(), "true", "Decode a file that nobody vouched for in a process of its own first."),
    Key("check_memory", _truth(), "true", "Refuse a switch whose model cannot fit into memory."),
    Key("kv_keep_bytes", _whole(0, 1 << 40), "268435456", "Memory for KV cells of models that have left; 0: none are kept."),
    Key("auto_switch", _truth(), "false", "A request that names another registered model switches to it."),
    Key("auto_switch_min_stay_s", _whole(0, 86_400), "10", "How long a model stays before a request switches away from it."),
    Key("idle_unload_s", _whole(0, 31_536_000), "0", "A model that nobody used for so long is unloaded; 0: never."),
    Key("watch_config", _truth(), "true", "Read this file again when it changes."),
)

MODEL_KEYS: tuple[Key, ...] = (
    Key("id", _ID, "required", "The name by which requests and switches call the model; unique."),
    Key("path", _text(4096), "required", "The GGUF file, relative to the configuration file; `~` is expanded."),
    Key("name", _text(256), "the id", "A name for people."),
    Key("quant", _or_null(_text(64)), "null", "Shown in `/models`; null: read from the GGUF."),
    Key("family", _or_null(_text(64)), "null", "Shown in `/models`; null: `general.architecture` of the GGUF."),
    Key("n_ctx", _whole(0, 1 << 30), "4096", "KV cells in total, shared by the slots; 0: the model's own context."),
    Key("n_parallel", _whole(1, 256), "4", "Slots: requests decoded together."),
    Key("n_batch", _whole(1, 65536), "2048", "Tokens of one decode, at most; at least `n_parallel`."),
    Key("n_ubatch", _whole(1, 65536), "512", "Tokens computed at once; at most `n_batch`, to which the default is cut."),
    Key("n_threads", _whole(0, 1024), "0", "0: the usable cores (affinity and cgroup quota respected)."),
    Key(
        "cpu_pinning",
        _choice("auto", "on", "off"),
        "auto",
        "Compute threads bound to a core each; auto: if they take all.",
    ),
    Key("max_step_ms", _whole(10, 60_000), "250", "What a step may take while answers stream and a prompt is read (ms)."),
    Key("n_gpu_layers", _whole(-1, 65536), "-1", "Layers kept on the GPU; -1: all."),
    Key("main_gpu", _whole(0, 15), "0", "The GPU that is used where one is."),
    Key("split_mode", _choice("none", "layer", "row"), "layer", "How a model is split over GPUs."),
    Key(
        "tensor_split",
        Kind("a list of at most 16 numbers >= 0, not all 0", _parse_tensor_split),
        "[]",
        "The GPUs' shares of the model; empty: by their memory.",
    ),
    Key("cache_type_k", _CACHE_TYPE, "f16", "Type of the KV cache's keys."),
    Key("cache_type_v", _CACHE_TYPE, "f16", "Type of its values; a quantized one needs flash attention."),
    Key("flash_attn", _choice("auto", "on", "off"), "auto", "Flash attention."),
    Key("load_mode", _choice("auto", "mmap", "mlock", "none"), "auto", "How the file comes into memory; none: it is read."),
    Key("chat_template", _or_null(_text(65536)), "null", "Jinja, or the name of a template in llama.cpp; null: the model's own."),
    Key("embeddings", _choice("auto", "on", "off"), "auto", "`on`: it gives embeddings; `off`: it generates; `auto`: as below."),
    Key(
        "pooling", _or_null(_choice(*POOLINGS)), "null", "How the vectors of an input's tokens become one; null: the model's own."
    ),
    Key(
        "seed",
        _or_null(Kind("a whole number -1..4294967295", _parse_seed)),
        "null",
        "Of requests that bring none; null or -1: a fresh one for each.",
    ),
    Key("sha256", _or_null(Kind("64 hexadecimal digits", _parse_sha256)), "null", "Checked before the model is loaded."),
)

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
    host: str | None = None,
    port: int | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """The configuration in force: flag, then environment, then file, then default. Raises ConfigError."""
    settled = load_config(find_config(config, environ))
    over: dict[str, Any] = {}
    for variable, name in ENVIRONMENT.items():
        if environ.get(variable):  # set but empty is how a unit file or a compose file unsets one
            over[name] = _setting(variable, name, environ[variable])
    for name, value in (("host", host), ("port", port)):
        if value is not None:
            over[name] = _setting(f"--{name}", name, str(value))
    return replace(settled, server=replace(settled.server, **over))


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
        self.known("", root, ("server", "switching", "default_model", "models"))
        server = ServerConfig(**self.section("server", root.get("server"), SERVER_KEYS))
        switching = SwitchPolicy(**self.section("switching", root.get("switching"), SWITCHING_KEYS))
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
        return Config(server, tuple(models), default, self.path, switching)

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
            values["path"] = self.model_path(str(values["path"]))
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

    def model_path(self, text: str) -> Path:
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
        self.findings.append((node.line, f"{where}: {what}"))


def _nearest(node: Node, names: Sequence[str]) -> str:
    """A suggestion for a name that was mistyped."""
    near = difflib.get_close_matches(str(node.value)[:100], names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _setting(source: str, name: str, text: str) -> object:
    """One key of `server` from a flag or a variable, which are text always."""
    kind = next(key.kind for key in SERVER_KEYS if key.name == name)
    number = name in _NUMBERS and re.fullmatch(r"[0-9]{1,9}", text) is not None
    try:
        return kind.parse(Node(0, int(text) if number else text, text))
    except ValueError:
        raise ConfigError(f"{source}: expected {kind.expected}, found {text[:80]!r}") from None


_NUMBERS = {item.name for item in fields(ServerConfig) if isinstance(item.default, int)}
