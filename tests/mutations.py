"""What does a model become when one of its numbers is another? Every key and tensor of a sound file, changed one at a time."""

from __future__ import annotations

from collections.abc import Iterator

from modeld.llm.ggufvalues import TENSOR_TYPES
from tests.gguf_bytes import FLOAT32, UINT32, File, f32, numbers, string, u32
from tests.hostile import retyped

WHOLE = (0, 1, 2, 3, 5, 7, 15, 64, 1000, 1 << 20, 1 << 31, (1 << 32) - 1)
FLOATS = (float("nan"), float("inf"), -1.0, 0.0, 1e38, -1e-30)
# Keys that many models have and the file may not.
ADDED_WHOLE = (
    "attention.key_length attention.key_length_swa attention.sliding_window attention.sliding_window_pattern "
    "attention.value_length embedding_length_out expert_count expert_used_count expert_feed_forward_length "
    "full_attention_interval leading_dense_block_count nextn_predict_layers pooling_type rope.dimension_count "
    "rope.dimension_count_swa rope.scaling.original_context_length ssm.group_count vocab_size"
).split()
ADDED_FLOATS = (
    "attention.clamp_kqv attention.group_norm_epsilon attention.layer_norm_epsilon attention.layer_norm_rms_epsilon "
    "attention.max_alibi_bias attention.scale attn_logit_softcapping expert_weights_scale final_logit_softcapping logit_scale "
    "rope.freq_base rope.scaling.attn_factor rope.scaling.factor rope.scaling.yarn_log_multiplier"
).split()
MODELS = ("llama", "gpt2", "bert", "t5", "rwkv", "plamo2", "gemma4", "none", "test", "whitespace")


def mutations(file: File, arch: str) -> Iterator[tuple[str, File]]:
    """Named copies. Tensors of the first layer stand for those of the others."""
    for key, (kind, raw) in file.keys:
        yield f"without-{key}", file.copy().drop(key)
        if kind == UINT32:
            yield from ((f"{key}={n}", file.copy().set(key, u32(n))) for n in WHOLE)
            if key.startswith(arch):
                yield f"{key}-by-layer", file.copy().set(key, numbers(UINT32, [int.from_bytes(raw, "little")] * 4))
                yield f"{key}-rising", file.copy().set(key, numbers(UINT32, range(4)))
        elif kind == FLOAT32:
            yield from ((f"{key}={x}", file.copy().set(key, f32(x))) for x in FLOATS)
    for name in ADDED_WHOLE:
        yield from ((f"{name}={n}", file.copy().set(f"{arch}.{name}", u32(n))) for n in WHOLE)
    for name in ADDED_FLOATS:
        yield from ((f"{name}={x}", file.copy().set(f"{arch}.{name}", f32(x))) for x in FLOATS)
    for model in MODELS:
        yield f"vocabulary-{model}", file.copy().set("tokenizer.ggml.model", string(model))
    for tensor in file.tensors:
        if not tensor.name.startswith("blk.") or tensor.name.startswith("blk.0."):
            for kind, (name, block, _) in TENSOR_TYPES.items():
                if tensor.shape[0] % block == 0:
                    yield f"{tensor.name}-{name}", file.copy().change(tensor.name, retyped(kind))
