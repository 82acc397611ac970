"""Turns and shared pools: who computes when, on which cores, and what becomes of those that wait."""

from __future__ import annotations

import os
import threading
import timeit
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from modeld.errors import LoadFailed
from modeld.llm import pool
from modeld.llm.adapter import DecodeAborted, Span
from modeld.llm.cores import compute_plan
from modeld.llm.handles import open_handles
from modeld.llm.pool import Turns
from modeld.llm.runtime import LlamaRuntime
from modeld.types import ModelSpec

MODELS = Path(__file__).resolve().parents[2] / "models"
CALC = ModelSpec(id="calc", path=MODELS / "demo-calc.gguf", n_ctx=512, n_parallel=2)
DEADLINE_S = 10


class Waiting:
    """A thread that asks for the turn and, once it has it, notes its name and passes on."""

    def __init__(self, turns: Turns, name: str, order: list[str]) -> None:
        self.is_off = False
        asked = threading.Event()

        def is_off() -> bool:
            asked.set()  # under the lock under which it joins those that wait
            return self.is_off

        def work() -> None:
            if not turns.take(self, is_off):
                order.append(f"not {name}")
                return
            order.append(name)
            turns.pass_on()

        self.thread = threading.Thread(target=work, name=name)
        self.thread.start()
        assert asked.wait(DEADLINE_S)
        with turns._lock:
            pass

    def ends(self) -> None:
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive()


def never() -> bool:
    return False


def test_turns_come_in_the_order_in_which_they_were_asked_for() -> None:
    turns = Turns()
    order: list[str] = []
    assert turns.take("first", never)
    waiting = [Waiting(turns, name, order) for name in "abcdef"]
    assert order == []
    turns.pass_on()
    assert turns.take("first", never), "behind all of them"
    assert order == list("abcdef")
    turns.pass_on()
    for each in waiting:
        each.ends()


def test_who_gives_up_is_passed_over_and_who_is_off_never_waits() -> None:
    turns = Turns()
    order: list[str] = []
    assert not turns.take("off", lambda: True)
    assert turns.take("first", never)
    a, b, c = (Waiting(turns, name, order) for name in "abc")
    b.is_off = True
    turns.give_up(b)
    b.ends()
    turns.give_up(b)
    assert order == ["not b"]
    turns.pass_on()
    a.ends()
    c.ends()
    assert order == ["not b", "a", "c"]
    turns.give_up("first")
    assert turns.take("first", never), "nobody kept it"
    turns.pass_on()


def test_a_turn_that_nobody_else_wants_costs_next_to_nothing() -> None:
    runtime = LlamaRuntime(CALC, lambda step, pct: True)
    on_thread(lambda: runtime.decode([Span(0, 0, [1], True)]))
    share = runtime._context._share
    assert share is not None

    def turn() -> None:
        assert share.begin()
        share.end()

    n = 2000
    assert min(timeit.repeat(turn, number=n, repeat=20)) / n < 3e-6
    runtime.close()


def on_thread(job: Callable[[], object]) -> set[int]:
    """Run it on a thread of its own, since the one that computes is bound; the cores that one has then."""
    cores: list[set[int]] = []

    def work() -> None:
        job()
        cores.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return cores[0]


def decode_on_thread(runtime: LlamaRuntime) -> set[int]:
    """Two tokens more in slot 0."""
    return on_thread(lambda: runtime.decode([Span(0, runtime.n_past(0), [1, 2], True)]))


@pytest.fixture
def open_calc() -> Iterator[Callable[..., LlamaRuntime]]:
    """Opens the model with other parameters; what is open at the end is closed."""
    opened: list[LlamaRuntime] = []

    def open_one(**parameters: object) -> LlamaRuntime:
        opened.append(LlamaRuntime(replace(CALC, **parameters), lambda step, pct: True))  # type: ignore[arg-type]
        return opened[-1]

    yield open_one
    for runtime in opened:
        runtime.close()  # idempotent


def test_contexts_with_equal_plans_share_a_pool_that_goes_with_the_last(open_calc: Callable[..., LlamaRuntime]) -> None:
    first, second = open_calc(), open_calc()
    assert open_handles()["thread pool"] == 1
    first.close()
    assert open_handles()["thread pool"] == 1
    decode_on_thread(second)
    second.close()
    assert "thread pool" not in open_handles()
    assert pool._awake is None


def test_a_pool_that_the_system_has_no_threads_for_is_an_error_and_not_the_end_of_the_process(
    open_calc: Callable[..., LlamaRuntime], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = threading.Thread.start
    n_started = 0

    def start(thread: threading.Thread) -> None:
        nonlocal n_started
        n_started += 1
        if n_started > 1:
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(LoadFailed, match="the system refuses 2 more threads: can't start new thread"):
        open_calc(n_threads=2)
    assert not [thread for thread in threading.enumerate() if thread.name == "modeld-trial"]


def test_pools_of_different_plans_give_way_to_each_other(open_calc: Callable[..., LlamaRuntime]) -> None:
    plain, other = open_calc(), open_calc(cpu_pinning="off", n_threads=1)
    assert open_handles()["thread pool"] == 2
    for i in range(1, 4):
        for runtime in (plain, other):
            decode_on_thread(runtime)
            assert runtime.n_past(0) == 2 * i
    other.close()  # the one that computed last
    decode_on_thread(plain)
    assert open_handles()["thread pool"] == 1


def test_the_thread_of_each_context_is_bound_like_the_first(open_calc: Callable[..., LlamaRuntime]) -> None:
    allowed = os.sched_getaffinity(0)
    runtimes = [open_calc(cpu_pinning="on") for _ in range(3)]
    assert [decode_on_thread(runtime) for runtime in runtimes] == [{compute_plan(0, "on").cores[-1]}] * 3
    assert os.sched_getaffinity(0) == allowed, "the others keep all cores"


def test_a_decode_that_is_aborted_by_libllama_passes_its_turn_on(
    open_calc: Callable[..., LlamaRuntime], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = open_calc(), open_calc()
    monkeypatch.setattr(first._context._share, "_is_off", lambda: False)  # so that it begins
    first.set_abort(True)

    def aborted() -> None:
        with pytest.raises(DecodeAborted, match=r"60 rows was aborted$"):
            first.decode([Span(0, 0, [1] * 60, True)])

    for _ in range(3):
        on_thread(aborted)
        decode_on_thread(second)
    first.set_abort(False)
    on_thread(lambda: first.decode([Span(0, first.n_past(0), [1], True)]))


def test_an_abort_ends_the_wait_for_the_turn(open_calc: Callable[..., LlamaRuntime]) -> None:
    runtime, outcome = open_calc(), []
    share = runtime._context._share
    assert share is not None
    asked, is_off = threading.Event(), share._is_off

    def watched() -> bool:
        asked.set()
        return is_off()

    share._is_off = watched

    def decode() -> None:
        try:
            runtime.decode([Span(0, 0, [1], True)])
        except DecodeAborted as error:
            outcome.append(str(error))

    assert pool._turns.take("test", lambda: False)
    try:
        thread = threading.Thread(target=decode)
        thread.start()
        assert asked.wait(DEADLINE_S)
        with pool._turns._lock:
            pass
        assert not outcome
        runtime.set_abort(True)
        thread.join(DEADLINE_S)
        assert outcome == ["the decode of 1 rows was aborted before its turn"]
        assert runtime.n_past(0) == 0
    finally:
        pool._turns.pass_on()
    runtime.set_abort(False)
    decode_on_thread(runtime)
