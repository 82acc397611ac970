"""Switching, on a fake factory with gates: order, events, admission, failures, deaths, and the end."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from modeld.errors import (
    EngineFailed,
    LoadFailed,
    ModeldError,
    ModelLoading,
    ModelNotFound,
    ModelNotLoaded,
    ModelSwitched,
    NoModel,
    NotFound,
    ShuttingDown,
)
from modeld.events import Event, SubscriptionEnded
from modeld.manager import manager as manager_module
from modeld.manager.deaths import MAX_RELOADS
from modeld.manager.manager import Manager
from modeld.policy import OnFailure, SwitchOptions, SwitchPolicy
from modeld.types import ChatMessage, GenerateRequest, Load, ModelSpec, OpState, State, Status, Step, SwitchOp
from tests.fake_runner import DEADLINE_S, FakeFactory, Files, Follower, specs

NO_ROLLBACK = SwitchPolicy(on_failure=OnFailure.ERROR)
REQUEST = GenerateRequest("r1", ("hello",))
GATED = pytest.mark.parametrize("factory", [True], indirect=True, ids=["gated"])


@pytest.fixture
def factory(request: pytest.FixtureRequest) -> FakeFactory:
    return FakeFactory(gated=bool(getattr(request, "param", False)))


@pytest.fixture
def files() -> Files:
    return Files()


@pytest.fixture
def make(factory: FakeFactory, files: Files) -> Iterator[Callable[..., Manager]]:
    """A manager of the models a, b, c, closed after the test."""
    made: list[Manager] = []

    def build(default: str | None = "a", ids: str = "abc", policy: SwitchPolicy | None = None, **host: object) -> Manager:
        manager = Manager(specs(*ids), default, factory, files.host(**host), version="1.2", policy=policy)
        made.append(manager)
        return manager

    yield build
    for manager in made:
        manager.close()


def start(manager: Manager) -> Follower:
    follower = Follower(manager.subscribe(None))
    manager.start()
    return follower


def started(make: Callable[..., Manager]) -> tuple[Manager, Follower]:
    """A manager whose first model answers."""
    manager = make()
    follower = start(manager)
    follower.until("model_ready")
    return manager, follower


def steps_of(events: list[Event]) -> list[tuple[str, object, object]]:
    return [(event.name, event.data.get("step"), event.data.get("pct")) for event in events]


def assert_well_formed(events: list[Event]) -> None:
    """Ops one after the other; each begins once and ends once; steps rise from 0 to 100 in their order."""
    by_op = [(op_id, list(group)) for op_id, group in itertools.groupby(events, lambda event: event.data["op_id"])]
    assert len({op_id for op_id, _ in by_op}) == len(by_op), "ops interleave"
    for _, group in by_op:
        assert group[-1].name in ("model_ready", "model_error")
        assert [event.name for event in group].count("model_switch_started") <= 1
        assert sum(event.name in ("model_ready", "model_error") for event in group) == 1
        progress = [event for event in group if event.name == "model_loading_progress"]
        for step, of_step in itertools.groupby(progress, lambda event: event.data["step"]):
            pcts = [event.data["pct"] for event in of_step]
            assert all(isinstance(pct, int) for pct in pcts)
            assert pcts == sorted(set(pcts)), (step, pcts)  # type: ignore[type-var]
        names = [step for step, _ in itertools.groupby(event.data["step"] for event in progress)]
        assert names == [step.value for step in Step][: len(names)]


# -- one load ---------------------------------------------------------------------------------------------------------


def test_the_load_at_start_is_an_op_like_any_other(make: Callable[..., Manager], factory: FakeFactory) -> None:
    manager = make()
    status = manager.status()
    assert (status.state, status.current_model, status.error, status.queued_ops) == (State.LOADING, None, None, 1)
    follower = start(manager)
    ready = follower.until("model_ready")
    assert steps_of(follower.seen) == [
        ("model_switch_started", None, None),
        *[("model_loading_progress", "unload", pct) for pct in (0, 100)],
        *[("model_loading_progress", "mmap", pct) for pct in (0, 50, 100)],
        *[("model_loading_progress", "warmup", pct) for pct in (0, 50, 100)],
        ("model_ready", None, None),
    ]
    assert ready.data["current_model_id"] == "a"
    op = manager.op(str(ready.data["op_id"]))
    assert (op.state, op.target_model_id, op.error, op.step, op.pct) == (OpState.SUCCEEDED, "a", None, Step.WARMUP, 100)
    assert list(op.steps_ms) == ["unload", "mmap", "warmup"]
    status = manager.status()
    assert (status.state, status.current_model, status.op, status.last_op) == (State.READY, "a", None, op)
    assert (status.generation, status.version, status.load) == (1, "1.2", Load(4, 0, 0))
    loaded = manager.loaded()
    assert loaded is not None
    assert loaded.id == "a"
    assert factory.threads == {"modeld-load"}


@pytest.mark.parametrize(("ids", "message"), [("abc", "POST /switch loads one"), ("", "lists no models")])
def test_without_a_model_to_load_the_state_is_error_no_model(make: Callable[..., Manager], ids: str, message: str) -> None:
    manager = make(None, ids)
    manager.start()
    status = manager.status()
    assert (status.state, status.current_model, status.generation) == (State.ERROR, None, 0)
    assert status.error is not None
    assert status.error.code == "no_model"
    with pytest.raises(NoModel, match=message):
        manager.generate(REQUEST)
    assert manager.loaded() is None
    assert manager.status().load == Load(0, 0, 0)


def test_a_default_that_is_not_registered_is_a_fault_of_the_caller(factory: FakeFactory, files: Files) -> None:
    with pytest.raises(ValueError, match="'x' is not in the registry"):
        Manager(specs("a"), "x", factory, files.host(), version="1")
    with pytest.raises(ValueError, match="same id"):
        Manager(specs("a", "a"), None, factory, files.host(), version="1")


@GATED
def test_status_models_and_op_follow_a_load(make: Callable[..., Manager], factory: FakeFactory) -> None:
    manager = make()
    follower = start(manager)
    load = factory.next_load()
    assert load.report(Step.MMAP, 43)
    follower.until_at(Step.MMAP, 43)
    status = manager.status()
    assert (status.state, status.current_model, status.queued_ops) == (State.LOADING, None, 0)
    assert status.op is not None
    assert (status.op.state, status.op.step, status.op.pct) == (OpState.RUNNING, Step.MMAP, 43)
    assert manager.op(status.op.op_id) == status.op
    assert [model.state for model in manager.models()] == ["loading", "unloaded", "unloaded"]
    with pytest.raises(ModelLoading, match="'a' is being loaded, mmap 43 %") as refused:
        manager.generate(REQUEST)
    assert refused.value.retry_after_s == 1
    # What a factory had better not report: repeats, steps back, a step that is over, numbers out of range.
    for step, pct in [(Step.MMAP, 43), (Step.MMAP, 12), (Step.WARMUP, 1), (Step.MMAP, 99), (Step.WARMUP, 101), (Step.UNLOAD, 50)]:
        assert load.report(step, pct)
    load.finish()
    ready = follower.until("model_ready")
    assert [(event.data["step"], event.data["pct"]) for event in follower.seen if event.name == "model_loading_progress"] == [
        ("unload", 0), ("unload", 100), ("mmap", 0), ("mmap", 43), ("mmap", 100), ("warmup", 0), ("warmup", 1), ("warmup", 100),
    ]  # fmt: skip
    assert [model.state for model in manager.models()] == ["ready", "unloaded", "unloaded"]
    assert ready.data["op_id"] == status.op.op_id


def test_models_tell_the_entry_and_the_file(make: Callable[..., Manager], files: Files) -> None:
    manager = make(None, "ab")
    files.mtime["b"] = None
    a, b = manager.models()
    assert (a.id, a.name, a.path, a.quant, a.family, a.size_bytes) == ("a", "a", "/models/a.gguf", "Q8_0", "llama", 3)
    assert (a.n_params, a.n_ctx_train) == (7, 512)
    assert (b.quant, b.family, b.size_bytes, b.n_ctx, b.n_parallel) == (None, None, None, 4096, 4)
    assert (b.n_params, b.n_ctx_train) == (None, None)


# -- switching --------------------------------------------------------------------------------------------------------


def test_a_switch_closes_the_old_model_with_the_reason_and_loads_the_new_one(
    make: Callable[..., Manager], factory: FakeFactory
) -> None:
    manager, follower = started(make)
    op = manager.switch("b")[0]
    assert (op.state, op.target_model_id) == (OpState.QUEUED, "b")
    assert follower.ended(op).data["current_model_id"] == "b"
    old, new = factory.runners
    assert isinstance(old.closed_with, ModelSwitched)
    assert "from 'a' to 'b'" in old.closed_with.message
    assert old.closed_with.retry_after_s
    assert old.closed_by == "modeld-switch"
    assert new.closed_with is None
    assert manager.status().generation == 2
    assert manager.generate(REQUEST).model_id == "b"
    assert_well_formed(follower.seen)


@GATED
def test_admission_stops_before_the_old_model_is_closed_and_starts_before_ready_is_told(
    make: Callable[..., Manager], factory: FakeFactory
) -> None:
    manager = make()
    follower = start(manager)
    old = factory.next_load().finish()
    follower.until("model_ready")
    assert manager.generate(REQUEST).model_id == "a"
    op = manager.switch("b")[0]
    load = factory.next_load()
    with pytest.raises(ModelLoading):
        manager.generate(REQUEST)
    assert old.closed_with is not None
    with pytest.raises(ModelLoading):
        manager.tokenize("x", add_special=True, parse_special=False)
    load.finish()
    assert follower.until("model_ready", op)
    assert manager.generate(REQUEST).model_id == "b"
    assert manager.tokenize("x", add_special=True, parse_special=False) == [120]
    assert manager.detokenize([120]) == b"x"
    assert manager.render_chat([ChatMessage("user", "hi")]) == "hi"


def test_a_request_that_meets_a_closed_runner_is_told_why(make: Callable[..., Manager], factory: FakeFactory) -> None:
    """Admitted before the switch, submitted after it: the window between lock and call."""
    manager, _ = started(make)
    factory.runners[0].closed_with = ModelSwitched("gone")
    with pytest.raises(ModelSwitched):
        manager.generate(REQUEST)
    factory.runners[0].closed_with = None


@GATED
def test_switches_posted_at_once_run_one_after_the_other_in_the_order_accepted(
    make: Callable[..., Manager], factory: FakeFactory
) -> None:
    manager = make()
    follower = start(manager)
    ops = [manager.switch(model_id)[0] for model_id in "bca"]
    assert len({op.op_id for op in ops}) == 3
    for position, model_id in enumerate("abca"):
        load = factory.next_load()
        assert load.spec.id == model_id
        status = manager.status()
        assert status.queued_ops == 3 - position
        assert status.op is not None
        assert status.op.target_model_id == model_id
        assert [manager.op(op.op_id).state for op in ops[position:]] == [OpState.QUEUED] * (3 - position)
        load.report(Step.MMAP, 50)
        load.finish()
    for op in ops:
        assert follower.ended(op).name == "model_ready"
    assert_well_formed(follower.seen)
    assert [event.data["target_model_id"] for event in follower.seen if event.name == "model_ready"] == list("abca")
    assert manager.status().generation == 4


def test_many_threads_switch_and_ask_and_every_op_ends_once(make: Callable[..., Manager], factory: FakeFactory) -> None:
    manager, follower = started(make)

    def client(number: int) -> list[SwitchOp]:
        ops = []
        for turn in range(10):
            ops.append(manager.switch("abc"[(number + turn) % 3])[0])
            manager.status()
            manager.models()
            with contextlib.suppress(ModelLoading, ModelSwitched):
                manager.generate(REQUEST)
        return ops

    with ThreadPoolExecutor(6) as pool:
        ops = [op for result in [pool.submit(client, number) for number in range(6)] for op in result.result(DEADLINE_S)]
    for op in ops:
        assert follower.ended(op).name == "model_ready"
        assert manager.op(op.op_id).state is OpState.SUCCEEDED
    assert_well_formed(follower.seen)
    assert [runner for runner in factory.runners if runner.closed_with is None] == factory.runners[-1:]


def test_switching_to_what_is_loaded_and_unchanged_succeeds_without_unloading(
    make: Callable[..., Manager], factory: FakeFactory, files: Files
) -> None:
    manager, follower = started(make)
    for mtime in (1, None):  # a file that is gone is no reason to let go of the model
        files.mtime["a"] = mtime
        op = manager.switch("a")[0]
        follower.ended(op)
        assert [event.name for event in follower.of(op)] == ["model_switch_started", "model_ready"]
        ended = manager.op(op.op_id)
        assert (ended.state, ended.step, ended.steps_ms) == (OpState.SUCCEEDED, None, {})
    assert factory.runners[0].closed_with is None
    assert (manager.status().generation, len(factory.runners)) == (1, 1)


def test_switching_to_what_is_loaded_loads_it_again_when_its_file_has_changed(
    make: Callable[..., Manager], factory: FakeFactory, files: Files
) -> None:
    manager, follower = started(make)
    files.mtime["a"] = 2
    follower.ended(manager.switch("a")[0])
    assert len(factory.runners) == 2
    assert isinstance(factory.runners[0].closed_with, ModelSwitched)


def test_switching_to_what_is_loaded_loads_it_again_when_its_entry_has_changed(
    make: Callable[..., Manager], factory: FakeFactory
) -> None:
    manager, follower = started(make)
    manager._registry["a"] = replace(manager._registry["a"], n_ctx=8192)
    follower.ended(manager.switch("a")[0])
    assert [runner.spec.n_ctx for runner in factory.runners] == [4096, 8192]


def test_unknown_names_are_refused_before_anything_is_queued(make: Callable[..., Manager]) -> None:
    manager, _ = started(make)
    with pytest.raises(ModelNotFound, match="known: 'a', 'b', 'c'") as refused:
        manager.switch("x")[0]
    assert refused.value.param == "model_id"
    with pytest.raises(ModelNotFound):
        manager.generate(replace(REQUEST, model_id="x"))
    with pytest.raises(ModelNotLoaded):
        manager.generate(replace(REQUEST, model_id="b"))
    with pytest.raises(NotFound):
        manager.op("x")
    assert manager.generate(replace(REQUEST, model_id="a")).model_id == "a"
    assert manager.status().queued_ops == 0


# -- failures ---------------------------------------------------------------------------------------------------------


@GATED
@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (LoadFailed("no such tensor"), "model_load_failed", "no such tensor"),
        (EngineFailed("warmup"), "engine_failed", "warmup"),
        (TypeError("a bug"), "internal_error", "a fault of modeld's own (TypeError); its log has the details"),
        (MemoryError(), "internal_error", "a fault of modeld's own (MemoryError); its log has the details"),
    ],
)
def test_a_load_that_fails_ends_in_one_error_and_the_next_switch_works(
    make: Callable[..., Manager],
    factory: FakeFactory,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    code: str,
    message: str,
) -> None:
    manager = make(policy=NO_ROLLBACK)
    follower = start(manager)
    factory.next_load().finish()
    op = manager.switch("b")[0]
    load = factory.next_load()
    load.report(Step.MMAP, 30)
    load.fail(error)
    ended = follower.ended(op)
    assert (ended.name, ended.data["code"], ended.data["message"]) == ("model_error", code, message)
    record = manager.op(op.op_id)
    assert (record.state, record.step, record.pct) == (OpState.FAILED, Step.MMAP, 30)
    status = manager.status()
    assert (status.state, status.current_model) == (State.ERROR, None)
    assert status.error == record.error
    assert status.error is not None
    assert (status.error.code, status.error.model_id, status.error.op_id) == (code, "b", op.op_id)
    with pytest.raises(NoModel):
        manager.generate(REQUEST)
    if code == "internal_error":
        assert any(entry.exc_info and entry.exc_info[1] is error for entry in caplog.records)

    again = manager.switch("a")[0]
    factory.next_load().finish()
    assert follower.ended(again).name == "model_ready"
    status = manager.status()
    assert (status.state, status.error, status.current_model) == (State.READY, None, "a")
    assert_well_formed(follower.seen)


def test_a_close_that_fails_is_logged_and_the_switch_goes_on(
    make: Callable[..., Manager], factory: FakeFactory, caplog: pytest.LogCaptureFixture
) -> None:
    manager, follower = started(make)
    factory.runners[0].close_error = RuntimeError("cannot join")
    assert follower.ended(manager.switch("b")[0]).name == "model_ready"
    assert any(entry.exc_info and "what it holds is lost" in entry.message for entry in caplog.records)


@GATED
def test_the_next_load_begins_while_the_old_model_is_freed_but_takes_no_memory_before(
    make: Callable[..., Manager], factory: FakeFactory
) -> None:
    manager = make()
    follower = start(manager)
    old = factory.next_load().finish()
    follower.until("model_ready")
    old.free_gate = threading.Event()
    op = manager.switch("b")[0]
    load = factory.next_load()  # the factory was called, and the old model is not freed yet
    assert old.closed_with is not None
    assert not old.freed
    freed_at_return: list[bool] = []
    reporter = threading.Thread(target=lambda: freed_at_return.append(load.report(Step.MMAP, 10) and old.freed))
    reporter.start()
    old.free_gate.set()
    reporter.join()
    assert freed_at_return == [True]
    load.finish()
    assert follower.until("model_ready", op)
    assert_well_formed(follower.seen)


@GATED
def test_a_load_that_fails_at_once_still_waits_for_the_old_models_memory(
    make: Callable[..., Manager], factory: FakeFactory
) -> None:
    manager = make(policy=NO_ROLLBACK)
    follower = start(manager)
    old = factory.next_load().finish()
    follower.until("model_ready")
    old.free_gate = threading.Event()
    op = manager.switch("b")[0]
    factory.next_load().fail(LoadFailed("no such file"))
    assert manager.status().state is State.LOADING
    old.free_gate.set()
    assert follower.until("model_error", op)
    assert old.freed


def test_a_fault_before_admission_stopped_leaves_the_model_that_answers(
    make: Callable[..., Manager], factory: FakeFactory
) -> None:
    def broken(spec: ModelSpec, on_progress: object) -> None:
        if spec.id == "b":
            raise RuntimeError("a bug in the reader")

    manager = make(read_ahead=broken)
    follower = start(manager)
    follower.until("model_ready")
    op = manager.switch("b", SwitchOptions(force=True))[0]
    ended = follower.ended(op)
    assert (ended.name, ended.data["code"]) == ("model_error", "internal_error")
    assert manager.generate(REQUEST).model_id == "a"
    assert manager.status().state is State.READY
    assert factory.runners[0].closed_with is None
    assert manager.op(op.op_id).state is OpState.FAILED


# -- deaths -----------------------------------------------------------------------------------------------------------


@GATED
def test_an_engine_that_dies_is_replaced_by_a_load_of_the_same_model(make: Callable[..., Manager], factory: FakeFactory) -> None:
    manager = make()
    follower = start(manager)
    dead = factory.next_load().finish()
    first = follower.until("model_ready")
    dead.die(RuntimeError("llama_decode gave -3"))
    load = factory.next_load()
    assert load.spec.id == "a"
    assert isinstance(dead.closed_with, EngineFailed)
    assert "llama_decode gave -3" in dead.closed_with.message
    assert manager.status().state is State.LOADING
    load.finish()
    op = manager.status().op
    second = follower.ended(op) if op is not None else follower.seen[-1]
    assert second.name == "model_ready"
    assert second.data["op_id"] != first.data["op_id"]
    assert_well_formed(follower.seen)
    dead.die(RuntimeError("late"))  # it left; nobody minds
    assert manager.generate(REQUEST).model_id == "a"


@GATED
def test_a_switch_that_waits_is_not_overtaken_by_the_reload_of_a_dead_engine(
    make: Callable[..., Manager], factory: FakeFactory
) -> None:
    manager = make()
    follower = start(manager)
    load = factory.next_load()
    asked = manager.switch("b")[0]
    load.runner.die(RuntimeError("during the load"))
    load.finish()  # too late: it is dead already
    first = follower.until("model_error")
    assert first.data["code"] == "engine_failed"
    assert isinstance(load.runner.closed_with, EngineFailed)
    load = factory.next_load()
    assert load.spec.id == "b"
    load.finish()
    assert follower.ended(asked).name == "model_ready"
    assert_well_formed(follower.seen)


def test_an_engine_that_dies_too_often_leaves_an_error_until_somebody_asks(
    make: Callable[..., Manager], factory: FakeFactory
) -> None:
    manager, follower = started(make)
    for n_deaths in range(1, MAX_RELOADS + 1):
        factory.runners[-1].die(RuntimeError("x"))
        op_id = follower_nth_ready(follower, n_deaths + 1)
        assert manager.op(op_id).target_model_id == "a"
    factory.runners[-1].die(RuntimeError("the last straw"))
    error = follower.until("model_error")
    assert error.data["code"] == "engine_failed"
    assert "died 4 times within 10 minutes" in str(error.data["message"])
    assert "the last straw" in str(error.data["message"])
    assert all(runner.closed_with is not None for runner in factory.runners)
    status = manager.status()
    assert (status.state, status.generation) == (State.ERROR, 4)
    assert follower.ended(manager.switch("a")[0]).name == "model_ready"
    assert_well_formed(follower.seen)


def follower_nth_ready(follower: Follower, n: int) -> str:
    while len(ready := [event for event in follower.seen if event.name == "model_ready"]) < n:
        events = follower.subscription.take(DEADLINE_S)
        assert events
        follower.seen += events
    return str(ready[n - 1].data["op_id"])


# -- events and state -------------------------------------------------------------------------------------------------


def test_status_never_lags_behind_an_event(make: Callable[..., Manager]) -> None:
    """Who reads an event finds the status that it tells, or a later one."""
    manager = make()
    follower = start(manager)
    for model_id in "bcab":
        op = manager.switch(model_id)[0]
        while not any(event.name == "model_ready" for event in follower.of(op)):
            events = follower.subscription.take(DEADLINE_S)
            assert events
            status = manager.status()
            follower.seen += events
            if follower.seen[-1].data["op_id"] == op.op_id:
                assert_not_before(follower.seen[-1], status, op)


def assert_not_before(event: Event, status: Status, op: SwitchOp) -> None:
    if event.name == "model_ready":
        assert (status.state, status.current_model, status.op) == (State.READY, op.target_model_id, None)
        assert status.last_op is not None
        assert status.last_op.op_id == op.op_id
    elif status.op is not None:
        assert status.op.op_id == op.op_id
        # While it is checked, the old model answers.
        assert status.state is State.LOADING or event.name == "model_switch_started"


@GATED
def test_a_snapshot_is_what_the_event_it_stands_at_left(make: Callable[..., Manager], factory: FakeFactory) -> None:
    manager = make()
    follower = start(manager)
    load = factory.next_load()
    load.report(Step.MMAP, 7)
    follower.until_at(Step.MMAP, 7)
    first = manager.subscribe(None).first
    assert first is not None
    assert first.status.op is not None
    assert (first.status.state, first.status.op.pct) == (State.LOADING, 7)
    load.finish()
    ready = follower.until("model_ready")
    after = manager.subscribe(None).first
    assert after is not None
    assert (after.id, after.status.state, after.status.load) == (ready.id, State.READY, Load(4, 0, 0))
    replay = manager.subscribe(first.id)
    assert replay.first is None
    assert [event.data.get("pct") for event in replay.take(0)] == [100, 0, 100, None]


def test_every_step_is_logged_with_op_model_and_milliseconds(
    make: Callable[..., Manager], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "modeld.switch")
    started(make)
    lines = [(entry.message, entry.__dict__["model_id"], "ms" in entry.__dict__) for entry in caplog.records]
    assert lines == [
        ("at start: default_model", "a", False),
        ("switch started", "a", False),
        ("unload done", "a", True),
        ("mmap done", "a", True),
        ("warmup done", "a", True),
        ("model ready", "a", True),
    ]
    assert len({entry.__dict__["op_id"] for entry in caplog.records[1:]}) == 1


# -- the end ----------------------------------------------------------------------------------------------------------


def test_close_frees_the_model_and_refuses_what_comes_after(make: Callable[..., Manager], factory: FakeFactory) -> None:
    manager, follower = started(make)
    manager.close()
    assert isinstance(factory.runners[0].closed_with, ShuttingDown)
    assert factory.runners[0].closed_by == "modeld-switch"
    calls: list[Callable[[], object]] = [
        lambda: manager.switch("b")[0],
        lambda: manager.generate(REQUEST),
        lambda: manager.subscribe(None),
    ]
    for call in calls:
        with pytest.raises(ShuttingDown):
            call()
    status = manager.status()
    assert (status.state, status.current_model) == (State.ERROR, None)
    with pytest.raises(SubscriptionEnded):
        follower.subscription.take(None)
    manager.close()


@GATED
def test_close_during_a_load_cancels_it_and_what_waits(make: Callable[..., Manager], factory: FakeFactory) -> None:
    manager = make()
    follower = start(manager)
    load = factory.next_load()
    waiting = [manager.switch("b")[0], manager.switch("c")[0]]
    running = manager.status().op
    assert running is not None
    with ThreadPoolExecutor(2) as pool:
        closings = [pool.submit(manager.close) for _ in range(2)]
        n = 0
        while load.report(Step.MMAP, n):  # until the manager has heard of the stop
            n = min(n + 1, 99)
        load.fail(LoadFailed("the load was told to end"))
        for closing in closings:
            closing.result(DEADLINE_S)
    for op in (running, *waiting):
        ended = follower.ended(op)
        assert (ended.name, ended.data["code"]) == ("model_error", "op_cancelled")
        record = manager.op(op.op_id)
        assert record.state is OpState.CANCELLED
        assert record.error is not None
        assert (record.error.code, record.error.op_id) == ("op_cancelled", op.op_id)
    assert_well_formed(follower.seen)
    assert factory.runners == []


@GATED
def test_a_load_that_succeeds_in_spite_of_close_is_closed_again(make: Callable[..., Manager], factory: FakeFactory) -> None:
    manager = make()
    follower = start(manager)
    load = factory.next_load()
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(manager.close)
        while load.report(Step.WARMUP, 0):
            pass
        runner = load.finish()
        closing.result(DEADLINE_S)
    assert runner.closed_with is not None
    assert follower.until("model_error").data["code"] == "op_cancelled"
    assert not [event for event in follower.seen if event.name == "model_ready"]


def test_close_before_start_cancels_the_load_at_start(make: Callable[..., Manager], factory: FakeFactory) -> None:
    manager = make()
    follower = Follower(manager.subscribe(None))
    manager.switch("b")[0]
    manager.close()
    manager.close()
    while True:
        try:
            follower.seen += follower.subscription.take(0)
        except SubscriptionEnded:
            break
    assert [(event.name, event.data["target_model_id"], event.data["code"]) for event in follower.seen] == [
        ("model_error", "a", "op_cancelled"),
        ("model_error", "b", "op_cancelled"),
    ]
    assert factory.runners == []


@GATED
def test_close_gives_up_on_a_load_that_does_not_listen(
    make: Callable[..., Manager], factory: FakeFactory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(manager_module, "CLOSE_TIMEOUT_S", 0.05)
    manager = make()
    follower = start(manager)
    load = factory.next_load()
    manager.close()
    assert "does not end" in caplog.text
    follower.seen += follower.subscription.take(None)
    with pytest.raises(SubscriptionEnded):
        follower.subscription.take(None)
    runner = load.finish()  # it ends some time; what it opened is closed then
    monkeypatch.setattr(manager_module, "CLOSE_TIMEOUT_S", DEADLINE_S)
    manager.close()
    assert isinstance(runner.closed_with, ModeldError)


def test_a_fault_that_ends_the_switch_thread_ends_everything_in_order(
    make: Callable[..., Manager], factory: FakeFactory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    manager, follower = started(make)

    def perform(task: object) -> None:
        waiting.append(manager.switch("c")[0])
        raise RuntimeError("a fault of ours")

    waiting: list[SwitchOp] = []
    monkeypatch.setattr(manager, "_perform", perform)
    running = manager.switch("b")[0]
    assert manager._thread is not None
    manager._thread.join(DEADLINE_S)
    assert "a fault of ours" in caplog.text
    for op in (running, *waiting):
        assert follower.ended(op).data["code"] == "op_cancelled"
    assert factory.runners[0].closed_with is not None
    with pytest.raises(ShuttingDown):
        manager.switch("b")[0]
