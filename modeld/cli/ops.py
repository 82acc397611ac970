"""What became of switches and unloads? `modeld ops`."""

from __future__ import annotations

import argparse
import time

from modeld import exits
from modeld.cli import failures, session
from modeld.cli.connection import Client
from modeld.cli.record import Record
from modeld.cli.status import ended_words, op_words, progress_words
from modeld.cli.terminal import Screen, seconds
from modeld.cli.watching import wait_for

STEPS = ("check", "probe", "prefetch", "divert", "drain", "unload", "mmap", "warmup", "rollback")  # phases, too; as they come


def run_ops(args: argparse.Namespace) -> int:
    return session.run(_ops, args)


def _ops(args: argparse.Namespace, client: Client, screen: Screen) -> int:
    waits = args.wait or args.wait_timeout is not None
    if args.op_id is None:
        if args.cancel or waits:
            raise failures.usage(f"--{'cancel' if args.cancel else 'wait'} needs the ID of an op; `modeld ops` lists them")
        return _list(args, client, screen)
    path = f"/ops/{args.op_id}"
    if waits:
        target = client.get(path).body.text("target_model_id", "unload")
        return wait_for(
            client,
            screen,
            args,
            target,
            lambda: _cancelled(client, path) if args.cancel else client.get(path).body,
            cancels=args.cancel,
        )
    op = _cancelled(client, path) if args.cancel else client.get(path).body
    if screen.as_json:
        screen.json(op.raw)
        return exits.OK
    if args.cancel:
        will = "is cancelled" if op.number("ended_at") is not None else "will end as soon as the library lets it"
        screen.line(f"{op.text('op_id')} {will}")
        return exits.OK
    for line in op_lines(op, time.time()):
        screen.line(line)
    return exits.OK


def _cancelled(client: Client, path: str) -> Record:
    return client.ask("DELETE", path, scope="admin").body


def _list(args: argparse.Namespace, client: Client, screen: Screen) -> int:
    answer = client.get(f"/ops?limit={args.limit}").body
    if screen.as_json:
        screen.json(answer.raw)
        return exits.OK
    ops = answer.records("ops")
    if not ops:
        screen.line("no op so far")
        return exits.OK
    now = time.time()
    rows = [("ID", "KIND", "TARGET", "STATE", "TOOK", "AGE", "WHY")]
    for op in ops:
        started, ended, queued = op.number("started_at"), op.number("ended_at"), op.number("queued_at")
        state = op.text("state", "?")
        if state == "running":
            state = progress_words(op)
        error = op.record("error")
        why = error.text("code") if error else op.text("reason")
        if back := op.text("rolled_back_to"):
            why += f", back to {back}"
        took = seconds((now if ended is None else ended) - started) if started is not None else ""
        age = seconds(now - queued) if queued is not None and now >= queued else "?"
        rows.append((op.text("op_id", "?"), op.text("kind", "?"), op.text("target_model_id", "-"), state, took, age, why))
    screen.table(rows)
    return exits.OK


def op_lines(op: Record, now: float) -> list[str]:
    lines = [op_words(op), f"  state    {ended_words(op, now)}"]
    for label, name in (("queued", "queued_at"), ("started", "started_at"), ("ended", "ended_at")):
        if (when := op.number(name)) is not None:
            lines.append(f"  {label.ljust(8)} {_clock(when)}")
    if strategy := op.text("strategy"):
        lines.append(f"  strategy {strategy}")
    took = op.record("steps_ms")
    steps = [f"{step} {seconds((took.number(step) or 0) / 1000)}" for step in STEPS if took.number(step) is not None]
    if steps:
        lines.append(f"  steps    {', '.join(steps)}")
    if error := op.record("error"):
        lines.append(f"  error    {error.text('code')}: {error.text('message')}")
    return lines


def _clock(when: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
    except (OverflowError, ValueError, OSError):
        return "?"
