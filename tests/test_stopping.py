"""A stop that is begun: nothing is let in, what runs may end until its time is over, whatever the daemon was doing."""

from __future__ import annotations

import contextlib
import threading

import pytest

from modeld.errors import LoadFailed, ShuttingDown
from modeld.events import SubscriptionEnded
from modeld.manager.manager import Manager
from modeld.policy import OnInflight, Strategy, SwitchOptions, SwitchPolicy
from modeld.types import GenerateRequest, ModelSpec, OpState, State, Step
from tests.fake_runner import DEADLINE_S, FakeFactory, Files, Follower, specs
from tests.switch_bench import Bench, Make, error_of

REQUEST = GenerateRequest("r1", ("hello",))
OVERLAP = SwitchOptions(strategy=Strategy.OVERLAP)
DRAIN = SwitchOptions(on_inflight=OnInflight.DRAIN, drain_timeout_s=3600)


def begin(b: Bench) -> None:
    b.manager.announce_stop("SIGTERM", 20)
    b.manager.begin_stop()
    event = b.follower.until("shutdown")
    assert event.data == {"reason": "SIGTERM", "deadline_s": 20}


def read_to_the_end(follower: Follower) -> None:
    """The hub ends it."""
    with contextlib.suppress(SubscriptionEnded):
        while events := follower.subscription.take(DEADLINE_S):
            follower.seen += events
        raise AssertionError("the events do not end")


class Draining:
    """The main thread in `drain`, which may not return before `ended`."""

    def __init__(self, manager: Manager, timeout_s: float = DEADLINE_S) -> None:
        self.all_ended: bool | None = None

        def run() -> None:
            self.all_ended = manager.drain(timeout_s)

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def ended(self) -> bool:
        self._thread.join(DEADLINE_S)
        assert self.all_ended is not None
        return self.all_ended


# -- at rest ----------------------------------------------------------------------------------------------------------


def test_nothing_is_let_in_once_a_stop_is_begun_and_what_runs_goes_on(bench: Make) -> None:
    b = bench()
    runner = b.load("a")
    b.manager.generate(REQUEST)
    begin(b)
    status = b.manager.status()
    assert (status.state, status.current_model, status.stopping) == (State.READY, "a", True)
    for refused in (
        lambda: b.manager.generate(REQUEST),
        lambda: b.manager.switch("b"),
        lambda: b.manager.unload(),
        lambda: b.manager.tokenize("x", add_special=False, parse_special=False),
    ):
        with pytest.raises(ShuttingDown):
            refused()
    draining = Draining(b.manager)
    assert runner.closed_with is None
    assert not b.manager.drain(0)
    runner.finish()
    assert draining.ended()
    b.manager.close()
    assert runner.n_cut == 0


def test_what_has_not_ended_in_time_is_cut_with_the_reason(bench: Make) -> None:
    b = bench()
    runner = b.load("a")
    for _ in range(8):
        b.manager.generate(REQUEST)
    begin(b)
    runner.finish(6)
    assert not b.manager.drain(0)
    assert b.manager.n_open() == 2
    b.manager.close()
    assert runner.n_cut == 2
    assert isinstance(runner.closed_with, ShuttingDown)
    assert runner.closed_with.retry_after_s == 5


def test_a_request_on_its_way_into_the_model_is_waited_for(bench: Make) -> None:
    b = bench()
    runner = b.load("a")
    tenant = b.manager._life.enter(None)
    begin(b)
    draining = Draining(b.manager)
    runner.submit(REQUEST)
    b.manager._life.leave(tenant)
    assert not b.manager.drain(0)
    runner.finish()
    assert draining.ended()


def test_a_stop_without_a_model_or_with_a_dead_one_waits_for_nobody(bench: Make) -> None:
    empty = bench(default=None)
    begin(empty)
    assert empty.manager.drain(DEADLINE_S)
    b = bench()
    runner = b.load("a")
    b.manager.begin_stop()
    runner.die(RuntimeError("x"))  # and is not loaded again
    assert b.manager.drain(DEADLINE_S)
    b.manager.close()


def test_the_reader_of_events_is_told_first_can_come_back_and_is_ended_last(bench: Make) -> None:
    b = bench()
    b.load("a")
    seen = b.follower.until("model_ready")
    running, _ = b.manager.switch("b")
    waiting, _ = b.manager.switch("c")
    load = b.factory.next_load()
    load.listen()
    begin(b)
    assert b.manager.drain(DEADLINE_S)
    ends = {op.op_id for op in (running, waiting)}
    later = Follower(b.manager.subscribe(seen.id))
    assert later.ended(running).data["code"] == later.ended(waiting).data["code"] == "op_cancelled"
    told = [
        event for event in later.seen if event.name == "shutdown" or (event.name == "model_error" and event.data["op_id"] in ends)
    ]
    assert [event.name for event in told] == ["shutdown", "model_error", "model_error"]
    first = b.manager.subscribe(None).first
    assert first is not None
    assert first.status.stopping
    b.manager.close()
    read_to_the_end(later)


