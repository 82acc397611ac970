"""The engine and its runner on the gated fake runtime: every interleaving ends each request exactly once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from modeld.engine.runner import EngineRunner
from modeld.engine.stream import TokenStream
from modeld.errors import (
    ContextLengthExceeded,
    EngineFailed,
    InvalidRequest,
    LoadFailed,
    ModelSwitched,
    OpCancelled,
    QueueFull,
    RequestCancelled,
)
from modeld.llm.adapter import DecodeFatal, DecodeInvalid, NoKvRoom
from modeld.types import ChatMessage, Failed, Finished, GenerateRequest, ModelSpec, Step
from tests.fake_runtime import FakeRuntime, load_fake

SPEC = ModelSpec(id="fake", path=Path("/fake.gguf"))
WARMUP = 1  # decodes before the first request's


def open_fake(
    runtime: FakeRuntime, *, queue_size: int = 2, on_death: Callable[[Exception], None] = lambda error: None
) -> EngineRunner:
    return EngineRunner(SPEC, partial(load_fake, runtime), lambda step, pct: True, on_death, queue_size=queue_size)


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def runner(runtime: FakeRuntime) -> Iterator[EngineRunner]:
    runner = open_fake(runtime)
    yield runner
    runtime.gate.open()
    runner.close(ModelSwitched("the test is over"))
    runner.free()
    assert runtime.closed
    assert runtime.open_samplers == 0


def request(prompt: str = "hi", **more: object) -> GenerateRequest:
    return GenerateRequest("r", prompt, **more)  # type: ignore[arg-type]


def collect(stream: TokenStream) -> tuple[str, Finished | Failed]:
    text = ""
    while True:
        chunk = stream.take(10)
        assert chunk is not None, "no chunk within 10 s"
        text += chunk.text
        if chunk.end is not None:
            return text, chunk.end


def test_a_request_is_answered_to_its_end(runner: EngineRunner) -> None:
    text, end = collect(runner.submit(request()))
    assert text == "abcdefghij"
    assert isinstance(end, Finished)
    assert (end.reason, end.usage.prompt_tokens, end.usage.completion_tokens) == ("stop", 2, 11)


def test_max_tokens_ends_with_length(runner: EngineRunner) -> None:
    text, end = collect(runner.submit(request(max_tokens=3)))
    assert (text, end.reason if isinstance(end, Finished) else end) == ("abc", "length")


def test_the_context_ends_with_length() -> None:
    runtime = FakeRuntime(n_ctx_slot=16, endless=True)
    runner = open_fake(runtime)
    text, end = collect(runner.submit(request("x" * 10)))
    runner.close(ModelSwitched("over"))
    runner.free()
    assert (len(text), end.reason if isinstance(end, Finished) else end) == (6, "length")


def test_a_prompt_that_cannot_fit_is_refused_with_the_numbers(runner: EngineRunner) -> None:
    with pytest.raises(ContextLengthExceeded, match=r"64 tokens; a slot .* holds 64"):
        runner.submit(request("x" * 64))
    assert runner.load().queued == 0


def test_an_empty_prompt_is_refused(runner: EngineRunner) -> None:
    with pytest.raises(InvalidRequest, match="no tokens"):
        runner.submit(request(""))


def test_messages_go_through_the_template(runner: EngineRunner) -> None:
    stream = runner.submit(GenerateRequest("r", (ChatMessage("user", "abc"), ChatMessage("user", "de"))))
    assert stream.prompt_tokens == 5
    collect(stream)


def test_token_prompts_are_checked(runner: EngineRunner) -> None:
    with pytest.raises(InvalidRequest, match="vocabulary"):
        runner.submit(GenerateRequest("r", (1, 2, 300)))
    assert collect(runner.submit(GenerateRequest("r", (1, 2, 3))))[0] == "abcdefghij"


def test_requests_join_and_leave_the_running_batch(runner: EngineRunner, runtime: FakeRuntime) -> None:
    runtime.gate.shut()
    first = runner.submit(request("aa"))
    runtime.gate.wait_arrived(WARMUP + 1)
    second = runner.submit(request("bbb", max_tokens=2))
    runtime.gate.let(1)
    runtime.gate.wait_arrived(WARMUP + 2)
    assert [(s.slot, len(s.tokens)) for s in runtime.batches[-1]] == [(0, 1), (1, 3)]
    runtime.gate.let(2)
    runtime.gate.wait_arrived(WARMUP + 4)
    assert [s.slot for s in runtime.batches[-1]] == [0], "the second left after its two tokens"
    runtime.gate.open()
    assert collect(first)[0] == "abcdefghij"
    assert collect(second)[0] == "ab"


def test_a_full_queue_is_refused_and_a_place_comes_back(runner: EngineRunner, runtime: FakeRuntime) -> None:
    runtime.gate.shut()
    streams = [runner.submit(request()) for _ in range(6)]  # 4 slots, 2 may wait
    runtime.gate.wait_arrived(WARMUP + 1)
    with pytest.raises(QueueFull) as caught:
        runner.submit(request())
    assert caught.value.retry_after_s
    runtime.gate.open()
    for stream in streams:
        assert collect(stream)[0] == "abcdefghij"
    collect(runner.submit(request()))
    load = runner.load()
    assert (load.slots_busy, load.queued) == (0, 0)


def test_a_client_that_leaves_frees_its_slot_before_the_next_decode(runner: EngineRunner, runtime: FakeRuntime) -> None:
    runtime.gate.shut()
    leaving, staying = runner.submit(request("aa")), runner.submit(request("bb"))
    runtime.gate.wait_arrived(WARMUP + 1)
    runtime.gate.let(1)
    runtime.gate.wait_arrived(WARMUP + 2)
    leaving.cancel()
    leaving.cancel()
    runtime.gate.let(1)
    runtime.gate.wait_arrived(WARMUP + 3)
    assert [s.slot for s in runtime.batches[-1]] == [1]
    assert 0 not in runtime.cells
    runtime.gate.open()
    assert collect(staying)[0] == "abcdefghij"
    end = collect(leaving)[1]
    assert isinstance(end, Failed)
    assert isinstance(end.error, RequestCancelled)


def test_a_request_that_waits_can_be_cancelled(runner: EngineRunner, runtime: FakeRuntime) -> None:
    runtime.gate.shut()
    streams = [runner.submit(request()) for _ in range(5)]
    runtime.gate.wait_arrived(WARMUP + 1)
    streams[4].cancel()
    runtime.gate.open()
    assert isinstance(collect(streams[4])[1], Failed)
    assert all(isinstance(collect(stream)[1], Finished) for stream in streams[:4])


def test_cancelling_after_the_end_does_nothing(runner: EngineRunner) -> None:
    stream = runner.submit(request())
    collect(stream)
    stream.cancel()
    assert isinstance(collect(stream)[1], Finished), "the end stays what it was"
    assert collect(runner.submit(request()))[0] == "abcdefghij"


def test_close_ends_running_and_waiting_requests_with_the_reason_and_aborts_the_decode() -> None:
    runtime = FakeRuntime()
    runner = open_fake(runtime)
    runtime.gate.shut()
    streams = [runner.submit(request()) for _ in range(6)]
    runtime.gate.wait_arrived(WARMUP + 1)
    runner.close(ModelSwitched("another model was asked for"))  # the gate stays shut: only the abort flag ends it
    runner.free()
    for stream in streams:
        end = collect(stream)[1]
        assert isinstance(end, Failed)
        assert isinstance(end.error, ModelSwitched)
    with pytest.raises(ModelSwitched):
        runner.submit(request())
    with pytest.raises(ModelSwitched):
        runner.tokenize("x", add_special=True, parse_special=True)


def test_a_request_that_is_tokenized_while_the_model_leaves_is_told_so(runtime: FakeRuntime) -> None:
    runner = open_fake(runtime)
    entered, go_on = threading.Event(), threading.Event()

    def slow(text: str, **_: bool) -> list[int]:
        entered.set()
        assert go_on.wait(10)
        return list(text.encode())

    runtime.tokenize = slow  # type: ignore[method-assign]
    errors: list[Exception] = []

    def submit() -> None:
        try:
            runner.submit(request())
        except Exception as error:  # noqa: BLE001 - looked at below
            errors.append(error)

    submitter = threading.Thread(target=submit)
    submitter.start()
    assert entered.wait(10)
    closer = threading.Thread(target=runner.close, args=(ModelSwitched("left"),))
    closer.start()
    go_on.set()
    submitter.join(10)
    closer.join(10)
    runner.free()
    assert [type(error) for error in errors] == [ModelSwitched]
    assert runtime.closed


@pytest.mark.parametrize("error", [NoKvRoom("full"), DecodeInvalid("bad")])
def test_a_refused_batch_fails_requests_but_not_the_engine(runner: EngineRunner, runtime: FakeRuntime, error: Exception) -> None:
    runtime.gate.shut()
    stream = runner.submit(request())
    runtime.gate.wait_arrived(WARMUP + 1)
    runtime.fail_next = error
    runtime.gate.open()
    end = collect(stream)[1]
    assert isinstance(end, Failed)
    assert isinstance(end.error, EngineFailed)
    assert collect(runner.submit(request()))[0] == "abcdefghij"


def test_no_room_costs_only_the_youngest(runner: EngineRunner, runtime: FakeRuntime) -> None:
    runtime.gate.shut()
    old, young = runner.submit(request("aa")), runner.submit(request("bb"))
    runtime.gate.wait_arrived(WARMUP + 1)
    runtime.gate.let(1)
    runtime.gate.wait_arrived(WARMUP + 2)
    runtime.fail_next = NoKvRoom("full")
    runtime.gate.open()
    assert collect(old)[0] == "abcdefghij"
    assert isinstance(collect(young)[1], Failed)


def test_an_engine_that_dies_fails_its_requests_with_the_cause_and_says_so_once() -> None:
    runtime = FakeRuntime()
    deaths: list[Exception] = []
    died = threading.Event()

    def on_death(error: Exception) -> None:
        deaths.append(error)
        died.set()

    runner = open_fake(runtime, on_death=on_death)
    runtime.gate.shut()
    streams = [runner.submit(request()) for _ in range(5)]
    runtime.gate.wait_arrived(WARMUP + 1)
    runtime.fail_next = DecodeFatal("llama_decode gave -3")
    runtime.gate.open()
    for stream in streams:
        end = collect(stream)[1]
        assert isinstance(end, Failed)
        assert isinstance(end.error, EngineFailed)
        assert "gave -3" in str(end.error)
    assert died.wait(10)
    with pytest.raises(EngineFailed):
        runner.submit(request())
    runner.close(EngineFailed("gone"))
    runner.free()
    assert len(deaths) == 1
    assert runner.load().queued == 0
    assert runtime.open_samplers == 0


def test_a_model_whose_first_decode_fails_is_not_loaded() -> None:
    runtime = FakeRuntime()
    runtime.fail_next = DecodeFatal("eps is NaN")
    with pytest.raises(LoadFailed, match="eps is NaN"):
        open_fake(runtime)
    assert runtime.closed


def test_progress_goes_from_mmap_to_warmup_and_may_cancel() -> None:
    told: list[tuple[Step, int]] = []

    def on_progress(step: Step, pct: int) -> bool:
        told.append((step, pct))
        return step is not Step.WARMUP

    runtime = FakeRuntime()
    with pytest.raises(OpCancelled):
        EngineRunner(SPEC, partial(load_fake, runtime), on_progress, lambda error: None, queue_size=1)
    assert told == [(Step.MMAP, 0), (Step.MMAP, 50), (Step.MMAP, 100), (Step.WARMUP, 0)]
    assert runtime.closed


def test_a_long_prompt_goes_in_pieces_beside_running_rows(runner: EngineRunner, runtime: FakeRuntime) -> None:
    runtime.gate.shut()
    first = runner.submit(request("aa"))
    runtime.gate.wait_arrived(WARMUP + 1)
    second = runner.submit(request("b" * 40))
    runtime.gate.open()
    assert collect(first)[0] == "abcdefghij"
    assert collect(second)[0] == "abcdefghij"
    rows = [[(s.slot, len(s.tokens)) for s in batch] for batch in runtime.batches[WARMUP:]]
    assert [(0, 1), (1, 31)] in rows
    assert [(0, 1), (1, 9)] in rows
