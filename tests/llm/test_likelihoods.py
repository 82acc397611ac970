"""Logprobs against a softmax of the same logits, computed here in double precision."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from modeld.llm.adapter import Scored, Span
from modeld.llm.runtime import LlamaRuntime
from modeld.types import ModelSpec

MODELS = Path(__file__).resolve().parents[2] / "models"


@pytest.fixture(params=["demo-stories", "demo-calc"])
def runtime(request: pytest.FixtureRequest) -> Iterator[LlamaRuntime]:
    spec = ModelSpec(id="m", path=MODELS / f"{request.param}.gguf", n_ctx=1024, n_parallel=2)
    runtime = LlamaRuntime(spec, lambda step, pct: True)
    yield runtime
    runtime.close()


def softmax_logs(runtime: LlamaRuntime, row: int) -> list[float]:
    raw = runtime._lib.llama_get_logits_ith(runtime._context, row)
    logits = ctypes.cast(raw, ctypes.POINTER(ctypes.c_float * runtime.n_vocab)).contents[:]
    largest = max(logits)
    log_sum = largest + math.log(math.fsum(math.exp(logit - largest) for logit in logits))
    return [logit - log_sum for logit in logits]


def test_every_token_of_the_vocabulary_is_right_to_1e_4(runtime: LlamaRuntime) -> None:
    prompt = runtime.tokenize("Once upon 12+30=", add_special=True, parse_special=False)
    runtime.decode([Span(0, 0, prompt, True)])
    right = softmax_logs(runtime, len(prompt) - 1)
    found = runtime.logprobs([Scored(0, -1, token, 0) for token in range(runtime.n_vocab)])
    assert max(abs((item.logprob or 0.0) - log) for item, log in zip(found, right, strict=True)) < 1e-4
    assert abs(math.fsum(math.exp(item.logprob or 0.0) for item in found) - 1) < 1e-4
    runtime.forget(0)


@pytest.mark.parametrize("n_top", [1, 5, 20])
def test_the_likeliest_are_the_likeliest_in_their_order(runtime: LlamaRuntime, n_top: int) -> None:
    prompt = runtime.tokenize("Once upon 1+1=", add_special=True, parse_special=False)
    runtime.decode([Span(1, 0, prompt, True)])
    right = softmax_logs(runtime, len(prompt) - 1)
    (item,) = runtime.logprobs([Scored(0, -1, 5, n_top)])
    best = sorted(range(len(right)), key=lambda token: -right[token])[:n_top]
    assert [piece for piece, _ in item.top] == [runtime.piece(token) for token in best]
    for (_, logprob), token in zip(item.top, best, strict=True):
        assert abs(logprob - right[token]) < 1e-4
    runtime.forget(1)


def test_each_row_of_a_prompt_can_be_asked_for(runtime: LlamaRuntime) -> None:
    prompt = runtime.tokenize("abcdefghijklmnop", add_special=True, parse_special=False)[: runtime.n_outputs]
    runtime.decode([Span(0, 0, prompt, True, every_output=True)])
    rights = [softmax_logs(runtime, row) for row in range(len(prompt))]
    found = runtime.logprobs([Scored(0, row, 7, 0) for row in range(len(prompt))])
    for item, right in zip(found, rights, strict=True):
        assert abs((item.logprob or 0.0) - right[7]) < 1e-4
    runtime.forget(0)
    # and they are what a decode of that beginning alone would give
    runtime.decode([Span(0, 0, prompt[:5], True)])
    (alone,) = runtime.logprobs([Scored(0, -1, 7, 0)])
    assert abs((alone.logprob or 0.0) - (found[4].logprob or 0.0)) < 1e-3, "one row differs from many by rounding alone"
    runtime.forget(0)


def test_the_vocabulary_goes_back_into_its_order_for_the_next_row(runtime: LlamaRuntime) -> None:
    runtime.decode([Span(0, 0, [1, 2, 3], True)])
    first = runtime.logprobs([Scored(0, -1, 9, 20)])
    assert runtime.logprobs([Scored(0, -1, 9, 20)]) == first
    runtime.forget(0)
