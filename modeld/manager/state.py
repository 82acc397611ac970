"""Which state is the daemon in, and what may happen next? Trigger, TRANSITIONS, Lifecycle (the one Condition).

A read of the state that gates a change is one method here, under one lock: whether an op may start, whether a request is
admitted, whether a model that has been loaded becomes the one that answers.
"""

from __future__ import annotations

import enum
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from modeld.errors import EngineFailed, ModelLoading, ModelNotLoaded, NoModel, OpCancelled, ShuttingDown
from modeld.manager.ops import OpLog
from modeld.manager.runner import Runner
from modeld.types import Load, ModelSpec, OpError, OpState, State, Status, Step, SwitchOp

MAX_RELOADS = 3  # of one model whose engine dies again and again, within
RELOAD_WINDOW_S = 600.0

NO_LOAD = Load(slots_total=0, slots_busy=0, queued=0)


class Trigger(enum.Enum):
    BEGIN = "begin"  # an op takes the model away: admission stops
    LOADED = "loaded"  # the op's model is warm and answers from now on
    FAILED = "failed"  # the op ended and no model answers
    DIED = "died"  # the engine of the model that answers ended by itself
    STOPPED = "stopped"  # the daemon ends


# Initially: LOADING with a model to load at start, ERROR (no_model) without.
TRANSITIONS: dict[tuple[State, Trigger], State] = {
    (State.READY, Trigger.BEGIN): State.LOADING,
    (State.READY, Trigger.DIED): State.LOADING,  # an op is queued by then: a reload, or a switch that waited
    (State.READY, Trigger.STOPPED): State.ERROR,
    (State.LOADING, Trigger.BEGIN): State.LOADING,  # the first op, and the one after a death
    (State.LOADING, Trigger.LOADED): State.READY,
    (State.LOADING, Trigger.FAILED): State.ERROR,
    (State.LOADING, Trigger.STOPPED): State.ERROR,
    (State.ERROR, Trigger.BEGIN): State.LOADING,
    (State.ERROR, Trigger.FAILED): State.ERROR,  # before it began
    (State.ERROR, Trigger.STOPPED): State.ERROR,
}


class InvalidTransition(Exception):
    """A trigger that the state does not know; nothing has changed."""

    def __init__(self, state: State, trigger: Trigger) -> None:
        super().__init__(f"{trigger.value} is not possible in state {state.value}")
        self.state = state
        self.trigger = trigger


@dataclass(eq=False, slots=True)
class Tenant:
    """One model that was opened; `death` is guarded by the Lifecycle's condition, the rest is set before it is shared."""

    spec: ModelSpec
    identity: tuple[int, int, int, int] | None  # of its file, before it was opened
    runner: Runner | None = None
    death: Exception | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """An op whose turn has come. `refusal`: why it must not load (its engine died too often)."""

    op: SwitchOp
    refusal: EngineFailed | None


