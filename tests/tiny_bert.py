"""A BERT of two layers with random weights: its GGUF file, and what it computes, in numpy and without llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

N_LAYER, N_EMBD, N_HEAD, N_FF, N_CTX = 2, 32, 4, 64, 48
EPS = 1e-12
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# WordPiece as llama.cpp keeps it: a word's beginning has the mark, what continues it has none.
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *("\u2581" + letter for letter in LETTERS), *LETTERS]
CLS, SEP = 2, 3

Weights = Mapping[str, Any]


def words(text: str) -> list[int]:
    """The tokens of a text of small letters and single blanks."""
    marked = [LETTERS.index(c) + (4 if i == 0 else 4 + len(LETTERS)) for word in text.split() for i, c in enumerate(word)]
    return [CLS, *marked, SEP]


@dataclass(frozen=True, slots=True)
class TinyBert:
    path: Path
    weights: Weights

    def embed(self, tokens: Sequence[int], pooling: str) -> Any:
        """The vector, not normalised."""
        rows = self._last_layer(tokens)
        return {"mean": rows.mean(axis=0), "cls": rows[0], "last": rows[-1]}[pooling]

    def _last_layer(self, tokens: Sequence[int]) -> Any:
        w = self.weights
        x = w["token_embd.weight"][list(tokens)] + w["token_types.weight"][0] + w["position_embd.weight"][: len(tokens)]
        x = self._norm(x, "token_embd_norm")
        n, head = len(tokens), N_EMBD // N_HEAD
        for i in range(N_LAYER):
            block = f"blk.{i}."
            q, k, v = (
                self._linear(x, block + name).reshape(n, N_HEAD, head).swapaxes(0, 1) for name in ("attn_q", "attn_k", "attn_v")
            )
            scores = q @ k.swapaxes(1, 2) / np.sqrt(head)
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            mixed = (scores / scores.sum(axis=-1, keepdims=True) @ v).swapaxes(0, 1).reshape(n, N_EMBD)
            x = self._norm(x + self._linear(mixed, block + "attn_output"), block + "attn_output_norm")
            up = self._linear(x, block + "ffn_up")
            gelu = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))  # ggml's GELU
            x = self._norm(x + self._linear(gelu, block + "ffn_down"), block + "layer_output_norm")
        return x

    def _linear(self, x: Any, name: str) -> Any:
        return x @ self.weights[name + ".weight"].T + self.weights[name + ".bias"]

    def _norm(self, x: Any, name: str) -> Any:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPS)
        return scaled * self.weights[name + ".weight"] + self.weights[name + ".bias"]


def make(path: Path, *, pooling: gguf.PoolingType | None = gguf.PoolingType.MEAN, seed: int = 1) -> TinyBert:
    """Write the model to `path`. `pooling`: what its metadata say; None: nothing."""
    rng = np.random.default_rng(seed)
    weights: dict[str, Any] = {}

    def matrix(name: str, *shape: int) -> None:
        weights[name] = rng.standard_normal(shape, dtype=np.float32) * 0.3

    matrix("token_embd.weight", len(TOKENS), N_EMBD)
    matrix("token_types.weight", 2, N_EMBD)
    matrix("position_embd.weight", N_CTX, N_EMBD)
    norms = ["token_embd_norm"]
    for i in range(N_LAYER):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{i}.{name}.weight", N_EMBD, N_EMBD)
            matrix(f"blk.{i}.{name}.bias", N_EMBD)
        matrix(f"blk.{i}.ffn_up.weight", N_FF, N_EMBD)
        matrix(f"blk.{i}.ffn_up.bias", N_FF)
        matrix(f"blk.{i}.ffn_down.weight", N_EMBD, N_FF)
        matrix(f"blk.{i}.ffn_down.bias", N_EMBD)
        norms += [f"blk.{i}.attn_output_norm", f"blk.{i}.layer_output_norm"]
    for name in norms:
        matrix(f"{name}.weight", N_EMBD)
        weights[f"{name}.weight"] += 1
        matrix(f"{name}.bias", N_EMBD)

    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name("tiny BERT (random weights)")
    writer.add_block_count(N_LAYER)
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_layer_norm_eps(EPS)
    writer.add_causal_attention(False)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.CONTROL] * 4 + [gguf.TokenType.NORMAL] * (len(TOKENS) - 4))
    writer.add_token_type_count(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(CLS)
    writer.add_sep_token_id(SEP)
    for name, values in weights.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return TinyBert(path, weights)
