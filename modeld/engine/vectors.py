"""How do vectors get from the engine to a handler? EmbeddingJob: all vectors of one request together, or one error."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from modeld.types import Embedded


class EmbeddingJob:
    """One request's inputs. `put` and `fail` are the engine's, `result` the handler's, `cancel` anybody's."""

    def __init__(
        self, model_id: str, inputs: Sequence[Sequence[int]], on_cancel: Callable[[EmbeddingJob], None], client: str = ""
    ) -> None:
        """`inputs`: token ids, at least one list, none empty. `on_cancel` sends the owner a message. `client`: whose turns it
        takes (types.Share)."""
        self.model_id = model_id
        self.client = client
        self.inputs = inputs
        self.n_computed = 0  # tokens of the inputs whose vectors are there; written by the engine thread alone
        self._on_cancel = on_cancel
        self._vectors: list[array[float]] = [array("f")] * len(inputs)
        self._n_missing = len(inputs)
        self._end: Future[Embedded] = Future()

    # -- the engine thread

    def put(self, index: int, vector: array[float]) -> bool:
        """The vector of one input; whether it was the last that was missing. Then `finish` is to follow."""
        self._vectors[index] = vector
        self.n_computed += len(self.inputs[index])
        self._n_missing -= 1
        return self._n_missing == 0

    def finish(self) -> None:
        """End the job with its vectors. Raises InvalidStateError after an end, as does fail."""
        self._end.set_result(Embedded(tuple(self._vectors), sum(map(len, self.inputs))))

    def fail(self, error: Exception) -> None:
        self._end.set_exception(error)

    # -- the handler

    def result(self, timeout_s: float | None) -> Embedded | None:
        """The vectors, when all of them are there; None when the time is over. Raises what ended the job early."""
        try:
            return self._end.result(timeout_s)
        except TimeoutError:
            return None

    # -- any thread

    def cancel(self) -> None:
        """Ask the engine to end the job; it does before its next decode. Idempotent, no effect after the end."""
        self._on_cancel(self)
