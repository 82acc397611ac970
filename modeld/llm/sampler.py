"""How does a request's sampling become a chain in C? SamplerChain: llama-server's samplers in llama-server's order."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from modeld.llm import libllama as C
from modeld.llm.adapter import Constraint
from modeld.llm.candidates import Candidates
from modeld.llm.grammar import ConstrainedSampler
from modeld.llm.handles import Handle
from modeld.llm.libllama import Library
from modeld.llm.vocab import Vocab
from modeld.types import SamplingParams

# Logits divided by less (by both, at worst) may overflow; then libllama's softmax has inf - inf in it and takes the worst
# candidate. What is smaller means the same: greedy, and all that was seen before all that was not.
_MIN_TEMPERATURE = 1e-20
_MIN_REPEAT_PENALTY = 1e-9
# The typical sampler takes the logarithm of each probability; a 0 among them (a bias of -inf, ignore_eos) makes all of its
# scores NaN, and it keeps whatever comes first. So candidates below this share of the best one's are cut before it.
_TYPICAL_MIN_P = 1e-30


class SamplerChain(Handle):
    """logit_bias, penalties, then either greedy or top_k, typical_p, top_p, min_p, temperature, dist.

    Engine thread only. Samplers that would change nothing are left out. Its last element always selects, since a chain
    that selects nothing aborts the process (facts/llama.md).
    """

    kind = "sampler chain"

    def __init__(
        self,
        lib: Library,
        vocab: Vocab,
        params: SamplingParams,
        *,
        seed: int,
        n_ctx_slot: int,
        history: Sequence[int],
        constraint: Constraint | None = None,
        candidates: Callable[[], Candidates] | None = None,
    ) -> None:
        """`history`: the prompt's tokens; the penalties look back on the last repeat_last_n of them, as llama-server's do.

        `candidates` is needed, and asked, only when there is a constraint.
        """
        super().__init__(lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params()), lib.llama_sampler_free)
        self._lib = lib
        self._constrained: ConstrainedSampler | None = None
        add = lib.llama_sampler_chain_add

        biases = list(params.logit_bias)
        if params.ignore_eos:
            biases += [(token, -math.inf) for token in vocab.eog_tokens()]
        if biases:
            # Packed, which takes a seventh of the time of a structure for each: a client may give 90,000, for each answer.
            packed = struct.pack("if" * len(biases), *chain.from_iterable(biases))
            array = (C.llama_logit_bias * len(biases)).from_buffer_copy(packed)  # copied by libllama
            add(self, lib.llama_sampler_init_logit_bias(vocab.n_tokens, len(biases), array))

        last_n = n_ctx_slot if params.repeat_last_n < 0 else min(params.repeat_last_n, n_ctx_slot)
        penalizes = last_n > 0 and (params.repeat_penalty, params.frequency_penalty, params.presence_penalty) != (1.0, 0.0, 0.0)
        if penalizes:
            repeat = max(params.repeat_penalty, _MIN_REPEAT_PENALTY)
            frequency, presence = params.frequency_penalty, params.presence_penalty
            add(self, lib.llama_sampler_init_penalties(vocab.n_tokens, last_n, repeat, frequency, presence))

        if params.temperature < _MIN_TEMPERATURE:
            add(self, lib.llama_sampler_init_greedy())
        else:
            if params.top_k > 0:
                add(self, lib.llama_sampler_init_top_k(params.top_k))
            if params.typical_p < 1:
                add(self, lib.llama_sampler_init_min_p(_TYPICAL_MIN_P, 1))
                add(self, lib.llama_sampler_init_typical(params.typical_p, 1))
            if params.top_p < 1:
                add(self, lib.llama_sampler_init_top_p(params.top_p, 1))
            if params.min_p > 0:
                add(self, lib.llama_sampler_init_min_p(params.min_p, 1))
            if params.temperature != 1:
                add(self, lib.llama_sampler_init_temp(params.temperature))
            add(self, lib.llama_sampler_init_dist(seed))

        if penalizes:
            for token in history[-last_n:]:
                lib.llama_sampler_accept(self, token)

        if constraint is not None:
            assert candidates is not None
            forbidden = frozenset(token for token, bias in biases if bias == -math.inf)
            self._constrained = ConstrainedSampler(lib, vocab, constraint, candidates(), forbidden=forbidden, accepts=penalizes)

    def sample(self, context: Any, row: int) -> int | None:
        """The next token, accepted; None: a constraint leaves nothing to choose from, and the answer is over."""
        if self._constrained is not None:
            return self._constrained.sample(self, context, row)
        # llama_sampler_sample accepts the token into the chain by itself; a second accept would count it twice.
        return int(self._lib.llama_sampler_sample(self, context, row))
