"""The engine and its runner on the gated fake runtime: every interleaving ends each request exactly once."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from modeld.engine.pace import Pace
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
    return GenerateRequest("r", (prompt,), **more)  # type: ignore[arg-type]


def collect(stream: TokenStream) -> tuple[str, Finished | Failed]:
    text = ""
    while True:
        chunks = stream.take(10)
        assert chunks is not None, "no chunk within 10 s"
        for chunk in chunks:
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


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(runner: EngineRunner, runtime: FakeRuntime) -> None:
    def never(text: str, **_: bool) -> list[int]:
        raise AssertionError("tokenized")

    runtime.tokenize = never  # type: ignore[method-assign]
    with pytest.raises(ContextLengthExceeded, match=r"5000 bytes, .* 64 tokens"):
        runner.submit(request("x" * 5000))
    assert runner.load().queued == 0


def test_an_empty_prompt_is_refused(runner: EngineRunner) -> None:
    with pytest.raises(InvalidRequest, match="no tokens"):
        runner.submit(request(""))


def test_messages_go_through_the_template(runner: EngineRunner) -> None:
    stream = runner.submit(GenerateRequest("r", ((ChatMessage("user", "abc"), ChatMessage("user", "de")),)))
    end = collect(stream)[1]
    assert isinstance(end, Finished)
    assert end.usage.prompt_tokens == 5


def test_token_prompts_are_checked(runner: EngineRunner) -> None:
    with pytest.raises(InvalidRequest, match="vocabulary"):
        runner.submit(GenerateRequest("r", ((1, 2, 300),)))
    assert collect(runner.submit(GenerateRequest("r", ((1, 2, 3),))))[0] == "abcdefghij"


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
    assert runner.load().slots_busy == 1
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


def test_a_request_that_waits_holds_four_bytes_a_token_and_little_else() -> None:
    n_waiting, n_tokens = 50, 5000
    runtime = FakeRuntime(n_ctx_slot=2 * n_tokens)
    runner = open_fake(runtime, queue_size=n_waiting)
    runtime.gate.shut()
    running = [runner.submit(request()) for _ in range(runtime.n_slots)]
    runtime.gate.wait_arrived(WARMUP + 1)
    requests = [request("x" * n_tokens) for _ in range(n_waiting)]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        waiting = [runner.submit(each) for each in requests]
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        runner.close(ModelSwitched("over"))
        runner.free()
    for stream in (*running, *waiting):
        assert isinstance(collect(stream)[1], Failed)
    assert (after - before) / n_waiting < 4 * n_tokens + 4096


def test_cancelling_after_the_end_does_nothing(runner: EngineRunner) -> None:
    stream = runner.submit(request())
    collect(stream)
    stream.cancel()
    assert isinstance(collect(runner.submit(request()))[1], Finished), "the engine goes on"
    assert stream.take(0) is None, "nothing comes after the end"
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


class SlowTokenizing:
    """Requests that stay on the tokenize threads until `go_on`; what became of their submission is in `errors`."""

    def __init__(self, runtime: FakeRuntime, runner: EngineRunner) -> None:
        self.entered, self.go_on = threading.Semaphore(0), threading.Event()
        self.errors: list[Exception] = []
        self._runner = runner
        runtime.tokenize = self._tokenize  # type: ignore[method-assign]

    def _tokenize(self, text: str, **_: bool) -> list[int]:
        self.entered.release()
        assert self.go_on.wait(10)
        return list(text.encode())

    def submit(self) -> threading.Thread:
        def run() -> None:
            try:
                self._runner.submit(request())
            except Exception as error:  # noqa: BLE001 - looked at by the test
                self.errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread


def test_a_request_that_is_tokenized_while_the_model_leaves_is_told_so(runtime: FakeRuntime) -> None:
    runner = open_fake(runtime)
    slow = SlowTokenizing(runtime, runner)
    submitter = slow.submit()
    assert slow.entered.acquire(timeout=10)
    closer = threading.Thread(target=runner.close, args=(ModelSwitched("left"),))
    closer.start()
    slow.go_on.set()
    submitter.join(10)
    closer.join(10)
    runner.free()
    assert [type(error) for error in slow.errors] == [ModelSwitched]
    assert runtime.closed


def test_prompts_that_wait_for_a_tokenize_thread_are_told_that_the_model_left(runtime: FakeRuntime) -> None:
    runner = open_fake(runtime)
    slow = SlowTokenizing(runtime, runner)
    submitters = [slow.submit() for _ in range(5)]
    for _ in range(2):
        assert slow.entered.acquire(timeout=10)
    closer = threading.Thread(target=runner.close, args=(ModelSwitched("left"),))
    closer.start()
    while runner._pool._closed is None:
        pass
    slow.go_on.set()
    for thread in (*submitters, closer):
        thread.join(10)
    runner.free()
    assert [type(error) for error in slow.errors] == [ModelSwitched] * 5
    assert not slow.entered.acquire(blocking=False), "a job that waited was run"


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


# -- what sequences share -----------------------------------------------------------------------------------------------


def test_a_beginning_is_computed_once(runner: EngineRunner, runtime: FakeRuntime) -> None:
    shared = "s" * 25
    first = collect(runner.submit(request(shared + "1", max_tokens=2)))[1]
    second = collect(runner.submit(request(shared + "2", max_tokens=2)))[1]
    assert isinstance(first, Finished)
    assert isinstance(second, Finished)
    assert (first.usage.cached_tokens, second.usage.cached_tokens) == (0, 25)
    assert [(s.slot, s.pos, len(s.tokens)) for s in runtime.batches[-2]] == [(0, 25, 1)]


def test_a_running_sequence_lends_its_cells(runner: EngineRunner, runtime: FakeRuntime) -> None:
    runtime.gate.shut()
    first = runner.submit(request("s" * 30))
    runtime.gate.wait_arrived(WARMUP + 1)
    second = runner.submit(request("s" * 25 + "x"))
    runtime.gate.let(1)
    runtime.gate.wait_arrived(WARMUP + 2)
    assert runtime.copies == [(0, 1)]
    assert [(s.slot, s.pos, len(s.tokens)) for s in runtime.batches[-1]] == [(0, 30, 1), (1, 25, 1)]
    runtime.gate.open()
    assert collect(first)[0] == collect(second)[0] == "abcdefghij"


def test_memory_that_cannot_be_cut_is_neither_shared_nor_moved() -> None:
    runtime = FakeRuntime()
    runtime.can_cut = False
    runner = open_fake(runtime)
    for _ in range(2):
        end = collect(runner.submit(request("s" * 30)))[1]
        assert isinstance(end, Finished)
        assert end.usage.cached_tokens == 0
    runner.close(ModelSwitched("over"))
    runner.free()
    assert not runtime.copies


def test_memory_that_cannot_be_cut_is_not_taken_from_a_running_sequence() -> None:
    runtime = FakeRuntime()
    runtime.can_cut = False
    runner = open_fake(runtime)
    runtime.gate.shut()
    first = runner.submit(request("s" * 25))
    runtime.gate.let(1)  # its cells are there, and it goes on
    runtime.gate.wait_arrived(WARMUP + 2)
    second = runner.submit(request("s" * 25 + "x"))
    runtime.gate.open()
    for stream in (first, second):
        text, end = collect(stream)
        assert text == "abcdefghij"
        assert isinstance(end, Finished)
        assert end.usage.cached_tokens == 0
    runner.close(ModelSwitched("over"))
    runner.free()


def test_holes_are_closed_by_moving_the_outermost_sequence(runner: EngineRunner, runtime: FakeRuntime) -> None:
    runtime.gate.shut()
    streams = [runner.submit(request(letter * 3)) for letter in "uvwx"]
    runtime.gate.wait_arrived(WARMUP + 1)
    runtime.gate.let(1)
    runtime.gate.wait_arrived(WARMUP + 2)
    streams[1].cancel()
    runtime.gate.let(1)
    runtime.gate.wait_arrived(WARMUP + 3)
    assert [s.slot for s in runtime.batches[-1]] == [0, 1, 2]
    runtime.gate.open()
    for i in (0, 2, 3):
        assert collect(streams[i])[0] == "abcdefghij"


def test_a_long_prompt_of_a_client_that_left_is_aborted_and_the_others_lose_nothing() -> None:
    runtime = FakeRuntime(n_batch=40)
    runner = open_fake(runtime)
    runtime.gate.shut()
    staying = runner.submit(request("aa"))
    runtime.gate.wait_arrived(WARMUP + 1)
    runtime.gate.let(1)
    runtime.gate.wait_arrived(WARMUP + 2)
    leaving = runner.submit(request("b" * 35))
    runtime.gate.let(1)
    runtime.gate.wait_arrived(WARMUP + 3)
    handler = threading.Thread(target=leaving.take, args=(None,))
    handler.start()
    leaving.cancel()  # the gate stays shut: only the abort flag ends this decode
    handler.join(10)
    assert not handler.is_alive(), "it waits for the next decode"
    runtime.gate.open()
    assert collect(staying)[0] == "abcdefghij"
    runner.close(ModelSwitched("over"))
    runner.free()


@pytest.fixture
def long_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every decode is expected to take a minute."""
    monkeypatch.setattr(Pace, "expected_s", lambda self, n_generating, n_prompt: 60.0)


