"""How does a trained model become a GGUF file, and what do its quantized weights say when read back?"""

from pathlib import Path

import gguf
import numpy as np
import torch
from gguf.quants import dequantize, quantize

from .chat import CHAT_TEMPLATE
from .network import Llama, Shape
from .recipes import Recipe
from .tokenizer import BOS, EOS, IM_END, UNK, Vocabulary


def write_gguf(path: Path, model: Llama, vocabulary: Vocabulary, recipe: Recipe) -> None:
    """Matrices in Q8_0, norms in F32. The file appears under its name only when it is complete."""
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    _add_header(writer, model.shape, recipe)
    _add_tokenizer(writer, vocabulary)
    for name, weights in _named_weights(model).items():
        if weights.ndim == 1:
            writer.add_tensor(name, weights)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)


def read_gguf(path: Path) -> Llama:
    """The model of a file of ours, with the weights dequantized to float32: what a perfect runtime would compute with."""
    reader = gguf.GGUFReader(path)
    tensors = {t.name: torch.from_numpy(dequantize(t.data, t.tensor_type).astype(np.float32)) for t in reader.tensors}

    def number(key: str) -> float:
        field = reader.get_field(f"llama.{key}")
        if field is None:
            raise ValueError(f"{path}: no llama.{key}")
        return float(field.contents())

    shape = Shape(
        vocabulary=tensors["token_embd.weight"].shape[0],
        context=int(number("context_length")),
        width=int(number("embedding_length")),
        layers=int(number("block_count")),
        heads=int(number("attention.head_count")),
        hidden=int(number("feed_forward_length")),
        rope_base=number("rope.freq_base"),
        epsilon=number("attention.layer_norm_rms_epsilon"),
    )
    state = {"embedding.weight": tensors["token_embd.weight"], "norm.weight": tensors["output_norm.weight"]}
    for i in range(shape.layers):
        block, here = f"blk.{i}.", f"blocks.{i}."
        state[here + "attn_norm.weight"] = tensors[block + "attn_norm.weight"]
        state[here + "qkv.weight"] = torch.cat([tensors[f"{block}attn_{part}.weight"] for part in "qkv"])
        state[here + "out.weight"] = tensors[block + "attn_output.weight"]
        state[here + "ffn_norm.weight"] = tensors[block + "ffn_norm.weight"]
        state[here + "gate_up.weight"] = torch.cat([tensors[f"{block}ffn_{part}.weight"] for part in ("gate", "up")])
        state[here + "down.weight"] = tensors[block + "ffn_down.weight"]
    model = Llama(shape)
    model.load_state_dict(state)
    model.eval()
    return model


def _add_header(writer: gguf.GGUFWriter, shape: Shape, recipe: Recipe) -> None:
    writer.add_type("model")
    writer.add_name(recipe.title)
    writer.add_author("the modeld authors")
    writer.add_description(recipe.description)
    writer.add_license("MIT")
    writer.add_languages(["en"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_rope_freq_base(shape.rope_base)


def _add_tokenizer(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(list(vocabulary.pieces))
    writer.add_token_scores(list(vocabulary.scores))
    writer.add_token_types([int(kind) for kind in vocabulary.types])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)  # ends a raw completion
    writer.add_eot_token_id(IM_END)  # ends a chat answer; llama.cpp stops at both
    writer.add_unk_token_id(UNK)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _named_weights(model: Llama) -> dict[str, np.ndarray]:
    """GGUF name -> float32 array [rows, width] or [width]. No output.weight: llama.cpp then takes token_embd again."""
    state = {name: tensor.detach().float().numpy() for name, tensor in model.state_dict().items()}
    weights = {"token_embd.weight": state["embedding.weight"], "output_norm.weight": state["norm.weight"]}
    for i in range(model.shape.layers):
        block, here = f"blk.{i}.", f"blocks.{i}."
        weights[block + "attn_norm.weight"] = state[here + "attn_norm.weight"]
        for part, rows in zip("qkv", np.split(state[here + "qkv.weight"], 3), strict=True):
            weights[f"{block}attn_{part}.weight"] = rows
        weights[block + "attn_output.weight"] = state[here + "out.weight"]
        weights[block + "ffn_norm.weight"] = state[here + "ffn_norm.weight"]
        gate, up = np.split(state[here + "gate_up.weight"], 2)
        weights[block + "ffn_gate.weight"], weights[block + "ffn_up.weight"] = gate, up
        weights[block + "ffn_down.weight"] = state[here + "down.weight"]
    return weights
