"""`ready_delay_s` on a fake factory with gates: balancers look away, and only then does anybody meet a refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from modeld.errors import LoadFailed, ModelLoading, ModelSwitched, ShuttingDown
from modeld.policy import OnBusy, OnInflight, Strategy, SwitchOptions, SwitchPolicy
from modeld.types import GenerateRequest, ModelSpec, OpReason, OpState, Phase, State, Status, SwitchOp
from tests.fake_runner import DEADLINE_S
from tests.switch_bench import Bench, Make, error_of

REQUEST = GenerateRequest("r1", ("hello",))
LONG = SwitchOptions(OnInflight.DRAIN, ready_delay_s=3600)  # it ends by what the test does, or the test fails
SHORT = replace(LONG, ready_delay_s=0.02)
NONE = replace(LONG, ready_delay_s=0)


def diverted(b: Bench, options: SwitchOptions, model_id: str | None = "b") -> SwitchOp:
    """An op that lets balancers look away."""
    op, joined = b.manager.switch(model_id, options) if model_id is not None else b.manager.unload(options)
    assert not joined
    b.wait_at(op, "divert")
    return op


def phases(b: Bench, op: SwitchOp) -> list[tuple[object, object]]:
    return [(e.data["phase"], e.data["pct"]) for e in b.follower.of(op) if e.name == "model_switch_phase"]


def seen(status: Status) -> tuple[State, str | None, bool]:
    return status.state, status.current_model, status.diverting


def test_the_old_model_answers_everything_while_readiness_is_withdrawn(bench: Make) -> None:
    b = bench()
    old = b.load("a")
    op = diverted(b, LONG)
    status = b.manager.status()
    assert seen(status) == (State.READY, "a", True)
    assert status.op is not None
    assert (status.op.op_id, status.op.phase, status.op.pct) == (op.op_id, Phase.DIVERT, 0)
    b.manager.generate(REQUEST)
    assert b.manager.tokenize("x", add_special=False, parse_special=False)
    assert (old.n_open, old.closed_with) == (1, None)
    assert b.manager.figures().status.diverting


@pytest.mark.parametrize("how", OnInflight)
def test_admission_stops_when_the_delay_is_over(bench: Make, how: OnInflight) -> None:
    b = bench()
    old = b.load("a")
    op = diverted(b, replace(SHORT, on_inflight=how))
    load = b.factory.next_load()
    assert seen(b.manager.status()) == (State.LOADING, None, False)
    with pytest.raises(ModelLoading):
        b.manager.generate(REQUEST)
    assert old.closed_with is not None
    load.finish()
    assert b.follower.ended(op).name == "model_ready"
    assert seen(b.manager.status()) == (State.READY, "b", False)
    told = phases(b, op)
    assert told[:2] == [("divert", 0), ("divert", 100)]
    assert b.manager.op(op.op_id).steps_ms["divert"] >= 20


def test_the_events_show_no_moment_between_the_delay_and_the_end_of_admission(bench: Make) -> None:
    """Else a probe could find 200 there, and a balancer would come back just in time to be refused."""
    b = bench()
    b.load("a")
    statuses: list[Status] = []  # with each event
    b.manager.on_status = statuses.append
    op = diverted(b, SHORT)
    b.load("b")
    b.follower.ended(op)
    b.manager.on_status = lambda _: None
    first = [seen(status) for status in statuses].index((State.READY, "a", True))
    assert seen(statuses[first + 1]) == (State.LOADING, None, False)


def test_its_event_says_how_long(bench: Make) -> None:
    b = bench()
    b.load("a")
    op = diverted(b, SHORT)
    [event] = [e for e in b.follower.of(op) if e.data.get("phase") == "divert" and e.data["pct"] == 0]
    assert event.data["delay_s"] == 0.02
    b.load("b")


def test_requests_that_come_meanwhile_are_drained(bench: Make) -> None:
    b = bench()
    old = b.load("a")
    op = diverted(b, SHORT)
    b.manager.generate(REQUEST)
    b.wait_at(op, "drain")
    assert old.closed_with is None
    old.finish()
    b.load("b")
    assert (b.follower.ended(op).name, old.n_cut) == ("model_ready", 0)


def test_with_cancel_they_are_cut_when_it_is_over(bench: Make) -> None:
    b = bench()
    old = b.load("a")
    b.manager.generate(REQUEST)
    diverted(b, replace(SHORT, on_inflight=OnInflight.CANCEL))
    b.load("b")
    assert old.n_cut == 1
    assert isinstance(old.closed_with, ModelSwitched)


def test_a_cancelled_op_gives_readiness_back_at_once(bench: Make) -> None:
    b = bench()
    old = b.load("a")
    op = diverted(b, LONG)
    assert b.manager.cancel(op.op_id).cancelling
    assert error_of(b, op) == ("op_cancelled", None)
    assert seen(b.manager.status()) == (State.READY, "a", False)
    status = b.manager.status()
    assert (status.generation, status.error, old.closed_with) == (1, None, None)
    assert phases(b, op) == [("divert", 0)]
    b.manager.generate(REQUEST)


def test_the_op_that_supersedes_it_looks_away_anew(bench: Make) -> None:
    b = bench()
    b.load("a")
    first = diverted(b, LONG)
    second, _ = b.manager.switch("c", replace(SHORT, on_busy=OnBusy.SUPERSEDE))
    assert error_of(b, first) == ("op_cancelled", None)
    b.load("c")
    assert b.follower.ended(second).name == "model_ready"
    assert phases(b, second)[:2] == [("divert", 0), ("divert", 100)]


def test_a_switch_that_joins_it_waits_for_the_same_delay(bench: Make) -> None:
    b = bench()
    b.load("a")
    op = diverted(b, LONG)
    assert b.manager.switch("b", NONE) == (b.manager.op(op.op_id), True)
    assert b.manager.status().diverting


def test_a_stop_ends_it(bench: Make) -> None:
    b = bench()
    old = b.load("a")
    b.manager.generate(REQUEST)
    op = diverted(b, LONG)
    b.manager.announce_stop("SIGTERM", 3600)
    assert b.manager.status().stopping
    assert b.manager.status().diverting  # until nothing is let in any more, all goes on
    b.manager.begin_stop()
    assert error_of(b, op) == ("op_cancelled", None)
    assert not b.manager.status().diverting
    assert (old.n_open, old.closed_with) == (1, None)  # what runs may end
    old.finish()
    assert b.manager.drain(20)


def test_a_close_ends_it(bench: Make) -> None:
    b = bench()
    old = b.load("a")
    op = diverted(b, LONG)
    b.manager.close()
    assert isinstance(old.closed_with, ShuttingDown)
    assert b.manager.op(op.op_id).state is OpState.CANCELLED


def test_an_engine_that_dies_meanwhile_is_not_waited_for(bench: Make) -> None:
    b = bench()
    old = b.load("a")
    op = diverted(b, LONG)
    old.die(RuntimeError("x"))
    b.load("b")
    assert b.follower.ended(op).name == "model_ready"
    assert seen(b.manager.status()) == (State.READY, "b", False)


def test_an_unload_looks_away_too(bench: Make) -> None:
    b = bench()
    b.load("a")
    op = diverted(b, SHORT, None)
    assert b.follower.ended(op).name == "model_unloaded"
    assert phases(b, op)[:2] == [("divert", 0), ("divert", 100)]
    status = b.manager.status()
    assert (status.state, status.diverting) == (State.ERROR, False)


def test_a_cancelled_unload_gives_readiness_back(bench: Make) -> None:
    b = bench()
    b.load("a")
    op = diverted(b, LONG, None)
    b.manager.cancel(op.op_id)
    assert error_of(b, op) == ("op_cancelled", None)
    assert seen(b.manager.status()) == (State.READY, "a", False)


def test_an_op_that_fails_before_never_looks_away(bench: Make) -> None:
    def read_ahead(spec: ModelSpec, go_on: Callable[[int, int], bool]) -> None:
        if spec.id == "b":
            raise LoadFailed("it cannot be read")

    b = bench(read_ahead=read_ahead)
    b.load("a")
    b.files.mtime["c"] = None
    for model_id in "bc":
        op, _ = b.manager.switch(model_id, LONG)
        assert error_of(b, op) == ("model_load_failed", None)
        assert not any(phase == "divert" for phase, _ in phases(b, op))


def test_it_looks_away_after_all_that_takes_time_before(bench: Make) -> None:
    b = bench(read_ahead=lambda spec, go_on: go_on(50, 100))
    b.load("a")
    op = diverted(b, LONG)
    names = [phase for phase, _ in phases(b, op)]
    assert names.index("prefetch") < names.index("divert")
    b.manager.cancel(op.op_id)


def test_what_comes_back_after_a_failed_load_is_ready_at_once(bench: Make) -> None:
    b = bench()
    b.load("a")
    op = diverted(b, SHORT)
    b.fail("b")
    b.load("a")
    assert error_of(b, op) == ("model_load_failed", "a")
    assert seen(b.manager.status()) == (State.READY, "a", False)
    assert sum(phase == "divert" for phase, _ in phases(b, op)) == 2  # none before the rollback


def test_an_overlap_never_looks_away(bench: Make) -> None:
    b = bench()
    b.load("a")
    op, _ = b.manager.switch("b", replace(LONG, strategy=Strategy.OVERLAP))
    load = b.factory.next_load()
    assert seen(b.manager.status()) == (State.READY, "a", False)
    load.finish()
    assert b.follower.ended(op).name == "model_ready"
    assert phases(b, op) == []


def test_auto_looks_away_where_both_do_not_fit(bench: Make) -> None:
    b = bench(fits=lambda spec, leaving: "9 GiB are missing" if leaving is None and spec.id != "a" else None)
    b.load("a")
    op = diverted(b, replace(SHORT, strategy=Strategy.AUTO))
    b.load("b")
    assert b.follower.ended(op).name == "model_ready"


def test_nothing_looks_away_where_no_model_answers(bench: Make) -> None:
    b = bench(SwitchPolicy(ready_delay_s=3600), default=None)
    op, _ = b.manager.switch("a")
    b.load("a")
    assert b.follower.ended(op).name == "model_ready"
    assert phases(b, op) == []


def test_the_load_at_start_has_no_delay(bench: Make) -> None:
    b = bench(SwitchPolicy(ready_delay_s=3600))
    b.load("a")
    assert seen(b.manager.status()) == (State.READY, "a", False)


def test_the_reload_of_a_model_whose_engine_died_has_none(bench: Make) -> None:
    b = bench(SwitchPolicy(ready_delay_s=3600))
    b.load("a").die(RuntimeError("x"))
    b.load("a")
    assert b.manager.status().generation == 2


def test_a_switch_to_what_is_loaded_and_a_dry_run_have_none(bench: Make) -> None:
    b = bench(SwitchPolicy(ready_delay_s=3600))
    b.load("a")
    op, _ = b.manager.switch("a")
    assert b.follower.ended(op).name == "model_ready"
    assert b.manager.plan("b", b.manager.default_options()).error is None
    assert phases(b, op) == []
    assert not b.manager.status().diverting


def test_the_configuration_has_the_default_and_a_reload_changes_it(bench: Make) -> None:
    b = bench(SwitchPolicy(on_inflight=OnInflight.DRAIN, ready_delay_s=3600))
    b.load("a")
    assert b.manager.default_options().ready_delay_s == 3600
    op = diverted(b, b.manager.default_options())
    b.manager.reconfigure([*b.manager._registry.values()], "a", SwitchPolicy())
    assert b.manager.default_options().ready_delay_s == 0
    assert b.manager.status().diverting  # what was accepted goes on as it was asked for
    b.manager.cancel(op.op_id)


def test_the_time_it_took_is_in_the_metrics_and_the_journal(bench: Make, tmp_path: Path) -> None:
    b = bench(folder=tmp_path)
    b.load("a")
    op = diverted(b, SHORT)
    b.load("b")
    b.follower.ended(op)
    b.wait(lambda: b.manager.status().op is None)
    b.manager.close()
    assert b.manager.metrics.seconds()["divert"].n == 1
    assert '"divert"' in (tmp_path / "ops.jsonl").read_text()


def test_a_request_that_brings_a_switch_about_waits_for_no_balancer(bench: Make) -> None:
    """With auto_switch requests wait and none is refused."""
    b = bench(SwitchPolicy(auto_switch=True, ready_delay_s=3600))
    b.load("a")
    admission = b.manager.admit(replace(REQUEST, model_id="b"))
    assert admission.wait(0.0) is None
    b.load("b")
    assert admission.wait(DEADLINE_S) is not None
    op = b.manager.ops()[0]
    assert (op.reason, "divert" in op.steps_ms) == (OpReason.AUTO, False)


@pytest.mark.parametrize("auto_switch", [False, True])
def test_an_idle_model_is_taken_away_behind_the_balancers_back_only_where_requests_wait(bench: Make, auto_switch: bool) -> None:
    b = bench(SwitchPolicy(auto_switch=auto_switch, idle_unload_s=86_400, ready_delay_s=3600))
    b.load("a")
    tenant = b.manager._life.tenant()
    assert tenant is not None
    tenant.used_at -= 100_000
    b.manager._life.poke()
    if auto_switch:
        b.follower.until("model_unloaded")
    else:
        b.follower.until("model_switch_phase")
        assert b.manager.status().diverting


def test_an_idle_model_that_somebody_uses_while_balancers_look_away_stays(bench: Make) -> None:
    b = bench(SwitchPolicy(idle_unload_s=86_400, ready_delay_s=3600))
    b.load("a")
    tenant = b.manager._life.tenant()
    assert tenant is not None
    tenant.used_at -= 100_000
    b.manager._life.poke()
    b.follower.until("model_switch_phase")
    assert b.manager.tokenize("x", add_special=False, parse_special=False)
    assert b.follower.until("model_error").data["code"] == "op_cancelled"
    assert seen(b.manager.status()) == (State.READY, "a", False)
    assert b.manager.status().error is None
