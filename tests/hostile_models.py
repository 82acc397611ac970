"""Which numbers, vocabularies and weights might end the daemon, in a container that is sound?"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from tests.gguf_bytes import (
    BF16,
    BOOL,
    F16,
    F64,
    FLOAT32,
    I8,
    I32,
    I64,
    INT32,
    Q8_0,
    STRING,
    UINT32,
    File,
    RawTensor,
    Value,
    f32,
    flag,
    i32,
    numbers,
    string,
    strings,
    text,
    u32,
    u64,
    zeros,
)
from tests.hostile import Hostile, TensorChange, adding, changing, dropping, of_change, retyped, setting

NAN, INF = float("nan"), float("inf")


def damaged_models(demo: File) -> Iterator[Hostile]:
    yield from _keys(demo)
    yield from _vocabulary(demo)
    yield from _tensors(demo)
    yield from _weights(demo)


# -- keys ------------------------------------------------------------------------------------------------------------


def _keys(demo: File) -> Iterator[Hostile]:
    def with_key(name: str, key: str, value: Value) -> Hostile:
        return of_change(demo, name, "semantic", setting(key, value))

    def with_keys(name: str, **values: Value) -> Hostile:
        def change(file: File) -> None:
            for key, value in values.items():
                file.set("llama." + key.replace("__", "."), value)

        return of_change(demo, name, "semantic", change)

    for key in ("general.architecture", "llama.block_count", "llama.context_length", "llama.embedding_length",
                "llama.attention.head_count", "llama.attention.layer_norm_rms_epsilon", "llama.feed_forward_length"):  # fmt: skip
        yield of_change(demo, f"without-{key}", "semantic", dropping(key))
        yield with_key(f"text-in-{key}", key, string("seven"))
        yield with_key(f"numbers-in-{key}", key, numbers(UINT32, [1, 2]))
    yield with_key("architecture-unknown", "general.architecture", string("nonsense"))
    yield with_key("architecture-clip", "general.architecture", string("clip"))
    yield with_key("architecture-another", "general.architecture", string("qwen2"))
    yield with_key("type-adapter", "general.type", string("adapter"))
    yield with_key("name-a-number", "general.name", u32(7))
    for n in (0, 1, 3, 5, 512, 513, 1 << 31, (1 << 32) - 1):
        yield with_key(f"block-count-{n}", "llama.block_count", u32(n))
    yield with_key("block-count-uint64", "llama.block_count", u64(4))
    yield with_key("block-count-negative", "llama.block_count", i32(-1))
    for n in (0, 1, 191, 193, 1 << 31, (1 << 32) - 1):
        yield with_key(f"embedding-length-{n}", "llama.embedding_length", u32(n))
    for n in (0, 1, 1 << 31, (1 << 32) - 1):
        yield with_key(f"context-length-{n}", "llama.context_length", u32(n))
    for n in (0, 1, 511, 1 << 31):
        yield with_key(f"feed-forward-{n}", "llama.feed_forward_length", u32(n))
    yield with_key("feed-forward-short", "llama.feed_forward_length", numbers(UINT32, [512] * 3))
    yield with_key("feed-forward-floats", "llama.feed_forward_length", numbers(FLOAT32, [512] * 4))
    yield with_key("feed-forward-texts", "llama.feed_forward_length", strings(["512"] * 4))
    for n in (0, 4, 5, 1 << 31):
        yield with_key(f"nextn-{n}", "llama.nextn_predict_layers", u32(n))
    yield with_key("nextn-1", "llama.nextn_predict_layers", u32(1))
    for n in (0, 5, 7, 192, 384, 1 << 31, (1 << 32) - 1):
        yield with_key(f"heads-{n}", "llama.attention.head_count", u32(n))
    for n in (0, 3, 4, 12, 1 << 31, (1 << 32) - 1):
        yield with_key(f"kv-heads-{n}", "llama.attention.head_count_kv", u32(n))
    yield with_key("heads-zero-in-a-layer", "llama.attention.head_count", numbers(UINT32, [6, 6, 0, 6]))
    yield with_key("heads-zero-in-the-first", "llama.attention.head_count", numbers(UINT32, [0, 6, 6, 6]))
    yield with_key("heads-negative-in-a-layer", "llama.attention.head_count_kv", numbers(INT32, [6, 6, -1, 6]))
    yield with_key("heads-too-many-layers", "llama.attention.head_count", numbers(UINT32, [6] * 513))
    yield with_key("kv-heads-of-bools", "llama.attention.head_count_kv", numbers(BOOL, [True] * 4))
    for n in (0, 16, 31, 33, 1 << 31):
        yield with_key(f"key-length-{n}", "llama.attention.key_length", u32(n))
        yield with_key(f"value-length-{n}", "llama.attention.value_length", u32(n))
    for n in (0, 1, 16, 31, 33, 64, 1 << 31):
        yield with_key(f"rope-dimensions-{n}", "llama.rope.dimension_count", u32(n))
    yield with_keys(
        "rope-and-head-odd", rope__dimension_count=u32(31), attention__key_length=u32(31), attention__value_length=u32(31)
    )
    for scaling in ("", "linear", "yarn", "longrope", "nonsense", "x" * 5000):
        yield with_key(f"rope-scaling-{scaling[:8] or 'empty'}", "llama.rope.scaling.type", string(scaling))
    yield with_key("rope-scaling-a-number", "llama.rope.scaling.type", u32(1))
    for number in (NAN, INF, -1.0, 0.0):
        yield with_key(f"rope-base-{number}", "llama.rope.freq_base", f32(number))
        yield with_keys(f"rope-factor-{number}", rope__scaling__type=string("yarn"), rope__scaling__factor=f32(number))
        yield with_key(f"eps-{number}", "llama.attention.layer_norm_rms_epsilon", f32(number))
    yield with_keys("rope-original-context-0", rope__scaling__type=string("yarn"), rope__scaling__original_context_length=u32(0))
    yield with_key("eps-float64", "llama.attention.layer_norm_rms_epsilon", (12, struct.pack("<d", 1e-5)))
    for n, used, groups, groups_used in ((1, 0, 0, 0), (0, 1, 0, 0), (4, 5, 0, 0), (4, 2, 0, 0), (1024, 2, 0, 0), (1025, 2, 0, 0),
                                         ((1 << 32) - 1, 1, 0, 0), (4, 2, 4, 1), (4, 2, 3, 1), (4, 2, 2, 0), (4, 2, 2, 2),
                                         (0, 0, 1, 0)):  # fmt: skip
        yield with_keys(
            f"experts-{n}-used-{used}-groups-{groups}-{groups_used}",
            expert_count=u32(n),
            expert_used_count=u32(used),
            expert_group_count=u32(groups),
            expert_group_used_count=u32(groups_used),
        )
    yield with_keys("experts-used-array-short", expert_count=u32(4), expert_used_count=numbers(UINT32, [2]))
    yield with_key("pooling-nonsense", "llama.pooling_type", u32(77))
    yield with_key("attention-not-causal", "llama.attention.causal", flag(False))
    yield with_key("vocab-size-wrong", "llama.vocab_size", u32(7))
    yield with_key("labels-of-numbers", "llama.classifier.output_labels", numbers(UINT32, [1, 2]))


# -- the vocabulary --------------------------------------------------------------------------------------------------


def _vocabulary(demo: File) -> Iterator[Hostile]:
    n = struct.unpack_from("<Q", demo.get("tokenizer.ggml.tokens")[1], 4)[0]
    names = [f"t{i}" for i in range(n)]

    def with_key(name: str, value: Value | None, key: str) -> Hostile:
        key = "tokenizer.ggml." + key
        return of_change(demo, f"vocabulary-{name}", "semantic", dropping(key) if value is None else setting(key, value))

    yield with_key("missing", None, "tokens")
    yield with_key("empty", strings([]), "tokens")
    yield with_key("all-equal", strings(["x"] * n), "tokens")
    yield with_key("two-equal", strings([*names[:-1], "t0"]), "tokens")
    yield with_key("equal-up-to-nul", strings([*names[:-1], b"t0\0x"]), "tokens")
    yield with_key("named-like-an-empty-one", strings(["", "[EMPTY_0]", *names[2:]]), "tokens")
    yield with_key("empty-texts", strings([""] * n), "tokens")
    yield with_key("no-bytes", strings(names), "tokens")
    yield with_key("not-utf8", strings([b"\xff%d" % i for i in range(n)]), "tokens")
    yield with_key("one-less", strings(names[:-1]), "tokens")
    yield with_key("one-more", strings([*names, "more"]), "tokens")
    yield with_key("of-numbers", numbers(UINT32, range(n)), "tokens")
    yield with_key("a-text", string("tokens"), "tokens")
    yield with_key("long-token", strings(["y" * 40_000, *names[1:]]), "tokens")
    yield with_key("scores-short", numbers(FLOAT32, [0.0] * (n - 1)), "scores")
    yield with_key("scores-nan", numbers(FLOAT32, [NAN] * n), "scores")
    yield with_key("scores-texts", strings(["0"] * n), "scores")
    yield with_key("scores-a-number", f32(0), "scores")
    yield with_key("types-short", numbers(INT32, [1] * (n - 1)), "token_type")
    yield with_key("types-nonsense", numbers(INT32, [99] * n), "token_type")
    yield with_key("types-uint32", numbers(UINT32, [1] * n), "token_type")
    yield with_key("model-missing", None, "model")
    yield with_key("model-a-number", u32(1), "model")
    for model in ("", "nonsense", "none", "gpt2", "bert", "t5", "rwkv", "plamo2", "gemma4"):
        yield with_key(f"model-{model or 'empty'}", string(model), "model")
    yield with_key("pre-a-number", u32(1), "pre")
    for end in ("bos", "eos"):
        yield with_key(f"{end}-beyond", u32(n), f"{end}_token_id")
        yield with_key(f"{end}-huge", u32((1 << 32) - 1), f"{end}_token_id")
        yield with_key(f"{end}-text", string("<s>"), f"{end}_token_id")
        yield with_key(f"add-{end}-a-number", u32(1), f"add_{end}_token")
    yield with_key("template-broken", (STRING, text("{% for x in %}{{")), "chat_template")

    def of_one_token(file: File) -> None:
        file.set("tokenizer.ggml.tokens", strings(["x"])).set("tokenizer.ggml.add_bos_token", flag(True))
        file.drop("tokenizer.ggml.scores", "tokenizer.ggml.token_type", "tokenizer.ggml.bos_token_id")
        file.change("token_embd.weight", lambda t: replace(t, shape=(t.shape[0], 1), data=t.data[: len(t.data) // n]))

    yield of_change(demo, "vocabulary-of-one-token-without-bos", "semantic", of_one_token)


# -- tensors and weights ---------------------------------------------------------------------------------------------


def _tensors(demo: File) -> Iterator[Hostile]:
    def changed(name: str, tensor: str, change: TensorChange, *, needs_probe: bool = False) -> Hostile:
        return of_change(demo, f"tensor-{tensor}-{name}", "tensors", changing(tensor, change), needs_probe=needs_probe)

    for tensor in (
        "token_embd.weight",
        "output_norm.weight",
        "blk.0.attn_norm.weight",
        "blk.1.attn_q.weight",
        "blk.3.ffn_down.weight",
    ):
        yield changed("missing", tensor, lambda t: None)
        yield changed("renamed", tensor, lambda t: replace(t, name="nothing"))
        yield changed("half", tensor, lambda t: zeros(t.name, (*t.shape[:-1], t.shape[-1] // 2), t.kind))
        yield changed("with-an-empty-dimension", tensor, lambda t: zeros(t.name, (t.shape[0], 0), t.kind))
        yield changed("with-a-third-dimension", tensor, lambda t: zeros(t.name, (*t.shape, 1, 2), t.kind))
        for kind, kind_name in ((I8, "i8"), (I32, "i32"), (I64, "i64"), (F64, "f64")):
            yield changed(kind_name, tensor, retyped(kind))
    yield changed("rotated", "blk.0.ffn_down.weight", lambda t: replace(t, shape=t.shape[::-1]))
    for kind, kind_name in ((F16, "f16"), (BF16, "bf16")):
        yield changed(kind_name, "blk.0.attn_norm.weight", retyped(kind), needs_probe=True)
        yield changed(kind_name, "output_norm.weight", retyped(kind), needs_probe=True)
    yield changed("q8_0", "blk.0.attn_norm.weight", retyped(Q8_0))

    def added(name: str, tensor: RawTensor, *, needs_probe: bool = False) -> Hostile:
        return of_change(demo, f"added-{name}", "tensors", adding(tensor), needs_probe=needs_probe)

    yield added("unknown", zeros("blk.0.nonsense.weight", (32,)))
    yield added("of-layer-4", zeros("blk.4.attn_q.weight", (192, 192)))
    yield added("rope-i32", zeros("rope_freqs.weight", (16,), I32))
    yield added("rope-f16", zeros("rope_freqs.weight", (16,), F16))
    yield added("rope-zeros", zeros("rope_freqs.weight", (16,)))
    yield added("rope-short", zeros("rope_freqs.weight", (15,)))
    yield added("bias-i32", zeros("blk.0.attn_q.bias", (192,), I32))
    yield added("bias-f16", zeros("blk.0.attn_q.bias", (192,), F16), needs_probe=True)
    yield added("bias-of-another-length", zeros("blk.0.attn_q.bias", (191,)))
    yield added("output-i8", zeros("output.weight", (192, 1024), I8))


def _weights(demo: File) -> Iterator[Hostile]:
    def filled(name: str, tensor: str, change: TensorChange) -> Hostile:
        return of_change(demo, f"weights-{name}-{tensor}", "weights", changing(tensor, change))

    for tensor in ("output_norm.weight", "blk.0.attn_norm.weight"):
        for name, number in (("nan", NAN), ("inf", INF)):
            yield filled(name, tensor, partial(_filled, pattern=struct.pack("<f", number)))
    for tensor in ("token_embd.weight", "blk.0.attn_k.weight"):  # Q8_0: a scale in half precision before each block
        yield filled("nan-scale", tensor, lambda t: replace(t, data=struct.pack("<e", NAN) + t.data[2:]))
        yield filled("all-ones", tensor, partial(_filled, pattern=b"\xff"))


def _filled(tensor: RawTensor, pattern: bytes) -> RawTensor:
    return replace(tensor, data=pattern * (len(tensor.data) // len(pattern)))