def test_a_stop_that_is_announced_shows_and_everything_goes_on(bench: Make) -> None:
    b = bench()
    b.load("a")
    b.manager.announce_stop("SIGTERM", 25)
    assert b.manager.status().stopping
    assert b.follower.until("shutdown").data["deadline_s"] == 25
    b.manager.generate(REQUEST)
    b.manager.switch("b")
    b.load("b").finish(0)
    b.manager.begin_stop()
    assert b.manager.drain(DEADLINE_S)


def test_begun_twice_it_is_told_once(bench: Make) -> None:
    b = bench()
    b.load("a")
    begin(b)
    b.manager.announce_stop("SIGINT", 5)
    b.manager.begin_stop()
    b.manager.close()
    read_to_the_end(b.follower)
    assert [event.name for event in b.follower.seen].count("shutdown") == 1


def test_it_is_told_although_it_is_cut_at_once(bench: Make) -> None:
    b = bench()
    b.load("a")
    b.manager.announce_stop("SIGTERM", 0)
    b.manager.begin_stop()
    b.manager.close()
    assert b.follower.until("shutdown").data["deadline_s"] == 0


# -- in the middle of something -----------------------------------------------------------------------------------------


def test_a_stop_ends_the_first_load_and_what_waits_behind_it(bench: Make) -> None:
    b = bench()
    load = b.factory.next_load()
    [first] = b.manager.ops()
    waiting, _ = b.manager.switch("b")
    begin(b)
    b.wait(lambda: b.manager.op(waiting.op_id).state is OpState.CANCELLED)
    assert not load.report(Step.MMAP, 1)
    load.fail(LoadFailed("told to end"))
    assert b.manager.drain(DEADLINE_S)
    assert error_of(b, first) == error_of(b, waiting) == ("op_cancelled", None)
    assert b.manager.status().state is State.ERROR


def test_a_stop_during_a_load_does_not_bring_the_model_before_back(bench: Make) -> None:
    b = bench()
    old = b.load("a")
    op, _ = b.manager.switch("b")
    load = b.factory.next_load()
    assert old.closed_with is not None
    begin(b)
    assert not load.report(Step.MMAP, 1)
    load.fail(LoadFailed("told to end"))
    assert b.manager.drain(DEADLINE_S)
    assert error_of(b, op) == ("op_cancelled", None)
    assert [runner.spec.id for runner in b.factory.runners] == ["a"]


def test_a_stop_during_a_rollback_ends_it(bench: Make) -> None:
    b = bench()
    b.load("a")
    op, _ = b.manager.switch("b")
    b.fail("b")
    back = b.factory.next_load()
    begin(b)
    assert not back.report(Step.MMAP, 1)
    back.fail(LoadFailed("told to end"))
    assert b.manager.drain(DEADLINE_S)
    assert error_of(b, op) == ("model_load_failed", None)


def test_a_stop_during_a_drain_leaves_its_requests_the_time_of_the_stop(bench: Make) -> None:
    b = bench()
    old = b.load("a")
    b.manager.generate(REQUEST)
    op, _ = b.manager.switch("b", DRAIN)
    b.wait_at(op, "drain")
    assert b.manager.status().state is State.LOADING
    begin(b)
    draining = Draining(b.manager)
    assert error_of(b, op) == ("op_cancelled", None)
    assert (b.manager.status().state, b.manager.status().current_model) == (State.READY, "a")
    with pytest.raises(ShuttingDown):
        b.manager.generate(REQUEST)
    assert not b.manager.drain(0)
    assert old.closed_with is None
    old.finish()
    assert draining.ended()
    b.manager.close()
    assert old.n_cut == 0


def test_a_stop_during_an_overlap_leaves_the_old_model_its_requests(bench: Make) -> None:
    b = bench()
    old = b.load("a")
    b.manager.generate(REQUEST)
    op, _ = b.manager.switch("b", OVERLAP)
    load = b.factory.next_load()
    begin(b)
    draining = Draining(b.manager)
    assert not load.report(Step.MMAP, 1)
    load.fail(LoadFailed("told to end"))
    assert error_of(b, op) == ("op_cancelled", None)
    assert not b.manager.drain(0)
    old.finish()
    assert draining.ended()
    assert old.closed_with is None


