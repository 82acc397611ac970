"""How does text become tokens and back? Vocab: tokenize, detokenize, pieces, EOG tokens. It lives as long as its model."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modeld.errors import InvalidRequest
from modeld.llm.libllama import Library
from modeld.llm.pieces import SortedPieces

if TYPE_CHECKING:
    from modeld.llm.model import Model


class Vocab:
    """Owned by the model; only read, so any thread may call it. What recurses (tokenize) needs a big stack."""

    def __init__(self, lib: Library, raw: Any, model: Model) -> None:
        self._lib = lib
        self._as_parameter_ = raw
        self._model = model
        self.n_tokens = int(lib.llama_vocab_n_tokens(self))
        self._pieces: dict[int, bytes | None] = {}  # None: EOG. Filled by the engine thread, item by item
        self._eog_lock = threading.Lock()  # guards the three below; two tokenize threads may want one at once
        self._eog: tuple[int, ...] | None = None
        self._longest_piece: int | None = None
        self._sorted_pieces: SortedPieces | None = None

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of the text. `add_special`: BOS and the like by the model's own rule. Needs a big stack.

        Source: llama.h, llama_tokenize: a negative result is the room it needs.
        """
        data = text.encode()
        n_room = len(data) + 8  # no token is shorter than a byte; BOS and EOS besides
        for _ in range(2):
            tokens = (ctypes.c_int32 * n_room)()
            n_tokens = int(self._lib.llama_tokenize(self, data, len(data), tokens, n_room, add_special, parse_special))
            if n_tokens >= 0:
                return tokens[:n_tokens]
            n_room = -n_tokens
        raise InvalidRequest(f"the model's tokenizer cannot take this text of {len(data)} bytes (code {n_tokens})")

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """The text of the tokens, special ones rendered."""
        self.check(tokens, "tokens")
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        n_room = 16 * len(tokens) + 16
        for _ in range(2):
            buffer = ctypes.create_string_buffer(n_room)
            n_bytes = int(self._lib.llama_detokenize(self, array, len(tokens), buffer, n_room, False, True))
            if n_bytes >= 0:
                return buffer.raw[:n_bytes]
            n_room = -n_bytes
        raise InvalidRequest(f"the model's tokenizer cannot render these {len(tokens)} tokens (code {n_bytes})")

    def check(self, tokens: Sequence[int], param: str) -> None:
        """Raises InvalidRequest for an id outside the vocabulary: libllama would read beyond its tables."""
        for token in tokens:
            if not 0 <= token < self.n_tokens:
                raise InvalidRequest(f"{param}: token {token} is outside the vocabulary (0..{self.n_tokens - 1})", param=param)

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token; nothing for a control token unless `special`.

        Source: llama.h, llama_token_to_piece: a negative result is the room it needs.
        """
        n_room = 64
        for _ in range(2):
            buffer = ctypes.create_string_buffer(n_room)
            n_bytes = int(self._lib.llama_token_to_piece(self, token, buffer, n_room, 0, special))
            if n_bytes >= 0:
                return buffer.raw[:n_bytes]
            n_room = -n_bytes
        return b""

    def piece_or_eog(self, token: int) -> bytes | None:
        """The bytes of a generated token, None for an EOG token; remembered. Engine thread only."""
        try:
            return self._pieces[token]
        except KeyError:
            piece = None if self._lib.llama_vocab_is_eog(self, token) else self.piece(token)
            self._pieces[token] = piece
            return piece

    def control_tokens(self, texts: Sequence[str]) -> dict[int, bytes]:
        """Those of the texts that are one control token each, which `piece` shows as nothing. Needs a big stack."""
        found = {}
        for text in texts:
            tokens = self.tokenize(text, add_special=False, parse_special=True)
            if len(tokens) == 1 and not self.piece(tokens[0]) and not self._lib.llama_vocab_is_eog(self, tokens[0]):
                found[tokens[0]] = text.encode()
        return found

    def eog_tokens(self) -> tuple[int, ...]:
        """All EOG tokens, found once: a look at each of 152,000 tokens takes some 50 ms, so not on the engine thread."""
        with self._eog_lock:
            return self._found_eog()

    def _found_eog(self) -> tuple[int, ...]:  # _eog_lock held
        if self._eog is None:
            is_eog = self._lib.llama_vocab_is_eog
            self._eog = tuple(token for token in range(self.n_tokens) if is_eog(self, token))
        return self._eog

    def sorted_pieces(self) -> SortedPieces:
        """All pieces but those of EOG tokens, made once: a second or so with 152,000 tokens, so not on the engine thread."""
        with self._eog_lock:
            if self._sorted_pieces is None:
                eog = set(self._found_eog())
                tokens = (token for token in range(self.n_tokens) if token not in eog)
                self._sorted_pieces = SortedPieces((self.piece(token), token) for token in tokens)
            return self._sorted_pieces

    def longest_piece(self) -> int:
        """Bytes of the longest piece, found once: some 100 ms with 152,000 tokens, so not on the engine thread."""
        with self._eog_lock:
            if self._longest_piece is None:
                # With no room at all the result is minus the room that is needed (llama.h, llama_token_to_piece).
                room, empty = self._lib.llama_token_to_piece, ctypes.create_string_buffer(1)
                self._longest_piece = max(abs(room(self, token, empty, 0, 0, True)) for token in range(self.n_tokens))
            return self._longest_piece

    @property
    def bos(self) -> int:
        """The BOS token, or -1 (LLAMA_TOKEN_NULL)."""
        return int(self._lib.llama_vocab_bos(self))

    @property
    def eos(self) -> int:
        return int(self._lib.llama_vocab_eos(self))
