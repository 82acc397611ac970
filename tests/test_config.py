"""The configuration: what a good file gives, what each bad one is told, which source wins, and that all of it is documented."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from modeld import config, yamltree
from modeld.clientlimits import ClientLimits, LimitPolicy
from modeld.config import ServerConfig, find_config, load_config, resolve
from modeld.daemon import limits_of, rules_of
from modeld.errors import ConfigError
from modeld.httpapi.browser import BrowserRules
from modeld.httpapi.caller import KeyRules
from modeld.httpapi.limits import Limits
from modeld.policy import AtStart, OnBusy, OnFailure, OnInflight, Strategy, SwitchPolicy
from modeld.settings import LIMIT_KEYS, MODEL_KEYS, SERVER_KEYS, SWITCHING_KEYS, Key
from modeld.types import ModelSpec

ROOT = Path(__file__).resolve().parent.parent
GOOD = "models: [{id: a, path: a.gguf}]\n"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def make(text: str | bytes) -> Path:
        path = tmp_path / "models.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return make


Write = Callable[[str | bytes], Path]


def refused(path: Path) -> list[str]:
    """The findings, with the file's name in place of its path."""
    with pytest.raises(ConfigError) as error:
        load_config(path)
    return error.value.message.replace(str(path), path.name).split("\n")


# -- good files -------------------------------------------------------------------------------------------------------


def test_a_model_has_every_default(write: Write) -> None:
    path = write("models:\n  - id: a\n    path: a.gguf\n")
    loaded = load_config(path)
    assert loaded.server == ServerConfig()
    assert loaded.models == (ModelSpec(id="a", name="a", path=path.parent / "a.gguf"),)
    assert loaded.default_model == "a"
    assert loaded.path == path


