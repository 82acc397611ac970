"""What did the model think of a token? Likelihoods: logarithms of the softmax over all logits, and the likeliest tokens."""

from __future__ import annotations

import math
from typing import Any

from modeld.llm.candidates import Candidates
from modeld.llm.handles import Handle
from modeld.llm.libllama import Library


class Likelihoods:
    """The samplers that compute them in C: softmax by `dist`, the likeliest by `top_k`. Engine thread only."""

    def __init__(self, lib: Library, candidates: Candidates) -> None:
        self._lib = lib
        self._candidates = candidates
        # It sums as doubles (llama-sampler.cpp, llama_sampler_dist_apply); what it draws is of no interest.
        self._softmax = Handle(lib.llama_sampler_init_dist(0), lib.llama_sampler_free)
        self._top: dict[int, Handle] = {}  # by how many; at most as many as a request may ask for

    def of(self, context: Any, row: int, token: int, n_top: int) -> tuple[float, list[tuple[int, float]]]:
        """The token's logarithm, and the `n_top` likeliest tokens with theirs, likeliest first. The row has logits."""
        every = self._candidates.fill(context, row)
        asked = every.data[token].logit
        self._lib.llama_sampler_apply(self._softmax, every)
        self._lib.llama_sampler_apply(self._top_k(max(1, n_top)), every)
        best = every.data[0]  # whose probability no float is too small for; the others' logits tell how far they are from it
        log_sum = best.logit - math.log(best.p)
        return asked - log_sum, [(every.data[i].id, every.data[i].logit - log_sum) for i in range(min(n_top, every.size))]

    def _top_k(self, n: int) -> Handle:
        if n not in self._top:
            self._top[n] = Handle(self._lib.llama_sampler_init_top_k(n), self._lib.llama_sampler_free)
        return self._top[n]

    def close(self) -> None:
        for sampler in (self._softmax, *self._top.values()):
            sampler.close()
        self._top.clear()
