"""What does libllama take for granted of which architecture? Names out of src/models/*.cpp, in groups that share a rule.

An architecture that stands in no group is not looked at so closely: a rule that does not hold would refuse a good model.
tests/test_soundness.py compares the groups with the source.
"""

from __future__ import annotations

from collections.abc import Mapping

# The graph asserts that keys and values have heads of one length, and the model loads token_embd.weight as n_embd x n_vocab.
ALIKE_HEADS = frozenset(
    "arcee arctic baichuan bert bitnet bloom chatglm command-r dbrx dream ernie4_5 exaone falcon glm4 gpt2 gptneox granite "
    "internlm2 llama mistral3 mpt olmo olmo2 olmoe orion phi2 qwen2 qwen2moe qwen2vl qwen3 qwen3moe refact seed_oss smollm3 "
    "stablelm starcoder starcoder2 xverse".split()
)
# Other graphs with the same assert, of which the table may be otherwise.
EQUAL_LENGTHS = ALIKE_HEADS | frozenset(
    "apertus codeshell cohere2 cohere2moe deepseek dots1 ernie4_5-moe glm4moe grok grovemoe hunyuan-moe hunyuan_vl llada-moe "
    "llama4 nemotron openelm pangu-embedded plamo qwen3vl qwen3vlmoe rnd1 smallthinker".split()
)
# ... and that all of a head is rotated.
WHOLE_ROPE = frozenset(
    "arcee arctic baichuan dbrx dream ernie4_5 exaone falcon granite internlm2 llama mistral3 olmo olmo2 olmoe orion qwen2 "
    "qwen2moe qwen2vl qwen3 qwen3moe seed_oss smollm3 starcoder2 xverse "
    "dots1 ernie4_5-moe grok grovemoe hunyuan-moe llada-moe llama4 pangu-embedded qwen3vl qwen3vlmoe smallthinker".split()
)
# Graphs that rotate a part of each head: an even number, and none at all makes ggml_rope run without end.
ROTATED = WHOLE_ROPE | frozenset(
    "bitnet chatglm codeshell cohere2 command-r deepseek2 gemma gemma2 gemma3 gemma3n glm4 glm4moe gpt-oss gptneox llama4 "
    "minicpm3 nemotron phi2 phi3 plamo stablelm".split()
)
ROTATED_BY_SECTIONS = frozenset(("qwen2vl", "qwen3vl", "qwen3vlmoe"))  # always; others where their sections are not 0
# Other graphs that are nothing without heads: some divide by their number.
HEADED = EQUAL_LENGTHS | ROTATED | frozenset("granitemoe minicpm phimoe".split())
# Numbers by which libllama divides, or which it asserts to be more than 0. Of those that may be absent, the default is.
NEVER_ZERO: Mapping[str, tuple[str, ...]] = {
    "bailingmoe2": ("expert_count",), "glm4moe": ("expert_count",), "ernie4_5-moe": ("interleave_moe_layer_step",),
    "qwen3next": ("full_attention_interval",), "qwen35": ("full_attention_interval",),
    "qwen35moe": ("full_attention_interval",), "minimax-01": ("full_attention_interval",),
    "mamba2": ("ssm.group_count", "ssm.time_step_rank"), "granitehybrid": ("ssm.group_count", "ssm.time_step_rank"),
    "nemotron_h": ("ssm.group_count", "ssm.time_step_rank"), "nemotron_h_moe": ("ssm.group_count", "ssm.time_step_rank"),
    "falcon-h1": ("ssm.group_count", "ssm.time_step_rank"), "plamo2": ("ssm.time_step_rank",),
    "rwkv6": ("wkv.head_size",), "rwkv6qwen2": ("wkv.head_size",), "rwkv7": ("wkv.head_size",), "arwkv7": ("wkv.head_size",),
}  # fmt: skip
MUST_BE_GIVEN = frozenset(("expert_count", "wkv.head_size"))  # 0 where they are absent, and then it ends in the same place
# Positions have vectors of their own (position_embd.weight), as many as context_length: one beyond them asserts in get_rows.
LEARNED_POSITIONS = frozenset(("gpt2", "starcoder", "mpt"))  # mpt: where the file has the tensor
# The pattern of sliding attention (llama_hparams::set_swa_pattern): the period, and whether a dense layer comes first.
# Those whose window is always on, and those where `attention.sliding_window` turns it on.
ALWAYS_SLIDING: Mapping[str, tuple[int, bool]] = {
    "gemma2": (2, False), "gemma3n": (5, False), "gpt-oss": (2, False), "cohere2": (4, False), "gemma-embedding": (6, False),
}  # fmt: skip
MAY_SLIDE: Mapping[str, tuple[int, bool]] = {
    "gemma3": (6, False), "olmo2": (4, False), "plamo3": (8, False), "afmoe": (4, False), "smallthinker": (4, True),
}  # fmt: skip
DEFAULT_WINDOW: Mapping[str, int] = {"gemma2": 4096}

RECURRENT = frozenset("mamba mamba2 rwkv6 rwkv6qwen2 rwkv7 arwkv7".split())  # llm_arch_is_recurrent
# llm_arch_is_hybrid, where a layer without KV heads is a recurrent one
HYBRID_BY_HEADS = frozenset(
    "jamba plamo2 granitehybrid lfm2 lfm2moe nemotron_h nemotron_h_moe kimi-linear kimi-k3 bailingmoe3 glm5-next".split()
)
# Of those, where a model without a recurrent layer asserts in its first decode: the input of their states has no buffer.
NEEDS_RECURRENT = frozenset(("jamba", "granitehybrid", "plamo2"))
HYBRID_BY_INTERVAL = frozenset("qwen3next qwen35 qwen35moe qwen4exp".split())  # full_attention_interval, 4 when absent
HYBRID_WHOLLY = frozenset(("falcon-h1",))  # each layer is both
OTHER_MEMORY = frozenset(  # whose cache is made of more than keys and values (llama_model::create_memory), or of less
    "deepseek32 deepseek4 glm-dsa dots3note minimax-m3 minimax-01 dflash eagle3 gemma4-assistant hy_v4".split()
)
ENCODERS = frozenset(  # no KV cache
    "bert modern-bert nomic-bert nomic-bert-moe neo-bert jina-bert-v2 jina-bert-v3 eurobert gemma-embedding wavtokenizer-dec "
    "dream llada llada-moe rnd1".split()
)


def sliding_layers(pattern: tuple[int, bool], n_layers: int) -> tuple[bool, ...]:
    """Which layers have sliding attention (llama_hparams::set_swa_pattern). A period of 0: all."""
    period, dense_first = pattern
    if period == 0:
        return (True,) * n_layers
    if dense_first:
        return tuple(layer % period != 0 for layer in range(n_layers))
    return tuple(layer % period < period - 1 for layer in range(n_layers))
