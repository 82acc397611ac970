"""What may be set? Kinds of values, and a table for each section: what a key takes, its default, what it is for.

The tables drive the parsing (config.py) and docs/configuration.md.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from modeld.addresses import parse_host
from modeld.policy import AtStart, OnBusy, OnFailure, OnInflight, Strategy
from modeld.yamltree import Node


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


def _parse_hosts(node: Node) -> tuple[str, ...]:
    """One address, or several: a list, or text with commas, which is what flags and variables can say."""
    if isinstance(node.value, str):
        texts = [part.strip() for part in node.value.split(",")]
    elif isinstance(node.value, tuple):
        texts = [str(_text(255).parse(item)) for item in node.value]
    else:
        _text(255).parse(node)
        raise ValueError
    hosts = tuple(parse_host(text) for text in texts)
    if len(set(hosts)) < len(hosts):
        raise ValueError(f"an address is there twice: {', '.join(hosts)[:200]}")
    return hosts


def _parse_file_mode(node: Node) -> str:
    """As text: YAML reads an unquoted 0660 as 432."""
    if node.text is None or re.fullmatch(r"0?[0-7]{3}", node.text) is None:
        raise ValueError
    return node.text


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


def _list(expected: str, max_items: int, parse_item: Callable[[Node], object]) -> Kind:
    """`parse_item` raises ValueError for what is no such item, which is named then."""

    def parse(node: Node) -> tuple[object, ...]:
        if not isinstance(node.value, tuple) or len(node.value) > max_items:
            raise ValueError
        items = []
        for item in node.value:
            try:
                items.append(parse_item(item))
            except ValueError:
                raise ValueError(f"expected {full}, found {item} in it") from None
        return tuple(items)

    full = f"a list of at most {max_items} {expected}"
    return Kind(full, parse)


def _parse_host(node: Node) -> str:
    if not isinstance(node.value, str) or re.fullmatch(r"\*|\.?[0-9A-Za-z_-]+(\.[0-9A-Za-z_-]+)*", node.value) is None:
        raise ValueError
    return node.value.lower()


def _parse_origin(node: Node) -> str:
    """As a browser writes it: in lower case, without the scheme's own port."""
    found = isinstance(node.value, str) and re.fullmatch(
        r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[0-9a-z._-]+)(?::([0-9]{1,5}))?", node.value.lower()
    )
    if not found:
        raise ValueError
    scheme, host, port = found.groups()
    own_port = {"http": "80", "https": "443"}.get(scheme)
    return f"{scheme}://{host}" + (f":{port}" if port not in (None, own_port) else "")


_uid = _whole(0, (1 << 32) - 2)  # the last one is no user: -1 as uid_t

_ID = _pattern("1..128 characters of A-Z a-z 0-9 . _ : -", r"[A-Za-z0-9._:-]{1,128}")
LIMITED_NAME = _ID  # of a key, or uid:N
_HOSTS = Kind("an IPv4 or IPv6 address or `localhost`, or a list of these", _parse_hosts)
_OWNER = _pattern("user, user:group or :group", r"[A-Za-z0-9._-]{1,64}(:[A-Za-z0-9._-]{1,64})?|:[A-Za-z0-9._-]{1,64}")
POOLINGS = ("none", "mean", "cls", "last")
_CACHE_TYPE = _choice("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")

