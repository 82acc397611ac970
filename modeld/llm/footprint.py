"""How much memory will a model take? An estimate out of its file's head and its entry in the registry; nothing is loaded.

Weights and KV cache are what libllama allocates, or more where the file leaves a doubt; what the graph's intermediate
results take is a bound by its widest ones (llama_context's compute buffer is planned by the graph that needs most). The
pages of a mapped file are not counted beside the weights that were repacked out of them: the kernel can drop them.
"""

from __future__ import annotations

from dataclasses import dataclass

from modeld.llm.gguf import inspect, padded, slot_cells
from modeld.types import ModelShape, ModelSpec

# Bytes of a block and its numbers, of each type that a cache may have (ggml_type_size, ggml_blck_size)
CACHE_TYPES = {
    "f32": (4, 1), "f16": (2, 1), "bf16": (2, 1), "q8_0": (34, 32), "q4_0": (18, 32), "q4_1": (20, 32), "iq4_nl": (18, 32),
    "q5_0": (22, 32), "q5_1": (24, 32),
}  # fmt: skip
SCORED_ROWS = 32  # llm/context.py: rows of logits at least, where a prompt's may be wanted
FLOAT_BYTES = 4
HALF_BYTES = 2
# What is alive at one time of a row's activations: of those as wide as n_embd the residual, its norm, q, k, v and what
# attention gives; of those as wide as n_ff the gate, the other half, and their product.
LIVE_EMBD, LIVE_FF = 6, 3
TOKEN_BYTES = 256  # of libllama's tables for each token of the vocabulary (q05: 151,936 tokens, about 40 MB)


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that a loaded model takes."""

    weights_bytes: int
    kv_bytes: int  # KV cache and recurrent states
    compute_bytes: int  # intermediate results, logits, the vocabulary

    @property
    def total(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes


def estimate(spec: ModelSpec) -> Footprint | None:
    """What loading this entry will take; None where the file is bad or does not tell. Any thread; never raises.

    Reads the head of a file that was not inspected since it changed.
    """
    shape = inspect(spec).shape
    if shape is None or not (spec.n_ctx or shape.n_ctx_train):
        return None
    plan = _Plan(spec, shape)
    return Footprint(plan.weights_bytes(), plan.kv_bytes(), plan.compute_bytes())


class _Plan:
    """The measures of one context, as llm/context.py and llm/embedding.py ask for it and llama_context makes it."""

    def __init__(self, spec: ModelSpec, shape: ModelShape) -> None:
        self._spec = spec
        self._shape = shape
        self._embeds = spec.embeddings == "on" or (
            spec.embeddings == "auto" and (spec.pooling is not None or shape.for_embeddings)
        )
        # Embeddings have one cache for all; otherwise each slot has one of its own.
        self._n_streams = 1 if self._embeds else spec.n_parallel
        self._n_cells = padded(spec.n_ctx or shape.n_ctx_train) if self._embeds else slot_cells(spec, shape.n_ctx_train)
        n_batch = spec.n_ubatch if self._embeds else max(spec.n_batch, spec.n_parallel)
        self._n_batch = min(n_batch, self._n_cells * self._n_streams)
        self._n_rows = min(spec.n_ubatch, self._n_batch)
        quantized = not {spec.cache_type_v} <= {"f32", "f16", "bf16"}
        self._flash = spec.flash_attn == "on" or (spec.flash_attn == "auto" and (quantized or not self._embeds))

    def weights_bytes(self) -> int:
        """What is mapped is counted once: of a table that gives the logits, too, a copy is made and few rows are touched."""
        copied = self._shape.tied_bytes if self._spec.load_mode in ("none", "mlock") else 0
        return self._shape.weights_bytes + copied

    def kv_bytes(self) -> int:
        spec, shape = self._spec, self._shape
        # Without flash attention the values of all layers are as wide as the widest (llama_kv_cache, TAG_V_CACHE_VARIABLE);
        # `auto` may turn it off.
        widest = max((cell.n_values for cell in shape.cells), default=0)
        n_bytes = 0
        for cell in shape.cells:
            n_values = cell.n_values if spec.flash_attn == "on" else widest
            row = _bytes(cell.n_keys, spec.cache_type_k) + _bytes(n_values, spec.cache_type_v)
            n_bytes += row * (self._n_slid_cells() if cell.slides else self._n_cells)
        return n_bytes * self._n_streams + shape.state_bytes * spec.n_parallel

    def compute_bytes(self) -> int:
        shape = self._shape
        # Encoders see the rows of one batch; llama_kv_cache_iswa has a mask for either kind of layer.
        n_seen = self._n_cells if shape.cells else self._n_rows
        n_masked = n_seen + (self._n_slid_cells() if any(cell.slides for cell in shape.cells) else 0)
        row = HALF_BYTES * n_masked if self._flash else FLOAT_BYTES * (n_masked + n_seen * shape.n_heads)
        row += FLOAT_BYTES * (LIVE_EMBD * shape.n_embd + LIVE_FF * shape.n_ff)
        logits = FLOAT_BYTES * 2 * self._n_outputs() * shape.n_vocab  # the graph's, and the copy that callers read
        return self._n_rows * row + logits + TOKEN_BYTES * shape.n_vocab

    def _n_outputs(self) -> int:
        """Rows of logits."""
        if not self._embeds:
            return max(self._spec.n_parallel, min(SCORED_ROWS, self._n_batch))
        return self._n_rows if self._shape.cells or self._shape.state_bytes else 0

    def _n_slid_cells(self) -> int:
        """llama_kv_cache_iswa: a sliding layer keeps its window, of each sequence that shares the cache, and one ubatch."""
        n_sequences = self._n_rows if self._embeds else 1
        return min(self._n_cells, padded(self._shape.n_window * n_sequences + self._n_rows))


def _bytes(n: int, cache_type: str) -> int:
    block_bytes, block = CACHE_TYPES[cache_type]
    return -(-n // block) * block_bytes
