"""What does the engine need from a model? The Runtime protocol: the real one speaks to libllama, a fake one to tests."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from modeld.errors import ModeldError
from modeld.types import ChatMessage, LoadedModel, SamplingParams, Step, TokenLogprob, Tool

LoadProgress = Callable[[Step, int], bool]
"""Called with a step and whole percents 0..100 while a model loads; answering False cancels the load."""


NO_TOKEN = -1  # LLAMA_TOKEN_NULL


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive rows of one sequence: `tokens` at positions `pos`, `pos + 1`, ... of `slot` (its seq_id).

    A span of the generation phase has one row, a piece of a prompt has many. With `output`, the last row gets logits; with
    `every_output`, each row.
    """

    slot: int
    pos: int
    tokens: Sequence[int]
    output: bool
    every_output: bool = False


@dataclass(frozen=True, slots=True)
class Scored:
    """A token to be looked up in the logits of one row of the last decode."""

    span: int  # index into the decode's spans
    row: int  # within the span
    token: int
    n_top: int  # how many of the likeliest tokens are wanted beside it


NON_ASCII = 1 << 128  # in PieceTree.needs: characters above U+007F
BROKEN = 1 << 129  # bytes that are no whole characters


class PieceTree(Protocol):
    """The pieces of a vocabulary in the order of their bytes, so that those that begin alike stand together. Never changed.

    EOG tokens are not in it.
    """

    texts: list[bytes]
    tokens: array[int]  # of each text
    others: array[int]  # tokens without bytes, which are in no other place here (control tokens)
    shared: array[int]  # bytes that it shares with the one before; 0 for the first, and one more 0 behind the last
    shorter: array[int]  # the next index whose `shared` is less
    ends: array[int]  # the next index that does not begin with this text
    needs: list[int]  # what those before `ends` have beyond this text: a bit for each character of ASCII, NON_ASCII, BROKEN
    heights: array[int]  # how many characters of that the longest has
    longest: int  # bytes of the longest text


@dataclass(frozen=True, slots=True)
class Selection:
    """Which tokens of a PieceTree may come: those in `tokens` (ascending), or all others."""

    tokens: array[int]
    are_allowed: bool


class Constraint(Protocol):
    """How far one answer has come in what it must follow. Engine thread only."""

    problem: ModeldError | None
    """Why it had to be given up; then it allows nothing any more."""

    @property
    def may_end(self) -> bool: ...

    def allows(self, piece: bytes) -> bool:
        """Whether the piece may come next; never for an empty one."""

    def accept(self, piece: bytes) -> None:
        """Go on behind a piece that is allowed."""

    def selection(self, pieces: PieceTree) -> Selection:
        """All that may come next; of use until the next accept."""


class Sampler(Protocol):
    """One request's sampler chain. Engine thread only."""

    def close(self) -> None: ...


