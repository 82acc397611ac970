"""What does /v1/embeddings answer? The OpenAI API's shape, with llama-server's `embd_normalize`.

Vectors are many numbers: they are rendered one by one while they are sent, so that neither the interpreter nor one write is
held by all of them (2048 vectors of 4096 numbers are 100 MB of text).
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import struct
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from modeld.errors import EngineFailed, GenerationTimeout, InvalidRequest, ModeldError
from modeld.httpapi import schema
from modeld.httpapi.fields import INT32_MAX, Fields, brief, missing, token_ids, wrong_type
from modeld.httpapi.message import LAST_FRAME, Request, StreamResponse, Writes
from modeld.httpapi.service import Embedding, Service
from modeld.httpapi.strictjson import parse_object
from modeld.types import Embedded, EmbedRequest

MAX_INPUTS = 2048  # OpenAI's
MAX_P = 100  # of a p-norm
_WRITE_BYTES = 64 << 10
SETTLE_S = 1.0  # for what a request that is cut has come to; it ends before the next decode

Vector = Sequence[float]


@dataclass(frozen=True, slots=True)
class EmbeddingsRequest:
    """Inputs, and how their vectors are to be sent."""

    embed: EmbedRequest
    as_base64: bool
    normalize: int  # -1: not; 0: to the largest number, as 16-bit integers; else by the p-norm of this p


def post_embeddings(request: Request, service: Service) -> StreamResponse:
    until = time.monotonic() + request.limits.generation_s
    asked = parse_embeddings(request.body, request.request_id)
    loaded = service.loaded()
    if loaded is not None:  # so that a refusal names it, too
        request.reply_fields["X-Model-Id"] = request.record.model_id = loaded.id
    admission = service.admit_embedding(replace(asked.embed, share=request.ticket.share))
    request.on_client_gone(admission.cancel)
    embedding = admission.wait(until - time.monotonic())
    embedded = None if embedding is None else _computed(request, embedding, until)
    if embedding is None or embedded is None:
        admission.cancel()
        raise GenerationTimeout("this took longer than the server allows (server.generation_timeout_s); it was cancelled")
    request.reply_fields["X-Model-Id"] = request.record.model_id = embedding.model_id
    vectors = [normalized(vector[: asked.embed.dimensions], asked.normalize) for vector in embedded.vectors]
    usage = {"prompt_tokens": embedded.prompt_tokens, "total_tokens": embedded.prompt_tokens}
    tail = f'], "model": {json.dumps(embedding.model_id)}, "usage": {json.dumps(usage)}}}'
    return StreamResponse(
        _writes(vectors, _base64 if asked.as_base64 else _numbers, tail),
        error_frame=lambda error: json.dumps(schema.error_json(error)).encode(),
        fields={"Cache-Control": "no-store"},
        content_type="application/json",
    )


def _computed(request: Request, embedding: Embedding, until: float) -> Embedded | None:
    """All vectors; None when the time is over. However it ends, what was computed is in the record: for who pays."""
    left_s = until - time.monotonic()
    try:
        embedded = embedding.result(None if left_s == math.inf else left_s)
        if embedded is None:
            embedding.cancel()
            with contextlib.suppress(ModeldError):  # RequestCancelled, mostly
                embedding.result(SETTLE_S)
        return embedded
    finally:
        request.record.prompt_tokens = embedding.n_computed


# -- the request


def parse_embeddings(body: bytes, request_id: str) -> EmbeddingsRequest:
    """Raises InvalidRequest."""
    fields = Fields(parse_object(body))
    encoding_format = fields.string("encoding_format")
    if encoding_format not in (None, "float", "base64"):
        raise InvalidRequest(
            f"encoding_format is {brief(encoding_format)}; allowed are float and base64", param="encoding_format"
        )
    normalize = fields.integer("embd_normalize", -1, MAX_P)
    return EmbeddingsRequest(
        embed=EmbedRequest(
            request_id=request_id,
            inputs=_inputs(fields),
            model_id=fields.string("model"),
            dimensions=fields.integer("dimensions", 1, INT32_MAX),
        ),
        as_base64=encoding_format == "base64",
        normalize=2 if normalize is None else normalize,
    )


def _inputs(fields: Fields) -> tuple[str | tuple[int, ...], ...]:
    """A string, token ids, or an array of either."""
    value = fields.get("input")
    if value is None:
        raise missing("input", "a string or an array")
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        raise wrong_type("input", "a string, an array of token ids, or an array of either", value)
    if not value:
        raise InvalidRequest("input is an empty array; at least one string or token id is expected", param="input")
    if not isinstance(value[0], (str, list)):
        return (token_ids(value, "input"),)
    if len(value) > MAX_INPUTS:
        raise InvalidRequest(f"input has {len(value)} items; at most {MAX_INPUTS} are allowed in one request", param="input")
    return tuple(_input(item, f"input[{i}]") for i, item in enumerate(value))


def _input(item: object, path: str) -> str | tuple[int, ...]:
    if isinstance(item, str):
        return item
    if not isinstance(item, list):
        raise wrong_type(path, "a string or an array of token ids", item)
    return token_ids(item, path)


# -- the vectors


def normalized(vector: Vector, p: int) -> Vector:
    """The vector as `embd_normalize` wants it (llama-server's numbers); one of zeros stays. Raises EngineFailed for a NaN."""
    if not all(map(math.isfinite, vector)):
        raise EngineFailed("the model computed a vector with NaN or infinity in it")
    largest = max(map(abs, vector))
    if p == -1 or largest == 0:
        return vector
    if p == 0:
        norm = largest / 32760
    elif p == 2:
        norm = math.hypot(*vector)
    else:  # scaled, so that no power overflows
        norm = largest * math.fsum([(abs(x) / largest) ** p for x in vector]) ** (1 / p)
    return array("f", [x / norm for x in vector])


def _numbers(vector: Vector) -> str:
    """Nine digits tell every float32 from its neighbours."""
    return f"[{','.join(['%.9g'] * len(vector)) % tuple(vector)}]"


def _base64(vector: Vector) -> str:
    """The float32 in little-endian order, as the OpenAI clients read them."""
    return f'"{base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()}"'


def _writes(vectors: Sequence[Vector], render: Callable[[Vector], str], tail: str) -> Writes:
    """The whole answer, in pieces of about _WRITE_BYTES."""
    pending, n_pending = ['{"object": "list", "data": ['], 0
    for index, vector in enumerate(vectors):
        item = f'{", " if index else ""}{{"object": "embedding", "index": {index}, "embedding": {render(vector)}}}'
        pending.append(item)
        n_pending += len(item)
        if n_pending >= _WRITE_BYTES:
            yield ("".join(pending).encode("ascii"),)
            pending, n_pending = [], 0
    yield ("".join([*pending, tail]).encode("ascii"), LAST_FRAME)
