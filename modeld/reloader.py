"""What happens when the configuration is read again? Reloader: the file's new word for the manager, or why it is refused."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from modeld.config import Config
from modeld.errors import ConfigError, ConfigRefused
from modeld.manager.manager import Manager
from modeld.metrics import Counter
from modeld.reload import ConfigSource
from modeld.types import ReloadResult

log = logging.getLogger("modeld")


class Reloader:
    """Any thread; one at a time reads."""

    def __init__(self, source: ConfigSource, config: Config, manager: Manager, apply: Callable[[Config], None]) -> None:
        """`apply` gets each configuration that is taken over, for what is not the manager's."""
        self._source = source
        self._manager = manager
        self._apply = apply
        self._lock = threading.Lock()
        # Guards the configuration in force, from its reading to its end: two that read at once would undo each other.
        self._config = config
        self.results = Counter("modeld_config_reloads", "Times the configuration was read again.", ("result",))
        for result in ("changed", "unchanged", "refused"):
            self.results.add(0, result)

    def reload(self) -> ReloadResult:
        """Read the file and take over what it says. Raises ConfigRefused; then everything is as it was, and /status says why."""
        with self._lock:
            try:
                change = self._source.read(self._config)
            except ConfigError as error:
                self.results.add(1, "refused")
                self._manager.config_failed(error.message)
                raise ConfigRefused(error.message) from None
            config = self._config = change.config
            self._apply(config)
            result = self._manager.reconfigure(config.models, config.default_model, config.switching)
        if change.restart:
            log.warning("these keys hold from the next start on: %s", ", ".join(change.restart))
        self.results.add(1, "changed" if change.live else "unchanged")
        return replace(result, changed=bool(change.live), restart_needed=change.restart)

    def follow(self) -> None:
        """The file has changed, or somebody sent SIGHUP: as reload, with what is wrong in the log and in /status alone."""
        with contextlib.suppress(ConfigRefused):  # told by the manager
            self.reload()
