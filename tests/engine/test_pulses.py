"""How the threads of one model show what they do: a decode takes as long as it takes, anything else may be stuck."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from modeld.engine.runner import EngineRunner
from modeld.errors import ModelSwitched
from modeld.heartbeat import Heartbeat
from modeld.llm.adapter import DecodeFatal
from tests.engine.test_engine import open_fake
from tests.engine.test_idle import Open
from tests.fake_runtime import FakeRuntime

DEADLINE_S = 10
THREADS = {"modeld-engine", "modeld-tokenize-0", "modeld-tokenize-1"}


def later(runner: EngineRunner) -> dict[str, Heartbeat]:
    """How they are if nothing moves for an hour."""
    beats = [pulse.beat(30, now=time.monotonic() + 3600) for pulse in runner.pulses()]
    return {beat.thread: beat for beat in beats}


def wait_for(wanted: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not wanted():
        assert time.monotonic() < deadline, "never"


class Block:
    """In place of a method of the runtime: holds up whoever calls it."""

    def __init__(self, runtime: FakeRuntime, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        method = getattr(runtime, name)

        def blocked(*args: object, **options: object) -> object:
            self.reached.set()
            assert self.go_on.wait(DEADLINE_S)
            return method(*args, **options)

        monkeypatch.setattr(runtime, name, blocked)


def test_a_model_that_has_nothing_to_do_is_at_rest(runner: EngineRunner, runtime: FakeRuntime) -> None:
    wait_for(lambda: all(beat.doing is None for beat in later(runner).values()))
    assert set(later(runner)) == (THREADS | {"modeld-deliver"} if runtime.pooling is None else THREADS)
    Open(runner).end()
    wait_for(lambda: all(beat.doing is None for beat in later(runner).values()))


def test_an_engine_inside_one_decode_is_well(runner: EngineRunner, runtime: FakeRuntime) -> None:
    runtime.gate.shut()
    n_before = runtime.gate.n_arrived
    work = Open(runner)
    runtime.gate.wait_arrived(n_before + 1)
    beat = later(runner)["modeld-engine"]
    assert (beat.doing, beat.ok) == ("a decode", True)
    runtime.gate.open()
    work.end()


def test_an_engine_that_hangs_elsewhere_is_stuck_until_it_goes_on(
    runner: EngineRunner, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = Block(runtime, "sample" if runtime.pooling is None else "vectors", monkeypatch)
    work = Open(runner)
    assert block.reached.wait(DEADLINE_S)
    beat = later(runner)["modeld-engine"]
    assert (beat.doing, beat.ok) == ("what comes after a decode", False)
    block.go_on.set()
    work.end()
    wait_for(lambda: later(runner)["modeld-engine"].ok)


def test_a_tokenizer_that_takes_its_time_over_a_text_is_shown_and_is_well(
    runner: EngineRunner, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = Block(runtime, "tokenize", monkeypatch)
    asking = threading.Thread(target=lambda: Open(runner).end())
    asking.start()
    assert block.reached.wait(DEADLINE_S)
    beats = later(runner)
    busy = [name for name, beat in beats.items() if beat.doing == "a job of a handler"]
    assert busy in (["modeld-tokenize-0"], ["modeld-tokenize-1"])
    assert all(beat.ok for beat in beats.values())
    block.go_on.set()
    asking.join(DEADLINE_S)
    wait_for(lambda: all(beat.doing is None for beat in later(runner).values()))


def test_an_engine_that_died_is_not_well(runtime: FakeRuntime) -> None:
    died = threading.Event()
    runner = open_fake(runtime, on_death=lambda _error: died.set())
    try:
        runtime.fail_next = DecodeFatal("code -3")
        Open(runner)
        assert died.wait(DEADLINE_S)
        assert later(runner)["modeld-engine"].doing == "ended by DecodeFatal"
        assert not later(runner)["modeld-engine"].ok
    finally:
        runner.close(ModelSwitched("the test is over"))
        runner.free()
