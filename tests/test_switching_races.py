"""Moments in between: what comes just then must not be lost, leak a model, or end the switch thread."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from modeld.errors import LoadFailed, ModelLoading, NoModel, QueueFull, RequestCancelled
from modeld.manager.manager import Manager
from modeld.policy import OnBusy, OnInflight, Strategy, SwitchOptions, SwitchPolicy
from modeld.types import GenerateRequest, ModelSpec, OpState, Share, State, Step, SwitchOp
from tests.fake_runner import DEADLINE_S, FakeFactory, FakeRunner, Files, Follower, specs
from tests.switch_bench import Make, error_of
from tests.test_state import lifecycle

REQUEST = GenerateRequest("r1", ("hello",))
OVERLAP = SwitchOptions(strategy=Strategy.OVERLAP)
SUPERSEDE = SwitchOptions(on_busy=OnBusy.SUPERSEDE)
AUTO_SWITCH = SwitchPolicy(auto_switch=True, auto_switch_min_stay_s=86_400)

# -- memory -----------------------------------------------------------------------------------------------------------


def test_a_dead_models_memory_counts_as_leaving_when_it_is_loaded_again(bench: Make) -> None:
    is_full = threading.Event()
    b = bench(fits=lambda spec, leaving: "no room" if leaving is None and is_full.is_set() else None)
    dead = b.load("a")
    is_full.set()
    dead.die(RuntimeError("x"))
    b.load("a")
    assert b.manager.status().current_model == "a"


def test_a_switch_is_not_refused_for_the_memory_of_a_model_that_retires(bench: Make) -> None:
    runners: list[FakeRunner] = []
    b = bench(fits=lambda spec, leaving: "no room" if spec.id == "c" and runners[0].closed_with is None else None)
    runners.append(b.load("a"))
    b.manager.generate(REQUEST)
    b.manager.switch("b", OVERLAP)
    b.load("b")
    op, _ = b.manager.switch("c")
    b.load("c")
    assert b.follower.ended(op).name == "model_ready"


# -- what comes while the old model answers still ------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["verify", "probe", "read_ahead"])
def test_messages_and_cancellations_are_heard_before_the_old_model_goes(bench: Make, stage: str) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def slow(spec: ModelSpec, ask: Callable[..., bool]) -> None:
        if spec.id == "b":
            reached.set()
            while not go_on.is_set():
                ask(*{"verify": (1,), "probe": (), "read_ahead": (1, 100)}[stage])

    b = bench(**{stage: slow})
    b.load("a")
    b.manager.switch("b")
    assert reached.wait(DEADLINE_S)
    waiting, _ = b.manager.switch("c")
    b.manager.cancel(waiting.op_id)
    try:
        assert error_of(b, waiting) == ("op_cancelled", None)
        b.manager.reconfigure(specs("a", "b", "d"), "a", SwitchPolicy())
        assert [info.id for info in b.manager.models()] == ["a", "b", "d"]
    finally:
        go_on.set()
    b.load("b")


def test_a_model_that_has_died_is_not_shown_as_the_one_that_answers_while_another_is_loaded_beside_it(bench: Make) -> None:
    b = bench()
    old = b.load("a")
    op, _ = b.manager.switch("b", OVERLAP)
    load = b.factory.next_load()
    old.die(RuntimeError("x"))
    status = b.manager.status()
    assert (status.state, status.current_model) == (State.LOADING, None)
    with pytest.raises(ModelLoading):
        b.manager.generate(REQUEST)
    load.finish()
    assert b.follower.ended(op).name == "model_ready"
    status = b.manager.status()
    assert (status.state, status.current_model) == (State.READY, "b")


def test_a_model_that_dies_as_somebody_switches_to_it_begins_one_op(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench()
    old = b.load("a")
    publish = b.manager._publish

    def dies_first(*args: object, **data: object) -> None:
        monkeypatch.undo()
        old.die(RuntimeError("x"))
        publish(*args, **data)  # type: ignore[arg-type]

    monkeypatch.setattr(b.manager._switcher._teller, "event", dies_first)
    op, _ = b.manager.switch("a")
    b.load("a")
    b.follower.ended(op)
    assert b.names(op).count("model_switch_started") == 1


# -- whose turn it is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_busy", [OnBusy.REJECT, OnBusy.SUPERSEDE])
def test_an_idle_models_unload_gives_way_to_a_switch_that_comes_just_then(
    bench: Make, on_busy: OnBusy, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = bench(SwitchPolicy(on_busy=on_busy, idle_unload_s=3600))
    b.load("a")
    asked: list[SwitchOp] = []

    def just_then(policy: SwitchPolicy) -> float:
        if not asked:
            asked.append(b.manager.switch("b")[0])
        return 0.0

    b.wait(lambda: b.manager._life.is_at_rest())
    monkeypatch.setattr(b.manager._upkeep, "_idle_at", just_then)
    b.manager.look_again()
    b.load("b")
    monkeypatch.undo()
    assert b.follower.ended(asked[0]).name == "model_ready"


def test_a_stop_that_comes_just_before_the_switch_thread_looks_around_is_not_slept_through(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = bench()
    b.load("a")
    life = b.manager._life
    b.wait(life.is_at_rest)
    count = life.ticks

    def stopped_first() -> int:
        life.stop()
        return count()

    monkeypatch.setattr(b.manager._leaving, "act_at", lambda: math.inf)  # nothing else wakes it
    monkeypatch.setattr(life, "ticks", stopped_first)
    b.manager.look_again()
    assert b.manager._thread is not None
    b.manager._thread.join(DEADLINE_S)
    assert not b.manager._thread.is_alive()


def test_an_idle_models_unload_gives_way_to_a_request_that_comes_just_then() -> None:
    life = lifecycle(State.READY)
    idle = life.tenant()
    assert idle is not None
    used_at = idle.used_at
    life.leave(life.enter(None))
    assert life.accept_idle(idle, used_at, SwitchOptions()) is None
    assert life.accept_idle(idle, idle.used_at, SwitchOptions()) is not None


def test_the_end_of_a_request_that_never_was_the_runners_wakes_the_switch_thread() -> None:
    """It tokenized, or was refused: the runner says nothing of it, and an unload or another model may wait for its end."""
    life = lifecycle(State.READY)
    tenant = life.enter(None)
    seen = life.ticks()
    life.leave(tenant)
    assert life.ticks() != seen


def test_supersede_that_joins_an_op_cancels_those_before_it(bench: Make) -> None:
    b = bench()
    b.load("a")
    running, _ = b.manager.switch("b")
    load = b.factory.next_load()
    waiting, _ = b.manager.switch("c")
    last, _ = b.manager.switch("a")
    again, joined = b.manager.switch("a", SUPERSEDE)
    assert (again.op_id, joined) == (last.op_id, True)
    assert b.manager.op(waiting.op_id).state is OpState.CANCELLED
    assert not load.report(Step.MMAP, 1)
    load.fail(LoadFailed("told to end"))
    b.load("a")
    assert error_of(b, running) == ("op_cancelled", None)
    assert b.follower.ended(last).name == "model_ready"


def test_an_op_that_is_being_undone_is_not_joined(bench: Make) -> None:
    b = bench()
    b.load("a")
    failed, _ = b.manager.switch("b")
    b.fail("b")
    back = b.factory.next_load()
    b.wait_at(failed, "rollback")
    again, joined = b.manager.switch("b")
    assert (again.op_id != failed.op_id, joined) == (True, False)
    back.finish()
    b.load("b")
    assert b.follower.ended(again).name == "model_ready"


def test_unload_without_drain_does_not_wait_for_a_model_that_retires(bench: Make) -> None:
    b = bench(SwitchPolicy(strategy=Strategy.AUTO))
    old = b.load("a")
    b.manager.generate(REQUEST)
    b.manager.switch("b")
    b.load("b")
    op, _ = b.manager.unload()
    assert b.follower.ended(op).name == "model_unloaded"
    assert old.n_cut == 1


# -- what is seen -----------------------------------------------------------------------------------------------------


def test_the_snapshot_after_the_load_at_start_was_cancelled_while_it_waited_says_error() -> None:
    manager = Manager(specs("a"), "a", FakeFactory(), Files().host(), version="1")
    follower = Follower(manager.subscribe(None))
    manager.cancel(manager.ops()[0].op_id)
    manager.start()
    follower.until("model_error")
    try:
        first = manager.subscribe(None).first
        assert first is not None
        assert (first.status.state, manager.status().state) == (State.ERROR, State.ERROR)
    finally:
        manager.close()


def test_auto_switch_that_is_turned_off_or_on_without_a_model_changes_the_state(bench: Make) -> None:
    b = bench(AUTO_SWITCH, default=None)
    assert b.manager.status().state is State.READY
    b.manager.reconfigure(specs(*"abc"), None, SwitchPolicy())
    status = b.manager.status()
    assert status.error is not None
    assert (status.state, status.error.code) == (State.ERROR, "no_model")
    first = b.manager.subscribe(None).first
    assert first is not None
    assert first.status.state is State.ERROR
    b.manager.reconfigure(specs(*"abc"), None, AUTO_SWITCH)
    status = b.manager.status()
    assert (status.state, status.error) == (State.READY, None)


# -- requests that wait for a switch ----------------------------------------------------------------------------------------


def test_a_waiting_request_whose_client_left_just_after_its_model_came_holds_nothing_up(bench: Make) -> None:
    b = bench(AUTO_SWITCH)
    b.load("a")
    admission = b.manager.admit(replace(REQUEST, model_id="b"))
    assert admission.wait(0.0) is None
    b.load("b")
    tenant = b.manager._life.tenant()
    assert tenant is not None
    assert tenant.n_entering == 1
    admission.cancel()
    assert tenant.n_entering == 0
    with pytest.raises(RequestCancelled):
        admission.wait()
    op, _ = b.manager.switch("a", SwitchOptions(on_inflight=OnInflight.DRAIN))
    b.load("a")
    assert b.follower.ended(op).name == "model_ready"


def test_a_client_whose_share_of_the_queue_waits_for_a_switch_keeps_nobody_else_out(bench: Make) -> None:
    b = bench(AUTO_SWITCH)
    b.load("a")
    ours = replace(REQUEST, model_id="b", share=Share("ours", 2))
    waiting = [b.manager.admit(ours) for _ in range(2)]
    assert all(admission.wait(0.0) is None for admission in waiting)
    with pytest.raises(QueueFull, match=r"2 requests of this client wait for a switch .* \(limits.max_queued\)"):
        b.manager.admit(ours).wait()
    assert b.manager.admit(replace(ours, share=Share("other", 1))).wait(0.0) is None
    waiting[0].cancel()
    assert b.manager.admit(ours).wait(0.0) is None
    b.manager.switch("b")
    runner = b.load("b")
    assert waiting[1].wait(DEADLINE_S) is not None
    runner.finish()


def test_a_request_does_not_begin_to_wait_once_auto_switch_is_off(bench: Make) -> None:
    b = bench(AUTO_SWITCH)
    b.load("a")
    admission = b.manager.admit(replace(REQUEST, model_id="b"))
    b.manager.reconfigure(specs(*"abc"), "a", SwitchPolicy())
    with pytest.raises(NoModel, match="auto_switch"):
        admission.wait(DEADLINE_S)


def test_a_waiting_request_outlives_a_cancelled_op_where_another_one_brings_its_model(bench: Make) -> None:
    b = bench(AUTO_SWITCH)
    b.load("a")
    b.manager.generate(REQUEST)
    b.manager.switch("b")
    load = b.factory.next_load()
    admission = b.manager.admit(replace(REQUEST, model_id="b"))
    assert admission.wait(0.0) is None
    b.manager.switch("a", SwitchOptions(on_inflight=OnInflight.DRAIN))
    later, _ = b.manager.switch("b")
    b.manager.cancel(later.op_id)
    runner = load.finish()
    assert admission.wait(DEADLINE_S) is not None
    runner.finish()
    b.load("a")


def test_a_request_without_a_name_waits_for_the_model_that_has_just_died(bench: Make) -> None:
    b = bench(AUTO_SWITCH)
    b.load("a")
    b.manager.switch("b")
    b.load("b")
    tenant = b.manager._life.tenant()
    assert tenant is not None
    tenant.death = RuntimeError("x")  # and the switch thread has not been told yet
    assert b.manager._life.demand(None, "a", Share()).model_id == "b"
    b.manager.look_again()
    b.load("b")


def test_an_op_that_fails_at_once_and_brings_the_model_before_back_begins_with_its_first_event(bench: Make) -> None:
    b = bench()
    b.load("a")
    b.manager.switch("b")
    load = b.factory.next_load()
    op, _ = b.manager.switch("c", SUPERSEDE)
    b.manager.reconfigure(specs("a", "b"), "a", SwitchPolicy())
    load.fail(LoadFailed("told to end"))
    b.load("a")
    assert error_of(b, op) == ("model_load_failed", "a")
    assert b.names(op)[0] == "model_switch_started"


# -- faults of what the manager calls -------------------------------------------------------------------------------------


def test_a_runner_whose_on_idle_fails_is_closed_and_the_old_model_comes_back(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = bench()
    b.load("a")
    op, _ = b.manager.switch("b")
    load = b.factory.next_load()
    monkeypatch.setattr(load.runner, "on_idle", broken)
    load.finish()
    b.load("a")
    assert error_of(b, op) == ("internal_error", "a")
    assert load.runner.freed


def test_a_fault_while_a_load_runs_leaves_nothing_open(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench()
    b.load("a")
    op, _ = b.manager.switch("b", OVERLAP)
    load = b.factory.next_load()

    def fails_once(*args: object) -> None:
        monkeypatch.undo()
        broken()

    monkeypatch.setattr(b.manager._life, "step", fails_once)
    load.report(Step.MMAP, 50)
    assert error_of(b, op) == ("internal_error", None)
    late = load.finish()
    assert late.was_freed.wait(DEADLINE_S)


def test_a_file_that_cannot_be_looked_at_ends_the_rollback_and_not_the_daemon(bench: Make) -> None:
    b = bench()
    b.load("a")
    op, _ = b.manager.switch("b")
    load = b.factory.next_load()
    b.files.error = RuntimeError("a bug in the reader")
    load.fail(LoadFailed("broken"))
    event = b.follower.ended(op)
    assert "did not come back: a bug in the reader" in str(event.data["message"])
    assert b.manager.status().state is State.ERROR
    b.files.error = None
    op, _ = b.manager.switch("b")
    b.load("b")
    assert b.follower.ended(op).name == "model_ready"


def broken(*args: object) -> None:
    raise RuntimeError("a fault")


# -- the end ------------------------------------------------------------------------------------------------------------


def test_a_message_that_comes_as_the_switch_thread_ends_is_not_waited_for(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench()
    b.load("a")
    late = threading.Event()
    stopped = b.manager._life.stopped

    def posts_first(*args: object) -> None:
        b.manager._life.post(late.set)  # after the last look at the messages
        stopped(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(b.manager._life, "stopped", posts_first)
    b.manager.close()
    assert late.is_set()
    later = threading.Event()
    b.manager._on_switch_thread(later.set)
    assert later.is_set()


def test_status_survives_a_reload_that_takes_a_suspect_away(bench: Make) -> None:
    b = bench()
    b.load("a")

    class Vanishing(dict[str, ModelSpec]):
        def __contains__(self, key: object) -> bool:
            b.manager._registry = {}  # a reload, just now
            return super().__contains__(key)

    b.manager._memory.trying("b", None)
    b.manager._memory.remembered = b.manager._memory.remembered.after_death(0.0)
    registry = b.manager._registry
    b.manager._registry = Vanishing(registry)
    assert b.manager.status().quarantined == ()
    b.manager._registry = registry
