"""Every sampling parameter against a computation of our own: logits through the binding, the samplers again in numpy.

A chain that ends in `dist` leaves each candidate's probability behind, so what a parameter does is compared figure by figure
(to 1e-5), not guessed from draws. That every entry differs from "all samplers off" keeps the tables honest.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modeld.llm.adapter import Span
from modeld.llm.runtime import LlamaRuntime
from modeld.llm.sampler import SamplerChain
from modeld.types import ModelSpec, SamplingParams

MODELS = Path(__file__).resolve().parents[2] / "models"
SPEC = ModelSpec(id="demo-stories", path=MODELS / "demo-stories.gguf", n_ctx=1024, n_parallel=2, n_batch=256)
OFF = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
DEFAULT = SamplingParams()
REPETITIVE = "One day the fox was very, very happy. The fox and the fox and the"
OVER = "They were happy ever after."  # what may end here

Floats = np.ndarray[Any, np.dtype[np.float64]]
Distribution = dict[int, float]


@dataclass
class Row:
    """A prompt that was decoded, and what can be drawn after it."""

    runtime: LlamaRuntime
    history: list[int]

    @property
    def logits(self) -> Floats:
        raw = self.runtime._lib.llama_get_logits_ith(self.runtime._context, self.runtime._context.row(0))
        return np.ctypeslib.as_array(raw, (self.runtime.n_vocab,)).astype(np.float64)

    def chain(self, params: SamplingParams, seed: int = 1) -> SamplerChain:
        chain = self.runtime.sampler(params, seed, self.history)
        assert isinstance(chain, SamplerChain)
        return chain

    def candidates(self, params: SamplingParams) -> Distribution:
        """What the real chain leaves to choose from, with the probabilities by which it chooses."""
        chain = self.chain(params)
        try:
            array = self.runtime._all_candidates().fill(self.runtime._context, self.runtime._context.row(0))
            self.runtime._lib.llama_sampler_apply(chain, array)
            return {array.data[i].id: array.data[i].p for i in range(array.size) if array.data[i].p > 0}
        finally:
            chain.close()

    def draw(self, params: SamplingParams, seed: int) -> int:
        chain = self.chain(params, seed)
        try:
            return self.runtime.sample([(chain, 0)])[0]
        finally:
            chain.close()

    def expected(self, params: SamplingParams) -> Distribution:
        return expected(self.logits, params, self.history, self.runtime._vocab.eog_tokens())


@pytest.fixture
def runtime() -> Iterator[LlamaRuntime]:
    runtime = LlamaRuntime(SPEC, lambda step, pct: True)
    yield runtime
    runtime.close()


def read(runtime: LlamaRuntime, prompt: str) -> Row:
    tokens = runtime.tokenize(prompt, add_special=True, parse_special=True)
    runtime.forget(0)
    runtime.decode([Span(0, 0, tokens, True)])
    return Row(runtime, tokens)


# -- the samplers once more -----------------------------------------------------------------------------------------------


def shaped(logits: Floats, params: SamplingParams, history: Sequence[int], eog: Sequence[int]) -> Floats:
    """Logits after bias and penalties."""
    logits = logits.copy()
    for token, bias in params.logit_bias:
        logits[token] += bias
    if params.ignore_eos:
        logits[list(eog)] = -math.inf
    first = 0 if params.repeat_last_n < 0 else max(0, len(history) - params.repeat_last_n)
    seen = list(history[first:])
    for token in set(seen):
        factor = params.repeat_penalty if logits[token] <= 0 else 1 / params.repeat_penalty
        logits[token] = logits[token] * factor - seen.count(token) * params.frequency_penalty - params.presence_penalty
    return logits


def softmax(logits: Floats) -> Floats:
    weights: Floats = np.exp(logits - logits.max())
    weights /= weights.sum()
    return weights


def expected(logits: Floats, params: SamplingParams, history: Sequence[int], eog: Sequence[int]) -> Distribution:
    """The distribution that `params` ask for, from the definitions of the samplers, in llama-server's order."""
    logits = shaped(logits, params, history, eog)
    kept = np.argsort(-logits, kind="stable")  # best first; each cut keeps a part of it
    if params.top_k > 0:
        kept = kept[: params.top_k]
    if params.typical_p < 1:
        p = softmax(logits[kept])
        kept, p = kept[p > 0], p[p > 0]
        surprise = -np.log(p)
        order = np.argsort(np.abs(surprise - (p * surprise).sum()), kind="stable")
        kept = kept[order[: int(np.searchsorted(np.cumsum(p[order]), params.typical_p, side="right")) + 1]]
        kept = kept[np.argsort(-logits[kept], kind="stable")]
    if params.top_p < 1:
        kept = kept[: int(np.searchsorted(np.cumsum(softmax(logits[kept])), params.top_p)) + 1]
    if params.min_p > 0:
        p = softmax(logits[kept])
        kept = kept[p >= params.min_p * p.max()]
    p = softmax(logits[kept] / params.temperature)
    return {int(token): float(x) for token, x in zip(kept, p, strict=True) if x > 0}


