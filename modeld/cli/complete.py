"""How does a text go on? `modeld complete`."""

from __future__ import annotations

import argparse
import sys
import time

from modeld import exits
from modeld.cli import failures, session
from modeld.cli.connection import Client
from modeld.cli.failures import Failure
from modeld.cli.generation import COMPLETIONS, generate, parameters, standard_input, tell_stats, typed, whole
from modeld.cli.terminal import Screen


class _NobodyReads(Exception):
    """What is made would go nowhere: the slot is free for others."""


def run_complete(args: argparse.Namespace) -> int:
    return session.run(_complete, args)


def _complete(args: argparse.Namespace, client: Client, screen: Screen) -> int:
    body = {**parameters(args), "prompt": given_text(args.prompt, "TEXT")}
    return answer_once(args, client, screen, COMPLETIONS, body)


def given_text(words: list[str], name: str) -> str:
    """Of the arguments, or of standard input. Raises Failure."""
    if words and words != ["-"]:
        return typed(" ".join(words), name)
    if not words and sys.stdin.isatty():
        raise failures.usage(f"{name} is missing: give it as an argument, or through a pipe")
    return standard_input()


def answer_once(args: argparse.Namespace, client: Client, screen: Screen, path: str, body: dict[str, object]) -> int:
    """One answer, shown as it comes. Raises Failure, after an end of line where some of it was shown."""
    if screen.as_json:
        screen.json(whole(client, path, body, args).raw)
        return exits.OK
    began = time.monotonic()
    last = ""

    def show(text: str) -> None:
        nonlocal last
        screen.generated(text)
        last = text or last
        if screen.lost:
            raise _NobodyReads

    try:
        answer = generate(client, path, body, show, args)
    except _NobodyReads:
        return exits.OK
    except (Failure, KeyboardInterrupt) as end:
        if last and not last.endswith("\n"):
            screen.generated("\n")
        if isinstance(end, Failure) and last:
            end.message = f"the answer above is cut: {end.message}"
        raise
    if not last.endswith("\n"):
        screen.generated("\n")
    if args.stats:
        tell_stats(screen, answer, began)
    return exits.OK