def test_a_stop_waits_for_the_requests_of_a_model_that_retires_too(bench: Make) -> None:
    b = bench(SwitchPolicy(strategy=Strategy.OVERLAP, drain_timeout_s=3600))
    old = b.load("a")
    b.manager.generate(REQUEST)
    b.manager.switch("b")
    new = b.load("b")
    b.manager.generate(REQUEST)
    begin(b)
    draining = Draining(b.manager)
    new.finish()
    assert not b.manager.drain(0)
    old.finish()
    assert draining.ended()
    b.manager.close()
    assert (old.n_cut, new.n_cut) == (0, 0)


def test_a_switch_that_waits_for_a_retiring_model_ends_and_that_one_goes_on(bench: Make) -> None:
    b = bench(SwitchPolicy(strategy=Strategy.OVERLAP, drain_timeout_s=3600))
    old = b.load("a")
    b.manager.generate(REQUEST)
    b.manager.switch("b")
    b.load("b")
    op, _ = b.manager.switch("c")
    b.wait(lambda: b.manager.status().op is not None)
    begin(b)
    assert error_of(b, op) == ("op_cancelled", None)
    draining = Draining(b.manager)
    assert not b.manager.drain(0)
    assert old.closed_with is None
    old.finish()
    assert draining.ended()


def test_a_request_that_waits_for_a_switch_is_refused_at_once(bench: Make) -> None:
    b = bench(SwitchPolicy(auto_switch=True, auto_switch_min_stay_s=86_400))
    runner = b.load("a")
    b.manager.generate(REQUEST)
    admission = b.manager.admit(GenerateRequest("r2", ("hello",), model_id="b"))
    assert admission.wait(0) is None
    begin(b)
    with pytest.raises(ShuttingDown):
        admission.wait()
    with pytest.raises(ShuttingDown):
        b.manager.admit(GenerateRequest("r3", ("hello",), model_id="b")).wait()
    runner.finish()
    assert b.manager.drain(DEADLINE_S)


def test_a_stop_during_a_reload_takes_it_over_and_ends(bench: Make) -> None:
    b = bench()
    runner = b.load("a")
    b.manager.generate(REQUEST)
    begin(b)
    b.manager.reconfigure(specs("a", "d"), "a", SwitchPolicy(auto_switch=True, idle_unload_s=1))
    assert [info.id for info in b.manager.models()] == ["a", "d"]
    with pytest.raises(ShuttingDown):
        b.manager.admit(GenerateRequest("r2", ("hello",), model_id="d")).wait()
    runner.finish()
    assert b.manager.drain(DEADLINE_S)


def test_a_model_that_nobody_uses_is_not_unloaded_while_the_daemon_stops(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time for it has come, but no op is accepted: looking for it again and again would take a core."""
    b = bench(SwitchPolicy(idle_unload_s=3600))
    b.load("a")
    begin(b)
    monkeypatch.setattr(b.manager._upkeep, "_idle_at", lambda _policy: 0.0)
    assert b.manager._upkeep.act_at(b.manager._policy) == float("inf")
    b.manager.look_again()
    assert b.manager.drain(DEADLINE_S)
    assert b.manager.status().current_model == "a"


def test_an_op_that_ends_well_as_the_stop_begins_has_ended_well(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench()
    op = b.manager.ops()[0]
    load = b.factory.next_load()
    loaded = b.manager._life.loaded

    def just_then(*args: object, **options: object) -> object:
        ended = loaded(*args, **options)  # type: ignore[arg-type]
        b.manager.announce_stop("SIGTERM", 20)
        b.manager.begin_stop()
        return ended

    monkeypatch.setattr(b.manager._life, "loaded", just_then)
    runner = load.finish()
    assert b.follower.ended(op).name == "model_ready"
    b.follower.until("shutdown")
    assert b.manager.drain(DEADLINE_S)
    b.manager.close()
    assert isinstance(runner.closed_with, ShuttingDown)


def test_a_check_that_runs_hears_of_the_stop(bench: Make) -> None:
    reached, answers = threading.Event(), []

    def probe(spec: ModelSpec, go_on: object) -> None:
        if spec.id == "b":
            reached.set()
            while go_on():  # type: ignore[operator]
                pass
            answers.append("told to end")
            raise LoadFailed("told to end")

    b = bench(probe=probe)
    b.load("a")
    op, _ = b.manager.switch("b")
    assert reached.wait(DEADLINE_S)
    begin(b)
    assert error_of(b, op) == ("op_cancelled", None)
    assert b.manager.drain(DEADLINE_S)
    assert answers == ["told to end"]


def test_a_stop_that_comes_before_the_thread_starts_is_told_of() -> None:
    manager = Manager(specs("a"), "a", FakeFactory(), Files().host(), version="1")
    follower = Follower(manager.subscribe(None))
    manager.announce_stop("SIGTERM", 20)
    manager.begin_stop()
    manager.close()
    assert follower.until("shutdown")
    assert follower.ended(manager.ops()[0]).data["code"] == "op_cancelled"
