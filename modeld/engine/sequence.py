"""What becomes of one request's tokens? Sequence: what is in the KV cache, the limits, the finish reason, exact usage."""

from __future__ import annotations

from modeld.engine.stream import TokenStream
from modeld.engine.text import TextAssembler
from modeld.llm.adapter import Sampler
from modeld.types import Finished, SamplingParams, Usage


class Sequence:
    """One request between its admission and its end. Engine thread only, once it was submitted.

    `tokens` are the prompt's and the generated ones; the first `n_cached` of them are in the slot's KV cache, the others
    are to be decoded. With one to go it is in the generation phase, with more in the prompt phase (again, if its cells
    were lost).
    """

    def __init__(
        self,
        tokens: list[int],
        *,
        limit: int,
        sampling: SamplingParams,
        stop: tuple[str, ...],
        seed: int,
        cache_prompt: bool = True,
    ) -> None:
        """`tokens`: the prompt, at least one. `limit`: tokens to generate at most, >= 1."""
        self.tokens = tokens
        self.n_prompt = len(tokens)
        self.n_cached = 0
        self.n_reused = 0  # prompt tokens that another sequence had computed
        self.cache_prompt = cache_prompt
        self.sampling = sampling
        self.seed = seed
        self.stream: TokenStream  # set by the engine before anybody else sees the sequence
        self.sampler: Sampler | None = None
        self._limit = limit
        self._text = TextAssembler(stop)

    @property
    def n_generated(self) -> int:
        return len(self.tokens) - self.n_prompt

    @property
    def in_prompt_phase(self) -> bool:
        return self.n_cached < self.n_prompt or len(self.tokens) - self.n_cached > 1

    @property
    def usage(self) -> Usage:
        return Usage(self.n_prompt, self.n_generated, self.n_reused)

    def accept(self, token: int, piece: bytes | None) -> tuple[str, Finished | None]:
        """Take a sampled token with its bytes (None: EOG). The text to show now, and the end if it has come.

        An EOG token counts as generated, as in llama-server's usage.
        """
        self.tokens.append(token)
        if piece is None:
            return self._text.flush(), Finished("stop", self.usage)
        text, stopped = self._text.feed(piece)
        if stopped:
            return text, Finished("stop", self.usage)
        if self.n_generated >= self._limit:
            return text + self._text.flush(), Finished("length", self.usage)
        return text, None
