"""When does a context give embeddings, and what must it be like for that? A model gives embeddings or generates, never both.

What libllama does, and what would end the process (llama-context.cpp, llama-kv-cache.cpp):
- With `embeddings` every row is an output, so n_outputs_max must be n_batch (it asserts), and a decoder computes the logits
  of every row and keeps them: n_ubatch x vocabulary, twice. That is why a generating context does not give embeddings too.
- Separate KV streams split inputs of different lengths into several ubatches, and a vector is that of the last one: a mean
  would lack its beginning. A unified cache takes a batch of at most n_ubatch rows as it is.
- Attention that looks ahead asserts that a batch fits in n_ubatch, and a mean has to be made in one: an input is computed
  whole. Only of causal attention with the pooling `last` may an input go over several decodes.
- A position beyond the table of learned ones (BERT) asserts.
- Flash attention on the CPU takes other ways for 64 rows and more, in half precision: a text beside others differed from the
  same text alone by 4e-3 in a number of its unit vector, without it by 1e-7. So `auto` is off here where the cache allows it.
"""

from __future__ import annotations

from typing import Any

from modeld.errors import LoadFailed
from modeld.llm import libllama as C
from modeld.llm.libllama import Library
from modeld.llm.model import Model
from modeld.types import ModelSpec

_POOLINGS = {
    "none": C.LLAMA_POOLING_TYPE_NONE,
    "mean": C.LLAMA_POOLING_TYPE_MEAN,
    "cls": C.LLAMA_POOLING_TYPE_CLS,
    "last": C.LLAMA_POOLING_TYPE_LAST,
}
_NAMES = {value: name for name, value in _POOLINGS.items()}


def wanted(spec: ModelSpec, model: Model) -> bool:
    """Whether the model is loaded for embeddings: as configured, else as the configured pooling or the file suggest."""
    if spec.embeddings == "auto":
        return spec.pooling is not None or model.is_for_embeddings
    return spec.embeddings == "on"


def shape(params: C.llama_context_params, spec: ModelSpec, model: Model, n_seq_limit: int) -> None:
    """Make the parameters of a context those of one that gives embeddings."""
    params.embeddings = True
    if spec.pooling is not None:
        params.pooling_type = _POOLINGS[spec.pooling]
    params.kv_unified = True
    if spec.flash_attn == "auto" and spec.cache_type_v in ("f32", "f16", "bf16"):  # quantized values need it
        params.flash_attn_type = C.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.n_batch = spec.n_ubatch
    params.n_outputs_max = 0  # n_batch
    # An input is a sequence, and costs nothing besides its tokens, except where each has a state of its own (recurrent).
    # More than n_batch of them assert.
    n_inputs = spec.n_parallel if model.is_recurrent else n_seq_limit
    params.n_seq_max = min(n_inputs, spec.n_ubatch, spec.n_ctx or model.n_ctx_train)


def pooling_of(lib: Library, context: Any, model: Model) -> str:
    """How the context makes one vector of an input. Raises LoadFailed where it makes a score."""
    pooling = int(lib.llama_pooling_type(context))
    if pooling not in _NAMES:
        raise LoadFailed(
            f"{model.path} ranks pairs of texts (its pooling type is {pooling}), for which modeld has no route; "
            f"`pooling: mean`, cls or last gives embeddings of it, `embeddings: off` generates"
        )
    return _NAMES[pooling]


def bounds(lib: Library, context: Any, model: Model, pooling: str, n_batch: int, n_cells: int | None) -> tuple[int, int]:
    """Rows that one decode may have, and tokens that one input may. `n_cells`: of the KV cache; None: there is none (BERT)."""
    if n_cells is not None:
        n_batch = min(n_batch, n_cells)
        if pooling == "last" and lib.llama_get_causal_attn(context):
            return n_batch, min(n_cells, model.n_ctx_train)
    return n_batch, min(n_batch, model.n_ctx_train)
