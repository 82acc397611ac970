"""What the OpenAPI document says, and whether an answer is as it says: nothing missing, and nothing beyond it.

The document lets answers have more members than it names, so that clients take what comes later. Here it is closed: a member
that it does not name is a fault of the document.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema_rs import Draft202012Validator

Json = dict[str, Any]

COMBINERS = ("allOf", "anyOf", "oneOf")


class Described:
    def __init__(self, document: Json) -> None:
        self.document = document
        schemas = document["components"]["schemas"]
        # What is put together by allOf stays open, or its parts would refuse each other's members.
        self._components = {"schemas": {name: _closed(schema) for name, schema in schemas.items()}}
        self._components["schemas"] |= {f"{name}.open": _closed(schema, top=False) for name, schema in schemas.items()}

    def operations(self) -> Iterator[tuple[str, str, Json]]:
        """(method, path, operation), parameters of the path included."""
        for path, item in self.document["paths"].items():
            for method, operation in item.items():
                if method != "parameters":
                    parameters = [*item.get("parameters", ()), *operation.get("parameters", ())]
                    yield method.upper(), path, {**operation, "parameters": [self.resolved(one) for one in parameters]}

    def operation(self, method: str, path: str) -> Json:
        return next(found for *named, found in self.operations() if named == [method, path])

    def answer(self, method: str, path: str, status: int) -> Json:
        responses = self.operation(method, path)["responses"]
        assert str(status) in responses, f"{method} {path} answers {status}, which is not documented"
        return self.resolved(responses[str(status)])

    def request_schema(self, method: str, path: str) -> Json:
        """As it stands in the document, open."""
        return self.resolved(self.operation(method, path)["requestBody"]["content"]["application/json"]["schema"])

    def resolved(self, value: Json) -> Json:
        while "$ref" in value:
            found: Any = self.document
            for part in value["$ref"].removeprefix("#/").split("/"):
                found = found[part]
            value = {**found, **{name: item for name, item in value.items() if name != "$ref"}}
        return value

    def validator(self, schema: Json) -> Draft202012Validator:
        """Of a request: open, as the document has it."""
        return Draft202012Validator({"components": self.document["components"], "allOf": [schema]})

    def problems(self, schema: Json, value: object) -> list[str]:
        """What is wrong with part of an answer, closed."""
        root = {"components": self._components, **_closed(schema)}
        return [f"{error.instance_path}: {error.message[:300]}" for error in Draft202012Validator(root).iter_errors(value)]

    def check(self, method: str, path: str, status: int, fields: Mapping[str, str], body: bytes) -> None:
        """Fails where an answer is not as documented; `fields` have lower-case names."""
        where = f"{method} {path} {status}"
        answer = self.answer(method, path, status)
        for name, header in answer["headers"].items():
            header = self.resolved(header)
            value = fields.get(name.lower())
            assert value is not None or not header.get("required"), f"{where}: no {name}"
            if value is not None:
                said: object = int(value) if header["schema"]["type"] == "integer" else value
                assert not self.problems(header["schema"], said), f"{where}: {name} is {value}"
        media_type = fields["content-type"].partition(";")[0]
        assert media_type in answer["content"], f"{where}: {media_type} is not documented"
        media = answer["content"][media_type]
        if media_type == "text/event-stream":
            events = sse_events(body.decode())
            assert events, f"{where}: an empty stream"
            for event in events:
                self.check_event(where, media["schema"], event)
            return
        value = json.loads(body) if media_type == "application/json" else body.decode()
        problems = self.problems(media["schema"], value)
        assert not problems, f"{where}: {problems} in {body[:500]!r}"
        if status >= 400 and isinstance(value, dict) and "type" in (value.get("error") or {}) and "param" in value["error"]:
            assert value["error"]["code"] in media["examples"], f"{where}: {value['error']['code']} is not documented"

    def check_event(self, where: str, schema: Json, event: Mapping[str, str]) -> None:
        event = {name: value for name, value in event.items() if name != "retry"}
        problems = self.problems(schema, event)
        assert not problems, f"{where}: {problems}"
        contents = list(self._contents(schema, event))
        assert contents or event["data"] == "[DONE]", f"{where}: nothing says what {event} holds"
        for content, text in contents:
            problems = self.problems(content, json.loads(text))
            assert not problems, f"{where}: {problems} in {text[:500]}"

    def _contents(self, schema: Json, value: Any) -> Iterator[tuple[Json, str]]:
        """Each text in the value whose content has a schema, with that."""
        schema = self.resolved(schema)
        if "contentSchema" in schema and isinstance(value, str):
            yield schema["contentSchema"], value
        for name, part in schema.get("properties", {}).items():
            if isinstance(value, dict) and name in value:
                yield from self._contents(part, value[name])
        for combiner in COMBINERS:
            for branch in schema.get(combiner, ()):
                if not self.problems(branch, value):
                    yield from self._contents(branch, value)


def subschemas(schema: Json) -> Iterator[Json]:
    """The schemas that stand in it directly."""
    for word in ("properties", "patternProperties"):
        yield from schema.get(word, {}).values()
    for word in (*COMBINERS, "prefixItems"):
        yield from schema.get(word, ())
    for word in ("items", "additionalProperties", "propertyNames", "contentSchema", "unevaluatedProperties"):
        if isinstance(schema.get(word), dict):
            yield schema[word]


def sse_events(text: str) -> list[dict[str, str]]:
    """The fields of each event; comments are passed over."""
    events = []
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            events.append(dict(line.split(": ", 1) for line in lines))
    return events


def _closed(schema: Json, *, top: bool = True) -> Json:
    """The same, without members that it does not name; `top` False: its own ones may come."""
    schema = copy.deepcopy(schema)
    _close(schema)
    if not top:
        schema.pop("unevaluatedProperties", None)
    return schema


def _close(schema: Json) -> None:
    for branch in schema.get("allOf", ()):
        if "$ref" in branch:
            branch["$ref"] += ".open"
    for part in subschemas(schema):
        _close(part)
    has_names = "properties" in schema and "additionalProperties" not in schema
    if has_names and ("object" in schema.get("type", ())):
        schema["unevaluatedProperties"] = False
