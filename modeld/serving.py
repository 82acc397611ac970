"""`modeld serve`: what is settled before any thread begins, and what the process ends with. daemon.py does the rest."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from modeld import activation, exits, keys, logs
from modeld.errors import ConfigError, ModeldError
from modeld.llm.memory import settle_allocator
from modeld.reload import ConfigSource
from modeld.signals import Signals

log = logging.getLogger("modeld")


def run(args: argparse.Namespace) -> int:
    """Exit status: 0 clean stop, 1 failure while running, 78 bad configuration."""
    host = ",".join(args.host) if args.host else None
    try:
        handed = activation.take(os.environ)
        hosts = [each.host for each in handed if each.host is not None] if handed else None
        source = ConfigSource(config=args.config, host=host, port=args.port, handed_hosts=hosts)
        os.environ.pop(keys.VARIABLE, None)  # processes that try a model file inherit the environment
        config = source.load()
    except ConfigError as error:
        print(f"modeld: {error}", file=sys.stderr)
        return exits.CONFIG
    # Before any thread begins, the log's included: each has the signal mask of the one that starts it, and would have an arena.
    settle_allocator()
    signals = Signals()
    writer = logs.configure(config.server.log_level, config.server.log_format, logs.standard_error())
    try:
        from modeld import daemon  # here, so that a bad configuration is told at once

        return exits.OK if daemon.serve(source, config, signals, writer, handed) else exits.FAILED
    except ModeldError as error:
        log.error("%s", error)
        return exits.FAILED
    finally:
        writer.close()
