"""When does the configuration change under a running daemon, and what of that takes effect? ConfigSource and ConfigWatch."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from modeld.clientlimits import ClientLimits
from modeld.config import Config, ServerConfig, find_config, resolve
from modeld.errors import ConfigError
from modeld.heartbeat import Pulse
from modeld.keys import check_exposure
from modeld.policy import SwitchPolicy
from modeld.threads import start_thread

log = logging.getLogger("modeld")

INTERVAL_S = 2.0  # between two looks: inotify sees nothing on network file systems and little through bind mounts
CLOSE_S = 10.0  # for a reading that runs at the end; one from a disk that has gone is left behind
SETTLE_S = 0.25  # a file that has changed is looked at again so much later: its editor may still be writing

# The other keys are built into what a start makes: sockets, limits, engines.
LIVE_SERVER_KEYS = frozenset(
    {"log_level", "allowed_hosts", "cors_origins", "api_key_file", "unix_admin_uids", "unix_use_uids", "insecure"}
)

_Section = ServerConfig | SwitchPolicy | ClientLimits

Stamp = tuple[int, int, int, int]
"""Of a file: (device, inode, size, mtime_ns)."""


@dataclass(frozen=True, slots=True)
class Change:
    """What reading the file again came to. Names are paths ("server.port"); all models are "models", all API keys "keys"."""

    config: Config  # in force from now on: what is live as the file has it, the rest as it was
    live: tuple[str, ...]  # keys that take effect now; empty: nothing does
    restart: tuple[str, ...]  # keys that differ from what is in force, and will until the next start
    added: tuple[str, ...]  # ids of models, in the file's order
    removed: tuple[str, ...]
    changed: tuple[str, ...]  # the same id, another entry


class ConfigSource:
    """The file that the daemon was started with, and the flags and variables that go before it. One thread at a time."""

    def __init__(
        self,
        *,
        config: Path | None = None,
        host: str | None = None,
        port: int | None = None,
        environ: Mapping[str, str] = os.environ,
        handed_hosts: Sequence[str] | None = None,
    ) -> None:
        """As modeld.config.resolve takes them. Which file it is, is settled here: a reload never reads another one."""
        self.path = find_config(config, environ)
        self.stamp: Stamp | None = None  # of the file before it was read last; None: it was not there, or never read
        self._host = host
        self._port = port
        self._handed_hosts = handed_hosts
        self._environ = dict(environ)

    def load(self) -> Config:
        """The configuration as the file is now. Raises ConfigError."""
        self.stamp = stamp_of(self.path)
        return resolve(config=self.path, host=self._host, port=self._port, environ=self._environ, handed_hosts=self._handed_hosts)

    def read(self, current: Config) -> Change:
        """The file and the keys again, as a whole: with an error in them nothing of it counts. Raises ConfigError."""
        # A pipe's other end may let us wait for ever, and a stop with us.
        if self.path.exists() and not self.path.is_file():
            raise ConfigError(f"{self.path}: it is no regular file; at a start it need not be one, to be read again it has to")
        change = compare(current, self.load())
        # Of the addresses that are listened to, which may be others than those that the file has by now.
        server = change.config.server
        check_exposure(server.host, change.config.keys, insecure=server.insecure, handed_hosts=self._handed_hosts)
        return change


def compare(current: Config, new: Config) -> Change:
    """What `new` changes. Pure."""
    server = _differing(current.server, new.server)
    restart = [key for key in server if key not in LIVE_SERVER_KEYS]
    live = [f"server.{key}" for key in server if key in LIVE_SERVER_KEYS]
    live += [f"switching.{key}" for key in _differing(current.switching, new.switching)]
    live += [f"limits.{key}" for key in _differing(current.limits.each, new.limits.each)]
    if current.limits.per_key != new.limits.per_key:
        live.append("limits.per_key")
    live += [key for key in ("default_model", "models", "keys") if getattr(current, key) != getattr(new, key)]
    before = {spec.id: spec for spec in current.models}
    after = {spec.id: spec for spec in new.models}
    return Change(
        config=replace(new, server=replace(new.server, **{key: getattr(current.server, key) for key in restart})),
        live=tuple(live),
        restart=tuple(f"server.{key}" for key in restart),
        added=tuple(model_id for model_id in after if model_id not in before),
        removed=tuple(model_id for model_id in before if model_id not in after),
        changed=tuple(model_id for model_id, spec in after.items() if model_id in before and before[model_id] != spec),
    )


def _differing(one: _Section, other: _Section) -> list[str]:
    """Names of the fields in which they differ, in their order."""
    return [item.name for item in fields(one) if getattr(one, item.name) != getattr(other, item.name)]


def stamp_of(path: Path) -> Stamp | None:
    """None where the file cannot be looked at. Follows links: whoever swaps a link (Kubernetes does) changes the file."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


class ConfigWatch:
    """The thread `modeld-config`, which looks at the file and calls `on_change` when it has changed and settled.

    Main thread: start, close. `on_change` runs on the thread; what it raises is logged, and the watch goes on.
    """

    def __init__(self, path: Path, on_change: Callable[[], None], interval_s: float = INTERVAL_S, *, since: Stamp | None) -> None:
        """`since`: the stamp of what was read last (ConfigSource.stamp), so that no change before the start is missed."""
        self._path = path
        self._on_change = on_change
        self._interval_s = interval_s
        self._told = since
        self._seen = since
        self.pulse = Pulse("modeld-config")
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Once."""
        self._thread = start_thread(self.pulse.thread, self._run, pulse=self.pulse)

    def close(self) -> None:
        """Ends the thread at once, but waits for an `on_change` that runs, CLOSE_S at most. Idempotent."""
        self._closed.set()
        if self._thread is None:
            return
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            log.error("reading the configuration does not end; its thread is left behind", extra={"path": str(self._path)})

    def look(self) -> bool:
        """One look: whether the file is another than the one that was told last, and the same as at the last look.

        A file that is missing is no change: an editor that replaces it, or a mount that comes back, will show.
        """
        stamp = stamp_of(self._path)
        if stamp is None:
            return False
        settled = stamp == self._seen
        self._seen = stamp
        if stamp == self._told or not settled:
            return False
        self._told = stamp
        return True

    def _run(self) -> None:
        while not self._closed.wait(self._interval_s if self._seen == self._told else min(SETTLE_S, self._interval_s)):
            self.pulse.call("reading the configuration")  # as long as the disk takes: who is served needs none of it
            try:
                if self.look():
                    self._on_change()
            except Exception:
                log.exception("reading the configuration again failed", extra={"path": str(self._path)})
            self.pulse.rest()