def test_every_key_is_taken_over(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    path = write(
        f"""
server: {{host: ["::1", localhost], port: 0, unix_socket: run/m.sock, unix_socket_mode: 0600, unix_socket_owner: "a:b",
  queue_size: 0, max_connections: 7, max_connections_per_address: 5, max_event_clients: 6, max_head_bytes: 2048,
  max_head_fields: 50, max_head_line_bytes: 999, max_body_bytes: 4096, max_drain_bytes: 0, head_timeout_s: 11,
  body_timeout_s: 12, idle_timeout_s: 13, send_timeout_s: 14, linger_s: 0, unacknowledged_timeout_s: 15, heartbeat_s: 16,
  generation_timeout_s: 9, stop_delay_s: 17, stop_timeout_s: 18, stuck_after_s: 19,
  allowed_hosts: [LLM.example, .lan], cors_origins: ["https://app.example:443"], api_key_file: keys, unix_admin_uids: [0, 1000],
  unix_use_uids: [1001], insecure: true,
  log_level: debug, log_format: json}}
switching: {{on_inflight: drain, drain_timeout_s: 7, on_busy: supersede, on_failure: error, strategy: overlap,
  ready_delay_s: 8, at_start: default,
  cooldown_failures: 0, cooldown_s: 1, load_stall_timeout_s: 3, prefetch: false, probe: false, check_memory: false,
  kv_keep_bytes: 0, auto_switch: true, auto_switch_min_stay_s: 2, idle_unload_s: 5, watch_config: false}}
limits: {{requests_per_minute: 1, tokens_per_minute: 2, max_requests: 3, max_streams: 4, max_queued: 5}}
default_model: qwen2.5:0.5b
models:
  - id: first
    path: /absolute.gguf
  - id: qwen2.5:0.5b
    name: Qwen
    path: ~/qwen.gguf
    quant: Q4_0
    family: qwen2
    n_ctx: 0
    n_parallel: 256
    n_batch: 256
    n_ubatch: 256
    n_threads: 3
    cpu_pinning: on
    max_step_ms: 20
    n_gpu_layers: 10
    main_gpu: 1
    split_mode: row
    tensor_split: [3, 0.5]
    cache_type_k: q8_0
    cache_type_v: iq4_nl
    flash_attn: on
    load_mode: none
    chat_template: chatml
    embeddings: on
    pooling: last
    seed: 4294967295
    sha256: {"AB" * 32}
"""
    )
    loaded = load_config(path)
    assert loaded.server == ServerConfig(
        host=("::1", "127.0.0.1"), port=0, unix_socket=path.parent / "run" / "m.sock", unix_socket_mode="0600",
        unix_socket_owner="a:b", queue_size=0, max_connections=7, max_connections_per_address=5, max_event_clients=6,
        max_head_bytes=2048, max_head_fields=50, max_head_line_bytes=999, max_body_bytes=4096, max_drain_bytes=0,
        head_timeout_s=11, body_timeout_s=12, idle_timeout_s=13, send_timeout_s=14, linger_s=0, unacknowledged_timeout_s=15,
        heartbeat_s=16, generation_timeout_s=9, stop_delay_s=17, stop_timeout_s=18, stuck_after_s=19,
        allowed_hosts=("llm.example", ".lan"), cors_origins=("https://app.example",), api_key_file=path.parent / "keys",
        unix_admin_uids=(0, 1000), unix_use_uids=(1001,), insecure=True,
        log_level="debug", log_format="json",
    )  # fmt: skip
    assert loaded.switching == SwitchPolicy(
        OnInflight.DRAIN, 7, OnBusy.SUPERSEDE, OnFailure.ERROR, Strategy.OVERLAP, 8, AtStart.DEFAULT, 0, 1, 3, False, False,
        False, 0, True, 2, 5, False,
    )  # fmt: skip
    assert loaded.limits == LimitPolicy(ClientLimits(1, 2, 3, 4, 5))
    assert loaded.default_model == "qwen2.5:0.5b"
    assert [spec.path for spec in loaded.models] == [Path("/absolute.gguf"), Path("/home/somebody/qwen.gguf")]
    spec = loaded.models[1]
    assert dataclasses.asdict(spec) == {
        "id": "qwen2.5:0.5b", "name": "Qwen", "path": spec.path, "quant": "Q4_0", "family": "qwen2", "n_ctx": 0,
        "n_parallel": 256, "n_batch": 256, "n_ubatch": 256, "n_threads": 3, "cpu_pinning": "on",
        "max_step_ms": 20, "n_gpu_layers": 10, "main_gpu": 1,
        "split_mode": "row", "tensor_split": (3.0, 0.5), "cache_type_k": "q8_0", "cache_type_v": "iq4_nl", "flash_attn": "on",
        "load_mode": "none", "chat_template": "chatml", "embeddings": "on", "pooling": "last", "seed": 4294967295,
        "sha256": "ab" * 32,
    }  # fmt: skip


def test_what_a_named_client_is_not_told_of_is_as_for_everybody(write: Write) -> None:
    text = GOOD + "limits:\n  max_requests: 3\n  max_queued: 5\n  per_key:\n    batch: {max_requests: 0}\n    uid:1000: {}\n"
    limits = load_config(write(text)).limits
    assert limits == LimitPolicy(
        ClientLimits(max_requests=3, max_queued=5),
        {"batch": ClientLimits(max_requests=0, max_queued=5), "uid:1000": ClientLimits(max_requests=3, max_queued=5)},
    )
    assert [limits.of(name).max_requests for name in ("batch", "uid:1000", "anybody")] == [0, 3, 3]


@pytest.mark.parametrize("null", ["null", "~", ""])
def test_keys_that_may_be_null_are_as_if_absent(write: Write, null: str) -> None:
    names = ["quant", "family", "chat_template", "pooling", "seed", "sha256"]
    text = "models:\n  - id: a\n    path: a\n" + "".join(f"    {name}: {null}\n" for name in names)
    assert all(getattr(load_config(write(text)).models[0], name) is None for name in names)


def test_a_seed_of_minus_1_is_a_fresh_one_as_llama_server_has_it(write: Write) -> None:
    assert load_config(write("models: [{id: a, path: a, seed: -1}]")).models[0].seed is None


@pytest.mark.parametrize(
    ("text", "default"),
    [
        ("models: []", None),
        ("models: []\ndefault_model: null", None),
        (GOOD + "default_model: null", None),
        (GOOD + "default_model:", None),
        (GOOD + "default_model: a", "a"),
        (GOOD, "a"),
        ("\ufeff# a comment and a byte order mark\n" + GOOD + "server: {}", "a"),
    ],
)
def test_the_default_model(write: Write, text: str, default: str | None) -> None:
    assert load_config(write(text)).default_model == default


@pytest.mark.parametrize(("n_batch", "n_ubatch"), [(2048, 512), (512, 512), (100, 100)])
def test_the_default_of_n_ubatch_is_cut_to_n_batch(write: Write, n_batch: int, n_ubatch: int) -> None:
    assert load_config(write(f"models: [{{id: a, path: a, n_batch: {n_batch}}}]")).models[0].n_ubatch == n_ubatch


def test_paths_are_relative_to_the_file_not_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "m.yaml").write_text("models: [{id: a, path: ../models/a.gguf}]")
    monkeypatch.chdir(tmp_path)
    assert load_config(Path("etc/m.yaml")).models[0].path == tmp_path / "models" / "a.gguf"
    (tmp_path / "link").symlink_to("etc")
    assert load_config(Path("link/m.yaml")).models[0].path == tmp_path / "models" / "a.gguf"


