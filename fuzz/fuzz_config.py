"""Does any text break the configuration loader? An input is the file: it gives a Config, or a ConfigError that can be printed.

A Config is written as YAML again, which must give the same Config. Comments such as #MODELD_PORT=1 are the environment, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from fuzz.target import HERE, Target, folder
from fuzz.typed import fault
from modeld.config import ENVIRONMENT, MAX_FINDINGS, Config, load_config, resolve
from modeld.errors import ConfigError
from modeld.settings import LIMIT_KEYS, MODEL_KEYS, SERVER_KEYS, SWITCHING_KEYS, Key

_VARIABLE = re.compile(rf"#({'|'.join(ENVIRONMENT)})=([^\0\n]*)")
MAX_FINDING_CHARS = 1000
MAX_PATH_CHARS = 4096  # of what may be written; relative paths become longer when they are read


def file() -> Path:
    return folder() / "models.yaml"


def check(data: bytes) -> str:
    file().write_bytes(data)
    try:
        config = load_config(file())
    except ConfigError as error:
        _check_message(error.message, data)
        return "ConfigError"
    _check_config(config)
    _check_environment(config, data)
    written = as_yaml(config)
    if all(len(str(spec.path)) <= MAX_PATH_CHARS for spec in config.models):
        file().write_text(written, encoding="utf-8")
        again = load_config(file())
        assert again == config, f"written and read again: {again}, was {config}; written was {written}"
    return "read"


def _check_environment(config: Config, data: bytes) -> None:
    environ = dict(_VARIABLE.findall(data.decode("utf-8", "surrogateescape")))
    try:
        over = resolve(environ={**environ, "MODELD_CONFIG": str(file())}).server
    except ConfigError as refused:
        _check_printable(refused.message.split("\n"))
        return
    given = {ENVIRONMENT[name] for name, text in environ.items() if text}
    for key in SERVER_KEYS:
        assert key.name in given or getattr(over, key.name) == getattr(config.server, key.name), key.name


def _check_message(message: str, data: bytes) -> None:
    """A line for each finding, none of which can be taken for two, each with a line of the file that exists."""
    findings = message.split("\n")
    assert 1 <= len(findings) <= MAX_FINDINGS + 1
    n_lines = sum(data.count(end) for end in (b"\n", b"\r", b"\xc2\x85", b"\xe2\x80\xa8", b"\xe2\x80\xa9")) + 1
    _check_printable(findings)
    for finding in findings:
        assert finding.startswith(f"{file()}:"), finding
        place = finding.removeprefix(f"{file()}:")
        if not place.startswith(" "):
            assert 1 <= int(place.partition(":")[0]) <= n_lines, f"there are {n_lines} lines: {finding}"


def _check_printable(findings: Iterable[str]) -> None:
    for finding in findings:
        assert finding.isprintable(), f"a finding with control characters: {finding!r}"
        assert len(finding) < MAX_FINDING_CHARS, f"a finding of {len(finding)} characters"


def _check_config(config: Config) -> None:
    wrong = fault(config, Config)
    assert wrong is None, wrong
    ids = [spec.id for spec in config.models]
    assert len(set(ids)) == len(ids)
    assert config.default_model is None or config.default_model in ids
    for spec in config.models:
        assert spec.name
        assert all(value.encode() for value in (spec.name, str(spec.path), spec.chat_template) if value is not None)
        assert spec.path.is_absolute()
        assert "\0" not in str(spec.path)
        assert spec.seed is None or 0 <= spec.seed < 1 << 32
        assert spec.n_parallel <= spec.n_batch >= spec.n_ubatch >= 1


def as_yaml(config: Config) -> str:
    """What is not the default."""
    parts = [f"default_model: {_scalar(config.default_model)}"]
    for name, section, keys in (("server", config.server, SERVER_KEYS), ("switching", config.switching, SWITCHING_KEYS)):
        parts.append(f"{name}: {_mapping(section, keys)}")
    limits = {key.name: getattr(config.limits.each, key.name) for key in LIMIT_KEYS}
    # All of it: what an entry leaves out is not the default, but as for everybody.
    per_key = {
        name: {key.name: getattr(of_key, key.name) for key in LIMIT_KEYS} for name, of_key in config.limits.per_key.items()
    }
    parts.append(f"limits: {_scalar({**limits, 'per_key': per_key})}")
    models = ", ".join(_mapping(spec, MODEL_KEYS) for spec in config.models)
    return "\n".join([*parts, f"models: [{models}]", ""])


def _mapping(values: Any, keys: Iterable[Key]) -> str:
    defaults = {field.name: field.default for field in fields(values) if field.default is not MISSING}
    given = {key.name: getattr(values, key.name) for key in keys}
    if "n_batch" in given:  # the default of n_ubatch depends on it
        defaults.pop("n_ubatch")
    return (
        "{"
        + ", ".join(f"{name}: {_scalar(value)}" for name, value in given.items() if value != defaults.get(name, MISSING))
        + "}"
    )


def _scalar(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return f"{value:.17e}"  # YAML 1.1 wants a point before the e and a sign behind it
    if isinstance(value, (str, Path)):
        return '"' + "".join(_character(char) for char in str(value)) + '"'
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_scalar, value)) + "]"
    assert isinstance(value, Mapping), f"{value!r}: write it here as YAML"
    return "{" + ", ".join(f"{_scalar(key)}: {_scalar(item)}" for key, item in value.items()) + "}"


def _character(char: str) -> str:
    return char if char.isascii() and char.isprintable() and char not in '"\\' else f"\\U{ord(char):08x}"


def seeds() -> Iterator[bytes]:
    yield (HERE.parent / "configs" / "models.yaml").read_bytes()
    for keys, begin in ((SERVER_KEYS, "models: []\nserver:\n"), (SWITCHING_KEYS, "models: []\nswitching:\n")):
        yield (begin + "".join(f"  {key.name}: {key.default}\n" for key in keys)).encode()
    limits = "".join(f"  {key.name}: {key.default}\n" for key in LIMIT_KEYS)
    yield f"models: []\nlimits:\n{limits}  per_key:\n    batch: {{max_requests: 4}}\n    uid:1000: {{}}\n".encode()
    yield b'models: []\nlimits: {per_key: {"\\u2028": {}, b: {per_key: {}}, c: 1}}\n'
    given = {"id": "a", "path": "~/a.gguf", "name": "A", "tensor_split": "[1, 0.5]", "seed": "-1", "sha256": "ab" * 32}
    yield ("models:\n  -" + "".join(f" {key.name}: {given.get(key.name, key.default)}\n   " for key in MODEL_KEYS)).encode()
    one = "models: [{id: a, path: a"
    for more in (
        "n_batch: 100", "n_ubatch: 4096", "n_ctx: 3", "cache_type_v: q8_0, flash_attn: off", "pooling: mean, embeddings: off",
        "chat_template: \"{{ x }}\\n\"", "seed: 4294967295", "n_parallel: 0x10", "n_ctx: 1_000", "tensor_split: [1.5e+3, .5]",
        "name: on", "n_paralel: 1", "path: b", "sha256: " + "A" * 64, "main_gpu: 8:30", "quant: ~",
        "n_batch: 2", "tensor_split: [0, 0]", "n_ctx: 0x_", 'name: "\\ud800"',
    ):  # fmt: skip
        yield f"{one}, {more}}}]\n".encode()
    yield f"{one}}}]\ndefault_model: b\n".encode()
    yield f"{one}}}]\n#MODELD_HOST=h\n#MODELD_PORT=1\n#MODELD_LOG_LEVEL=debug\n#MODELD_LOG_FORMAT=json\n".encode()
    yield b"models: []\n#MODELD_PORT=http\n"
    yield b"models:\n  - {id: a, path: a}\n  - {id: a, path: b}\n"
    hosts, others = b"[.Example.com, '*', h]", b"['https://H:443', 'http://[::1]:9']"
    yield b"models: []\nserver: {allowed_hosts: " + hosts + b", cors_origins: " + others + b", api_key_file: k}\n"
    yield b"models: []\nserver: {allowed_hosts: [h:1, 1], cors_origins: [a, 'http://h/'], unix_admin_uids: [-1], host: '::'}\n"
    yield "\ufeffmodels: []\nserver: {host: '::1', port: 0}\n# é\u2028\n".encode()
    yield b"models: &x []\n"
    yield b"models: *x\n"
    yield b"models: !!python/name:os.system \n"
    yield b"models: " + b"[" * 20
    yield b"? [a]\n: b\n"
    yield b"models: []\n---\nmodels: []\n"
    yield b"%YAML 1.1\n---\nmodels: |\n  a\n  b\n...\n"
    yield b"\xff"
    yield b""
    yield b"models: [1, 2.5, true, ~, '', \"\\u0041\"]\n"


WORDS = (
    *b"limits: |per_key: ".split(b"|"),
    *b"models: |server: |switching: |default_model: |- |? |: |\n  |---\n|...\n|null|~|true|on|0x1|1e+3|.inf|.nan|8:30".split(
        b"|"
    ),
    *b"2026-11-25 << = !!int &a *a [] {} > ' \" # %YAML \\e \\ud800 #MODELD_PORT= #MODELD_HOST=".split(),
    *"\u2028 \x85 \ufeff".encode().split(b" "),
    *(f"{key.name}: ".encode() for key in (*SERVER_KEYS, *SWITCHING_KEYS, *LIMIT_KEYS, *MODEL_KEYS)),
)

TARGET = Target(
    modules=("modeld.yamltree", "modeld.config", "modeld.settings"), check=check, seeds=seeds, words=WORDS, max_bytes=4096
)
