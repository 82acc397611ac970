"""Embeddings through the runner on the gated fake runtime: shared decodes, and exactly one end for each request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from modeld.engine.runner import EngineRunner
from modeld.engine.vectors import EmbeddingJob
from modeld.errors import (
    ContextLengthExceeded,
    EngineFailed,
    InvalidRequest,
    LoadFailed,
    ModelSwitched,
    QueueFull,
    RequestCancelled,
)
from modeld.llm.adapter import DecodeFatal, DecodeInvalid, NoKvRoom
from modeld.types import Embedded, EmbedRequest, GenerateRequest, ModelSpec
from tests.fake_runtime import FakeRuntime, load_fake

SPEC = ModelSpec(id="fake", path=Path("/fake.gguf"))
WARMUP = 1  # decodes before the first request's


def open_fake(
    runtime: FakeRuntime, *, queue_size: int = 2, on_death: Callable[[Exception], None] = lambda error: None
) -> EngineRunner:
    return EngineRunner(SPEC, partial(load_fake, runtime), lambda step, pct: True, on_death, queue_size=queue_size)


@pytest.fixture
def runtime() -> FakeRuntime:
    runtime = FakeRuntime()
    runtime.pooling = "mean"
    return runtime


@pytest.fixture
def runner(runtime: FakeRuntime) -> Iterator[EngineRunner]:
    runner = open_fake(runtime)
    yield runner
    runtime.gate.open()
    runner.close(ModelSwitched("the test is over"))
    runner.free()
    assert runtime.closed
    assert not runtime.cells, "cells were left"


def request(*inputs: str | tuple[int, ...], dimensions: int | None = None) -> EmbedRequest:
    return EmbedRequest("r", inputs, dimensions=dimensions)


def result(job: EmbeddingJob) -> Embedded:
    embedded = job.result(10)
    assert embedded is not None, "no end within 10 s"
    return embedded


def rows(runtime: FakeRuntime) -> list[int]:
    """Of each span of the last decode."""
    return [len(span.tokens) for span in runtime.batches[-1]]


def test_each_input_gets_its_vector_in_order(runner: EngineRunner) -> None:
    embedded = result(runner.embed(request("abc", (1, 2), "d")))
    assert [list(vector) for vector in embedded.vectors] == [[sum(b"abc"), 3], [3, 2], [ord("d"), 1]]
    assert embedded.prompt_tokens == 6


def test_inputs_of_several_requests_share_a_decode(runner: EngineRunner, runtime: FakeRuntime) -> None:
    runtime.gate.shut()
    first = runner.embed(request("x"))
    runtime.gate.wait_arrived(WARMUP + 1)
    others = [runner.embed(request("a" * n)) for n in (2, 3, 4)]
    runtime.gate.open()
    assert [result(job).vectors[0][1] for job in (first, *others)] == [1, 2, 3, 4]
    assert rows(runtime) == [2, 3, 4]


def test_a_request_with_more_inputs_than_slots_is_answered_whole(runner: EngineRunner) -> None:
    embedded = result(runner.embed(request(*["x" * (1 + i % 20) for i in range(100)])))
    assert [vector[1] for vector in embedded.vectors] == [1 + i % 20 for i in range(100)]


def test_a_short_request_is_answered_before_the_end_of_one_with_many_inputs(runner: EngineRunner, runtime: FakeRuntime) -> None:
    runtime.gate.shut()
    many = runner.embed(request(*["x" * 32] * 20))  # one input fills a batch
    runtime.gate.wait_arrived(WARMUP + 1)
    one = runner.embed(request("y" * 32))
    assert many.result(0) is None
    runtime.gate.let(3)
    assert result(one).prompt_tokens == 32
    assert len(runtime.batches) <= WARMUP + 4
    runtime.gate.open()
    assert result(many).prompt_tokens == 640


def test_the_load_counts_inputs_that_run_and_requests_that_wait(runner: EngineRunner, runtime: FakeRuntime) -> None:
    runtime.gate.shut()
    jobs = [runner.embed(request("x" * 16, "x" * 16))]
    runtime.gate.wait_arrived(WARMUP + 1)
    jobs.append(runner.embed(request("y")))
    load = runner.load()
    assert (load.slots_total, load.slots_busy, load.queued) == (4, 2, 1)
    runtime.gate.open()
    for job in jobs:
        result(job)
    load = runner.load()
    assert (load.slots_busy, load.queued) == (0, 0)


def test_a_full_queue_is_refused_and_a_place_comes_back(runner: EngineRunner, runtime: FakeRuntime) -> None:
    runtime.gate.shut()
    jobs = [runner.embed(request("x")) for _ in range(6)]  # 4 slots, 2 may wait
    with pytest.raises(QueueFull, match="6 requests"):
        runner.embed(request("x"))
    runtime.gate.open()
    for job in jobs:
        result(job)
    result(runner.embed(request("x")))


def test_a_client_that_leaves_while_it_waits_takes_no_part_in_a_decode(runner: EngineRunner, runtime: FakeRuntime) -> None:
    runtime.gate.shut()
    first = runner.embed(request("x"))
    runtime.gate.wait_arrived(WARMUP + 1)
    gone, stays = runner.embed(request(*["a"] * 50)), runner.embed(request("bb"))
    gone.cancel()
    gone.cancel()
    runtime.gate.open()
    with pytest.raises(RequestCancelled):
        result(gone)
    assert result(first).prompt_tokens == 1
    assert result(stays).prompt_tokens == 2
    assert rows(runtime) == [2]
    gone.cancel()  # after the end: nothing
    assert runner.load().queued == 0


def test_a_client_that_leaves_in_the_middle_frees_the_next_decodes(runner: EngineRunner, runtime: FakeRuntime) -> None:
    runtime.gate.shut()
    gone = runner.embed(request(*["x" * 32] * 20))
    runtime.gate.wait_arrived(WARMUP + 1)
    gone.cancel()
    runtime.gate.open()
    with pytest.raises(RequestCancelled):
        result(gone)
    assert gone.n_computed == sum(len(span.tokens) for span in runtime.batches[WARMUP]), "what was computed for it"
    result(runner.embed(request("y")))
    assert len(runtime.batches) == WARMUP + 2


def test_a_switch_ends_what_runs_and_what_waits_with_its_reason(runner: EngineRunner, runtime: FakeRuntime) -> None:
    runtime.gate.shut()
    jobs = [runner.embed(request("x" * 32, "y")) for _ in range(3)]
    runtime.gate.wait_arrived(WARMUP + 1)
    runner.close(ModelSwitched("away"))
    for job in jobs:
        with pytest.raises(ModelSwitched, match="away"):
            result(job)
    with pytest.raises(ModelSwitched):
        runner.embed(request("x"))
    runtime.cells.clear()  # of the aborted decode; the context is freed next


@pytest.mark.parametrize("error", [NoKvRoom("none"), DecodeInvalid("refused")])
def test_a_refused_decode_fails_its_requests_and_no_others(runner: EngineRunner, runtime: FakeRuntime, error: Exception) -> None:
    runtime.gate.shut()
    first = runner.embed(request("x"))
    runtime.gate.wait_arrived(WARMUP + 1)
    second = runner.embed(request("y"))
    runtime.fail_next = error
    runtime.gate.open()
    with pytest.raises(EngineFailed, match=str(error)):
        result(first)
    assert result(second).prompt_tokens == 1


def test_an_engine_that_dies_fails_all_and_says_so_once(runtime: FakeRuntime) -> None:
    deaths: list[Exception] = []
    runner = open_fake(runtime, on_death=deaths.append)
    runtime.gate.shut()
    jobs = [runner.embed(request("x" * 32)) for _ in range(3)]
    runtime.fail_next = DecodeFatal("no memory")
    runtime.gate.open()
    for job in jobs:
        with pytest.raises(EngineFailed, match="no memory"):
            result(job)
    runner.close(ModelSwitched("over"))
    runner.free()
    assert len(deaths) == 1


def test_a_model_whose_first_decode_fails_is_not_loaded(runtime: FakeRuntime) -> None:
    runtime.fail_next = DecodeFatal("bad weights")
    with pytest.raises(LoadFailed, match="bad weights"):
        open_fake(runtime)
    assert runtime.closed


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        (request("x" * 65), ContextLengthExceeded, r"input\[0\] has 65 tokens; an input of model 'fake' may have 64"),
        (request("a", "x" * 5000), ContextLengthExceeded, r"input\[1\] has 5000 bytes"),
        (request("a", ""), InvalidRequest, r"input\[1\] has no tokens"),
        (request((1, 2), ()), InvalidRequest, r"input\[1\] has no tokens"),
        (request((1, 300)), InvalidRequest, r"input\[0\]: token 300 is outside the vocabulary \(0\.\.299\)"),
        (request("a", dimensions=3), InvalidRequest, "dimensions is 3; model 'fake' has 2"),
    ],
)
def test_what_cannot_be_embedded_is_refused_with_the_numbers(
    runner: EngineRunner, wrong: EmbedRequest, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        runner.embed(wrong)
    assert runner.load().queued == 0


def test_a_model_for_embeddings_does_not_generate(runner: EngineRunner) -> None:
    with pytest.raises(InvalidRequest, match="embeddings: off") as caught:
        runner.submit(GenerateRequest("r", ("hi",)))
    assert caught.value.param == "model"


def test_a_model_that_generates_gives_no_embeddings() -> None:
    runner = open_fake(FakeRuntime())
    with pytest.raises(InvalidRequest, match="embeddings: on") as caught:
        runner.embed(request("x"))
    assert caught.value.param == "model"
    runner.close(ModelSwitched("over"))
    runner.free()


def test_without_pooling_there_is_no_vector_of_an_input() -> None:
    runtime = FakeRuntime()
    runtime.pooling = "none"
    runner = open_fake(runtime)
    with pytest.raises(InvalidRequest, match="pooling: mean"):
        runner.embed(request("x"))
    runner.close(ModelSwitched("over"))
    runner.free()


def test_every_request_of_a_crowd_ends_once_whatever_leaves(runner: EngineRunner) -> None:
    def one(i: int) -> str:
        try:
            job = runner.embed(request(*["x" * (1 + (i * 7 + k) % 32) for k in range(1 + i % 9)]))
        except QueueFull:
            return "full"
        if i % 5 == 0:
            job.cancel()
        try:
            assert result(job).prompt_tokens == sum(1 + (i * 7 + k) % 32 for k in range(1 + i % 9))
        except RequestCancelled:
            return "cancelled"
        return "done"

    with ThreadPoolExecutor(8) as pool:
        ends = list(pool.map(one, range(200)))
    assert "done" in ends
    load = runner.load()
    assert (load.slots_busy, load.queued) == (0, 0)
