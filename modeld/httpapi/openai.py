"""What do /v1/* and llama-server's helper routes answer? Whole answers and streams in the shapes of the OpenAI API.

A stream's frames differ in their text alone, so everything else is encoded once a request: under load a frame costs
one string encoding and two concatenations.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as encode_text

from modeld.errors import ModelLoading, ModelNotFound, NoModel
from modeld.httpapi import parameters, schema, sse
from modeld.httpapi.fields import Fields
from modeld.httpapi.message import LAST_FRAME, Request, Response, StreamResponse, json_response
from modeld.httpapi.parameters import CompletionRequest
from modeld.httpapi.service import Generation, Service
from modeld.httpapi.strictjson import parse_object
from modeld.types import Chunk, Failed, Finished, LoadedModel, State, Usage


def get_models(_: Request, service: Service) -> Response:
    loaded = service.loaded()
    return json_response(200, {"object": "list", "data": [schema.openai_model_json(loaded)] if loaded else []})


def get_model(request: Request, service: Service) -> Response:
    model_id = request.params["model_id"]
    loaded = service.loaded()
    if loaded is not None and loaded.id == model_id:
        return json_response(200, schema.openai_model_json(loaded))
    if any(info.id == model_id for info in service.models()):
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
    messages = parameters.parse_messages(Fields(parse_object(request.body)))
    return json_response(200, {"prompt": service.render_chat(messages)})


def post_completions(request: Request, service: Service) -> Response | StreamResponse:
    return _generate(request, service, parameters.parse_completion(request.body, request.request_id), _COMPLETION)


def post_chat_completions(request: Request, service: Service) -> Response | StreamResponse:
    return _generate(request, service, parameters.parse_chat(request.body, request.request_id), _CHAT)


def _loaded(service: Service) -> LoadedModel:
    loaded = service.loaded()
    if loaded is None:
        if service.status().state is State.LOADING:
            raise ModelLoading("Loading model", retry_after_s=1)
        raise NoModel("no model is loaded; POST /switch loads one")
    return loaded


# -- generation


@dataclass(frozen=True, slots=True)
class _Shape:
    """Where the two APIs differ."""

    id_prefix: str
    whole_object: str
    stream_object: str
    whole_choice: Callable[[str], dict[str, object]]  # text -> what holds it in the choice of a whole answer
    text_before: str  # JSON around the text in a choice of a stream
    text_after: str
    first_choice: str | None  # of a stream, before any text
    last_choice: str  # the one with the finish reason, which has no text


_COMPLETION = _Shape(
    id_prefix="cmpl-",
    whole_object="text_completion",
    stream_object="text_completion",
    whole_choice=lambda text: {"text": text},
    text_before='"text":',
    text_after="",
    first_choice=None,
    last_choice='"text":""',
)
_CHAT = _Shape(
    id_prefix="chatcmpl-",
    whole_object="chat.completion",
    stream_object="chat.completion.chunk",
    whole_choice=lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    text_before='"delta":{"content":',
    text_after="}",
    first_choice='"delta":{"role":"assistant","content":""}',
    last_choice='"delta":{}',
)


def _generate(request: Request, service: Service, asked: CompletionRequest, shape: _Shape) -> Response | StreamResponse:
    created = int(time.time())
    answer_id = shape.id_prefix + uuid.uuid4().hex
    loaded = service.loaded()
    if loaded is not None:  # so that a refusal names it, too
        request.reply_fields["X-Model-Id"] = loaded.id
    generation = service.generate(asked.generate)
    request.reply_fields["X-Model-Id"] = generation.model_id
    request.on_client_gone(generation.cancel)
    if not asked.stream:
        text, finished = _collect(generation)
        choice = {"index": 0, **shape.whole_choice(text), "logprobs": None, "finish_reason": finished.reason}
        return json_response(
            200,
            {
                "id": answer_id,
                "object": shape.whole_object,
                "created": created,
                "model": generation.model_id,
                "choices": [choice],
                "usage": _usage_json(finished.usage),
            },
        )
    first = generation.take(None)
    assert first is not None  # without a timeout there is something
    if isinstance(first.end, Failed):
        raise first.end.error  # nothing was sent yet, so the status can still say it
    frames = _Frames(shape, answer_id, created, generation.model_id, asked.include_usage)
    writes = _stream_writes(generation, first, frames, request.limits.heartbeat_s)
    return StreamResponse(writes, error_frame=lambda error: sse.data_frame(schema.error_json(error)), fields=sse.FIELDS)


def _collect(generation: Generation) -> tuple[str, Finished]:
    texts: list[str] = []
    while True:
        chunk = generation.take(None)
        assert chunk is not None
        texts.append(chunk.text)
        if isinstance(chunk.end, Failed):
            raise chunk.end.error
        if chunk.end is not None:
            return "".join(texts), chunk.end


class _Frames:
    """The frames of one stream."""

    def __init__(self, shape: _Shape, answer_id: str, created: int, model_id: str, include_usage: bool) -> None:
        head = json.dumps({"id": answer_id, "object": shape.stream_object, "created": created, "model": model_id})
        usage = ',"usage":null' if include_usage else ""
        self._include_usage = include_usage
        self._head = head[:-1]
        self._tail = usage + "}\n\n"
        self._shape = shape
        self._before_text = f'data: {self._head}, "choices":[{{"index":0,{shape.text_before}'
        self._after_text = f'{shape.text_after},"logprobs":null,"finish_reason":null}}]{self._tail}'

    def text(self, text: str) -> bytes:
        return (self._before_text + encode_text(text) + self._after_text).encode("ascii")

    def first(self) -> tuple[bytes, ...]:
        if self._shape.first_choice is None:
            return ()
        return (self._choice(self._shape.first_choice, "null"),)

    def last(self, finished: Finished) -> tuple[bytes, ...]:
        end = self._choice(self._shape.last_choice, encode_text(finished.reason))
        if not self._include_usage:
            return end, sse.DONE
        usage = f'data: {self._head}, "choices":[],"usage":{json.dumps(_usage_json(finished.usage))}}}\n\n'
        return end, usage.encode("ascii"), sse.DONE

    def _choice(self, choice: str, finish_reason: str) -> bytes:
        rest = f'"logprobs":null,"finish_reason":{finish_reason}}}]{self._tail}'
        return f'data: {self._head}, "choices":[{{"index":0,{choice},{rest}'.encode("ascii")


def _stream_writes(generation: Generation, first: Chunk, frames: _Frames, heartbeat_s: float) -> Iterator[tuple[bytes, ...]]:
    """One item a wake-up, with all the text that was pending. Raises what ended the generation early."""
    chunk: Chunk | None = first
    opening = frames.first()
    while True:
        if chunk is None:
            yield (sse.KEEP_ALIVE,)
        else:
            write = opening + ((frames.text(chunk.text),) if chunk.text else ())
            opening = ()
            if isinstance(chunk.end, Finished):
                yield (*write, *frames.last(chunk.end), LAST_FRAME)
                return
            if write:
                yield write
            if isinstance(chunk.end, Failed):
                raise chunk.end.error
        chunk = generation.take(heartbeat_s)


def _usage_json(usage: Usage) -> dict[str, object]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
