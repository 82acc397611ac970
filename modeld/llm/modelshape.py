"""How wide is a model? ModelShape out of a sound head: what libllama keeps for a token in each layer, and for a sequence.

The sources are llama_hparams (n_embd_k_gqa, n_embd_v_gqa, n_embd_r, n_embd_s) and llama_model::create_memory. Where a file's
own numbers leave a doubt the larger one is taken; where an architecture keeps something else, there is no shape.
"""

from __future__ import annotations

from collections.abc import Mapping

from modeld.llm.architectures import (
    ALWAYS_SLIDING,
    DEFAULT_WINDOW,
    ENCODERS,
    HYBRID_BY_HEADS,
    HYBRID_BY_INTERVAL,
    HYBRID_WHOLLY,
    MAY_SLIDE,
    OTHER_MEMORY,
    RECURRENT,
)
from modeld.llm.ggufvalues import Array, BadGguf, Head, Tensor, uint32
from modeld.llm.soundness import n_layers_of, per_layer, sliding_of
from modeld.llm.vocabsound import n_tokens_of
from modeld.types import LayerCell, ModelShape

STATE_BYTES = 4  # recurrent states are float32
DEFAULT_INTERVAL = 4  # of full attention (models/qwen3next.cpp)


def shape_of(head: Head, tensors: Mapping[str, Tensor]) -> ModelShape | None:
    """The measures of a model with which nothing is known to be wrong. Never raises."""
    try:
        return _Shaper(head, tensors).shape()
    except BadGguf:
        return None


def is_for_embeddings(head: Head) -> bool:
    """As llm/model.py sees it when the model is loaded."""
    arch = head.architecture
    return head.number(f"{arch}.pooling_type") not in (None, 0) or head.values.get(f"{arch}.attention.causal") is False


