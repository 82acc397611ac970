"""What does the manager need from a loaded model? The Runner protocol and the factory that opens one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from modeld.errors import ModeldError
from modeld.heartbeat import Pulse
from modeld.types import (
    CellFigures,
    ChatMessage,
    Chunk,
    Distribution,
    Embedded,
    EmbedRequest,
    EngineFigures,
    FileFacts,
    GenerateRequest,
    Load,
    LoadedModel,
    ModelSpec,
    Step,
    Tool,
)


class Generation(Protocol):
    """A running request, as its handler sees it; the manager only passes it on."""

    model_id: str

    def take(
        self, timeout_s: float | None, sink: Callable[[list[Chunk]], bool] | None = None, until: float = ...
    ) -> list[Chunk] | None: ...

    def cancel(self) -> None: ...


class Embedding(Protocol):
    """A request for embeddings that runs; the manager only passes it on."""

    model_id: str
    n_computed: int

    def result(self, timeout_s: float | None) -> Embedded | None: ...

    def cancel(self) -> None: ...


class Runner(Protocol):
    """One loaded, warmed model with everything that runs on it. Any thread, except where it says otherwise.

    Once closed, whatever asks for work raises the reason it was closed with; nothing hangs.
    """

    spec: ModelSpec

    def describe(self) -> LoadedModel: ...

    def load(self) -> Load:
        """Slots and queue at this moment."""

    def pulses(self) -> Sequence[Pulse]:
        """Of its threads."""

    def submit(self, request: GenerateRequest) -> Generation:
        """Raises QueueFull, ContextLengthExceeded, InvalidRequest; ModelSwitched, ShuttingDown or EngineFailed when closed."""

    def embed(self, request: EmbedRequest) -> Embedding:
        """Raises as submit does. A model does this or that; InvalidRequest says so where it is asked for the other."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...

    def detokenize(self, tokens: Sequence[int]) -> bytes: ...

    def render_chat(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> str: ...

    def on_idle(self, callback: Callable[[], None]) -> None:
        """Call this each time the last open request has ended: from any thread, with no lock held. Switch thread, once."""

    def close(self, reason: ModeldError) -> None:
        """End every running and queued request with Failed(reason) and join the threads. Switch thread only, once."""

    def free(self) -> None:
        """After close: give chains, context and model back. Once, from any one thread."""


LoadProgress = Callable[[Step, int], bool]
"""Called on the loading thread with mmap or warmup and whole percents; answering False asks for the load to end.

The same type as modeld.llm.adapter.LoadProgress, which this floor may not import.
"""

OnDeath = Callable[[Exception], None]
"""Called once, from the engine's thread and with none of its locks held, when the engine dies later."""

OpenRunner = Callable[[ModelSpec, LoadProgress, OnDeath], Runner]
"""Loads (step mmap) and warms up (step warmup). Raises LoadFailed, with all that was opened freed again.

The memory of the model before may still be on its way back when this is called: it is back when the first call of the
progress callback returns, so nothing large may be taken before that.
"""


Inspect = Callable[[ModelSpec], FileFacts]
"""What the model's file says about itself; never raises for a bad or missing file, and remembers files it has read."""

Verify = Callable[[ModelSpec, Callable[[int], bool]], None]
"""Compares the file with what the entry says about it (sha256). The callback gets percents; False ends it. Raises LoadFailed."""

Probe = Callable[[ModelSpec, Callable[[], bool]], None]
"""Decodes the file once in a process of its own. The callback is asked now and then; False ends it. Raises ProbeFailed."""

ReadAhead = Callable[[ModelSpec, Callable[[int, int], bool]], None]
"""Reads what is not in the page cache. The callback gets bytes done and in all; False ends it. Raises LoadFailed."""

Fits = Callable[[ModelSpec, ModelSpec | None], str | None]
"""Whether a model finds memory when another one (None: none) leaves for it: None, or why not, with the numbers."""


_NONE = Distribution((), (0,), 0.0)
NO_FIGURES = EngineFigures(0, 0, 0, 0, 0, 0.0, 0.0, 0, 0, 0, _NONE, _NONE)


@dataclass(frozen=True, slots=True)
class Host:
    """What the manager asks about model files and memory. The switch thread calls, for what takes time a thread that it
    watches; `inspect` and `fits` handlers, too."""

    inspect: Inspect
    verify: Verify = lambda _spec, _on_progress: None
    probe: Probe | None = None  # None: there is none to be had
    read_ahead: ReadAhead = lambda _spec, _on_progress: None
    fits: Fits = lambda _spec, _leaving: None
    has_room: Callable[[ModelSpec], bool] = lambda _spec: False  # it is known to fit beside all that is loaded
    give_back: Callable[[], None] = lambda: None  # free pages of the heap to the system
    resident_bytes: Callable[[], int] = lambda: 0  # memory of the process that is not a file's
    figures: Callable[[], tuple[EngineFigures, CellFigures]] = lambda: (NO_FIGURES, CellFigures(0, 0, 0))  # any thread
