"""A factory of models whose every load stops where the test says, and runners that tell what was done to them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from modeld.errors import LoadFailed, ModeldError
from modeld.events import Event, Subscription
from modeld.heartbeat import Pulse
from modeld.manager.manager import Manager
from modeld.manager.runner import Host
from modeld.types import (
    ChatMessage,
    Chunk,
    Embedded,
    EmbedRequest,
    FileFacts,
    GenerateRequest,
    Load,
    LoadedModel,
    ModelSpec,
    OpState,
    Step,
    SwitchOp,
    Tool,
)

DEADLINE_S = 20.0  # of every wait; reaching it is a failure
ENDS = ("model_ready", "model_error", "model_unloaded")


class FakeGeneration:
    def __init__(self, model_id: str) -> None:
        self.model_id = model_id

    def take(
        self, timeout_s: float | None, sink: Callable[[list[Chunk]], bool] | None = None, until: float = 0
    ) -> list[Chunk] | None:
        return None

    def cancel(self) -> None:
        pass


class FakeEmbedding:
    def __init__(self, model_id: str) -> None:
        self.model_id = model_id
        self.n_computed = 0

    def result(self, timeout_s: float | None) -> Embedded:
        return Embedded((), 0)

    def cancel(self) -> None:
        pass


class FakeRunner:
    """Answers until it is closed, and keeps the reason."""

    def __init__(self, spec: ModelSpec, on_death: Callable[[Exception], None]) -> None:
        self.spec = spec
        self.die = on_death
        self.closed_with: ModeldError | None = None
        self.close_error: Exception | None = None  # raised by close, if set
        self.closed_by = ""  # name of the thread
        self.n_cut = 0  # requests that close ended
        self.freed = False
        self.was_freed = threading.Event()
        self.free_gate: threading.Event | None = None  # holds up free, if set
        self.pulse = Pulse("modeld-engine")
        self.n_open = 0  # requests that have not ended
        self._on_idle: Callable[[], None] | None = None

    def describe(self) -> LoadedModel:
        spec = self.spec
        return LoadedModel(spec.id, spec.name, str(spec.path), "fake", 1, 2, 3, 4, 5, 6, 7, 8, None, "<s>", "</s>", 0.0)

    def load(self) -> Load:
        return Load(slots_total=self.spec.n_parallel, slots_busy=self.n_open, queued=0)

    def pulses(self) -> tuple[Pulse, ...]:
        return (self.pulse,)

    def on_idle(self, callback: Callable[[], None]) -> None:
        assert self._on_idle is None
        self._on_idle = callback

    def finish(self, n: int = 1) -> None:
        """So many requests end by themselves."""
        assert n <= self.n_open
        self.n_open -= n
        if not self.n_open and self._on_idle is not None:
            self._on_idle()

    def submit(self, request: GenerateRequest) -> FakeGeneration:
        self._check()
        self.n_open += 1
        return FakeGeneration(self.spec.id)

    def embed(self, request: EmbedRequest) -> FakeEmbedding:
        self._check()
        return FakeEmbedding(self.spec.id)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        self._check()
        return list(text.encode())

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        self._check()
        return bytes(tokens)

    def render_chat(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> str:
        self._check()
        return "".join([tool.name for tool in tools] + [message.content or "" for message in messages])

    def close(self, reason: ModeldError) -> None:
        assert self.closed_with is None, "closed twice"
        self.closed_with = reason
        self.n_cut, self.n_open = self.n_open, 0
        self.closed_by = threading.current_thread().name
        if self.close_error is not None:
            raise self.close_error

    def free(self) -> None:
        assert self.closed_with is not None, "freed before it was closed"
        assert not self.freed, "freed twice"
        if self.free_gate is not None:
            assert self.free_gate.wait(DEADLINE_S)
        self.freed = True
        self.was_freed.set()

    def _check(self) -> None:
        if self.closed_with is not None:
            raise self.closed_with


class GatedLoad:
    """One load that waits for orders; each is carried out on the loading thread before the method returns."""

    def __init__(self, runner: FakeRunner, on_progress: Callable[[Step, int], bool]) -> None:
        self.spec = runner.spec
        self.runner = runner
        self.thread = threading.current_thread()
        self._on_progress = on_progress
        self._orders: queue.Queue[Callable[[], FakeRunner | None]] = queue.Queue()

    def report(self, step: Step, pct: int) -> bool:
        """What the manager answers to that progress: True to go on."""
        answers: queue.Queue[bool] = queue.Queue()

        def order() -> None:
            answers.put(self._on_progress(step, pct))

        self._orders.put(order)
        return answers.get(timeout=DEADLINE_S)

    def finish(self) -> FakeRunner:
        self._orders.put(lambda: self.runner)
        return self.runner

    def listen(self) -> None:
        """From now on it goes on by itself, until it is told to end."""

        def order() -> FakeRunner:
            for step in (Step.MMAP, Step.WARMUP):
                if not self._on_progress(step, 100):
                    raise LoadFailed("told to end")
            return self.runner

        self._orders.put(order)

    def fail(self, error: BaseException) -> None:
        def order() -> None:
            raise error

        self._orders.put(order)

    def run(self) -> FakeRunner:
        """On the loading thread."""
        while True:
            runner = self._orders.get(timeout=DEADLINE_S)()
            if runner is not None:
                return runner


class FakeFactory:
    """An OpenRunner. Loads pass at once, or, `gated`, wait for orders: take them with `next_load`, in their order."""

    def __init__(
        self,
        *,
        gated: bool = False,
        at_once: int = 1,
        make: Callable[[ModelSpec, Callable[[Exception], None]], FakeRunner] = FakeRunner,
    ) -> None:
        """`at_once`: models that may be open, the one that is being loaded included."""
        self._make = make
        self.gated = gated
        self.at_once = at_once
        self.runners: list[FakeRunner] = []
        self.threads: set[str] = set()
        self._loads: queue.Queue[GatedLoad] = queue.Queue()
        self._running = 0

    def __call__(
        self, spec: ModelSpec, on_progress: Callable[[Step, int], bool], on_death: Callable[[Exception], None]
    ) -> FakeRunner:
        self.threads.add(threading.current_thread().name)
        assert self._running == 0, "two loads at once"
        n_open = sum(runner.closed_with is None for runner in self.runners)
        assert n_open < self.at_once, "loads while another model is open"
        self._running += 1
        try:
            if self.gated:
                load = GatedLoad(self._make(spec, on_death), on_progress)
                self._loads.put(load)
                runner = load.run()
            else:
                for step in (Step.MMAP, Step.WARMUP):
                    for pct in (0, 50, 100):
                        if not on_progress(step, pct):
                            raise LoadFailed("told to end")
                runner = self._make(spec, on_death)
            self.runners.append(runner)
            return runner
        finally:
            self._running -= 1

    def forget_running(self) -> None:
        """The load that runs hangs: another one may run beside it."""
        self._running = 0

    def next_load(self) -> GatedLoad:
        return self._loads.get(timeout=DEADLINE_S)


class Files:
    """An Inspect whose files change when the test says."""

    def __init__(self) -> None:
        self.mtime: dict[str, int | None] = {}  # by model id; None: the file is missing
        self.error: Exception | None = None

    def host(self, **more: Any) -> Host:
        return Host(self, **more)

    def __call__(self, spec: ModelSpec) -> FileFacts:
        if self.error is not None:
            raise self.error
        mtime = self.mtime.get(spec.id, 1)
        if mtime is None:
            return FileFacts(problem="No such file or directory")
        return FileFacts(identity=(1, 2, 3, mtime), size_bytes=3, quant="Q8_0", family="llama", n_params=7, n_ctx_train=512)


class Follower:
    """Reads a subscription and keeps what it has read."""

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.seen: list[Event] = []

    def until(self, name: str, op: SwitchOp | None = None) -> Event:
        """The first event of that name (and op) that was or is going to be read."""
        at = 0
        while True:
            while at < len(self.seen):
                event = self.seen[at]
                at += 1
                if event.name == name and (op is None or event.data.get("op_id") == op.op_id):
                    return event
            events = self.subscription.take(DEADLINE_S)
            assert events, f"no {name} within {DEADLINE_S} s; seen: {self.seen}"
            self.seen += events

    def until_at(self, step: Step, pct: int) -> Event:
        """The event of that progress."""
        at = 0
        while True:
            for event in self.seen[at:]:
                at += 1
                if (event.data.get("step"), event.data.get("pct")) == (step.value, pct):
                    return event
            events = self.subscription.take(DEADLINE_S)
            assert events, f"no {step} {pct} within {DEADLINE_S} s; seen: {self.seen}"
            self.seen += events

    def ended(self, op: SwitchOp) -> Event:
        """The one event that ends the op."""
        while not (ends := [event for event in self.of(op) if event.name in ENDS]):
            events = self.subscription.take(DEADLINE_S)
            assert events, f"no end of {op} within {DEADLINE_S} s; seen: {self.seen}"
            self.seen += events
        assert len(ends) == 1
        return ends[0]

    def of(self, op: SwitchOp) -> list[Event]:
        return [event for event in self.seen if event.data.get("op_id") == op.op_id]


def specs(*ids: str) -> list[ModelSpec]:
    return [ModelSpec(id=model_id, name=model_id, path=Path("/models") / f"{model_id}.gguf") for model_id in ids]


def end_state(manager: Manager, op: SwitchOp) -> OpState:
    return manager.op(op.op_id).state
