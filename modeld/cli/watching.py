"""How does an op end? Reads /events until it has, and asks /ops/{op_id} for the truth wherever the events may have a gap.

The stream of events is open before the op is asked for, so that nothing can be missed between the two. A stream that breaks goes
on behind the last event that came; where the daemon no longer holds what was missed, the op's record says whether it has ended.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator

from modeld import exits
from modeld.cli import eventstream, failures
from modeld.cli.bar import Progress
from modeld.cli.connection import Client
from modeld.cli.eventstream import WAITED_OUT, Event, Patience, follow, shorter
from modeld.cli.failures import Failure
from modeld.cli.record import Record
from modeld.cli.status import op_words
from modeld.cli.terminal import Screen, seconds

GIVE_UP_S = 60.0
_ENDS = ("model_ready", "model_error", "model_unloaded")
_WHOLE = ("snapshot", "resync")


def wait_for(
    client: Client, screen: Screen, args: argparse.Namespace, target: str, ask: Callable[[], Record], *, cancels: bool = False
) -> int:
    """`ask` asks for an op, or about one, and returns its record; its end is waited for and told.

    `args`: wait_timeout (s or None). `cancels`: that it is cancelled is what is wanted. Raises Failure as `ask` does, for a wait
    that is over, and for a daemon that stays away.
    """
    progress = Progress(screen, target)
    patience = Patience(None if args.wait_timeout is None else time.monotonic() + args.wait_timeout, GIVE_UP_S)
    patience.on_lost = lambda reason, _delay_s: progress.note(f"{reason}; connecting again")
    op_id = ""
    try:
        with progress.shown(), contextlib.closing(follow(client, "", patience)) as events:
            first = next(events, None)  # the snapshot: from here on nothing is missed
            asked = ask()
            op_id = asked.exact("op_id")
            if asked.flag("joined"):
                progress.note(f"{op_id} was asked for before, by somebody else or by you; how it is done was said then")
            op = _ended(client, asked, events, first, progress, patience)
    except KeyboardInterrupt:
        screen.say(_runs_on(op_id, "interrupted"))
        raise
    if op is None:
        raise Failure(_runs_on(op_id, f"waited {args.wait_timeout:g} s"), code=failures.WAIT_OVER, status=exits.RUNS_ON)
    return _tell(client, screen, op, joined=asked.flag("joined"), cancels=cancels)


def _ended(
    client: Client, asked: Record, events: Iterator[Event], first: Event | None, progress: Progress, patience: Patience
) -> Record | None:
    """The op's record, once it has ended; None: the time is over."""
    op_id = asked.exact("op_id")
    if asked.number("ended_at") is not None:
        return asked
    running = first.record.record("op") if first is not None and first.name == "snapshot" else Record(None)
    if running and running.exact("op_id") == op_id:
        progress.at(running)
    elif running and first is not None:
        progress.waits(running, 1 + (first.record.integer("queued_ops") or 0))
    for event in events:
        data = event.record
        if event.name in _WHOLE:  # a gap: the daemon may have restarted, or forgotten what was missed
            op = _truth(client, op_id, patience)
            if op.number("ended_at") is not None:
                return op
        elif data.exact("op_id") == op_id:
            progress.take(event)
            if event.name in _ENDS:
                return _record_of(client, event)
    return None


def _truth(client: Client, op_id: str, patience: Patience) -> Record:
    """Its record; an empty one when the time is over. A daemon that has no room for the question now has for the next."""
    begin = time.monotonic()
    while not patience.over():
        try:
            return client.get(f"/ops/{op_id}").body
        except Failure as failure:
            if failure.code == "not_found":
                message = f"the daemon has restarted and knows nothing of {op_id}: it had not ended; see `modeld status`"
                raise Failure(message, code="not_found", status=exits.FAILED) from None
            if failure.status not in WAITED_OUT or time.monotonic() - begin > GIVE_UP_S:
                raise
        time.sleep(shorter(eventstream.FIRST_DELAY_S, patience.left()))
    return Record(None)


def _record_of(client: Client, event: Event) -> Record:
    """The op's whole record; what the event has of it where the daemon is gone by now, or has not written it yet."""
    data = event.record
    try:
        op = client.get(f"/ops/{data.exact('op_id')}").body
        if op.number("ended_at") is not None:
            return op
    except Failure:
        pass
    failed = event.name == "model_error"
    state = ("cancelled" if data.text("code") == "op_cancelled" else "failed") if failed else "succeeded"
    error = {"code": data.text("code"), "message": data.exact("message")} if failed else None
    known = {name: data.raw.get(name) for name in ("op_id", "target_model_id", "rolled_back_to")}
    return Record({**known, "kind": "unload" if event.name == "model_unloaded" else "switch", "state": state, "error": error})


def _tell(client: Client, screen: Screen, op: Record, *, joined: bool, cancels: bool) -> int:
    """What it came to, as words and exit status."""
    state, error = op.text("state"), op.record("error")
    if screen.as_json:
        screen.json({**op.raw, "joined": joined})
    started, ended = op.number("started_at"), op.number("ended_at")
    took = f" in {seconds(ended - started)}" if started is not None and ended is not None else ""
    target = op.text("target_model_id")
    if state == "succeeded":
        said = f"{target} answers" if target else "no model answers: it was unloaded"
        if cancels:
            screen.say(f"{op_words(op)} succeeded before it could be cancelled: {said}")
            return exits.FAILED
        if not screen.as_json:
            screen.line(f"{screen.style(said, 'good')}{took} ({op.text('op_id')})")
        return exits.OK
    if cancels and state == "cancelled":
        if not screen.as_json:
            screen.line(f"{op_words(op)} was cancelled{_answers_now(client, op)}")
        return exits.OK
    why = f"{error.text('code')}: {error.message()}" if error else "no reason was given"
    screen.say(f"{op_words(op)} {'was cancelled' if state == 'cancelled' else 'failed'}: {why}{_answers_now(client, op)}")
    return exits.CUT if state == "cancelled" else exits.FAILED


def _answers_now(client: Client, op: Record) -> str:
    if back := op.text("rolled_back_to"):
        return f"; {back} was brought back and answers"
    try:
        status = client.get("/status").body
    except Failure:
        return ""
    if model := status.text("current_model"):
        return f"; {model} answers"
    return "; no model answers now" if not status.record("op") else f"; {op_words(status.record('op'))} runs now"


def _runs_on(op_id: str, why: str) -> str:
    if not op_id:
        return f"{why}; whether the daemon has accepted it is not known: `modeld ops` tells"
    return f"{why}; {op_id} goes on. `modeld ops {op_id} --wait` watches it, `modeld ops {op_id} --cancel` ends it"
