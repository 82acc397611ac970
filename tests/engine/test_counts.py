"""What an engine has done is counted exactly, also of what was cut, and goes on when the engine has gone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest

from modeld.engine import counts
from modeld.engine.runner import EngineRunner
from modeld.engine.stream import TokenStream
from modeld.errors import ModelSwitched, RequestCancelled
from modeld.types import Distribution, Failed, Finished, GenerateRequest, ModelSpec, Usage
from tests.fake_runtime import FakeRuntime, load_fake

SPEC = ModelSpec(id="fake", path=Path("/fake.gguf"))
WARMUP = 1  # decodes before the first request's


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def runner(runtime: FakeRuntime) -> Iterator[EngineRunner]:
    runner = EngineRunner(SPEC, partial(load_fake, runtime), lambda step, pct: True, lambda error: None, queue_size=2)
    yield runner
    runtime.gate.open()
    runner.close(ModelSwitched("the test is over"))
    runner.free()


def request(prompt: str = "hi", **more: object) -> GenerateRequest:
    return GenerateRequest("r", (prompt,), **more)  # type: ignore[arg-type]


def end_of(stream: TokenStream) -> Finished | Failed:
    while True:
        chunks = stream.take(10)
        assert chunks is not None
        if chunks[-1].end is not None:
            return chunks[-1].end


def test_a_lone_answer_is_counted_to_the_token(runner: EngineRunner) -> None:
    end = end_of(runner.submit(request("hello", max_tokens=5)))
    assert isinstance(end, Finished)
    figures = runner.figures()
    assert (figures.n_decodes, figures.n_aborted) == (5, 0)
    assert figures.n_rows_prompt == end.usage.prompt_tokens
    assert (figures.n_rows_generation, figures.n_rows_filling) == (4, 0)
    assert (figures.n_placed, figures.queue_s.n) == (1, 1)
    assert figures.token_s.n == 4  # between five tokens
    assert 0 < figures.decode_s <= figures.busy_s


def test_answers_side_by_side_have_a_gap_for_each_token_but_their_first(runner: EngineRunner) -> None:
    streams = [runner.submit(request(f"{i} hello", max_tokens=n)) for i, n in enumerate((3, 5, 4))]
    for stream in streams:
        end_of(stream)
    figures = runner.figures()
    assert figures.token_s.n == 2 + 4 + 3
    assert figures.token_s.sum < 10  # none of them since the clock began
    assert figures.n_placed == 3


def test_what_another_one_had_computed_is_counted(runner: EngineRunner) -> None:
    prompt = "a prompt that is long enough to be shared"
    end_of(runner.submit(request(prompt, max_tokens=1)))
    end = end_of(runner.submit(request(prompt, max_tokens=1)))
    assert isinstance(end, Finished)
    figures = runner.figures()
    assert figures.n_reused_slots == end.usage.cached_tokens > 16
    assert figures.n_reused_kept == 0
    used, total = runner.n_cells()
    assert len(prompt) <= used <= total


def test_a_client_that_leaves_has_used_what_was_computed_for_it(runner: EngineRunner, runtime: FakeRuntime) -> None:
    runtime.gate.shut()
    stream = runner.submit(request("hello", max_tokens=50))
    runtime.gate.let(3)
    runtime.gate.wait_arrived(WARMUP + 4)
    stream.cancel()
    end = end_of(stream)
    assert isinstance(end, Failed)
    assert isinstance(end.error, RequestCancelled)
    assert end.usage == Usage(len("hello"), 3)
    assert runner.figures().n_aborted == 1


def test_a_request_that_was_cut_before_its_prompt_was_read_has_used_nothing(runner: EngineRunner, runtime: FakeRuntime) -> None:
    runtime.gate.shut()
    stream = runner.submit(request("hello", max_tokens=50))
    runtime.gate.wait_arrived(WARMUP + 1)
    runner.close(ModelSwitched("the model was switched"))
    end = end_of(stream)
    assert isinstance(end, Failed)
    assert end.usage == Usage(0, 0)


def test_figures_are_read_while_a_decode_is_stuck(runner: EngineRunner, runtime: FakeRuntime) -> None:
    runtime.gate.shut()
    runner.submit(request("hello", max_tokens=5))
    runtime.gate.wait_arrived(WARMUP + 1)
    assert runner.figures().n_decodes == 0
    assert runner.n_cells()[0] == 0
    assert runner.load().slots_busy == 1


def test_the_figures_of_two_engines_add_up(runner: EngineRunner) -> None:
    end_of(runner.submit(request("hello", max_tokens=5)))
    one = runner.figures()
    both = counts.total([one, one])
    for item in fields(one):
        was, now = getattr(one, item.name), getattr(both, item.name)
        if isinstance(was, Distribution):
            assert now == Distribution(was.bounds, tuple(2 * n for n in was.counts), 2 * was.sum)
        else:
            assert now == 2 * was
    assert counts.total([]) == counts.NONE
