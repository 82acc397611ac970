"""The engine on the real libllama: what aborted decodes and rows that fill a step cost the others, which is nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from modeld.engine.pace import Pace
from modeld.engine.runner import EngineRunner
from modeld.engine.width import Width
from modeld.errors import ModelSwitched
from modeld.llm.adapter import DecodeAborted, Span
from modeld.llm.runtime import LlamaRuntime
from modeld.types import Failed, Finished, GenerateRequest, ModelSpec, SamplingParams
from tests.daemon import MODELS
from tests.engine.test_engine import collect

STORIES = ModelSpec(id="demo-stories", path=MODELS / "demo-stories.gguf", n_ctx=2048, n_parallel=4)
GREEDY = SamplingParams(temperature=0, ignore_eos=True)
STARTS = ("Once upon a time", "The little dog", "One day a girl")
N_TOKENS = 60  # few enough that no two tokens are nearly level: which one wins depends on how many rows a decode has


def request(prompt: str, max_tokens: int) -> GenerateRequest:
    return GenerateRequest("r", (prompt,), max_tokens=max_tokens, sampling=GREEDY, cache_prompt=False)


def test_clients_that_leave_in_the_middle_of_a_decode_cost_the_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    aborted: list[Sequence[Span]] = []
    decode = LlamaRuntime.decode

    def watched(self: LlamaRuntime, spans: Sequence[Span]) -> None:
        try:
            decode(self, spans)
        except DecodeAborted:
            aborted.append(spans)
            raise

    monkeypatch.setattr(LlamaRuntime, "decode", watched)
    monkeypatch.setattr(Pace, "expected_s", lambda self, n_generating, n_prompt: 60.0)  # so every decode is worth an abort
    runner = EngineRunner(STORIES, LlamaRuntime, lambda step, pct: True, lambda error: None, queue_size=8)
    try:
        alone = [collect(runner.submit(request(start, N_TOKENS)))[0] for start in STARTS]
        for _ in range(20):
            staying = [runner.submit(request(start, N_TOKENS)) for start in STARTS]
            for n_words in (1, 40, 80, 1, 40, 80):
                leaving = runner.submit(request("and then " * n_words, 10_000))  # that is: what its slot holds
                assert leaving.take(10)
                leaving.cancel()
                assert isinstance(collect(leaving)[1], Failed)
            for stream, text in zip(staying, alone, strict=True):
                told, end = collect(stream)
                assert told == text
                assert isinstance(end, Finished)
                assert end.usage.completion_tokens == N_TOKENS
            if any(len(spans) > 1 for spans in aborted):
                return
        raise AssertionError("no decode was aborted in which others had rows")
    finally:
        runner.close(ModelSwitched("the test is over"))
        runner.free()


def test_rows_that_fill_a_step_change_nobodys_text_and_keep_what_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    decode = LlamaRuntime.decode

    def watched(self: LlamaRuntime, spans: Sequence[Span]) -> None:
        widths.append(len(spans))
        decode(self, spans)

    monkeypatch.setattr(LlamaRuntime, "decode", watched)
    cached = "Once there was a girl who had a dog and a cat and a bird and they all went out"
    texts = []
    for fill in (False, True):
        monkeypatch.setattr(Width, "choose", lambda self, n, n_room, fill=fill: min(n + n_room, 4) if fill else n)
        runner = EngineRunner(STORIES, LlamaRuntime, lambda step, pct: True, lambda error: None, queue_size=8)
        try:
            widths.clear()
            streams = [runner.submit(GenerateRequest("r", (text,), max_tokens=8, sampling=GREEDY)) for text in ("A", "B", cached)]
            for stream in streams:
                collect(stream)
            texts.append([collect(runner.submit(request(start, N_TOKENS)))[0] for start in STARTS])
            end = collect(runner.submit(GenerateRequest("r", (cached,), max_tokens=8, sampling=GREEDY)))[1]
            assert isinstance(end, Finished)
            assert end.usage.cached_tokens == end.usage.prompt_tokens - 1, (
                "it was cached in a slot whose next cell the filling used"
            )
            assert (max(widths[-5:]) == 4) is fill
        finally:
            runner.close(ModelSwitched("the test is over"))
            runner.free()
    assert texts[0] == texts[1]
