"""Cells over a switch on the real libllama: a conversation that was interrupted says the same as one that was not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modeld.engine.kept import CellStore
from modeld.engine.runner import EngineRunner
from modeld.errors import ModelSwitched
from modeld.llm.runtime import LlamaRuntime
from modeld.types import Failed, Finished, GenerateRequest, SamplingParams
from tests.engine.test_engine import collect
from tests.engine.test_engine_on_libllama import STORIES

GREEDY = SamplingParams(temperature=0, ignore_eos=True)
START = "Once upon a time there was a little girl who had a dog and a red ball."
N_TOKENS = 40
BUDGET_BYTES = 64 << 20


class Model:
    """demo-stories, which can leave and come back."""

    def __init__(self, **parameters: object) -> None:
        self._spec = replace(STORIES, **parameters)  # type: ignore[arg-type]
        self.store = CellStore(BUDGET_BYTES)
        self._open()

    def _open(self) -> None:
        kept = self.store.of("stories")
        self.runner = EngineRunner(self._spec, LlamaRuntime, lambda step, pct: True, lambda error: None, queue_size=8, kept=kept)

    def say(self, prompt: str, n_tokens: int = N_TOKENS) -> tuple[str, int]:
        """What follows, and how many tokens of the prompt were not computed."""
        text, end = collect(self.runner.submit(GenerateRequest("r", (prompt,), max_tokens=n_tokens, sampling=GREEDY)))
        assert isinstance(end, Finished)
        return text, end.usage.cached_tokens

    def go_and_come_back(self, **parameters: object) -> None:
        self.close()
        self._spec = replace(self._spec, **parameters)  # type: ignore[arg-type]
        self._open()

    def close(self) -> None:
        self.runner.close(ModelSwitched("over"))
        self.runner.keep_cells()
        self.runner.free()


def conversation(model: Model, *, interrupted: bool) -> list[tuple[str, int]]:
    said = []
    text = START
    for more in (" Then", " But the cat", " And so"):
        answer, n_cached = model.say(text)
        said.append((answer, n_cached))
        text += answer + more
        if interrupted:
            model.go_and_come_back()
    return said


@pytest.mark.parametrize(
    "parameters",
    [
        {"flash_attn": "on"},
        {"flash_attn": "off"},  # values lie transposed then
        {"flash_attn": "on", "cache_type_k": "q8_0", "cache_type_v": "q8_0"},
        {"flash_attn": "off", "cache_type_k": "q8_0"},
    ],
    ids=lambda parameters: ",".join(f"{name}={value}" for name, value in parameters.items()),
)
def test_an_interrupted_conversation_says_the_same_and_computes_no_more(parameters: dict[str, object]) -> None:
    model = Model(**parameters)
    try:
        whole = conversation(model, interrupted=False)
    finally:
        model.close()
    model = Model(**parameters)
    try:
        assert conversation(model, interrupted=True) == whole
    finally:
        model.close()
    assert whole[1][1] > N_TOKENS
    assert whole[2][1] > whole[1][1] + N_TOKENS


def test_cells_come_back_into_another_slot() -> None:
    model = Model()
    try:
        runner = model.runner
        first = runner.submit(GenerateRequest("r", ("One day a big bear",), max_tokens=10_000, sampling=GREEDY))
        assert first.take(10)
        answer, _ = model.say(START)  # in slot 1, slot 0 being busy
        first.cancel()
        assert isinstance(collect(first)[1], Failed)
        assert [each.id for each in runner._engine._scheduler._slots if each.cached] == [0, 1]  # type: ignore[union-attr]
        longer = START + answer + " Then"
        uninterrupted = model.say(longer)
        model.go_and_come_back()
        # What was said after `longer` is kept, too, and cut away.
        assert model.say(longer)[0] == uninterrupted[0]
        (slot,) = [each.id for each in model.runner._engine._scheduler._slots if each.cached]  # type: ignore[union-attr]
        assert slot == 0
    finally:
        model.close()


def test_a_sequence_that_was_running_is_taken_up_where_it_was_left() -> None:
    model = Model()
    try:
        whole, _ = model.say(START, 60)
        model.close()
        model.store = CellStore(BUDGET_BYTES)
        model._open()
        stream = model.runner.submit(GenerateRequest("r", (START,), max_tokens=10_000, sampling=GREEDY))
        text = ""
        while len(text) < len(whole) // 2:
            chunks = stream.take(10)
            assert chunks
            text += "".join(chunk.text for chunk in chunks)
        model.go_and_come_back()
        n_prompt = len(model.runner.tokenize(START, add_special=True, parse_special=True))
        assert whole.startswith(text[: len(whole)])
        half = whole[: len(whole) // 2]
        answer, n_cached = model.say(START + half, 10)
        assert (half + answer)[: len(whole)] == whole[: len(half + answer)]
        assert n_cached > n_prompt
    finally:
        model.close()


def test_cells_of_other_parameters_are_refused_and_computed_again() -> None:
    """A key that does not tell them apart is a fault, but costs no more than the cells."""
    model = Model(cache_type_k="f16")
    try:
        text, _ = model.say(START)
        model.go_and_come_back(cache_type_k="q8_0")
        _, n_cached = model.say(START + text)
        assert n_cached == 0
    finally:
        model.close()
