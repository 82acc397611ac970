"""What becomes of one request's tokens? Sequence: the prompt's progress, the limits, the finish reason, exact usage."""

from __future__ import annotations

from modeld.engine.stream import TokenStream
from modeld.engine.text import TextAssembler
from modeld.llm.adapter import Sampler
from modeld.types import Finished, SamplingParams, Usage


class Sequence:
    """One request between its admission and its end. Engine thread only, once it was submitted."""

    def __init__(self, tokens: list[int], *, limit: int, sampling: SamplingParams, stop: tuple[str, ...], seed: int) -> None:
        """`tokens`: the prompt, at least one. `limit`: tokens to generate at most, >= 1."""
        self.prompt = tokens
        self.sampling = sampling
        self.seed = seed
        self.stream: TokenStream  # set by the engine before anybody else sees the sequence
        self.sampler: Sampler | None = None
        self.n_prompt_done = 0  # prompt tokens in the KV cache
        self.n_generated = 0
        self.last_token = -1
        self._limit = limit
        self._text = TextAssembler(stop)

    @property
    def in_prompt_phase(self) -> bool:
        return self.n_prompt_done < len(self.prompt)

    @property
    def n_past(self) -> int:
        """Positions in the KV cache: the prompt's and the generated tokens', without the last one, which goes in next."""
        return self.n_prompt_done + max(0, self.n_generated - 1)

    @property
    def usage(self) -> Usage:
        return Usage(len(self.prompt), self.n_generated)

    def accept(self, token: int, piece: bytes | None) -> tuple[str, Finished | None]:
        """Take a sampled token with its bytes (None: EOG). The text to show now, and the end if it has come.

        An EOG token counts as generated, as in llama-server's usage.
        """
        self.n_generated += 1
        self.last_token = token
        if piece is None:
            return self._text.flush(), Finished("stop", self.usage)
        text, stopped = self._text.feed(piece)
        if stopped:
            return text, Finished("stop", self.usage)
        if self.n_generated >= self._limit:
            return text + self._text.flush(), Finished("length", self.usage)
        return text, None
