"""How does a model go? Leaving: balancers look away, requests end or are cut, threads are joined, memory comes back."""

from __future__ import annotations

import logging
import math
import time

from modeld.errors import EngineFailed, ModeldError, ModelSwitched, OpCancelled, ShuttingDown
from modeld.manager.freeing import Freeing
from modeld.manager.loading import Lookout
from modeld.manager.runner import Host
from modeld.manager.state import Lifecycle
from modeld.manager.telling import Teller, op_fields
from modeld.manager.tenant import Tenant
from modeld.policy import OnInflight, Strategy
from modeld.types import OpKind, OpReason, Phase, SwitchOp

log = logging.getLogger("modeld.switch")

FREE_AFTER_S = 0.25  # what the first requests of the next model have before the memory of the last one is given back


class Leaving:
    """The switch thread's alone."""

    def __init__(self, life: Lifecycle, host: Host, teller: Teller, lookout: Lookout) -> None:
        self._life = life
        self._resident_bytes = host.resident_bytes
        self._give_back = host.give_back
        self._teller = teller
        self._lookout = lookout
        self.closing: Tenant | None = None  # whose threads are being joined; any thread may look
        self._unfreed = self.nothing()  # closed; its memory is taken still, or on its way back
        self._free_at = math.inf  # when that is to begin, on the monotonic clock

    def divert(self, op: SwitchOp, tenant: Tenant, delay_s: float) -> None:
        """Let whoever shares out requests see for `delay_s` that the tenant is about to leave, while it answers as ever.

        The phase goes on until the caller has stopped admission: /readyz must not be at 200 in between. Raises OpCancelled,
        also where a tenant that was idle is used meanwhile; the end of the op ends the phase, too.
        """
        used_at = tenant.used_at  # before anybody can know
        self._teller.phase(op, Phase.DIVERT, 0, delay_s=delay_s)
        log.info("readiness is withdrawn for %g s before the model leaves", delay_s, extra=op_fields(op))
        tenant.leave_by = time.monotonic() + delay_s

        def is_wanted() -> bool:
            return op.reason is OpReason.IDLE and tenant.used_at != used_at

        def is_over() -> bool:
            over = time.monotonic() >= tenant.leave_by or is_wanted()
            return over or tenant.death is not None or self._life.ending() is not None

        self._lookout.wait(is_over, tenant.leave_by)
        self._lookout.raise_if_ending()
        if is_wanted():
            raise OpCancelled("somebody uses the model again, which was to go since nobody did")

    def drain(self, op: SwitchOp, tenant: Tenant, deadline: float) -> None:
        """Wait until the tenant's requests have ended, until `deadline` at most. Raises OpCancelled; then nothing is closed."""
        n_first = max(self.n_open(tenant), 1)
        last = -1

        def drained() -> bool:
            nonlocal last
            n_open = self.n_open(tenant)
            pct = max(min(100 - n_open * 100 // n_first, 99), 0) if n_open else 100
            if pct > last and not (last < 0 and pct == 100):
                last = pct
                self._teller.phase(op, Phase.DRAIN, pct, n_running=n_open)
            return not n_open or tenant.death is not None or self._life.ending() is not None

        if not self._lookout.wait(drained, deadline):
            log.warning("%d requests did not end in time and are cut", self.n_open(tenant), extra=op_fields(op))
        self._lookout.raise_if_ending()

    def n_open(self, tenant: Tenant) -> int:
        """Requests that are let in and have not ended."""
        assert tenant.runner is not None
        return self._life.n_entering(tenant) + tenant.runner.load().n_open

    def nothing(self) -> Freeing:
        """For who waits for memory that nobody gives back."""
        return Freeing(None, self._resident_bytes)

    def close(self, tenant: Tenant, reason: ModeldError, *, frees: bool = True) -> Freeing:
        """End its requests and threads, and begin to free it, unless not `frees`: then the caller says when. A close that fails
        is logged, and the caller goes on.

        Nobody can reach that runner any more and a second close would not be safer, so failing the op would only leave
        the daemon without a model; what the runner still holds is lost until the process ends.
        """
        assert tenant.runner is not None
        self.closing = tenant
        try:
            with self._lookout.call("the end of a model's threads"):
                tenant.runner.close(reason)
        except Exception:
            log.exception("closing a model failed; what it holds is lost", extra={"model_id": tenant.spec.id})
            return self.nothing()  # a thread of it may still live
        finally:
            self.closing = None
        freeing = Freeing(tenant, self._resident_bytes)
        if frees:
            freeing.begin()
        return freeing

    # -- the model that is closed and not freed yet

    def free_later(self, freeing: Freeing) -> None:
        """Once the first requests to the next model have had their turn."""
        self._unfreed, self._free_at = freeing, time.monotonic() + FREE_AFTER_S

    def free(self, *, now: bool = False) -> None:
        """Begin if it is time; `now`: in any case, and wait for its end."""
        if now:
            self._unfreed.finish()  # no more: what comes next takes the pages that are free in the heap
        elif time.monotonic() >= self._free_at:
            self._unfreed.begin(self._give_back)
        else:
            return
        self._free_at = math.inf

    # -- the model that an overlap has replaced

    def retire(self, *, now: bool = False) -> bool:
        """Close the replaced model if its requests have ended or its time is over; `now`: in any case. True: it is gone."""
        tenant = self._life.retiring()
        if tenant is None:
            return True
        n_open = self.n_open(tenant) if tenant.death is None else 0
        if n_open and not now and time.monotonic() < tenant.leave_by:
            return False
        if n_open:
            log.warning("%d requests of a replaced model are cut", n_open, extra={"model_id": tenant.spec.id})
        answering = self._life.tenant()
        to = f" to {answering.spec.id!r}" if answering is not None else ""
        why = ModelSwitched(f"the model was switched from {tenant.spec.id!r}{to} while the request ran", retry_after_s=1)
        self._life.retired()
        self.close(tenant, why).wait()
        self._teller.event("model_unloaded", None, model_id=tenant.spec.id)
        return True

    def act_at(self) -> float:
        """When `retire` or `free` must be called again, on the monotonic clock."""
        tenant = self._life.retiring()
        return min(self._free_at, tenant.leave_by if tenant is not None else math.inf)

    def make_room(self, op: SwitchOp) -> None:
        """Two models at most: the replaced one goes before anything is opened. `drain` and `overlap` leave it its time."""
        self.free(now=True)
        if (tenant := self._life.retiring()) is None:
            return
        overlaps = op.kind is OpKind.SWITCH and op.options.strategy is not Strategy.REPLACE
        if (op.options.on_inflight is OnInflight.DRAIN or overlaps) and not self.retire():
            # For /status: the op's first event comes behind this, when it is known how it will be done.
            self._life.phase(Phase.DRAIN, 0)
            self._lookout.wait(lambda: self._life.ending() is not None or self.retire(), tenant.leave_by)
            self._lookout.raise_if_ending()
            self._life.phase(Phase.DRAIN, 100)
        self.retire(now=True)


def why_closed(tenant: Tenant, op: SwitchOp, *, stopping: bool) -> ModeldError:
    if tenant.death is not None:
        log.error("the engine died: %s", tenant.death, extra={**op_fields(op), "model_id": tenant.spec.id}, exc_info=tenant.death)
        return EngineFailed(f"the engine of {tenant.spec.id!r} died: {tenant.death}")
    if stopping:
        return ShuttingDown("the daemon is stopping")
    if op.target_model_id is None:
        return ModelSwitched(f"the model {tenant.spec.id!r} was unloaded while the request ran", retry_after_s=1)
    return ModelSwitched(
        f"the model was switched from {tenant.spec.id!r} to {op.target_model_id!r} while the request ran", retry_after_s=1
    )
