"""What does a scrape find? Meter: what requests came to, what the daemon says of itself, and `GET /metrics`.

docs/metrics.md has a row for each family (a test compares). Labels come from bounded sets: the table of routes, the errors, the
registered models, the configured keys; never from a client.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from modeld.errors import ModeldError
from modeld.httpapi import accesslog
from modeld.httpapi.message import Request, Response
from modeld.httpapi.record import CLIENT_GONE, Record
from modeld.httpapi.service import Service
from modeld.metrics import (
    OPENMETRICS_TYPE,
    REQUEST_S,
    TEXT_TYPE,
    WAIT_S,
    Family,
    Registry,
    Sample,
    by_label,
    counter,
    gauge,
    render,
    wants_openmetrics,
)
from modeld.types import Distribution, OpKind, OpReason, OpState, State

_NO_ROUTE = "other"


def get_metrics(request: Request, _: Service) -> Response:
    """Reads; nothing is loaded, woken or waited for."""
    openmetrics = wants_openmetrics(request.head.field("accept") or "")
    text = render(request.registry.read(), openmetrics=openmetrics)
    return Response(200, text, content_type=OPENMETRICS_TYPE if openmetrics else TEXT_TYPE)


class Meter:
    """Counts what a server answers. Any thread."""

    def __init__(self, registry: Registry, service: Service) -> None:
        self.registry = registry
        registry.collect(lambda: daemon_families(service))
        self._requests = registry.counter("modeld_http_requests", "Requests that have ended.", "route", "method", "status")
        self._seconds = registry.histogram(
            "modeld_http_request_seconds", "From a request's head to the end of its answer.", REQUEST_S, "route"
        )
        self._sent = registry.counter("modeld_http_sent_bytes", "Bytes of responses, heads included.")
        self._rejections = registry.counter(
            "modeld_http_rejections", "Requests that were refused, or whose streams ended with an error, by its code.", "code"
        )
        self._disconnects = registry.counter(
            "modeld_http_client_disconnects", "Clients that left before they had their answers.", "route"
        )
        self._callers = registry.counter("modeld_caller_requests", "Requests by who asked: the name of a key.", "caller")
        self._caller_tokens = registry.counter(
            "modeld_caller_tokens", "Tokens of prompts and completions by who asked.", "caller", "kind"
        )
        self._generations = registry.counter(
            "modeld_generations",
            "Requests for text or vectors that had a model, by how they came out: a finish reason, ok, a code, client_gone.",
            "model",
            "end",
        )
        self._first_text = registry.histogram(
            "modeld_time_to_first_token_seconds", "From a request's head to its first text.", WAIT_S, "model"
        )
        self._prompt = registry.counter("modeld_prompt_tokens", "Tokens of prompts, read or found in the KV cache.", "model")
        self._cached = registry.counter("modeld_prompt_cached_tokens", "Of these, found in the KV cache.", "model")
        self._completion = registry.counter("modeld_completion_tokens", "Tokens that were generated.", "model")
        for code in _codes(ModeldError):  # all series from the beginning, as in _ops
            self._rejections.add(0, code)

    def ended(self, record: Record) -> None:
        route = record.route or _NO_ROUTE
        self._requests.add(1, route, accesslog.method(record), str(record.status))
        self._seconds.observe(record.seconds, route)
        self._sent.add(record.n_bytes)
        if record.code is not None:
            self._rejections.add(1, record.code)
        if record.status == CLIENT_GONE:
            self._disconnects.add(1, route)
        if record.caller is not None:
            self._callers.add(1, record.caller)
            if record.prompt_tokens or record.completion_tokens:
                self._caller_tokens.add(record.prompt_tokens, record.caller, "prompt")
                self._caller_tokens.add(record.completion_tokens, record.caller, "completion")
        if record.model_id is not None:
            self._ended_with_model(record, record.model_id)

    def _ended_with_model(self, record: Record, model: str) -> None:
        self._generations.add(1, model, record.end)
        self._prompt.add(record.prompt_tokens, model)
        self._cached.add(record.cached_tokens, model)
        self._completion.add(record.completion_tokens, model)
        if record.first_text_at is not None:
            self._first_text.observe(record.first_text_at - record.began, model)


def daemon_families(service: Service) -> Iterator[Family]:
    """What the daemon says of itself at this moment."""
    figures = service.figures()
    status, engine, cells = figures.status, figures.engine, figures.cells
    yield by_label(
        "gauge", "modeld_state", "1 for the state the daemon is in.", ("state",),
        {(state.value,): float(state is status.state) for state in State},
    )  # fmt: skip
    yield by_label(
        "gauge", "modeld_model_loaded", "1 for the registered model that answers.", ("model",),
        {(model,): float(model == status.current_model) for model in figures.models},
    )  # fmt: skip
    yield gauge("modeld_generation", "Successful loads so far.", status.generation)
    yield gauge("modeld_config_error", "1 while the configuration file was refused and the one before it holds.",
                float(status.config_error is not None))  # fmt: skip
    yield by_label(
        "counter", "modeld_ops", "Switches and unloads that have ended.", ("kind", "reason", "state"), _ops(figures.ops)
    )
    yield gauge("modeld_ops_queued", "Switches and unloads that wait.", status.queued_ops)
    yield gauge("modeld_op_running", "1 while a switch or an unload runs.", float(status.op is not None))
    yield Family(
        "modeld_op_step_seconds", "histogram", "What ops took, by step and phase, and in total.", ("step",),
        tuple(Sample((step,), value) for step, value in figures.steps_s.items()),
    )  # fmt: skip
    yield gauge("modeld_slots", "Requests that the loaded model decodes together.", status.load.slots_total)
    yield gauge("modeld_slots_busy", "Of these, in use.", status.load.slots_busy)
    yield gauge("modeld_queue_requests", "Requests that were let in and wait for a slot.", status.load.queued)
    yield gauge("modeld_waiting_requests", "Requests that wait for a switch (auto_switch).", status.waiting)
    yield _spread("modeld_queue_seconds", "What requests waited for a slot.", engine.queue_s)
    yield _spread("modeld_token_seconds", "Time between two tokens of one answer, where they are made.", engine.token_s)
    yield gauge("modeld_kv_cells", "KV cells of the models in memory.", cells.n_total)
    yield gauge("modeld_kv_cells_used", "Of these, in use, those of ended requests included.", cells.n_used)
    yield gauge("modeld_kv_kept_bytes", "KV cells kept of models that are not loaded.", cells.kept_bytes)
    yield by_label(
        "counter", "modeld_prefix_cache_tokens", "Prompt tokens not computed: their cells were in a slot, or kept over a switch.",
        ("source",), {("slot",): engine.n_reused_slots, ("kept",): engine.n_reused_kept},
    )  # fmt: skip
    yield counter("modeld_sequences", "Answers that got a slot.", engine.n_placed)
    yield by_label(
        "counter", "modeld_decodes", "Decode steps: whole ones, and those that were ended early.",
        ("end",), {("whole",): engine.n_decodes, ("aborted",): engine.n_aborted},
    )  # fmt: skip
    yield by_label(
        "counter", "modeld_decode_rows", "Rows of whole decodes, by what they were for.", ("kind",),
        {("prompt",): engine.n_rows_prompt, ("generation",): engine.n_rows_generation, ("filling",): engine.n_rows_filling},
    )  # fmt: skip
    yield counter("modeld_decode_seconds", "Time inside decodes.", engine.decode_s)
    yield counter("modeld_engine_busy_seconds", "Time in which an engine did anything but wait for work.", engine.busy_s)
    beats = service.heartbeats()
    yield by_label(
        "gauge", "modeld_heartbeat_age_seconds", "How long a thread has been at what it does; 0: it rests.", ("thread",),
        {(beat.thread,): beat.age_s for beat in beats},
    )  # fmt: skip
    yield by_label(
        "gauge", "modeld_thread_stuck", "1 for a thread that takes too long over something short, or has ended.", ("thread",),
        {(beat.thread,): float(not beat.ok) for beat in beats},
    )  # fmt: skip
    yield gauge("modeld_event_clients", "Readers of /events.", figures.event_clients)


def _ops(ended: Mapping[tuple[str, str, str], int]) -> dict[tuple[str, ...], float]:
    """All series from the beginning: a rate does not see the first of what was not there before."""
    keys = [(kind.value, reason.value, state.value) for kind in OpKind for reason in OpReason for state in OpState if state.ended]
    return {key: ended.get(key, 0) for key in keys}


def _codes(kind: type[ModeldError]) -> set[str]:
    return {kind.code}.union(*map(_codes, kind.__subclasses__()))


def _spread(name: str, help_: str, value: Distribution) -> Family:
    return Family(name, "histogram", help_, (), (Sample((), value),))
