"""Which tokens has a text, and may it have so many? Tokenizing with bounds, for prompts and for inputs of embeddings."""

from __future__ import annotations

from array import array

from modeld.errors import ContextLengthExceeded, InvalidRequest
from modeld.llm.adapter import Runtime
from modeld.types import EmbedRequest

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


def check_embeddable(runtime: Runtime, request: EmbedRequest) -> None:
    """Raises InvalidRequest where the model makes no vector of an input, or not so long a one."""
    about = runtime.describe()
    if about.pooling == "none":
        raise InvalidRequest(
            f"model '{about.id}' gives a vector for each token (pooling none), not for an input; set `pooling: mean`, cls or "
            f"last in its entry",
            param="model",
        )
    if request.dimensions is not None and request.dimensions > about.n_embd:
        raise InvalidRequest(f"dimensions is {request.dimensions}; model '{about.id}' has {about.n_embd}", param="dimensions")


def input_tokens(runtime: Runtime, index: int, value: str | tuple[int, ...]) -> array[int]:
    """The tokens of the `index`-th input, which fit; four bytes each, for as long as they wait. On a tokenize thread.

    Raises ContextLengthExceeded; InvalidRequest for an empty one and for an id outside the vocabulary.
    """
    what, about = f"input[{index}]", runtime.describe()
    if isinstance(value, str):
        tokens = tokenized(runtime, value, what=what, param="input")
    else:
        if value and max(value) >= about.n_vocab:
            raise InvalidRequest(f"{what}: token {max(value)} is outside the vocabulary (0..{about.n_vocab - 1})", param="input")
        tokens = list(value)
    if not tokens:
        raise InvalidRequest(f"{what} has no tokens, and this model adds none to it", param="input")
    if len(tokens) > runtime.n_ctx_slot:
        raise ContextLengthExceeded(
            f"{what} has {len(tokens)} tokens; an input of model '{about.id}' may have {runtime.n_ctx_slot} "
            f"(n_ubatch, n_ctx and the context it was trained on bound it)",
            param="input",
        )
    return array("i", tokens)
