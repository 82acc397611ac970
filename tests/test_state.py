"""The state machine, as a table, and what the Lifecycle decides under its lock."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.errors import EngineFailed, ModelLoading, ModelNotLoaded, NoModel, NotFound, OpCancelled, QueueFull, ShuttingDown
from modeld.manager import ops
from modeld.manager.deaths import MAX_RELOADS, RELOAD_WINDOW_S
from modeld.manager.ops import OpLog
from modeld.manager.progress import Progress
from modeld.manager.runner import Runner
from modeld.manager.state import Lifecycle
from modeld.manager.tenant import Tenant
from modeld.manager.transitions import TRANSITIONS, InvalidTransition, Trigger
from modeld.types import OpError, OpState, State, Step
from tests.fake_runner import FakeRunner, specs

ERROR = OpError("model_load_failed", "no such file")

# Written out once more, so that a change of the table is a change of two places.
LEGAL = {
    ("ready", "begin"): "loading",
    ("ready", "loaded"): "ready",
    ("ready", "failed"): "ready",
    ("ready", "died"): "loading",
    ("ready", "emptied"): "error",
    ("ready", "stopped"): "error",
    ("loading", "begin"): "loading",
    ("loading", "loaded"): "ready",
    ("loading", "restored"): "ready",
    ("loading", "emptied"): "error",
    ("loading", "rested"): "ready",
    ("loading", "failed"): "error",
    ("loading", "stopped"): "error",
    ("error", "begin"): "loading",
    ("error", "failed"): "error",
    ("error", "rested"): "ready",
    ("error", "stopped"): "error",
}


def tenant(model_id: str = "a") -> Tenant:
    spec = specs(model_id)[0]
    made = Tenant(spec, None)
    made.runner = cast(Runner, FakeRunner(spec, lambda error: None))
    return made


def lifecycle(state: State) -> Lifecycle:
    """One that has come to `state` by legal moves."""
    life = Lifecycle(ERROR if state is State.ERROR else None, version="1")
    if state is State.READY:
        life.accept("a")
        assert life.next_task()
        life.begin()
        life.loaded(tenant())
    return life


def test_the_table_is_what_the_contract_says() -> None:
    assert {(state.value, trigger.value): after.value for (state, trigger), after in TRANSITIONS.items()} == LEGAL


@pytest.mark.parametrize(("state", "trigger"), list(itertools.product(State, Trigger)))
def test_every_move_is_legal_or_refused_without_effect(state: State, trigger: Trigger) -> None:
    life = lifecycle(state)
    before = life.status()
    assert before.state is state
    after = LEGAL.get((state.value, trigger.value))
    if after is not None:
        with life._cond:
            life._fire(trigger)
        assert life.status().state.value == after
        return
    with pytest.raises(InvalidTransition) as refused, life._cond:
        life._fire(trigger)
    assert (refused.value.state, refused.value.trigger) == (state, trigger)
    assert replace(life.status(), uptime_s=0) == replace(before, uptime_s=0)


def test_admission_follows_the_state() -> None:
    with pytest.raises(ModelLoading) as loading:
        lifecycle(State.LOADING).enter(None)
    assert loading.value.retry_after_s == 1
    with pytest.raises(NoModel, match="no such file"):
        lifecycle(State.ERROR).enter("a")
    life = lifecycle(State.READY)
    assert life.enter(None) is life.enter("a")
    with pytest.raises(ModelNotLoaded, match=r"the loaded model is 'a', not 'b'; POST /switch"):
        life.enter("b")
    life.stop()
    with pytest.raises(ShuttingDown):
        life.enter("a")
    with pytest.raises(ShuttingDown):
        life.accept("a")


def test_loading_says_how_far_it_is() -> None:
    life = Lifecycle(None, version="1")
    life.accept("a")
    assert life.next_task()
    life.begin()
    life.step(Step.MMAP, 43)
    with pytest.raises(ModelLoading, match="'a' is being loaded, mmap 43 %"):
        life.enter(None)


def test_a_dead_engine_is_not_admitted_to_and_is_loaded_again() -> None:
    life = lifecycle(State.READY)
    dead = life.tenant()
    assert dead is not None
    life.died(dead, RuntimeError("decode failed"))
    life.died(dead, RuntimeError("once more"))
    with pytest.raises(ModelLoading):
        life.enter(None)
    task = life.next_task()
    assert task is not None
    assert (task.op.target_model_id, task.refusal) == ("a", None)
    assert life.status().state is State.LOADING


def test_a_death_of_a_model_that_left_is_ignored() -> None:
    life = lifecycle(State.READY)
    gone = life.tenant()
    assert gone is not None
    life.accept("b")
    assert life.next_task()
    life.begin()
    life.loaded(tenant("b"))
    life.died(gone, RuntimeError("late"))
    assert life.enter(None).spec.id == "b"
    life.stop()
    assert life.next_task() is None


def test_a_switch_that_waits_replaces_the_reload_of_a_dead_engine() -> None:
    life = lifecycle(State.READY)
    dead = life.tenant()
    assert dead is not None
    asked, _ = life.accept("b")
    life.died(dead, RuntimeError("x"))
    task = life.next_task()
    assert task is not None
    assert task.op.op_id == asked.op_id
    assert life.status().queued_ops == 0


def test_deaths_are_counted_within_a_window() -> None:
    now = [0.0]
    life = Lifecycle(None, version="1", clock=lambda: now[0])
    life.accept("a")

    def load_and_die() -> bool:
        """Whether the load is refused."""
        task = life.next_task()
        assert task is not None
        life.begin()
        if task.refusal is not None:
            life.failed(OpState.FAILED, ERROR)
            return True
        loaded = tenant()
        life.loaded(loaded)
        life.died(loaded, RuntimeError("x"))
        return False

    for _ in range(MAX_RELOADS + 1):
        assert not load_and_die()
        now[0] += 1
    assert load_and_die()  # the fourth death was one too many
    life.accept("a")  # somebody asks for it: it is tried, and the next death is one too many again
    assert not load_and_die()
    assert load_and_die()
    now[0] += RELOAD_WINDOW_S
    life.accept("a")
    assert not load_and_die()
    assert not load_and_die()
    life.stop()


def begun() -> Lifecycle:
    life = Lifecycle(None, version="1")
    life.accept("a")
    assert life.next_task()
    life.begin()
    return life


def test_what_died_while_it_was_loaded_never_answers() -> None:
    life, loaded = begun(), tenant()
    life.died(loaded, RuntimeError("x"))
    with pytest.raises(EngineFailed):
        life.loaded(loaded)
    assert (life.status().state, life.tenant()) == (State.LOADING, None)


def test_what_is_loaded_when_the_daemon_stops_never_answers() -> None:
    life = begun()
    life.stop()
    with pytest.raises(OpCancelled):
        life.loaded(tenant())
    assert (life.status().state, life.tenant()) == (State.LOADING, None)


def test_an_op_that_fails_before_admission_stopped_leaves_the_model() -> None:
    life = lifecycle(State.READY)
    life.accept("b")
    assert life.next_task()
    ended = life.failed(OpState.FAILED, ERROR)
    assert (ended.state, ended.error) == (OpState.FAILED, ERROR)
    status = life.status()
    assert (status.state, status.current_model, status.error) == (State.READY, "a", ERROR)


def test_the_record_of_an_op_from_queued_to_ended() -> None:
    log = OpLog()
    queued = log.add("a")
    assert (queued.state, queued.started_at, queued.step, queued.pct) == (OpState.QUEUED, None, None, None)
    assert (len(log), log.running, log.last) == (1, None, None)
    running = log.start_next()
    assert (running.op_id, running.state, len(log)) == (queued.op_id, OpState.RUNNING, 0)
    assert running.started_at is not None
    for step in Step:
        log.step(step, 0)
        log.step(step, 100)
    ended = log.end(OpState.SUCCEEDED, None)
    assert list(ended.steps_ms) == ["unload", "mmap", "warmup"]
    assert all(ms >= 0 for ms in ended.steps_ms.values())
    assert ended.ended_at is not None
    assert ended.ended_at >= running.started_at >= queued.queued_at
    assert log.get(queued.op_id) == log.last == ended
    with pytest.raises(NotFound):
        log.get("op-0")


def test_ended_ops_are_forgotten_in_their_order() -> None:
    log = OpLog()
    ids = []
    for _ in range(ops.HISTORY_SIZE + 1):
        ids.append(log.add("a").op_id)
        log.start_next()
        log.end(OpState.SUCCEEDED, None)
    assert len(set(ids)) == len(ids)
    with pytest.raises(NotFound):
        log.get(ids[0])
    assert log.get(ids[1]).state is OpState.SUCCEEDED
    assert len(log._ops) == ops.HISTORY_SIZE


def test_the_queue_of_ops_is_bounded() -> None:
    log = OpLog()
    for _ in range(ops.QUEUE_SIZE):
        log.add("a")
    with pytest.raises(QueueFull):
        log.add("a")


@given(st.lists(st.tuples(st.sampled_from(Step), st.integers(-50, 200)), max_size=60))
def test_whatever_is_reported_every_step_rises_from_0_to_100_and_none_comes_back(reports: list[tuple[Step, int]]) -> None:
    told: list[tuple[Step, int]] = []
    progress = Progress(lambda step, pct: told.append((step, pct)))
    for step, pct in reports:
        progress.report(step, pct)
    progress.finish()
    assert [step for step, _ in itertools.groupby(step for step, _ in told)] == list(Step)
    for step in Step:
        pcts = [pct for told_step, pct in told if told_step is step]
        assert pcts == sorted(set(pcts))
        assert (pcts[0], pcts[-1]) == (0, 100)


def test_a_step_that_fails_stays_where_it_is() -> None:
    told: list[tuple[Step, int]] = []
    progress = Progress(lambda step, pct: told.append((step, pct)))
    progress.report(Step.UNLOAD, 100)
    progress.report(Step.MMAP, 43)
    assert told == [(Step.UNLOAD, 0), (Step.UNLOAD, 100), (Step.MMAP, 0), (Step.MMAP, 43)]