def test_names_and_origins_are_as_browsers_write_them(write: Write) -> None:
    origins = "[HTTP://App.example:80, 'https://app.example:8443', tauri://localhost, 'http://[::1]:3000']"
    server = load_config(write(GOOD + f"server: {{allowed_hosts: ['*', .LAN, My_Host], cors_origins: {origins}}}")).server
    assert server.allowed_hosts == ("*", ".lan", "my_host")
    assert server.cors_origins == ("http://app.example", "https://app.example:8443", "tauri://localhost", "http://[::1]:3000")


def test_the_keys_lie_beside_the_file(write: Write) -> None:
    path = write(GOOD + "server: {api_key_file: ./keys}")
    (path.parent / "keys").write_text("ops admin 0123456789abcdef")
    (path.parent / "keys").chmod(0o600)
    assert [key.name for key in resolve(config=path, environ={}).keys] == ["ops"]
    (path.parent / "keys").chmod(0o644)
    with pytest.raises(ConfigError, match=r"keys: every user of this host may read or write it \(mode 0644\)"):
        resolve(config=path, environ={})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1"])
def test_other_hosts_need_keys_wherever_the_address_comes_from(write: Write, host: str) -> None:
    plain, named = write(GOOD), f"server.host: {host} can be reached from other hosts, and there are no keys"
    for settled in ({"host": host, "environ": {}}, {"environ": {"MODELD_HOST": host}}):
        with pytest.raises(ConfigError, match=re.escape(named)):
            resolve(config=plain, **settled)
    environ = {"MODELD_API_KEYS": "ops admin 0123456789abcdef"}
    assert resolve(config=plain, host=host, environ=environ).server.host == (host,)
    assert resolve(config=write(GOOD + "server: {insecure: true}"), host=host, environ={}).keys == ()


def test_the_shipped_file_loads_the_demo_models() -> None:
    loaded = load_config(ROOT / "configs" / "models.yaml")
    assert loaded.default_model == "demo-stories"
    assert [(spec.id, spec.path, spec.n_ctx, spec.n_parallel) for spec in loaded.models] == [
        ("demo-stories", ROOT / "models" / "demo-stories.gguf", 4096, 8),
        ("demo-calc", ROOT / "models" / "demo-calc.gguf", 2048, 8),
    ]


