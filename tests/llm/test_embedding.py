"""Embeddings on the real libllama: a decoder and an encoder, each vector right, alone as beside others, whole as in pieces."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from modeld.errors import LoadFailed
from modeld.llm.adapter import DecodeAborted, DecodeInvalid, Span
from modeld.llm.handles import open_handles
from modeld.llm.runtime import LlamaRuntime
from modeld.types import ModelSpec
from tests import tiny_bert

ROOT = Path(__file__).resolve().parents[2]
STORIES = ModelSpec(id="stories", path=ROOT / "models" / "demo-stories.gguf", n_ctx=1024)
TEXTS = (
    "One day",
    "Ella was a clever pig. Her home was in a green hut.",
    "x",
    "It was a rainy evening, and Ella went to the market. After a while she was hungry, but she had nothing to eat.",
)
Open = Callable[..., LlamaRuntime]


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens runtimes that are closed at the end."""
    runtimes: list[LlamaRuntime] = []

    def open_runtime(spec: ModelSpec = STORIES, **changes: Any) -> LlamaRuntime:
        runtimes.append(LlamaRuntime(replace(spec, **changes), lambda step, pct: True))
        return runtimes[-1]

    yield open_runtime
    for runtime in runtimes:
        runtime.close()


@pytest.fixture
def bert(tmp_path: Path) -> tiny_bert.TinyBert:
    return tiny_bert.make(tmp_path / "bert.gguf")


def spec_of(bert: tiny_bert.TinyBert) -> ModelSpec:
    return ModelSpec(id="bert", path=bert.path)


def unit(vector: Sequence[float]) -> Any:
    values = np.array(vector)
    return values / np.linalg.norm(values)


def embed(runtime: LlamaRuntime, *inputs: Sequence[int]) -> list[Any]:
    """The unit vectors of inputs that share one decode."""
    runtime.decode([Span(slot, 0, tokens, True) for slot, tokens in enumerate(inputs)])
    vectors = runtime.vectors(range(len(inputs)))
    for slot in range(len(inputs)):
        runtime.forget(slot)
    return [unit(vector) for vector in vectors]


def tokens_of(runtime: LlamaRuntime, *texts: str) -> list[list[int]]:
    return [runtime.tokenize(text, add_special=True, parse_special=True) for text in texts]


# -- a decoder


def test_the_mean_is_that_of_the_vectors_of_all_tokens(opened: Open) -> None:
    last, mean = opened(pooling="last"), opened(pooling="mean")
    for tokens in tokens_of(mean, *TEXTS):
        # With causal attention a token's vector is the last one of the text that ends with it.
        each = []
        for n in range(1, len(tokens) + 1):
            last.decode([Span(0, 0, tokens[:n], True)])
            each.append(np.array(last.vectors([0])[0]))
            last.forget(0)
        assert embed(mean, tokens)[0] == pytest.approx(unit(np.mean(each, axis=0)), abs=1e-6)