def at_full_width(runner: EngineRunner, runtime: FakeRuntime, n: int) -> list[TokenStream]:
    """`n` sequences whose first token is sampled; the gate is shut, and the decode of the next ones waits at it."""
    runtime.gate.shut()
    streams = [runner.submit(request(letter * 2)) for letter in "uvwx"[:n]]
    n_arrived = WARMUP + 1
    runtime.gate.wait_arrived(n_arrived)
    while [len(span.tokens) for span in runtime.batches[-1]] != [1] * n:
        runtime.gate.let(1)
        n_arrived += 1
        runtime.gate.wait_arrived(n_arrived)
    return streams


@pytest.mark.usefixtures("long_steps")
def test_a_slot_does_not_wait_for_the_end_of_a_long_step_and_the_others_lose_nothing(
    runner: EngineRunner, runtime: FakeRuntime
) -> None:
    leaving, *staying = at_full_width(runner, runtime, 4)
    leaving.cancel()  # one row of four; the gate stays shut: only the abort flag ends this decode
    assert isinstance(collect(leaving)[1], Failed)
    assert runner.load().slots_busy == 3
    runtime.gate.open()
    for stream in staying:
        text, end = collect(stream)
        assert text == "abcdefghij"
        assert isinstance(end, Finished)
        assert end.usage.completion_tokens == 11


