"""What happens in the daemon right now? `modeld events`."""

from __future__ import annotations

import argparse
import time

from modeld import exits
from modeld.cli import session
from modeld.cli.connection import Client
from modeld.cli.eventstream import Event, Patience, follow
from modeld.cli.record import Record
from modeld.cli.status import op_words, progress_words
from modeld.cli.terminal import Screen, seconds


def run_events(args: argparse.Namespace) -> int:
    return session.run(_events, args)


def _events(args: argparse.Namespace, client: Client, screen: Screen) -> int:
    patience = Patience(on_lost=lambda reason, delay_s: screen.say(f"{reason}; connecting again in {delay_s:.0f} s"))
    for event in follow(client, args.last_event_id, patience):
        data = event.record
        if screen.as_json:
            screen.json({"id": event.id, "event": event.name, "data": data.raw})
        else:
            screen.line(f"{time.strftime('%H:%M:%S')}  {event_words(event)}")
        if screen.lost:
            return exits.OK
        if args.until_ready and (event.name == "model_ready" or (event.name == "snapshot" and _answers(data))):
            return exits.OK
    return exits.OK


def _answers(status: Record) -> bool:
    return status.text("state") == "ready" and bool(status.text("current_model"))


def event_words(event: Event) -> str:
    """One line; what a client does not know it shows by name."""
    data = event.record
    name = data.text  # shorter below
    match event.name:
        case "snapshot":
            op = data.record("op")
            runs = f"; {op_words(op)}: {progress_words(op)}" if op else ""
            said = f"{name('state', '?')}, {name('current_model', 'no model')} answers, {_generation(data)}{runs}"
        case "model_switch_started":
            said = f"{name('op_id')} to {name('target_model_id', 'no model')}"
        case "model_loading_progress" | "model_switch_phase":
            pct = data.integer("pct")
            said = f"{name('target_model_id', name('op_id'))} {name('step') or name('phase')}{'' if pct is None else f' {pct} %'}"
            if (n_running := data.integer("n_running")) is not None:
                said += f", {n_running} still running"
            if to := name("to"):
                said += f" to {to}"
        case "model_ready":
            took = "" if (ms := data.number("ms")) is None else f" after {seconds(ms / 1000)}"
            said = f"{name('current_model_id')} answers{took}, {_generation(data)}"
        case "model_error":
            back = f"; {name('rolled_back_to')} answers again" if name("rolled_back_to") else ""
            said = f"{name('op_id')} to {name('target_model_id', 'no model')}: {name('code')}: {name('message')}{back}"
        case "model_unloaded":
            said = name("model_id", "there was none")
        case "config_reloaded":
            changes = [f"{what} {', '.join(data.texts(what))}" for what in ("added", "removed", "altered") if data.texts(what)]
            said = f"{data.integer('models') or 0} models{'; ' if changes else ''}{'; '.join(changes)}"
        case "shutdown":
            said = f"{name('reason')}; running requests have {seconds(data.number('deadline_s'))}"
        case _:
            said = name("message") or name("reason")
    return f"{Record({'name': event.name}).text('name')}  {said}".rstrip()


def _generation(data: Record) -> str:
    return f"generation {data.integer('generation') or 0}"
