"""Whatever is asked of a manager in whatever order: each op ends once, no model leaks, and what is shown is what is true.

A state machine of hypothesis plays clients, engines, files and the configuration on a real Manager. After each step it waits
until the switch thread sleeps or stands at a gate of the fakes, and holds it to what must be true then. Time is no part of
it: time-outs are long, and what they would do is brought about by moving what they are counted from.
"""

from __future__ import annotations

import contextlib
import enum
import faulthandler
import queue
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from modeld.errors import LoadFailed, ModeldError, OpCancelled, OpEnded, ShuttingDown
from modeld.events import Event, SubscriptionEnded
from modeld.manager.admission import Admission
from modeld.manager.manager import Manager
from modeld.manager.runner import Generation
from modeld.manager.tenant import Tenant
from modeld.policy import OnBusy, OnFailure, OnInflight, Strategy, SwitchOptions, SwitchPolicy
from modeld.types import GenerateRequest, ModelSpec, OpKind, OpState, Phase, State, Status, Step, SwitchOp
from tests.fake_runner import DEADLINE_S, ENDS, FakeFactory, FakeRunner, Files, GatedLoad, specs

REQUEST = GenerateRequest("r1", ("hello",))
SOAK_STEPS = 10_000
QUIET = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)

LOAD_ENDS = ("", "finish", "finish", "finish", "finish", "fail", "fail", "die")
STAGES = ("verify", "probe", "read_ahead")


class Room(enum.Enum):
    """Where a model finds memory."""

    BESIDE = "beside"
    INSTEAD = "instead"  # of another one
    NOWHERE = "nowhere"


FILES = st.sampled_from([1, 1, 1, 1, 1, 2, 2, 0])
ROOMS = st.sampled_from([Room.BESIDE] * 5 + [Room.INSTEAD, Room.NOWHERE])
ids = st.sampled_from("aabbccd")  # d comes by a reload alone
options = st.builds(
    SwitchOptions,
    on_inflight=st.sampled_from(OnInflight),
    drain_timeout_s=st.just(3600.0),
    ready_delay_s=st.sampled_from([0.0, 0.0, 3600.0]),
    on_busy=st.sampled_from([OnBusy.QUEUE, OnBusy.QUEUE, OnBusy.SUPERSEDE, OnBusy.REJECT]),
    on_failure=st.sampled_from(OnFailure),
    strategy=st.sampled_from(Strategy),
    force=st.booleans(),
)
policies = st.builds(
    SwitchPolicy,
    on_inflight=st.sampled_from(OnInflight),
    on_failure=st.sampled_from(OnFailure),
    on_busy=st.sampled_from(OnBusy),
    strategy=st.sampled_from(Strategy),
    drain_timeout_s=st.just(3600),
    ready_delay_s=st.sampled_from([0, 0, 0, 3600]),
    cooldown_failures=st.sampled_from([0, 2]),
    load_stall_timeout_s=st.just(0),
    auto_switch=st.booleans(),
    auto_switch_min_stay_s=st.just(86_400),
    idle_unload_s=st.sampled_from([0, 86_400]),
)
numbers = st.integers(0, 5)  # which of several
registries = (
    st.permutations("abcd")
    .flatmap(lambda names: st.tuples(*(st.tuples(st.just(name), st.sampled_from([4096, 4096, 4096, 99, 0])) for name in names)))
    .map(lambda entries: [entry for entry in entries if entry[1]])
)  # by n_ctx; 0: it is left out


class Steps:
    """How many were made, over all examples."""

    n = 0