class Lifecycle:
    """State, the model that answers, and the ops. Methods are grouped by the thread that may call them.

    Only the switch thread moves the state; the others leave it a message (an op, a death, stop) and wake it.
    """

    def __init__(self, error: OpError | None, *, version: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`error`: why no model is going to be loaded at start; None: one is, and the state is loading."""
        self._version = version
        self._clock = clock
        self._started = clock()
        self._cond = threading.Condition()
        # Guards all below. Notified on every transition, op, death and stop; only the switch thread waits on it.
        # Never held while loading, joining, publishing or calling a runner.
        self._state = State.ERROR if error is not None else State.LOADING
        self._error = error
        self._tenant: Tenant | None = None  # answers requests; set exactly in READY
        self._ops = OpLog()
        self._generation = 0
        self._deaths: dict[str, deque[float]] = {}  # by model id, within RELOAD_WINDOW_S
        self._stopping = False

    # -- any thread

    def accept(self, model_id: str) -> SwitchOp:
        """Queue an op. Raises ShuttingDown, QueueFull."""
        with self._cond:
            if self._stopping:
                raise ShuttingDown("the daemon is stopping")
            op = self._ops.add(model_id)
            self._cond.notify_all()
        return op

    def op(self, op_id: str) -> SwitchOp:
        """Raises NotFound."""
        with self._cond:
            return self._ops.get(op_id)

    def admit(self, model_id: str | None) -> Runner:
        """The runner that answers for `model_id` (None: for whichever is loaded).

        It may be closed by the time it is used; then it says so itself.
        Raises ShuttingDown, ModelLoading, NoModel, ModelNotLoaded.
        """
        with self._cond:
            if self._stopping:
                raise ShuttingDown("the daemon is stopping")
            if self._tenant is None or self._tenant.runner is None or self._tenant.death is not None:
                raise self._not_ready()
            spec = self._tenant.spec
            if model_id is not None and model_id != spec.id:
                raise ModelNotLoaded(
                    f'the loaded model is {spec.id!r}, not {model_id!r}; POST /switch with {{"model_id": "{model_id}"}} loads it',
                    param="model",
                )
            return self._tenant.runner

    def tenant(self) -> Tenant | None:
        """The model that answers."""
        with self._cond:
            return self._tenant

    def status(self, load: Load = NO_LOAD) -> Status:
        with self._cond:
            return Status(
                state=self._state,
                current_model=self._tenant.spec.id if self._tenant is not None else None,
                error=self._error,
                op=self._ops.running,
                last_op=self._ops.last,
                queued_ops=len(self._ops),
                load=load,
                generation=self._generation,
                version=self._version,
                uptime_s=round(self._clock() - self._started, 3),
            )

    def died(self, tenant: Tenant, error: Exception) -> None:
        """The tenant's engine has ended. The engine's thread; one that no longer answers is ignored."""
        with self._cond:
            if tenant.death is None:
                tenant.death = error
                self._cond.notify_all()

    def stop(self) -> None:
        """No op and no request is accepted from now on. Idempotent."""
        with self._cond:
            self._stopping = True
            self._cond.notify_all()

    @property
    def stopping(self) -> bool:
        with self._cond:
            return self._stopping

    # -- the switch thread

    def next_task(self) -> Task | None:
        """Wait for work and take it; None when the daemon stops.

        A death of the model that answers queues a reload of it, unless a switch waits already: that one replaces it.
        """
        with self._cond:
            self._cond.wait_for(lambda: self._stopping or len(self._ops) or self._dead() is not None)
            if self._stopping:
                return None
            refusal = None
            if (dead := self._dead()) is not None:
                self._tenant = None
                self._fire(Trigger.DIED)
                refusal = self._count_death(dead)
                if len(self._ops):
                    refusal = None  # somebody asked for that switch: it is tried, whatever happened before
                else:
                    self._ops.add(dead.spec.id)
            return Task(self._ops.start_next(), refusal)

    def begin(self, same: Tenant | None) -> bool:
        """Stop admission, unless `same` (already what the op wants) answers and lives: then True, and nothing changes."""
        with self._cond:
            if same is not None and self._tenant is same and same.death is None:
                return True
            self._tenant = None
            self._error = None
            self._fire(Trigger.BEGIN)
            return False

    def step(self, step: Step, pct: int) -> SwitchOp:
        with self._cond:
            return self._ops.step(step, pct)

    def kept(self) -> SwitchOp:
        """The running op has succeeded: what it asked for was loaded already."""
        with self._cond:
            self._error = None
            return self._ops.end(OpState.SUCCEEDED, None)

    def loaded(self, tenant: Tenant) -> SwitchOp:
        """The running op has succeeded: `tenant` answers from now on.

        Raises OpCancelled, EngineFailed when the daemon stops or the engine has died by now; then nothing has changed.
        """
        with self._cond:
            if self._stopping:
                raise OpCancelled("the daemon is stopping")
            if tenant.death is not None:
                raise EngineFailed(f"the engine of {tenant.spec.id!r} died as soon as it was loaded: {tenant.death}")
            self._fire(Trigger.LOADED)
            self._tenant = tenant
            self._error = None
            self._generation += 1
            return self._ops.end(OpState.SUCCEEDED, None)

    def failed(self, state: OpState, error: OpError) -> SwitchOp:
        """The running op has ended without its model; `state` is failed or cancelled.

        One that fails before it stopped admission leaves the model that answers, and the state, as they are; the error is
        kept until the next op succeeds.
        """
        with self._cond:
            if self._tenant is None:
                self._fire(Trigger.FAILED)
            self._error = error
            return self._ops.end(state, error)

    def cancel_queued(self, error: OpError) -> SwitchOp | None:
        """End the first op that waits; None when none does."""
        with self._cond:
            return self._ops.cancel_next(error) if len(self._ops) else None

    def stopped(self, error: OpError) -> None:
        """No model answers any more. Idempotent."""
        with self._cond:
            self._fire(Trigger.STOPPED)
            self._tenant = None
            self._error = error

    # -- _cond held

    def _fire(self, trigger: Trigger) -> None:
        try:
            self._state = TRANSITIONS[self._state, trigger]
        except KeyError:
            raise InvalidTransition(self._state, trigger) from None
        self._cond.notify_all()

    def _dead(self) -> Tenant | None:
        return self._tenant if self._tenant is not None and self._tenant.death is not None else None

    def _count_death(self, dead: Tenant) -> EngineFailed | None:
        """Remember it; an error when the model has died too often to be loaded again without being asked."""
        now = self._clock()
        deaths = self._deaths.setdefault(dead.spec.id, deque(maxlen=MAX_RELOADS + 1))
        deaths.append(now)
        recent = sum(now - at <= RELOAD_WINDOW_S for at in deaths)
        if recent <= MAX_RELOADS:
            return None
        return EngineFailed(
            f"the engine of {dead.spec.id!r} died {recent} times within {RELOAD_WINDOW_S / 60:.0f} minutes, so it is not "
            f"loaded again by itself (POST /switch does); the last reason: {dead.death}"
        )

    def _not_ready(self) -> ModelLoading | NoModel:
        if self._state is State.ERROR:
            why = self._error.message if self._error is not None else "no model was loaded"
            return NoModel(f"no model is loaded: {why}")
        running = self._ops.running
        if running is None:
            return ModelLoading("a model is about to be loaded", retry_after_s=1)
        at = f", {running.step} {running.pct} %" if running.step is not None else ""
        return ModelLoading(f"the model {running.target_model_id!r} is being loaded{at}", retry_after_s=1)
