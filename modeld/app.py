"""How do the floors become one program? Command line, wiring, signals, order of shutdown, exit status."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from modeld import __version__, logs
from modeld.config import Config, resolve
from modeld.errors import ConfigError, LoadFailed, ModeldError
from modeld.llm.libllama import LLAMA_COMMIT
from modeld.types import ModelSpec, Step

log = logging.getLogger("modeld")

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_CONFIG = 78  # sysexits.h, EX_CONFIG

DRAIN_S = 5.0  # what responses have to get their last bytes out at the end

# The engine thread must win the interpreter lock back after each decode: with one busy Python thread beside it that takes
# 6 ms at the default interval of 5 ms, 0.5 ms at 0.2 ms (facts/llama.md, "Threads and the interpreter lock").
SWITCH_INTERVAL_S = 0.0005


def main(argv: list[str] | None = None) -> int:
    """The program. Exit status: 0 clean stop, 1 failure while running, 2 usage, 78 bad configuration."""
    args = _parser().parse_args(argv)
    if args.command == "check":
        from modeld.check import check

        return check(args.config, sys.stdout)
    try:
        config = resolve(config=args.config, host=args.host, port=args.port)
    except ConfigError as error:
        print(f"modeld: {error}", file=sys.stderr)
        return EXIT_CONFIG
    log_format = None if config.server.log_format == "auto" else config.server.log_format
    logs.configure(config.server.log_level, log_format)
    try:
        return serve(config)
    except ModeldError as error:
        log.error("%s", error)
        return EXIT_FAILED


def serve(config: Config) -> int:
    """Run the daemon until a signal ends it. Main thread: it owns the signals."""
    # Imported here, so that `--version` and usage errors answer at once.
    from modeld.engine.runner import EngineRunner
    from modeld.httpapi.limits import Limits
    from modeld.httpapi.server import HttpServer
    from modeld.llm.backend import backend
    from modeld.llm.digest import verify_sha256
    from modeld.llm.gguf import inspect
    from modeld.llm.memory import give_back_freed_memory
    from modeld.llm.runtime import LlamaRuntime
    from modeld.manager.manager import Manager
    from modeld.manager.runner import LoadProgress, OnDeath, Runner

    sys.setswitchinterval(SWITCH_INTERVAL_S)
    library = backend()  # a library that does not fit is a failure to start, not a daemon in state error
    log.info("library", extra={"path": library.path, "llama_commit": library.stamp.llama_commit})

    def open_runner(spec: ModelSpec, on_progress: LoadProgress, on_death: OnDeath) -> Runner:
        """On the switch thread. What the file's head already tells needs no load, and is said more clearly than by one."""
        try:
            problem = inspect(spec).problem
            if problem is not None:
                raise LoadFailed(f"cannot load {spec.path}: {problem}")
            if spec.sha256 is not None:
                verify_sha256(spec.path, spec.sha256, lambda _pct: on_progress(Step.MMAP, 0))
            return EngineRunner(spec, LlamaRuntime, on_progress, on_death, queue_size=config.server.queue_size)
        finally:
            on_progress(Step.MMAP, 0)  # a load that failed before it asked has not waited for the old model's memory yet
            give_back_freed_memory()

    stop = _StopSignals()
    manager = Manager(config.models, config.default_model, open_runner, inspect, version=__version__)
    limits = Limits(connections=config.server.max_connections)
    try:
        server = HttpServer(manager, config.server.host, config.server.port, limits)
    except OSError as error:
        log.error("cannot listen on %s port %d: %s", config.server.host, config.server.port, error.strerror or error)
        return EXIT_FAILED
    server.start()
    log.info("modeld %s listens on %s", __version__, server.url, extra={"url": server.url, "pid": os.getpid()})
    manager.start()  # after the server: /livez answers while the first model loads
    stop.wait()
    log.info("stopping", extra={"signal": stop.name})
    # Streams get their error frame from the manager; then the server lets the last bytes out.
    manager.close()
    server.close(DRAIN_S)
    log.info("stopped")
    return EXIT_OK


class _StopSignals:
    """SIGTERM and SIGINT: the first one asks for a clean stop, the second leaves at once. Main thread."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.name = ""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._event.is_set():
            os._exit(128 + number)  # no clean-up at all: somebody has waited long enough
        self.name = signal.Signals(number).name
        self._event.set()

    def wait(self) -> None:
        self._event.wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="modeld",
        description="Keeps one llama.cpp model loaded, switches it on request, and says at every moment which model answers.",
        epilog="Environment: MODELD_CONFIG, MODELD_HOST, MODELD_PORT, MODELD_LOG_LEVEL, MODELD_LOG_FORMAT. "
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
    serve.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on (default: 8080); 0 takes a free one")
    commands.add_parser("check", parents=[config], help="check configuration and model files; exit status 0 or 1")
    return parser
