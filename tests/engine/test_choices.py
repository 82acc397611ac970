"""Several answers to one request: one prompt computed once, places taken together, one end for each; logprobs and echo."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from modeld.engine.runner import EngineRunner
from modeld.engine.stream import TokenStream
from modeld.errors import InvalidRequest, ModelSwitched, QueueFull, RequestCancelled
from modeld.llm.adapter import DecodeInvalid
from modeld.types import Chunk, Failed, Finished, GenerateRequest, ModelSpec
from tests.fake_runtime import EOG, FakeRuntime, load_fake

WARMUP = 1
PROMPT = "a beginning of some length"  # longer than what is worth sharing


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def runner(runtime: FakeRuntime) -> Iterator[EngineRunner]:
    spec = ModelSpec(id="fake", path=Path("/fake.gguf"))
    runner = EngineRunner(spec, partial(load_fake, runtime), lambda step, pct: True, lambda error: None, queue_size=2)
    yield runner
    runtime.gate.open()
    runner.close(ModelSwitched("the test is over"))
    runner.free()
    assert runtime.open_samplers == 0


def request(*prompts: str, **more: object) -> GenerateRequest:
    return GenerateRequest("r", prompts or (PROMPT,), **more)  # type: ignore[arg-type]


def collect(stream: TokenStream, n_choices: int) -> list[list[Chunk]]:
    """All chunks of each choice, up to its end."""
    found: list[list[Chunk]] = [[] for _ in range(n_choices)]
    n_open = n_choices
    while n_open:
        chunks = stream.take(10)
        assert chunks is not None, "no chunk within 10 s"
        for chunk in chunks:
            assert not found[chunk.index] or found[chunk.index][-1].end is None, "a chunk after the end"
            found[chunk.index].append(chunk)
            n_open -= chunk.end is not None
    return found


def texts(choices: list[list[Chunk]]) -> list[str]:
    return ["".join(chunk.text for chunk in chunks) for chunks in choices]


def ends(choices: list[list[Chunk]]) -> list[Finished]:
    found = [chunks[-1].end for chunks in choices]
    assert all(isinstance(end, Finished) for end in found), found
    return [end for end in found if isinstance(end, Finished)]


@pytest.mark.parametrize("prompt", [PROMPT, "short"])
def test_the_prompt_of_several_answers_is_computed_once(runner: EngineRunner, runtime: FakeRuntime, prompt: str) -> None:
    choices = collect(runner.submit(request(prompt, n=3)), 3)
    assert texts(choices) == ["abcdefghij"] * 3
    n_prompt = len(prompt)
    rows = [span for batch in runtime.batches[WARMUP:] for span in batch if len(span.tokens) > 1]
    assert [len(span.tokens) for span in rows] == [n_prompt], "the others took it over, but for its last token"
    assert [end.usage.cached_tokens for end in ends(choices)] == [0, n_prompt - 1, n_prompt - 1]
    assert runner.load().slots_busy == runner.load().queued == 0


def test_answers_to_several_prompts_come_in_the_order_of_the_prompts(runner: EngineRunner) -> None:
    choices = collect(runner.submit(request("x", "yy", n=2)), 4)
    assert [end.usage.prompt_tokens for end in ends(choices)] == [1, 1, 2, 2]


def test_more_answers_than_slots_wait_for_each_other(runner: EngineRunner) -> None:
    assert texts(collect(runner.submit(request(n=6, max_tokens=3)), 6)) == ["abc"] * 6


def test_more_answers_than_will_ever_have_a_place_are_refused_with_the_numbers(runner: EngineRunner) -> None:
    with pytest.raises(InvalidRequest, match=r"8 answers .* takes 6 at most \(4 slots"):
        runner.submit(request("a", "b", "c", "d", n=2))
    assert runner.load().queued == 0


def test_places_are_taken_all_or_none(runner: EngineRunner, runtime: FakeRuntime) -> None:
    runtime.gate.shut()
    first = runner.submit(request(n=4))
    with pytest.raises(QueueFull):
        runner.submit(request(n=3))
    second = runner.submit(request(n=2))
    runtime.gate.open()
    assert texts(collect(first, 4)) == ["abcdefghij"] * 4
    assert texts(collect(second, 2)) == ["abcdefghij"] * 2


def test_a_prompt_that_is_refused_gives_all_places_back(runner: EngineRunner) -> None:
    with pytest.raises(InvalidRequest, match="no tokens"):
        runner.submit(request("a", "", n=2))
    assert runner.load().queued == 0
    assert len(collect(runner.submit(request(n=6)), 6)) == 6


def test_cancelling_ends_all_answers(runner: EngineRunner, runtime: FakeRuntime) -> None:
    runtime.gate.shut()
    stream = runner.submit(request(n=6))
    runtime.gate.wait_arrived(WARMUP + 1)
    stream.cancel()
    runtime.gate.open()
    for chunks in collect(stream, 6):
        end = chunks[-1].end
        assert isinstance(end, Failed)
        assert isinstance(end.error, RequestCancelled)
    assert runner.load().slots_busy == runner.load().queued == 0


def test_a_prompt_that_is_mostly_for_a_request_that_left_is_not_read_to_its_end() -> None:
    runtime = FakeRuntime(n_batch=64)
    spec = ModelSpec(id="fake", path=Path("/fake.gguf"))
    runner = EngineRunner(spec, partial(load_fake, runtime), lambda step, pct: True, lambda error: None, queue_size=2)
    runtime.gate.shut()
    stream = runner.submit(request("x" * 30, "y" * 30))  # neither has most of the rows, both together have all
    runtime.gate.wait_arrived(WARMUP + 1)
    stream.cancel()
    collect(stream, 2)  # the gate is shut: only the abort ends the decode
    runner.close(ModelSwitched("the test is over"))
    runner.free()


def test_one_answer_may_fail_alone(runner: EngineRunner, runtime: FakeRuntime) -> None:
    runtime.fail_next = DecodeInvalid("a fault")
    choices = collect(runner.submit(request("a")), 1)
    assert isinstance(choices[0][-1].end, Failed)
    assert texts(collect(runner.submit(request(n=2)), 2)) == ["abcdefghij"] * 2


# -- logprobs: the fake's of token t is -t; the likeliest are 0, 1, 2


def test_logprobs_come_with_the_text_of_their_tokens(runner: EngineRunner) -> None:
    chunks = collect(runner.submit(request(n_top_logprobs=2)), 1)[0]
    items = [item for chunk in chunks for item in chunk.logprobs]
    assert [(item.piece, item.logprob) for item in items] == [(bytes([c]), -float(c)) for c in b"abcdefghij"]
    assert [item.offset for item in items] == list(range(10))
    assert items[0].top == ((b"\0", 0.0), (b"\1", -1.0))
    seen = ""
    for chunk in chunks:
        for item in chunk.logprobs:
            assert item.offset >= len(seen)
        seen += chunk.text


def test_without_being_asked_nobody_gets_logprobs(runner: EngineRunner) -> None:
    assert not [item for chunk in collect(runner.submit(request()), 1)[0] for item in chunk.logprobs]


@pytest.mark.parametrize(("stop", "shown"), [(("def",), "abc"), (("a",), ""), (("cx", "cd"), "ab"), (("zz",), "abcdefghij")])
def test_tokens_that_a_stop_string_took_away_have_no_logprobs(runner: EngineRunner, stop: tuple[str, ...], shown: str) -> None:
    choices = collect(runner.submit(request(n_top_logprobs=0, stop=stop)), 1)
    items = [item for chunk in choices[0] for item in chunk.logprobs]
    assert texts(choices) == [shown]
    assert b"".join(item.piece for item in items).decode() == shown


def test_a_character_of_several_tokens_keeps_their_logprobs() -> None:
    runtime = FakeRuntime(script="aé€".encode())
    spec = ModelSpec(id="fake", path=Path("/fake.gguf"))
    runner = EngineRunner(spec, partial(load_fake, runtime), lambda step, pct: True, lambda error: None, queue_size=2)
    chunks = collect(runner.submit(request(n_top_logprobs=0)), 1)[0]
    items = [item for chunk in chunks for item in chunk.logprobs]
    assert b"".join(item.piece for item in items) == "aé€".encode()
    assert [item.offset for item in items] == [0, 1, 1, 2, 2, 2]
    runner.close(ModelSwitched("the test is over"))
    runner.free()


# -- echo


def test_echo_gives_the_prompt_before_the_answer(runner: EngineRunner) -> None:
    assert texts(collect(runner.submit(request("xy", echo=True)), 1)) == ["xyabcdefghij"]
    tokens = GenerateRequest("r", ((120, 121),), echo=True)
    assert texts(collect(runner.submit(tokens), 1)) == ["xyabcdefghij"]


def test_a_stop_string_in_the_prompt_stops_nothing(runner: EngineRunner) -> None:
    assert texts(collect(runner.submit(request("xdy", echo=True, stop=("d",))), 1)) == ["xdyabc"]


def test_echo_may_ask_for_no_token_at_all(runner: EngineRunner) -> None:
    choices = collect(runner.submit(request(echo=True, max_tokens=0, n=2)), 2)
    assert texts(choices) == [PROMPT] * 2
    assert [(end.reason, end.usage.completion_tokens) for end in ends(choices)] == [("length", 0)] * 2


@pytest.mark.parametrize("n_slots", [1, 4])
def test_echo_with_logprobs_looks_up_every_token_of_the_prompt(n_slots: int) -> None:
    runtime = FakeRuntime(n_slots=n_slots)
    spec = ModelSpec(id="fake", path=Path("/fake.gguf"))
    runner = EngineRunner(spec, partial(load_fake, runtime), lambda step, pct: True, lambda error: None, queue_size=8)
    # The first leaves its cells; the logits of a prompt do not lie in them, so nothing may be taken over.
    collect(runner.submit(request()), 1)
    streams = [runner.submit(request(echo=True, n_top_logprobs=1, max_tokens=2)), runner.submit(request("other"))]
    choices = collect(streams[0], 1)
    items = [item for chunk in choices[0] for item in chunk.logprobs]
    wanted = [(c, -float(c)) for c in PROMPT.encode() + b"ab"]
    assert [(item.piece[0], item.logprob) for item in items] == [(wanted[0][0], None), *wanted[1:]]
    assert [item.offset for item in items] == list(range(len(PROMPT) + 2))
    assert items[0].top == ()
    assert ends(choices)[0].usage.cached_tokens == 0
    collect(streams[1], 1)
    runner.close(ModelSwitched("the test is over"))
    runner.free()


def test_prompt_logprobs_survive_an_aborted_decode(runner: EngineRunner, runtime: FakeRuntime) -> None:
    runtime.gate.shut()
    scored = runner.submit(request("scored prompt", echo=True, n_top_logprobs=0, max_tokens=1))
    runtime.gate.wait_arrived(WARMUP + 1)
    long = runner.submit(request("x" * 30))
    runtime.gate.let(1)
    runtime.gate.wait_arrived(WARMUP + 2)
    long.cancel()  # most of the running decode is its own: it is aborted
    runtime.gate.wait_arrived(WARMUP + 3)
    runtime.gate.open()
    items = [item for chunk in collect(scored, 1)[0] for item in chunk.logprobs]
    assert b"".join(item.piece for item in items) == b"scored prompta"
    assert re.fullmatch(r"scored prompta", "".join(texts([[Chunk(item.piece.decode())] for item in items])))
    collect(long, 1)


def test_offsets_of_an_echo_count_its_characters(
    runner: EngineRunner, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tokenize(text: str, **_: bool) -> list[int]:
        return [EOG, *text.encode()]  # a token before the text that the text does not have, as a BOS

    monkeypatch.setattr(runtime, "tokenize", tokenize)
    (chunks,) = collect(runner.submit(request("aé-", echo=True, n_top_logprobs=0, max_tokens=2)), 1)
    items = [item for chunk in chunks for item in chunk.logprobs]
    assert "".join(chunk.text for chunk in chunks) == "aé-ab"
    assert [(item.piece, item.offset) for item in items] == [
        (b"<eog>", 0), (b"a", 0), (b"\xc3", 1), (b"\xa9", 1), (b"-", 2), (b"a", 3), (b"b", 4),
    ]  # fmt: skip
