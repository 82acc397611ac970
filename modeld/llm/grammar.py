"""Which token does a constraint let through? ConstrainedSampler: a chain under a grammar.

As llama-server: the chain chooses without the grammar first, its token alone is held against the grammar, and only when
that is refused the grammar is put before the chain, over all tokens of the vocabulary: that costs milliseconds, the look at
one token microseconds. libllama's own grammar sampler is not used: it follows all readings of a grammar apart from each
other, which a few characters can make 2**60, in calls that nothing ends.
"""

from __future__ import annotations

import array
from typing import Any

from modeld.llm import libllama as C
from modeld.llm.adapter import Constraint
from modeld.llm.candidates import Candidates
from modeld.llm.handles import Handle
from modeld.llm.libllama import Library
from modeld.llm.vocab import Vocab


class ConstrainedSampler:
    """Samples a chain, which its owner closes, under a constraint. Engine thread only.

    A chain without candidates, or with none that is not -inf, may end the process: it is never asked then.
    """

    def __init__(
        self,
        lib: Library,
        vocab: Vocab,
        constraint: Constraint,
        candidates: Candidates,
        *,
        forbidden: frozenset[int],
        accepts: bool,
    ) -> None:
        """`forbidden`: tokens that the chain will set to -inf. `accepts`: the chain has a sampler that remembers tokens."""
        self._lib = lib
        self._vocab = vocab
        self._constraint = constraint
        self._candidates = candidates
        self._forbidden = forbidden
        self._accepts = accepts

    def sample(self, chain: Handle, context: Any, row: int) -> int | None:
        """A token that the constraint lets through, accepted by both; None: there is none, or the constraint has a problem.

        After None and after EOG no call may follow.
        """
        lib = self._lib
        if self._accepts:
            token = self._chosen(chain, self._candidates.fill(context, row))
        else:
            # Faster, but it accepts into the chain what it chose, and the constraint may refuse that.
            token = int(lib.llama_sampler_sample(chain, context, row))
        if not self._allows(token):
            candidates = self._allowed(context, row)
            if candidates is None:
                return None
            token = self._chosen(chain, candidates)
            if token in self._forbidden or not self._allows(token):  # a draw of exactly 0 takes the first, whatever it is
                return None
        if self._accepts:
            lib.llama_sampler_accept(chain, token)
        piece = self._vocab.piece_or_eog(token)
        if piece is not None:
            self._constraint.accept(piece)
        return token

    def _allows(self, token: int) -> bool:
        piece = self._vocab.piece_or_eog(token)
        return self._constraint.may_end if piece is None else self._constraint.allows(piece)

    def _allowed(self, context: Any, row: int) -> C.llama_token_data_array | None:
        """All that the constraint allows and the chain does not forbid; None: nothing."""
        pieces = self._vocab.sorted_pieces()
        selection = self._constraint.selection(pieces)
        if self._constraint.problem is not None:
            return None
        eog = self._vocab.eog_tokens()
        may_end = self._constraint.may_end
        if selection.are_allowed:
            tokens = selection.tokens
            if may_end or self._forbidden:
                tokens = array.array("i", sorted({*tokens, *(eog if may_end else ())} - self._forbidden))
            return self._candidates.fill_only(context, row, tokens) if tokens else None
        refused = {*selection.tokens, *pieces.others, *self._forbidden, *(() if may_end else eog)}
        return self._candidates.fill(context, row, without=refused) if len(refused) < self._vocab.n_tokens else None

    def _chosen(self, chain: Handle, candidates: C.llama_token_data_array) -> int:
        self._lib.llama_sampler_apply(chain, candidates)
        return int(candidates.data[candidates.selected].id)
