"""Would libllama survive this model? What it asserts of a file's numbers and tensors, looked at before it sees them.

A wrong container makes libllama give up with a reason; a wrong number in a sound container often ends the process. The
sources are llama_model_base::load_hparams, llama_model::create_memory, the graphs in src/models/ and ggml's own asserts.
A rule for every architecture holds for every architecture; the others name theirs (architectures.py). What only shows when
the model computes is left to a probe: weights that are no numbers, and norms in half precision.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from modeld.llm.architectures import (
    ALIKE_HEADS,
    ALWAYS_SLIDING,
    EQUAL_LENGTHS,
    HEADED,
    MAY_SLIDE,
    MUST_BE_GIVEN,
    NEEDS_RECURRENT,
    NEVER_ZERO,
    ROTATED,
    ROTATED_BY_SECTIONS,
    WHOLE_ROPE,
    sliding_layers,
)
from modeld.llm.ggufvalues import BOOL, FLOAT32, INT32, KIND_NAMES, STRING, UINT32, Array, BadGguf, Head, Tensor, uint32
from modeld.llm.vocabsound import check_vocabulary, n_tokens_of

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS
MAX_CONTEXT = (1 << 31) - 1  # llama_model_n_ctx_train gives an int32
POOLINGS = (0, 1, 2, 3, 4, 0xFFFFFFFF)  # enum llama_pooling_type; the last is LLAMA_POOLING_TYPE_UNSPECIFIED, -1
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")  # LLAMA_ROPE_SCALING_TYPES

# What ggml's kernels take. Half precision in what is added is left to the probe: a device may do what the CPU does not.
_ADDED = re.compile(r"(norm(_\d+)?\.weight|\.bias|ssm_d|^token_types\.weight)$")
_FLOATS = ("F32", "F16", "BF16")
_FLOAT32_ONLY = re.compile(r"(rope_(freqs|factors_long|factors_short)|ssm_conv1d)\.weight$|ssm_a$")
# Weights of matrix products, and tables of rows. No list of all names, since some hold whole numbers, and rightly.
_COMPUTED = re.compile(r"^(token_embd|position_embd|output|blk\.\d+\.(attn|ffn|ssm)_(?!gate_tid2eid)\w+)\.weight$")
_NEVER_COMPUTED = ("I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K")


def problem_of(head: Head, tensors: Mapping[str, Tensor]) -> str | None:
    """Why libllama would refuse the model or die of it, in words; None when nothing is known against it.

    `tensors` are those of all shards. Never raises.
    """
    try:
        _check(head, tensors)
    except BadGguf as error:
        return str(error)
    return None


def n_layers_of(head: Head) -> int | None:
    n = head.number(f"{head.architecture}.block_count")
    return n if n is not None and 0 < n <= MAX_LAYERS else None


def per_layer(head: Head, key: str, n_layers: int) -> tuple[int, ...] | None:
    """A number for each layer, or the one for all (llama_model_loader::get_key_or_arr); None: absent. Raises BadGguf."""
    value = head.values.get(key)
    if isinstance(value, Array):
        if value.kind not in (UINT32, INT32, BOOL) or value.items is None:
            raise BadGguf(f"{key} is an array of {value.n} {KIND_NAMES[value.kind]}; expected uint32 or int32")
        if value.n != n_layers:
            raise BadGguf(f"{key} has {value.n} numbers; there are {n_layers} layers")
        return tuple(int(item) & 0xFFFFFFFF for item in value.items)
    number = uint32(head, key)
    return None if number is None else (number,) * n_layers


def _check(head: Head, tensors: Mapping[str, Tensor]) -> None:
    if head.architecture is None:
        raise BadGguf("not a model: it does not say general.architecture")
    kind = head.text("general.type") or "model"
    if kind != "model":
        raise BadGguf(f"not a model: general.type is {kind!r}")
    if head.architecture == "clip":
        raise BadGguf("not a model of its own: general.architecture is 'clip', a projector that belongs to another")
    if not tensors:
        raise BadGguf("not a model: it holds no tensors")
    arch = head.architecture
    n_layers, n_embd = _check_sizes(head, arch)
    _check_experts(head, arch, n_layers)
    _check_heads(head, arch, n_layers, n_embd)
    _check_rope(head, arch)
    _check_sliding(head, arch, n_layers)
    _check_norms(head, arch)
    _check_types(tensors)
    check_vocabulary(head)
    if arch in ALIKE_HEADS:
        _check_embeddings(head, tensors, n_embd)


def _check_sizes(head: Head, arch: str) -> tuple[int, int]:
    """Layers, and numbers of an embedding."""
    n_layers = _required(head, f"{arch}.block_count", 1, MAX_LAYERS)
    n_embd = _required(head, f"{arch}.embedding_length", 1, MAX_CONTEXT)
    _required(head, f"{arch}.context_length", 0, MAX_CONTEXT)
    n_nextn = uint32(head, f"{arch}.nextn_predict_layers") or 0
    if n_nextn > n_layers:
        raise BadGguf(f"{arch}.nextn_predict_layers is {n_nextn}; there are {n_layers} layers in all")
    if arch in ALIKE_HEADS and n_nextn == n_layers:
        raise BadGguf(f"{arch}.nextn_predict_layers is {n_nextn}, all of its layers; expected less")
    per_layer(head, f"{arch}.feed_forward_length", n_layers)
    for name in NEVER_ZERO.get(arch, ()):
        if not (uint32(head, f"{arch}.{name}") or (f"{arch}.{name}" not in head.kinds and name not in MUST_BE_GIVEN)):
            raise BadGguf(f"{arch}.{name} is {head.values.get(f'{arch}.{name}', 'missing')}; expected 1 or more")
    pooling = uint32(head, f"{arch}.pooling_type")
    if pooling is not None and pooling not in POOLINGS:
        raise BadGguf(f"{arch}.pooling_type is {pooling}; expected one of {', '.join(map(str, POOLINGS[:-1]))}")
    return n_layers, n_embd


def _check_experts(head: Head, arch: str, n_layers: int) -> None:
    """llama_model_base::load_hparams, "models may route a different number of experts per layer"."""
    n = uint32(head, f"{arch}.expert_count") or 0
    used = max(per_layer(head, f"{arch}.expert_used_count", n_layers) or (0,))
    n_groups = uint32(head, f"{arch}.expert_group_count") or 0
    n_groups_used = uint32(head, f"{arch}.expert_group_used_count") or 0
    if arch in ("hunyuan_vl", "hunyuan-dense") and n <= 1:
        n = used = 0
    if n > MAX_EXPERTS:
        raise BadGguf(f"{arch}.expert_count is {n}; at most {MAX_EXPERTS}")
    if used > n:
        raise BadGguf(f"{arch}.expert_used_count is {used}; {arch}.expert_count is {n}")
    if n and not used:
        raise BadGguf(f"{arch}.expert_count is {n}, and {arch}.expert_used_count 0; expected 1..{n}")
    if n_groups and n_groups >= n:
        raise BadGguf(f"{arch}.expert_group_count is {n_groups}; expected less than the {n} experts")
    if n_groups > 1 and n % n_groups:
        raise BadGguf(f"{arch}.expert_group_count is {n_groups}, which does not divide the {n} experts")
    if n_groups > 1 and not 0 < n_groups_used < n_groups:
        raise BadGguf(f"{arch}.expert_group_used_count is {n_groups_used}; expected 1..{n_groups - 1}")


def _check_heads(head: Head, arch: str, n_layers: int, n_embd: int) -> None:
    heads = per_layer(head, f"{arch}.attention.head_count", n_layers)
    kv_heads = per_layer(head, f"{arch}.attention.head_count_kv", n_layers) or heads
    key_length = uint32(head, f"{arch}.attention.key_length")
    value_length = uint32(head, f"{arch}.attention.value_length")
    if arch in NEEDS_RECURRENT and kv_heads is not None and 0 not in kv_heads:
        raise BadGguf(f"{arch}.attention.head_count_kv has no layer of 0 heads, so none is recurrent; at least one has to be")
    if arch not in HEADED:
        return
    if heads is None or kv_heads is None or not heads[0]:
        raise BadGguf(f"{arch}.attention.head_count is {heads[0] if heads else 'missing'}; expected 1 or more")
    if arch in ALIKE_HEADS and key_length is None and n_embd % heads[0]:
        raise BadGguf(f"{arch}.embedding_length is {n_embd}, no multiple of the {heads[0]} heads")
    length = n_embd // heads[0]
    key_length = length if key_length is None else key_length
    value_length = length if value_length is None else value_length
    if arch in ROTATED:
        _check_rotation(head, arch, key_length)
    if arch in EQUAL_LENGTHS:
        _check_lengths(head, arch, key_length, value_length)
        for layer, (n, n_kv) in enumerate(zip(heads, kv_heads, strict=True)):
            if n and (not n_kv or n % n_kv):  # a layer without heads of its own has been seen in pruned models
                raise BadGguf(f"{arch}: layer {layer} has {n} heads and {n_kv} KV heads; expected a multiple of it")


def _check_lengths(head: Head, arch: str, n_keys: int, n_values: int) -> None:
    if not n_keys or n_keys != n_values:
        raise BadGguf(f"{arch}: keys have {n_keys} numbers a head, values {n_values}; expected the same of both")
    if arch not in ALWAYS_SLIDING and arch not in MAY_SLIDE:
        return
    n_slid = [uint32(head, f"{arch}.attention.{what}_length_swa") for what in ("key", "value")]
    n_keys, n_values = (n_keys if n is None else n for n in n_slid)
    if not n_keys or n_keys != n_values:
        raise BadGguf(f"{arch}: sliding keys have {n_keys} numbers a head, sliding values {n_values}; expected the same of both")


def _check_rotation(head: Head, arch: str, key_length: int) -> None:
    """ggml_compute_forward_rope asserts that it is even and no more than there is."""
    for window in ("", "_swa"):
        key = f"{arch}.rope.dimension_count{window}"
        n_rot = uint32(head, key)
        if n_rot is None:
            continue
        length = uint32(head, f"{arch}.attention.key_length{window}")
        length = key_length if length is None else length
        if arch in WHOLE_ROPE and n_rot != length:
            raise BadGguf(f"{key} is {n_rot}; a head has {length} numbers, and all are rotated")
        if not n_rot or n_rot % 2 or n_rot > length:
            raise BadGguf(f"{key} is {n_rot}; expected an even number up to the {length} of a head")


def _check_rope(head: Head, arch: str) -> None:
    key = f"{arch}.rope.scaling.type"
    kind = head.kinds.get(key)
    if kind is not None and kind != STRING:
        raise BadGguf(f"{key} is of type {KIND_NAMES[kind]}; expected string")
    scaling = head.values.get(key)
    if kind is not None and scaling not in ROPE_SCALINGS:
        said = f"{scaling[:40]!r}" if isinstance(scaling, str) else "a long text"  # which the reader has passed over
        raise BadGguf(f"{key} is {said}; expected one of {', '.join(ROPE_SCALINGS)}")
    if (
        arch in ROTATED_BY_SECTIONS
        and (sections := head.values.get(f"{arch}.rope.dimension_sections")) is not None
        and (not isinstance(sections, Array) or sections.items is None or not any(int(n) > 0 for n in sections.items[:3]))
    ):
        raise BadGguf(f"{arch}.rope.dimension_sections holds no number above 0; one of the first three has to be")


def _check_sliding(head: Head, arch: str, n_layers: int) -> None:
    """A cache for sliding attention is made of layers that have it: one at least (llama_model::create_memory)."""
    window = head.number(f"{arch}.attention.sliding_window") or 0
    default = ALWAYS_SLIDING.get(arch) or (MAY_SLIDE.get(arch) if window else None)
    if default is None:
        return
    n_layers -= uint32(head, f"{arch}.nextn_predict_layers") or 0
    if not any(sliding_of(head, arch, default, n_layers)):
        raise BadGguf(
            f"{arch}.attention.sliding_window_pattern gives none of the {n_layers} layers sliding attention; one at least"
        )


def sliding_of(head: Head, arch: str, default: tuple[int, bool], n_layers: int) -> tuple[bool, ...]:
    """Which layers have sliding attention (llama_model_base::load_swa_pattern). Raises BadGguf."""
    key = f"{arch}.attention.sliding_window_pattern"
    value = head.values.get(key)
    if isinstance(value, Array):
        if value.items is None or value.n > MAX_LAYERS:
            raise BadGguf(f"{key} is an array of {value.n} {KIND_NAMES[value.kind]}; expected a number a layer")
        return tuple(bool(item) for item in value.items[:n_layers])
    period = uint32(head, key)
    return sliding_layers(default if period is None else (period, default[1]), n_layers)


def _check_norms(head: Head, arch: str) -> None:
    for name in ("layer_norm_rms_epsilon", "layer_norm_epsilon", "group_norm_epsilon"):
        key = f"{arch}.attention.{name}"
        kind = head.kinds.get(key)
        if kind is None:
            continue
        value = head.values.get(key)
        if kind != FLOAT32 or not isinstance(value, float):
            raise BadGguf(f"{key} is of type {KIND_NAMES[kind]}; expected float32")
        if not (math.isfinite(value) and value >= 0):
            raise BadGguf(f"{key} is {value}; expected a number of 0 or more")


def _check_types(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if _FLOAT32_ONLY.search(name):
            _refuse_type(name, tensor, ("F32",))
        elif _ADDED.search(name):
            _refuse_type(name, tensor, _FLOATS)
        elif tensor.type_name in _NEVER_COMPUTED and _COMPUTED.match(name):
            raise BadGguf(f"tensor {name!r} is of type {tensor.type_name}, which nothing computes with")


def _refuse_type(name: str, tensor: Tensor, wanted: Iterable[str]) -> None:
    if tensor.type_name not in wanted:
        raise BadGguf(f"tensor {name!r} is of type {tensor.type_name}; expected {' or '.join(wanted)}")


def _check_embeddings(head: Head, tensors: Mapping[str, Tensor], n_embd: int) -> None:
    """llama_model_loader::check_tensor_dims would say so, too, but only when the model before it is gone."""
    n_out = uint32(head, f"{head.architecture}.embedding_length_out") or 0
    if n_out > n_embd and not any(name.startswith("dense_") for name in tensors):
        raise BadGguf(
            f"{head.architecture}.embedding_length_out is {n_out}; without a tensor dense_* vectors have {n_embd} numbers"
        )
    table = tensors.get("token_embd.weight")
    if table is None:
        raise BadGguf("the tensor 'token_embd.weight' is missing")
    if table.row != n_embd:
        raise BadGguf(
            f"tensor 'token_embd.weight' has rows of {table.row} numbers; {head.architecture}.embedding_length is {n_embd}"
        )
    n_tokens, n_rows = n_tokens_of(head), math.prod(table.shape[1:])
    if n_tokens is not None and n_rows != n_tokens:
        raise BadGguf(f"tensor 'token_embd.weight' has {n_rows} rows; the vocabulary has {n_tokens} tokens")


def _required(head: Head, key: str, least: int, most: int) -> int:
    value = uint32(head, key)
    if value is None:
        raise BadGguf(f"{key} is missing")
    if not least <= value <= most:
        raise BadGguf(f"{key} is {value}; expected {least}..{most}")
    return value
