"""The choices of a switch, on a fake factory with gates: drain, supersede, rollback, overlap, cooldown, demand, reload."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from modeld.errors import (
    GenerationMismatch,
    InsufficientMemory,
    LoadFailed,
    ModelCooldown,
    ModelLoading,
    ModelNotLoaded,
    ModelQuarantined,
    ModelSwitched,
    NoModel,
    NotFound,
    OpEnded,
    ProbeFailed,
    RequestCancelled,
    ShuttingDown,
    SwitchRejected,
)
from modeld.manager import leaving
from modeld.manager.statefile import StateFile
from modeld.policy import OnBusy, OnFailure, OnInflight, Strategy, SwitchOptions, SwitchPolicy
from modeld.types import GenerateRequest, ModelSpec, OpKind, OpReason, OpState, Phase, State, Step
from tests.fake_runner import DEADLINE_S, specs
from tests.switch_bench import Bench, Make, error_of

REQUEST = GenerateRequest("r1", ("hello",))
DRAIN = SwitchOptions(on_inflight=OnInflight.DRAIN)
OVERLAP = SwitchOptions(strategy=Strategy.OVERLAP)
AUTO = SwitchOptions(strategy=Strategy.AUTO)


# -- on_inflight ------------------------------------------------------------------------------------------------------


def test_drain_lets_running_requests_end_before_the_model_goes(bench: Make) -> None:
    b = bench()
    old = b.load("a")
    for _ in range(2):
        b.manager.generate(REQUEST)
    op, _ = b.manager.switch("b", DRAIN)
    b.wait_at(op, "drain")
    assert b.manager.status().state is State.LOADING
    with pytest.raises(ModelLoading, match="drain 0 %"):
        b.manager.generate(REQUEST)
    old.finish()
    assert old.closed_with is None
    old.finish()
    b.load("b")
    assert (b.follower.ended(op).name, old.n_cut) == ("model_ready", 0)
    phases = [(e.data["phase"], e.data["pct"], e.data["n_running"]) for e in b.follower.of(op) if e.name == "model_switch_phase"]
    assert phases == [("drain", 0, 2), ("drain", 100, 0)]
    assert "drain" in b.manager.op(op.op_id).steps_ms


def test_a_drain_that_takes_too_long_cuts_what_still_runs(bench: Make) -> None:
    b = bench()
    old = b.load("a")
    b.manager.generate(REQUEST)
    op, _ = b.manager.switch("b", replace(DRAIN, drain_timeout_s=0.05))
    b.load("b")
    assert b.follower.ended(op).name == "model_ready"
    assert old.n_cut == 1
    assert isinstance(old.closed_with, ModelSwitched)


def test_a_drain_waits_for_requests_that_are_still_on_their_way_in(bench: Make) -> None:
    b = bench()
    old = b.load("a")
    tenant = b.manager._life.enter(None)  # let in, and being tokenized before the runner counts it
    op, _ = b.manager.switch("b", DRAIN)
    b.wait_at(op, "drain")
    assert old.closed_with is None
    b.manager._life.leave(tenant)
    b.load("b")
    assert b.follower.ended(op).name == "model_ready"


def test_a_cancelled_drain_leaves_the_model_as_it_was(bench: Make) -> None:
    b = bench()
    old = b.load("a")
    b.manager.generate(REQUEST)
    op, _ = b.manager.switch("b", DRAIN)
    b.wait_at(op, "drain")
    assert b.manager.cancel(op.op_id).cancelling
    assert error_of(b, op) == ("op_cancelled", None)
    status = b.manager.status()
    assert (status.state, status.current_model, status.generation, status.error) == (State.READY, "a", 1, None)
    assert (old.closed_with, old.n_open) == (None, 1)
    b.manager.generate(REQUEST)


def test_a_stop_in_a_drain_tells_the_requests_of_the_stop(bench: Make) -> None:
    b = bench()
    old = b.load("a")
    b.manager.generate(REQUEST)
    op, _ = b.manager.switch("b", DRAIN)
    b.wait_at(op, "drain")
    b.manager.close()
    assert isinstance(old.closed_with, ShuttingDown)
    assert b.manager.op(op.op_id).state is OpState.CANCELLED


def test_an_engine_that_dies_while_it_is_drained_ends_the_drain(bench: Make) -> None:
    b = bench()
    old = b.load("a")
    b.manager.generate(REQUEST)
    op, _ = b.manager.switch("b", DRAIN)
    b.wait_at(op, "drain")
    old.die(RuntimeError("x"))
    b.load("b")
    assert b.follower.ended(op).name == "model_ready"


# -- on_busy, joining, If-Match -----------------------------------------------------------------------------------------


def test_a_switch_to_the_target_of_the_last_accepted_op_joins_it(bench: Make) -> None:
    b = bench()
    first = b.factory.next_load()
    running = b.manager.status().op
    assert running is not None
    assert b.manager.switch("a")[0].op_id == running.op_id
    to_b, joined = b.manager.switch("b")
    assert not joined
    again, joined = b.manager.switch("b")
    assert (again.op_id, joined) == (to_b.op_id, True)
    back, joined = b.manager.switch("a")  # b was accepted last: this is another op
    assert not joined
    first.finish()
    for model_id in "ba":
        b.load(model_id)
    assert b.follower.ended(back).name == "model_ready"


def test_a_cancelled_op_is_not_joined(bench: Make) -> None:
    b = bench()
    b.load("a")
    op, _ = b.manager.switch("b")
    load = b.factory.next_load()
    b.manager.cancel(op.op_id)
    again, joined = b.manager.switch("b")
    assert (again.op_id != op.op_id, joined) == (True, False)
    assert not load.report(Step.MMAP, 1)
    load.fail(LoadFailed("told to end"))
    b.load("a")
    b.load("b")
    assert b.follower.ended(again).name == "model_ready"


def test_reject_refuses_where_others_run_or_wait(bench: Make) -> None:
    b = bench()
    load = b.factory.next_load()
    with pytest.raises(SwitchRejected, match="1 switches run or wait"):
        b.manager.switch("b", SwitchOptions(on_busy=OnBusy.REJECT))
    load.finish()
    b.follower.until("model_ready")
    op, _ = b.manager.switch("b", SwitchOptions(on_busy=OnBusy.REJECT))
    b.load("b")
    assert b.follower.ended(op).name == "model_ready"


def test_supersede_cancels_what_runs_and_waits_and_loads_nothing_in_between(bench: Make) -> None:
    b = bench()
    b.load("a")
    running, _ = b.manager.switch("b")
    load = b.factory.next_load()  # a has gone
    waiting, _ = b.manager.switch("a")
    final, _ = b.manager.switch("c", SwitchOptions(on_busy=OnBusy.SUPERSEDE))
    assert b.manager.op(waiting.op_id).state is OpState.CANCELLED
    assert error_of(b, waiting) == ("op_cancelled", None)  # told while the other op still runs
    assert not load.report(Step.MMAP, 50)
    load.fail(LoadFailed("told to end"))
    b.load("c")
    assert error_of(b, running) == ("op_cancelled", None)
    assert b.follower.ended(final).name == "model_ready"
    assert [runner.spec.id for runner in b.factory.runners] == ["a", "c"]


def test_the_model_before_all_of_them_comes_back_when_the_superseding_switch_fails(bench: Make) -> None:
    b = bench()
    b.load("a")
    b.manager.switch("b")
    load = b.factory.next_load()
    final, _ = b.manager.switch("c", SwitchOptions(on_busy=OnBusy.SUPERSEDE))
    load.report(Step.MMAP, 50)
    load.fail(LoadFailed("told to end"))
    b.fail("c")
    b.load("a")
    assert error_of(b, final) == ("model_load_failed", "a")
    assert b.manager.status().current_model == "a"


def test_the_model_before_comes_back_when_the_superseding_switch_is_cancelled_while_it_waits(bench: Make) -> None:
    b = bench()
    b.load("a")
    b.manager.switch("b")
    load = b.factory.next_load()
    final, _ = b.manager.switch("c", SwitchOptions(on_busy=OnBusy.SUPERSEDE))
    b.manager.cancel(final.op_id)
    load.report(Step.MMAP, 50)
    load.fail(LoadFailed("told to end"))
    b.load("a")
    b.wait(lambda: b.manager.status().state is State.READY)
    assert b.manager.status().current_model == "a"
    assert error_of(b, final) == ("op_cancelled", None)


def test_if_match_refuses_where_somebody_has_switched_meanwhile(bench: Make) -> None:
    b = bench()
    b.load("a")
    with pytest.raises(GenerationMismatch, match="the generation is 1, If-Match says 7"):
        b.manager.switch("b", if_match=7)
    assert b.manager.status().queued_ops == 0
    b.manager.switch("b", if_match=1)
    b.load("b")


# -- cancelling -------------------------------------------------------------------------------------------------------


def test_an_op_that_waits_is_cancelled_at_once_and_told_in_the_middle_of_another(bench: Make) -> None:
    b = bench()
    load = b.factory.next_load()
    op, _ = b.manager.switch("b")
    assert b.manager.cancel(op.op_id).state is OpState.CANCELLED
    assert error_of(b, op) == ("op_cancelled", None)
    assert b.names(op) == ["model_error"]
    with pytest.raises(OpEnded):
        b.manager.cancel(op.op_id)
    with pytest.raises(NotFound):
        b.manager.cancel("op-0")
    load.finish()
    b.follower.until("model_ready")


def test_cancelling_in_mid_load_brings_the_old_model_back(bench: Make) -> None:
    b = bench()
    b.load("a")
    op, _ = b.manager.switch("b", SwitchOptions(on_failure=OnFailure.ERROR))  # which is about failures
    load = b.factory.next_load()
    load.report(Step.MMAP, 20)
    b.manager.cancel(op.op_id)
    assert not load.report(Step.MMAP, 30)
    load.fail(LoadFailed("told to end"))
    b.load("a")
    assert error_of(b, op) == ("op_cancelled", "a")
    status = b.manager.status()
    assert (status.state, status.current_model, status.error) == (State.READY, "a", None)
    assert b.manager.op(op.op_id).state is OpState.CANCELLED


def test_cancelling_the_load_at_start_leaves_no_model(bench: Make) -> None:
    b = bench()
    load = b.factory.next_load()
    op = b.manager.status().op
    assert op is not None
    b.manager.cancel(op.op_id)
    load.report(Step.MMAP, 1)
    load.fail(LoadFailed("told to end"))
    assert error_of(b, op) == ("op_cancelled", None)
    assert b.manager.status().state is State.ERROR


@pytest.mark.parametrize("stage", ["verify", "probe", "read_ahead"])
def test_cancelling_while_the_old_model_answers_takes_nothing_away(bench: Make, stage: str) -> None:
    reached, told = threading.Event(), threading.Event()

    def slow(spec: ModelSpec, go_on: Callable[..., bool]) -> None:
        if spec.id != "b":
            return
        reached.set()
        arguments = {"verify": (1,), "probe": (), "read_ahead": (1, 100)}[stage]
        deadline = time.monotonic() + DEADLINE_S
        while go_on(*arguments):
            assert time.monotonic() < deadline
        told.set()
        raise LoadFailed("ended before its time")

    b = bench(**{stage: slow})
    old = b.load("a")
    op, _ = b.manager.switch("b")
    assert reached.wait(DEADLINE_S)
    assert b.manager.status().state is State.READY
    assert b.manager.generate(REQUEST).model_id == "a"
    b.manager.cancel(op.op_id)
    if stage == "probe":  # says itself that it was told to end
        assert told.wait(DEADLINE_S)
        b.follower.ended(op)
    else:
        assert error_of(b, op) == ("op_cancelled", None)
    assert (old.closed_with, b.manager.status().current_model) == (None, "a")


# -- memory that comes back -----------------------------------------------------------------------------------------------


def test_with_room_for_both_the_old_model_is_freed_after_the_switch(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "FREE_AFTER_S", 0.0)
    given_back = threading.Event()
    b = bench(has_room=lambda spec: True, give_back=given_back.set)
    old = b.load("a")
    op, _ = b.manager.switch("b")
    load = b.factory.next_load()
    load.report(Step.MMAP, 50)
    assert (old.closed_with is not None, old.freed) == (True, False)
    load.finish()
    assert b.follower.ended(op).name == "model_ready"
    assert old.was_freed.wait(DEADLINE_S)
    assert given_back.wait(DEADLINE_S)


def test_what_waits_to_be_freed_is_freed_before_the_next_op_counts_memory(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "FREE_AFTER_S", 86_400.0)
    b = bench(has_room=lambda spec: True)
    old = b.load("a")
    b.manager.switch("b")
    b.load("b")
    assert not old.freed
    b.manager.switch("c")
    b.load("c")
    assert old.freed


def test_what_waits_to_be_freed_is_freed_before_a_rollback(bench: Make) -> None:
    b = bench(has_room=lambda spec: True)
    old = b.load("a")
    op, _ = b.manager.switch("b")
    b.fail("b")
    load = b.factory.next_load()
    assert old.freed
    load.finish()
    assert error_of(b, op) == ("model_load_failed", "a")


# -- rollback ---------------------------------------------------------------------------------------------------------


def test_a_failed_load_brings_the_model_before_back_and_says_so(bench: Make) -> None:
    b = bench()
    b.load("a")
    op, _ = b.manager.switch("b")
    b.fail("b", "cannot load b: no such tensor")
    load = b.factory.next_load()
    assert (load.spec.id, b.manager.status().state) == ("a", State.LOADING)
    load.report(Step.MMAP, 50)
    load.finish()
    assert error_of(b, op) == ("model_load_failed", "a")
    status = b.manager.status()
    assert (status.state, status.current_model, status.generation) == (State.READY, "a", 2)
    assert status.error is not None
    assert (status.error.code, status.error.model_id) == ("model_load_failed", "b")  # kept until the next one succeeds
    assert b.manager.generate(REQUEST).model_id == "a"
    ended = b.manager.op(op.op_id)
    assert (ended.state, ended.rolled_back_to) == (OpState.FAILED, "a")
    pcts = [int(str(e.data["pct"])) for e in b.follower.of(op) if e.data.get("phase") == "rollback"]
    assert (pcts[0], pcts[-1], pcts) == (0, 100, sorted(set(pcts)))
    again, _ = b.manager.switch("b")
    b.load("b")
    b.follower.ended(again)
    assert b.manager.status().error is None


def test_a_rollback_that_fails_names_both_reasons(bench: Make) -> None:
    b = bench()
    b.load("a")
    op, _ = b.manager.switch("b")
    b.fail("b", "broken b")
    b.fail("a", "broken a")
    event = b.follower.ended(op)
    assert "broken b; and the model before, 'a', did not come back: broken a" in str(event.data["message"])
    assert "rolled_back_to" not in event.data
    assert b.manager.status().state is State.ERROR


def test_a_failed_first_load_falls_back_on_the_default_model(bench: Make, tmp_path: Path) -> None:
    first = bench(folder=tmp_path)
    first.load("a")
    first.manager.switch("b")
    first.load("b")
    first.manager.close()
    b = bench(folder=tmp_path)
    b.fail("b")  # what answered last
    b.load("a")
    assert b.follower.until("model_error").data["rolled_back_to"] == "a"


def test_a_missing_file_fails_while_the_old_model_answers(bench: Make) -> None:
    b = bench()
    old = b.load("a")
    b.files.mtime["b"] = None
    op, _ = b.manager.switch("b")
    assert error_of(b, op) == ("model_load_failed", None)
    assert (old.closed_with, b.manager.status().state) == (None, State.READY)
    assert b.names(op) == ["model_switch_started", "model_error"]


# -- stalls -----------------------------------------------------------------------------------------------------------


def test_a_load_without_progress_is_given_up_and_the_old_model_comes_back(bench: Make) -> None:
    b = bench(replace(SwitchPolicy(), load_stall_timeout_s=1))
    b.load("a")
    op, _ = b.manager.switch("b")
    stuck = b.factory.next_load()
    b.factory.forget_running()
    b.load("a")
    assert error_of(b, op) == ("load_stalled", "a")
    assert b.manager.generate(REQUEST).model_id == "a"
    late = stuck.finish()  # it comes to something after all: that is closed and freed by its own thread
    late.was_freed.wait(DEADLINE_S)
    assert late.freed


def test_a_disk_that_hangs_costs_nobody_anything(bench: Make) -> None:
    hangs, healed = threading.Event(), threading.Event()

    def read_ahead(spec: ModelSpec, on_progress: Callable[[int, int], bool]) -> None:
        if spec.id == "b":
            on_progress(1, 100)
            hangs.set()
            assert healed.wait(DEADLINE_S)

    b = bench(replace(SwitchPolicy(), load_stall_timeout_s=1), read_ahead=read_ahead)
    old = b.load("a")
    op, _ = b.manager.switch("b")
    assert hangs.wait(DEADLINE_S)
    waiting, _ = b.manager.switch("c")
    b.manager.cancel(waiting.op_id)
    assert error_of(b, waiting) == ("op_cancelled", None)  # the switch thread listens
    b.manager.reconfigure(specs(*"abcd"), "a", SwitchPolicy())
    assert error_of(b, op) == ("load_stalled", None)
    assert (old.closed_with, b.manager.generate(REQUEST).model_id) == (None, "a")
    healed.set()


# -- overlap ----------------------------------------------------------------------------------------------------------


def test_overlap_answers_all_the_time_and_lets_the_old_requests_end(bench: Make) -> None:
    b = bench()
    old = b.load("a")
    b.manager.generate(REQUEST)
    op, _ = b.manager.switch("b", OVERLAP)
    load = b.factory.next_load()
    load.report(Step.MMAP, 50)
    b.follower.until_at(Step.MMAP, 50)
    status = b.manager.status()
    assert (status.state, status.current_model) == (State.READY, "a")
    assert b.manager.generate(REQUEST).model_id == "a"
    load.finish()
    b.follower.ended(op)
    status = b.manager.status()
    assert (status.state, status.current_model, status.retiring_model) == (State.READY, "b", "a")
    assert b.manager.generate(REQUEST).model_id == "b"
    assert (old.closed_with, old.n_open) == (None, 2)
    old.finish(2)
    assert b.follower.until("model_unloaded").data["model_id"] == "a"
    assert (old.n_cut, old.freed, b.manager.status().retiring_model) == (0, True, None)
    started = b.follower.of(op)[0]
    assert (started.data["steps"], started.data["strategy"]) == (["mmap", "warmup"], "overlap")
    assert {e.data.get("step") for e in b.follower.of(op)} == {None, "mmap", "warmup"}


def test_an_overlap_that_fails_or_is_cancelled_leaves_the_old_model_untouched(bench: Make) -> None:
    b = bench()
    old = b.load("a")
    op, _ = b.manager.switch("b", OVERLAP)
    b.fail("b")
    assert error_of(b, op) == ("model_load_failed", None)
    op, _ = b.manager.switch("b", OVERLAP)
    load = b.factory.next_load()
    b.manager.cancel(op.op_id)
    runner = load.finish()  # too late to be of use
    assert error_of(b, op) == ("op_cancelled", None)
    assert (runner.freed, old.closed_with, b.manager.status().current_model) == (True, None, "a")


def test_a_replaced_model_is_cut_when_its_time_is_over(bench: Make) -> None:
    b = bench()
    old = b.load("a")
    b.manager.generate(REQUEST)
    b.manager.switch("b", replace(OVERLAP, drain_timeout_s=0.05))
    b.load("b")
    b.follower.until("model_unloaded")
    assert old.n_cut == 1


def test_a_third_model_waits_until_the_replaced_one_has_gone(bench: Make) -> None:
    b = bench()
    old = b.load("a")
    b.manager.generate(REQUEST)
    b.manager.switch("b", OVERLAP)
    b.load("b")
    op, _ = b.manager.switch("c", OVERLAP)
    b.wait(lambda: b.manager.status().op is not None)
    b.manager._on_switch_thread(lambda: None)  # it has come to where it waits
    running = b.manager.status().op
    assert running is not None
    assert running.phase is Phase.DRAIN  # it says what for
    assert old.closed_with is None
    old.finish()
    b.load("c")
    assert b.follower.ended(op).name == "model_ready"
    assert b.manager.op(op.op_id).steps_ms.keys() == {"drain", "mmap", "warmup"}
    assert old.n_cut == 0


def test_a_replace_closes_a_model_that_still_retires(bench: Make) -> None:
    b = bench()
    old = b.load("a")
    b.manager.generate(REQUEST)
    b.manager.switch("b", OVERLAP)
    b.load("b")
    op, _ = b.manager.switch("c")
    b.load("c")
    assert b.follower.ended(op).name == "model_ready"
    assert old.n_cut == 1


def test_auto_overlaps_where_both_fit_and_replaces_where_they_do_not(bench: Make) -> None:
    room: dict[str, str | None] = {"beside": None}
    b = bench(fits=lambda spec, leaving: room["beside"] if leaving is None and spec.id != "a" else None)
    b.load("a")
    op, _ = b.manager.switch("b", AUTO)
    b.load("b")
    b.follower.ended(op)
    assert b.manager.op(op.op_id).strategy is Strategy.OVERLAP
    room["beside"] = "too large"
    op, _ = b.manager.switch("c", AUTO)
    b.load("c")
    b.follower.ended(op)
    assert b.manager.op(op.op_id).strategy is Strategy.REPLACE


# -- memory, cooldown, probe, quarantine ---------------------------------------------------------------------------------


def test_what_cannot_fit_is_refused_before_anything_is_unloaded(bench: Make) -> None:
    b = bench(fits=lambda spec, leaving: "needs 9 GiB, 2 are there" if spec.id == "b" else None)
    old = b.load("a")
    with pytest.raises(InsufficientMemory, match="needs 9 GiB"):
        b.manager.switch("b")
    with pytest.raises(InsufficientMemory):
        b.manager.switch("b", OVERLAP)
    plan = b.manager.plan("b", SwitchOptions())
    assert plan.error is not None
    assert (plan.action, plan.error.code, plan.leaves) == ("load", "insufficient_memory", "a")
    assert old.closed_with is None
    to_c, _ = b.manager.switch("c")
    queued, _ = b.manager.switch("b")  # not alone: found out when its turn comes
    b.load("c")
    assert b.follower.ended(to_c).name == "model_ready"
    assert error_of(b, queued) == ("insufficient_memory", None)
    assert b.manager.status().current_model == "c"
    forced, _ = b.manager.switch("b", SwitchOptions(force=True))
    b.load("b")
    assert b.follower.ended(forced).name == "model_ready"


def test_a_model_that_fails_again_and_again_has_to_wait_until_its_file_changes_or_force(bench: Make) -> None:
    b = bench(replace(SwitchPolicy(), cooldown_failures=2, cooldown_s=600))
    b.load("a")
    for _ in range(2):
        op, _ = b.manager.switch("b")
        b.fail("b", "broken")
        b.load("a")
        b.follower.ended(op)
    with pytest.raises(ModelCooldown, match=r"failed 2 times in a row .* the last reason: broken") as refused:
        b.manager.switch("b")
    assert 590 < (refused.value.retry_after_s or 0) <= 600
    plan = b.manager.plan("b", SwitchOptions())
    assert plan.error is not None
    assert plan.error.code == "model_cooldown"
    to_c, _ = b.manager.switch("c")
    queued, _ = b.manager.switch("b")
    b.load("c")
    b.follower.ended(to_c)
    assert error_of(b, queued) == ("model_cooldown", None)
    b.files.mtime["b"] = 2  # somebody has mended it
    op, _ = b.manager.switch("b")
    b.fail("b")
    b.load("c")
    b.follower.ended(op)
    b.files.mtime["b"] = 1
    op, _ = b.manager.switch("b", SwitchOptions(force=True))
    b.load("b")
    assert b.follower.ended(op).name == "model_ready"
    b.manager.switch("a")
    b.load("a")
    b.manager.switch("b")  # it has succeeded: all is forgotten
    b.load("b")


def test_a_file_is_probed_once_and_a_failed_probe_costs_nothing(bench: Make) -> None:
    probed: list[str] = []

    def probe(spec: ModelSpec, go_on: Callable[[], bool]) -> None:
        probed.append(spec.id)
        if spec.id == "b":
            raise ProbeFailed("the process that tried it ended by SIGABRT")

    b = bench(probe=probe)
    old = b.load("a")
    op, _ = b.manager.switch("b")
    assert error_of(b, op) == ("probe_failed", None)
    assert (old.closed_with, b.manager.status().state) == (None, State.READY)
    for model_id in "cac":
        op, _ = b.manager.switch(model_id)
        b.load(model_id)
        b.follower.ended(op)
    assert probed == ["a", "b", "c"]
    b.files.mtime["a"] = 2
    op, _ = b.manager.switch("a")
    b.load("a")
    b.follower.ended(op)
    assert probed == ["a", "b", "c", "a"]


def test_a_probe_that_has_no_room_is_left_out_and_the_log_says_so(bench: Make, caplog: pytest.LogCaptureFixture) -> None:
    def fits(spec: ModelSpec, leaving: ModelSpec | None) -> str | None:
        return "no room for two" if leaving is None and spec.id == "b" else None

    b = bench(probe=lambda spec, go_on: None, fits=fits)
    b.load("a")
    b.manager.switch("b")
    b.load("b")
    assert "was not tried in a process of its own first: no room for two" in caplog.text


def test_a_model_that_ended_the_process_twice_is_quarantined_until_it_is_lifted(bench: Make, tmp_path: Path) -> None:
    b = bench(folder=tmp_path)
    b.load("a")
    b.manager.close()
    for _ in range(2):  # as the process leaves it that dies in a load
        memory = StateFile(tmp_path)
        memory.trying("b", (1, 2, 3, 1))
        memory.close()
    b = bench(folder=tmp_path)
    b.load("a")
    assert b.manager.status().quarantined == ("b",)
    with pytest.raises(ModelQuarantined, match="2 times in a row"):
        b.manager.switch("b")
    with pytest.raises(NotFound):
        b.manager.lift_quarantine("c")
    b.manager.lift_quarantine("b")
    assert b.manager.status().quarantined == ()
    op, _ = b.manager.switch("b")
    b.load("b")
    assert b.follower.ended(op).name == "model_ready"


# -- unload, restart, history --------------------------------------------------------------------------------------------


def test_unload_leaves_no_model_and_the_next_start_none_either(bench: Make, tmp_path: Path) -> None:
    b = bench(folder=tmp_path)
    old = b.load("a")
    b.manager.generate(REQUEST)
    op, _ = b.manager.unload()
    ended = b.follower.ended(op)
    assert (ended.name, ended.data["model_id"], ended.data["target_model_id"]) == ("model_unloaded", "a", None)
    assert isinstance(old.closed_with, ModelSwitched)
    assert (old.freed, old.n_cut) == (True, 1)
    status = b.manager.status()
    assert status.error is not None
    assert (status.state, status.error.code) == (State.ERROR, "no_model")
    assert b.manager.op(op.op_id).kind is OpKind.UNLOAD
    nothing, _ = b.manager.unload()
    assert b.follower.ended(nothing).data["model_id"] is None
    b.manager.close()
    again = bench(folder=tmp_path)
    assert again.manager.status().state is State.ERROR
    history = again.manager.ops()
    assert [(o.op_id, o.state, o.kind) for o in history[:2]] == [
        (nothing.op_id, OpState.SUCCEEDED, OpKind.UNLOAD),
        (op.op_id, OpState.SUCCEEDED, OpKind.UNLOAD),
    ]
    assert again.manager.op(op.op_id).steps_ms.keys() == {"unload"}


def test_a_start_loads_what_answered_last(bench: Make, tmp_path: Path) -> None:
    b = bench(folder=tmp_path)
    b.load("a")
    b.manager.switch("c")
    b.load("c")
    b.manager.close()
    again = bench(folder=tmp_path)
    again.load("c")
    assert again.manager.ops()[0].reason is OpReason.START


def test_a_switch_to_what_is_loaded_is_later_than_an_edit_of_the_default(bench: Make, tmp_path: Path) -> None:
    b = bench(folder=tmp_path)
    b.load("a")
    b.manager.reconfigure(specs(*"abc"), "b", SwitchPolicy())
    op, _ = b.manager.switch("a")
    b.follower.ended(op)
    b.manager.close()
    bench(folder=tmp_path, default="b").load("a")


def test_what_answers_is_remembered_before_anybody_can_see_it(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench()
    life, seen = b.manager._life, []

    def spied(name: str) -> None:
        real = getattr(life, name)

        def spy(*args: object, **named: object) -> object:
            seen.append((name, b.memory.remembered.wanted, b.memory.remembered.trying))
            return real(*args, **named)

        monkeypatch.setattr(life, name, spy)

    for name in ("loaded", "restored", "emptied"):
        spied(name)
    b.load("a")
    op, _ = b.manager.switch("b")
    b.fail("b")
    b.load("a")
    assert b.follower.ended(op).name == "model_error"
    b.follower.ended(b.manager.unload()[0])
    assert seen == [("loaded", "a", None), ("restored", "a", None), ("emptied", None, None)]


def test_a_load_that_is_cancelled_when_it_is_done_is_not_remembered(bench: Make) -> None:
    b = bench()
    b.load("a")
    op, _ = b.manager.switch("b", OVERLAP)
    load = b.factory.next_load()
    b.manager.cancel(op.op_id)
    load.finish()
    assert b.follower.ended(op).data["code"] == "op_cancelled"
    assert (b.memory.remembered.wanted, b.memory.remembered.trying) == ("a", None)


def tried(b: Bench) -> str | None:
    trying = b.memory.remembered.trying
    return trying.model_id if trying is not None else None


def test_a_process_that_ends_in_a_drain_has_not_tried_the_next_model(bench: Make) -> None:
    b = bench()
    old = b.load("a")
    b.manager.generate(REQUEST)
    op, _ = b.manager.switch("b", DRAIN)
    b.wait_at(op, "drain")
    assert tried(b) is None
    old.finish()
    load = b.factory.next_load()
    assert tried(b) == "b"
    load.finish()
    assert b.follower.ended(op).name == "model_ready"


def test_a_waiter_gets_the_op_when_it_ends_and_sooner_when_nobody_waits(bench: Make) -> None:
    b = bench()
    b.load("a")
    op, _ = b.manager.switch("b")
    load = b.factory.next_load()
    assert b.manager.wait_op(op.op_id, 0.0, lambda: False).state is OpState.RUNNING
    gone = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        waits = [pool.submit(b.manager.wait_op, op.op_id, DEADLINE_S, asked) for asked in (gone.is_set, lambda: False)]
        gone.set()
        b.manager.look_again()
        assert waits[0].result(DEADLINE_S).state is OpState.RUNNING
        load.finish()
        assert waits[1].result(DEADLINE_S).state is OpState.SUCCEEDED


def test_what_a_switch_took_is_counted(bench: Make) -> None:
    b = bench()
    b.load("a")
    b.manager.switch("b")
    b.fail("b")
    b.load("a")
    b.follower.until("model_error")
    b.manager.close()
    assert b.manager.metrics.ops() == {("switch", "start", "succeeded"): 1, ("switch", "request", "failed"): 1}
    seconds = b.manager.metrics.seconds()
    assert {name: histogram.n for name, histogram in seconds.items()} == {
        "unload": 2, "mmap": 1, "warmup": 1, "rollback": 1, "total": 2,
    }  # fmt: skip


# -- auto_switch, idle ----------------------------------------------------------------------------------------------------


def asked(b: Bench, pool: ThreadPoolExecutor, model_id: str | None, n: int = 1) -> list[Future[str]]:
    """Requests that name the model, each on a thread; all wait when this returns."""
    before = b.manager.status().waiting
    futures = [pool.submit(lambda: b.manager.generate(replace(REQUEST, model_id=model_id)).model_id) for _ in range(n)]
    b.wait(lambda: b.manager.status().waiting >= before + n or b.manager.status().op is not None)
    return futures


def test_a_request_for_another_model_switches_to_it_and_those_for_one_model_are_answered_together(bench: Make) -> None:
    b = bench(replace(SwitchPolicy(), auto_switch=True))
    old = b.load("a")
    with ThreadPoolExecutor(4) as pool:
        answers = asked(b, pool, "b", 3)
        runner = b.load("b")
        assert [answer.result(DEADLINE_S) for answer in answers] == ["b"] * 3
    assert (runner.n_open, old.n_cut) == (3, 0)
    assert b.manager.ops()[0].reason is OpReason.AUTO


def test_a_busy_model_stays_for_a_while_and_is_drained(bench: Make) -> None:
    b = bench(replace(SwitchPolicy(), auto_switch=True, auto_switch_min_stay_s=86_400))
    old = b.load("a")
    b.manager.generate(REQUEST)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(lambda: b.manager.generate(replace(REQUEST, model_id="b")).model_id)
        b.wait(lambda: b.manager.status().waiting == 1)
        assert b.manager.status().op is None  # a has not stayed for a day
        assert b.manager.generate(replace(REQUEST, model_id="a")).model_id == "a"
        old.finish(2)  # nothing to do any more: no reason to stay
        b.load("b")
        assert future.result(DEADLINE_S) == "b"
    assert old.n_cut == 0


def test_a_request_that_waits_is_told_why_its_model_will_not_come(bench: Make) -> None:
    b = bench(replace(SwitchPolicy(), auto_switch=True))
    b.load("a")
    with ThreadPoolExecutor(1) as pool:
        (future,) = asked(b, pool, "b")
        b.fail("b", "broken")
        b.load("a")
        with pytest.raises(NoModel, match="'b' could not be loaded: broken"):
            future.result(DEADLINE_S)


def test_a_waiting_request_whose_client_left_is_withdrawn(bench: Make) -> None:
    b = bench(replace(SwitchPolicy(), auto_switch=True, auto_switch_min_stay_s=86_400))
    b.load("a")
    b.manager.generate(REQUEST)

    for at_once in (False, True):  # before it waits, and while it does
        admission = b.manager.admit(replace(REQUEST, model_id="b"))
        if at_once:
            admission.cancel()
        else:
            assert admission.wait(0.0) is None
            assert b.manager.status().waiting == 1
            admission.cancel()
        with pytest.raises(RequestCancelled):
            admission.wait()
        assert b.manager.status().waiting == 0


def test_without_auto_switch_another_model_is_refused(bench: Make) -> None:
    b = bench()
    b.load("a")
    with pytest.raises(ModelNotLoaded):
        b.manager.generate(replace(REQUEST, model_id="b"))


def test_an_idle_model_is_unloaded_and_with_auto_switch_the_next_request_brings_it_back(bench: Make) -> None:
    b = bench(replace(SwitchPolicy(), auto_switch=True, idle_unload_s=1))
    runner = b.load("a")
    b.follower.until("model_unloaded")
    assert runner.freed
    status = b.manager.status()
    assert (status.state, status.current_model, status.error) == (State.READY, None, None)
    assert b.manager.ops()[0].reason is OpReason.IDLE
    with ThreadPoolExecutor(1) as pool:
        (future,) = asked(b, pool, None)
        b.load("a")
        assert future.result(DEADLINE_S) == "a"


# -- reload ---------------------------------------------------------------------------------------------------------------


def test_a_reload_never_touches_the_model_that_answers(bench: Make) -> None:
    b = bench()
    runner = b.load("a")
    changed = replace(specs("a")[0], n_ctx=99)
    result = b.manager.reconfigure([changed, *specs("b", "d")], "a", SwitchPolicy())
    assert (result.changed, result.added, result.removed, result.altered) == (True, ("d",), ("c",), ("a",))
    event = b.follower.until("config_reloaded")
    assert (event.data["added"], event.data["removed"]) == (["d"], ["c"])
    status = b.manager.status()
    assert (status.config_stale, status.current_model, runner.closed_with) == (True, "a", None)
    assert [info.id for info in b.manager.models()] == ["a", "b", "d"]
    op, _ = b.manager.switch("a")  # the same id, another entry
    load = b.factory.next_load()
    assert load.spec.n_ctx == 99
    load.finish()
    b.follower.ended(op)
    assert not b.manager.status().config_stale
    assert not b.manager.reconfigure([changed, *specs("b", "d")], "a", SwitchPolicy()).changed


def test_a_reload_in_the_middle_of_a_load_takes_effect_at_once(bench: Make) -> None:
    b = bench()
    load = b.factory.next_load()
    b.manager.reconfigure(specs("a", "d"), "a", SwitchPolicy())
    assert [info.id for info in b.manager.models()] == ["a", "d"]
    load.finish()
    b.follower.until("model_ready")


def test_an_op_whose_entry_was_removed_while_it_waited_fails(bench: Make) -> None:
    b = bench()
    load = b.factory.next_load()
    op, _ = b.manager.switch("c")
    b.manager.reconfigure(specs("a"), "a", SwitchPolicy())
    load.finish()
    assert error_of(b, op) == ("model_load_failed", None)
    assert b.manager.status().current_model == "a"


def test_a_broken_configuration_is_seen_and_changes_nothing(bench: Make) -> None:
    b = bench()
    b.load("a")
    b.manager.config_failed("models.yaml:3: unknown key")
    b.manager.config_failed("models.yaml:3: unknown key")  # the same once more is no news
    assert b.follower.until("config_error").data["message"] == "models.yaml:3: unknown key"
    assert b.manager.status().config_error == "models.yaml:3: unknown key"
    b.manager.reconfigure(specs(*"abc"), "a", SwitchPolicy())
    assert b.manager.status().config_error is None
    b.follower.seen += b.follower.subscription.take(0)
    assert [event.name for event in b.follower.seen].count("config_error") == 1