class Runtime(Protocol):
    """One loaded model with its context.

    Methods are grouped by the thread that may call them; `describe` and the numbers may be read from any.
    """

    n_slots: int
    n_ctx_slot: int  # positions that one sequence may take
    n_batch: int  # rows of one decode, at most, and at least n_slots
    n_outputs: int  # rows of one decode that may get logits, at least n_slots
    row_block: int  # rows that the matrix kernels may compute together (engine.width); 1: they do not
    can_cut: bool  # truncate and copy work; not for recurrent memories and sliding windows
    pooling: str | None  # none | mean | cls | last: it gives embeddings, and nothing is sampled; None: it generates

    def describe(self) -> LoadedModel: ...

    # -- the engine thread

    def decode(self, spans: Sequence[Span]) -> None:
        """Run exactly one llama_decode over 1..n_batch rows. Models that are loaded together take turns at this.

        Raises NoKvRoom (memory unchanged), DecodeAborted (part of it may stay: ask n_past) or DecodeFatal (close me).
        """

    @property
    def waited_s(self) -> float:
        """How long the last decode waited for its turn."""

    def sampler(self, params: SamplingParams, seed: int, history: Sequence[int], constraint: Constraint | None = None) -> Sampler:
        """A new chain; `history` are the prompt's tokens, which the penalties look back on.

        With a constraint every token is one that it allows, and accepted by it; prepare() was called with `constrained`.
        """

    def sample(self, wanted: Sequence[tuple[Sampler, int]]) -> list[int]:
        """A token for each (chain, index into the spans of the last decode, whose `output` was True).

        NO_TOKEN where a constraint leaves none or has a problem: the sequence ends, and its chain is not asked again.
        """

    def logprobs(self, wanted: Sequence[Scored]) -> list[TokenLogprob]:
        """What the model thought of tokens, whatever was sampled; costs a pass over the vocabulary for each."""

    def vectors(self, slots: Sequence[int]) -> list[array[float]]:
        """What the last decode made of each slot's input, whose last row was in it: describe().n_embd float32.

        Only where pooling is neither None nor none. Raises DecodeInvalid for a slot that was not in the decode.
        """

    def forget(self, slot: int) -> None:
        """Drop the slot's sequence from the KV cache."""

    def truncate(self, slot: int, n_tokens: int) -> bool:
        """Keep the first `n_tokens` positions of the slot's sequence. False: this memory cannot be cut; forget it."""

    def copy(self, source: int, target: int) -> None:
        """Give `target` all that `source` holds; what `target` held is gone. Done with the next decode. Only where can_cut."""

    def is_copying(self, slot: int) -> bool:
        """Whether the slot has part in a copy that the next decode does: nothing can be restored into it before."""

    def restore(self, slot: int, state: bytearray) -> bool:
        """Give the slot what save() gave of a context with the same parameters; what it held is gone.

        False: it was refused, or the slot is_copying; it is empty then.
        """

    def n_past(self, slot: int) -> int:
        """Positions of the slot's sequence that the KV cache holds."""

    def piece_or_eog(self, token: int, *, markers: bool = False) -> bytes | None:
        """The bytes of a generated token; None for an EOG token and NO_TOKEN.

        None of a control token's, unless it marks calls of tools in this model's format and `markers` are wanted.
        """

    def piece(self, token: int) -> bytes:
        """The bytes of a token of the vocabulary, those of a control token, too."""

    # -- the engine thread, or whoever frees the model when that has ended

    def saved_bytes(self, slot: int) -> int:
        """How much save() would give now. 0: nothing, because the slot is empty or what was copied to it is not there yet."""

    def save(self, slot: int) -> bytearray:
        """The cells of the slot's sequence, for restore(). Good for the same model with the same context parameters alone.

        Raises StateNotSaved.
        """

    def close(self) -> None:
        """Free chains, context and model, in that order. After it no method may be called."""

    # -- any thread

    def set_abort(self, on: bool) -> None:
        """Make the running decode end between two graph nodes, or before its turn, and let none begin; or arm it again. The
        caller serializes."""

    # -- the tokenize threads (these may recurse deep)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...

    def longest_piece(self) -> int:
        """Bytes of the longest piece of the vocabulary. The first call looks at all of it."""

    def detokenize(self, tokens: Sequence[int]) -> bytes: ...

    def prepare(self, params: SamplingParams, *, constrained: bool = False) -> None:
        """Look up what a chain for these will need. Raises InvalidRequest for a token outside the vocabulary."""

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """Raises InvalidRequest for token ids of a prompt that are outside the vocabulary."""

    def render_chat(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> str:
        """The prompt text for the messages, ending where the assistant begins.

        Raises InvalidRequest when the model's template cannot render them, or does not show the tools.
        A BOS that tokenize will add is not in it.
        """


class NoKvRoom(Exception):
    """llama_decode gave 1: no room in the KV cache, memory unchanged."""


class DecodeAborted(Exception):
    """llama_decode gave 2: the abort flag was set; finished ubatches stay in the KV cache."""


class DecodeInvalid(Exception):
    """llama_decode gave -1: the batch was refused, memory unchanged. A fault of ours."""


class StateNotSaved(Exception):
    """The cells of a sequence could not be had: no memory for them, or llama_state_seq_get_data failed."""


class DecodeFatal(Exception):
    """llama_decode gave -2 (allocation) or -3 (compute): the context must be closed."""