def distance(a: Distribution, b: Distribution) -> float:
    """Total variation: 0 for the same, 1 for nothing in common."""
    return sum(abs(a.get(token, 0.0) - b.get(token, 0.0)) for token in a.keys() | b.keys()) / 2


# -- one decode -----------------------------------------------------------------------------------------------------------

SHAPES = {
    "the defaults": DEFAULT,
    "temperature 0.5": replace(OFF, temperature=0.5),
    "temperature 2": replace(OFF, temperature=2.0),
    "top_k 1": replace(OFF, top_k=1),
    "top_k 7": replace(OFF, top_k=7),
    "top_p 0": replace(OFF, top_p=0.0),
    "top_p 0.3": replace(OFF, top_p=0.3),
    "top_p 0.8": replace(OFF, top_p=0.8),
    "min_p 0.1": replace(OFF, min_p=0.1),
    "min_p 1": replace(OFF, min_p=1.0),
    "typical_p 0.2": replace(OFF, typical_p=0.2),
    "typical_p 0.8": replace(OFF, typical_p=0.8),
    "typical_p 0.8 without the ends": replace(OFF, typical_p=0.8, ignore_eos=True),
    "typical_p 0.8 where one is all but certain": replace(OFF, typical_p=0.8, logit_bias=((300, 100.0),)),
    "repeat_penalty 1.5": replace(OFF, repeat_penalty=1.5),
    "repeat_penalty 0.5": replace(OFF, repeat_penalty=0.5),
    "repeat_penalty on the last 4": replace(OFF, repeat_penalty=3.0, repeat_last_n=4),
    "repeat_penalty on the whole context": replace(OFF, repeat_penalty=1.5, repeat_last_n=-1),
    "presence_penalty 2": replace(OFF, presence_penalty=2.0),
    "presence_penalty -2": replace(OFF, presence_penalty=-2.0),
    "frequency_penalty 1": replace(OFF, frequency_penalty=1.0),
    "frequency_penalty -1": replace(OFF, frequency_penalty=-1.0),
    "all three penalties": replace(OFF, repeat_penalty=1.3, frequency_penalty=0.7, presence_penalty=-0.4, repeat_last_n=9),
    "logit_bias": replace(OFF, logit_bias=((300, 3.5), (301, -2.0), (302, 7.25))),
    "logit_bias on one token twice": replace(OFF, logit_bias=((300, 4.0), (300, 4.0))),
    "everything": SamplingParams(
        temperature=1.7,
        top_k=60,
        typical_p=0.95,
        top_p=0.9,
        min_p=0.02,
        repeat_penalty=1.2,
        frequency_penalty=0.3,
        presence_penalty=0.2,
        repeat_last_n=12,
        logit_bias=((300, 4.0),),
    ),
}


@pytest.mark.parametrize("params", SHAPES.values(), ids=SHAPES)
def test_a_parameter_does_what_its_definition_says(runtime: LlamaRuntime, params: SamplingParams) -> None:
    row = read(runtime, REPETITIVE)
    ours, theirs = row.expected(params), row.candidates(params)
    assert distance(ours, row.expected(OFF)) > 0.02, "this entry would pass without its parameter"
    assert theirs.keys() == ours.keys()
    assert max(abs(theirs[token] - ours[token]) for token in ours) < 1e-5
    assert {row.draw(params, seed) for seed in range(40)} <= ours.keys()


def test_ignore_eos_takes_only_the_ends_away(runtime: LlamaRuntime) -> None:
    row = read(runtime, OVER)
    ends = set(runtime._vocab.eog_tokens())
    free, bound = row.candidates(OFF), row.candidates(replace(OFF, ignore_eos=True))
    p_ends = sum(free[token] for token in ends)
    assert p_ends > 0.05
    assert free.keys() - bound.keys() == ends
    assert all(bound[token] == pytest.approx(free[token] / (1 - p_ends), abs=1e-5) for token in bound)
    assert {row.draw(OFF, seed) for seed in range(100)} & ends
    assert not {row.draw(replace(OFF, ignore_eos=True), seed) for seed in range(100)} & ends


