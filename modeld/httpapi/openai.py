"""What do /v1/* and llama-server's helper routes answer?"""

from __future__ import annotations

import math
import time
import uuid
from dataclasses import replace

from modeld.errors import GenerationTimeout, ModeldError, ModelLoading, ModelNotFound, NoModel
from modeld.httpapi import parameters, schema, sse
from modeld.httpapi.answers import CHAT, COMPLETION, AnswerHead, Frames, Shape, Tally, whole_answer
from modeld.httpapi.fields import Fields
from modeld.httpapi.message import LAST_FRAME, Request, Response, StreamResponse, Writes, json_response
from modeld.httpapi.messages import parse_messages
from modeld.httpapi.parameters import CompletionRequest
from modeld.httpapi.record import Record
from modeld.httpapi.service import Admission, Generation, Service
from modeld.httpapi.strictjson import parse_object
from modeld.httpapi.toolcalls import ToolCallParser
from modeld.httpapi.tools import parse_tool_use
from modeld.types import Chunk, Failed, Finished, LoadedModel, State

SETTLE_S = 1.0  # for what an answer that is cut has come to; a decode is aborted for it


def get_models(_: Request, service: Service) -> Response:
    """What can be asked for: the loaded model; with auto_switch, the whole registry."""
    loaded = service.loaded()
    listed = [schema.openai_model_json(loaded)] if loaded else []
    if service.status().auto_switch:
        listed += [schema.openai_entry_json(info) for info in service.models() if loaded is None or info.id != loaded.id]
    return json_response(200, {"object": "list", "data": listed})


def get_model(request: Request, service: Service) -> Response:
    model_id = request.params["model_id"]
    loaded = service.loaded()
    if loaded is not None and loaded.id == model_id:
        return json_response(200, schema.openai_model_json(loaded))
    known = next((info for info in service.models() if info.id == model_id), None)
    if known is not None and service.status().auto_switch:
        return json_response(200, schema.openai_entry_json(known))
    if known is not None:
        raise ModelNotFound(f"model {model_id} is registered but not loaded; POST /switch loads it", param="model")
    raise ModelNotFound(f"no model has the id {model_id[:128]!r}; GET /models lists them", param="model")


def get_props(_: Request, service: Service) -> Response:
    return json_response(200, schema.props_json(_loaded(service), service.status().version))


def post_tokenize(request: Request, service: Service) -> Response:
    asked = schema.parse_tokenize(request.body)
    tokens = service.tokenize(asked.content, add_special=asked.add_special, parse_special=asked.parse_special)
    if not asked.with_pieces:
        return json_response(200, {"tokens": tokens})
    pieces = {token: schema.piece_json(service.detokenize([token])) for token in dict.fromkeys(tokens)}
    return json_response(200, {"tokens": [{"id": token, "piece": pieces[token]} for token in tokens]})


def post_detokenize(request: Request, service: Service) -> Response:
    text = service.detokenize(schema.parse_detokenize(request.body))
    return json_response(200, {"content": text.decode("utf-8", "replace")})


def post_apply_template(request: Request, service: Service) -> Response:
    fields = Fields(parse_object(request.body))
    use = parse_tool_use(fields)
    prompt = service.render_chat(parse_messages(fields), use.tools if use is not None else ())
    return json_response(200, {"prompt": prompt})


def post_completions(request: Request, service: Service) -> Response | StreamResponse:
    return _generate(request, service, parameters.parse_completion(request.take_body(), request.request_id), COMPLETION)


def post_chat_completions(request: Request, service: Service) -> Response | StreamResponse:
    return _generate(request, service, parameters.parse_chat(request.take_body(), request.request_id), CHAT)


def _loaded(service: Service) -> LoadedModel:
    loaded = service.loaded()
    if loaded is None:
        if service.status().state is State.LOADING:
            raise ModelLoading("Loading model", retry_after_s=1)
        raise NoModel("no model is loaded; POST /switch loads one")
    return loaded


# -- generation


def _generate(request: Request, service: Service, asked: CompletionRequest, shape: Shape) -> Response | StreamResponse:
    created = int(time.time())
    record = request.record
    record.stream = asked.stream
    until = time.monotonic() + request.limits.generation_s
    loaded = service.loaded()
    if loaded is not None:  # so that a refusal names it, too
        request.reply_fields["X-Model-Id"] = record.model_id = loaded.id
    if asked.stream:
        request.ticket.begin_stream()
    admission = service.admit(replace(asked.generate, share=request.ticket.share))
    request.on_client_gone(admission.cancel)
    # A stream that waits for a switch begins with comments; until the first one its status can still say why it failed.
    patience_s = min(request.limits.heartbeat_s if asked.stream else math.inf, until - time.monotonic())
    generation = admission.wait(patience_s)
    if generation is None and asked.stream:
        writes = _waiting_writes(request, service, asked, shape, admission, created, until)
        return StreamResponse(writes, error_frame=_error_frame, fields=sse.FIELDS)
    if generation is None:
        raise _timed_out(admission)
    request.reply_fields["X-Model-Id"] = record.model_id = generation.model_id
    head = AnswerHead(shape.id_prefix + uuid.uuid4().hex, created, generation.model_id)
    n_choices = asked.generate.n_choices
    asked = replace(asked, generate=replace(asked.generate, prompts=()))  # while it waits, its tokens are enough
    tally = Tally(n_choices, asked.generate.n, record)
    parsers = _parsers(asked, service, n_choices)
    if not asked.stream:
        choices = _collect(generation, n_choices, tally, until, record)
        logprobs = asked.generate.n_top_logprobs is not None
        return json_response(200, whole_answer(shape, head, choices, tally, logprobs=logprobs, parsers=parsers))
    first = generation.take(None, until=until)
    if first is None or _has_failed(first):  # nothing was sent yet, so the status can still say it
        _count_ends(first or [], tally)
        _settle(generation, tally)
        _raise_failure(first or [])
        raise _timed_out(generation)
    frames = Frames(shape, head, n_choices, include_usage=asked.include_usage, parsers=parsers)
    writes = _stream_writes(request, generation, first, frames, tally, until)
    return StreamResponse(writes, error_frame=_error_frame, fields=sse.FIELDS)


