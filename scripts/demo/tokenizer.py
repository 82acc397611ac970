"""Which token ids does a text have? Vocabularies in GGUF's "llama" (SentencePiece) form, and the encoder for them.

Pure standard library. `Vocabulary.encode` follows llama.cpp (src/llama-vocab.cpp, llm_tokenizer_spm_session): a text is cut at
the special tokens, then adjacent symbols are merged, best score first, as long as the merged text is itself a piece; a
symbol which is no piece becomes its UTF-8 bytes. So a piece of several characters is found only if a chain of pairs leads
to it; `unreachable` lists those for which none does.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from itertools import pairwise

SPACE = "\u2581"  # how SentencePiece writes a space inside a piece

UNK, BOS, EOS, IM_START, IM_END = range(5)
SPECIAL_NAMES = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")


class PieceType(IntEnum):
    """llama.h, enum llama_token_type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """Pieces by id, with the score (higher is merged earlier) and the type of each."""

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[PieceType, ...]

    @cached_property
    def _normal(self) -> dict[str, int]:
        return {piece: i for i, (piece, kind) in enumerate(zip(self.pieces, self.types, strict=True)) if kind == PieceType.NORMAL}

    @cached_property
    def _bytes(self) -> list[int]:
        first = self.types.index(PieceType.BYTE)
        return list(range(first, first + 256))

    @cached_property
    def _chunks(self) -> dict[str, tuple[int, ...]]:
        return {}

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of text, without BOS. With special=False the special tokens' names are ordinary characters."""
        ids: list[int] = []
        parts = re.split(r"(<\|im_start\|>|<\|im_end\|>|</?s>|<unk>)", text) if special else [text]
        for number, part in enumerate(parts):
            if number % 2:
                ids.append(SPECIAL_NAMES.index(part))
                continue
            # No piece has a space or a newline anywhere but at its front, so chunks that start there merge independently.
            for chunk in re.findall(rf"[{SPACE}\n]?[^{SPACE}\n]+|[{SPACE}\n]", part.replace(" ", SPACE)):
                ids.extend(self._encode_chunk(chunk))
        return ids

    def _encode_chunk(self, chunk: str) -> tuple[int, ...]:
        known = self._chunks.get(chunk)
        if known is not None:
            return known
        symbols = list(chunk)
        while len(symbols) > 1:
            candidates = [
                (-self.scores[piece], i)
                for i in range(len(symbols) - 1)
                if (piece := self._normal.get(symbols[i] + symbols[i + 1])) is not None
            ]
            if not candidates:
                break
            _, i = min(candidates)
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
        ids: list[int] = []
        for symbol in symbols:
            if symbol in self._normal:
                ids.append(self._normal[symbol])
            else:
                ids.extend(self._bytes[byte] for byte in symbol.encode())
        self._chunks[chunk] = tuple(ids)
        return self._chunks[chunk]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special tokens are written by name, broken UTF-8 is replaced."""
        out = bytearray()
        for i in ids:
            if self.types[i] == PieceType.BYTE:
                out.append(self._bytes.index(i))
            else:
                out += self.pieces[i].replace(SPACE, " ").encode()
        return out.decode(errors="replace")

    def unreachable(self) -> list[str]:
        """Pieces which `encode` can never produce from their own text; a usable vocabulary has none."""
        return [piece for piece, i in self._normal.items() if self._encode_chunk(piece) != (i,)]


def build_vocabulary(merged: Sequence[str] = ()) -> Vocabulary:
    """Specials, 256 bytes, newline, printable ASCII, then `merged` in order of falling score, filled up to a multiple of 32.

    The fill is there because ggml's repacked matrix kernels want row counts in multiples of up to 32.
    """
    rows: list[tuple[str, float, PieceType]] = [("<unk>", 0.0, PieceType.UNKNOWN)]
    rows += [(name, 0.0, PieceType.CONTROL) for name in SPECIAL_NAMES[1:]]
    rows += [(f"<0x{byte:02X}>", 0.0, PieceType.BYTE) for byte in range(256)]
    rows += [(char, -10000.0, PieceType.NORMAL) for char in ["\n", SPACE, *map(chr, range(0x21, 0x7F))]]
    rows += [(piece, -1.0 - rank, PieceType.NORMAL) for rank, piece in enumerate(merged)]
    rows += [(f"<unused_{i}>", 0.0, PieceType.UNUSED) for i in range(-len(rows) % 32)]
    pieces, scores, types = zip(*rows, strict=True)
    return Vocabulary(pieces, scores, types)


def learn_pieces(texts: Iterable[str], count: int) -> list[str]:
    """At most count pieces of two or more characters, by byte-pair encoding over the words of texts.

    A word is letters with the space in front of it; punctuation stays single characters, so that "fox" and "fox." share a piece.
    """
    words: Counter[str] = Counter()
    for text in texts:
        words.update(re.findall(rf"{SPACE}?[A-Za-z]+", text.replace(" ", SPACE)))
    splits = {word: list(word) for word in words}
    pieces: list[str] = []
    while len(pieces) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, symbols in splits.items():
            for pair in pairwise(symbols):
                pairs[pair] += words[word]
        if not pairs:
            break
        left, right = max(pairs, key=lambda pair: (pairs[pair], pair))  # the pair itself breaks ties, for determinism
        if left + right not in pieces:
            pieces.append(left + right)
        for symbols in splits.values():
            for i in range(len(symbols) - 1, 0, -1):
                if symbols[i - 1 : i + 1] == [left, right]:
                    symbols[i - 1 : i + 1] = [left + right]
    return pieces
