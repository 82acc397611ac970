"""A Service whose every step a test decides: generations that say what they are told to, a real EventHub."""

from __future__ import annotations

import math
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from modeld.errors import ModelNotFound, ModelNotLoaded, NotFound, OpEnded, RequestCancelled
from modeld.events import EventHub, Subscription
from modeld.heartbeat import Heartbeat
from modeld.httpapi.service import Sink
from modeld.policy import Strategy, SwitchOptions
from modeld.types import (
    CellFigures,
    ChatMessage,
    Chunk,
    Distribution,
    Embedded,
    EmbedRequest,
    EngineFigures,
    Failed,
    Figures,
    Finished,
    GenerateRequest,
    Load,
    LoadedModel,
    ModelInfo,
    OpError,
    OpKind,
    OpState,
    ReloadResult,
    State,
    Status,
    Step,
    SwitchOp,
    SwitchPlan,
    Tool,
    ToolCallFormat,
    Usage,
)

LOADED = LoadedModel(
    id="tiny:q8", name="Tiny", path="/models/tiny.gguf", description="llama 1M Q8_0", n_params=1_000_000, n_vocab=512,
    n_ctx=4096, n_ctx_slot=1024, n_ctx_train=2048, n_slots=4, n_batch=2048, n_threads=2, chat_template="chatml",
    bos_piece="<s>", eos_piece="</s>", loaded_at=1_700_000_000.5,
)  # fmt: skip
STATUS = Status(
    state=State.READY, current_model=LOADED.id, error=None, op=None, last_op=None, queued_ops=0,
    load=Load(slots_total=4, slots_busy=0, queued=0), generation=1, version="0.0", uptime_s=1.25,
)  # fmt: skip
OP = SwitchOp(op_id="op-1", target_model_id="other", state=OpState.RUNNING, queued_at=10.5, step=Step.MMAP, pct=43,
              started_at=10.75, steps_ms={"unload": 12.5})  # fmt: skip

SPREAD = Distribution((0.1, 1.0), (2, 1, 0), 0.75)
FIGURES = Figures(
    status=STATUS, models=(), ops={("switch", "request", "succeeded"): 2}, steps_s={"mmap": SPREAD}, event_clients=0,
    engine=EngineFigures(7, 1, 100, 20, 3, 1.5, 2.5, 4, 30, 10, SPREAD, SPREAD), cells=CellFigures(40, 4096, 1000),
)  # fmt: skip


class FakeGeneration:
    """`feed` is what the test says; `cancelled` what the handler did."""

    def __init__(self, request: GenerateRequest) -> None:
        self.request = request
        self.model_id = LOADED.id
        self.prompt_tokens = 3
        self.cancelled = threading.Event()
        self._cond = threading.Condition()
        self._chunks: deque[Chunk] = deque()
        self._ended = False

    def feed(self, text: str, end: Finished | Failed | None = None) -> None:
        with self._cond:
            if self._ended:
                return
            self._chunks.append(Chunk(text, end))
            self._ended = end is not None
            self._cond.notify_all()

    def put(self, chunk: Chunk) -> None:
        """One of several choices."""
        with self._cond:
            self._chunks.append(chunk)
            self._cond.notify_all()

    def finish(self, reason: str = "stop", n_tokens: int = 2) -> None:
        self.feed("", Finished(reason, Usage(self.prompt_tokens, n_tokens)))

    def fail(self, error: Exception) -> None:
        self.feed("", Failed(error))

    def take(self, timeout_s: float | None, sink: Sink | None = None, until: float = math.inf) -> list[Chunk] | None:
        """One chunk at a time; never by way of the sink."""
        left_s = min(until - time.monotonic(), math.inf if timeout_s is None else timeout_s)
        with self._cond:
            if not self._cond.wait_for(lambda: self._chunks, None if left_s == math.inf else left_s):
                return None
            return [self._chunks.popleft()]

    def cancel(self) -> None:
        self.cancelled.set()
        self.feed("", Failed(RequestCancelled("the client left"), Usage(self.prompt_tokens, 1)))


class FakeEmbedding:
    """Vectors that tell which input they are of; `ended` is set by the test where it wants to hold them back."""

    def __init__(self, request: EmbedRequest, *, held: bool) -> None:
        self.request = request
        self.model_id = LOADED.id
        self.cancelled = threading.Event()
        self.n_computed = 5 * len(request.inputs)
        self.vectors = tuple(array("f", (3.0 + i, 4.0, 0.0, 0.1)) for i in range(len(request.inputs)))
        self.error: Exception | None = None
        self.ended = threading.Event()
        if not held:
            self.ended.set()

    def result(self, timeout_s: float | None) -> Embedded | None:
        if not self.ended.wait(10 if timeout_s is None else timeout_s):
            assert timeout_s is not None, "the test never ended this"
            return None
        if self.error is not None:
            raise self.error
        return Embedded(self.vectors, 5 * len(self.vectors))

    def cancel(self) -> None:
        self.cancelled.set()
        self.error = self.error or RequestCancelled("the client left")
        self.ended.set()


