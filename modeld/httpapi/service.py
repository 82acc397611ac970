"""What does the HTTP surface ask of the daemon? The Service protocol, handed in by app; no other floor is imported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from modeld.events import Subscription
from modeld.types import (
    ChatMessage,
    Chunk,
    Embedded,
    EmbedRequest,
    GenerateRequest,
    LoadedModel,
    ModelInfo,
    Status,
    SwitchOp,
    Tool,
)

Sink = Callable[[list[Chunk]], bool]
"""Takes chunks, none of them an end, and does not wait; False: it could not take all, the handler must see to the rest."""


class Generation(Protocol):
    """A running request, seen from its handler. One thread takes; `cancel` may come from any."""

    model_id: str

    def take(self, timeout_s: float | None, sink: Sink | None = None, until: float = ...) -> list[Chunk] | None:
        """What is pending, one chunk a choice, as soon as there is any; None when nothing came for `timeout_s`, and at
        `until` (of time.monotonic()) in any case.

        While this waits, text goes to the sink instead, on another thread, and the handler sleeps on: it comes back with
        chunks that hold an end, or with none when the sink answered False. Each choice ends once; nothing comes after the
        last end.
        """

    def cancel(self) -> None:
        """The client left: its slots are freed within one decode step. Idempotent; no effect after the end."""


class Embedding(Protocol):
    """A request for embeddings that runs, seen from its handler."""

    model_id: str

    def result(self, timeout_s: float | None) -> Embedded | None:
        """All vectors; None when the time is over. Raises ModelSwitched, EngineFailed, ShuttingDown, RequestCancelled."""

    def cancel(self) -> None:
        """The client left: no further decode is made for it. Idempotent; no effect after the end."""


class Service(Protocol):
    """Every method may be called from any thread and returns at once unless it says otherwise."""

    def models(self) -> Sequence[ModelInfo]:
        """The registry, in the file's order."""

    def status(self) -> Status: ...

    def loaded(self) -> LoadedModel | None:
        """The model that answers now."""

    def switch(self, model_id: str) -> SwitchOp:
        """Queue a switch. Raises ModelNotFound, ShuttingDown."""

    def op(self, op_id: str) -> SwitchOp:
        """Raises NotFound."""

    def subscribe(self, last_event_id: str | None) -> Subscription:
        """Events from now on, or from `last_event_id`; see modeld.events. Raises ShuttingDown, TooManyConnections."""

    def generate(self, request: GenerateRequest) -> Generation:
        """Admit one request; waits for its tokenizing, not for its text.

        Raises NoModel, ModelLoading, ModelNotFound, ModelNotLoaded, QueueFull, ContextLengthExceeded, InvalidRequest,
        ModelSwitched, EngineFailed, ShuttingDown.
        """

    def embed(self, request: EmbedRequest) -> Embedding:
        """Admit one request for embeddings; waits for its tokenizing. Raises as generate does."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Waits for a tokenize thread. Raises as generate does."""

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """Waits for a tokenize thread. Raises InvalidRequest for ids outside the vocabulary."""

    def render_chat(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> str:
        """The prompt for the messages and tools. Waits for a tokenize thread. Raises InvalidRequest."""
