"""How do documents become training batches? Packed rows in which no document sees another one."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .chat import Document
from .tokenizer import BOS, Vocabulary

REPEATED_WEIGHT = 4.0


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors of B rows and T columns. targets and weights belong to the NEXT token; mask is [B, T, T]."""

    tokens: Tensor
    positions: Tensor
    mask: Tensor
    targets: Tensor
    weights: Tensor  # of the loss; 0 for what is not learnt


@dataclass(frozen=True, slots=True)
class _Encoded:
    tokens: list[int]
    weights: list[float]


@dataclass(frozen=True, slots=True)
class Encoder:
    """Documents to tokens. A token of `repeated` counts REPEATED_WEIGHT times where it stands in its document once more.

    Which name a story has is chance, and most of the loss is of that kind; that the name stays the same is a small part of the
    loss, but what a reader notices.
    """

    vocabulary: Vocabulary
    repeated: frozenset[int]

    def __call__(self, document: Document) -> _Encoded:
        """BOS in front, as llama.cpp adds it; each segment on its own, as prompt and continuation are at run time."""
        encoded = _Encoded([BOS], [0.0])
        seen: set[int] = set()
        for segment in document:
            for token in self.vocabulary.encode(segment.text):
                again = token in self.repeated and token in seen
                seen.add(token)
                encoded.tokens.append(token)
                encoded.weights.append((REPEATED_WEIGHT if again else 1.0) if segment.learn else 0.0)
        return encoded


def batches(documents: Iterator[Document], encoder: Encoder, rows: int, length: int) -> Iterator[Batch]:
    """Endless batches of rows x length tokens. Documents longer than a row are left out."""
    waiting: list[_Encoded] = []
    while True:
        yield _batch([_fill_row(documents, encoder, waiting, length) for _ in range(rows)], length)


def _fill_row(documents: Iterator[Document], encoder: Encoder, waiting: list[_Encoded], length: int) -> list[_Encoded]:
    """The longest waiting document that fits, again and again; a pool of 32 keeps the unused rest of a row small."""
    row: list[_Encoded] = []
    room = length + 1  # the last token of a row is only a target
    while True:
        while len(waiting) < 32:
            document = encoder(next(documents))
            if len(document.tokens) <= length + 1:
                waiting.append(document)
        # The first document of a row is the one that waits longest, so that none waits for ever.
        fitting = [i for i, document in enumerate(waiting) if len(document.tokens) <= room]
        if not fitting:
            return row
        chosen = waiting.pop(max(fitting, key=lambda i: len(waiting[i].tokens)) if row else 0)
        row.append(chosen)
        room -= len(chosen.tokens)


def _batch(rows: list[list[_Encoded]], length: int) -> Batch:
    tokens = torch.zeros(len(rows), length + 1, dtype=torch.long)
    weights = torch.zeros(len(rows), length + 1)
    positions = torch.zeros(len(rows), length + 1, dtype=torch.long)
    owner = torch.full((len(rows), length + 1), -1)
    for r, row in enumerate(rows):
        start = 0
        for number, document in enumerate(row):
            end = start + len(document.tokens)
            tokens[r, start:end] = torch.tensor(document.tokens)
            weights[r, start:end] = torch.tensor(document.weights)
            positions[r, start:end] = torch.arange(end - start)
            owner[r, start:end] = number
            start = end
    same = owner[:, :-1, None] == owner[:, None, :-1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return Batch(tokens[:, :-1], positions[:, :-1], same & causal, tokens[:, 1:], weights[:, 1:])
