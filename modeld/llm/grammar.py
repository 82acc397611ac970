"""Which token does a grammar let through? GrammarSampler and Candidates: sampling under GBNF without what aborts in C.

As llama-server: the chain chooses without the grammar first, its token alone is held against the grammar, and only when
that is refused the grammar is put before the chain, with all tokens of the vocabulary as candidates: that costs
milliseconds, the look at one token microseconds.
"""

from __future__ import annotations

import ctypes
import logging
import math
import time
from typing import Any

from modeld.errors import InvalidRequest
from modeld.llm import libllama as C
from modeld.llm.candidates import Candidates
from modeld.llm.handles import Handle
from modeld.llm.libllama import Library
from modeld.llm.vocab import Vocab

log = logging.getLogger("modeld.engine")

# An ambiguous grammar (a ::= "x" a "y" | "x" a "z") doubles its state with each character, and every step with it.
MAX_STEP_S = 2.0


class GrammarSampler(Handle):
    """One request's grammar and how far its answer has come in it. Never in a chain: a chain would hide what it refuses.

    Three things end the process: accepting a token that the grammar refuses, accepting EOG before its end, and a chain
    that has no candidate. So nothing is accepted that allows() has not let through.
    """

    kind = "grammar sampler"

    def __init__(self, lib: Library, vocab: Vocab, text: str) -> None:
        """Needs a big stack. Raises InvalidRequest when libllama cannot read it (check_gbnf came before: rarely).

        Source: llama-grammar.cpp, llama_grammar_init_impl; NULL is its only answer, the reason goes to stderr.
        """
        raw = lib.llama_sampler_init_grammar(vocab, text.encode(), b"root")
        if not raw:
            raise InvalidRequest(
                "the grammar cannot be used: libllama refuses it; a <token> that is not one token of this model, or a "
                "repetition of what may be empty, does that",
                param="grammar",
            )
        super().__init__(raw, lib.llama_sampler_free)
        self._lib = lib
        self._one = C.llama_token_data()
        self._one_array = C.llama_token_data_array(ctypes.pointer(self._one), 1, -1, False)

    def allows(self, token: int) -> bool:
        self._one.id, self._one.logit = token, 0.0
        self._lib.llama_sampler_apply(self, self._one_array)
        return bool(self._one.logit != -math.inf)

    def restrict(self, candidates: C.llama_token_data_array) -> None:
        """Set the logits of all that is refused to -inf."""
        self._lib.llama_sampler_apply(self, candidates)

    def accept(self, token: int) -> None:
        self._lib.llama_sampler_accept(self, token)


class GrammarGuard:
    """Samples a chain under a grammar; the chain's owner closes it."""

    def __init__(
        self, lib: Library, vocab: Vocab, text: str, candidates: Candidates, *, forbidden: frozenset[int], accepts: bool
    ) -> None:
        """`forbidden`: tokens that the chain will set to -inf. `accepts`: the chain has a sampler that remembers tokens."""
        self._lib = lib
        self._grammar = GrammarSampler(lib, vocab, text)
        try:
            self._greedy = Handle(lib.llama_sampler_init_greedy(), lib.llama_sampler_free)
        except BaseException:
            self._grammar.close()
            raise
        self._candidates = candidates
        self._forbidden = forbidden
        self._accepts = accepts

    def sample(self, chain: Handle, context: Any, row: int) -> int | None:
        """A token that the grammar lets through, accepted by both; None: there is none, or it takes too long.

        After None and after EOG no call may follow.
        """
        lib, grammar = self._lib, self._grammar
        start = time.monotonic()
        if self._accepts:
            token = self._choose(chain, self._candidates.fill(context, row))
        else:
            # Faster, but it accepts into the chain what it chose, and the grammar may refuse that.
            token = int(lib.llama_sampler_sample(chain, context, row))
        if not grammar.allows(token):
            candidates = self._candidates.fill(context, row)
            for forbidden in self._forbidden:
                candidates.data[forbidden].logit = -math.inf
            grammar.restrict(candidates)
            lib.llama_sampler_apply(self._greedy, candidates)
            if candidates.data[candidates.selected].logit == -math.inf:
                return None
            candidates.selected = -1
            token = self._choose(chain, candidates)
            if token in self._forbidden or not grammar.allows(token):  # a draw of exactly 0 takes the first, whatever it is
                return None
        if self._accepts:
            lib.llama_sampler_accept(chain, token)
        grammar.accept(token)
        if time.monotonic() - start > MAX_STEP_S:
            log.warning("a grammar takes more than %g s for one token; its request is ended", MAX_STEP_S)
            return None
        return token

    def _choose(self, chain: Handle, candidates: C.llama_token_data_array) -> int:
        self._lib.llama_sampler_apply(chain, candidates)
        return int(candidates.data[candidates.selected].id)

    def close(self) -> None:
        self._greedy.close()
        self._grammar.close()