class HostGates:
    """The parts of a Host that take time: they pass at once, or stop where the test says and wait for its orders."""

    def __init__(self, moved: Callable[[], None]) -> None:
        """`moved` is called, on the switch thread, when it has come to a gate."""
        self.armed: set[str] = set()  # the next call of these stops
        self.rooms: dict[str, Room] = {}  # by model id
        self.at: str | None = None  # where the switch thread stands
        self.is_open = False
        self._moved = moved
        self._orders: queue.Queue[str] = queue.Queue()
        self._answers: queue.Queue[bool] = queue.Queue()

    def verify(self, spec: ModelSpec, go_on: Callable[[int], bool]) -> None:
        percents = iter(range(100))
        if not self._pass("verify", lambda: go_on(next(percents))):
            raise LoadFailed("the digest differs")

    def probe(self, spec: ModelSpec, go_on: Callable[[], bool]) -> None:
        if not self._pass("probe", go_on):
            raise LoadFailed("it died of it") if go_on() else OpCancelled("trying it was cancelled")

    def read_ahead(self, spec: ModelSpec, go_on: Callable[[int, int], bool]) -> None:
        if not self._pass("read_ahead", lambda: go_on(50, 100)):
            raise LoadFailed("it cannot be read")

    def fits(self, spec: ModelSpec, leaving: ModelSpec | None) -> str | None:
        room = self.rooms.get(spec.id, Room.BESIDE)
        return "too large" if room is Room.NOWHERE or (leaving is None and room is Room.INSTEAD) else None

    def order(self, what: str) -> None:
        """ask: whether to go on; pass; fail. The thread has gone on when this returns, or stands again."""
        if what != "ask":
            self.at = None
        self._orders.put(what)
        if what == "ask":
            self._answers.get(timeout=DEADLINE_S)

    def open(self) -> None:
        """Whoever stands passes, and so does who comes."""
        self.is_open = True
        self._orders.put("pass")

    def _pass(self, stage: str, ask: Callable[[], bool]) -> bool:
        if stage not in self.armed or self.is_open:
            return ask()
        self.armed.discard(stage)
        self.at = stage
        self._moved()
        while (what := self._orders.get(timeout=DEADLINE_S)) == "ask":
            self._answers.put(ask())
        return ask() and what == "pass"


class WatchedRunner(FakeRunner):
    """One that says what its close does to requests before it does it, and of itself what nobody else would hear."""

    def __init__(self, spec: ModelSpec, on_death: Callable[[Exception], None], closing: Callable[[WatchedRunner], None]) -> None:
        super().__init__(spec, on_death)
        self.is_dead = False
        self.may_cut = False  # the time of its last requests is over
        self.n_closed = self.n_freed = 0
        self._closing = closing

    def close(self, reason: ModeldError) -> None:
        self.n_closed += 1
        self._closing(self)
        super().close(reason)

    def free(self) -> None:
        self.n_freed += 1
        super().free()


