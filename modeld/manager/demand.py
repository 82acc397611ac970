"""Who waits for a model that a switch is to bring? Demands, the requests that `auto_switch` holds back. Pure.

The Lifecycle owns one and calls it with its condition held.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

from modeld.errors import ModeldError, QueueFull
from modeld.manager.tenant import Tenant
from modeld.types import Share


@dataclass(eq=False, slots=True)
class Demand:
    """One request that waits. It ends with a tenant, which is entered for it then, or with an error."""

    model_id: str
    client: str
    tenant: Tenant | None = None
    error: ModeldError | None = None
    taken: bool = False  # by the thread that waited: the tenant is that one's to leave

    @property
    def ended(self) -> bool:
        return self.tenant is not None or self.error is not None


class Demands:
    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._waiting: list[Demand] = []  # in the order they came

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def first_model_id(self) -> str | None:
        """What the request that waits longest wants."""
        return self._waiting[0].model_id if self._waiting else None

    def add(self, model_id: str, share: Share) -> Demand:
        """Raises QueueFull."""
        if len(self._waiting) >= self._capacity:
            raise QueueFull(f"{self._capacity} requests wait for a switch already; try again", retry_after_s=1)
        if share.max_queued and sum(demand.client == share.client for demand in self._waiting) >= share.max_queued:
            raise QueueFull(
                f"{share.max_queued} requests of this client wait for a switch already, which is its share of the queue "
                f"(limits.max_queued); try again",
                retry_after_s=1,
            )
        demand = Demand(model_id, share.client)
        self._waiting.append(demand)
        return demand

    def withdraw(self, demand: Demand) -> None:
        """Its client left, or it has ended."""
        if demand in self._waiting:
            self._waiting.remove(demand)

    def grant(self, tenant: Tenant) -> None:
        """The model answers: all who wait for it enter together."""
        for demand in self._take(lambda demand: demand.model_id == tenant.spec.id):
            tenant.n_entering += 1
            demand.tenant = tenant

    def refuse(self, model_id: str | None, error: ModeldError) -> None:
        """The model will not come (None: none will)."""
        for demand in self._take(lambda demand: model_id in (None, demand.model_id)):
            demand.error = copy.copy(error)  # each handler raises its own

    def _take(self, wanted: Callable[[Demand], bool]) -> list[Demand]:
        taken = [demand for demand in self._waiting if wanted(demand)]
        self._waiting = [demand for demand in self._waiting if not demand.ended and demand not in taken]
        return taken
