"""What becomes of one choice's tokens? Sequence: what is in the KV cache, the limits, the finish reason, exact usage."""

from __future__ import annotations

import codecs
import dataclasses
from array import array
from collections.abc import Iterable

from modeld.engine.stream import TokenStream
from modeld.engine.text import TextAssembler
from modeld.llm.adapter import Constraint, Sampler
from modeld.types import Chunk, Failed, Finished, SamplingParams, TokenLogprob, Usage


class Sequence:
    """One choice between its admission and its end. Engine thread only, once it was submitted.

    `tokens` are the prompt's and the generated ones; the first `n_cached` of them are in the slot's KV cache, the others
    are to be decoded. With one to go it is in the generation phase, with more in the prompt phase (again, if its cells
    were lost).
    """

    def __init__(
        self,
        tokens: Iterable[int],
        *,
        limit: int,
        sampling: SamplingParams,
        stop: tuple[str, ...],
        seed: int,
        cache_prompt: bool = True,
        echo: str | None = None,
        n_top_logprobs: int | None = None,
        siblings: object = None,
        constraint: Constraint | None = None,
        shows_markers: bool = False,
        client: str = "",
    ) -> None:
        """`tokens`: the prompt, at least one. `limit`: tokens to generate at most, 0 with echo alone. `echo`: text that comes
        first. `siblings`: the same object for all answers to one prompt. `constraint`: its own, at its start. `shows_markers`:
        the control tokens that mark calls of tools come as text. `client`: whose turn it takes (types.Share)."""
        # 4 bytes a token, while it waits and while it runs: a list has 8 and mostly an int object of 32.
        self.tokens = array("i", tokens)
        self.n_prompt = len(self.tokens)
        self.n_cached = 0
        self.n_reused = 0  # prompt tokens that another sequence had computed
        self.cache_prompt = cache_prompt
        self.siblings = siblings
        self.client = client
        self.sampling = sampling
        self.seed = seed
        self.constraint = constraint
        self.n_top_logprobs = n_top_logprobs
        self.shows_markers = shows_markers
        self.scores_prompt = echo is not None and n_top_logprobs is not None
        self.stream: TokenStream  # set by the engine before anybody else sees the sequence, like the next one
        self.index = 0  # of the choice in its stream
        self.sampler: Sampler | None = None
        self.submitted_at = 0.0  # on the monotonic clock
        self.limit = limit
        self._text = TextAssembler(stop)
        self._echo = echo or ""
        self._opened = False  # the echo was shown
        self._n_shown = 0  # characters of the generated text
        # Logprobs whose tokens are not shown yet, with the character of the generated text at which each token ends.
        self._unshown: list[tuple[int, TokenLogprob]] = []
        self._prompt_logprobs: list[TokenLogprob] = []

    @property
    def n_generated(self) -> int:
        return len(self.tokens) - self.n_prompt

    @property
    def in_prompt_phase(self) -> bool:
        return self.n_cached < self.n_prompt or len(self.tokens) - self.n_cached > 1

    def is_sibling_of(self, other: Sequence) -> bool:
        """Whether both answer the same prompt."""
        return self.siblings is not None and self.siblings is other.siblings

    @property
    def takes_over(self) -> bool:
        """Whether cells of others will do: for logprobs of the prompt its logits are wanted, too."""
        return self.cache_prompt and not self.scores_prompt

    @property
    def n_scored(self) -> int:
        """Tokens of the prompt whose logprobs are known."""
        return len(self._prompt_logprobs)

    @property
    def is_scoring(self) -> bool:
        """Whether the logits of each row are wanted: a token's logprob is in those of the token before it."""
        return self.scores_prompt and self.n_scored < self.n_prompt

    @property
    def usage(self) -> Usage:
        return Usage(self.n_prompt, self.n_generated, self.n_reused)

    @property
    def usage_so_far(self) -> Usage:
        """Of one that is cut: the prompt counts as far as it was read, the tokens that were not shown, too."""
        n_prompt = self.n_prompt if self.n_generated else min(self.n_cached, self.n_prompt)
        return Usage(n_prompt, self.n_generated, min(self.n_reused, n_prompt))

    def score_prompt(self, logprob: TokenLogprob) -> None:
        """The next token of the prompt; the first one has None for its logprob."""
        self._prompt_logprobs.append(logprob)

    def finish_prompt(self) -> Chunk:
        """The end of a sequence that was asked for no token of its own."""
        return self._chunk("", Finished("length", self.usage))

    def accept(self, token: int, piece: bytes | None, logprob: TokenLogprob | None = None) -> Chunk:
        """Take a sampled token with its bytes (None: EOG). The text to show now, and the end if it has come.

        An EOG token counts as generated, as in llama-server's usage.
        """
        self.tokens.append(token)
        if self.constraint is not None and self.constraint.problem is not None:
            return self._chunk(self._text.flush(), Failed(self.constraint.problem, self.usage))
        if piece is None:
            return self._chunk(self._text.flush(), Finished("stop", self.usage))
        n_before = self._n_shown + self._text.n_held
        text, stopped = self._text.feed(piece)
        if logprob is not None:
            n_after = self._n_shown + len(text) + self._text.n_held
            self._unshown.append((n_after, dataclasses.replace(logprob, offset=len(self._echo) + n_before)))
        if stopped:
            return self._chunk(text, Finished("stop", self.usage), cut=True)
        if self.n_generated >= self.limit:
            return self._chunk(text + self._text.flush(), Finished("length", self.usage))
        return self._chunk(text, None)

    def _chunk(self, text: str, end: Finished | Failed | None, *, cut: bool = False) -> Chunk:
        """`cut`: a stop string took away what would follow the text."""
        self._n_shown += len(text)
        logprobs: list[TokenLogprob] = []
        if not self._opened:
            self._opened = True
            text = self._echo + text
            logprobs += self._placed_in_echo()
        while self._unshown and (self._unshown[0][0] <= self._n_shown or end is not None):
            _, logprob = self._unshown.pop(0)
            if not cut or logprob.offset < len(self._echo) + self._n_shown:
                logprobs.append(logprob)
        return Chunk(text, end, self.index, tuple(logprobs))

    def _placed_in_echo(self) -> list[TokenLogprob]:
        """The prompt's logprobs with their offsets. What the tokens have beyond the echo is at its beginning: a BOS, a space."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        starts = [0]
        for logprob in self._prompt_logprobs:
            starts.append(starts[-1] + len(decoder.decode(logprob.piece)))
        n_beyond = max(0, starts[-1] + len(decoder.decode(b"", final=True)) - len(self._echo))
        return [
            dataclasses.replace(logprob, offset=max(0, start - n_beyond))
            for logprob, start in zip(self._prompt_logprobs, starts, strict=False)
        ]
