"""Which model answers, and which are there? `modeld status`, `modeld models`."""

from __future__ import annotations

import argparse
import time

from modeld import exits
from modeld.cli import session
from modeld.cli.connection import Client
from modeld.cli.record import Record
from modeld.cli.terminal import Screen, count_of, seconds, size_of

_READY, _NOT_READY = 200, 503


def run_status(args: argparse.Namespace) -> int:
    return session.run(_status, args)


def run_models(args: argparse.Namespace) -> int:
    return session.run(_models, args)


def _status(args: argparse.Namespace, client: Client, screen: Screen) -> int:
    status = client.get("/status").body
    if screen.as_json:
        screen.json(status.raw)
    else:
        for line in status_lines(status, str(client.target), screen, time.time()):
            screen.line(line)
    if args.check:
        ready = client.ask("GET", "/readyz", good=(_READY, _NOT_READY)).status == _READY
        return exits.OK if ready else exits.NOT_NOW
    return exits.OK


def status_lines(status: Record, server: str, screen: Screen, now: float) -> list[str]:
    """`now`: seconds since the epoch, to tell how long ago the last op ended."""
    model, state = status.text("current_model"), status.text("state", "unknown")
    head = screen.style(f"{model} answers", "good") if model else screen.style("no model answers", "bad")
    facts = [("state", state + (", stopping" if status.flag("stopping") else ""))]
    if op := status.record("op"):
        facts.append(("runs", f"{op_words(op)}: {progress_words(op)}"))
    if queued := status.integer("queued_ops"):
        facts.append(("queued", f"{queued} more {'op' if queued == 1 else 'ops'}"))
    if last := status.record("last_op"):
        facts.append(("last", f"{op_words(last)} {ended_words(last, now)}"))
    slots = status.record("slots")
    busy, total, queue = (part or 0 for part in (slots.integer("busy"), slots.integer("total"), status.integer("queue")))
    waiting = status.integer("waiting") or 0
    held = f", {waiting} for a switch" if waiting else ""
    facts.append(("load", f"{busy} of {total} slots busy, {queue} requests wait{held}"))
    facts.append(("generation", str(status.integer("generation") or 0)))
    if retiring := status.text("retiring_model"):
        facts.append(("retiring", f"{retiring}, whose last requests end"))
    if error := status.record("error"):
        facts.append(("error", f"{error.text('code')}: {error.text('message')}"))
    if status.flag("auto_switch"):
        facts.append(("switching", "automatic: a request that names another model brings it"))
    if status.flag("config_stale"):
        facts.append(("stale", "the entry of the running model was changed or removed; the next switch to it loads the new one"))
    if config_error := status.text("config_error"):
        facts.append(("config", f"has errors, the old one goes on: {config_error}"))
    if quarantined := status.texts("quarantined"):
        facts.append(("quarantined", ", ".join(quarantined)))
    facts.append(("server", f"{server}, modeld {status.text('version', '?')}, up {seconds(status.number('uptime_s'))}"))
    width = max(len(name) for name, _ in facts)
    return [head, *(f"  {screen.style(name.ljust(width), 'faint')}  {value}" for name, value in facts)]


def _models(_args: argparse.Namespace, client: Client, screen: Screen) -> int:
    answer = client.get("/models").body
    if screen.as_json:
        screen.json(answer.raw)
        return exits.OK
    models = answer.records("models")
    if not models:
        screen.line("no model is registered")
        return exits.OK
    rows = [("ID", "STATE", "FAMILY", "QUANT", "SIZE", "PARAMS", "CONTEXT", "SLOTS", "NAME")]
    for model in models:
        name = model.text("name")
        rows.append(
            (
                model.text("id", "?"),
                model.text("state", "?"),
                model.text("family", "?"),
                model.text("quant", "?"),
                size_of(model.number("size_bytes")),
                count_of(model.number("n_params")),
                _whole(model.integer("n_ctx")),
                _whole(model.integer("n_parallel")),
                "" if name == model.text("id") else name,
            )
        )
    screen.table(rows)
    return exits.OK


# -- ops in words, for other commands, too


def op_words(op: Record) -> str:
    """`op-12 switch to demo-calc`."""
    target = op.text("target_model_id")
    reason = op.text("reason")
    why = f" ({reason})" if reason not in ("", "request") else ""
    return f"{op.text('op_id', '?')} {op.text('kind', 'switch')}{f' to {target}' if target else ''}{why}"


def progress_words(op: Record) -> str:
    """What an op does that has not ended."""
    if op.flag("cancelling"):
        return "is being cancelled"
    step = op.text("phase") or op.text("step")
    pct = op.integer("pct")
    if not step:
        return op.text("state", "?")
    return step if pct is None else f"{step} {pct} %"


def ended_words(op: Record, now: float) -> str:
    """How an op ended, and when; what it does where it has not."""
    ended = op.number("ended_at")
    if ended is None:
        return progress_words(op)
    state = op.text("state", "?")
    error = op.record("error")
    why = f" ({error.text('code')})" if error and state == "failed" else ""
    back = f", back to {op.text('rolled_back_to')}" if op.text("rolled_back_to") else ""
    started = op.number("started_at")
    took = f" after {seconds(ended - started)}" if started is not None and ended >= started else ""
    ago = f", {seconds(now - ended)} ago" if now >= ended else ""
    return f"{state}{why}{back}{took}{ago}"


def _whole(value: int | None) -> str:
    return "?" if value is None else str(value)
