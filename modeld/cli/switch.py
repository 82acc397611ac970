"""Which model shall answer? `modeld switch`, `modeld unload`, `modeld reload`."""

from __future__ import annotations

import argparse
import difflib

from modeld import exits
from modeld.cli import session
from modeld.cli.connection import Client
from modeld.cli.failures import Failure
from modeld.cli.record import Record, shown
from modeld.cli.terminal import Screen
from modeld.cli.watching import wait_for

OPTIONS = {
    "on_inflight": "on_inflight",
    "drain_timeout": "drain_timeout_s",
    "ready_delay": "ready_delay_s",
    "on_busy": "on_busy",
    "on_failure": "on_failure",
    "strategy": "strategy",
}


def run_switch(args: argparse.Namespace) -> int:
    return session.run(_switch, args)


def run_unload(args: argparse.Namespace) -> int:
    return session.run(_unload, args)


def run_reload(args: argparse.Namespace) -> int:
    return session.run(_reload, args)


def _switch(args: argparse.Namespace, client: Client, screen: Screen) -> int:
    body = {"model_id": args.model_id, **_options(args)}
    if args.force:
        body["force"] = True
    try:
        if args.dry_run:
            return _tell_plan(_post(client, args, "/switch", {**body, "dry_run": True}), screen)
        return _ask(args, client, screen, "/switch", body, shown(args.model_id))
    except Failure as failure:
        if failure.code == "model_not_found" and (hint := _nearest(client, args.model_id)):
            raise Failure(f"{failure.message}{hint}", code=failure.code, status=failure.status, param=failure.param) from None
        raise


def _unload(args: argparse.Namespace, client: Client, screen: Screen) -> int:
    return _ask(args, client, screen, "/unload", _options(args), "unload")


def _ask(args: argparse.Namespace, client: Client, screen: Screen, path: str, body: dict[str, object], target: str) -> int:
    if args.wait or args.wait_timeout is not None:
        return wait_for(client, screen, args, target, lambda: _post(client, args, path, body))
    op = _post(client, args, path, body)
    if screen.as_json:
        screen.json(op.raw)
        return exits.OK
    op_id, joined = op.text("op_id", "?"), " (asked for before: it is the same op)" if op.flag("joined") else ""
    screen.line(f"{op_id} {op.text('state', '?')}{joined}; `modeld ops {op_id} --wait` watches it")
    return exits.OK


def _post(client: Client, args: argparse.Namespace, path: str, body: dict[str, object]) -> Record:
    fields = {} if args.if_generation is None else {"If-Match": f'"{args.if_generation}"'}
    return client.ask("POST", path, body, fields, scope="admin").body


def _options(args: argparse.Namespace) -> dict[str, object]:
    """What was said; what was not is the daemon's default."""
    return {member: value for flag, member in OPTIONS.items() if (value := getattr(args, flag, None)) is not None}


def _tell_plan(plan: Record, screen: Screen) -> int:
    good = plan.flag("ok")
    if screen.as_json:
        screen.json(plan.raw)
    elif good and plan.text("action") == "keep":
        screen.line(f"{plan.text('target_model_id')} answers already; nothing would be done")
    elif good:
        leaves = f", {plan.text('leaves')} would leave" if plan.text("leaves") else ""
        screen.line(f"{plan.text('target_model_id')} would be loaded ({plan.text('strategy', '?')}){leaves}")
    if not good:
        error = plan.record("error")
        screen.say(f"the switch would fail: {error.text('code')}: {error.message()}")
    return exits.OK if good else exits.FAILED


def _nearest(client: Client, model_id: str) -> str:
    """The daemon's message lists the ids; which of them was meant?"""
    try:
        ids = [model.text("id") for model in client.get("/models").body.records("models")]
    except Failure:
        return ""
    near = difflib.get_close_matches(model_id, ids, n=1, cutoff=0.5)
    return f". Did you mean {near[0]}?" if near else ""


def _reload(_args: argparse.Namespace, client: Client, screen: Screen) -> int:
    result = client.ask("POST", "/reload", {}, scope="admin").body
    if screen.as_json:
        screen.json(result.raw)
        return exits.OK
    screen.line(f"{'taken over' if result.flag('changed') else 'nothing has changed'}: {result.integer('models') or 0} models")
    for name in ("added", "removed", "altered"):
        if ids := result.texts(name):
            screen.line(f"  {name}: {', '.join(ids)}")
    if needed := result.texts("restart_needed"):
        screen.line(f"  at the next start only: {', '.join(needed)}")
    return exits.OK
