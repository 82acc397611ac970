"""The estimate of a model's memory against real contexts: KV caches to the byte, the rest between bounds."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modeld.llm.context import _CACHE_TYPES
from modeld.llm.footprint import CACHE_TYPES, Footprint, estimate
from modeld.llm.ggufvalues import TENSOR_TYPES
from modeld.types import ModelSpec
from tests import tiny_models
from tests.gguf_bytes import File, numbers, parse, string, u32
from tests.hostile_gguf import DEMO
from tests.measure_model import MIB, Measured, measure
from tests.try_models import ROOT

with_library = pytest.mark.skipif(not (ROOT / "build" / "libllama.so").is_file(), reason="libllama is not built (make build)")
Q05 = ROOT / "bench" / ".cache" / "q05.gguf"


def demo(**more: Any) -> ModelSpec:
    return ModelSpec(id="a", path=DEMO, n_threads=1, cpu_pinning="off", **more)


def estimated(spec: ModelSpec) -> Footprint:
    footprint = estimate(spec)
    assert footprint is not None
    return footprint


def check(spec: ModelSpec) -> tuple[Footprint, Measured]:
    """KV exact, compute a bound that is not far away."""
    footprint, real = estimated(spec), measure(spec)
    rounding = real.n_kv_buffers * MIB // 200 + 1
    assert abs(footprint.kv_bytes - real.kv_bytes) <= rounding
    assert 0.95 * real.compute_bytes <= footprint.compute_bytes <= 1.8 * real.compute_bytes + MIB
    return footprint, real


@with_library
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"n_ctx": 300, "n_parallel": 3},
        {"n_ctx": 0, "n_parallel": 1},
        {"flash_attn": "off"},
        {"cache_type_k": "q8_0", "cache_type_v": "q4_0"},
        {"cache_type_k": "f32", "cache_type_v": "bf16"},
        {"n_ubatch": 64, "n_batch": 64},
        {"n_ctx": 16384, "n_parallel": 16},
        {"embeddings": "on", "pooling": "last"},
    ],
    ids=lambda more: "-".join(f"{key}={value}" for key, value in more.items()) or "as-it-is",
)
def test_the_demo_model_takes_what_was_estimated(more: dict[str, Any]) -> None:
    footprint, real = check(demo(**more))
    assert footprint.total > 0.8 * (real.kv_bytes + real.compute_bytes)


@with_library
@pytest.mark.parametrize(
    ("make", "more"),
    [
        (tiny_models.gpt2, {"n_ctx": 512, "n_parallel": 1}),
        (tiny_models.gemma2, {}),
        (tiny_models.gemma2, {"n_ubatch": 64, "flash_attn": "off"}),
        (tiny_models.mamba2, {}),
        (tiny_models.qwen2moe, {}),
    ],
    ids=["gpt2", "gemma2", "gemma2-without-flash", "mamba2", "qwen2moe"],
)
def test_other_architectures_take_what_was_estimated(tmp_path: Path, make: Callable[[], File], more: dict[str, Any]) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(make().bytes())
    check(replace(demo(**more), path=path))


@pytest.mark.soak
@with_library
@pytest.mark.skipif(not Q05.is_file(), reason="bench/.cache/q05.gguf is not there (make bench)")
@pytest.mark.parametrize("more", [{}, {"n_ctx": 32768, "n_parallel": 8}, {"load_mode": "none"}])
def test_a_model_of_real_width_takes_what_was_estimated(more: dict[str, Any]) -> None:
    spec = replace(demo(**more), path=Q05)
    footprint, real = estimated(spec), measure(spec)
    assert abs(footprint.kv_bytes - real.kv_bytes) <= MIB
    assert real.anonymous_bytes / 1.35 <= footprint.total <= real.anonymous_bytes * 1.35


def test_weights_are_the_tensors_bytes() -> None:
    tensors = parse(DEMO.read_bytes()).tensors
    n_bytes = sum(len(tensor.data) for tensor in tensors)
    table = next(len(tensor.data) for tensor in tensors if tensor.name == "token_embd.weight")
    assert estimated(demo()).weights_bytes == n_bytes
    assert estimated(demo(load_mode="none")).weights_bytes == n_bytes + table, "it gives the logits, too, repacked"


@pytest.mark.parametrize("name", CACHE_TYPES)
def test_cache_types_have_ggmls_sizes(name: str) -> None:
    assert CACHE_TYPES.keys() == _CACHE_TYPES.keys()
    _, block, block_bytes = TENSOR_TYPES[_CACHE_TYPES[name]]
    assert CACHE_TYPES[name] == (block_bytes, block)


def changed(tmp_path: Path, change: Callable[[File], object]) -> ModelSpec:
    file = parse(DEMO.read_bytes())
    change(file)
    path = tmp_path / "model.gguf"
    path.write_bytes(file.bytes())
    return replace(demo(), path=path)


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.set("llama.block_count", u32(0)),
        lambda file: file.set("general.architecture", string("nonsense")),
        lambda file: setattr(file, "magic", b"nope"),
    ],
    ids=["bad", "unknown", "no-gguf"],
)
def test_what_is_not_known_is_not_estimated(tmp_path: Path, change: Callable[[File], object]) -> None:
    assert estimate(changed(tmp_path, change)) is None


def test_a_missing_file_is_not_estimated(tmp_path: Path) -> None:
    assert estimate(replace(demo(), path=tmp_path / "missing")) is None


def test_layers_may_differ_in_their_kv_heads(tmp_path: Path) -> None:
    """Half the KV heads in half the layers: a quarter less of keys; values too where each layer has its own width."""
    spec = changed(tmp_path, lambda file: file.set("llama.attention.head_count_kv", numbers(4, [6, 3, 6, 3])))
    whole = estimated(demo()).kv_bytes
    assert estimated(replace(spec, flash_attn="on")).kv_bytes == whole * 3 // 4
    assert estimated(spec).kv_bytes == whole * 7 // 8


@pytest.mark.skipif(not (ROOT / "third_party" / "llama.cpp").is_dir(), reason="llama.cpp's source is not there (make fetch)")
def test_the_padding_of_slots_is_the_sources() -> None:
    source = (ROOT / "third_party" / "llama.cpp" / "src" / "llama-context.cpp").read_text()
    assert re.findall(r"GGML_PAD\(cparams\.n_ctx(?:_seq)?, (\d+)\)", source) == ["256", "256"]
