"""What shape must the answer have? `json_schema` and `response_format` -> a JSON schema."""

from __future__ import annotations

from modeld.errors import InvalidRequest
from modeld.httpapi.fields import Fields, brief, missing, wrong_type
from modeld.types import JsonSchema


def parse_constraint(fields: Fields) -> JsonSchema | None:
    """The schema that the answer follows. What it says is the engine's to check. Raises InvalidRequest."""
    if fields.string("grammar"):
        # libllama follows all readings of a grammar at once, and one that doubles them with each character would hold up every
        # other request. Schemas become grammars that cannot (engine/grammar.py).
        raise InvalidRequest("grammar is not supported yet; json_schema and response_format are", param="grammar")
    schemas = [schema for schema in (_json_schema(fields), _response_format(fields)) if schema is not None]
    if len(schemas) > 1:
        raise InvalidRequest("json_schema and response_format contradict each other; give one of them", param="response_format")
    return schemas[0] if schemas else None


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
