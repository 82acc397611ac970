"""Width: steps are filled up with rows that nobody needs where that is cheaper; nobody notices."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from modeld.engine.runner import EngineRunner
from modeld.engine.scheduler import Scheduler
from modeld.engine.width import Width
from modeld.errors import ModelSwitched
from modeld.llm.adapter import Span
from modeld.types import Finished, GenerateRequest, ModelSpec
from tests.engine.test_scheduler import run_to_end, sequence, step
from tests.fake_runtime import FakeRuntime, load_fake

WARMUP = 1
COSTS = {5: 42.0, 6: 49.0, 7: 57.0, 8: 38.0, 3: 31.0, 4: 29.0, 2: 24.0, 1: 12.0}  # ms, q05 on 2 cores


def run(width: Width, n: int, n_steps: int, n_room: int = 8, costs: dict[int, float] = COSTS) -> list[int]:
    """The widths of so many steps of n streams."""
    chosen = []
    for _ in range(n_steps):
        chosen.append(width.choose(n, n_room))
        width.measured(chosen[-1], costs[chosen[-1]])
    return chosen


def test_both_widths_are_tried_and_the_cheaper_one_is_kept() -> None:
    assert run(Width(4), 7, 6) == [7, 7, 8, 8, 8, 8]
    assert run(Width(4), 5, 6, costs={5: 36.0, 8: 38.0}) == [5, 5, 8, 8, 5, 5]


def test_one_or_two_streams_are_never_filled_up_to_four() -> None:
    assert run(Width(4), 1, 6) == [1] * 6
    assert run(Width(4), 2, 6) == [2] * 6
    assert run(Width(4), 3, 6) == [3, 3, 4, 4, 4, 4]


def test_full_blocks_are_left_alone() -> None:
    assert run(Width(4), 8, 5) == [8] * 5
    assert run(Width(1), 7, 5) == [7] * 5


def test_without_room_nothing_is_tried() -> None:
    assert run(Width(4), 7, 5, n_room=0) == [7] * 5
    assert run(Width(4), 5, 5, n_room=2) == [5] * 5


def test_a_gain_within_the_noise_is_none() -> None:
    assert run(Width(4), 7, 6, costs={7: 40.0, 8: 39.5})[4:] == [7, 7]


def test_the_other_width_is_tried_again_now_and_then() -> None:
    width = Width(4)
    chosen = run(width, 7, 500)
    assert 1 <= chosen[4:].count(7) <= 3
    # and when filling no longer pays, that is found out
    assert run(width, 7, 1200, costs={7: 20.0, 8: 60.0})[-100:].count(7) >= 99


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    monkeypatch.setattr(Width, "choose", lambda self, n, n_room: min(n + n_room, -(-n // 4) * 4))
    runtime = FakeRuntime(n_slots=4)
    runtime.row_block = 4
    return runtime


@pytest.fixture
def runner(runtime: FakeRuntime) -> Iterator[EngineRunner]:
    spec = ModelSpec(id="fake", path=Path("/fake.gguf"))
    runner = EngineRunner(spec, partial(load_fake, runtime), lambda step, pct: True, lambda error: None, queue_size=4)
    yield runner
    runtime.gate.open()
    runner.close(ModelSwitched("the test is over"))
    runner.free()


def answer(runner: EngineRunner, prompt: str, **more: object) -> tuple[str, Finished]:
    stream = runner.submit(GenerateRequest("r", (prompt,), **more))  # type: ignore[arg-type]
    text = ""
    while True:
        for chunk in stream.take(10) or pytest.fail("no chunk within 10 s"):
            text += chunk.text
            if chunk.end is not None:
                assert isinstance(chunk.end, Finished)
                return text, chunk.end


def test_rows_that_fill_a_step_leave_nothing_behind(runner: EngineRunner, runtime: FakeRuntime) -> None:
    assert answer(runner, "ab")[0] == "abcdefghij"
    widths = {len(batch) for batch in runtime.batches[WARMUP + 1 :]}
    assert widths == {4}, "one stream, three rows that nobody needs"
    assert [runtime.n_past(slot) for slot in range(1, 4)] == [0, 0, 0]


def test_what_ended_sequences_left_outlives_the_filling(runner: EngineRunner, runtime: FakeRuntime) -> None:
    first = "a beginning of some length"
    runtime.gate.shut()
    streams = [runner.submit(GenerateRequest("r", (prompt,))) for prompt in ("x", first)]
    runtime.gate.open()
    for stream in streams:
        ended = False
        while not ended:
            ended = any(chunk.end for chunk in stream.take(10) or ())
    answer(runner, "y")  # alone in slot 0 or beside: its steps are filled in the slot that holds the beginning
    _, end = answer(runner, first)
    assert end.usage.cached_tokens == len(first) - 1


def test_a_slot_that_is_full_is_not_filled(runtime: FakeRuntime) -> None:
    scheduler = Scheduler(n_slots=3, n_batch=100, n_outputs=16)
    one, other = sequence(40), sequence(20)
    scheduler.add(other)
    run_to_end(scheduler, one)
    step(scheduler)
    spans = scheduler.filling(2, n_ctx_slot=64, token=7)
    assert [(span.slot, span.output) for span in spans] == [(1, True), (2, True)]
    assert spans[0].pos >= 40
    assert scheduler.filling(2, n_ctx_slot=spans[0].pos, token=7) == []


def test_the_rows_lie_next_to_the_used_slots_on_either_side() -> None:
    scheduler = Scheduler(n_slots=4, n_batch=100, n_outputs=16)
    for one in [sequence(20) for _ in range(4)]:
        scheduler.add(one)
    step(scheduler)
    first, second, _, last = scheduler.running
    for one in (first, second, last):
        scheduler.remove(one)
    assert [span.slot for span in scheduler.filling(3, 64, 7)] == [0, 1, 3]
    assert [span.slot for span in scheduler.filling(2, 64, 7)] == [1, 3]
    assert [span.slot for span in scheduler.filling(1, 64, 7)] == [3]
    assert scheduler.filling(4, 64, 7) == []


def test_rows_below_do_not_shift_whose_token_is_whose(runner: EngineRunner, runtime: FakeRuntime) -> None:
    runtime.gate.shut()
    streams = [runner.submit(GenerateRequest("r", (prompt,), max_tokens=n)) for prompt, n in (("a", 2), ("b", 2), ("c", 9))]
    runtime.gate.open()
    texts = []
    for stream in streams:
        text, ended = "", False
        while not ended:
            for chunk in stream.take(10) or pytest.fail("no chunk within 10 s"):
                text += chunk.text
                ended = chunk.end is not None
        texts.append(text)
    assert texts == ["ab", "ab", "abcdefghi"]
    assert [len(batch) for batch in runtime.batches[-3:]] == [4, 4, 4]


def test_an_aborted_step_drops_its_filling(runner: EngineRunner, runtime: FakeRuntime) -> None:
    runtime.gate.shut()
    staying = runner.submit(GenerateRequest("r", ("ab",)))
    leaving = runner.submit(GenerateRequest("r", ("cd",)))
    arrived = WARMUP + 1
    runtime.gate.wait_arrived(arrived)
    while len(runtime.batches[-1]) < 4:
        runtime.gate.let(1)
        arrived += 1
        runtime.gate.wait_arrived(arrived)
    runner._engine._runtime.set_abort(True)  # as a cancellation would
    runtime.gate.wait_arrived(arrived + 1)
    assert all(runtime.n_past(span.slot) == span.pos for span in runtime.batches[-1] if isinstance(span, Span))
    runtime.gate.open()
    for stream in (staying, leaving):
        text, ended = "", False
        while not ended:
            for chunk in stream.take(10) or pytest.fail("no chunk within 10 s"):
                text += chunk.text
                ended = chunk.end is not None
        assert text == "abcdefghij"
