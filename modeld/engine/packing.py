"""Which inputs go into the next decode of a model that gives embeddings? Requests in rotation. Pure: no clock, no thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from modeld.engine.vectors import EmbeddingJob
from modeld.llm.adapter import Span


@dataclass(slots=True, eq=False)
class Input:
    """The `index`-th text of a request."""

    job: EmbeddingJob
    index: int
    tokens: Sequence[int]
    n_done: int = 0  # tokens that earlier decodes took; of an input that is longer than a batch


@dataclass(frozen=True, slots=True)
class Packed:
    """One span of the next decode, and the input it belongs to. With `span.output` the input is complete."""

    span: Span
    input: Input


class Packing:
    """The inputs that wait. Engine thread only.

    Each request gives one in its turn, so that a short request need not wait for the end of a long one. An input is computed
    whole in one decode, as libllama has to pool it; where one may be longer than a batch (llm/embedding.py), it goes over
    several, which take turns with the decodes of all others. One such input at a time, so that the KV cache holds it.
    """

    def __init__(self, n_slots: int, n_batch: int, n_cells: int) -> None:
        """`n_cells`: of the KV cache, shared by the slots; no input has more tokens."""
        self._n_slots = n_slots
        self._n_batch = n_batch
        self._n_cells = n_cells
        self._waiting: deque[deque[Input]] = deque()  # one a request, none of them empty
        self._long: Input | None = None  # in the last slot
        self._others_turn = False

    @property
    def has_work(self) -> bool:
        return bool(self._waiting) or self._long is not None

    def add(self, job: EmbeddingJob) -> None:
        self._waiting.append(deque(Input(job, index, tokens) for index, tokens in enumerate(job.inputs)))

    def remove(self, job: EmbeddingJob) -> list[int]:
        """Forget what still waits of a job that ended; the slots whose cells the caller drops."""
        self._waiting = deque(inputs for inputs in self._waiting if inputs[0].job is not job)
        if self._long is None or self._long.job is not job:
            return []
        self._long = None
        return [self._n_slots - 1]

    def plan(self) -> list[Packed]:
        """The spans of the next decode, one a slot and rising; empty when nothing waits."""
        packed = self._pack_whole() if self._long is None or self._others_turn else []
        self._others_turn = not packed
        if not packed and self._long is not None:
            packed = [self._next_piece(self._long)]
        return packed

    def commit(self, packed: list[Packed]) -> list[Packed]:
        """The decode of `packed` is done: those whose inputs are complete now."""
        for item in packed:
            item.input.n_done += len(item.span.tokens)
            if item.input is self._long and item.span.output:
                self._long = None
        return [item for item in packed if item.span.output]

    def _pack_whole(self) -> list[Packed]:
        """As many inputs as fit; one that does not fit beside the others keeps its turn."""
        n_slots, room = self._n_slots, self._n_batch
        if self._long is not None:
            n_slots, room = n_slots - 1, min(room, self._n_cells - len(self._long.tokens))
        packed: list[Packed] = []
        passed: list[deque[Input]] = []
        while self._waiting and len(packed) < n_slots and room:
            inputs = self._waiting.popleft()
            n_tokens = len(inputs[0].tokens)
            if n_tokens > self._n_batch and self._long is None:
                self._long = inputs.popleft()
                n_slots -= 1
            elif n_tokens <= room:
                packed.append(Packed(Span(len(packed), 0, inputs[0].tokens, True), inputs.popleft()))
                room -= n_tokens
            else:
                passed.append(inputs)
                continue
            if inputs:
                self._waiting.append(inputs)
        self._waiting.extendleft(reversed(passed))
        return packed

    def _next_piece(self, long: Input) -> Packed:
        tokens = long.tokens[long.n_done : long.n_done + self._n_batch]
        is_last = long.n_done + len(tokens) == len(long.tokens)
        return Packed(Span(self._n_slots - 1, long.n_done, tokens, is_last), long)
