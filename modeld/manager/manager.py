"""How does one model give way to another? Manager: the switch queue and its thread, admission, close.

It implements what the HTTP surface asks of the daemon, and is handed a factory that opens models.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from modeld.errors import EngineFailed, LoadFailed, ModeldError, ModelNotFound, ModelSwitched, OpCancelled, ShuttingDown
from modeld.events import EventHub, Subscription
from modeld.manager.freeing import Freeing
from modeld.manager.progress import Progress
from modeld.manager.runner import Embedding, Generation, Inspect, OpenRunner, Runner, Verify
from modeld.manager.state import Lifecycle, Task, Tenant
from modeld.threads import BIG_STACK_BYTES, start_thread
from modeld.types import (
    ChatMessage,
    EmbedRequest,
    GenerateRequest,
    LoadedModel,
    ModelInfo,
    ModelSpec,
    OpError,
    OpState,
    State,
    Status,
    Step,
    SwitchOp,
    Tool,
)

log = logging.getLogger("modeld.switch")

CLOSE_TIMEOUT_S = 30.0  # a load that has mapped a cold file does not hear of its cancellation before that is read


class Manager:
    """The registry, the model that answers, and the thread `modeld-switch`, which replaces it.

    Main thread: start, close. Any thread: the service methods. All below them: the switch thread.
    """

    def __init__(
        self,
        registry: Sequence[ModelSpec],
        default_model: str | None,
        open_runner: OpenRunner,
        inspect: Inspect,
        *,
        version: str,
        verify: Verify = lambda _spec, _on_progress: None,
    ) -> None:
        """`default_model` is an id of the registry; None: nothing is loaded at start."""
        self._registry = {spec.id: spec for spec in registry}
        if len(self._registry) != len(registry):
            raise ValueError("two models of the registry have the same id")
        if default_model is not None and default_model not in self._registry:
            raise ValueError(f"default model {default_model!r} is not in the registry")
        self._open_runner = open_runner
        self._inspect = inspect
        self._verify = verify
        self._life = Lifecycle(None if default_model is not None else _no_model(len(registry)), version=version)
        self._hub = EventHub(self._life.status())
        if default_model is not None:
            self._life.accept(default_model)  # the first op, whatever is asked for before the thread starts
        self._thread: threading.Thread | None = None
        self._held: Tenant | None = None  # opened and not closed yet, answering or not; switch thread only

    # -- the main thread

    def start(self) -> None:
        """Start the switch thread; the load at start is its first op. Once."""
        self._thread = start_thread("modeld-switch", self._run, stack_bytes=BIG_STACK_BYTES)

    def close(self) -> None:
        """Cancel the load that runs and the ops that wait, end all requests, free the model, end the events.

        Waits CLOSE_TIMEOUT_S at most: a load that does not listen is left to the end of the process. Idempotent.
        """
        self._life.stop()
        if self._thread is None:
            self._shut_down()
            return
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            log.error("the switch thread does not end: a load has not heard of its cancellation for %.0f s", CLOSE_TIMEOUT_S)
            self._hub.close()

    # -- any thread

    def models(self) -> list[ModelInfo]:
        """The registry, in the file's order. Reads the heads of model files that it has not seen yet."""
        status = self._life.status()
        infos = []
        loaded = self.loaded()
        for spec in self._registry.values():
            facts = self._inspect(spec)
            infos.append(
                ModelInfo(
                    id=spec.id,
                    name=spec.name or spec.id,
                    path=str(spec.path),
                    quant=spec.quant or facts.quant,
                    family=spec.family or facts.family,
                    state=_model_state(spec.id, status),
                    size_bytes=facts.size_bytes,
                    n_ctx=spec.n_ctx,
                    n_parallel=spec.n_parallel,
                    chat_template=loaded.chat_template_engine or "unsupported" if loaded and loaded.id == spec.id else None,
                    n_params=facts.n_params,
                    n_ctx_train=facts.n_ctx_train,
                )
            )
        return infos

    def status(self) -> Status:
        status = self._life.status()
        tenant = self._life.tenant()
        if tenant is None or tenant.runner is None:
            return status
        return replace(status, load=tenant.runner.load())

    def loaded(self) -> LoadedModel | None:
        tenant = self._life.tenant()
        return tenant.runner.describe() if tenant is not None and tenant.runner is not None else None

    def switch(self, model_id: str) -> SwitchOp:
        """Raises ModelNotFound, ShuttingDown, QueueFull."""
        self._require_registered(model_id, param="model_id")
        op = self._life.accept(model_id)
        log.info("switch queued", extra={"op_id": op.op_id, "model_id": model_id})
        return op

    def op(self, op_id: str) -> SwitchOp:
        return self._life.op(op_id)

    def subscribe(self, last_event_id: str | None) -> Subscription:
        return self._hub.subscribe(last_event_id, self.status())

    def generate(self, request: GenerateRequest) -> Generation:
        return self._admit(request.model_id).submit(request)

    def embed(self, request: EmbedRequest) -> Embedding:
        return self._admit(request.model_id).embed(request)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return self._life.admit(None).tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        return self._life.admit(None).detokenize(tokens)

    def render_chat(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> str:
        return self._life.admit(None).render_chat(messages, tools)

    def _admit(self, model_id: str | None) -> Runner:
        if model_id is not None:
            self._require_registered(model_id, param="model")
        return self._life.admit(model_id)

    def _require_registered(self, model_id: str, *, param: str) -> None:
        if model_id not in self._registry:
            known = ", ".join(repr(known_id) for known_id in list(self._registry)[:20])
            raise ModelNotFound(f"no model {model_id!r} is registered; known: {known or 'none'}", param=param)

    # -- the switch thread

    def _run(self) -> None:
        try:
            while (task := self._life.next_task()) is not None:
                self._perform(task)
        finally:
            self._shut_down()

    def _perform(self, task: Task) -> None:
        """Run one op to its end: exactly one model_ready or model_error, and the thread lives on."""
        op = task.op
        began = time.monotonic()
        try:
            op = self._replace(task)
        except Exception as error:  # noqa: BLE001 - an op's boundary: _fail logs it and says so
            self._fail(op, error)
            return
        ms = round((time.monotonic() - began) * 1000, 3)
        log.info("model ready", extra={"op_id": op.op_id, "model_id": op.target_model_id, "ms": ms})
        self._publish("model_ready", op, current_model_id=op.target_model_id, generation=self._life.status().generation, ms=ms)

    def _replace(self, task: Task) -> SwitchOp:
        """Unload what is held, load what the op asks for, and let it answer. The op has succeeded when this returns."""
        op = task.op
        spec = self._registry[op.target_model_id]
        # A model is the same when its entry and its file are. The file is looked at before it is opened: one that is
        # replaced meanwhile counts as another from then on. A missing one gives no reason to let go of what answers.
        facts = self._inspect(spec)
        identity = facts.identity
        held = self._held
        unchanged = held is not None and held.spec == spec and identity in (held.identity, None)
        log.info("switch started", extra={"op_id": op.op_id, "model_id": spec.id})
        if not unchanged:
            self._check(op, spec, facts.problem)
        kept = self._life.begin(held if unchanged else None)
        self._publish("model_switch_started", op)
        if kept:
            return self._life.kept()

        progress = Progress(partial(self._emit_step, op))
        progress.report(Step.UNLOAD, 0)
        freeing = self._close_held(op)
        try:
            progress.report(Step.UNLOAD, 100)
            if task.refusal is not None:
                raise task.refusal
            tenant = Tenant(spec, identity)
            tenant.runner = self._open(tenant, progress, freeing)
        finally:
            freeing.wait()
        self._held = tenant
        progress.finish()
        return self._life.loaded(tenant)

    def _check(self, op: SwitchOp, spec: ModelSpec, problem: str | None) -> None:
        """What can be known to fail before anything is unloaded fails here: whoever answers goes on answering."""
        try:
            if problem is not None:
                raise LoadFailed(f"cannot load {spec.path}: {problem}")
            self._verify(spec, lambda _pct: not self._life.stopping)
        except LoadFailed as error:
            self._publish("model_switch_started", op)
            if self._life.stopping:
                raise OpCancelled("the daemon is stopping") from error
            raise

    def _open(self, tenant: Tenant, progress: Progress, freeing: Freeing) -> Runner:
        """Call the factory; a load that failed because it was told to end raises OpCancelled."""
        told_to_end = False

        def on_progress(step: Step, pct: int) -> bool:
            nonlocal told_to_end
            freeing.wait()
            progress.report(step, pct)
            told_to_end = self._life.stopping
            return not told_to_end

        progress.report(Step.MMAP, 0)
        if self._life.stopping:
            raise OpCancelled("the daemon is stopping")
        try:
            return self._open_runner(tenant.spec, on_progress, partial(self._life.died, tenant))
        except Exception as error:
            if told_to_end:
                raise OpCancelled("the daemon is stopping") from error
            raise

    def _emit_step(self, op: SwitchOp, step: Step, pct: int) -> None:
        op = self._life.step(step, pct)
        self._publish("model_loading_progress", op, step=step.value, pct=pct)
        if pct == 100:
            log.info("%s done", step, extra={"op_id": op.op_id, "model_id": op.target_model_id, "ms": op.steps_ms[step.value]})

    def _close_held(self, op: SwitchOp) -> Freeing:
        """Close the old runner, whose requests end with the reason, and begin to free it."""
        if self._held is None:
            return Freeing(None)
        held, self._held = self._held, None
        reason: ModeldError
        if held.death is not None:
            log.error("the engine died: %s", held.death, extra={"op_id": op.op_id, "model_id": held.spec.id}, exc_info=held.death)
            reason = EngineFailed(f"the engine of {held.spec.id!r} died: {held.death}")
        else:
            reason = ModelSwitched(
                f"the model was switched from {held.spec.id!r} to {op.target_model_id!r} while the request ran",
                retry_after_s=1,
            )
        return self._close_runner(held, reason)

    def _close_runner(self, tenant: Tenant, reason: ModeldError) -> Freeing:
        """End its requests and threads, and begin to free it. A close that fails is logged, and the caller goes on.

        Nobody can reach that runner any more and a second close would not be safer, so failing the op would only leave
        the daemon without a model; what the runner still holds is lost until the process ends.
        """
        if tenant.runner is None:
            return Freeing(None)
        try:
            tenant.runner.close(reason)
        except Exception:
            log.exception("closing a model failed; what it holds is lost", extra={"model_id": tenant.spec.id})
            return Freeing(None)  # a thread of it may still live
        return Freeing(tenant.runner)

    def _fail(self, op: SwitchOp, error: Exception) -> None:
        """The op has ended without its model: free what it opened, then say so once."""
        fields = {"op_id": op.op_id, "model_id": op.target_model_id}
        state = OpState.FAILED
        if isinstance(error, OpCancelled):
            state = OpState.CANCELLED
            log.info("switch cancelled: %s", error, extra=fields)
        elif isinstance(error, ModeldError):
            log.error("switch failed: %s", error, extra={**fields, "code": error.code})
        else:
            log.error("switch failed by a fault of modeld's own", extra=fields, exc_info=error)
        if self._held is not None and self._held is not self._life.tenant():
            held, self._held = self._held, None
            self._close_runner(held, EngineFailed(f"loading {held.spec.id!r} failed")).wait()
        if isinstance(error, ModeldError):
            code, message = error.code, error.message
        else:
            code, message = "internal_error", f"a fault of modeld's own ({type(error).__name__}); its log has the details"
        op = self._life.failed(state, OpError(code, message, op.target_model_id, op.op_id))
        self._publish("model_error", op, code=code, message=message)

    def _shut_down(self) -> None:
        """Say of every op that waits that it was cancelled, close the model, end the events."""
        self._life.stop()  # also when a fault of ours ends the thread: no op is accepted that nobody runs
        reason = ShuttingDown("the daemon is stopping")
        if (running := self._life.status().op) is not None:  # only after such a fault
            self._fail(running, OpCancelled(reason.message))
        while (op := self._life.cancel_queued(OpError(OpCancelled.code, reason.message))) is not None:
            self._publish("model_error", op, code=OpCancelled.code, message=reason.message)
        self._life.stopped(OpError(reason.code, reason.message))
        if self._held is not None:
            held, self._held = self._held, None
            self._close_runner(held, reason).wait()
            log.info("model closed", extra={"model_id": held.spec.id})
        self._hub.close()

    def _publish(self, name: str, op: SwitchOp, **data: object) -> None:
        self._hub.publish(name, {"op_id": op.op_id, "target_model_id": op.target_model_id, **data}, self._life.status())


def _no_model(n_models: int) -> OpError:
    if n_models == 0:
        return OpError("no_model", "the configuration lists no models")
    return OpError("no_model", "none is loaded at start (default_model: null); POST /switch loads one")


def _model_state(model_id: str, status: Status) -> str:
    if status.current_model == model_id:
        return "ready"
    if status.state is State.LOADING and status.op is not None and status.op.target_model_id == model_id:
        return "loading"
    return "unloaded"
