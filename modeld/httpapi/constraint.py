"""What shape must the answer have? `grammar`, `json_schema` and `response_format` -> GBNF or a JSON schema."""

from __future__ import annotations

from modeld.errors import InvalidRequest
from modeld.httpapi.fields import Fields, brief, missing, wrong_type
from modeld.types import JsonSchema


def parse_constraint(fields: Fields) -> str | JsonSchema | None:
    """The grammar or the schema that the answer follows; what it says is the engine's to check. Raises InvalidRequest."""
    given = {
        "grammar": fields.string("grammar") or None,  # an empty one asks for nothing, as in llama-server
        "json_schema": _json_schema(fields),
        "response_format": _response_format(fields),
    }
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise InvalidRequest(f"{' and '.join(named)} contradict each other; give one of them", param=named[-1])
    return given[named[0]] if named else None


def _json_schema(fields: Fields) -> JsonSchema | None:
    """llama-server's: the schema itself."""
    value = fields.get("json_schema")
    if value is None:
        return None
    if not isinstance(value, dict):
        raise wrong_type("json_schema", "an object", value)
    return JsonSchema(value, "json_schema")


def _response_format(fields: Fields) -> JsonSchema | None:
    if fields.get("response_format") is None:
        return None
    given = fields.object("response_format")
    type_ = given.required_string("type")
    if type_ == "text":
        return None
    if type_ == "json_object":
        # llama-server takes a schema here, too.
        return _schema(given) or JsonSchema({"type": "object"}, "response_format")
    if type_ != "json_schema":
        raise InvalidRequest(
            f"response_format.type is {brief(type_)}; supported are text, json_object, json_schema", param="response_format.type"
        )
    inner = given.object("json_schema")
    inner.string("name")
    inner.boolean("strict", False)  # every answer follows its schema, whatever this says
    schema = _schema(inner)
    if schema is None:
        raise missing(inner.name_of("schema"), "a JSON schema")
    return schema


def _schema(fields: Fields) -> JsonSchema | None:
    value = fields.get("schema")
    if value is None:
        return None
    if not isinstance(value, dict):
        raise wrong_type(fields.name_of("schema"), "an object", value)
    return JsonSchema(value, fields.name_of("schema"))
