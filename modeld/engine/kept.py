"""Which computed beginnings outlive their model? CellStore: cells of models that left, under one budget, never on disk.

A conversation that goes on after a switch there and back then computes no more than its new words.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Hashable, Iterable, Iterator
from collections.abc import Sequence as Tokens
from dataclasses import dataclass

from modeld.engine.prefix import MIN_SHARED, common_length


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """The cells of one sequence, as Runtime.save gave them, and the tokens they were computed from."""

    key: Hashable
    tokens: array[int]
    state: bytearray

    @property
    def n_bytes(self) -> int:
        return len(self.state) + 4 * len(self.tokens)


@dataclass(frozen=True, slots=True)
class Found:
    """The first `n_tokens` of a prompt are in what was kept."""

    kept: Kept
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Held:
    """The tokens whose cells a slot holds."""

    slot: int
    tokens: Tokens[int]


class CellStore:
    """What was kept of all models; the least recently used goes first. Any thread."""

    def __init__(self, budget_bytes: int) -> None:
        """`budget_bytes`: of all that is kept together; 0 keeps nothing."""
        self.budget_bytes = budget_bytes
        self._lock = threading.Lock()
        # Guards all below. Not held while cells are saved or restored.
        self._kept: dict[Kept, None] = {}  # from the least to the most recently used
        self._n_bytes = 0

    @property
    def n_bytes(self) -> int:
        """Taken of the budget."""
        with self._lock:
            return self._n_bytes

    def of(self, key: Hashable) -> KeptCells:
        """What was and will be kept of one model. `key`: all that its cells depend on, the file and the context's parameters."""
        return KeptCells(self, key)

    # -- for KeptCells

    def _find(self, key: Hashable, tokens: Tokens[int], n_most: int) -> Found | None:
        best: Found | None = None
        with self._lock:
            for kept in self._of(key):
                if len(kept.tokens) <= n_most:
                    shared = common_length(tokens, kept.tokens)
                    if shared >= MIN_SHARED and (best is None or shared >= best.n_tokens):
                        best = Found(kept, shared)
        return best

    def _use(self, kept: Kept) -> None:
        with self._lock:
            if kept in self._kept:
                del self._kept[kept]
                self._kept[kept] = None

    def _drop(self, kept: Kept) -> None:
        with self._lock:
            self._remove(kept)

    def _make_room(self, key: Hashable, tokens: Tokens[int], n_bytes: int) -> bool:
        """Whether cells of these tokens are worth having; then what they replace is gone, and there is room."""
        if n_bytes > self.budget_bytes:
            return False
        with self._lock:
            for kept in self._of(key):
                shared = common_length(tokens, kept.tokens)
                if shared == len(tokens):
                    del self._kept[kept]
                    self._kept[kept] = None
                    return False
                if shared == len(kept.tokens):
                    self._remove(kept)
            self._shrink_to(self.budget_bytes - n_bytes)
        return True

    def _add(self, kept: Kept) -> None:
        with self._lock:
            self._kept[kept] = None
            self._n_bytes += kept.n_bytes
            self._shrink_to(self.budget_bytes)  # another model may have added meanwhile

    def _of(self, key: Hashable) -> Iterator[Kept]:
        """The most recently used last. The lock is held."""
        return iter([kept for kept in self._kept if kept.key == key])

    def _shrink_to(self, n_bytes: int) -> None:
        while self._n_bytes > n_bytes:
            self._remove(next(iter(self._kept)))

    def _remove(self, kept: Kept) -> None:
        if kept in self._kept:
            del self._kept[kept]
            self._n_bytes -= kept.n_bytes


class KeptCells:
    """What is kept of one model; the engine looks into it while that is loaded, and adds to it when it leaves."""

    def __init__(self, store: CellStore, key: Hashable) -> None:
        self._store = store
        self._key = key

    @property
    def budget_bytes(self) -> int:
        return self._store.budget_bytes

    def find(self, tokens: Tokens[int], n_most: int) -> Found | None:
        """The longest beginning of `tokens` that was kept, if it is worth having; of sequences of at most n_most tokens."""
        return self._store._find(self._key, tokens, n_most)

    def use(self, kept: Kept) -> None:
        """It was of use: it goes later."""
        self._store._use(kept)

    def drop(self, kept: Kept) -> None:
        """It is good for nothing. Idempotent."""
        self._store._drop(kept)

    def add(self, tokens: Tokens[int], n_bytes: int, save: Callable[[], bytearray]) -> None:
        """Keep these cells, of n_bytes, unless a sequence that goes on from there is kept; what they go on from is dropped.

        They are more recently used than all others. `save` is called when there is room, and may raise.
        """
        if self._store._make_room(self._key, tokens, n_bytes + 4 * len(tokens)):
            self._store._add(Kept(self._key, array("i", tokens), save()))


def worth_keeping(held: Iterable[Held], n_bytes_of: Callable[[int], int], budget_bytes: int) -> list[tuple[Held, int]]:
    """Which cells to save with their bytes, when a model leaves; of those that fit, not what others go on from.

    `held`: the most recently used first, as is the answer. `n_bytes_of`: what the cells of a slot take, 0 for none.
    """
    chosen: list[tuple[Held, int]] = []
    for each in held:
        if len(each.tokens) < MIN_SHARED or any(
            common_length(each.tokens, other.tokens) == len(each.tokens) for other, _ in chosen
        ):
            continue
        n_bytes = n_bytes_of(each.slot)
        n_with_tokens = n_bytes + 4 * len(each.tokens)
        if n_bytes and n_with_tokens <= budget_bytes:
            budget_bytes -= n_with_tokens
            chosen.append((each, n_bytes))
    return chosen