T = TypeVar("T", FakeGeneration, FakeEmbedding)


class FakeAdmission(Generic[T]):
    def __init__(self, submit: Callable[[], T], switched: threading.Event) -> None:
        self._submit: Callable[[], T] = submit
        self._switched = switched
        self._result: T | None = None
        self.cancelled = threading.Event()

    def wait(self, timeout_s: float = math.inf) -> T | None:
        if not self._switched.wait(10 if timeout_s == math.inf else timeout_s):
            assert timeout_s != math.inf, "the test never switched"
            return None
        if self.cancelled.is_set():
            raise RequestCancelled("the client left")
        self._result = self._submit()
        return self._result

    def cancel(self) -> None:
        self.cancelled.set()
        self._switched.set()
        if self._result is not None:
            self._result.cancel()


class FakeService:
    """`script` says what each new generation gets at once: texts, then an end; None: nothing, the test feeds."""

    def __init__(self) -> None:
        self.status_now = STATUS
        self.figures_now = FIGURES
        self.hub = EventHub(STATUS)
        self.beats = {name: Heartbeat(f"modeld-{name}", 0.0, None, ok=True) for name in ("switch", "engine", "accept")}
        self.script: Sequence[str | Finished | Failed | Chunk] | None = ("Hello", " world", Finished("stop", Usage(3, 2)))
        self.tool_call_format: ToolCallFormat | None = None
        self.calls: list[tuple[object, ...]] = []  # what the switching routes asked for
        self.joins = False
        self.ended: SwitchOp | None = None  # what wait_op waits for
        self.switched = threading.Event()  # requests wait for it where it is not set
        self.switched.set()
        self.raises: Exception | None = None  # what every method raises but models, loaded and ops
        self._cond = threading.Condition()
        self.generations: list[FakeGeneration] = []
        self.embeddings: list[FakeEmbedding] = []
        self.embeddings_held = False
        self.subscriptions: list[Subscription] = []

    # -- for tests

    def generation(self, index: int = 0, deadline_s: float = 10) -> FakeGeneration:
        """The index-th generation, as soon as it was asked for."""
        with self._cond:
            assert self._cond.wait_for(lambda: len(self.generations) > index, deadline_s), "no request came"
            return self.generations[index]

    def set_status(self, **changes: object) -> None:
        self.status_now = replace(self.status_now, **changes)  # type: ignore[arg-type]

    def publish(self, name: str, data: dict[str, object]) -> str:
        return self.hub.publish(name, data, self.status_now).id

    # -- Service

    def models(self) -> list[ModelInfo]:
        return [
            ModelInfo(id=LOADED.id, name="Tiny", path=LOADED.path, quant="Q8_0", family="llama", state="ready",
                      size_bytes=1234, n_ctx=4096, n_parallel=4, n_params=1_967_808, n_ctx_train=1024),
            ModelInfo(id="other", name="Other", path="/models/o.gguf", quant=None, family=None, state="unloaded",
                      size_bytes=None, n_ctx=0, n_parallel=1),
        ]  # fmt: skip

    def status(self) -> Status:
        if self.raises:
            raise self.raises
        return self.status_now

    def heartbeats(self) -> list[Heartbeat]:
        return list(self.beats.values())

    def figures(self) -> Figures:
        """As the status; the counts are what a test has set."""
        figures = replace(self.figures_now, status=self.status_now, event_clients=self.hub.n_subscribers)
        return replace(figures, models=tuple(info.id for info in self.models()))

    def loaded(self) -> LoadedModel | None:
        return replace(LOADED, tool_call_format=self.tool_call_format) if self.status_now.current_model else None

    def default_options(self) -> SwitchOptions:
        return SwitchOptions()

    def switch(
        self, model_id: str, options: SwitchOptions | None = None, *, if_match: int | None = None
    ) -> tuple[SwitchOp, bool]:
        self._ask("switch", model_id, options, if_match)
        if model_id not in ("other", LOADED.id):
            raise ModelNotFound(f"no model has the id {model_id!r}", param="model_id")
        return SwitchOp(op_id="op-7", target_model_id=model_id, state=OpState.QUEUED, queued_at=1.0), self.joins

    def plan(self, model_id: str, options: SwitchOptions) -> SwitchPlan:
        self._ask("plan", model_id, options)
        return SwitchPlan(model_id, "load", Strategy.REPLACE, LOADED.id, OpError("insufficient_memory", "needs 9 GiB", model_id))

    def unload(self, options: SwitchOptions | None = None, *, if_match: int | None = None) -> tuple[SwitchOp, bool]:
        self._ask("unload", options, if_match)
        return SwitchOp("op-8", None, OpState.QUEUED, queued_at=1.0, kind=OpKind.UNLOAD), self.joins

    def cancel(self, op_id: str) -> SwitchOp:
        self._ask("cancel", op_id)
        if op_id == "op-0":
            raise OpEnded("the op op-0 has ended already: succeeded")
        return replace(self.op(op_id), cancelling=True)

    def ops(self) -> list[SwitchOp]:
        return [OP, replace(OP, op_id="op-0", state=OpState.SUCCEEDED)]

    def wait_op(self, op_id: str, timeout_s: float, gone: Callable[[], bool]) -> SwitchOp:
        self._ask("wait_op", op_id, timeout_s)
        with self._cond:
            self._cond.wait_for(lambda: self.ended is not None or gone(), timeout_s)
            return replace(self.ended or OP, op_id=op_id)

    def look_again(self) -> None:
        self._ask("look_again")

    def lift_quarantine(self, model_id: str) -> None:
        if self.raises:
            raise self.raises
        if model_id != "other":
            raise NotFound(f"no model {model_id!r} is in quarantine")

    def reload(self) -> ReloadResult:
        if self.raises:
            raise self.raises
        return ReloadResult(changed=True, models=2, added=("new",), restart_needed=("server.port",))

    def _ask(self, *call: object) -> None:
        if self.raises:
            raise self.raises
        with self._cond:
            self.calls.append(call)
            self._cond.notify_all()

    def called(self, name: str, deadline_s: float = 10) -> tuple[object, ...]:
        """The last call of that name, as soon as there is one."""
        with self._cond:
            assert self._cond.wait_for(lambda: any(call[0] == name for call in self.calls), deadline_s), f"no {name}"
            return [call for call in self.calls if call[0] == name][-1]

    def op(self, op_id: str) -> SwitchOp:
        if self.raises:
            raise self.raises
        if op_id != OP.op_id:
            raise NotFound(f"no op has the id {op_id!r}")
        return OP

    def subscribe(self, last_event_id: str | None) -> Subscription:
        if self.raises:
            raise self.raises
        subscription = self.hub.subscribe(last_event_id, self.status_now)
        with self._cond:
            self.subscriptions.append(subscription)
            self._cond.notify_all()
        return subscription

    def admit(self, request: GenerateRequest) -> FakeAdmission[FakeGeneration]:
        return FakeAdmission(lambda: self.generate(request), self.switched)

    def admit_embedding(self, request: EmbedRequest) -> FakeAdmission[FakeEmbedding]:
        return FakeAdmission(lambda: self.embed(request), self.switched)

    def generate(self, request: GenerateRequest) -> FakeGeneration:
        self._admit(request.model_id)
        generation = FakeGeneration(request)
        for item in self.script or ():
            if isinstance(item, str):
                generation.feed(item)
            elif isinstance(item, Chunk):
                generation.put(item)
            else:
                generation.feed("", item)
        with self._cond:
            self.generations.append(generation)
            self._cond.notify_all()
        return generation

    def _admit(self, model_id: str | None) -> None:
        if self.raises:
            raise self.raises
        if model_id == "other":
            raise ModelNotLoaded(f"other is not loaded; {LOADED.id} is", param="model")
        if model_id not in (None, LOADED.id):
            raise ModelNotFound(f"no model has the id {model_id!r}", param="model")

    def embedding(self, index: int = 0, deadline_s: float = 10) -> FakeEmbedding:
        """The index-th request for embeddings, as soon as it has come."""
        with self._cond:
            assert self._cond.wait_for(lambda: len(self.embeddings) > index, deadline_s), "no request came"
            return self.embeddings[index]

    def embed(self, request: EmbedRequest) -> FakeEmbedding:
        self._admit(request.model_id)
        embedding = FakeEmbedding(request, held=self.embeddings_held)
        with self._cond:
            self.embeddings.append(embedding)
            self._cond.notify_all()
        return embedding

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        if self.raises:
            raise self.raises
        return [1] * add_special + [2] * (not parse_special) + list(text.encode())

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        if self.raises:
            raise self.raises
        return bytes(tokens)

    def render_chat(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> str:
        if self.raises:
            raise self.raises
        return "".join([f"[{tool.name}]" for tool in tools] + [f"<{m.role}>{m.content}" for m in messages])
