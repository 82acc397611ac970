"""How do the floors become one daemon? Wiring, order of start and of stop."""

from __future__ import annotations

import faulthandler
import logging
import math
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from modeld import __version__, keys, logs
from modeld.activation import Handed
from modeld.config import Config, ServerConfig
from modeld.descriptors import connections_that_fit
from modeld.hosting import ModelHost
from modeld.httpapi import description, frontpage
from modeld.httpapi.auth import Gate, Rules
from modeld.httpapi.browser import BrowserRules
from modeld.httpapi.caller import KeyRules
from modeld.httpapi.limits import Limits
from modeld.httpapi.listeners import ListenError
from modeld.httpapi.quotas import Quotas
from modeld.httpapi.server import HttpServer
from modeld.httpapi.unixsocket import UnixSocket, hidden_uids
from modeld.llm import variants
from modeld.llm.backend import Backend, open_backend
from modeld.logwriter import LogWriter
from modeld.manager.journal import Journal
from modeld.manager.manager import CLOSE_TIMEOUT_S, Manager
from modeld.manager.statefile import StateFile, state_folder
from modeld.metrics import Family, Registry, by_label, counter
from modeld.notify import Notifier
from modeld.process import ProcessFigures
from modeld.reload import ConfigSource, ConfigWatch
from modeld.reloader import Reloader
from modeld.signals import Signals
from modeld.types import ApiKey
from modeld.watchdog import Watchdog

log = logging.getLogger("modeld")

# The engine thread must win the interpreter lock back after each decode: with one busy Python thread beside it that takes
# 6 ms at the default interval of 5 ms, 0.5 ms at 0.2 ms (facts/llama.md, "Threads and the interpreter lock").
SWITCH_INTERVAL_S = 0.0005

_LAST_WORDS_S = 0.5  # from the accepting of a connection to the admission of its request: milliseconds, more under load
_SPARE_S = 10.0  # for threads that are joined, and connections that have to be cut


def serve(source: ConfigSource, config: Config, signals: Signals, writer: LogWriter, handed: Sequence[Handed] = ()) -> bool:
    """Run the daemon until a signal ends it; False: it cannot listen. Main thread: it owns the signals. Raises ModeldError."""
    faulthandler.enable()  # the service manager's watchdog sends SIGABRT: its log then has where each thread stood
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    memory = StateFile(state_folder(config.path, os.environ))
    # Before it listens: a library that does not fit is a failure to start, not a daemon in state error. Where another daemon has
    # the folder, what it says of that one's library stays: a start by mistake must not call it ended.
    library = open_backend(variants.choose(memory.folder))
    log.info("library", extra=_library_facts(library))

    models = ModelHost(queue_size=config.server.queue_size, kv_keep_bytes=config.switching.kv_keep_bytes)
    manager = Manager(
        config.models,
        config.default_model,
        models.open,
        models.host(),
        version=__version__,
        policy=config.switching,
        memory=memory,
        journal=Journal(memory.folder),
        max_event_clients=config.server.max_event_clients,
        stuck_after_s=config.server.stuck_after_s,
    )

    gate = Gate()

    def let_in(config: Config) -> None:
        gate.rules = rules_of(config)
        if config.keys:
            log.info("keys", extra={"names": ", ".join(key.name for key in config.keys)})
        if hidden := hidden_uids((*(config.server.unix_admin_uids or ()), *config.server.unix_use_uids)):
            log.warning(
                "server.unix_admin_uids and server.unix_use_uids: nobody is known as %s here (PrivateUsers= of the unit; "
                "deploy/systemd/unix-socket.conf)",
                ", ".join(map(str, hidden)),
            )
        if nobody := sorted(name for name in config.limits.per_key if not _is_caller(name, config.keys)):
            # No error: keys come and go in a file of their own.
            log.warning("limits.per_key has names that no caller has: %s", ", ".join(nobody))

    quotas = Quotas(config.limits)

    def apply(config: Config) -> None:
        logs.set_level(config.server.log_level)
        let_in(config)
        models.keep(config.switching.kv_keep_bytes)
        quotas.set_policy(config.limits)

    let_in(config)
    reloader = Reloader(source, config, manager, apply)
    manager.reload = reloader.reload
    registry = Registry()
    registry.collect(lambda: (_build_info(library), reloader.results.read()))
    registry.collect(lambda: (counter("modeld_log_lines_dropped", "Log lines that could not be written.", writer.n_dropped),))
    registry.collect(ProcessFigures())
    watch = ConfigWatch(source.path, reloader.follow, since=source.stamp)
    notifier = Notifier(os.environ)
    look_every_s = (notifier.watchdog_s or 2 * config.server.stuck_after_s) / 2
    watchdog = Watchdog(manager.heartbeats, notifier.alive, look_every_s)

    def follow() -> None:
        notifier.reloading()
        reloader.follow()
        notifier.ready()

    try:
        limits = limits_of(config.server)
        limits = replace(limits, connections=connections_that_fit(limits.connections, limits.refusals))
        unix_socket = unix_socket_of(config.server)
        server = HttpServer(
            manager,
            config.server.host,
            config.server.port,
            limits,
            unix_socket,
            handed=[each.socket for each in handed],
            gate=gate,
            quotas=quotas,
            registry=registry,
        )
    except ListenError as error:
        log.error("%s", error.strerror)
        memory.close()
        notifier.close()
        library.chosen.ended()
        return False
    hosts = [each.host for each in handed if each.host is not None] if handed else config.server.host
    if handed:
        log.info(
            "the service manager hands over what to listen on; server.host, server.port and server.unix_socket do not count",
            extra={"sockets": len(handed), "names": ", ".join(each.name for each in handed if each.name)},
        )
    if (reachable := list(filter(keys.exposed, hosts))) and not config.keys:
        where = ", ".join(reachable)
        log.warning("insecure: whoever reaches %s may use and switch models; no keys are configured", where)
    try:
        manager.other_pulses = lambda: (*server.pulses(), watch.pulse)
        manager.on_status = notifier.status
        server.start()
        for url in server.urls:
            _log_url(url)
        notifier.ready()
        # Now (12 ms), and not when somebody asks: an upgrade may have put another version's file into our place by then.
        frontpage.files()
        description.encoded(__version__)
        manager.start()  # after the server: /livez answers while the first model loads
        if config.switching.watch_config:
            watch.start()
        watchdog.start()
        reason = signals.wait(follow)
        notifier.stopping(stop_takes_s(config.server), 2 * look_every_s)
        stop(manager, server, reason, delay_s=config.server.stop_delay_s, timeout_s=config.server.stop_timeout_s)
    finally:
        watch.close()
        # What still runs gets its error frame from the manager; then the server lets the last bytes out: a client that reads
        # has the time that every write has.
        manager.close()
        server.close(config.server.send_timeout_s + config.server.linger_s)
        watchdog.close()
        notifier.close()
        library.chosen.ended()
    log.info("stopped")
    return True


