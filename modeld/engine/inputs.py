"""Which tokens has a text, and may it have so many? Tokenizing with bounds."""

from __future__ import annotations

from modeld.errors import ContextLengthExceeded
from modeld.llm.adapter import Runtime

LONG_TEXT_BYTES_PER_TOKEN = 16  # only texts longer than this are worth looking at the whole vocabulary, once a model


def tokenized(runtime: Runtime, text: str, *, what: str, param: str) -> list[int]:
    """The text's tokens, unless it cannot fit whatever they are. On a tokenize thread.

    Some tokenizers need more than linear time: 1 MB took 80 s, during which no switch could end. Raises
    ContextLengthExceeded, which calls the text `what`.
    """
    n_bytes, n_ctx_slot = len(text.encode()), runtime.n_ctx_slot
    if n_bytes > LONG_TEXT_BYTES_PER_TOKEN * n_ctx_slot and n_bytes > runtime.longest_piece() * n_ctx_slot:
        raise ContextLengthExceeded(
            f"{what} has {n_bytes} bytes, which are more than {n_ctx_slot} tokens of model '{runtime.describe().id}' can hold: "
            f"the longest has {runtime.longest_piece()}",
            param=param,
        )
    return runtime.tokenize(text, add_special=True, parse_special=True)