# -- bad files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        # no YAML, or not the kind that is safe
        ("", "models.yaml: empty; expected a mapping with the key models"),
        ("# nothing\n", "models.yaml: empty; expected a mapping with the key models"),
        (b"GGUF\x03\x00\x00\x00", "models.yaml:1: the character U+0003 is not allowed in YAML"),
        (b"models: []\n# \xff", "models.yaml:2: byte 0xff is not UTF-8; expected YAML text"),
        ("models: [\n", "models.yaml:2: not valid YAML: while parsing a flow node, expected the node content"),
        ("models:\n\t- id: a", "models.yaml:2: not valid YAML: "),
        ("a: b: c", "models.yaml:1: not valid YAML: mapping values are not allowed here"),
        ("%YAML 3.0\n---\n" + GOOD, "models.yaml:1: not valid YAML: found incompatible YAML document"),
        (GOOD + "---\n" + GOOD, "models.yaml:2: a second document begins; expected one"),
        ("models: &x []", "models.yaml:1: models: anchor &x: anchors are not supported"),
        ("models:\n  - id: &y a", "models.yaml:2: models[0].id: anchor &y: anchors are not supported"),
        ("models: *x", "models.yaml:1: models: alias *x: aliases are not supported; write the value out"),
        ("<<: *x", "models.yaml:1: <<: alias *x: aliases are not supported; write the value out"),
        ("models: !!python/name:os.system ", "models.yaml:1: models: tag tag:yaml.org,2002:python/name:os.system: tags are not"),
        (
            "models: []\nserver: {port: !!int '1'}",
            "models.yaml:2: server.port: tag tag:yaml.org,2002:int: tags are not supported",
        ),
        ("models: [" * 30, "nested deeper than 16 levels"),
        ("models:\n  - id: a\n    path: a\n    id: b", "models.yaml:4: models[0].id: the key stands here twice, first on line 2"),
        ("models: []\nmodels: []", "models.yaml:2: models: the key stands here twice, first on line 1"),
        ("? [a]\n: b", "models.yaml:1: a key must be text, found a list"),
        ("1: a", "models.yaml:1: a key must be text, found 1"),
        ('models: [{id: a, path: a, name: "\\ud800"}]', "models[0].name: half of a surrogate pair, which is no character"),
        ('"\\udcff": 1', "models.yaml:1: half of a surrogate pair, which is no character"),
        ("models: []\n" + "- " * 3, "models.yaml:2: not valid YAML"),
        ("x" * (1 << 20) + ": y", "models.yaml: more than 1048576 bytes; expected a configuration in YAML"),
        ("[" + "0," * 60_000 + "]", "more than 50000 values"),
        # the wrong shape
        ("- id: a", "models.yaml:1: expected a mapping with the key models, found a list"),
        ("models", "models.yaml:1: expected a mapping with the key models, found 'models'"),
        ("server: {}", "models.yaml:1: models: missing; expected a list of models (it may be empty: [])"),
        ("models:", "models.yaml:1: models: expected a list of models (it may be empty: []), found nothing"),
        ("models: {id: a}", "models.yaml:1: models: expected a list of models (it may be empty: []), found a mapping"),
        ("models: [a]", "models.yaml:1: models[0]: expected a mapping, found 'a'"),
        (GOOD + "server: 8080", "models.yaml:2: server: expected a mapping, found 8080"),
        (GOOD + "server:", "models.yaml:2: server: expected a mapping, found nothing"),
        # unknown keys
        (GOOD + "modles: []", "models.yaml:2: modles: unknown key; did you mean models?"),
        (GOOD + "zzz: 1", "models.yaml:2: zzz: unknown key"),
        (GOOD + "server:\n  prot: 1", "models.yaml:3: server.prot: unknown key; did you mean port?"),
        ("models:\n  - id: a\n    path: a\n    ctx_size: 1", "models.yaml:4: models[0].ctx_size: unknown key"),
        ("models:\n  - id: a\n    path: a\n    n_paralel: 1", "models[0].n_paralel: unknown key; did you mean n_parallel?"),
        # missing keys
        ("models:\n  - path: a", "models.yaml:2: models[0].id: missing"),
        ("models:\n  - id: a", "models.yaml:2: models[0].path: missing"),
        # server
        (GOOD + "server: {port: 65536}", "server.port: expected a whole number 0..65535, found 65536"),
        (GOOD + "server: {port: -1}", "server.port: expected a whole number 0..65535, found -1"),
        (GOOD + "server: {port: '80'}", "server.port: expected a whole number 0..65535, found '80'"),
        (GOOD + "server: {port: 80.0}", "server.port: expected a whole number 0..65535, found 80.0"),
        (GOOD + "server: {port: true}", "server.port: expected a whole number 0..65535, found true"),
        (GOOD + "server: {port: }", "server.port: expected a whole number 0..65535, found nothing"),
        (GOOD + "server: {port: 8:30}", "server.port: expected a whole number 0..65535, found '8:30'"),
        (GOOD + "server: {port: 0x_}", "server.port: expected a whole number 0..65535, found '0x_'"),
        (GOOD + "server: {port: " + "9" * 5000 + "}", "server.port: expected a whole number 0..65535, found '9999"),
        (
            GOOD + "server: {host: modeld.example}",
            "server.host: expected an IPv4 or IPv6 address or localhost, found 'modeld.example': names are not looked up, write",
        ),
        (GOOD + "server: {host: 1}", "server.host: expected text, found 1: put it in quotes"),
        (GOOD + "server: {host: ''}", "server.host: expected an IPv4 or IPv6 address or localhost, found ''"),
        (
            GOOD + "server: {host: {a: b}}",
            "server.host: expected an IPv4 or IPv6 address or `localhost`, or a list of these, found",
        ),
        (GOOD + "server: {host: 127.1}", "server.host: expected text, found 127.1: put it in quotes"),
        (GOOD + "server: {host: '[::1]'}", "server.host: an IPv6 address is written without brackets here, found '[::1]'"),
        (GOOD + "server: {host: [localhost, 127.0.0.1]}", "server.host: an address is there twice: 127.0.0.1, 127.0.0.1"),
        (GOOD + "server: {host: []}", "server.host: no address and no unix_socket: nobody could reach the daemon"),
        (GOOD + "server: {unix_socket: " + "a" * 200 + "}", "bytes; the path of a socket may have 107"),
        (GOOD + "server: {unix_socket_mode: 888}", "server.unix_socket_mode: expected three octal digits, found 888"),
        (
            GOOD + "server: {unix_socket_owner: 'a:b:c'}",
            "server.unix_socket_owner: expected user, user:group or :group, or null, found",
        ),
        (GOOD + "server: {log_level: loud}", "server.log_level: expected one of debug, info, warning, error, found 'loud'"),
        (GOOD + "server: {log_format: [json]}", "server.log_format: expected one of auto, text, json, journal, found a list"),
        (GOOD + "server: {max_connections: 0}", "server.max_connections: expected a whole number 1..65536, found 0"),
        (
            GOOD + "server: {allowed_hosts: llm}",
            "server.allowed_hosts: expected a list of at most 100 host names without port, found",
        ),
        (
            GOOD + "server: {allowed_hosts: ['llm:8080']}",
            "expected a list of at most 100 host names without port, found 'llm:8080' in",
        ),
        (GOOD + "server: {allowed_hosts: [a, '*.lan']}", "host names without port, found '*.lan' in it"),
        (GOOD + "server: {allowed_hosts: ['']}", "host names without port, found '' in it"),
        (GOOD + "server: {allowed_hosts: [1.5]}", "host names without port, found 1.5 in it"),
        (GOOD + "server: {allowed_hosts: [" + "a," * 101 + "]}", "server.allowed_hosts: expected a list of at most 100"),
        (GOOD + "server: {cors_origins: ['*']}", "origins scheme://host[:port], found '*' in it"),
        (GOOD + "server: {cors_origins: ['https://a.example/']}", "found 'https://a.example/' in it"),
        (GOOD + "server: {cors_origins: ['null']}", "found 'null' in it"),
        (GOOD + "server: {cors_origins: ['https://*.example']}", "found 'https://*.example' in it"),
        (GOOD + "server: {cors_origins: ['https://a:b@c']}", "found 'https://a:b@c' in it"),
        (GOOD + "server: {cors_origins: [[]]}", "found a list in it"),
        (GOOD + "server: {api_key_file: []}", "server.api_key_file: expected text of 1..4096 characters, or null, found a list"),
        (GOOD + "server: {api_key_file: ~no-such-user-here/a}", "server.api_key_file: Could not determine home directory."),
        (
            GOOD + "server: {unix_admin_uids: 0}",
            "server.unix_admin_uids: expected a list of at most 100 user ids, or null, found 0",
        ),
        (
            GOOD + "server: {unix_use_uids: [root]}",
            "server.unix_use_uids: expected a list of at most 100 user ids, found 'root' in it",
        ),
        (GOOD + "server: {unix_use_uids: [4294967295]}", "found 4294967295 in it"),
        (GOOD + "server: {insecure: yes please}", "server.insecure: expected true or false, found 'yes please'"),
        # limits
        (GOOD + "limits: 3", "models.yaml:2: limits: expected a mapping, found 3"),
        (GOOD + "limits: {max_queue: 3}", "limits.max_queue: unknown key; did you mean max_queued?"),
        (GOOD + "limits: {max_requests: -1}", "limits.max_requests: expected a whole number 0..65536, found -1"),
        (GOOD + "limits: {per_key: [a]}", "limits.per_key: expected a mapping of names of keys, found a list"),
        (GOOD + "limits: {per_key: {a: 1}}", "limits.per_key.a: expected a mapping, found 1"),
        (
            GOOD + "limits: {per_key: {a b: {}}}",
            "limits.per_key.a b: expected a name of 1..128 characters of A-Z a-z",
        ),
        (
            GOOD + "limits:\n  per_key:\n    a:\n      tokens_per_minute: many",
            "models.yaml:5: limits.per_key.a.tokens_per_minute: expected a whole number 0..1000000000, found 'many'",
        ),
        (GOOD + "limits: {per_key: {a: {per_key: {}}}}", "limits.per_key.a.per_key: unknown key"),
        # default_model
        (GOOD + "default_model: b", "models.yaml:2: default_model: expected the id of a model (a) or null, found 'b'"),
        (GOOD + "default_model: 1", "default_model: expected the id of a model (a) or null, found 1"),
        (GOOD + "default_model: [a]", "default_model: expected the id of a model (a) or null, found a list"),
        ("models: [{id: demo-calc, path: a}]\ndefault_model: demo_calc", "found 'demo_calc'; did you mean demo-calc?"),
        ("models: []\ndefault_model: b", "default_model: expected the id of a model (none is listed) or null, found 'b'"),
        # ids
        ("models: [{id: a b, path: a}]", "models[0].id: expected 1..128 characters of A-Z a-z 0-9 . _ : -, found 'a b'"),
        ("models: [{id: '', path: a}]", "models[0].id: expected 1..128 characters"),
        ("models: [{id: " + "a" * 129 + ", path: a}]", "models[0].id: expected 1..128 characters"),
        ('models: [{id: "a\\n", path: a}]', "models[0].id: expected 1..128 characters"),
        ("models: [{id: 7, path: a}]", "found 7: put it in quotes"),
        ("models: [{id: on, path: a}]", "found on: put it in quotes"),
        (
            "models:\n  - {id: a, path: a}\n  - {id: b, path: a}\n  - {id: a, path: b}",
            "models.yaml:4: models[2].id: 'a' is the id of the model on line 2 too",
        ),
        # paths
        ("models: [{id: a, path: ''}]", "models[0].path: expected text of 1..4096 characters, found ''"),
        ('models: [{id: a, path: "a\\0b"}]', "models[0].path: expected text of 1..4096 characters, found 'a\\x00b'"),
        ("models: [{id: a, path: ~no-such-user-here/a}]", "models[0].path: Could not determine home directory."),
        ("models: [{id: a, path: 1.5}]", "models[0].path: expected text, found 1.5: put it in quotes"),
        # what keys say together
        (
            "models:\n  - {id: a, path: a,\n     n_batch: 256,\n     n_ubatch: 512}",
            "models.yaml:4: models[0].n_ubatch: 512 is more than n_batch (256)",
        ),
        ("models: [{id: a, path: a, n_batch: 2}]", "models[0].n_batch: 2 is less than n_parallel (4): one token a slot"),
        ("models: [{id: a, path: a, n_ctx: 3}]", "models[0].n_ctx: 3 is less than n_parallel (4): one cell a slot"),
        (
            "models: [{id: a, path: a, cache_type_v: q8_0, flash_attn: off}]",
            "models[0].cache_type_v: q8_0 needs flash attention, and flash_attn is off",
        ),
        (
            "models: [{id: a, path: a, pooling: mean, embeddings: off}]",
            "models[0].pooling: mean says how embeddings are made, and embeddings is off",
        ),
    ],
)
def test_a_bad_file_is_told_file_line_key_and_what_was_expected(write: Write, text: str | bytes, finding: str) -> None:
    findings = refused(write(text))
    assert len(findings) == 1
    assert finding in findings[0]


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ('models: []\n"a\\nmodels.yaml:1: b": 1', "models.yaml:2: a\\nmodels.yaml:1: b: unknown key"),
        ('models: []\n"\\e[2J": 1', "models.yaml:2: \\x1b[2J: unknown key"),
        ('models: []\nserver: {"\\u202e": 1}', "models.yaml:2: server.\\u202e: unknown key"),
        ('"\\e\\r": *x', "models.yaml:1: \\x1b\\r: alias *x: aliases are not supported; write the value out"),
        ("models: !<tag:%1B> x", "models.yaml:1: models: tag tag:\\x1b: tags are not supported"),
    ],
)
def test_no_key_of_the_file_writes_lines_or_controls_into_its_findings(write: Write, text: str, finding: str) -> None:
    assert refused(write(text)) == [finding]


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("n_ctx", ["-1", "many", "1073741825", "4k", "4096.0", "[1]"]),
        ("n_parallel", ["0", "257", "'8'"]),
        ("n_batch", ["0", "65537"]),
        ("n_ubatch", ["0", "65537", "null"]),
        ("n_threads", ["-1", "1025", "auto"]),
        ("cpu_pinning", ["yes", "1", "null"]),
        ("n_gpu_layers", ["-2", "65537", "all"]),
        ("main_gpu", ["-1", "16"]),
        ("split_mode", ["rows", "null", "1"]),
        ("tensor_split", ["1", "[a]", "[-1]", "[.inf]", "[.nan]", "[0, 0]", "[true]", "[[1]]", str([1] * 17), "null"]),
        ("cache_type_k", ["q4_k", "F16", "16"]),
        ("cache_type_v", ["q6_k"]),
        ("flash_attn", ["yes", "true", "1"]),
        ("embeddings", ["yes", "true", "null"]),
        ("pooling", ["rank", "'null'", "1", "MEAN"]),
        ("load_mode", ["direct_io", "mmap+mlock"]),
        ("chat_template", ["''", "[]", "1"]),
        ("seed", ["-2", "4294967296", "1.0", "x", "true"]),
        ("sha256", ["abc", "g" * 64, "'" + "a" * 65 + "'", "[]"]),
        ("name", ["''", "1", "null"]),
        ("quant", ["''", "4", "[]"]),
        ("family", ["true"]),
    ],
)
def test_each_key_refuses_what_it_does_not_take(write: Write, key: str, values: list[str]) -> None:
    for value in values:
        (finding,) = refused(write(f"models:\n  - id: a\n    path: a\n    {key}: {value}\n"))
        assert finding.startswith(f"models.yaml:4: models[0].{key}: expected "), finding


