"""How does a request come to the model that it wants? Admission: at once, or after the switch that it waits for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from modeld.errors import RequestCancelled
from modeld.manager.demand import Demand
from modeld.manager.runner import Runner
from modeld.manager.state import Lifecycle
from modeld.manager.tenant import Tenant
from modeld.types import Share


class Cancellable(Protocol):
    def cancel(self) -> None: ...


T = TypeVar("T", bound=Cancellable)


class Admission(Generic[T]):
    """One request on its way in. One thread waits; `cancel` may come from any."""

    def __init__(
        self,
        life: Lifecycle,
        model_id: str | None,
        submit: Callable[[Runner], T],
        share: Share,
        *,
        waits: bool = False,
        otherwise: str | None = None,
    ) -> None:
        """`waits`: for the switch to a model that is not loaded (auto_switch); `otherwise`: see Lifecycle.demand."""
        self._life = life
        self._model_id = model_id
        self._submit: Callable[[Runner], T] | None = submit  # given up with its request once that is the runner's
        self._share = share
        self._waits = waits
        self._otherwise = otherwise
        self._demand: Demand | None = None
        self._is_cancelled = False
        self._result: T | None = None

    def wait(self, timeout_s: float = math.inf) -> T | None:
        """What the runner makes of the request, as soon as it is admitted; None: it waits still when the time is over.

        Raises what keeps it out, and RequestCancelled after cancel.
        """
        tenant = self._entered(timeout_s)
        if tenant is None:
            return None
        try:
            assert tenant.runner is not None
            assert self._submit is not None
            self._result = self._submit(tenant.runner)
            self._submit = None
        finally:
            self._life.leave(tenant)
        if self._is_cancelled:  # before there was something to cancel
            self._result.cancel()
        return self._result

    def cancel(self) -> None:
        """The client left. Idempotent."""
        self._is_cancelled = True
        if self._result is not None:
            self._result.cancel()
        elif self._demand is not None:
            self._life.withdraw(self._demand, RequestCancelled("the client left"))

    def _entered(self, timeout_s: float) -> Tenant | None:
        if not self._waits:
            return self._life.enter(self._model_id)
        if self._demand is None:
            self._demand = self._life.demand(self._model_id, self._otherwise, self._share)
            if self._is_cancelled:
                self._life.withdraw(self._demand, RequestCancelled("the client left"))
        return self._life.wait_demand(self._demand, timeout_s)
