"""What is around each client command? Its server, its screen, and the way in which whatever goes wrong is told."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

from modeld import exits
from modeld.cli.connection import Client
from modeld.cli.failures import Failure
from modeld.cli.target import find_target
from modeld.cli.terminal import Screen, screen_of
from modeld.errors import ConfigError

DEFAULT_TIMEOUT_S = 10.0

Work = Callable[[argparse.Namespace, Client, Screen], int]


def run(work: Work, args: argparse.Namespace) -> int:
    """The exit status of `work`, or that of what it failed with, told on standard error.

    With --json, standard output gets the error, too, so that it always holds JSON. A reader that closes the pipe has had
    enough: that is no failure, and makes none good.
    """
    screen = screen_of(os.environ, as_json=args.json, quiet=getattr(args, "quiet", False))
    try:
        target = find_target(args.server, args.key_file, os.environ)
        status = work(args, Client(target, DEFAULT_TIMEOUT_S if args.timeout is None else args.timeout), screen)
    except ConfigError as error:
        status = _tell(screen, Failure(error.message, code=error.code, status=exits.CONFIG))
    except Failure as failure:
        status = _tell(screen, failure)
    return status or screen.lost_status


def _tell(screen: Screen, failure: Failure) -> int:
    if screen.as_json:
        screen.json(failure.body())
    screen.say(failure.message)
    return failure.status