def test_all_findings_are_told_at_once_in_the_order_of_their_lines(write: Write) -> None:
    text = "models:\n  - id: a\n    path: a\n    n_ctx: x\n  - path: b\nserver:\n  port: x\n"
    lines = [int(finding.split(":")[1]) for finding in refused(write(text))]
    assert lines == [4, 5, 7]


def test_the_number_of_findings_is_bounded(write: Write) -> None:
    findings = refused(write("models: []\n" + "".join(f"x{n}: 1\n" for n in range(200))))
    assert len(findings) == config.MAX_FINDINGS + 1
    assert findings[-1] == "models.yaml: and 150 more"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tmp: tmp / "missing.yaml", "missing.yaml: cannot be read: No such file or directory"),
        (lambda tmp: tmp, "cannot be read: Is a directory"),
        (lambda tmp: tmp / "a\0b", "cannot be read: embedded null byte"),
        (lambda tmp: tmp / ("x" * 300), "cannot be read: File name too long"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(make(tmp_path))


@given(st.text(max_size=200) | st.text("abid: -[]{}&*!#'\"\n\t,?|>%@`", max_size=60))
def test_any_text_is_a_configuration_or_a_configuration_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    told = ""
    try:
        load_config(path)
    except ConfigError as error:
        told = error.message
    assert not told or str(path) in told


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3)))
def test_values_are_what_safe_load_makes_of_them(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "value.yaml"
    path.write_text(yaml.safe_dump({"k": value}))
    node = yamltree.read(path)
    assert plain(node) == {"k": value}


def plain(node: yamltree.Node) -> object:
    if isinstance(node.value, tuple):
        return [plain(item) for item in node.value]
    if isinstance(node.value, bool | int | float | str) or node.value is None:
        return node.value
    return {name: plain(item) for name, item in node.value.items()}


# -- which source wins ------------------------------------------------------------------------------------------------


def test_flag_then_environment_then_file_then_default(write: Write) -> None:
    path = write(GOOD + "server: {port: 1, host: 127.0.0.2, log_level: error}")
    environ = {"MODELD_PORT": "2", "MODELD_HOST": "127.0.0.3, ::1", "MODELD_LOG_FORMAT": "json"}
    server = resolve(config=path, port=3, environ=environ).server
    assert server == ServerConfig(host=("127.0.0.3", "::1"), port=3, log_level="error", log_format="json")
    assert resolve(config=path, host="127.0.0.4", environ={}).server.host == ("127.0.0.4",)
    assert resolve(config=path, environ={"MODELD_LOG_LEVEL": "debug", "MODELD_PORT": ""}).server.log_level == "debug"


def test_the_file_is_the_flags_then_the_environments_then_the_one_here_then_the_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(None, {}) == Path("/etc/modeld/models.yaml")
    assert find_config(None, {"MODELD_CONFIG": ""}) == Path("/etc/modeld/models.yaml")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "models.yaml").write_text(GOOD)
    assert find_config(None, {}) == Path("configs/models.yaml")
    assert find_config(None, {"MODELD_CONFIG": "/x"}) == Path("/x")
    assert find_config(Path("/y"), {"MODELD_CONFIG": "/x"}) == Path("/y")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MODELD_PORT", "http", "MODELD_PORT: expected a whole number 0..65535, found 'http'"),
        ("MODELD_PORT", "-1", "MODELD_PORT: expected a whole number 0..65535, found '-1'"),
        ("MODELD_PORT", " 80", "MODELD_PORT: expected a whole number 0..65535, found ' 80'"),
        ("MODELD_PORT", "9" * 5000, "MODELD_PORT: expected a whole number 0..65535, found '9999"),
        ("MODELD_PORT", "\u0661", "MODELD_PORT: expected a whole number"),
        ("MODELD_HOST", "a b", "MODELD_HOST: expected an IPv4 or IPv6 address or localhost, found 'a b'"),
        ("MODELD_HOST", "\udcff", "MODELD_HOST: expected an IPv4 or IPv6 address or localhost, found '\\udcff'"),
        ("MODELD_LOG_LEVEL", "LOUD", "MODELD_LOG_LEVEL: expected one of debug, info, warning, error, found 'LOUD'"),
        ("MODELD_LOG_FORMAT", "xml", "MODELD_LOG_FORMAT: expected one of auto, text, json, journal, found 'xml'"),
        ("MODELD_CONFIG", "/no/such/file", "/no/such/file: cannot be read: No such file or directory"),
    ],
)
def test_a_hostile_environment_is_named(write: Write, variable: str, value: str, message: str) -> None:
    environ = {"MODELD_CONFIG": str(write(GOOD)), variable: value}
    with pytest.raises(ConfigError, match=re.escape(message)):
        resolve(environ=environ)