SERVER_KEYS: tuple[Key, ...] = (
    Key("host", _HOSTS, "127.0.0.1", "Addresses to listen on; `[]`: none, only `unix_socket`."),
    Key("port", _whole(0, 65535), "8080", "Port to listen on, on each of them; 0 takes a free one."),
    Key("unix_socket", _or_null(_text(4096)), "null", "A Unix socket to listen on, too, relative to this file."),
    Key("unix_socket_mode", Kind("three octal digits", _parse_file_mode), "0660", "Who may connect to it."),
    Key("unix_socket_owner", _or_null(_OWNER), "null", "Whose it is: `user`, `user:group` or `:group`; null: the daemon's."),
    Key("queue_size", _whole(0, 65536), "128", "Requests that may wait for a slot; one more gets 429 `queue_full`."),
    Key("max_connections", _whole(1, 65536), "512", "Served at once; for one more the oldest unfinished one goes, else 503."),
    Key("max_connections_per_address", _whole(0, 65536), "0", "Of these, from one address (IPv6: /64); 0: no such limit."),
    Key("max_event_clients", _whole(0, 65536), "256", "Of these, readers of `/events`; one more gets 503."),
    Key("max_head_bytes", _whole(1024, 1 << 20), "16384", "Request line and header fields together; more is 431."),
    Key("max_head_fields", _whole(10, 1000), "100", "Header fields of a request; more is 431."),
    Key("max_head_line_bytes", _whole(64, 1 << 20), "8190", "The request line, and each header field; more is 431."),
    Key("max_body_bytes", _whole(1024, 1 << 20), "1048576", "Body of a request; more is 413. Longer texts recurse too deep."),
    Key("max_drain_bytes", _whole(0, 1 << 20), "65536", "Unread body that is read away to keep a connection, else it is closed."),
    Key("head_timeout_s", _whole(1, 3600), "10", "From the first byte of a head to its end; the first one: from the connection."),
    Key("body_timeout_s", _whole(1, 3600), "30", "From the end of the head to the end of the body."),
    Key("idle_timeout_s", _whole(1, 3600), "15", "A kept connection between two requests."),
    Key("send_timeout_s", _whole(1, 3600), "10", "One write, until the client's kernel has taken all of it."),
    Key("linger_s", _whole(0, 60), "1", "What is still read away after the last response, so that it arrives."),
    Key("unacknowledged_timeout_s", _whole(1, 3600), "20", "Bytes that no kernel at the other end acknowledges."),
    Key("heartbeat_s", _whole(1, 3600), "15", "Silence on a stream before a comment goes out."),
    Key("generation_timeout_s", _whole(0, 86_400), "0", "What a generation may take, the queue included; 0: no limit."),
    Key("stop_delay_s", _whole(0, 3600), "0", "From `/readyz` at 503 to the first refusal, when it stops: balancers look away."),
    Key("stop_timeout_s", _whole(0, 3600), "20", "What running requests have to end when the daemon stops; 0: they are cut."),
    Key("stuck_after_s", _whole(1, 3600), "30", "A thread that neither sleeps, computes nor loads for so long is stuck."),
    Key(
        "allowed_hosts",
        _list("host names without port", 100, _parse_host),
        "[]",
        'Names by which clients may call it; `.example.com`: all below it, `"*"`: any. Addresses and localhost always may.',
    ),
    Key(
        "cors_origins",
        _list("origins scheme://host[:port]", 100, _parse_origin),
        "[]",
        "Other sites whose pages may use it.",
    ),
    Key("api_key_file", _or_null(_text(4096)), "null", "Keys, one a line, relative to this file; null: none from a file."),
    Key(
        "unix_admin_uids",
        _or_null(_list("user ids", 100, _uid.parse)),
        "null",
        "Users who may everything on the Unix socket; null: root and modeld's own.",
    ),
    Key("unix_use_uids", _list("user ids", 100, _uid.parse), "[]", "Users who may generate and read there."),
    Key("insecure", _truth(), "false", "Let other hosts in without keys."),
    Key("log_level", _choice("debug", "info", "warning", "error"), "info", "Least severity that is logged."),
    Key(
        "log_format",
        _choice("auto", "text", "json", "journal"),
        "auto",
        "`journal`: JSON with priorities; `auto`: text on a terminal, `journal` there, JSON elsewhere.",
    ),
)

SWITCHING_KEYS: tuple[Key, ...] = (
    Key("on_inflight", _member(OnInflight), "cancel", "What becomes of running requests: cut, or given time to end."),
    Key("drain_timeout_s", _whole(0, 86_400), "300", "How much time `drain` gives; the model that an overlap replaced, too."),
    Key("on_busy", _member(OnBusy), "queue", "A switch while others run or wait: behind them, refused, or instead of them."),
    Key("on_failure", _member(OnFailure), "rollback", "After a failed load: the model before comes back, or none answers."),
    Key("strategy", _member(Strategy), "replace", "`overlap`: the new model is loaded beside the old; `auto`: where both fit."),
    Key("ready_delay_s", _whole(0, 3600), "0", "From `/readyz` at 503 to the first refusal of a switch: balancers look away."),
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

LIMIT_KEYS: tuple[Key, ...] = (
    Key("requests_per_minute", _whole(0, 1_000_000), "0", "Requests that are let in, evenly or all at once; one more is 429."),
    Key("tokens_per_minute", _whole(0, 1_000_000_000), "0", "Tokens that are read or generated; in debt: 429."),
    Key("max_requests", _whole(0, 65536), "0", "Generations at once, those included that wait; one more is 429."),
    Key("max_streams", _whole(0, 65536), "0", "Event streams at once, of generations and `/events`; one more is 429."),
    Key("max_queued", _whole(0, 65536), "0", "Places in the queue; one more is 429 `queue_full`."),
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
    Key(
        "embeddings",
        _choice("auto", "on", "off"),
        "auto",
        "`on`: it gives embeddings; `off`: it generates; `auto`: as `pooling`, the file and its attention say.",
    ),
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