def test_draws_follow_their_probabilities(runtime: LlamaRuntime) -> None:
    row = read(runtime, REPETITIVE)
    for params in (replace(OFF, top_k=5), replace(OFF, top_k=5, temperature=2.0)):
        n_draws = 3000
        chances = row.expected(params)
        counts = dict.fromkeys(chances, 0)
        for seed in range(n_draws):
            counts[row.draw(params, seed)] += 1
        chi_square = sum((counts[token] - n_draws * p) ** 2 / (n_draws * p) for token, p in chances.items())
        assert chi_square < 18.5  # 4 degrees of freedom, one in a thousand; the seeds are fixed


def test_heat_spreads(runtime: LlamaRuntime) -> None:
    row = read(runtime, REPETITIVE)
    kinds = [len({row.draw(replace(OFF, temperature=t), seed) for seed in range(200)}) for t in (0.0, 0.3, 1.0, 2.0)]
    assert kinds[0] == 1
    assert kinds == sorted(set(kinds)), kinds


@pytest.mark.parametrize(
    "params",
    [replace(OFF, temperature=0.0), replace(OFF, top_k=1), replace(OFF, top_p=0.0), replace(OFF, min_p=1.0)],
    ids=["temperature 0", "top_k 1", "top_p 0", "min_p 1"],
)
@pytest.mark.parametrize("prompt", [REPETITIVE, OVER, "Once upon a time", "Once upon a time there was a little fox named"])
def test_narrow_samplers_take_the_largest_logit(runtime: LlamaRuntime, params: SamplingParams, prompt: str) -> None:
    row = read(runtime, prompt)
    assert {row.draw(params, seed) for seed in range(5)} == {int(row.logits.argmax())}


def test_bias_forces_and_forbids(runtime: LlamaRuntime) -> None:
    row = read(runtime, REPETITIVE)
    best = [int(token) for token in np.argsort(-row.logits)[:4]]
    worst = int(row.logits.argmin())
    for base in (replace(OFF, temperature=0.0), replace(OFF, temperature=2.0), replace(DEFAULT, temperature=2.0)):
        assert {row.draw(replace(base, logit_bias=((worst, 100.0),)), seed) for seed in range(50)} == {worst}
        for never in (-100.0, -math.inf):
            forbidden = tuple((token, never) for token in best)
            assert not {row.draw(replace(base, logit_bias=forbidden), seed) for seed in range(200)} & set(best)
    without_three = replace(OFF, temperature=0.0, logit_bias=tuple((token, -math.inf) for token in best[:3]))
    assert row.draw(without_three, 1) == best[3]


@pytest.mark.parametrize("tiny", [1e-4, 1e-20, 1e-38, sys.float_info.min, 5e-324])
def test_a_temperature_near_zero_is_greedy(runtime: LlamaRuntime, tiny: float) -> None:
    """Divided by so little, logits become infinite, and the difference of two infinite ones is no number."""
    row = read(runtime, REPETITIVE)
    for base in (OFF, DEFAULT):
        assert {row.draw(replace(base, temperature=tiny), seed) for seed in range(5)} == {int(row.logits.argmax())}


@pytest.mark.parametrize("tiny", [1e-9, 1e-20, 1e-38, 5e-324])
def test_a_repeat_penalty_near_zero_repeats(runtime: LlamaRuntime, tiny: float) -> None:
    row = read(runtime, REPETITIVE)
    for base in (OFF, DEFAULT, replace(OFF, typical_p=0.5), replace(OFF, temperature=1e-20)):
        assert {row.draw(replace(base, repeat_penalty=tiny), seed) for seed in range(5)} <= set(row.history)


# -- many decodes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0, ignore_eos=True),
        SamplingParams(temperature=0, ignore_eos=True, frequency_penalty=1.5, repeat_last_n=-1),
        SamplingParams(temperature=0, ignore_eos=True, presence_penalty=1.5, repeat_last_n=20),
        SamplingParams(temperature=0, ignore_eos=True, repeat_penalty=1.4, repeat_last_n=5),
        SamplingParams(temperature=0, ignore_eos=True, logit_bias=((300, 5.0), (301, 5.0))),
    ],
    ids=["plain", "frequency", "presence of the last 20", "repeat of the last 5", "bias"],
)
def test_each_greedy_token_is_the_argmax_and_counts_once(runtime: LlamaRuntime, params: SamplingParams) -> None:
    """The penalties' window slides over prompt and answer; a token accepted twice, or not at all, would show within 60."""
    row = read(runtime, "Once upon a time")
    chain = row.chain(params)
    try:
        for _ in range(60):
            wanted = shaped(row.logits, params, row.history, runtime._vocab.eog_tokens())
            (token,) = runtime.sample([(chain, 0)])
            assert wanted[token] > wanted.max() - 1e-4, f"token {len(row.history)}: {token}, wanted {wanted.argmax()}"
            runtime.decode([Span(0, len(row.history), [token], True)])
            row.history.append(token)
    finally:
        chain.close()
