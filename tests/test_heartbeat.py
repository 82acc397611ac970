"""Who is stuck: neither asleep until there is something to do, nor inside a call that takes as long as it takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from modeld.errors import ModeldError
from modeld.heartbeat import Heartbeat, Pulse, one_of_each
from modeld.policy import OnInflight, Strategy, SwitchPolicy
from modeld.threads import start_thread
from modeld.types import FileFacts, GenerateRequest, ModelSpec, Step
from tests.fake_runner import DEADLINE_S, FakeRunner, Files
from tests.switch_bench import Bench, Make


@pytest.mark.parametrize(
    ("does", "later_s", "ok", "doing"),
    [
        (lambda pulse: None, 1e9, True, None),
        (lambda pulse: pulse.rest(), 1e9, True, None),
        (lambda pulse: pulse.busy("a step"), 29, True, "a step"),
        (lambda pulse: pulse.busy("a step"), 31, False, "a step"),
        (lambda pulse: pulse.call("a decode"), 1e9, True, "a decode"),
        (lambda pulse: (pulse.call("a decode"), pulse.busy("a step")), 31, False, "a step"),
        (lambda pulse: (pulse.busy("a step"), pulse.rest()), 1e9, True, None),
        (lambda pulse: pulse.died(KeyError("secret")), 0, False, "ended by KeyError"),
    ],
)
def test_a_pulse(does: Callable[[Pulse], object], later_s: float, ok: bool, doing: str | None) -> None:
    pulse = Pulse("modeld-x")
    before = time.monotonic()
    does(pulse)
    beat = pulse.beat(30, now=time.monotonic() + later_s)
    assert (beat.thread, beat.ok, beat.doing) == ("modeld-x", ok, doing)
    assert beat.age_s == 0 if doing is None else later_s <= beat.age_s <= time.monotonic() - before + later_s
    assert "secret" not in str(beat)


def test_a_look_between_two_moments_is_no_negative_age() -> None:
    pulse = Pulse("modeld-x")
    now = time.monotonic()
    pulse.busy("a step")
    assert pulse.beat(30, now=now).age_s == 0


def test_of_two_threads_with_one_name_the_worse_is_shown() -> None:
    well, busy = Heartbeat("modeld-engine", 0, None, ok=True), Heartbeat("modeld-engine", 5, "a step", ok=True)
    stuck, dead = Heartbeat("modeld-engine", 40, "a step", ok=False), Heartbeat("modeld-engine", 50, "x", ok=False)
    other = Heartbeat("modeld-switch", 7, "an op", ok=True)
    assert one_of_each([well, other, busy]) == [busy, other]
    assert one_of_each([stuck, busy, other]) == [stuck, other]
    assert one_of_each([busy, stuck, dead]) == [dead]


def test_a_thread_that_an_exception_ends_is_not_well() -> None:
    pulse = Pulse("modeld-x")

    def fails() -> None:
        raise RuntimeError("no")

    start_thread("modeld-x", fails, pulse=pulse).join(DEADLINE_S)
    assert not pulse.beat(30).ok


# -- the switch thread --------------------------------------------------------------------------------------------------


def beat_of(b: Bench, thread: str) -> Heartbeat:
    [beat] = [beat for beat in b.manager.heartbeats() if beat.thread == thread]
    return beat


def wait_for(wanted: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not wanted():
        assert time.monotonic() < deadline, "never"


def test_a_switch_thread_that_waits_for_a_load_a_check_or_nothing_is_well(bench: Make) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def probe(spec: ModelSpec, ask: Callable[[], bool]) -> None:
        if spec.id == "b":
            reached.set()
            assert go_on.wait(DEADLINE_S)

    b = bench(probe=probe)
    load = b.factory.next_load()
    load.report(Step.MMAP, 10)
    wait_for(lambda: beat_of(b, "modeld-switch").doing is None)
    load.finish()
    b.wait(lambda: b.manager.status().generation == 1)
    wait_for(lambda: beat_of(b, "modeld-switch").doing is None)
    b.manager.switch("b")
    assert reached.wait(DEADLINE_S)
    wait_for(lambda: beat_of(b, "modeld-switch").doing is None)
    go_on.set()
    b.load("b")


def test_a_switch_thread_that_hangs_in_a_look_at_a_file_is_stuck_until_it_goes_on(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = bench()
    b.manager._stuck_after_s = 0.0
    b.load("a")
    reached, go_on = threading.Event(), threading.Event()
    inspect = Files.__call__

    def hangs(files: Files, spec: ModelSpec) -> FileFacts:
        if spec.id == "b" and threading.current_thread().name == "modeld-switch":
            reached.set()
            assert go_on.wait(DEADLINE_S)
        return inspect(files, spec)

    monkeypatch.setattr(Files, "__call__", hangs)
    b.manager.switch("b")
    assert reached.wait(DEADLINE_S)
    assert not beat_of(b, "modeld-switch").ok
    go_on.set()
    load = b.factory.next_load()
    wait_for(lambda: beat_of(b, "modeld-switch").ok)
    load.finish()


def test_a_switch_thread_that_a_fault_ends_is_not_well(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench()
    b.load("a")
    monkeypatch.setattr(b.manager._life, "next_task", lambda: 1 / 0)
    b.manager.look_again()
    assert b.manager._thread is not None
    b.manager._thread.join(DEADLINE_S)
    beat = beat_of(b, "modeld-switch")
    assert (beat.ok, beat.doing) == (False, "ended by ZeroDivisionError")


def test_the_threads_of_the_models_that_are_loaded_and_others_are_shown(bench: Make) -> None:
    b = bench(SwitchPolicy(strategy=Strategy.OVERLAP))
    assert [beat.thread for beat in b.manager.heartbeats()] == ["modeld-switch"]
    old = b.load("a")
    b.manager.generate(GenerateRequest("r1", ("hello",)))
    b.manager.switch("b")
    b.load("b")
    old.pulse.died(RuntimeError("x"))  # of the one that retires
    other = Pulse("modeld-accept")
    b.manager.other_pulses = lambda: (other,)
    assert [(beat.thread, beat.ok) for beat in b.manager.heartbeats()] == [
        ("modeld-switch", True),
        ("modeld-engine", False),
        ("modeld-accept", True),
    ]
    old.finish()
    b.follower.until("model_unloaded")
    assert beat_of(b, "modeld-engine").ok


def test_the_threads_of_a_model_that_is_drained_are_shown(bench: Make) -> None:
    b = bench(SwitchPolicy(on_inflight=OnInflight.DRAIN))
    b.manager._stuck_after_s = 0.0
    old = b.load("a")
    b.manager.generate(GenerateRequest("r1", ("hello",)))
    b.manager.switch("b")
    b.wait(lambda: b.manager.status().current_model is None)
    old.pulse.busy("a step")
    assert not beat_of(b, "modeld-engine").ok
    old.finish()
    b.load("b")
    assert beat_of(b, "modeld-engine").ok


def test_who_waits_for_a_model_s_threads_is_well_and_they_are_shown(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench()
    b.manager._stuck_after_s = 0.0
    old = b.load("a")
    reached, go_on = threading.Event(), threading.Event()
    close = FakeRunner.close

    def waits(runner: FakeRunner, reason: ModeldError) -> None:
        if runner is old:
            runner.pulse.call("a decode")  # that does not hear of its end
            reached.set()
            assert go_on.wait(DEADLINE_S)
        close(runner, reason)

    monkeypatch.setattr(FakeRunner, "close", waits)
    b.manager.switch("b")
    assert reached.wait(DEADLINE_S)
    assert beat_of(b, "modeld-switch").ok
    assert beat_of(b, "modeld-engine").ok
    old.pulse.busy("what comes after a decode")
    assert not beat_of(b, "modeld-engine").ok
    go_on.set()
    b.load("b")


def test_a_dead_engine_is_no_stuck_thread_while_something_else_is_loaded(bench: Make) -> None:
    b = bench(SwitchPolicy(strategy=Strategy.OVERLAP))
    old = b.load("a")
    b.manager.switch("b")
    load = b.factory.next_load()
    load.report(Step.MMAP, 10)
    error = RuntimeError("x")
    old.pulse.died(error)
    assert not beat_of(b, "modeld-engine").ok
    old.die(error)
    assert [beat.thread for beat in b.manager.heartbeats()] == ["modeld-switch"]
    load.finish()
    b.wait(lambda: b.manager.status().generation == 2)
    assert beat_of(b, "modeld-engine").ok