class ManagerMachine(RuleBasedStateMachine):
    """One manager, from its start to its close."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []  # found on other threads
        self.files = Files()
        self.factory = FakeFactory(gated=True, at_once=2, make=self.make_runner)
        self.runners: list[WatchedRunner] = []
        self.load: GatedLoad | None = None
        self.accepted: set[str] = set()
        self.entered: list[Tenant] = []
        self.tenants: set[Tenant] = set()
        self.admissions: list[Admission[Generation]] = []
        self.events: list[Event] = []
        self.is_started = False

    def make_runner(self, spec: ModelSpec, on_death: Callable[[Exception], None]) -> FakeRunner:
        runner = WatchedRunner(spec, on_death, self.closing)
        self.runners.append(runner)
        return runner

    @initialize(default=st.sampled_from([None, "a", "a", "b"]), policy=policies, is_loaded=st.sampled_from([True, True, False]))
    def start(self, default: str | None, policy: SwitchPolicy, is_loaded: bool) -> None:
        self.policy = policy
        self.gates = HostGates(lambda: self.manager._life.poke())
        host = self.files.host(
            verify=self.gates.verify, probe=self.gates.probe, read_ahead=self.gates.read_ahead, fits=self.gates.fits
        )
        self.manager = Manager(specs(*"abc"), default, self.factory, host, version="1", policy=policy)
        self.life, self.switcher = self.manager._life, self.manager._switcher
        self.asleep_at: int | None = None  # the tick that the switch thread has seen, while it sleeps
        self.is_checking = False
        self.watch_the_switch_thread()
        self.subscription = self.manager.subscribe(None)
        self.manager.start()
        self.is_started = True
        self.settle()
        if self.load is not None and is_loaded:
            self.end_load("finish")
            self.settle()

    # -- how the machine looks on

    def watch_the_switch_thread(self) -> None:
        pause, publish, check = self.life.pause, self.manager._hub.publish, self.switcher._check

        def watched_pause(seen: int, deadline: float) -> bool:
            with self.life._cond:
                self.asleep_at = seen
                self.life._cond.notify_all()
                try:
                    return pause(seen, deadline)
                finally:
                    self.asleep_at = None

        def watched_publish(name: str, data: dict[str, object], status: Status) -> Event:
            if fault := wrong_after(name, data, status):
                self.faults.append(f"{fault}: {name} {data} left {status}")
            return publish(name, data, status)

        def watched_check(*args: Any) -> None:
            self.is_checking = True  # until the checks' own thread has ended, or stands at a gate
            try:
                check(*args)
            finally:
                self.is_checking = False

        self.switcher._check = watched_check  # type: ignore[method-assign,assignment]
        self.life.pause = watched_pause  # type: ignore[method-assign]
        self.manager._hub.publish = watched_publish  # type: ignore[method-assign,assignment]

    def is_at_rest(self) -> bool:
        """With the condition held."""
        return self.gates.at is not None or (self.asleep_at == self.life._ticks and not self.is_checking)

    def settle(self) -> None:
        """Until the switch thread sleeps and has seen everything, or stands at a gate, and so does the load."""
        while True:
            with self.life._cond:
                if not self.life._cond.wait_for(self.is_at_rest, DEADLINE_S):
                    faulthandler.dump_traceback(file=sys.stderr)
                    raise AssertionError(f"the switch thread does not come to rest: {self.manager.status()}")
            thread = self.load.thread if self.load is not None else None
            if not any(t.name == "modeld-load" and t is not thread for t in threading.enumerate()):
                break
            assert self.load is None, "two loads at once"
            self.load = self.factory.next_load()
        self.events += self.subscription.take(0)
        if (tenant := self.life.tenant()) is not None:
            self.tenants.add(tenant)

    def closing(self, runner: WatchedRunner) -> None:
        """On the thread that closes it: may its requests be cut?"""
        n_entered = sum(tenant.runner is runner for tenant in self.entered)
        retiring, op = self.life.retiring(), self.manager.status().op
        if not runner.n_open + n_entered or runner.is_dead or self.life.stopping:
            return
        is_retiring = retiring is None and self.switcher._held is not None and self.switcher._held.runner is not runner
        if op is None or op.options.on_inflight is OnInflight.DRAIN or op.strategy is Strategy.OVERLAP:
            if not runner.may_cut:
                self.faults.append(f"{runner.n_open} requests are cut by {op}")
        elif is_retiring and op.kind is OpKind.SWITCH and op.options.strategy is not Strategy.REPLACE and not runner.may_cut:
            self.faults.append(f"{runner.n_open} requests of a replaced model are cut by {op}")

    # -- clients

    @rule(model_id=ids, how=st.none() | options, generation=st.sampled_from([None, None, None, None, None, 1]))
    def switch(self, model_id: str, how: SwitchOptions | None, generation: int | None) -> None:
        self.accept(lambda: self.manager.switch(model_id, how, if_match=generation), model_id)

    @rule(how=st.none() | options)
    def unload(self, how: SwitchOptions | None) -> None:
        self.accept(lambda: self.manager.unload(how), None)

    def accept(self, ask: Callable[[], tuple[SwitchOp, bool]], model_id: str | None) -> None:
        before = {op.op_id: op for op in self.manager.ops()}
        try:
            op, joined = ask()
        except ModeldError:
            assert {op.op_id for op in self.manager.ops()} == before.keys()
        else:
            assert (op.op_id in before) == joined
            assert not joined or not (before[op.op_id].cancelling or before[op.op_id].phase is Phase.ROLLBACK)
            assert op.target_model_id == model_id
            self.accepted.add(op.op_id)
        self.done()

    @rule(which=numbers)
    def cancel(self, which: int) -> None:
        if ops := self.manager.ops():
            op = ops[which % len(ops)]
            with contextlib.suppress(OpEnded):
                assert self.manager.cancel(op.op_id).state in (OpState.CANCELLED, OpState.RUNNING)
        self.done()

    @rule(model_id=st.none() | ids, stays=st.booleans())
    def enter(self, model_id: str | None, stays: bool) -> None:
        """A request that tokenizes, or is on its way to the runner, for long."""
        try:
            tenant = self.life.enter(model_id)
        except ModeldError:
            pass
        else:
            assert tenant is self.life.tenant()
            assert tenant.runner is not None
            assert tenant.death is None
            if stays:
                self.entered.append(tenant)
            else:
                self.life.leave(tenant)
        self.done()

    @precondition(lambda self: self.entered)
    @rule(is_submitted=st.booleans())
    def leave(self, is_submitted: bool) -> None:
        tenant = self.entered.pop(0)
        if is_submitted:
            assert tenant.runner is not None
            with contextlib.suppress(ModeldError):
                tenant.runner.submit(REQUEST)
        self.life.leave(tenant)
        self.done()

    @rule(model_ids=st.lists(st.none() | ids, min_size=1, max_size=3))
    def ask(self, model_ids: list[str | None]) -> None:
        """Requests; with auto_switch they may wait."""
        for model_id in model_ids:
            try:
                self.admissions.append(self.manager.admit(replace(REQUEST, model_id=model_id)))
                self.look_after(self.admissions[-1])
            except ModeldError:
                pass
        self.done()

    @precondition(lambda self: self.admissions)
    @rule(cancels=st.booleans())
    def look_again(self, cancels: bool) -> None:
        """A client that has waited for a heartbeat, or leaves."""
        admission = self.admissions[0]
        if cancels:
            self.admissions.remove(admission)
            admission.cancel()
        else:
            self.look_after(admission)
        self.done()

    def look_after(self, admission: Admission[Generation]) -> None:
        try:
            if admission.wait(0.0) is not None:
                self.admissions.remove(admission)
        except ModeldError:
            self.admissions.remove(admission)

    @precondition(lambda self: self.busy())
    @rule(which=numbers, n=st.integers(1, 9))
    def finish_requests(self, which: int, n: int) -> None:
        runner = self.busy()[which % len(self.busy())]
        runner.finish(min(n, runner.n_open))
        self.done()

    def busy(self) -> list[WatchedRunner]:
        return [runner for runner in self.runners if runner.n_open and not runner.n_closed and not runner.is_dead]

    # -- engines, loads, files

    @precondition(lambda self: self.load is not None)
    @rule(step=st.sampled_from([Step.MMAP, Step.WARMUP]), pct=st.integers(-1, 101), end=st.sampled_from(LOAD_ENDS))
    def go_on_loading(self, step: Step, pct: int, end: str) -> None:
        assert self.load is not None
        op = self.manager.status().op
        assert op is not None
        goes_on = self.load.report(step, pct)
        assert goes_on or op.cancelling
        assert not goes_on or not op.cancelling or op.phase is Phase.ROLLBACK
        if end:
            self.end_load(end)
        self.done()

    def end_load(self, end: str) -> None:
        assert self.load is not None
        if end == "die":
            self.kill(self.load.runner)
        if end == "fail":
            self.load.fail(LoadFailed("no such tensor"))
            self.runners.remove(self.load.runner)  # type: ignore[arg-type]
        else:
            self.load.finish()
        self.load.thread.join(DEADLINE_S)
        self.load = None

    @precondition(lambda self: self.open_runners())
    @rule(which=numbers)
    def die(self, which: int) -> None:
        self.kill(self.open_runners()[which % len(self.open_runners())])
        self.done()

    def kill(self, runner: FakeRunner) -> None:
        assert isinstance(runner, WatchedRunner)
        runner.is_dead = True
        runner.die(RuntimeError("llama_decode gave -3"))

    def open_runners(self) -> list[WatchedRunner]:
        return [r for r in self.runners if not r.n_closed and (self.load is None or r is not self.load.runner)]

    @rule(model_id=ids, file=FILES, room=ROOMS, stage=st.sampled_from(["", "", "", *STAGES]))
    def change_the_world(self, model_id: str, file: int, room: Room, stage: str) -> None:
        """A file is changed, or gone (0); memory is short, or there again; something will take time."""
        self.files.mtime[model_id] = file or None
        self.gates.rooms[model_id] = room
        self.gates.armed.add(stage)
        self.done()

    @precondition(lambda self: self.gates.at)
    @rule(what=st.sampled_from(["ask", "pass", "pass", "fail"]))
    def go_on(self, what: str) -> None:
        self.gates.order(what)
        self.done()

    # -- configuration, time

    @precondition(lambda self: not self.gates.at)
    @rule(entries=registries, policy=st.none() | policies)
    def reconfigure(self, entries: list[tuple[str, int]], policy: SwitchPolicy | None) -> None:
        self.policy = policy or self.policy
        registry = [replace(spec, n_ctx=n_ctx) for (_, n_ctx), spec in zip(entries, specs(*(i for i, _ in entries)), strict=True)]
        self.manager.reconfigure(registry, registry[0].id if registry else None, self.policy)
        assert [info.id for info in self.manager.models()] == [spec.id for spec in registry]
        self.done()

    @rule(what=st.sampled_from(["since", "used_at", "leave_by"]))
    def let_time_pass(self, what: str) -> None:
        tenant = self.life.retiring() if what == "leave_by" else self.life.tenant()
        if what == "leave_by" and self.manager.status().diverting:  # then no model is retiring
            tenant = self.life.tenant()
            assert tenant is not None
            tenant.leave_by = 0.0
            self.life.poke()
        elif tenant is not None:
            assert isinstance(tenant.runner, WatchedRunner)
            tenant.runner.may_cut |= what == "leave_by"
            setattr(tenant, what, 0.0 if what == "leave_by" else getattr(tenant, what) - 100_000)
            self.life.poke()
        self.done()

    # -- what must be true

    def done(self) -> None:
        """A step was made."""
        Steps.n += 1
        self.settle()

    @invariant()
    def holds(self) -> None:
        if not self.is_started:
            return
        assert not self.faults, self.faults
        assert self.manager._thread is not None
        assert self.manager._thread.is_alive()
        status, held, retiring = self.manager.status(), self.switcher._held, self.life.retiring()
        tenants = [tenant for tenant in (held, retiring) if tenant is not None]
        assert self.open_runners() == sorted((t.runner for t in tenants), key=self.runners.index)  # type: ignore[arg-type]
        assert all(runner.n_closed <= 1 and runner.n_freed <= runner.n_closed for runner in self.runners)
        assert all(tenant.n_entering >= 0 for tenant in self.tenants)
        assert self.life.tenant() in (None, held)
        self.check_the_running_op(status, held, retiring)
        if status.op is None and not self.gates.at:
            self.check_rest(status, held, retiring)
        first = self.manager.subscribe(None)
        snapshot = first.first
        first.close()
        assert snapshot is not None
        if held is None or held.death is None:  # else it is seen before it is told
            seen, told = ((s.state, s.current_model, s.error, s.generation, s.retiring_model) for s in (status, snapshot.status))
            assert seen == told
            assert status.last_op == snapshot.status.last_op or self.gates.at  # cancelled, and not told before it is asked

    def check_the_running_op(self, status: Status, held: Tenant | None, retiring: Tenant | None) -> None:
        op = status.op
        if op is None:
            assert self.load is None
            return
        assert op.state is OpState.RUNNING
        if self.load is not None:
            n_beside = sum(not runner.n_closed for runner in self.runners) - 1
            # One that was replaced before, and is not waited for any more, may still be there in a rollback.
            may_be = retiring is not None if op.phase is Phase.ROLLBACK else op.strategy is Strategy.OVERLAP
            assert n_beside == may_be, "models beside the one that is loaded"
        elif not self.gates.at and op.phase is Phase.DIVERT:
            assert status.diverting, f"{op} waits, and balancers do not look away"
            assert held is not None
            assert held is self.life.tenant()
            assert held.death is None
            assert op.strategy is not Strategy.OVERLAP
            assert not op.cancelling
        elif not self.gates.at:
            waits_for = retiring if retiring is not None else held  # the replaced one goes first
            assert waits_for is not None, f"{op} waits for nothing"
            assert self.n_busy(waits_for), f"{op} waits for nobody"
            assert waits_for.death is None, f"{op} waits for the dead"
            assert not op.cancelling

    def check_rest(self, status: Status, held: Tenant | None, retiring: Tenant | None) -> None:
        """Nothing is left to do."""
        assert status.queued_ops == 0
        assert status.state is not State.LOADING
        assert held is self.life.tenant()
        assert held is None or held.death is None
        assert retiring is None or (self.n_busy(retiring) and retiring.leave_by and retiring.death is None)
        if status.waiting:
            assert self.policy.auto_switch
            assert held is not None
            assert self.n_busy(held), "a request waits for nothing"
        if held is None:
            assert (status.state is State.READY) <= self.policy.auto_switch
            assert status.error is not None or status.state is State.READY
        if not self.policy.auto_switch and status.state is State.ERROR:
            assert status.error is not None

    def n_busy(self, tenant: Tenant) -> int:
        assert tenant.runner is not None
        return tenant.n_entering + tenant.runner.load().n_open

    # -- the end

    def teardown(self) -> None:
        if not self.is_started:
            return
        if len(self.events) % 2:  # a stop with some time for what runs, which is over before anything ends
            self.manager.announce_stop("SIGTERM", 20)
            self.manager.begin_stop()
        with ThreadPoolExecutor(1) as pool:
            closing = pool.submit(self.manager.close)
            with self.life._cond:
                assert self.life._cond.wait_for(lambda: self.life._closing, DEADLINE_S)
            self.factory.gated = False
            self.gates.open()
            if self.load is not None:
                self.load.listen()
                self.load.thread.join(DEADLINE_S)
                if self.load.runner not in self.factory.runners:
                    self.runners.remove(self.load.runner)  # type: ignore[arg-type]
            closing.result(DEADLINE_S)
        with contextlib.suppress(SubscriptionEnded):
            while True:
                self.events += self.subscription.take(0)
        assert not self.faults, self.faults
        assert all((runner.n_closed, runner.n_freed) == (1, 1) for runner in self.runners), "a model leaked"
        alive = [thread.name for thread in threading.enumerate() if thread.name.startswith("modeld-")]
        assert not alive, alive
        for tenant in self.entered:
            self.life.leave(tenant)
        for admission in list(self.admissions):
            with pytest.raises(ModeldError):
                admission.wait(0.0)
        assert all(tenant.n_entering == 0 for tenant in self.tenants)
        status = self.manager.status()
        assert (status.state, status.current_model, status.op, status.queued_ops) == (State.ERROR, None, None, 0)
        assert (status.waiting, status.retiring_model) == (0, None)
        with pytest.raises(ShuttingDown):
            self.manager.unload()
        check_events(self.events, self.manager.ops(), self.accepted)


def wrong_after(name: str, data: dict[str, object], status: Status) -> str | None:
    """What an event and the status that it left disagree about."""
    if status.diverting and (status.state is not State.READY or status.current_model is None or status.op is None):
        return "balancers look away from nothing"
    if (status.current_model is not None) > (status.state is State.READY):
        return "a model answers in another state than ready"
    if status.state is State.ERROR and status.error is None:
        return "an error that nobody can read"
    if name == "model_ready" and (status.state, status.current_model, status.op) != (State.READY, data["target_model_id"], None):
        return "not ready"
    if name == "model_error":
        if data["code"] == "internal_error":
            return "a fault"
        back = data.get("rolled_back_to")
        if back is not None and (status.state, status.current_model, status.op) != (State.READY, back, None):
            return "it did not come back"
    if name == "model_unloaded" and "op_id" in data and (status.current_model, status.op) != (None, None):
        return "not unloaded"
    if name in ENDS and "op_id" in data and status.last_op is None:
        return "no op has ended"
    return None


def check_events(events: list[Event], ops: list[SwitchOp], accepted: set[str]) -> None:
    """Each op ended once, as its record says, and what it told rose."""
    by_op: dict[str, list[Event]] = {}
    for event in events:
        if "op_id" in event.data:
            by_op.setdefault(str(event.data["op_id"]), []).append(event)
    records = {op.op_id: op for op in ops}
    assert accepted | by_op.keys() == records.keys()
    for op_id, op in records.items():
        told = by_op.get(op_id, [])
        assert [event.name in ENDS for event in told] == [False] * (len(told) - 1) + [True], (op, told)
        assert [event.name for event in told].count("model_switch_started") == (len(told) > 1), told
        end = {OpState.FAILED: "model_error", OpState.CANCELLED: "model_error"}.get(op.state)
        assert told[-1].name == (end or {OpKind.SWITCH: "model_ready", OpKind.UNLOAD: "model_unloaded"}[op.kind])
        if op.error is not None:
            assert (told[-1].data["code"], told[-1].data.get("rolled_back_to")) == (op.error.code, op.rolled_back_to)
            assert (op.error.op_id, op.error.model_id) == (op.op_id, op.target_model_id)
            assert (op.error.code == "op_cancelled") == (op.state is OpState.CANCELLED)
        assert (op.error is None) == (op.state is OpState.SUCCEEDED)
        for key in ("step", "phase"):
            rising = [(str(e.data[key]), int(str(e.data["pct"]))) for e in told if key in e.data]
            for (before, low), (after, high) in pairwise(rising):
                assert high > low if before == after else high == 0 or key == "phase", rising
            names = [name for name, _ in rising]
            assert len(Counter(names)) == 1 + sum(a != b for a, b in pairwise(names)) if names else True, rising


# -- a walk by weights -------------------------------------------------------------------------------------------------
#
# hypothesis leaves rules out of each example at random and likes what it has tried, so it seldom comes to where five things
# must meet. A walk that takes each step by its weight does, and its seed brings it back.


@dataclass(frozen=True)
class Move:
    """A rule that may be taken now."""

    weight: float
    name: str
    arguments: Callable[[], dict[str, object]]
    is_possible: bool = True


def possible_moves(machine: ManagerMachine, chance: random.Random) -> list[Move]:
    def model_id() -> str:
        return chance.choice("aabbccd")

    def maybe() -> str | None:
        return chance.choice([None, None, model_id()])

    def how() -> dict[str, object]:
        on_busy = chance.choice([OnBusy.QUEUE, OnBusy.QUEUE, OnBusy.QUEUE, OnBusy.SUPERSEDE, OnBusy.REJECT])
        return {"how": None if chance.random() < 0.3 else random_options(chance, on_busy)}

    def which() -> dict[str, object]:
        return {"which": chance.randint(0, 5)}

    def world() -> dict[str, object]:
        room = chance.choice([*[Room.BESIDE] * 5, Room.INSTEAD, Room.NOWHERE])
        stage = chance.choice(["", "", *STAGES])
        return {"model_id": model_id(), "file": chance.choice([1, 1, 1, 1, 1, 1, 2, 0]), "room": room, "stage": stage}

    def loading() -> dict[str, object]:
        step = chance.choice([Step.MMAP, Step.WARMUP])
        return {"step": step, "pct": chance.randint(-1, 101), "end": chance.choice(LOAD_ENDS)}

    def registry() -> dict[str, object]:
        entries = [(name, chance.choice([4096, 4096, 99])) for name in chance.sample("abcd", 4) if chance.random() < 0.8]
        return {"entries": entries, "policy": chance.choice([None, random_policy(chance)])}

    moves = [
        Move(6, "switch", lambda: {"model_id": model_id(), "generation": None, **how()}),
        Move(1, "unload", how),
        Move(2, "cancel", which),
        Move(2, "enter", lambda: {"model_id": maybe(), "stays": chance.random() < 0.7}),
        Move(3, "leave", lambda: {"is_submitted": chance.random() < 0.6}, bool(machine.entered)),
        Move(5, "ask", lambda: {"model_ids": [maybe() for _ in range(chance.randint(1, 3))]}),
        Move(3, "look_again", lambda: {"cancels": chance.random() < 0.4}, bool(machine.admissions)),
        Move(6, "finish_requests", lambda: {"n": chance.randint(1, 9), **which()}, bool(machine.busy())),
        Move(10, "go_on_loading", loading, machine.load is not None),
        Move(1.2, "die", which, bool(machine.open_runners())),
        Move(2, "change_the_world", world),
        Move(10, "go_on", lambda: {"what": chance.choice(["ask", "pass", "pass", "pass", "fail"])}, machine.gates.at is not None),
        Move(1, "reconfigure", registry, machine.gates.at is None),
        Move(2, "let_time_pass", lambda: {"what": chance.choice(["since", "used_at", "leave_by"])}),
    ]
    return [move for move in moves if move.is_possible]


def random_options(chance: random.Random, on_busy: OnBusy) -> SwitchOptions:
    on_failure = chance.choice([OnFailure.ROLLBACK, OnFailure.ROLLBACK, OnFailure.ERROR])
    on_inflight, strategy = chance.choice(list(OnInflight)), chance.choice(list(Strategy))
    ready_delay_s = chance.choice([0.0, 0.0, 3600.0])
    return SwitchOptions(on_inflight, 3600.0, on_busy, on_failure, strategy, ready_delay_s, force=chance.random() < 0.3)


def random_policy(chance: random.Random) -> SwitchPolicy:
    return SwitchPolicy(
        on_inflight=chance.choice(list(OnInflight)),
        on_failure=chance.choice(list(OnFailure)),
        on_busy=chance.choice(list(OnBusy)),
        strategy=chance.choice(list(Strategy)),
        drain_timeout_s=3600,
        ready_delay_s=chance.choice([0, 0, 0, 3600]),
        cooldown_failures=chance.choice([0, 2]),
        load_stall_timeout_s=0,
        auto_switch=chance.random() < 0.5,
        auto_switch_min_stay_s=86_400,
        idle_unload_s=chance.choice([0, 86_400]),
    )


def walk(seed: int, n_steps: int = 60) -> None:
    """Raises where something is wrong, with the way that led there."""
    chance = random.Random(seed)
    machine = ManagerMachine()
    way: list[str] = []
    try:
        default = chance.choice([None, "a", "a", "b"])
        machine.start(default=default, policy=random_policy(chance), is_loaded=chance.random() < 0.8)
        machine.holds()
        for _ in range(n_steps):
            moves = possible_moves(machine, chance)
            move = chance.choices(moves, [move.weight for move in moves])[0]
            arguments = move.arguments()
            way.append(f"{move.name} {arguments}")
            getattr(machine, move.name)(**arguments)
            machine.holds()
    except BaseException as error:
        error.add_note("\n".join([f"walk({seed}):", *way[-20:]]))
        with contextlib.suppress(Exception):
            machine.teardown()
        raise
    try:
        machine.teardown()
    except BaseException as error:
        error.add_note("\n".join([f"walk({seed}), and then the end:", *way[-20:]]))
        raise


def run_machine(n_examples: int, n_steps: int, *, derandomize: bool) -> None:
    run_state_machine_as_test(
        ManagerMachine,
        settings=settings(
            max_examples=n_examples,
            stateful_step_count=n_steps,
            derandomize=derandomize,
            deadline=None,
            database=None,
            suppress_health_check=QUIET,
        ),
    )


def tell_steps(capsys: pytest.CaptureFixture[str], before: int) -> None:
    with capsys.disabled():
        print(f"[{Steps.n - before} steps]", end="")


def test_whatever_is_asked_of_a_manager_in_whatever_order(capsys: pytest.CaptureFixture[str]) -> None:
    before = Steps.n
    run_machine(15, 40, derandomize=True)
    for seed in range(8):
        walk(seed)
    tell_steps(capsys, before)
    assert Steps.n - before > 600


@pytest.mark.soak
def test_ten_thousand_steps_each_way(capsys: pytest.CaptureFixture[str]) -> None:
    before = Steps.n
    while Steps.n - before < SOAK_STEPS:
        run_machine(100, 60, derandomize=False)
    first = random.randrange(1 << 30)
    for seed in range(first, first + SOAK_STEPS // 60 + 1):
        walk(seed)
    tell_steps(capsys, before)


# -- without gates ------------------------------------------------------------------------------------------------------


def test_eight_threads_ask_at_random_and_every_op_ends_once() -> None:
    """Loads pass at once, and nobody waits for anybody."""
    files, factory = Files(), FakeFactory(at_once=2)
    policy = SwitchPolicy(auto_switch=True, auto_switch_min_stay_s=0, cooldown_failures=0)
    manager = Manager(specs(*"abc"), "a", factory, files.host(), version="1", policy=policy)
    events: list[Event] = []
    accepted: set[str] = set()
    tenants: set[Tenant] = set()  # both are only added to, which is one bytecode
    subscription = manager.subscribe(None)
    manager.start()

    def follow() -> None:
        with contextlib.suppress(SubscriptionEnded):
            while True:
                events.extend(subscription.take(DEADLINE_S))

    def call(chance: random.Random) -> None:
        what = chance.choices(["switch", "unload", "cancel", "ask", "die", "reload", "look"], [6, 1, 4, 6, 0.3, 0.5, 2])[0]
        model_id = chance.choice("abc")
        if what in ("switch", "unload"):
            how = replace(
                random_options(chance, chance.choice(list(OnBusy))),
                drain_timeout_s=0.002,
                ready_delay_s=chance.choice([0, 0.001]),
            )
            op, _ = manager.switch(model_id, how) if what == "switch" else manager.unload(how)
            accepted.add(op.op_id)
        elif what == "cancel":
            manager.cancel(chance.choice(manager.ops()[:4]).op_id)
        elif what == "ask":
            admission = manager.admit(replace(REQUEST, model_id=chance.choice([None, model_id])))
            try:
                admission.wait(chance.choice([0.0, 0.001]))
            finally:
                admission.cancel()
        elif what == "reload":
            manager.reconfigure(specs(*chance.choice(["abc", "cba"])), "a", policy)
        elif (tenant := manager._life.tenant()) is not None:
            tenants.add(tenant)
            if what == "die":
                manager._life.died(tenant, RuntimeError("llama_decode gave -3"))
        status = manager.status()
        assert status.current_model is None or status.state is State.READY

    def client(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(250):
            with contextlib.suppress(ModeldError):
                call(chance)

    with ThreadPoolExecutor(9) as pool:
        following = pool.submit(follow)
        for done in [pool.submit(client, seed) for seed in range(8)]:
            done.result(DEADLINE_S)
        manager.close()
        following.result(DEADLINE_S)
    ended = Counter(str(event.data["op_id"]) for event in events if event.name in ENDS and "op_id" in event.data)
    assert set(ended.values()) == {1}
    assert accepted <= ended.keys()
    records = {op.op_id: op for op in manager.ops()}  # the last ones
    check_events([event for event in events if event.data.get("op_id") in records], list(records.values()), set())
    assert not [event for event in events if event.data.get("code") == "internal_error"]
    assert all(runner.freed for runner in factory.runners)
    assert all(tenant.n_entering == 0 for tenant in tenants)
