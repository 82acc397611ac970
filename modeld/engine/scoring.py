"""What did the model think of these tokens? Looks up logprobs after a decode, for who asked. Engine thread only."""

from __future__ import annotations

from modeld.engine.scheduler import Planned
from modeld.engine.sequence import Sequence
from modeld.llm.adapter import NO_TOKEN, Runtime, Scored
from modeld.types import TokenLogprob


def score_sampled(runtime: Runtime, ready: list[tuple[Sequence, int]], tokens: list[int]) -> dict[Sequence, TokenLogprob]:
    """The logprobs of `tokens`, each sampled for a sequence from the span of its index."""
    asking = [
        (sequence, Scored(index, -1, token, sequence.n_top_logprobs))
        for (sequence, index), token in zip(ready, tokens, strict=True)
        if sequence.n_top_logprobs is not None and token != NO_TOKEN
    ]
    if not asking:
        return {}
    found = runtime.logprobs([scored for _, scored in asking])
    return {sequence: logprob for (sequence, _), logprob in zip(asking, found, strict=True)}


def score_prompts(runtime: Runtime, planned: list[Planned]) -> None:
    """Tell each prompt that wants it about its tokens: each is looked up in the logits of the row before it."""
    for index, item in enumerate(planned):
        sequence, span = item.sequence, item.span
        if not span.every_output:
            continue
        if not sequence.n_scored:
            sequence.score_prompt(TokenLogprob(runtime.piece(sequence.tokens[0]), None))
        # After an abort rows may come a second time, whose tokens were looked up already.
        first, end = max(span.pos + 1, sequence.n_scored), min(span.pos + 1 + len(span.tokens), sequence.n_prompt)
        n_top = sequence.n_top_logprobs or 0
        wanted = [Scored(index, pos - span.pos - 1, sequence.tokens[pos], n_top) for pos in range(first, end)]
        for logprob in runtime.logprobs(wanted):
            sequence.score_prompt(logprob)
