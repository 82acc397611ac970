"""What does this server say of itself? GET /openapi.json: the file of that name, with what all routes share put in its places.

openapi.json is written by hand, and says what many answers have in common once:

- an answer that is a list of error codes stands for an error of that status with one of those codes;
- `x-answer` names one of `x-answers`, and `x-codes` beside it are codes of errors that may come in its stead;
- `x-every-answer` can be the answer to any request, `x-every-post` that to any POST, `x-every-keyed` where a key is asked for;
- `x-limited` are fields of every answer of what is limited a minute, as its 429 says;
- `x-refusals` says what a status means, and which header fields such an error has.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from importlib import resources
from typing import Any

from modeld.httpapi.message import Request, Response
from modeld.httpapi.service import Service

Json = dict[str, Any]


def get_openapi(_: Request, service: Service) -> Response:
    return Response(200, encoded(service.status().version))


@functools.cache
def encoded(version: str) -> bytes:
    """Made once, from the package or the zip file that this runs from."""
    return json.dumps(document(version)).encode()


def document(version: str) -> Json:
    """An OpenAPI 3.1 document of its own, which the caller may change."""
    raw = resources.files("modeld.httpapi").joinpath("openapi.json").read_bytes()
    described: Json = json.loads(raw)
    shared = {name: described.pop(name) for name in list(described) if name.startswith("x-")}
    described["info"]["version"] = version
    for item in described["paths"].values():
        item["parameters"] = [{"$ref": "#/components/parameters/requestId"}, *item.get("parameters", ())]
        for method, operation in item.items():
            if method != "parameters":
                operation["responses"] = _answers(method, operation, shared)
    for answer in described["components"]["responses"].values():
        answer["headers"] = _headers(["X-Request-Id"]) | answer["headers"]
    return described


def _answers(method: str, operation: Json, shared: Json) -> Json:
    """What one operation may answer, by status."""
    common = [shared["x-every-answer"]]
    if method == "post":
        common.append(shared["x-every-post"])
    if operation.get("security") != []:
        common.append(shared["x-every-keyed"])
    own: Json = operation["responses"]
    answers: Json = {}
    for status in sorted({*own, *(status for part in common for status in part)}):
        codes = {code for part in common for code in part.get(status, ())}
        answer = own.get(status, [])
        if isinstance(answer, list):
            answers[status] = _refusal(shared["x-refusals"][status], codes.union(answer))
        elif "$ref" in answer:
            answers[status] = answer
        else:
            codes.update(answer.pop("x-codes", ()))
            whole = {**shared["x-answers"][answer["x-answer"]]} if "x-answer" in answer else answer
            answers[status] = _or_refused(whole, shared["x-refusals"].get(status), codes)
    if "rate_limit_exceeded" in own.get("429", ()):
        for answer in answers.values():
            answer["headers"] |= _headers(shared["x-limited"])
    return answers


def _refusal(said: Json, codes: Iterable[str]) -> Json:
    return {
        "description": said["description"],
        "headers": _headers(["X-Request-Id", *said["headers"]]),
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}, "examples": _examples(codes)}},
    }


def _or_refused(answer: Json, said: Json | None, codes: Iterable[str]) -> Json:
    """The answer, or an error with one of the codes in its stead."""
    headers = _headers(["X-Request-Id", *(said["headers"] if said is not None else ())])
    whole = {**answer, "headers": headers | answer.get("headers", {})}
    if codes:
        either = {"anyOf": [answer["content"]["application/json"]["schema"], {"$ref": "#/components/schemas/Error"}]}
        whole["content"] = {**answer["content"], "application/json": {"schema": either, "examples": _examples(codes)}}
    return whole


def _headers(names: Iterable[str]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _examples(codes: Iterable[str]) -> Json:
    return {code: {"$ref": f"#/components/examples/{code}"} for code in sorted(codes)}