def _is_caller(name: str, keys: Sequence[ApiKey]) -> bool:
    """Whether callers may have that name (Caller.name)."""
    return name == "anonymous" or name.startswith("uid:") or name in {key.name for key in keys}


def stop(manager: Manager, server: HttpServer, reason: str, *, delay_s: float, timeout_s: float) -> None:
    """After `delay_s` let nothing new in, and wait for what runs.

    The listener stays open meanwhile: whoever shares out requests sees /readyz at 503 and sends them elsewhere. Connections to
    sockets that were handed over wait for the next start from then on, and those that are in already have a moment to ask.
    """
    log.info("stopping", extra={"signal": reason, "n_open": manager.n_open()})
    server.begin_stop()
    manager.announce_stop(reason, delay_s + timeout_s)
    time.sleep(delay_s)
    if server.hold():
        log.info("leaves new connections to the next start")
        time.sleep(_LAST_WORDS_S)
    manager.begin_stop()
    if not manager.drain(timeout_s):
        log.warning("%d requests did not end within %g s (server.stop_timeout_s) and are cut", manager.n_open(), timeout_s)


def stop_takes_s(server: ServerConfig) -> float:
    """The most that a stop takes from the signal to the end of the process, with some to spare."""
    closing_s = CLOSE_TIMEOUT_S + server.send_timeout_s + server.linger_s
    return server.stop_delay_s + server.stop_timeout_s + closing_s + _SPARE_S


def unix_socket_of(server: ServerConfig) -> UnixSocket | None:
    if server.unix_socket is None:
        return None
    return UnixSocket(server.unix_socket, int(server.unix_socket_mode, 8), server.unix_socket_owner)


def _library_facts(library: Backend) -> dict[str, object]:
    """For the log: which one, why, and what became of better ones."""
    chosen = library.chosen
    facts: dict[str, object] = {"path": library.path, "llama_commit": library.stamp.llama_commit, "variant": chosen.variant}
    if chosen.how is not variants.How.ONLY:
        facts |= {"chosen": str(chosen.how), "choice_ms": round(chosen.seconds * 1000)}
    if chosen.passed_over:
        facts["passed_over"] = "; ".join(map(str, chosen.passed_over))
    return facts


def _build_info(library: Backend) -> Family:
    labels = {
        "version": __version__,
        "llama_commit": library.stamp.llama_commit,
        "cpu_variant": library.variant,
        "python": platform.python_version(),
    }
    return by_label("gauge", "modeld_build_info", "What this is, as labels.", tuple(labels), {tuple(labels.values()): 1})


def limits_of(server: ServerConfig) -> Limits:
    return Limits(
        connections=server.max_connections,
        connections_per_address=server.max_connections_per_address,
        head_bytes=server.max_head_bytes,
        head_fields=server.max_head_fields,
        head_line_bytes=server.max_head_line_bytes,
        body_bytes=server.max_body_bytes,
        drain_bytes=server.max_drain_bytes,
        head_s=server.head_timeout_s,
        body_s=server.body_timeout_s,
        idle_s=server.idle_timeout_s,
        send_s=server.send_timeout_s,
        linger_s=server.linger_s,
        unacknowledged_s=server.unacknowledged_timeout_s,
        heartbeat_s=server.heartbeat_s,
        generation_s=server.generation_timeout_s or math.inf,
    )


def rules_of(config: Config) -> Rules:
    """Whom and what the HTTP surface lets in."""
    server = config.server
    admins = (0, os.geteuid()) if server.unix_admin_uids is None else server.unix_admin_uids
    return Rules(
        BrowserRules(server.allowed_hosts, server.cors_origins),
        KeyRules(
            config.keys,
            frozenset(admins),
            frozenset(server.unix_use_uids),
            uids_are_listed=server.unix_admin_uids is not None or bool(server.unix_use_uids),
        ),
    )


def _log_url(url: str) -> None:
    """Whatever the level: with `--port 0` nobody knows the port otherwise."""
    extra = {"url": url, "pid": os.getpid()}
    log.handle(
        log.makeRecord(log.name, logging.INFO, __file__, 0, f"modeld {__version__} listens on {url}", (), None, extra=extra)
    )
