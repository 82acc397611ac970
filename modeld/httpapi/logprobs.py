"""How do logprobs look in JSON? In the two shapes of the OpenAI API, chat's and the older one of completions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from modeld.types import TokenLogprob

Json = dict[str, object]

# What OpenAI gives for a token that is as good as impossible: JSON has no infinity.
LEAST = -9999.0


def chat_logprobs(logprobs: Sequence[TokenLogprob]) -> Json:
    return {"content": [{**_token(item.piece, item.logprob), "top_logprobs": _top(item)} for item in logprobs], "refusal": None}


def _top(item: TokenLogprob) -> list[Json]:
    return [_token(piece, logprob) for piece, logprob in item.top]


def _token(piece: bytes, logprob: float | None) -> Json:
    """`bytes` are exact where a piece is no whole character."""
    return {"token": piece.decode("utf-8", "replace"), "logprob": _finite(logprob), "bytes": list(piece)}


def completion_logprobs(logprobs: Sequence[TokenLogprob]) -> Json:
    """`top_logprobs` is null for a token without any: the first of an echoed prompt, and all when none were asked for.

    Of pieces that look alike once they are text, the likeliest is shown.
    """
    return {
        "tokens": [item.piece.decode("utf-8", "replace") for item in logprobs],
        "token_logprobs": [_finite(item.logprob) for item in logprobs],
        "top_logprobs": [_top_by_text(item) for item in logprobs],
        "text_offset": [item.offset for item in logprobs],
    }


def _top_by_text(item: TokenLogprob) -> Json | None:
    if not item.top:
        return None
    found: Json = {}
    for piece, logprob in item.top:
        found.setdefault(piece.decode("utf-8", "replace"), _finite(logprob))
    if item.logprob is not None:
        found.setdefault(item.piece.decode("utf-8", "replace"), _finite(item.logprob))
    return found


def _finite(logprob: float | None) -> float | None:
    if logprob is None or math.isfinite(logprob):
        return logprob
    return LEAST
