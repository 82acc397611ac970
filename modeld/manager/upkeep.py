"""What does the daemon want by itself while nobody asks? Upkeep: unload what is idle, follow the requests that wait."""

from __future__ import annotations

import math
import time
from dataclasses import replace

from modeld.manager.state import Lifecycle
from modeld.policy import OnInflight, SwitchOptions, SwitchPolicy


class Upkeep:
    """The switch thread's alone, between two ops."""

    def __init__(self, life: Lifecycle) -> None:
        self._life = life

    def act(self, policy: SwitchPolicy) -> None:
        """Queue the op that is due, if one is."""
        if self._life.stopping:
            return
        self._unload_idle(policy)
        self._follow_demand(policy)

    def act_at(self, policy: SwitchPolicy) -> float:
        """When there is something to do though nothing happens, on the monotonic clock."""
        if self._life.stopping:
            return math.inf
        return min(self._idle_at(policy), self._demand_at(policy))

    def _unload_idle(self, policy: SwitchPolicy) -> None:
        tenant = self._life.tenant()
        used_at = tenant.used_at if tenant is not None else 0.0  # before the look at what it does
        if tenant is not None and self._idle_at(policy) <= time.monotonic():
            self._life.accept_idle(tenant, used_at, _own_options(policy))

    def _follow_demand(self, policy: SwitchPolicy) -> None:
        if self._demand_at(policy) <= time.monotonic():
            self._life.accept_demanded(_own_options(policy))

    def _idle_at(self, policy: SwitchPolicy) -> float:
        """When the model is to be unloaded because nobody uses it; infinity while somebody does, or none is to be."""
        tenant = self._life.tenant()
        if not policy.idle_unload_s or tenant is None or tenant.runner is None:
            return math.inf
        if self._life.n_entering(tenant) or tenant.runner.load().n_open:
            return math.inf
        return tenant.used_at + policy.idle_unload_s

    def _demand_at(self, policy: SwitchPolicy) -> float:
        """When to switch to what the longest waiting request wants: once its model's predecessor has stayed for long enough, or
        has nothing to do."""
        if not policy.auto_switch or self._life.demanded() is None:
            return math.inf
        tenant = self._life.tenant()
        if tenant is None or tenant.runner is None:
            return 0.0
        if not self._life.n_entering(tenant) and not tenant.runner.load().n_open:
            return 0.0
        return tenant.since + policy.auto_switch_min_stay_s


def _own_options(policy: SwitchPolicy) -> SwitchOptions:
    """How an op is done that nobody asked for: it cuts nobody. With auto_switch requests wait for it and none is refused, so
    that no balancer has to look away first, and nobody waits for that, too."""
    options = replace(policy.options(), on_inflight=OnInflight.DRAIN)
    return replace(options, ready_delay_s=0.0) if policy.auto_switch else options