def _error_frame(error: ModeldError) -> bytes:
    return sse.data_frame(schema.error_json(error))


def _waiting_writes(
    request: Request,
    service: Service,
    asked: CompletionRequest,
    shape: Shape,
    admission: Admission[Generation],
    created: int,
    until: float,
) -> Writes:
    """The stream of a request whose model is not loaded yet: comments until it is, then as any other."""
    generation = None
    while generation is None:
        yield (sse.KEEP_ALIVE,)
        left_s = until - time.monotonic()
        if left_s <= 0:
            raise _timed_out(admission)
        generation = admission.wait(min(request.limits.heartbeat_s, left_s))
    request.record.model_id = generation.model_id
    n_choices = asked.generate.n_choices
    head = AnswerHead(shape.id_prefix + uuid.uuid4().hex, created, generation.model_id)
    parsers = _parsers(asked, service, n_choices)
    frames = Frames(shape, head, n_choices, include_usage=asked.include_usage, parsers=parsers)
    first = generation.take(request.limits.heartbeat_s, until=until)
    yield from _stream_writes(request, generation, first, frames, Tally(n_choices, asked.generate.n, request.record), until)


def _parsers(asked: CompletionRequest, service: Service, n_choices: int) -> list[ToolCallParser]:
    """One for each choice; none where no tools may be called.

    Asked after the generation was admitted: a model that is another one by then has ended its text.
    """
    use, loaded = asked.generate.tools, service.loaded()
    if use is None or loaded is None or loaded.tool_call_format is None:
        return []
    names = frozenset(tool.name for tool in use.tools if use.named in (None, tool.name))
    return [
        ToolCallParser(loaded.tool_call_format, names, parallel=use.parallel, whole=not asked.stream) for _ in range(n_choices)
    ]


def _collect(generation: Generation, n_choices: int, tally: Tally, until: float, record: Record) -> list[list[Chunk]]:
    """All chunks of each choice. Until one ends the handler sleeps: the text is laid by for it."""
    choices: list[list[Chunk]] = [[] for _ in range(n_choices)]

    def lay_by(chunks: list[Chunk]) -> bool:
        record.text_came()
        for chunk in chunks:
            choices[chunk.index].append(chunk)
        return True

    try:
        while tally.n_open:
            chunks = generation.take(None, lay_by, until)
            if chunks is None:
                raise _timed_out(generation)
            _count_ends(chunks, tally)
            _raise_failure(chunks)
            lay_by(chunks)
    finally:
        _settle(generation, tally)
    return choices


def _stream_writes(
    request: Request, generation: Generation, first: list[Chunk] | None, frames: Frames, tally: Tally, until: float
) -> Writes:
    """One item a wake-up, with all that was pending. Raises what ended the generation early.

    Most text does not come this way: while this thread waits in `take`, it is written by the one that delivers it.
    """

    def write_text(chunks: list[Chunk]) -> bool:
        request.record.text_came()
        written = frames.text(chunks)
        return not written or request.try_write(written)

    chunks = first
    opening = frames.opening()
    try:
        while True:
            late = time.monotonic() >= until  # after the look at what is pending: what ended in time is no timeout
            if chunks is None:
                if late:
                    raise _timed_out(generation)
                yield (sse.KEEP_ALIVE,)
            else:
                request.record.text_came()
                _count_ends(chunks, tally)
                text = frames.text(chunks)
                ends = [frame for c in chunks if isinstance(c.end, Finished) for frame in frames.finish(c.index, c.end)]
                write = (*opening, *text, *ends)
                opening = ()
                if not tally.n_open and not _has_failed(chunks):
                    yield (*write, *frames.closing(tally), LAST_FRAME)
                    return
                yield write
                _raise_failure(chunks)
                if late:  # a client that reads slowly finds something pending each time
                    raise _timed_out(generation)
            chunks = generation.take(request.limits.heartbeat_s, write_text, until)
    finally:
        _settle(generation, tally)


def _timed_out(running: Generation | Admission[Generation]) -> GenerationTimeout:
    running.cancel()
    return GenerationTimeout("the generation took longer than this server allows (server.generation_timeout_s); it was cancelled")


def _count_ends(chunks: list[Chunk], tally: Tally) -> None:
    for chunk in chunks:
        if chunk.end is not None:
            tally.add(chunk.index, chunk.end)


def _settle(generation: Generation, tally: Tally) -> None:
    """Of an answer that is cut, what its choices have come to is known within a decode: for the log, and for who pays."""
    if not tally.n_open:
        return
    generation.cancel()
    until = time.monotonic() + SETTLE_S
    while tally.n_open and (chunks := generation.take(None, until=until)) is not None:
        _count_ends(chunks, tally)


def _has_failed(chunks: list[Chunk]) -> bool:
    return any(isinstance(chunk.end, Failed) for chunk in chunks)


def _raise_failure(chunks: list[Chunk]) -> None:
    for chunk in chunks:
        if isinstance(chunk.end, Failed):
            raise chunk.end.error
