"""Which inputs go into the next decode of a model that gives embeddings? Clients in rotation, and the requests of each. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
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

    Clients take turns, and so do the requests of each; a request gives one input in its turn. So a short one need not wait for
    the end of a long one, nor one client's only request for a hundred of another's. An input is computed
    whole in one decode, as libllama has to pool it; where one may be longer than a batch (llm/embedding.py), it goes over
    several, which take turns with the decodes of all others. One such input at a time, so that the KV cache holds it.
    """

    def __init__(self, n_slots: int, n_batch: int, n_cells: int) -> None:
        """`n_cells`: of the KV cache, shared by the slots; no input has more tokens."""
        self._n_slots = n_slots
        self._n_batch = n_batch
        self._n_cells = n_cells
        # By client, in the order of their turns; one a request, in the order of theirs. None is empty.
        self._waiting: OrderedDict[str, deque[deque[Input]]] = OrderedDict()
        self._long: Input | None = None  # in the last slot
        self._others_turn = False

    @property
    def has_work(self) -> bool:
        return bool(self._waiting) or self._long is not None

    def add(self, job: EmbeddingJob) -> None:
        self._wait(deque(Input(job, index, tokens) for index, tokens in enumerate(job.inputs)))

    def remove(self, job: EmbeddingJob) -> list[int]:
        """Forget what still waits of a job that ended; the slots whose cells the caller drops."""
        left = deque(inputs for inputs in self._waiting.get(job.client, ()) if inputs[0].job is not job)
        if left:
            self._waiting[job.client] = left  # keeps its place
        else:
            self._waiting.pop(job.client, None)
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
            inputs = self._next_turn()
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
                self._wait(inputs)
        for inputs in reversed(passed):
            self._wait(inputs, first=True)
        return packed

    def _next_turn(self) -> deque[Input]:
        """A request, which the caller puts back if it has inputs left. Its client's next turn is behind those of all others."""
        client, requests = self._waiting.popitem(last=False)
        inputs = requests.popleft()
        if requests:
            self._waiting[client] = requests
        return inputs

    def _wait(self, inputs: deque[Input], *, first: bool = False) -> None:
        """A request waits for its turn, behind all others of its client. `first`: it keeps the turn that it had."""
        client = inputs[0].job.client
        requests = self._waiting.setdefault(client, deque())
        if first:
            requests.appendleft(inputs)
            self._waiting.move_to_end(client, last=False)
        else:
            requests.append(inputs)

    def _next_piece(self, long: Input) -> Packed:
        tokens = long.tokens[long.n_done : long.n_done + self._n_batch]
        is_last = long.n_done + len(tokens) == len(long.tokens)
        return Packed(Span(self._n_slots - 1, long.n_done, tokens, is_last), long)
