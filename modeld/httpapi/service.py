"""What does the HTTP surface ask of the daemon? The Service protocol, handed in by app; no other floor is imported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from modeld.events import Subscription
from modeld.heartbeat import Heartbeat
from modeld.policy import SwitchOptions
from modeld.types import (
    ChatMessage,
    Chunk,
    Embedded,
    EmbedRequest,
    Figures,
    GenerateRequest,
    LoadedModel,
    ModelInfo,
    ReloadResult,
    Status,
    SwitchOp,
    SwitchPlan,
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
    n_computed: int  # tokens of the inputs whose vectors are there; final once `result` has returned them or raised

    def result(self, timeout_s: float | None) -> Embedded | None:
        """All vectors; None when the time is over. Raises ModelSwitched, EngineFailed, ShuttingDown, RequestCancelled."""

    def cancel(self) -> None:
        """The client left: no further decode is made for it. Idempotent; no effect after the end."""


T_co = TypeVar("T_co", covariant=True)


class Admission(Protocol[T_co]):
    """A request on its way in, seen from its handler. One thread waits; `cancel` may come from any."""

    def wait(self, timeout_s: float = ...) -> T_co | None:
        """What came of the request once it is admitted; waits for its tokenizing, not for its text. None: it waits for a
        switch still when the time is over.

        Raises NoModel, ModelLoading, ModelNotLoaded, QueueFull, ContextLengthExceeded, InvalidRequest, ModelSwitched,
        EngineFailed, ShuttingDown; RequestCancelled after cancel.
        """

    def cancel(self) -> None:
        """The client left; goes on to what `wait` has returned. Idempotent."""


class Service(Protocol):
    """Every method may be called from any thread and returns at once unless it says otherwise."""

    def models(self) -> Sequence[ModelInfo]:
        """The registry, in the file's order."""

    def status(self) -> Status: ...

    def heartbeats(self) -> Sequence[Heartbeat]:
        """How the daemon's threads are, each once."""

    def figures(self) -> Figures:
        """What there is to count. Waits for no decode, no load and no file."""

    def loaded(self) -> LoadedModel | None:
        """The model that answers now."""

    def default_options(self) -> SwitchOptions:
        """What holds for a switch that does not say otherwise."""

    def switch(
        self, model_id: str, options: SwitchOptions | None = None, *, if_match: int | None = None
    ) -> tuple[SwitchOp, bool]:
        """Queue a switch; True: it joined the one that was accepted last.

        Raises ModelNotFound, ShuttingDown, QueueFull, SwitchRejected, GenerationMismatch, ModelCooldown, ModelQuarantined,
        InsufficientMemory.
        """

    def plan(self, model_id: str, options: SwitchOptions) -> SwitchPlan:
        """What `switch` would come to. Raises ModelNotFound."""

    def unload(self, options: SwitchOptions | None = None, *, if_match: int | None = None) -> tuple[SwitchOp, bool]:
        """Raises ShuttingDown, QueueFull, SwitchRejected, GenerationMismatch."""

    def cancel(self, op_id: str) -> SwitchOp:
        """Raises NotFound, OpEnded."""

    def op(self, op_id: str) -> SwitchOp:
        """Raises NotFound."""

    def ops(self) -> Sequence[SwitchOp]:
        """The newest first."""

    def wait_op(self, op_id: str, timeout_s: float, gone: Callable[[], bool]) -> SwitchOp:
        """The op when it has ended, the time is over, or `gone`, which is asked again after look_again. Raises NotFound."""

    def look_again(self) -> None: ...

    def lift_quarantine(self, model_id: str) -> None:
        """Raises NotFound."""

    def reload(self) -> ReloadResult:
        """Read the configuration file again. Raises ConfigRefused; then everything is as before."""

    def subscribe(self, last_event_id: str | None) -> Subscription:
        """Events from now on, or from `last_event_id`; see modeld.events. Raises ShuttingDown, TooManyConnections."""

    def admit(self, request: GenerateRequest) -> Admission[Generation]:
        """Let one request in. Raises ModelNotFound; what else keeps it out, its `wait` raises."""

    def admit_embedding(self, request: EmbedRequest) -> Admission[Embedding]:
        """Let one request for embeddings in. Raises as admit does."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Waits for a tokenize thread. Raises as generate does."""

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """Waits for a tokenize thread. Raises InvalidRequest for ids outside the vocabulary."""

    def render_chat(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> str:
        """The prompt for the messages and tools. Waits for a tokenize thread. Raises InvalidRequest."""
