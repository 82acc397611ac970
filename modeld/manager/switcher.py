"""How does one model give way to another? Switcher: performs one op after the other, and undoes what failed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from modeld.errors import (
    EngineFailed,
    InsufficientMemory,
    LoadFailed,
    ModelCooldown,
    ModeldError,
    ModelQuarantined,
    OpCancelled,
    ShuttingDown,
)
from modeld.manager.cooldown import Cooldowns
from modeld.manager.freeing import Freeing
from modeld.manager.leaving import Leaving, why_closed
from modeld.manager.loading import Lookout, Watched
from modeld.manager.preflight import Preflight, Report
from modeld.manager.progress import BESIDE, ORDER, Progress
from modeld.manager.runner import Host, OpenRunner, Runner
from modeld.manager.state import Lifecycle, Task
from modeld.manager.statefile import StateFile
from modeld.manager.telling import Teller, op_fields
from modeld.manager.tenant import Tenant
from modeld.policy import OnFailure, OnInflight, Strategy, SwitchPolicy
from modeld.types import FileFacts, ModelSpec, OpError, OpKind, OpReason, OpState, Phase, Step, SwitchOp

log = logging.getLogger("modeld.switch")

NO_MODEL = OpError("no_model", "the model was unloaded; POST /switch loads one")


class Switcher:
    """Opens and closes models. The switch thread's alone."""

    def __init__(
        self,
        life: Lifecycle,
        host: Host,
        open_runner: OpenRunner,
        memory: StateFile,
        cooldowns: Cooldowns,
        preflight: Preflight,
        teller: Teller,
        lookout: Lookout,
        leaving: Leaving,
    ) -> None:
        self._life = life
        self._host = host
        self._open_runner = open_runner
        self._memory = memory
        self._cooldowns = cooldowns
        self._preflight = preflight
        self._teller = teller
        self._lookout = lookout
        self._leaving = leaving
        self._held: Tenant | None = None  # opened and not closed yet, answering or not
        self.policy = SwitchPolicy()

    @property
    def held(self) -> Tenant | None:
        """The model that is open, also while it is drained and answers nobody new. Any thread."""
        return self._held

    # -- one op

    def perform(self, task: Task, spec: ModelSpec | None) -> SwitchOp:
        """Run one op to its end, whatever comes; it has ended, and its events are out, when this returns.

        `spec` is what its target stands for; None: an unload, or an id that the registry does not know any more.
        """
        began = time.monotonic()
        facts = FileFacts()
        try:
            if task.op.kind is OpKind.UNLOAD:
                op = self._unload(task.op)
                log.info("model unloaded", extra=op_fields(op))
                return op
            if spec is None:
                raise LoadFailed(f"{task.op.target_model_id!r} is not in the registry any more")
            facts = self._host.inspect(spec)
            op = self._switch(task, spec, facts)
        except Exception as error:  # noqa: BLE001 - an op's boundary: _fail logs it and says so
            return self._fail(task.op, spec, facts, error)
        ms = round((time.monotonic() - began) * 1000, 3)
        log.info("model ready", extra={**op_fields(op), "ms": ms})
        generation = self._life.status().generation
        self._teller.event("model_ready", op, current_model_id=op.target_model_id, generation=generation, ms=ms)
        self._memory.sync()  # what a loss of power must not take; nobody waits for it
        return op

    def _switch(self, task: Task, spec: ModelSpec, facts: FileFacts) -> SwitchOp:
        """Let what the op asks for answer. The op has succeeded when this returns."""
        op = task.op
        held = self._held
        # A model is the same when its entry and its file are. The file is looked at before it is opened: one that is
        # replaced meanwhile counts as another from then on. A missing one gives no reason to let go of what answers.
        unchanged = held is not None and held.spec == spec and facts.identity in (held.identity, None)
        log.info("switch started", extra=op_fields(op))
        if unchanged and held is not None and self._life.keeps(held):
            self._teller.start(op, ())
            self._memory.loaded(spec.id, held.identity, str(spec.path))  # a switch: an edit of default_model is older
            return self._life.kept()
        self._leaving.make_room(op)
        strategy, refused = self._strategy(op, spec, facts)
        op = self._life.take_strategy(strategy)
        order = BESIDE if strategy is Strategy.OVERLAP else ORDER
        self._teller.start(op, order, strategy=strategy.value)
        if refused is not None:
            raise refused
        if not unchanged:
            if facts.problem is not None:
                raise LoadFailed(f"cannot load {spec.path}: {facts.problem}")
            self._check(op, spec, facts)
        self._lookout.raise_if_ending()
        if task.refusal is not None:
            self._clear(op, Progress(partial(self._teller.step, op, facts))).wait()
            raise task.refusal

        tenant = Tenant(spec, facts.identity)
        progress = Progress(partial(self._teller.step, op, facts), order)
        # Giving the memory back is no part of the switch where there is enough of it.
        has_room = strategy is Strategy.REPLACE and self.policy.check_memory and self._host.has_room(spec)
        freeing = self._leaving.nothing() if strategy is Strategy.OVERLAP else self._clear(op, progress, frees=not has_room)
        try:
            self._lookout.raise_if_ending()
            self._memory.trying(spec.id, facts.identity)  # not before: a process that ends in a long drain has not tried it
            progress.report(Step.MMAP, 0)
            tenant.runner = self._load(tenant, progress.report, freeing)
        except BaseException:
            freeing.finish()
            raise
        self._leaving.free_later(freeing)
        replaced, self._held = self._held, tenant
        try:
            progress.finish()
            op = self._remembering(tenant, lambda: self._life.loaded(tenant, retire_s=op.options.drain_timeout_s))
        except Exception:
            self._held = replaced
            self._leaving.close(tenant, EngineFailed(f"loading {spec.id!r} did not succeed")).wait()
            raise
        self._cooldowns.succeeded(spec.id)
        return op

    def _check(self, op: SwitchOp, spec: ModelSpec, facts: FileFacts) -> None:
        """All that takes time while the old model answers."""
        policy = self.policy

        def work(report: Report) -> bool:
            return self._preflight.run(op, spec, facts, policy, report, self._life.ending)

        watched = Watched(
            work, thread="modeld-check", ending=self._life.ending, poke=self._life.poke, discard=lambda _tried: None
        )
        stall_s = policy.load_stall_timeout_s or math.inf
        tried = self._lookout.watch(f"reading {spec.path}", watched, lambda news: self._teller.phase(op, *news), stall_s)
        if tried:
            self._memory.vouch(str(spec.path), facts.identity)

    def _remembering(self, tenant: Tenant, answer: Callable[[], SwitchOp]) -> SwitchOp:
        """Let the tenant answer. The next start knows of it before anybody here can: who saw it and finds the process killed
        finds it again. What `answer` raises undoes that."""
        before = self._memory.remembered
        self._memory.loaded(tenant.spec.id, tenant.identity, str(tenant.spec.path))
        try:
            return answer()
        except Exception:
            self._memory.back_to(before)
            raise

    def _strategy(self, op: SwitchOp, spec: ModelSpec, facts: FileFacts) -> tuple[Strategy, ModeldError | None]:
        """Which way to go, and what speaks against going at all; told apart so that the op's first event comes first.

        A model whose engine has died leaves, too, and gives its memory back; but nothing is loaded beside it.
        """
        answering, held = self._life.tenant(), self._held
        alive = answering is not None and answering.death is None
        options = op.options if alive else replace(op.options, strategy=Strategy.REPLACE)
        leaving = held.spec if held is not None else None
        if not op.options.force and (refusal := self._preflight.refusal(spec, facts)) is not None:
            return Strategy.REPLACE, refusal
        if facts.problem is not None:
            return Strategy.REPLACE, None  # it will be said; memory is of no interest then
        try:
            return self._preflight.strategy(spec, leaving, options, self.policy), None
        except InsufficientMemory as error:
            return Strategy.REPLACE, error

    def _unload(self, op: SwitchOp) -> SwitchOp:
        self._leaving.make_room(op)
        held = self._held
        self._teller.start(op, (Step.UNLOAD,) if held is not None else ())
        progress = Progress(partial(self._teller.step, op, FileFacts()), (Step.UNLOAD,))
        self._clear(op, progress).wait()
        if op.reason is not OpReason.IDLE:  # after which the next start loads what this one did
            self._memory.unloaded()  # before anybody can see it
        op = self._life.emptied(NO_MODEL)
        self._teller.event("model_unloaded", op, model_id=held.spec.id if held is not None else None)
        self._memory.sync()
        return op

    # -- the old model goes

    def _clear(self, op: SwitchOp, progress: Progress, *, frees: bool = True) -> Freeing:
        """Let balancers look away, stop admission, let the running requests end or cut them, and begin to free what they ran
        on, if `frees`."""
        held, delay_s = self._held, op.options.ready_delay_s
        diverts = held is not None and delay_s > 0 and self._life.keeps(held)
        if held is not None and diverts:
            self._leaving.divert(op, held, delay_s)
        self._life.begin()
        if diverts:
            self._teller.phase(op, Phase.DIVERT, 100)
        if held is not None and held.death is None and op.options.on_inflight is OnInflight.DRAIN:
            self._leaving.drain(op, held, time.monotonic() + op.options.drain_timeout_s)
        progress.report(Step.UNLOAD, 0)
        freeing = self._close_held(op, frees=frees)
        progress.report(Step.UNLOAD, 100)
        return freeing

    def _close_held(self, op: SwitchOp, *, frees: bool = True) -> Freeing:
        """Close the old runner, whose requests end with the reason, and begin to free it."""
        if self._held is None:
            return self._leaving.nothing()
        held, self._held = self._held, None
        return self._leaving.close(held, why_closed(held, op, stopping=self._life.stopping), frees=frees)

    # -- the new model comes

    def _load(self, tenant: Tenant, emit: Callable[[Step, int], None], freeing: Freeing, *, until_stop: bool = False) -> Runner:
        """Open a runner on a thread of its own, and pass on its progress. `until_stop`: only the end of the daemon ends it."""
        before = 0
        is_first = True

        def work(report: Callable[[tuple[Step, int] | None], bool]) -> Runner:
            def on_progress(step: Step, pct: int) -> bool:
                nonlocal before, is_first
                freeing.wait()
                if is_first:
                    is_first, before = False, self._host.resident_bytes()
                return report((step, pct))

            return self._open_runner(tenant.spec, on_progress, partial(self._life.died, tenant))

        def discard(runner: Runner) -> None:
            runner.close(LoadFailed("this load was given up"))
            runner.free()

        def ending() -> OpCancelled | None:
            return OpCancelled("the daemon is stopping") if self._life.stopping else None

        runner = self._lookout.watch(
            f"the load of {tenant.spec.path}",
            Watched(
                work,
                thread="modeld-load",
                ending=ending if until_stop else self._life.ending,
                poke=self._life.poke,
                discard=discard,
            ),
            lambda news: emit(*news),
            self.policy.load_stall_timeout_s or math.inf,
        )
        try:
            tenant.resident_bytes = self._host.resident_bytes() - before
            runner.on_idle(partial(self._life.idle, tenant))
        except Exception:
            discard(runner)
            raise
        return runner

    # -- what failed is undone

    def _fail(self, op: SwitchOp, spec: ModelSpec | None, facts: FileFacts, error: Exception) -> SwitchOp:
        """The op has ended without its model: let the one before answer, if there is one, then say so once."""
        state, code, message = self._described(op, error)
        failure = OpError(code, message, op.target_model_id, op.op_id)
        if state is OpState.FAILED and spec is not None:
            self._count_failure(spec, facts, error, message)
        self._memory.ended()
        op = self._settle(op, spec, facts, state, failure)
        data: dict[str, object] = {} if op.rolled_back_to is None else {"rolled_back_to": op.rolled_back_to}
        assert op.error is not None
        self._teller.event("model_error", op, code=op.error.code, message=op.error.message, **data)
        self._memory.sync()
        return op

    def _described(self, op: SwitchOp, error: Exception) -> tuple[OpState, str, str]:
        fields = op_fields(op)
        if isinstance(error, OpCancelled):
            log.info("switch cancelled: %s", error, extra=fields)
            return OpState.CANCELLED, error.code, error.message
        if isinstance(error, ModeldError):
            log.error("switch failed: %s", error, extra={**fields, "code": error.code})
            return OpState.FAILED, error.code, error.message
        log.error("switch failed by a fault of modeld's own", extra=fields, exc_info=error)
        return OpState.FAILED, "internal_error", f"a fault of modeld's own ({type(error).__name__}); its log has the details"

    def _count_failure(self, spec: ModelSpec, facts: FileFacts, error: Exception, message: str) -> None:
        if isinstance(error, ModelCooldown | ModelQuarantined | InsufficientMemory):
            return
        policy = self.policy
        self._cooldowns.failed(
            spec,
            facts.identity,
            message,
            time.monotonic(),
            allowed=policy.cooldown_failures,
            cooldown_s=policy.cooldown_s,
        )

    def _settle(self, op: SwitchOp, spec: ModelSpec | None, facts: FileFacts, state: OpState, failure: OpError) -> SwitchOp:
        """Come to rest: with the model that answers still, with the one before, or with none. The op has ended then."""
        if self._life.tenant() is not None:
            return self._life.failed(state, failure)  # nothing was taken away
        held = self._held
        if held is not None and held.death is None and not self._life.closing:
            try:
                return self._life.restored(held, state, failure, was_loaded=False)  # it was drained, and goes on
            except ModeldError as error:
                log.error("the model before cannot go on: %s", error, extra=op_fields(op))
        if held is not None:
            self._close_held(op).wait()
        if self._life.is_superseded():
            return self._life.failed(state, failure, goes_on=True)
        fallback = self._life.fallback()
        if fallback is None or self._life.stopping:
            return self._life.failed(state, failure)
        if state is OpState.FAILED and op.options.on_failure is OnFailure.ERROR:
            return self._life.failed(state, failure)
        return self._roll_back(op, spec, facts, fallback, state, failure)

    def _roll_back(
        self, op: SwitchOp, spec: ModelSpec | None, facts: FileFacts, fallback: ModelSpec, state: OpState, failure: OpError
    ) -> SwitchOp:
        shares = {Step.UNLOAD: (0, 0), Step.MMAP: (0, 90), Step.WARMUP: (90, 9)}
        last = -1

        def emit(step: Step, pct: int) -> None:
            nonlocal last
            begin, share = shares[step]
            if (now := begin + pct * share // 100) > last:
                last = now
                self._teller.phase(op, Phase.ROLLBACK, now, to=fallback.id)

        try:
            known = self._host.inspect(fallback)
            if state is OpState.FAILED and (fallback, known.identity) == (spec, facts.identity):
                return self._life.failed(state, failure)  # it is what has just failed
            log.info("rolling back", extra={**op_fields(op), "to": fallback.id})
            tenant = Tenant(fallback, known.identity)
            if not self._teller.has_begun(op):
                self._teller.start(op, ())  # it failed before, and what comes now is told of
            emit(Step.MMAP, 0)
            if known.problem is not None:
                raise LoadFailed(f"cannot load {fallback.path}: {known.problem}")
            self._memory.trying(fallback.id, known.identity)
            tenant.runner = self._load(tenant, emit, self._leaving.nothing(), until_stop=True)
            self._held = tenant
            self._teller.phase(op, Phase.ROLLBACK, 100, to=fallback.id)
            ended = self._remembering(tenant, lambda: self._life.restored(tenant, state, failure, was_loaded=True))
        except Exception as error:  # noqa: BLE001 - logged, and part of the op's error
            log.error("the model before did not come back: %s", error, extra={**op_fields(op), "to": fallback.id})
            self._memory.ended()
            if self._held is not None:
                self._close_held(op).wait()
            both = f"{failure.message}; and the model before, {fallback.id!r}, did not come back: {error}"
            return self._life.failed(state, OpError(failure.code, both, failure.model_id, failure.op_id))
        log.info("rolled back", extra={**op_fields(op), "to": fallback.id})
        return ended

    # -- the end

    def close(self, reason: ShuttingDown) -> None:
        """Close whatever is open, and free what is closed."""
        self._leaving.free(now=True)
        for tenant in (self._life.retiring(), self._held):
            if tenant is not None:
                self._leaving.close(tenant, reason).wait()
                log.info("model closed", extra={"model_id": tenant.spec.id})
        self._life.retired()
        self._held = None
