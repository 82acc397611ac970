"""What can be known to fail before anything is unloaded? Preflight: the checks of a switch while the old model answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from modeld.errors import InsufficientMemory, LoadFailed, ModeldError, ModelQuarantined, OpCancelled
from modeld.manager.cooldown import Cooldowns
from modeld.manager.runner import Host
from modeld.manager.statefile import StateFile
from modeld.policy import Strategy, SwitchOptions, SwitchPolicy
from modeld.types import FileFacts, ModelSpec, Phase, SwitchOp

log = logging.getLogger("modeld.switch")


class PhaseNews(NamedTuple):
    """How far a phase has come: percents, and bytes done and in all (0 and 0: it has none)."""

    phase: Phase
    pct: int
    done: int = 0
    total: int = 0


Report = Callable[[PhaseNews | None], bool]
"""Takes news, or None: it goes on, and there is nothing to tell. False: end as soon as you can."""


class Preflight:
    """`run` on a thread that the switch thread watches; the questions from any thread."""

    def __init__(self, host: Host, memory: StateFile, cooldowns: Cooldowns) -> None:
        self._host = host
        self._memory = memory
        self._cooldowns = cooldowns

    # -- any thread

    def refusal(self, spec: ModelSpec, facts: FileFacts) -> ModeldError | None:
        """Why the model is not to be tried now, whatever else is true of it."""
        if (quarantine := self._memory.quarantine_of(spec.id, facts.identity)) is not None:
            return ModelQuarantined(
                f"{spec.id!r} ended the process {quarantine.crashes} times in a row while it was loaded; "
                f"DELETE /quarantine/{spec.id} lifts that, force tries once more"
            )
        return self._cooldowns.refusal(spec, facts.identity, time.monotonic())

    def strategy(self, spec: ModelSpec, leaving: ModelSpec | None, options: SwitchOptions, policy: SwitchPolicy) -> Strategy:
        """Which way it goes, as far as memory decides that. Raises InsufficientMemory."""
        wanted = Strategy.REPLACE if leaving is None else options.strategy
        if not policy.check_memory or options.force:
            return Strategy.REPLACE if wanted is Strategy.AUTO else wanted
        if wanted is not Strategy.REPLACE:
            too_little = self._host.fits(spec, None)
            if too_little is None:
                return Strategy.OVERLAP
            if wanted is Strategy.OVERLAP:
                raise InsufficientMemory(too_little)
        if (too_little := self._host.fits(spec, leaving)) is not None:
            raise InsufficientMemory(too_little)
        return Strategy.REPLACE

    # -- a thread that is watched

    def run(
        self,
        op: SwitchOp,
        spec: ModelSpec,
        facts: FileFacts,
        policy: SwitchPolicy,
        report: Report,
        ending: Callable[[], OpCancelled | None],
    ) -> bool:
        """All that takes time; whether the file was tried, and is sound. Raises LoadFailed and its kin, OpCancelled as soon
        as `ending` says so."""
        tried = False
        try:
            self._verify(spec, facts, report)
            if policy.probe and self._is_unknown(op, spec, facts):
                self._probe(spec, report)
                tried = True
            if policy.prefetch and spec.load_mode != "none":
                self._read_ahead(spec, facts, report)
        except LoadFailed as error:
            raise ending() or error from error
        if (why := ending()) is not None:
            raise why
        return tried

    def _verify(self, spec: ModelSpec, facts: FileFacts, report: Report) -> None:
        last = -1
        size = facts.size_bytes or 0

        def on_percent(pct: int) -> bool:
            nonlocal last
            if pct == 100 and last < 0:
                return True  # a digest that is remembered says 100 alone: that is no phase
            news = PhaseNews(Phase.CHECK, pct, size * pct // 100, size) if pct > last else None
            last = max(pct, last)
            return report(news)

        self._host.verify(spec, on_percent)

    def _is_unknown(self, op: SwitchOp, spec: ModelSpec, facts: FileFacts) -> bool:
        """Whether nobody vouched for the file, and it can be tried."""
        if spec.sha256 is not None or self._host.probe is None or self._memory.is_vouched(str(spec.path), facts.identity):
            return False
        if (too_little := self._host.fits(spec, None)) is not None:
            fields = {"op_id": op.op_id, "model_id": spec.id}
            log.warning("the file was not tried in a process of its own first: %s", too_little, extra=fields)
            return False
        return True

    def _probe(self, spec: ModelSpec, report: Report) -> None:
        assert self._host.probe is not None
        report(PhaseNews(Phase.PROBE, 0))
        self._host.probe(spec, lambda: report(None))
        report(PhaseNews(Phase.PROBE, 100))

    def _read_ahead(self, spec: ModelSpec, facts: FileFacts, report: Report) -> None:
        last = -1

        def on_progress(done: int, total: int) -> bool:
            nonlocal last
            pct = min(done * 100 // total, 99) if total else 0
            news = PhaseNews(Phase.PREFETCH, pct, done, total) if pct > last else None
            last = pct
            return report(news)

        self._host.read_ahead(spec, on_progress)
        if last >= 0:
            size = facts.size_bytes or 0
            report(PhaseNews(Phase.PREFETCH, 100, size, size))