def test_flags_are_checked_too(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"--port: expected a whole number 0\.\.65535, found '70000'"):
        resolve(config=write(GOOD), port=70000, environ={})
    with pytest.raises(ConfigError, match="--host: expected an IPv4"):
        resolve(config=write(GOOD), host="", environ={})


# -- the tables and the documentation ---------------------------------------------------------------------------------


def row(key: Key) -> str:
    default = key.default if " " in key.default or key.default == "required" else f"`{key.default}`"
    return f"| `{key.name}` | {default} | {key.kind.expected} | {key.doc} |"


ALL_KEYS = {"server": SERVER_KEYS, "switching": SWITCHING_KEYS, "limits": LIMIT_KEYS, "models": MODEL_KEYS}


@pytest.mark.parametrize("keys", ALL_KEYS.values(), ids=ALL_KEYS)
def test_every_key_is_documented_as_the_code_has_it(keys: tuple[Key, ...]) -> None:
    document = (ROOT / "docs" / "configuration.md").read_text()
    missing = [row(key) for key in keys if row(key) not in document]
    assert not missing, "docs/configuration.md lacks these rows:\n" + "\n".join(missing)


def test_the_documentation_has_no_key_that_the_code_lacks() -> None:
    document = (ROOT / "docs" / "configuration.md").read_text()
    rows = re.findall(r"^\| `([a-z0-9_]+)` \|", document, re.MULTILINE)
    assert sorted(rows) == sorted(key.name for keys in ALL_KEYS.values() for key in keys)
    assert all(f"`{variable}`" in document for variable in [*config.ENVIRONMENT, "MODELD_CONFIG"])


