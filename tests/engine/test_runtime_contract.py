"""What the engine relies on, held by the real runtime and by the fake one alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from modeld.engine.constraint import CompiledGrammar
from modeld.errors import InvalidRequest
from modeld.llm.adapter import NO_TOKEN, DecodeAborted, DecodeInvalid, Runtime, Span
from modeld.llm.runtime import LlamaRuntime
from modeld.types import ChatMessage, ModelSpec, SamplingParams
from tests.fake_runtime import FakeRuntime

CALC = ModelSpec(
    id="demo-calc", path=Path(__file__).resolve().parents[2] / "models" / "demo-calc.gguf", n_ctx=1024, n_parallel=4, n_batch=64
)


@pytest.fixture(params=["fake", "real"])
def runtime(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    runtime: Runtime = FakeRuntime(n_batch=64) if request.param == "fake" else LlamaRuntime(CALC, lambda step, pct: True)
    yield runtime
    runtime.close()


def test_positions_are_filled_by_decode_and_emptied_by_forget(runtime: Runtime) -> None:
    runtime.decode([Span(0, 0, [65, 66, 67], False), Span(2, 0, [68], True)])
    assert [runtime.n_past(slot) for slot in range(4)] == [3, 0, 1, 0]
    runtime.decode([Span(0, 3, [65], True)])
    assert runtime.n_past(0) == 4
    runtime.forget(0)
    runtime.forget(1)
    assert [runtime.n_past(slot) for slot in range(4)] == [0, 0, 1, 0]
    runtime.forget(2)


def test_a_token_comes_for_each_chain_in_order(runtime: Runtime) -> None:
    runtime.decode([Span(0, 0, [65, 66], True), Span(1, 0, [67], False), Span(3, 0, [68], True)])
    chains = [runtime.sampler(SamplingParams(temperature=0), 0, [65]) for _ in range(2)]
    tokens = runtime.sample([(chains[0], 0), (chains[1], 2)])
    assert len(tokens) == 2
    for token in tokens:
        piece = runtime.piece_or_eog(token)
        assert piece is None or isinstance(piece, bytes)
    for chain in chains:
        chain.close()


def test_a_batch_with_too_many_rows_is_refused_and_changes_nothing(runtime: Runtime) -> None:
    with pytest.raises(DecodeInvalid):
        runtime.decode([Span(0, 0, [65] * 65, True)])
    assert runtime.n_past(0) == 0


def test_the_abort_flag_ends_a_decode(runtime: Runtime) -> None:
    runtime.set_abort(True)
    with pytest.raises(DecodeAborted):
        runtime.decode([Span(0, 0, [65] * 60, True)])
    runtime.set_abort(False)
    runtime.forget(0)
    runtime.decode([Span(0, 0, [65], True)])


def test_text_and_tokens(runtime: Runtime) -> None:
    tokens = runtime.tokenize("12+30=", add_special=False, parse_special=False)
    assert runtime.detokenize(tokens) == b"12+30="
    assert "hello" in runtime.render_chat([ChatMessage("user", "hello")])
    runtime.prepare(SamplingParams(ignore_eos=True))
    runtime.check_tokens(tokens)
    with pytest.raises(InvalidRequest):
        runtime.check_tokens([10**7])


def test_the_numbers(runtime: Runtime) -> None:
    about = runtime.describe()
    assert (runtime.n_slots, runtime.n_ctx_slot, runtime.n_batch) == (about.n_slots, about.n_ctx_slot, about.n_batch)
    assert runtime.n_batch >= runtime.n_slots


def test_a_constraint_is_obeyed_and_ends_the_sequence(runtime: Runtime) -> None:
    constraint = CompiledGrammar("root ::= [0-9]{3}").begin()
    params = SamplingParams(temperature=0)
    runtime.prepare(params, constrained=True)
    chain = runtime.sampler(params, 0, [65], constraint)
    text = b""
    span = Span(0, 0, [65], True)
    for _ in range(4):
        runtime.decode([span])
        (token,) = runtime.sample([(chain, 0)])
        piece = runtime.piece_or_eog(token)
        if piece is None:
            break
        text += piece
        span = Span(0, runtime.n_past(0), [token], True)
    chain.close()
    assert piece is None
    assert len(text) == 3
    assert text.isdigit()


def test_nothing_allowed_is_no_token(runtime: Runtime) -> None:
    params = SamplingParams(temperature=0)
    runtime.prepare(params, constrained=True)
    chain = runtime.sampler(params, 0, [65], CompiledGrammar("root ::= [\\uD800]").begin())
    runtime.decode([Span(0, 0, [65], True)])
    assert runtime.sample([(chain, 0)]) == [NO_TOKEN]
    assert runtime.piece_or_eog(NO_TOKEN) is None
    chain.close()


PROMPT = [65, 66, 67, 68, 65, 66, 67, 68, 65, 66]


def greedy(runtime: Runtime, slot: int, n: int = 5) -> list[int]:
    """What follows the slot's cells and PROMPT's last token."""
    chain = runtime.sampler(SamplingParams(temperature=0), 0, PROMPT)
    tokens = [PROMPT[-1]]
    for _ in range(n):
        runtime.decode([Span(slot, runtime.n_past(slot), tokens[-1:], True)])
        tokens += runtime.sample([(chain, 0)])
    chain.close()
    return tokens[1:]


def test_cells_come_back_in_any_slot(runtime: Runtime) -> None:
    runtime.decode([Span(1, 0, PROMPT[:-1], False), Span(2, 0, [70, 71], True)])
    state = runtime.save(1)
    assert len(state) == runtime.saved_bytes(1)
    expected = greedy(runtime, 1)
    assert runtime.restore(3, state)
    assert runtime.n_past(3) == len(PROMPT) - 1
    assert greedy(runtime, 3) == expected
    assert runtime.restore(2, state), "what the slot held makes room"
    assert runtime.truncate(2, 4)
    assert runtime.n_past(2) == 4
    runtime.decode([Span(2, 4, PROMPT[4:-1], True)])
    assert greedy(runtime, 2) == expected


def test_what_is_no_state_is_refused_and_leaves_the_slot_empty(runtime: Runtime) -> None:
    runtime.decode([Span(1, 0, PROMPT, True)])
    assert not runtime.restore(1, bytearray(64))
    assert runtime.n_past(1) == 0
    assert runtime.saved_bytes(1) == 0
    runtime.decode([Span(1, 0, PROMPT, True)])


def test_a_copy_is_not_there_before_the_next_decode(runtime: Runtime) -> None:
    runtime.decode([Span(1, 0, PROMPT[:-1], True)])
    state = runtime.save(1)
    runtime.copy(1, 2)
    assert [runtime.is_copying(slot) for slot in range(4)] == [False, True, True, False]
    assert runtime.saved_bytes(2) == 0
    assert runtime.save(1) == state
    assert not runtime.restore(2, state), "the copy would overwrite it"
    runtime.forget(2)
    assert not runtime.restore(1, state), "the copy would take it"
    runtime.decode([Span(0, 0, [65], True)])
    runtime.decode([Span(1, 0, PROMPT[:-1], True)])
    runtime.copy(1, 2)
    runtime.decode([Span(0, 1, [65], True)])
    assert not any(runtime.is_copying(slot) for slot in range(4))
    assert runtime.saved_bytes(2) == len(state)
    assert greedy(runtime, 2) == greedy(runtime, 1)
    assert runtime.restore(2, state)


def fake_that_embeds() -> FakeRuntime:
    runtime = FakeRuntime(n_batch=64)
    runtime.pooling = "mean"
    return runtime


@pytest.fixture(params=["fake", "real"])
def embedder(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    spec = replace(CALC, n_ubatch=64, pooling="mean")
    runtime: Runtime = fake_that_embeds() if request.param == "fake" else LlamaRuntime(spec, lambda step, pct: True)
    yield runtime
    runtime.close()


def test_each_slot_of_a_decode_has_a_vector(embedder: Runtime) -> None:
    about = embedder.describe()
    assert embedder.pooling == about.pooling == "mean"
    embedder.decode([Span(0, 0, [65, 66, 67], True), Span(2, 0, [68], True)])
    vectors = embedder.vectors([2, 0])
    assert [len(vector) for vector in vectors] == [about.n_embd] * 2
    for slot in (0, 2):
        embedder.forget(slot)
    embedder.decode([Span(1, 0, [68], True)])
    assert list(embedder.vectors([1])[0]) == pytest.approx(list(vectors[0]), abs=1e-4)
    embedder.forget(1)


def test_a_batch_of_inputs_with_too_many_rows_is_refused(embedder: Runtime) -> None:
    with pytest.raises(DecodeInvalid):
        embedder.decode([Span(0, 0, [65] * 40, True), Span(1, 0, [65] * 40, True)])
