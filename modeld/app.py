"""What was asked for on the command line, and what does the process end with? Arguments, exit status; daemon.py serves."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from modeld import __version__, keys, logs
from modeld.addresses import parse_host
from modeld.errors import ConfigError, ModeldError
from modeld.llm.libllama import LLAMA_COMMIT
from modeld.llm.memory import settle_allocator
from modeld.reload import ConfigSource
from modeld.signals import Signals

log = logging.getLogger("modeld")

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_CONFIG = 78  # sysexits.h, EX_CONFIG
EXIT_INTERRUPTED = 130  # as the shell says it of SIGINT


def main(argv: list[str] | None = None) -> int:
    """The program. Exit status: 0 clean stop, 1 failure while running, 2 usage, 78 bad configuration."""
    args = _parser().parse_args(argv)
    if args.command == "check":
        from modeld.check import check

        return check(args.config, sys.stdout)
    if args.command == "verify":
        from modeld.check import verify

        try:
            return verify(args.config, args.model_ids, sys.stdout, sys.stderr)
        except KeyboardInterrupt:  # it may take minutes
            return EXIT_INTERRUPTED
    host = ",".join(args.host) if args.host else None
    source = ConfigSource(config=args.config, host=host, port=args.port)
    os.environ.pop(keys.VARIABLE, None)  # processes that try a model file inherit the environment
    try:
        config = source.load()
    except ConfigError as error:
        print(f"modeld: {error}", file=sys.stderr)
        return EXIT_CONFIG
    # Before any thread begins, the log's included: each has the signal mask of the one that starts it, and would have an arena.
    settle_allocator()
    signals = Signals()
    writer = logs.configure(config.server.log_level, config.server.log_format, logs.standard_error())
    try:
        from modeld import daemon  # here, so that `--version` and usage errors answer at once

        return EXIT_OK if daemon.serve(source, config, signals, writer) else EXIT_FAILED
    except ModeldError as error:
        log.error("%s", error)
        return EXIT_FAILED
    finally:
        writer.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="modeld",
        description="Keeps one llama.cpp model loaded, switches it on request, and says at every moment which model answers.",
        epilog="Environment: MODELD_CONFIG, MODELD_HOST, MODELD_PORT, MODELD_LOG_LEVEL, MODELD_LOG_FORMAT, MODELD_API_KEYS. "
        "Order: flag, environment, file, default. Exit status: 0 clean stop, 1 failure, 2 usage, 78 bad configuration.",
    )
    parser.add_argument("--version", action="version", version=f"modeld {__version__} (llama.cpp {LLAMA_COMMIT})")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    config = argparse.ArgumentParser(add_help=False)
    config.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the registry (default: configs/models.yaml here, else /etc/modeld/models.yaml)",
    )
    serve = commands.add_parser("serve", parents=[config], help="run the daemon in the foreground")
    serve.add_argument(
        "--host",
        type=_hosts,
        action="append",
        metavar="ADDRESS",
        help="an address to listen on (default: 127.0.0.1); several: with commas, or this flag again",
    )
    serve.add_argument("--port", type=_port, help="port to listen on (default: 8080); 0 takes a free one")
    commands.add_parser("check", parents=[config], help="check configuration and model files; exit status 0 or 1")
    verify = commands.add_parser(
        "verify", parents=[config], help="compute the models' SHA-256 and compare it with the configuration; exit status 0 or 1"
    )
    verify.add_argument("model_ids", nargs="*", metavar="MODEL_ID", help="the models to look at (default: all)")
    return parser


def _hosts(text: str) -> str:
    try:
        return ",".join(parse_host(part.strip()) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{port} is not a port; 0..65535 are")
    return port