def test_the_tables_have_every_field_and_its_default() -> None:
    assert [key.name for key in SERVER_KEYS] == [field.name for field in dataclasses.fields(ServerConfig)]
    assert [key.name for key in SWITCHING_KEYS] == [field.name for field in dataclasses.fields(SwitchPolicy)]
    assert [key.name for key in LIMIT_KEYS] == [field.name for field in dataclasses.fields(ClientLimits)]
    assert {key.name for key in MODEL_KEYS} == {field.name for field in dataclasses.fields(ModelSpec)}
    shown = {None: "null", (): "[]", ("127.0.0.1",): "127.0.0.1", True: "true", False: "false"}
    owners = (ServerConfig, SwitchPolicy, ClientLimits, ModelSpec)
    fields = {field.name: field for owner in owners for field in dataclasses.fields(owner)}
    for key in (key for keys in ALL_KEYS.values() for key in keys):
        default = fields[key.name].default
        if key.name == "name":
            assert key.default == "the id"
        elif default is dataclasses.MISSING:
            assert key.default == "required"
        else:
            assert key.default == (str(default) if type(default) is int else shown.get(default, str(default)))


@pytest.mark.parametrize(("document", "more"), [("configuration.md", ""), ("limits.md", GOOD)])
def test_the_yaml_examples_of_the_documentation_are_valid(write: Write, document: str, more: str) -> None:
    examples = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / document).read_text(), re.DOTALL)
    assert examples
    for example in examples:
        assert load_config(write(example + more)).models


