"""What does the daemon do for its surface? Manager: the registry, admission, ops, and the loop of the switch thread."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from modeld.errors import (
    ConfigRefused,
    InsufficientMemory,
    LoadFailed,
    ModeldError,
    ModelNotFound,
    NotFound,
    OpCancelled,
    ShuttingDown,
)
from modeld.events import MAX_SUBSCRIBERS, EventHub, Subscription
from modeld.heartbeat import Heartbeat, Pulse, one_of_each
from modeld.manager.admission import Admission, Cancellable
from modeld.manager.cooldown import Cooldowns
from modeld.manager.history import recalled, record_of
from modeld.manager.journal import Journal
from modeld.manager.leaving import Leaving
from modeld.manager.loading import Lookout
from modeld.manager.metrics import SwitchMetrics
from modeld.manager.preflight import Preflight
from modeld.manager.runner import Embedding, Generation, Host, OpenRunner, Runner
from modeld.manager.state import Lifecycle, Task
from modeld.manager.statefile import StateFile
from modeld.manager.switcher import Switcher
from modeld.manager.telling import Teller
from modeld.manager.upkeep import Upkeep
from modeld.policy import Strategy, SwitchOptions, SwitchPolicy
from modeld.threads import BIG_STACK_BYTES, start_thread
from modeld.types import (
    ChatMessage,
    EmbedRequest,
    Figures,
    GenerateRequest,
    LoadedModel,
    ModelInfo,
    ModelSpec,
    OpError,
    OpKind,
    OpReason,
    OpState,
    ReloadResult,
    State,
    Status,
    SwitchOp,
    SwitchPlan,
    Tool,
)

log = logging.getLogger("modeld.switch")

CLOSE_TIMEOUT_S = 30.0  # a load that has mapped a cold file does not hear of its cancellation before that is read
RELOAD_TIMEOUT_S = 10.0  # for the switch thread to take a registry over; it is asleep, or wakes in the middle of an op

STUCK_AFTER_S = 30.0

T = TypeVar("T", bound=Cancellable)


class Manager:
    """The registry, the model that answers, and the thread `modeld-switch`, which replaces it.

    Main thread: start, close. Any thread: the service methods. All below them: the switch thread.
    """

    def __init__(
        self,
        registry: Sequence[ModelSpec],
        default_model: str | None,
        open_runner: OpenRunner,
        host: Host,
        *,
        version: str,
        policy: SwitchPolicy | None = None,
        memory: StateFile | None = None,
        journal: Journal | None = None,
        max_event_clients: int = MAX_SUBSCRIBERS,
        stuck_after_s: float = STUCK_AFTER_S,
    ) -> None:
        """`default_model` is an id of the registry; None: none is loaded at start, unless `memory` knows of one that was."""
        self._registry = _by_id(registry)  # replaced as a whole, never changed
        self._default_model = default_model
        if default_model is not None and default_model not in self._registry:
            raise ValueError(f"default model {default_model!r} is not in the registry")
        self._host = host
        self._policy = policy = policy or SwitchPolicy()
        self._config_error: str | None = None
        self._memory = memory if memory is not None else StateFile(None)
        self._journal = journal if journal is not None else Journal(None)
        self.metrics = SwitchMetrics()
        self.on_status: Callable[[Status], None] = lambda _: None  # called with each event's; the switch thread: it may not wait
        self.other_pulses: Callable[[], Sequence[Pulse]] = tuple  # of threads that are not the manager's
        self._pulse = Pulse("modeld-switch")
        self._stuck_after_s = stuck_after_s
        self.reload: Callable[[], ReloadResult] = _cannot_reload  # read the configuration file again; whoever has it says how
        choice = self._memory.at_start(
            list(self._registry), default_model, policy.at_start, lambda model_id: host.inspect(self._registry[model_id]).identity
        )
        log.info("at start: %s", choice.reason, extra={"model_id": choice.model_id})
        why = None if choice.model_id is not None else _no_model(len(registry), choice.reason)
        self._life = Lifecycle(why, version=version, auto_switch=policy.auto_switch)
        self._life.recall(recalled(self._journal.recent(256)))
        self._hub = EventHub(self.status(), max_event_clients)
        self._cooldowns = Cooldowns()
        self._preflight = Preflight(host, self._memory, self._cooldowns)
        teller, self._lookout = Teller(self._life, self._publish), Lookout(self._life, self._chores, self._pulse)
        self._leaving = Leaving(self._life, host, teller, self._lookout)
        self._switcher = Switcher(
            self._life, host, open_runner, self._memory, self._cooldowns, self._preflight, teller, self._lookout, self._leaving
        )
        self._switcher.policy = policy
        self._upkeep = Upkeep(self._life)
        if choice.model_id is not None:
            if default_model is not None and default_model != choice.model_id:
                self._life.fall_back_on(self._registry[default_model])
            # The first op, whatever is asked for before the thread starts.
            self._life.accept(choice.model_id, reason=OpReason.START, options=policy.options())
        self._thread: threading.Thread | None = None

    # -- the main thread

    def start(self) -> None:
        """Start the switch thread; the load at start is its first op. Once."""
        self._thread = start_thread(self._pulse.thread, self._run, stack_bytes=BIG_STACK_BYTES, pulse=self._pulse)

    def announce_stop(self, reason: str, deadline_s: float) -> None:
        """Say that the daemon is going to stop, and that what runs has `deadline_s` to end: in the status and by an event, which
        comes before any end that the stop brings. Everything goes on. Idempotent."""
        self._life.announce_stop(lambda: self._publish("shutdown", None, reason=reason, deadline_s=deadline_s))

    def begin_stop(self) -> None:
        """Let nothing in any more: no request, no op. Ops that run or wait are cancelled, requests that wait for a switch
        refused; those that a model has go on. Idempotent."""
        self._life.begin_stop()

    def drain(self, timeout_s: float) -> bool:
        """After begin_stop: wait until the last request has ended; False: it is `timeout_s` later first."""
        deadline = time.monotonic() + timeout_s
        while True:
            seen = self._life.ticks()
            # An op may hold a model back that nobody else can see (its own drain); it is told to end, and gives that back.
            if self._life.is_at_rest() and not self.n_open():
                return True
            if not self._life.pause(seen, deadline):
                return False

    def n_open(self) -> int:
        """Requests that a model has, or that are on the way into it."""
        tenants = (self._life.tenant(), self._life.retiring())
        return sum(self._leaving.n_open(tenant) for tenant in tenants if tenant is not None)

    def close(self) -> None:
        """Cancel the op that runs and the ops that wait, end all requests, free the model, end the events.

        Waits CLOSE_TIMEOUT_S at most: a load that does not listen is left to the end of the process. Idempotent.
        """
        self._life.stop()
        if self._thread is None:
            self._shut_down()
            return
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            log.error("the switch thread does not end: a load has not heard of its cancellation for %.0f s", CLOSE_TIMEOUT_S)
            self._hub.close()

    # -- any thread: what is to be seen

    def models(self) -> list[ModelInfo]:
        """The registry, in the file's order. Reads the heads of model files that it has not seen yet."""
        status = self._life.status()
        infos = []
        loaded = self.loaded()
        for spec in self._registry.values():
            facts = self._host.inspect(spec)
            infos.append(
                ModelInfo(
                    id=spec.id,
                    name=spec.name or spec.id,
                    path=str(spec.path),
                    quant=spec.quant or facts.quant,
                    family=spec.family or facts.family,
                    state=_model_state(spec.id, status),
                    size_bytes=facts.size_bytes,
                    n_ctx=spec.n_ctx,
                    n_parallel=spec.n_parallel,
                    chat_template=loaded.chat_template_engine or "unsupported" if loaded and loaded.id == spec.id else None,
                    n_params=facts.n_params,
                    n_ctx_train=facts.n_ctx_train,
                )
            )
        return infos

    def status(self) -> Status:
        status = self._life.status()
        tenant = self._life.tenant()
        stale = tenant is not None and self._registry.get(tenant.spec.id) != tenant.spec
        status = replace(status, config_stale=stale, config_error=self._config_error, quarantined=self._quarantined())
        if tenant is None or tenant.runner is None:
            return status
        return replace(status, load=tenant.runner.load())

    def figures(self) -> Figures:
        """Without a look at any file: a scrape must not wait for a disk."""
        status = replace(self._life.status(), config_error=self._config_error)
        tenant = self._life.tenant()
        if tenant is not None and tenant.runner is not None:
            status = replace(status, load=tenant.runner.load())
        engine, cells = self._host.figures()
        return Figures(
            status=status,
            models=tuple(self._registry),
            ops=self.metrics.ops(),
            steps_s=self.metrics.seconds(),
            event_clients=self._hub.n_subscribers,
            engine=engine,
            cells=cells,
        )

    def loaded(self) -> LoadedModel | None:
        tenant = self._life.tenant()
        return tenant.runner.describe() if tenant is not None and tenant.runner is not None else None

    def heartbeats(self) -> list[Heartbeat]:
        """How the threads are; of two with one name (an overlap has two engines) the one that is worse.

        A model counts until its threads are joined, drained or not; but one whose engine has died is replaced, and that may
        take as long as a load.
        """
        tenants = (self._life.tenant(), self._life.retiring(), self._switcher.held, self._leaving.closing)
        runners = [
            each.runner.pulses() for each in tenants if each is not None and each.runner is not None and each.death is None
        ]
        pulses = [self._pulse, *(pulse for each in runners for pulse in each), *self.other_pulses()]
        return one_of_each(pulse.beat(self._stuck_after_s) for pulse in pulses)

    def subscribe(self, last_event_id: str | None) -> Subscription:
        return self._hub.subscribe(last_event_id, self.status())

    # -- any thread: ops

    def default_options(self) -> SwitchOptions:
        """What holds for a switch that does not say otherwise."""
        return self._policy.options()

    def switch(
        self, model_id: str, options: SwitchOptions | None = None, *, if_match: int | None = None
    ) -> tuple[SwitchOp, bool]:
        """Queue a switch; True: it joined the one that was accepted last.

        Raises ModelNotFound, ShuttingDown, QueueFull, SwitchRejected, GenerationMismatch; where nothing else runs or waits,
        ModelCooldown, ModelQuarantined and InsufficientMemory, too.
        """
        spec = self._registered(model_id, param="model_id")
        options = options or self._policy.options()
        if self._life.is_at_rest() and (refusal := self._foreseen(spec, options)[1]) is not None:
            raise refusal
        op, joined = self._life.accept(model_id, options=options, if_match=if_match)
        if not joined:
            log.info("switch queued", extra={"op_id": op.op_id, "model_id": model_id})
        return op, joined

    def plan(self, model_id: str, options: SwitchOptions) -> SwitchPlan:
        """What `switch` would come to. Raises ModelNotFound."""
        spec = self._registered(model_id, param="model_id")
        tenant = self._life.tenant()
        facts = self._host.inspect(spec)
        if tenant is not None and tenant.spec == spec and facts.identity in (tenant.identity, None):
            return SwitchPlan(model_id, "keep", Strategy.REPLACE, None, None)
        strategy, refusal = self._foreseen(spec, options)
        if refusal is None and facts.problem is not None:
            refusal = LoadFailed(f"cannot load {spec.path}: {facts.problem}")
        error = OpError(refusal.code, refusal.message, model_id) if refusal is not None else None
        return SwitchPlan(model_id, "load", strategy, tenant.spec.id if tenant is not None else None, error)

    def unload(self, options: SwitchOptions | None = None, *, if_match: int | None = None) -> tuple[SwitchOp, bool]:
        """Queue an unload. Raises ShuttingDown, QueueFull, SwitchRejected, GenerationMismatch."""
        options = options or self._policy.options()
        return self._life.accept(None, kind=OpKind.UNLOAD, options=options, if_match=if_match)

    def cancel(self, op_id: str) -> SwitchOp:
        """End an op. Raises NotFound, OpEnded."""
        return self._life.cancel(op_id)

    def op(self, op_id: str) -> SwitchOp:
        return self._life.op(op_id)

    def ops(self) -> list[SwitchOp]:
        """The newest first, those of earlier lives of the daemon included."""
        return self._life.ops()

    def wait_op(self, op_id: str, timeout_s: float, gone: Callable[[], bool]) -> SwitchOp:
        """The op when it has ended, the time is over, or `gone` (look_again has it asked). Raises NotFound."""
        return self._life.wait_ended(op_id, timeout_s, gone)

    def look_again(self) -> None:
        """Whoever waits in wait_op asks its `gone`."""
        self._life.poke()

    def lift_quarantine(self, model_id: str) -> None:
        """Raises NotFound."""
        if model_id not in self._quarantined():
            raise NotFound(f"no model {model_id!r} is in quarantine")
        self._on_switch_thread(lambda: self._memory.lift(model_id))
        log.info("quarantine lifted", extra={"model_id": model_id})

    # -- any thread: the configuration

    def reconfigure(self, registry: Sequence[ModelSpec], default_model: str | None, policy: SwitchPolicy) -> ReloadResult:
        """Take another registry over. The model that answers is never touched. Returns when it holds."""
        old, new = self._registry, _by_id(registry)
        result = ReloadResult(
            changed=(old, self._default_model, self._policy) != (new, default_model, policy) or list(old) != list(new),
            models=len(new),
            added=tuple(model_id for model_id in new if model_id not in old),
            removed=tuple(model_id for model_id in old if model_id not in new),
            altered=tuple(model_id for model_id in new if model_id in old and old[model_id] != new[model_id]),
        )

        def take_over() -> None:
            self._registry, self._default_model, self._policy = new, default_model, policy
            self._switcher.policy = policy
            self._life.set_auto_switch(policy.auto_switch)
            self._memory.configured(default_model)
            self._config_error = None
            if result.changed:
                names = {"added": result.added, "removed": result.removed, "altered": result.altered}
                log.info("configuration reloaded", extra={"models": len(new), **names})
                self._publish("config_reloaded", None, models=len(new), **{name: list(ids) for name, ids in names.items()})

        self._on_switch_thread(take_over)
        return result

    def config_failed(self, message: str) -> None:
        """The configuration file cannot be taken over: the old one goes on, and everybody can see why."""

        def say() -> None:
            if self._config_error != message:
                self._config_error = message
                log.error("configuration not reloaded: %s", message)
                self._publish("config_error", None, message=message)

        self._on_switch_thread(say)

    def _on_switch_thread(self, work: Callable[[], None]) -> None:
        """Have it done by the thread whose events tell of it, and wait for that."""
        done = threading.Event()

        def message() -> None:
            try:
                work()
            finally:
                done.set()

        if self._thread is None or not self._life.post(message):
            work()
        elif not done.wait(RELOAD_TIMEOUT_S):
            log.error("the switch thread has not looked up for %.0f s", RELOAD_TIMEOUT_S)

    # -- any thread: requests

    def admit(self, request: GenerateRequest) -> Admission[Generation]:
        """Let a request in; `wait` of what this returns submits it, with auto_switch after the switch that it needs.

        Raises ModelNotFound.
        """
        return self._admission(request, lambda runner: runner.submit(request))

    def admit_embedding(self, request: EmbedRequest) -> Admission[Embedding]:
        """As admit."""
        return self._admission(request, lambda runner: runner.embed(request))

    def generate(self, request: GenerateRequest) -> Generation:
        generation = self.admit(request).wait()
        assert generation is not None
        return generation

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        with self._entered() as runner:
            return runner.tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        with self._entered() as runner:
            return runner.detokenize(tokens)

    def render_chat(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> str:
        with self._entered() as runner:
            return runner.render_chat(messages, tools)

    def _admission(self, request: GenerateRequest | EmbedRequest, submit: Callable[[Runner], T]) -> Admission[T]:
        if request.model_id is not None:
            self._registered(request.model_id, param="model")
        waits, otherwise = self._policy.auto_switch, self._default_model or next(iter(self._registry), None)
        return Admission(self._life, request.model_id, submit, request.share, waits=waits, otherwise=otherwise)

    @contextmanager
    def _entered(self) -> Iterator[Runner]:
        """The runner that answers, which does not leave before this ends, unless requests are cut."""
        tenant = self._life.enter(None)
        try:
            assert tenant.runner is not None
            yield tenant.runner
        finally:
            self._life.leave(tenant)

    def _registered(self, model_id: str, *, param: str) -> ModelSpec:
        registry = self._registry
        if model_id not in registry:
            known = ", ".join(repr(known_id) for known_id in list(registry)[:20])
            raise ModelNotFound(f"no model {model_id!r} is registered; known: {known or 'none'}", param=param)
        return registry[model_id]

    def _quarantined(self) -> tuple[str, ...]:
        """Registered models that a start, and a switch without force, pass over."""
        registry = self._registry  # which a reload replaces at any time
        suspects = [registry[model_id] for model_id in self._memory.remembered.crashes if model_id in registry]
        inspect, quarantine_of = self._host.inspect, self._memory.quarantine_of
        return tuple(spec.id for spec in suspects if quarantine_of(spec.id, inspect(spec).identity) is not None)

    def _foreseen(self, spec: ModelSpec, options: SwitchOptions) -> tuple[Strategy, ModeldError | None]:
        """Which way a switch would go now, and what would refuse it before anything is unloaded."""
        if options.force:
            return options.strategy, None
        facts = self._host.inspect(spec)
        if (refusal := self._preflight.refusal(spec, facts)) is not None:
            return options.strategy, refusal
        tenant = self._life.tenant()
        if facts.problem is not None or (tenant is not None and tenant.spec == spec):
            return options.strategy, None
        if self._life.retiring() is not None:
            return options.strategy, None  # its memory is taken and on its way back: the op finds out when it has gone
        try:
            leaving = tenant.spec if tenant is not None else None
            return self._preflight.strategy(spec, leaving, options, self._policy), None
        except InsufficientMemory as error:
            return options.strategy, error

    # -- the switch thread

    def _run(self) -> None:
        try:
            while True:
                seen = self._life.ticks()  # before all looks, at `closing` too: what comes after one ends the pause
                if self._life.closing:
                    break
                self._chores()
                if (task := self._life.next_task()) is not None:
                    self._perform(task)
                    continue
                if self._life.is_at_rest():
                    self._lookout.pause(seen, min(self._leaving.act_at(), self._upkeep.act_at(self._policy)))
        finally:
            self._shut_down()
            self._pulse.rest()

    def _perform(self, task: Task) -> None:
        target = task.op.target_model_id
        spec = task.spec or (self._registry.get(target) if target is not None else None)
        self._record(self._switcher.perform(task, spec))

    def _chores(self) -> None:
        """What cannot wait for the end of the op that runs: messages, and the end of ops that waited."""
        for message in self._life.take_messages():
            try:
                message()
            except Exception:
                log.exception("a fault while taking a message")
        for op in self._life.take_unannounced():
            assert op.error is not None
            self._publish("model_error", op, code=op.error.code, message=op.error.message)
            self._record(op)
        if self._life.is_at_rest() and not self._life.closing:
            self._leaving.retire()
            self._leaving.free()
            self._upkeep.act(self._policy)

    def _record(self, op: SwitchOp) -> None:
        self.metrics.ended(op)
        self._journal.append(record_of(op))

    def _shut_down(self) -> None:
        """Say of every op that waits that it was cancelled, close the model, end the events."""
        self._life.stop()  # also when a fault of ours ends the thread: no op is accepted that nobody runs
        reason = ShuttingDown("the daemon is stopping")
        if (running := self._life.status().op) is not None:  # only after such a fault
            error = OpError(OpCancelled.code, reason.message, running.target_model_id, running.op_id)
            op = self._life.failed(OpState.CANCELLED, error)
            self._publish("model_error", op, code=error.code, message=error.message)
            self._record(op)
        self._chores()  # a stop that was begun is told of first
        self._life.end_ops()
        self._chores()
        self._life.stopped(OpError(reason.code, reason.message))
        self._chores()  # the messages that came meanwhile
        self._switcher.close(reason)
        self._memory.close()
        self._hub.close()

    def _publish(self, name: str, op: SwitchOp | None, **data: object) -> None:
        about: dict[str, object] = {}
        if op is not None:
            about = {"op_id": op.op_id, "target_model_id": op.target_model_id}
            if op.started_at is not None:
                data["elapsed_ms"] = round((time.time() - op.started_at) * 1000, 3)
        status = self.status()
        self._hub.publish(name, {**about, **data}, status)
        self.on_status(status)


def _by_id(registry: Sequence[ModelSpec]) -> dict[str, ModelSpec]:
    by_id = {spec.id: spec for spec in registry}
    if len(by_id) != len(registry):
        raise ValueError("two models of the registry have the same id")
    return by_id


def _cannot_reload() -> ReloadResult:
    raise ConfigRefused("this daemon has no configuration file")


def _no_model(n_models: int, reason: str) -> OpError:
    if n_models == 0:
        return OpError("no_model", "the configuration lists no models")
    return OpError("no_model", f"none is loaded at start ({reason}); POST /switch loads one")


def _model_state(model_id: str, status: Status) -> str:
    if status.current_model == model_id:
        return "ready"
    if status.state is State.LOADING and status.op is not None and status.op.target_model_id == model_id:
        return "loading"
    return "unloaded"
