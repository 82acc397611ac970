"""Would the daemon start, and are the models what they should be? `modeld check`, `modeld verify`: a line for each finding."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from modeld.config import find_config, load_config, resolve
from modeld.errors import ConfigError, LoadFailed
from modeld.keys import exposed
from modeld.llm.digest import sha256_of, verify_sha256
from modeld.llm.footprint import estimate
from modeld.llm.gguf import inspect
from modeld.types import FileFacts, ModelSpec

MIB = 1 << 20
WIPE_PCT = 100


def run_check(args: argparse.Namespace) -> int:
    return check(args.config, sys.stdout)


def run_verify(args: argparse.Namespace) -> int:
    return verify(args.config, args.model_ids, sys.stdout, sys.stderr)


def check(config_path: Path | None, out: TextIO) -> int:
    """Look at the configuration (None: the one that serve would read) and its model files; 0 when all is well, else 1.

    Nothing is loaded: a model that passes has all its bytes, a head with nothing in it that libllama would die of, and the
    digest that the configuration gives.
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
    if (reachable := list(filter(exposed, config.server.host))) and not config.keys:
        print(f"insecure {config.path}: whoever reaches {', '.join(reachable)} may use and switch models without a key", file=out)
    print(f"ok {config.path}: {len(config.models)} models, {config.default_model or 'none'} is loaded at start", file=out)
    return 0


def verify(config_path: Path | None, model_ids: Sequence[str], out: TextIO, err: TextIO) -> int:
    """Compute the SHA-256 of registered models' files (no id: of all), and compare where the configuration gives one.

    A line for each: `ok`, `bad`, or `new` with a digest that can be pasted into the entry. Progress goes to `err` where that
    is a terminal. 0 when none is bad, else 1.
    """
    try:
        config = load_config(find_config(config_path, os.environ))  # nothing but models counts here: no keys, no variables
    except ConfigError as error:
        print(error.message, file=out)
        return 1
    specs = {spec.id: spec for spec in config.models}
    unknown = [model_id for model_id in model_ids if model_id not in specs]
    for model_id in unknown:
        print(f"bad {model_id}: no model of this id is registered in {config.path}", file=out)
    n_bad = len(unknown)
    for model_id in dict.fromkeys(model_ids or specs):
        if model_id in specs:
            n_bad += not _verified(specs[model_id], out, err)
    return 1 if n_bad else 0


def _verified(spec: ModelSpec, out: TextIO, err: TextIO) -> bool:
    progress = _progress(spec.id, err)
    try:
        digest = sha256_of(spec.path, progress)
    except LoadFailed as error:
        print(f"bad {spec.id}: {error.message}", file=out, flush=True)
        return False
    finally:
        progress(WIPE_PCT)
    if spec.sha256 is None:
        print(f"new {spec.id}: sha256: {digest}", file=out, flush=True)
    elif spec.sha256.lower() == digest:
        print(f"ok {spec.id}: sha256 {digest}", file=out, flush=True)
    else:
        said = spec.sha256.lower()
        print(f"bad {spec.id}: {spec.path}: its SHA-256 is {digest}, the configuration says {said}", file=out, flush=True)
        return False
    return True


def _progress(model_id: str, err: TextIO) -> Callable[[int], bool]:
    """Writes percents over each other on a terminal, and wipes them out when there are no more to come."""
    on_terminal = err.isatty()

    def report(pct: int) -> bool:
        if on_terminal:
            text = f"\r{model_id}: {pct} %" if pct < WIPE_PCT else f"\r{' ' * (len(model_id) + 6)}\r"
            print(text, end="", file=err, flush=True)
        return True

    return report


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
    footprint = estimate(spec)
    if footprint is not None:
        said.append(f"about {-(-footprint.total // MIB)} MiB when loaded")
    if spec.sha256 is not None:
        said.append("sha256 as configured")
    return ", ".join(part for part in said if part is not None)