def test_cls_is_the_first_tokens_vector(opened: Open) -> None:
    cls, last = opened(pooling="cls"), opened(pooling="last")
    tokens = tokens_of(cls, TEXTS[1])[0]
    assert embed(cls, tokens)[0] == pytest.approx(embed(last, tokens[:1])[0], abs=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_a_text_beside_others_has_the_vector_that_it_has_alone(opened: Open, pooling: str) -> None:
    runtime = opened(pooling=pooling)
    inputs = (tokens_of(runtime, *TEXTS) * 8)[:28]
    assert sum(map(len, inputs)) > 300
    together = embed(runtime, *inputs)
    for tokens, vector in zip(inputs, together, strict=True):
        assert vector == pytest.approx(embed(runtime, tokens)[0], abs=1e-4)


def test_the_last_tokens_vector_is_the_same_in_pieces(opened: Open) -> None:
    whole, pieces = opened(pooling="last"), opened(pooling="last", n_ubatch=64)
    tokens = (tokens_of(whole, TEXTS[1])[0] * 40)[:500]
    assert (pieces.n_batch, pieces.n_ctx_slot) == (64, 1024)
    for at in range(0, 500, 64):
        pieces.decode([Span(7, at, tokens[at : at + 64], at + 64 >= 500)])
    assert unit(pieces.vectors([7])[0]) == pytest.approx(embed(whole, tokens)[0], abs=1e-4)


def test_how_long_an_input_may_be(opened: Open) -> None:
    assert opened(pooling="mean").n_ctx_slot == 512, "n_ubatch: a mean is made at once"
    assert opened(pooling="mean", n_ctx=256).n_ctx_slot == 256, "n_ctx"
    assert opened(pooling="last", n_ctx=4096).n_ctx_slot == 1024, "what it was trained on"


def test_a_full_batch_of_one_input_and_of_many_is_computed(opened: Open) -> None:
    runtime = opened(pooling="mean", n_ubatch=128)
    assert (runtime.n_batch, runtime.n_slots) == (128, 128)
    assert len(embed(runtime, [65] * 128)) == 1
    assert len(embed(runtime, *[[65 + i % 20] for i in range(128)])) == 128
    with pytest.raises(DecodeInvalid):
        runtime.decode([Span(0, 0, [65] * 129, True)])


def test_a_pooling_makes_it_give_embeddings_and_off_makes_it_generate(opened: Open) -> None:
    assert opened().pooling is None
    assert opened(pooling="last").pooling == "last"
    assert opened(embeddings="on").pooling == "none"


def test_without_pooling_there_is_no_vector_of_an_input(opened: Open) -> None:
    runtime = opened(embeddings="on")
    runtime.decode([Span(0, 0, [65, 66], True)])
    with pytest.raises(DecodeInvalid, match="slot 0"):
        runtime.vectors([0])


def test_an_abort_leaves_a_context_that_goes_on(opened: Open) -> None:
    runtime = opened(pooling="mean")
    tokens = tokens_of(runtime, TEXTS[1])[0]
    before = embed(runtime, tokens)[0]
    runtime.set_abort(True)
    with pytest.raises(DecodeAborted):
        runtime.decode([Span(0, 0, tokens, True)])
    runtime.set_abort(False)
    runtime.forget(0)
    assert embed(runtime, tokens)[0] == pytest.approx(before, abs=1e-6)


# -- a decoder that looks ahead, as gte-Qwen2: it has a KV cache, and asserts that a batch fits in n_ubatch


@pytest.fixture
def looking_ahead(tmp_path: Path) -> ModelSpec:
    """The storyteller with one key more."""
    path = tmp_path / "looking-ahead.gguf"
    reader = gguf.GGUFReader(STORIES.path)
    writer = gguf.GGUFWriter(path, "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            sub_type = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type)
    writer.add_causal_attention(False)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return replace(STORIES, path=path, n_ctx=512)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_attention_that_looks_ahead_takes_an_input_at_once(opened: Open, looking_ahead: ModelSpec, pooling: str) -> None:
    # Cells in half precision round by their place: 6e-4 then.
    runtime = opened(looking_ahead, pooling=pooling, n_ubatch=256, cache_type_k="f32", cache_type_v="f32")
    assert (runtime.n_batch, runtime.n_ctx_slot) == (256, 256)
    inputs = tokens_of(runtime, *TEXTS)
    together = embed(runtime, *inputs)
    for tokens, vector in zip(inputs, together, strict=True):
        assert vector == pytest.approx(embed(runtime, tokens)[0], abs=1e-4)
    changed = embed(opened(pooling="cls"), inputs[1])[0] - embed(opened(looking_ahead, pooling="cls"), inputs[1])[0]
    assert np.abs(changed).max() > 0.01, "its first token knows what follows"
    assert len(embed(runtime, [65] * 256)) == 1


def test_attention_that_looks_ahead_is_for_embeddings_by_itself(opened: Open, looking_ahead: ModelSpec) -> None:
    assert opened(looking_ahead).pooling == "none"


# -- an encoder


def test_an_encoder_gives_embeddings_by_itself(opened: Open, bert: tiny_bert.TinyBert) -> None:
    runtime = opened(spec_of(bert))
    about = runtime.describe()
    assert (runtime.pooling, about.n_embd, runtime.n_ctx_slot) == ("mean", tiny_bert.N_EMBD, tiny_bert.N_CTX)
    assert tokens_of(runtime, "hello world") == [tiny_bert.words("hello world")]


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_an_encoders_vectors_are_those_of_its_weights(opened: Open, bert: tiny_bert.TinyBert, pooling: str) -> None:
    runtime = opened(spec_of(bert), pooling=pooling)
    inputs = [tiny_bert.words(text) for text in ("a", "hello world", "the quick brown fox jumps over a dog", "zz top")]
    inputs.append([5] * tiny_bert.N_CTX)
    for tokens, vector in zip(inputs, embed(runtime, *inputs), strict=True):
        # ggml looks GELU up in a table of half precision: 1e-3 of numbers around 1.
        assert vector == pytest.approx(unit(bert.embed(tokens, pooling)), abs=2e-3)
        assert vector == pytest.approx(embed(runtime, tokens)[0], abs=1e-4)


def test_an_encoder_fills_its_batch_and_is_aborted(opened: Open, bert: tiny_bert.TinyBert) -> None:
    runtime = opened(spec_of(bert), n_ubatch=96)
    assert len(embed(runtime, [5] * 48, [6] * 48)) == 2
    runtime.set_abort(True)
    with pytest.raises(DecodeAborted):
        runtime.decode([Span(0, 0, [5] * 48, True)])
    runtime.set_abort(False)
    assert len(embed(runtime, *[[5]] * 96)) == 96


def test_an_encoder_without_a_pooling_type_needs_one(opened: Open, tmp_path: Path) -> None:
    bert = tiny_bert.make(tmp_path / "plain.gguf", pooling=None)
    assert opened(spec_of(bert)).pooling == "none"
    assert opened(spec_of(bert), pooling="cls").pooling == "cls"


def test_an_encoder_that_shall_generate_is_refused(bert: tiny_bert.TinyBert) -> None:
    with pytest.raises(LoadFailed, match="is an encoder"):
        LlamaRuntime(replace(spec_of(bert), embeddings="off"), lambda step, pct: True)
    assert not open_handles()


def test_a_model_that_ranks_is_refused_unless_a_pooling_is_given(opened: Open, tmp_path: Path) -> None:
    ranker = tiny_bert.make(tmp_path / "ranker.gguf", pooling=gguf.PoolingType.RANK)
    with pytest.raises(LoadFailed, match="pooling: mean"):
        LlamaRuntime(spec_of(ranker), lambda step, pct: True)
    assert not open_handles()
    assert opened(spec_of(ranker), pooling="mean").pooling == "mean"


def test_libllama_has_nothing_to_say_while_it_computes(
    opened: Open, bert: tiny_bert.TinyBert, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows that are not marked as outputs would bring a warning at each decode."""
    for runtime in (opened(spec_of(bert)), opened(pooling="last", n_ubatch=64)):
        caplog.clear()
        runtime.decode([Span(0, 0, [5] * 20, True), Span(1, 0, [6], False)])
        assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
