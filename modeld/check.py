"""Would the daemon start, and are the models what they should be? `modeld check`, `modeld verify`: a line for each finding."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from modeld import exits, outputs
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
    return check(args.config, sys.stdout, as_json=args.json)


def run_verify(args: argparse.Namespace) -> int:
    return verify(args.config, args.model_ids, sys.stdout, sys.stderr, as_json=args.json)


@dataclass(frozen=True, slots=True)
class Finding:
    """About one model, or (model_id None) about the configuration. `result`: ok, bad, insecure; of verify also new."""

    result: str
    path: str | None
    message: str
    model_id: str | None = None
    sha256: str | None = None  # verify: what the file has
    expected: str | None = None  # verify: what the configuration says


def check(config_path: Path | None, out: TextIO, *, as_json: bool = False) -> int:
    """Look at the configuration (None: the one that serve would read) and its model files; 0 when all is well, else 1.

    Nothing is loaded: a model that passes has all its bytes, a head with nothing in it that libllama would die of, and the
    digest that the configuration gives. A line for each finding, or all of them as one JSON object.
    """
    return _report(_checked(config_path), out, as_json=as_json)


def verify(config_path: Path | None, model_ids: Sequence[str], out: TextIO, err: TextIO, *, as_json: bool = False) -> int:
    """Compute the SHA-256 of registered models' files (no id: of all), and compare where the configuration gives one.

    A line for each: `ok`, `bad`, or `new` with a digest that can be pasted into the entry; or all of them as one JSON object.
    Progress goes to `err` where that is a terminal. 0 when none is bad, else 1.
    """
    return _report(_verified(config_path, model_ids, err), out, as_json=as_json)


def _report(findings: Iterator[tuple[str, Finding]], out: TextIO, *, as_json: bool) -> int:
    """Each finding comes with its line, which is shown as soon as it is known."""
    found, lost = [], exits.OK
    for line, finding in findings:
        found.append(finding)
        if not as_json:
            lost |= outputs.write(out, f"{line}\n") or exits.OK
    good = all(finding.result != "bad" for finding in found)
    if as_json:
        said = json.dumps({"ok": good, "findings": [asdict(finding) for finding in found]})
        lost = outputs.write(out, f"{said}\n") or exits.OK
    return lost if good else exits.FAILED


def _checked(config_path: Path | None) -> Iterator[tuple[str, Finding]]:
    try:
        config = resolve(config=config_path)
    except ConfigError as error:
        yield error.message, Finding("bad", None if config_path is None else str(config_path), error.message)
        return
    n_bad = 0
    for spec in config.models:
        facts = inspect(spec)
        problem = facts.problem or _digest_problem(spec)
        if problem is not None:
            n_bad += 1
            line = f"{config.path}: model {spec.id}: {spec.path}: {problem}"
            yield line, Finding("bad", str(spec.path), problem, spec.id)
        else:
            described = _describe(spec, facts)
            yield f"ok {spec.id}: {spec.path}: {described}", Finding("ok", str(spec.path), described, spec.id)
    if n_bad:
        return
    if (reachable := list(filter(exposed, config.server.host))) and not config.keys:
        said = f"whoever reaches {', '.join(reachable)} may use and switch models without a key"
        yield f"insecure {config.path}: {said}", Finding("insecure", str(config.path), said)
    said = f"{len(config.models)} models, {config.default_model or 'none'} is loaded at start"
    yield f"ok {config.path}: {said}", Finding("ok", str(config.path), said)


def _verified(config_path: Path | None, model_ids: Sequence[str], err: TextIO) -> Iterator[tuple[str, Finding]]:
    try:
        config = load_config(find_config(config_path, os.environ))  # nothing but models counts here: no keys, no variables
    except ConfigError as error:
        yield error.message, Finding("bad", None if config_path is None else str(config_path), error.message)
        return
    specs = {spec.id: spec for spec in config.models}
    for model_id in model_ids:
        if model_id not in specs:
            said = f"no model of this id is registered in {config.path}"
            yield f"bad {model_id}: {said}", Finding("bad", None, said, model_id)
    for model_id in dict.fromkeys(model_ids or specs):
        if model_id in specs:
            yield _digest(specs[model_id], err)


def _digest(spec: ModelSpec, err: TextIO) -> tuple[str, Finding]:
    progress = _progress(spec.id, err)
    path, expected = str(spec.path), None if spec.sha256 is None else spec.sha256.lower()
    try:
        digest = sha256_of(spec.path, progress)
    except LoadFailed as error:
        return f"bad {spec.id}: {error.message}", Finding("bad", path, error.message, spec.id, expected=expected)
    finally:
        progress(WIPE_PCT)
    if expected is None:
        return f"new {spec.id}: sha256: {digest}", Finding("new", path, "the configuration gives none", spec.id, digest)
    if expected == digest:
        return f"ok {spec.id}: sha256 {digest}", Finding("ok", path, "as configured", spec.id, digest, expected)
    said = f"its SHA-256 is {digest}, the configuration says {expected}"
    return f"bad {spec.id}: {spec.path}: {said}", Finding("bad", path, said, spec.id, digest, expected)


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
