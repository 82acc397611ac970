"""Does a JSON value follow a schema? As much of JSON Schema as the converter takes; written apart from it, for tests."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

_TYPES = {
    "string": lambda v: isinstance(v, str),
    "number": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
    "integer": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and v == int(v),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
}


_FORMATS = {
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
    "date-time": datetime.datetime.fromisoformat,
    "uuid": uuid.UUID,
}


def follows(value: Any, schema: Any, root: Any = None) -> str | None:
    """What is wrong, or None."""
    root = schema if root is None else root
    if isinstance(schema, bool):
        return None if schema else "nothing is allowed here"
    if "$ref" in schema:
        target = root
        for part in schema["$ref"].split("/")[1:]:
            target = target[part]
        return follows(value, target, root)
    types = schema.get("type", [])
    types = types if isinstance(types, list) else [types]
    if types and not any(_TYPES[name](value) for name in types):
        return f"{value!r} is not of {types}"
    if "enum" in schema and not any(_same(value, item) for item in schema["enum"]):
        return f"{value!r} is not in {schema['enum']}"
    if "const" in schema and not _same(value, schema["const"]):
        return f"{value!r} is not {schema['const']!r}"
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema and all(follows(value, item, root) for item in schema[keyword]):
            return f"{value!r} follows none of {schema[keyword]}"
    problems = [follows(value, item, root) for item in schema.get("allOf", [])]
    if isinstance(value, str) and not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        return f"{len(value)} characters"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        fits = (
            value >= schema.get("minimum", value)
            and value <= schema.get("maximum", value)
            and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
            and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
        )
        if not fits:
            return f"{value} is out of range"
    if isinstance(value, str) and "format" in schema:
        _FORMATS[schema["format"]](value)
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            return f"{len(value)} items"
        first = schema.get("prefixItems", [])
        problems += [follows(item, inner, root) for item, inner in zip(value, first, strict=False)]
        problems += [follows(item, schema.get("items", True), root) for item in value[len(first) :]]
    if isinstance(value, dict):
        if missing := set(schema.get("required", [])) - value.keys():
            return f"{missing} are missing"
        known = schema.get("properties", {})
        problems += [
            follows(item, known.get(name, schema.get("additionalProperties", True)), root) for name, item in value.items()
        ]
    return next((problem for problem in problems if problem), None)


def _same(left: Any, right: Any) -> bool:
    return bool(left == right) and isinstance(left, bool) == isinstance(right, bool)
