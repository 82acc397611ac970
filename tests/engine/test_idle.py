"""When is a runner idle? Each time its last open request has ended, and never while one is tokenized, waits or runs."""

from __future__ import annotations

import queue
import threading

import pytest

from modeld.engine.runner import EngineRunner
from modeld.engine.stream import TokenStream
from modeld.errors import ContextLengthExceeded, ModelSwitched
from modeld.llm.adapter import DecodeFatal
from modeld.types import EmbedRequest, Load
from tests.engine.test_engine import WARMUP, collect, request
from tests.fake_runtime import FakeRuntime

DEADLINE_S = 10


class Idle:
    """What the callback saw, one entry a call."""

    def __init__(self, runner: EngineRunner) -> None:
        self.calls: queue.SimpleQueue[tuple[str, Load]] = queue.SimpleQueue()
        runner.on_idle(lambda: self.calls.put((threading.current_thread().name, runner.load())))

    def came(self) -> str:
        """The thread of the next call, which found nothing open."""
        thread, load = self.calls.get(timeout=DEADLINE_S)
        assert (load.slots_busy, load.queued) == (0, 0)
        return thread

    def none(self) -> bool:
        return self.calls.empty()


class Open:
    """One request of the kind that the runner takes."""

    def __init__(self, runner: EngineRunner, prompt: str = "hi") -> None:
        self.work = (
            runner.submit(request(prompt)) if runner._runtime.pooling is None else runner.embed(EmbedRequest("r", (prompt,)))
        )

    def end(self) -> None:
        if isinstance(self.work, TokenStream):
            collect(self.work)
        else:
            assert self.work.result(DEADLINE_S)


def test_each_last_end_is_told_once(runner: EngineRunner, runtime: FakeRuntime) -> None:
    idle = Idle(runner)
    for _ in range(3):
        runtime.gate.shut()
        n_before = runtime.gate.n_arrived
        requests = [Open(runner) for _ in range(6)]  # 4 slots, 2 wait
        runtime.gate.wait_arrived(n_before + 1)
        assert idle.none()
        runtime.gate.open()
        assert idle.came() == "modeld-engine"
        assert idle.none()
        for each in requests:
            each.end()


def test_a_request_that_is_tokenized_is_open(runner: EngineRunner, runtime: FakeRuntime) -> None:
    idle = Idle(runner)
    begun, go_on = threading.Event(), threading.Event()
    tokenize = runtime.tokenize

    def slow(text: str, **kinds: bool) -> list[int]:
        if text == "slow":
            begun.set()
            assert go_on.wait(DEADLINE_S)
        return tokenize(text, **kinds)

    runtime.tokenize = slow  # type: ignore[method-assign]
    thread = threading.Thread(target=lambda: Open(runner, "slow").end())
    thread.start()
    assert begun.wait(DEADLINE_S)
    Open(runner).end()
    assert sum((runner.load().slots_busy, runner.load().queued)) == 1
    assert idle.none()
    go_on.set()
    assert idle.came() == "modeld-engine"
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert idle.none()


def test_a_place_that_led_to_no_submission_is_told(runner: EngineRunner) -> None:
    idle = Idle(runner)
    with pytest.raises(ContextLengthExceeded):
        Open(runner, "x" * 70)
    assert idle.came() == threading.current_thread().name


def test_a_cancellation_is_told(runner: EngineRunner, runtime: FakeRuntime) -> None:
    idle = Idle(runner)
    runtime.gate.shut()
    leaving = Open(runner)
    runtime.gate.wait_arrived(WARMUP + 1)
    waiting = Open(runner)
    waiting.work.cancel()
    leaving.work.cancel()
    runtime.gate.open()
    assert idle.came() == "modeld-engine"


@pytest.mark.parametrize("dies", [False, True])
def test_the_end_of_the_engine_is_told(runner: EngineRunner, runtime: FakeRuntime, dies: bool) -> None:
    idle = Idle(runner)
    runtime.gate.shut()
    Open(runner)
    runtime.gate.wait_arrived(WARMUP + 1)
    if dies:
        runtime.fail_next = DecodeFatal("over")
        runtime.gate.open()
    else:
        runner.close(ModelSwitched("over"))
    assert idle.came() == "modeld-engine"


def test_nothing_is_told_before_the_first_request(runner: EngineRunner) -> None:
    idle = Idle(runner)
    runner.close(ModelSwitched("over"))
    assert idle.none()
