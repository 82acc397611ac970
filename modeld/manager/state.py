"""Which state is the daemon in, and what may happen next? Lifecycle: the one Condition.

A read of the state that gates a change is one method here, under one lock: whether an op may start, whether a request is
admitted, whether a model that has been loaded becomes the one that answers.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from modeld.errors import (
    EngineFailed,
    GenerationMismatch,
    ModeldError,
    ModelLoading,
    ModelNotLoaded,
    NoModel,
    OpCancelled,
    OpEnded,
    ShuttingDown,
    SwitchRejected,
)
from modeld.manager.deaths import Deaths
from modeld.manager.demand import Demand, Demands
from modeld.manager.ops import DEFAULTS, OpLog
from modeld.manager.tenant import Tenant
from modeld.manager.transitions import TRANSITIONS, InvalidTransition, Trigger
from modeld.policy import OnBusy, Strategy, SwitchOptions
from modeld.types import Load, ModelSpec, OpError, OpKind, OpReason, OpState, Phase, Share, State, Status, Step, SwitchOp

MAX_DEMANDS = 1024

NO_LOAD = Load(slots_total=0, slots_busy=0, queued=0)


@dataclass(frozen=True, slots=True)
class Task:
    """An op whose turn has come.

    `refusal`: why it must not load (its engine died too often). `spec`: what to load, where that is not the registry's entry
    of today: the model that was there before.
    """

    op: SwitchOp
    refusal: EngineFailed | None = None
    spec: ModelSpec | None = None


class Lifecycle:
    """State, the model that answers, and the ops. Methods are grouped by the thread that may call them.

    Only the switch thread moves the state; the others leave it a message (an op, a cancellation, a death, stop) and wake it.
    """

    def __init__(
        self,
        error: OpError | None,
        *,
        version: str,
        auto_switch: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`error`: why no model is going to be loaded at start; None: one is, and the state is loading.

        `auto_switch`: without a model the daemon is ready all the same, since the next request brings one.
        """
        self._version = version
        self._clock = clock
        self._started = clock()
        self._cond = threading.Condition()
        # Guards all below. Notified on every change that somebody may wait for; never held while loading, joining,
        # publishing or calling a runner. The switch thread waits on it, and handlers for the end of an op or a demand.
        self.auto_switch = auto_switch
        self._state = State.LOADING if error is None else State.READY if auto_switch else State.ERROR
        self._error = None if auto_switch else error
        self._tenant: Tenant | None = None  # answers requests; set only in READY
        self._retiring: Tenant | None = None  # was replaced in an overlap; its last requests run
        self._fallback: ModelSpec | None = None  # what answered last, while nothing does
        self._ops = OpLog()
        self._told: OpCancelled | None = None  # why the running op is to end
        self._told_by: str | None = None  # the op that is to run instead of it
        self._unannounced: deque[SwitchOp] = deque()  # ended while they waited; their events are the switch thread's
        self._messages: deque[Callable[[], None]] = deque()  # for the switch thread
        self._demands = Demands(MAX_DEMANDS)
        self._generation = 0
        self._deaths = Deaths()
        self._leaving = False  # it was said that the daemon is going to stop
        self._stopping = False  # nothing is let in any more; what runs may end
        self._closing = False  # what runs is cut
        self._is_stopped = False  # the switch thread has taken its last messages
        self._ticks = 0  # counts what the switch thread may have to look at

    # -- any thread: ops

    def accept(
        self,
        model_id: str | None,
        *,
        kind: OpKind = OpKind.SWITCH,
        reason: OpReason = OpReason.REQUEST,
        options: SwitchOptions = DEFAULTS,
        if_match: int | None = None,
    ) -> tuple[SwitchOp, bool]:
        """Queue an op; True: it is the one that was accepted last, which wants the same and is not being undone.

        Raises ShuttingDown, QueueFull, SwitchRejected, GenerationMismatch.
        """
        with self._cond:
            if self._stopping:
                raise ShuttingDown("the daemon is stopping")
            if if_match is not None and if_match != self._generation:
                raise GenerationMismatch(f"the generation is {self._generation}, If-Match says {if_match}: somebody has switched")
            last = self._ops.last_accepted
            same = last is not None and (last.kind, last.target_model_id) == (kind, model_id)
            if last is not None and same and not last.cancelling and last.phase is not Phase.ROLLBACK:
                if options.on_busy is OnBusy.SUPERSEDE:
                    self._supersede(by=last)
                return last, True
            if options.on_busy is OnBusy.REJECT and last is not None:
                n = len(self._ops) + (self._ops.running is not None)
                raise SwitchRejected(f"{n} switches run or wait, the last one is {last.op_id} to {last.target_model_id!r}")
            if options.on_busy is OnBusy.SUPERSEDE:
                self._supersede()
            op = self._ops.add(model_id, kind=kind, reason=reason, options=options)
            if options.on_busy is OnBusy.SUPERSEDE:
                self._told_by = op.op_id
            self._wake()
        return op, False

    def cancel(self, op_id: str) -> SwitchOp:
        """End an op: one that waits at once, one that runs as soon as it can. Raises NotFound, OpEnded."""
        why = OpCancelled("it was cancelled on request")
        with self._cond:
            op = self._ops.get(op_id)
            if op.state.ended:
                raise OpEnded(f"the op {op_id} has ended already: {op.state}")
            if op.state is OpState.RUNNING:
                if self._told is None:
                    self._told = why
                op = self._ops.cancelling()
                self._wake()
                return op
            return self._cancel_queued(op_id, why)

    def op(self, op_id: str) -> SwitchOp:
        """Raises NotFound."""
        with self._cond:
            return self._ops.get(op_id)

    def ops(self) -> list[SwitchOp]:
        """All that are remembered, the newest first."""
        with self._cond:
            return self._ops.history()

    def wait_ended(self, op_id: str, timeout_s: float, gone: Callable[[], bool]) -> SwitchOp:
        """The op as soon as it has ended, or when the time is over, or `gone` says that nobody waits for it any more (see
        poke). Raises NotFound."""
        with self._cond:
            self._cond.wait_for(lambda: self._ops.get(op_id).state.ended or gone(), timeout_s)
            return self._ops.get(op_id)

    def recall(self, ended: Iterable[SwitchOp]) -> None:
        """Remember ops of an earlier life. Before the switch thread starts."""
        with self._cond:
            self._ops.recall(ended)

    # -- any thread: requests

    def enter(self, model_id: str | None) -> Tenant:
        """Let a request in to the model that answers for `model_id` (None: whichever is loaded); `leave` when the runner has it.

        The runner may be closed by the time it is used; then it says so itself.
        Raises ShuttingDown, ModelLoading, NoModel, ModelNotLoaded.
        """
        with self._cond:
            return self._enter(model_id)

    def leave(self, tenant: Tenant) -> None:
        """The request is the runner's now, or has failed."""
        with self._cond:
            tenant.n_entering -= 1
            tenant.used_at = self._clock()
            if not tenant.n_entering:
                self._wake()  # of one that the runner never counted (tokenizing, a refusal) nobody else tells the end

    def demand(self, model_id: str | None, otherwise: str | None, share: Share) -> Demand:
        """Let a request in, or let it wait for the switch that it asks for. auto_switch only.

        `otherwise`: what a request gets that names no model while none answers and none is to come.
        Raises ShuttingDown, QueueFull, NoModel.
        """
        with self._cond:
            try:
                tenant = self._enter(model_id)
            except (ModelLoading, ModelNotLoaded, NoModel):
                wanted = model_id or self._coming() or otherwise
                if wanted is None:
                    raise
                if not self.auto_switch:  # turned off since the request came: nobody would serve it
                    raise NoModel("auto_switch was turned off") from None
                demand = self._demands.add(wanted, share)
                self._wake()
                return demand
            return Demand(tenant.spec.id, share.client, tenant)

    def wait_demand(self, demand: Demand, timeout_s: float) -> Tenant | None:
        """The model once it answers, entered; None when the time is over. Raises why it will not come."""
        with self._cond:
            self._cond.wait_for(lambda: demand.ended, None if timeout_s == math.inf else max(timeout_s, 0.0))
            if demand.error is not None:
                raise demand.error
            demand.taken = demand.tenant is not None
            return demand.tenant

    def withdraw(self, demand: Demand, error: ModeldError) -> None:
        """Nobody wants it any more; who waits for it is told that. No effect once wait_demand has returned or raised its end."""
        with self._cond:
            if demand.error is not None or demand.taken:
                return
            if demand.tenant is not None:  # it was entered for somebody who did not come back
                demand.tenant.n_entering -= 1
                demand.tenant = None
            self._demands.withdraw(demand)
            demand.error = error
            self._wake()

    # -- any thread: what is to be seen

    def tenant(self) -> Tenant | None:
        """The model that answers."""
        with self._cond:
            return self._tenant

    def retiring(self) -> Tenant | None:
        """The model that an overlap has replaced."""
        with self._cond:
            return self._retiring

    def status(self, load: Load = NO_LOAD) -> Status:
        """A model whose engine has died is not shown as answering from that moment on, as nobody is let in to it: the switch
        thread may be busy for long before it moves the state."""
        with self._cond:
            is_dead = self._dead() is not None
            running = self._ops.running
            return Status(
                state=TRANSITIONS[self._state, Trigger.DIED] if is_dead else self._state,
                current_model=self._tenant.spec.id if self._tenant is not None and not is_dead else None,
                error=self._error,
                op=running,
                last_op=self._ops.last,
                queued_ops=len(self._ops),
                load=load,
                generation=self._generation,
                version=self._version,
                uptime_s=round(self._clock() - self._started, 3),
                auto_switch=self.auto_switch,
                retiring_model=self._retiring.spec.id if self._retiring is not None else None,
                waiting=len(self._demands),
                # Until `begin` the phase is the op's, so that nobody finds a moment between the two.
                diverting=(self._state is State.READY and not is_dead and running is not None and running.phase is Phase.DIVERT),
                stopping=self._leaving,
            )

    # -- any thread: messages to the switch thread

    def died(self, tenant: Tenant, error: Exception) -> None:
        """The tenant's engine has ended. The engine's thread; one that no longer answers is ignored."""
        with self._cond:
            if tenant.death is None:
                tenant.death = error
                self._wake()

    def idle(self, tenant: Tenant) -> None:
        """The last request of the tenant's runner has ended. The engine's thread."""
        with self._cond:
            tenant.used_at = self._clock()
            self._wake()

    def post(self, message: Callable[[], None]) -> bool:
        """Have the switch thread call this, also in the middle of an op. False: it takes none any more."""
        with self._cond:
            if not self._is_stopped:
                self._messages.append(message)
                self._wake()
            return not self._is_stopped

    def poke(self) -> None:
        """Whoever waits looks again."""
        with self._cond:
            self._wake()

    def announce_stop(self, tell: Callable[[], None]) -> None:
        """Have everybody see that the daemon is going to stop; `tell` is the switch thread's. Idempotent."""
        with self._cond:
            if not self._leaving:
                self._leaving = True
                self._messages.append(tell)
                self._wake()

    def begin_stop(self) -> None:
        """No op and no request is let in from now on; the requests that run go on, those that wait for a switch are refused.

        Ops end once the switch thread comes to it, so that what was announced is told of before. Idempotent.
        """
        with self._cond:
            if not self._stopping:
                self._refuse_all()
                self._messages.append(self.end_ops)

    def stop(self) -> None:
        """As begin_stop; and what runs is to end now. Idempotent."""
        with self._cond:
            self._closing = True
            self._refuse_all()

    def set_auto_switch(self, auto_switch: bool) -> None:
        """From the configuration. Switch thread. Without a model, and without a fault, it decides the state."""
        with self._cond:
            self.auto_switch = auto_switch
            if not auto_switch:
                self._demands.refuse(None, NoModel("auto_switch was turned off"))
                if self._state is State.READY and self._tenant is None:
                    self._error = self._error or OpError("no_model", "auto_switch was turned off; POST /switch loads a model")
                    self._fire(Trigger.EMPTIED)
            elif self._state is State.ERROR and self._error is not None and self._error.code == NoModel.code:
                self._error = None
                self._fire(Trigger.RESTED)
            self._wake()

    @property
    def stopping(self) -> bool:
        """Whether nothing is let in any more."""
        with self._cond:
            return self._stopping

    @property
    def closing(self) -> bool:
        """Whether what runs is to end now."""
        with self._cond:
            return self._closing

    # -- the switch thread: waiting

    def ticks(self) -> int:
        """Taken before one looks around, and given to pause: what happens in between is not slept through."""
        with self._cond:
            return self._ticks

    def pause(self, seen: int, deadline: float) -> bool:
        """Sleep until something has happened since `seen`; False: it is `deadline` (of the clock) first."""
        with self._cond:
            left = deadline - self._clock()
            return self._cond.wait_for(lambda: self._ticks != seen, None if left == math.inf else max(left, 0.0))

    def take_messages(self) -> list[Callable[[], None]]:
        with self._cond:
            messages, self._messages = list(self._messages), deque()
            return messages

    def take_unannounced(self) -> list[SwitchOp]:
        """Ops that ended while they waited, since the last call.

        Where the last of them was to bring a model, and none was there before, the state is error from now on: their events
        say so.
        """
        with self._cond:
            ended, self._unannounced = list(self._unannounced), deque()
            is_given_up = ended and self._state is State.LOADING and self._fallback is None
            if is_given_up and self._ops.running is None and not len(self._ops):
                self._error = OpError("no_model", "the load was cancelled; POST /switch loads a model")
                self._fire(Trigger.FAILED)
            return ended

    # -- the switch thread: an op

    def next_task(self) -> Task | None:
        """Take the op whose turn has come; None: there is none, or the daemon stops.

        A death of the model that answers queues a reload of it, unless a switch waits already: that one replaces it. Where no
        model answers and none is asked for any more, what answered before comes back.
        """
        with self._cond:
            if self._stopping:
                return None
            refusal, spec = None, None
            if (dead := self._dead()) is not None:
                self._tenant, self._fallback = None, dead.spec
                self._fire(Trigger.DIED)
                refusal = self._deaths.count(dead.spec.id, dead.death, self._clock())
                if len(self._ops):
                    refusal = None  # somebody asked for that switch: it is tried, whatever happened before
                else:
                    self._ops.add(dead.spec.id, reason=OpReason.DEATH)
                    spec = dead.spec
            elif not len(self._ops) and self._state is State.LOADING and self._fallback is not None:
                # The op that was to bring a model was cancelled while it waited.
                spec = self._fallback
                self._ops.add(spec.id, reason=OpReason.RESTORE)
            if not len(self._ops):
                return None
            self._told = self._told_by = None
            self._wake()
            return Task(self._ops.start_next(), refusal, spec)

    def ending(self) -> OpCancelled | None:
        """Why the running op must end; None: it may go on."""
        with self._cond:
            return self._ending()

    def is_superseded(self) -> bool:
        """Whether the op that ends another one still waits to run instead of it."""
        with self._cond:
            return self._told_by is not None and any(op.op_id == self._told_by for op in self._ops)

    def keeps(self, held: Tenant) -> bool:
        """Whether `held`, which is what the op wants, answers and lives. If it dies just then, it is loaded again later."""
        with self._cond:
            return self._tenant is held and held.death is None

    def begin(self) -> None:
        """Stop admission."""
        with self._cond:
            if self._tenant is not None:
                self._fallback, self._tenant = self._tenant.spec, None
            self._fire(Trigger.BEGIN)

    def fallback(self) -> ModelSpec | None:
        """What answered before the running op, or the ones that it superseded, took it away."""
        with self._cond:
            return self._fallback

    def fall_back_on(self, spec: ModelSpec) -> None:
        """Before the thread starts: what to load where the first load fails."""
        with self._cond:
            self._fallback = spec

    def n_entering(self, tenant: Tenant) -> int:
        with self._cond:
            return tenant.n_entering

    def step(self, step: Step, pct: int) -> SwitchOp:
        with self._cond:
            return self._ops.step(step, pct)

    def phase(self, phase: Phase, pct: int) -> SwitchOp:
        with self._cond:
            return self._ops.phase(phase, pct)

    def take_strategy(self, strategy: Strategy) -> SwitchOp:
        with self._cond:
            return self._ops.take_strategy(strategy)

    def kept(self) -> SwitchOp:
        """The running op has succeeded: what it asked for was loaded already."""
        with self._cond:
            self._error = None
            return self._end(OpState.SUCCEEDED, None)

    def loaded(self, tenant: Tenant, *, retire_s: float = 0.0) -> SwitchOp:
        """The running op has succeeded: `tenant` answers from now on. One that answered until now has `retire_s` for its last
        requests.

        Raises OpCancelled, EngineFailed when it must end or the engine has died by now; then nothing has changed.
        """
        with self._cond:
            if (why := self._ending()) is not None:
                raise why
            self._require_alive(tenant)
            self._fire(Trigger.LOADED)
            if self._tenant is not None:
                assert self._retiring is None, "two models at most"
                self._retiring = self._tenant
                self._retiring.leave_by = self._clock() + retire_s
            self._answer(tenant)
            self._error = None
            return self._end(OpState.SUCCEEDED, None)

    def restored(self, tenant: Tenant, state: OpState, error: OpError, *, was_loaded: bool) -> SwitchOp:
        """The running op has ended without its model, and the one before answers again; `was_loaded`: it had gone meanwhile.

        Raises EngineFailed, OpCancelled (the daemon stops); then nothing has changed.
        """
        with self._cond:
            if self._closing:
                raise OpCancelled("the daemon is stopping")
            self._require_alive(tenant)
            self._fire(Trigger.RESTORED)
            self._answer(tenant, is_new=was_loaded)
            if state is OpState.FAILED:
                self._error = error
            return self._end(state, error, rolled_back_to=tenant.spec.id if was_loaded else None)

    def emptied(self, error: OpError) -> SwitchOp:
        """The running op has succeeded: no model answers; `error` says why, where the next request does not bring one."""
        with self._cond:
            self._fallback = None
            self._fire(Trigger.RESTED if self.auto_switch else Trigger.EMPTIED)
            self._error = None if self.auto_switch else error
            return self._end(OpState.SUCCEEDED, None)

    def failed(self, state: OpState, error: OpError, *, goes_on: bool = False) -> SwitchOp:
        """The running op has ended without its model; `state` is failed or cancelled.

        One that fails before it stopped admission leaves the model that answers, and the state, as they are; the error is
        kept until the next op succeeds. `goes_on`: the op that superseded it comes next, and the state stays loading.
        """
        with self._cond:
            if self._tenant is None and not goes_on:
                self._fire(Trigger.FAILED)
                self._fallback = None
            if state is not OpState.CANCELLED or self._state is State.ERROR:
                self._error = error
            return self._end(state, error)

    def end_ops(self) -> None:
        """The daemon stops: end every op that waits, and have the one that runs end. Their events are the caller's
        (take_unannounced)."""
        why = OpCancelled("the daemon is stopping")
        with self._cond:
            for op in list(self._ops):
                self._cancel_queued(op.op_id, why)
            if self._ops.running is not None:
                self._told, self._told_by = why, None
                self._ops.cancelling()
                self._wake()

    def stopped(self, error: OpError) -> None:
        """No model answers any more, and no message is taken after those that are there. Idempotent."""
        with self._cond:
            self._is_stopped = True
            self._fire(Trigger.STOPPED)
            self._tenant = None
            self._error = error

    # -- the switch thread: between ops

    def retired(self) -> None:
        with self._cond:
            self._retiring = None

    def is_at_rest(self) -> bool:
        """Whether no op runs or waits."""
        with self._cond:
            return self._ops.running is None and not len(self._ops)

    def accept_idle(self, tenant: Tenant, used_at: float, options: SwitchOptions) -> SwitchOp | None:
        """Queue the unload of a model that nobody has used since `used_at`; None: somebody came meanwhile."""
        with self._cond:
            if self._tenant is not tenant or tenant.n_entering or tenant.used_at != used_at:
                return None
            return self._accept_own(None, OpKind.UNLOAD, OpReason.IDLE, options)

    def accept_demanded(self, options: SwitchOptions) -> SwitchOp | None:
        """Queue a switch to what the request that waits longest wants; None: none waits, or somebody asked for an op."""
        with self._cond:
            wanted = self._demands.first_model_id
            return self._accept_own(wanted, OpKind.SWITCH, OpReason.AUTO, options) if wanted is not None else None

    def demanded(self) -> str | None:
        """The model that the request which waits longest wants, while no op runs or waits."""
        with self._cond:
            return self._demands.first_model_id if self._ops.running is None and not len(self._ops) else None

    # -- _cond held

    def _accept_own(self, model_id: str | None, kind: OpKind, reason: OpReason, options: SwitchOptions) -> SwitchOp | None:
        """An op that nobody asked for comes only while no other runs or waits: on_busy speaks of what somebody asks for."""
        if self._stopping or self._ops.running is not None or len(self._ops):
            return None
        self._wake()
        return self._ops.add(model_id, kind=kind, reason=reason, options=options)

    def _fire(self, trigger: Trigger) -> None:
        try:
            self._state = TRANSITIONS[self._state, trigger]
        except KeyError:
            raise InvalidTransition(self._state, trigger) from None
        self._wake()

    def _wake(self) -> None:
        self._ticks += 1
        self._cond.notify_all()

    def _refuse_all(self) -> None:
        self._leaving = self._stopping = True
        self._demands.refuse(None, ShuttingDown("the daemon is stopping"))
        self._wake()

    def _enter(self, model_id: str | None) -> Tenant:
        if self._stopping:
            raise ShuttingDown("the daemon is stopping")
        tenant = self._tenant
        if tenant is None or tenant.runner is None or tenant.death is not None:
            raise self._not_ready()
        if model_id is not None and model_id != tenant.spec.id:
            raise ModelNotLoaded(
                f"the loaded model is {tenant.spec.id!r}, not {model_id!r}; POST /switch with "
                f'{{"model_id": "{model_id}"}} loads it',
                param="model",
            )
        tenant.n_entering += 1
        tenant.used_at = self._clock()
        return tenant

    def _coming(self) -> str | None:
        """The model that is to answer next."""
        op = self._ops.running or next(iter(self._ops), None)
        if op is not None:
            return op.target_model_id
        return dead.spec.id if (dead := self._dead()) is not None else None

    def _answer(self, tenant: Tenant, *, is_new: bool = True) -> None:
        self._tenant = tenant
        self._fallback = None
        if is_new:
            tenant.since = tenant.used_at = self._clock()
            self._generation += 1
        self._demands.grant(tenant)

    def _require_alive(self, tenant: Tenant) -> None:
        if tenant.death is not None:
            raise EngineFailed(f"the engine of {tenant.spec.id!r} died as soon as it was loaded: {tenant.death}")

    def _ending(self) -> OpCancelled | None:
        if self._closing:
            return OpCancelled("the daemon is stopping")
        return self._told

    def _supersede(self, *, by: SwitchOp | None = None) -> None:
        """Cancel what runs and waits, but `by`, which takes its place."""
        why = OpCancelled("another switch took its place")
        for op in list(self._ops):
            if op is not by:
                self._cancel_queued(op.op_id, why)
        if self._ops.running not in (None, by):
            self._told = why
            self._told_by = by.op_id if by is not None else None
            self._ops.cancelling()
            self._wake()

    def _cancel_queued(self, op_id: str, why: OpCancelled) -> SwitchOp:
        op = self._ops.cancel(op_id, OpError(why.code, why.message))
        self._refuse_demands(op)
        self._unannounced.append(op)
        self._wake()
        return op

    def _end(self, state: OpState, error: OpError | None, *, rolled_back_to: str | None = None) -> SwitchOp:
        op = self._ops.end(state, error, rolled_back_to=rolled_back_to)
        if state is not OpState.SUCCEEDED:
            self._refuse_demands(op)
        self._wake()
        return op

    def _refuse_demands(self, op: SwitchOp) -> None:
        """Requests that waited for it are told why it did not come, unless another op brings their model."""
        others = [*self._ops, *([self._ops.running] if self._ops.running is not None else [])]
        if any(other.target_model_id == op.target_model_id and not other.cancelling for other in others):
            return
        if op.target_model_id is not None and op.error is not None:
            why: ModeldError = NoModel(f"the model {op.target_model_id!r} could not be loaded: {op.error.message}")
            self._demands.refuse(op.target_model_id, why)

    def _dead(self) -> Tenant | None:
        return self._tenant if self._tenant is not None and self._tenant.death is not None else None

    def _not_ready(self) -> ModelLoading | NoModel:
        if self._state is State.ERROR or (self._state is State.READY and self._tenant is None):
            why = self._error.message if self._error is not None else "no model was loaded"
            return NoModel(f"no model is loaded: {why}")
        running = self._ops.running
        if running is None or running.target_model_id is None:
            return ModelLoading("a model is about to be loaded", retry_after_s=1)
        doing = running.step or running.phase
        at = f", {doing} {running.pct} %" if doing is not None else ""
        return ModelLoading(f"the model {running.target_model_id!r} is being loaded{at}", retry_after_s=1)
