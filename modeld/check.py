"""Would the daemon start, and could it load what it lists? `modeld check`: one line for each finding."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

from modeld.config import resolve
from modeld.errors import ConfigError, LoadFailed
from modeld.llm.digest import verify_sha256
from modeld.llm.gguf import inspect
from modeld.types import FileFacts, ModelSpec


def check(config_path: Path | None, out: TextIO) -> int:
    """Look at the configuration (None: the one that serve would read) and its model files; 0 when all is well, else 1.

    Nothing is loaded: a file that passes has a sound head, all its bytes, and the digest that the configuration gives.
    """
    try:
        config = resolve(config=config_path)
    except ConfigError as error:
        print(error.message, file=out)
        return 1
    n_bad = 0
    for spec in config.models:
        facts = inspect(spec)
        problem = facts.problem or _digest_problem(spec)
        if problem is not None:
            n_bad += 1
            print(f"{config.path}: model {spec.id}: {spec.path}: {problem}", file=out)
        else:
            print(f"ok {spec.id}: {spec.path}: {_describe(spec, facts)}", file=out)
    if n_bad:
        return 1
    print(f"ok {config.path}: {len(config.models)} models, {config.default_model or 'none'} is loaded at start", file=out)
    return 0


def _digest_problem(spec: ModelSpec) -> str | None:
    if spec.sha256 is None:
        return None
    try:
        verify_sha256(spec.path, spec.sha256, lambda _pct: True)
    except LoadFailed as error:
        return error.message.removeprefix(f"{spec.path}: ")
    return None


def _describe(spec: ModelSpec, facts: FileFacts) -> str:
    assert facts.size_bytes is not None
    said = [spec.family or facts.family, spec.quant or facts.quant, f"{facts.size_bytes} bytes", f"{facts.n_tensors} tensors"]
    if facts.n_ctx_train is not None:
        said.append(f"trained on {facts.n_ctx_train} tokens")
    if spec.sha256 is not None:
        said.append("sha256 as configured")
    return ", ".join(part for part in said if part is not None)
