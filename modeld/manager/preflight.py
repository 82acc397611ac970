"""What can be known to fail before anything is unloaded? Preflight: the checks of a switch while the old model answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from modeld.errors import InsufficientMemory, LoadFailed, ModeldError, ModelQuarantined, OpCancelled
from modeld.manager.cooldown import Cooldowns
from modeld.manager.runner import Host
from modeld.manager.statefile import StateFile
from modeld.policy import Strategy, SwitchOptions, SwitchPolicy
from modeld.types import FileFacts, ModelSpec, Phase, SwitchOp

log = logging.getLogger("modeld.switch")

OnPhase = Callable[[Phase, int, int, int], None]
"""Told the phase, its percents, and bytes done and in all (0 and 0: it has none)."""


class Preflight:
    """`run` on the switch thread; the questions from any thread."""

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

    # -- the switch thread

    def run(
        self,
        op: SwitchOp,
        spec: ModelSpec,
        facts: FileFacts,
        policy: SwitchPolicy,
        on_phase: OnPhase,
        ending: Callable[[], OpCancelled | None],
    ) -> None:
        """All that takes time. Raises LoadFailed and its kin, and OpCancelled as soon as `ending` says so."""

        def unless_ending(error: ModeldError) -> ModeldError:
            return ending() or error

        self._verify(spec, facts, on_phase, ending, unless_ending)
        if policy.probe:
            self._probe(op, spec, facts, on_phase, ending)
        if policy.prefetch and spec.load_mode != "none":
            self._read_ahead(spec, facts, on_phase, ending, unless_ending)

    def _verify(
        self,
        spec: ModelSpec,
        facts: FileFacts,
        on_phase: OnPhase,
        ending: Callable[[], OpCancelled | None],
        unless_ending: Callable[[ModeldError], ModeldError],
    ) -> None:
        began = False
        size = facts.size_bytes or 0

        def on_percent(pct: int) -> bool:
            nonlocal began
            if pct < 100 or began:  # a digest that is remembered says 100 alone: that is no phase
                began = True
                on_phase(Phase.CHECK, pct, size * pct // 100, size)
            return ending() is None

        try:
            self._host.verify(spec, on_percent)
        except LoadFailed as error:
            raise unless_ending(error) from error

    def _probe(
        self, op: SwitchOp, spec: ModelSpec, facts: FileFacts, on_phase: OnPhase, ending: Callable[[], OpCancelled | None]
    ) -> None:
        if spec.sha256 is not None or self._host.probe is None or self._memory.is_vouched(str(spec.path), facts.identity):
            return
        fields = {"op_id": op.op_id, "model_id": spec.id}
        if (too_little := self._host.fits(spec, None)) is not None:
            log.warning("the file was not tried in a process of its own first: %s", too_little, extra=fields)
            return
        on_phase(Phase.PROBE, 0, 0, 0)
        self._host.probe(spec, lambda: ending() is None)
        on_phase(Phase.PROBE, 100, 0, 0)
        self._memory.vouch(str(spec.path), facts.identity)

    def _read_ahead(
        self,
        spec: ModelSpec,
        facts: FileFacts,
        on_phase: OnPhase,
        ending: Callable[[], OpCancelled | None],
        unless_ending: Callable[[ModeldError], ModeldError],
    ) -> None:
        last = -1

        def on_progress(done: int, total: int) -> bool:
            nonlocal last
            pct = min(done * 100 // total, 99) if total else 0
            if pct > last:
                last = pct
                on_phase(Phase.PREFETCH, pct, done, total)
            return ending() is None

        try:
            self._host.read_ahead(spec, on_progress)
        except LoadFailed as error:
            raise unless_ending(error) from error
        if (why := ending()) is not None:
            raise why
        if last >= 0:
            size = facts.size_bytes or 0
            on_phase(Phase.PREFETCH, 100, size, size)
