"""The smallest models of other architectures that libllama loads: weights of zero, the demo model's vocabulary."""

from __future__ import annotations

from tests.gguf_bytes import File, f32, parse, string, u32, zeros
from tests.hostile_gguf import DEMO

N_VOCAB, N_EMBD, N_FF, N_HEADS, N_LAYERS = 1024, 32, 64, 4, 4


def _model(arch: str, **numbers: int) -> File:
    """Keys without tensors. Two underscores are a dot."""
    file = File([("general.architecture", string(arch))])
    measures = {"context_length": 512, "embedding_length": N_EMBD, "block_count": N_LAYERS, "feed_forward_length": N_FF}
    for name, number in {**measures, **numbers}.items():
        file.set(f"{arch}.{name.replace('__', '.')}", u32(number))
    for name in ("layer_norm_rms_epsilon", "layer_norm_epsilon"):
        file.set(f"{arch}.attention.{name}", f32(1e-5))
    file.keys += [(key, value) for key, value in parse(DEMO.read_bytes()).keys if key.startswith("tokenizer.ggml.")]
    file.tensors += [zeros("token_embd.weight", (N_EMBD, N_VOCAB)), zeros("output_norm.weight", (N_EMBD,))]
    return file


def _layers(file: File, shapes: dict[str, tuple[int, ...]]) -> File:
    file.tensors += [zeros(f"blk.{layer}.{name}", shape) for layer in range(N_LAYERS) for name, shape in shapes.items()]
    return file


def gpt2() -> File:
    """Positions that are learned: 512."""
    file = _model("gpt2", attention__head_count=N_HEADS)
    file.tensors += [zeros("position_embd.weight", (N_EMBD, 512)), zeros("output_norm.bias", (N_EMBD,))]
    pairs = {"attn_norm": (N_EMBD,), "attn_qkv": (N_EMBD, 3 * N_EMBD), "attn_output": (N_EMBD, N_EMBD),
             "ffn_norm": (N_EMBD,), "ffn_down": (N_FF, N_EMBD), "ffn_up": (N_EMBD, N_FF)}  # fmt: skip
    return _layers(file, {f"{name}.{what}": shape if what == "weight" else shape[-1:]
                          for name, shape in pairs.items() for what in ("weight", "bias")})  # fmt: skip


_ATTENTION = {"attn_norm.weight": (N_EMBD,), "attn_q.weight": (N_EMBD, N_EMBD), "attn_k.weight": (N_EMBD, N_EMBD // 2),
              "attn_v.weight": (N_EMBD, N_EMBD // 2), "attn_output.weight": (N_EMBD, N_EMBD),
              "ffn_norm.weight": (N_EMBD,)}  # fmt: skip


def gemma2() -> File:
    """A window of 64 tokens in every second layer; 2 KV heads for 4."""
    file = _model("gemma2", attention__head_count=N_HEADS, attention__head_count_kv=2, attention__sliding_window=64,
                  attention__key_length=8, attention__value_length=8)  # fmt: skip
    ffn = {"ffn_gate.weight": (N_EMBD, N_FF), "ffn_up.weight": (N_EMBD, N_FF), "ffn_down.weight": (N_FF, N_EMBD)}
    norms = {"post_attention_norm.weight": (N_EMBD,), "post_ffw_norm.weight": (N_EMBD,)}
    return _layers(file, {**_ATTENTION, **ffn, **norms})


def mamba2(n_groups: int = 1) -> File:
    """Recurrent layers only: a state of 16 numbers for each of 64 channels."""
    n_inner, n_state, n_ranks = 64, 16, 8
    file = _model("mamba2", ssm__conv_kernel=4, ssm__inner_size=n_inner, ssm__state_size=n_state, ssm__time_step_rank=n_ranks,
                  ssm__group_count=n_groups)  # fmt: skip
    n_conv = n_inner + 2 * n_groups * n_state
    return _layers(file, {
        "attn_norm.weight": (N_EMBD,), "ssm_in.weight": (N_EMBD, n_inner + n_conv + n_ranks), "ssm_conv1d.weight": (4, n_conv),
        "ssm_conv1d.bias": (n_conv,), "ssm_dt.bias": (n_ranks,), "ssm_a": (1, n_ranks), "ssm_d": (1, n_ranks),
        "ssm_norm.weight": (n_inner // max(n_groups, 1), max(n_groups, 1)), "ssm_out.weight": (n_inner, N_EMBD),
    })  # fmt: skip


def qwen2moe() -> File:
    """Four experts, of which two answer."""
    file = _model("qwen2moe", attention__head_count=N_HEADS, attention__head_count_kv=2, expert_count=4, expert_used_count=2,
                  expert_feed_forward_length=32, expert_shared_feed_forward_length=32)  # fmt: skip
    file.tensors.append(zeros("output.weight", (N_EMBD, N_VOCAB)))
    experts = {"ffn_gate_inp.weight": (N_EMBD, 4), "ffn_gate_exps.weight": (N_EMBD, 32, 4), "ffn_up_exps.weight": (N_EMBD, 32, 4),
               "ffn_down_exps.weight": (32, N_EMBD, 4), "ffn_gate_inp_shexp.weight": (N_EMBD,),
               "ffn_gate_shexp.weight": (N_EMBD, 32), "ffn_up_shexp.weight": (N_EMBD, 32),
               "ffn_down_shexp.weight": (32, N_EMBD)}  # fmt: skip
    return _layers(file, {**_ATTENTION, **experts})
