"""Which part of a prompt is computed already, and where? The longest common prefix over all slots, busy ones included. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Tokens
from dataclasses import dataclass

from modeld.engine.sequence import Sequence

# A shorter beginning is not worth a copy: most prompts share a BOS token and the template's first words.
MIN_SHARED = 16
# A copy moves all cells of the source. At 12 KB a token that is 1 us; computing one takes 1 ms (0.5B model, 2 cores).
MAX_COPIED_PER_SHARED = 64


@dataclass(slots=True)
class Slot:
    """A place in the KV cache; `id` is the seq_id. Without a sequence, `cached` are the tokens whose cells it still holds."""

    id: int
    sequence: Sequence | None = None
    cached: Tokens[int] = ()
    last_used: int = 0  # larger is later

    @property
    def held(self) -> Tokens[int]:
        """The tokens whose cells this slot holds now."""
        if self.sequence is None:
            return self.cached
        return self.sequence.tokens[: self.sequence.n_cached] if self.sequence.cache_prompt else ()


@dataclass(frozen=True, slots=True)
class Reuse:
    """The first `n_tokens` of a prompt are in the cells of slot `source`, which holds `n_held` (the own slot, or one to copy)."""

    source: int
    n_tokens: int
    n_held: int


def common_length(a: Tokens[int], b: Tokens[int]) -> int:
    """How many tokens both begin with. Compares by halves: slices compare in C."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:  # a[:low] equals b[:low], a[:high] does not
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def is_being_computed(sequence: Sequence, running: Iterable[Sequence]) -> bool:
    """Whether a running sequence is about to compute a beginning that this one can then take over."""
    if not sequence.takes_over:
        return False
    for other in running:
        if other.cache_prompt and other.n_cached < other.n_prompt:
            # the last prompt token is computed in any case: its logits are wanted
            shared = common_length(sequence.tokens[:-1], other.tokens[: other.n_prompt])
            if shared >= _least_shared(sequence, other) and shared > other.n_cached:
                return True
    return False


def _least_shared(sequence: Sequence, other: Sequence | None) -> int:
    """The shortest beginning worth taking over: answers to one prompt share it whatever its length."""
    return 1 if other is not None and sequence.is_sibling_of(other) else MIN_SHARED


def choose(sequence: Sequence, slots: list[Slot], *, shares: bool = True, n_kept: int = 0) -> tuple[Slot, Reuse | None]:
    """A free slot for the sequence, and what it can take over: nothing without `shares`. At least one slot is free.

    `n_kept`: tokens of it whose cells can come from outside; nothing is taken over where these are so many more that they
    are worth bringing in.
    """
    best = _longest(sequence, slots) if shares and sequence.takes_over else None
    if best is not None and n_kept >= best.n_tokens + MIN_SHARED:
        best = None
    free = [slot for slot in slots if slot.sequence is None]
    if best is not None:
        source = next(slot for slot in slots if slot.id == best.source)
        # A conversation that goes on keeps its slot; a shared beginning is copied, so that what follows it is kept, too.
        if source.sequence is None and (2 * best.n_tokens >= len(source.cached) or len(free) == 1):
            return source, best
        free = [slot for slot in free if slot is not source]
    return _least_missed(free, slots), best


def _longest(sequence: Sequence, slots: list[Slot]) -> Reuse | None:
    """The longest beginning that a slot holds, if it is worth taking; among equals that of a free slot: no copy."""
    wanted = sequence.tokens[: len(sequence.tokens) - 1]
    best: tuple[int, bool, Reuse] | None = None
    for slot in slots:
        held = slot.held
        shared = common_length(wanted, held)
        if shared >= _least_shared(sequence, slot.sequence) and shared * MAX_COPIED_PER_SHARED >= len(held):
            free = slot.sequence is None
            if best is None or (shared, free) > best[:2]:
                best = shared, free, Reuse(slot.id, shared, len(held))
    return best[2] if best is not None else None


def _least_missed(free: list[Slot], slots: list[Slot]) -> Slot:
    """An empty slot before a cached one, the longest unused cache before others; among equals the one that keeps the used slots
    contiguous, then the lowest."""
    used = [slot.id for slot in slots if slot.sequence is not None]

    def rank(slot: Slot) -> tuple[int, int, int]:
        distance = min((abs(slot.id - other) for other in used), default=0)
        return (slot.last_used if slot.cached else 0, distance, slot.id)

    return min(free, key=rank)