def test_who_is_let_in_is_as_the_configuration_says(write: Write) -> None:
    environ = {"MODELD_API_KEYS": "ops admin 0123456789abcdef"}
    plain = rules_of(resolve(config=write(GOOD), environ=environ))
    assert plain.browser == BrowserRules()
    assert [key.name for key in plain.keys.keys] == ["ops"]
    assert plain.keys == KeyRules(plain.keys.keys, frozenset({0, os.geteuid()}))
    listed = write(GOOD + "server: {allowed_hosts: [a], cors_origins: ['http://b'], unix_admin_uids: [], unix_use_uids: [7]}")
    rules = rules_of(resolve(config=listed, environ={}))
    assert rules.browser == BrowserRules(("a",), ("http://b",))
    assert rules.keys == KeyRules((), frozenset(), frozenset({7}), uids_are_listed=True)
    nobody = rules_of(resolve(config=write(GOOD + "server: {unix_admin_uids: []}"), environ={}))
    assert nobody.keys.uids_are_listed


def test_every_limit_of_the_http_surface_is_a_key_with_the_same_default() -> None:
    assert limits_of(ServerConfig()) == Limits()
    other: dict[str, Any] = {key.name: 77 for key in SERVER_KEYS if key.kind.expected.startswith("a whole number")}
    changed = limits_of(ServerConfig(**other))
    assert {getattr(changed, item.name) for item in dataclasses.fields(Limits) if item.name != "refusals"} == {77}