@pytest.mark.usefixtures("long_steps")
def test_clients_that_come_and_go_let_every_second_decode_end(runner: EngineRunner, runtime: FakeRuntime) -> None:
    first, second, third, staying = at_full_width(runner, runtime, 4)
    n_arrived = runtime.gate.n_arrived
    first.cancel()
    runtime.gate.wait_arrived(n_arrived + 1)
    second.cancel()
    assert not runtime._aborted.is_set(), "two in a row"
    runtime.gate.let(1)
    runtime.gate.wait_arrived(n_arrived + 2)
    assert len(runtime.batches[-1]) == 2, "the second one left when its decode had ended"
    third.cancel()  # the gate is shut again: only an abort ends this decode
    runtime.gate.wait_arrived(n_arrived + 3)
    assert len(runtime.batches[-1]) == 1
    runtime.gate.open()
    assert collect(staying)[0] == "abcdefghij"


@pytest.mark.usefixtures("long_steps")
def test_a_prompt_whose_turn_has_not_come_leaves_a_long_step_too() -> None:
    runtime = FakeRuntime(n_batch=8)
    runner = open_fake(runtime)
    staying, reading = at_full_width(runner, runtime, 2)
    long = runner.submit(request("l" * 30))
    waiting = runner.submit(request("m" * 30))
    n_arrived = runtime.gate.n_arrived
    runtime.gate.let(1)
    runtime.gate.wait_arrived(n_arrived + 1)
    assert [span.slot for span in runtime.batches[-1]] == [0, 1, 2], "the last one has a slot and no rows"
    waiting.cancel()
    assert isinstance(collect(waiting)[1], Failed)
    runtime.gate.open()
    for stream in (staying, reading, long):
        assert collect(stream)[0] == "abcdefghij"
    runner.close(ModelSwitched("over"))
    runner.free()


@pytest.mark.usefixtures("long_steps")
def test_a_memory_that_cannot_be_cut_is_not_aborted_in_the_middle_for_others(
    runner: EngineRunner, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeRuntime, "can_cut", False)
    leaving, staying = at_full_width(runner, runtime, 2)
    leaving.cancel()
    assert not runtime._aborted.is_set()
    runtime.gate.open()
    assert collect(staying)[0] == "abcdefghij"
    assert isinstance(collect(leaving)[1], Failed)


def test_caches_give_way_before_a_running_request_does(runner: EngineRunner, runtime: FakeRuntime) -> None:
    collect(runner.submit(request("s" * 30)))
    runtime.gate.shut()
    stream = runner.submit(request("other"))
    runtime.fail_next = NoKvRoom("full")
    runtime.gate.open()
    assert collect(stream)[0] == "abcdefghij"