class _Shaper:
    def __init__(self, head: Head, tensors: Mapping[str, Tensor]) -> None:
        self._head = head
        self._tensors = tensors
        self._arch = head.architecture or ""
        self._n_layers = n_layers_of(head) or 0

    def shape(self) -> ModelShape | None:
        n_vocab = n_tokens_of(self._head)
        if self._arch in OTHER_MEMORY or not self._n_layers or n_vocab is None:
            return None
        window, sliding = self._sliding()
        recurrent = self._recurrent()
        state = self._state_numbers()
        if any(recurrent) and not state:
            return None
        table = self._tensors.get("token_embd.weight")
        return ModelShape(
            weights_bytes=sum(tensor.n_bytes for tensor in self._tensors.values()),
            tied_bytes=table.n_bytes if table is not None and "output.weight" not in self._tensors else 0,
            n_embd=self._number("embedding_length"),
            n_ff=self._n_ff(),
            n_vocab=n_vocab,
            n_heads=max(self._layers("attention.head_count", 0)),
            n_ctx_train=self._head.n_ctx_train or 0,
            cells=self._cells(sliding, recurrent),
            n_window=window,
            state_bytes=sum(recurrent) * state * STATE_BYTES,
            for_embeddings=is_for_embeddings(self._head),
        )

    def _n_ff(self) -> int:
        n_expert_ff = max(self._layers("expert_feed_forward_length", 0)) * max(self._layers("expert_used_count", 0))
        n_inner, n_state, n_groups = (self._number(f"ssm.{what}") for what in ("inner_size", "state_size", "group_count"))
        n_recurrent = 2 * (n_inner + n_groups * n_state) + self._number("ssm.time_step_rank")  # the in-projection of mamba2
        return max(*self._layers("feed_forward_length", 0), n_expert_ff, n_recurrent)

    def _cells(self, sliding: tuple[bool, ...], recurrent: tuple[bool, ...]) -> tuple[LayerCell, ...]:
        if self._arch in ENCODERS:
            return ()
        heads = self._layers("attention.head_count", 0)
        kv_heads = per_layer(self._head, f"{self._arch}.attention.head_count_kv", self._n_layers) or heads
        length = self._number("embedding_length") // heads[0] if heads[0] else 0
        n_keys, n_values = (self._number(f"attention.{what}_length", length) for what in ("key", "value"))
        n_slid_keys, n_slid_values = (
            self._number("attention.key_length_swa", n_keys),
            self._number("attention.value_length_swa", n_values),
        )
        if not any(sliding):  # no pattern is known: the larger
            n_keys, n_values = max(n_keys, n_slid_keys), max(n_values, n_slid_values)
        cells = []
        for layer in range(self._n_layers - self._n_nextn()):
            if recurrent[layer] and self._arch not in HYBRID_WHOLLY:
                continue
            slides = sliding[layer]
            n = kv_heads[layer]
            cells.append(LayerCell((n_slid_keys if slides else n_keys) * n, (n_slid_values if slides else n_values) * n, slides))
        return tuple(cells)

    def _n_nextn(self) -> int:
        """Layers that only guess ahead, for which this context keeps nothing."""
        n = self._number("nextn_predict_layers")
        return n if n < self._n_layers and self._arch != "graniteswitch" else 0

    def _sliding(self) -> tuple[int, tuple[bool, ...]]:
        """The window, and which layers have one."""
        window = self._number("attention.sliding_window", DEFAULT_WINDOW.get(self._arch, 0))
        default = ALWAYS_SLIDING.get(self._arch) or MAY_SLIDE.get(self._arch)
        none = (False,) * self._n_layers
        if not window:
            return 0, none
        pattern = self._head.values.get(f"{self._arch}.attention.sliding_window_pattern")
        if default is None and not isinstance(pattern, Array):
            return 0, none
        slides = sliding_of(self._head, self._arch, default or (0, False), self._n_layers)
        return window, (slides + none)[: self._n_layers]

    def _recurrent(self) -> tuple[bool, ...]:
        if self._arch in RECURRENT or self._arch in HYBRID_WHOLLY:
            return (True,) * self._n_layers
        if self._arch in HYBRID_BY_HEADS:
            return tuple(n == 0 for n in self._layers("attention.head_count_kv", 1))
        if self._arch in HYBRID_BY_INTERVAL:
            told = per_layer(self._head, f"{self._arch}.attention.recurrent_layers", self._n_layers)
            if told is not None:
                return tuple(bool(n) for n in told)
            interval = self._number("full_attention_interval", DEFAULT_INTERVAL) or 1
            return tuple((layer + 1) % interval != 0 for layer in range(self._n_layers))
        return (False,) * self._n_layers

    def _state_numbers(self) -> int:
        """Numbers that a recurrent layer keeps of a sequence, at most; 0: not known (llama_hparams::n_embd_r, n_embd_s)."""
        n_embd = self._number("embedding_length")
        if wkv := self._number("wkv.head_size"):
            return (self._number("token_shift_count", 2) + wkv) * n_embd
        if n_cached := self._number("shortconv.l_cache"):
            return n_embd * max(n_cached - 1, 0)
        n_conv = max(self._number("ssm.conv_kernel") - 1, 0)
        if n_kda := self._number("kda.head_dim"):
            n_heads = max(self._layers("attention.head_count", 0))
            return n_heads * n_kda * (3 * (n_conv or 3) + n_kda)
        n_inner, n_state, n_groups = (self._number(f"ssm.{what}") for what in ("inner_size", "state_size", "group_count"))
        return n_conv * (n_inner + 2 * n_groups * n_state) + n_state * n_inner

    def _layers(self, name: str, default: int) -> tuple[int, ...]:
        return per_layer(self._head, f"{self._arch}.{name}", self._n_layers) or (default,) * self._n_layers

    def _number(self, name: str, default: int = 0) -> int:
        value = uint32(self._head, f"{self._arch}.{name}")
        return default if value is None else value
