"""Which grammar makes an answer follow a JSON schema? gbnf_of(): a schema -> GBNF, or 400 naming the keyword. Pure.

Each document that the grammar allows is valid JSON and follows the schema; not each that the schema allows is made:
properties come in the order given, undeclared ones beside declared ones do not come, white space and digits are bounded,
so that a model cannot spin in them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import NoReturn
from urllib.parse import unquote

from modeld.engine.gbnf import parse_gbnf
from modeld.engine.integers import LARGEST, integers_between
from modeld.errors import InvalidRequest
from modeld.types import JsonSchema

MAX_DEPTH = 60
MAX_RULES = 3000
MAX_GRAMMAR_BYTES = 256 * 1024
MAX_LENGTH = 20_000  # of strings, where minLength and maxLength bound them
MAX_ITEMS = 1000
_FORMATS = ("date", "time", "date-time", "uuid")
_CHUNK = 50  # characters of a string that are counted as one

_ANNOTATIONS = frozenset(
    "title description default examples $schema $id $comment deprecated readOnly writeOnly strict $defs definitions".split()
)
_RANGE = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_OF_TYPE: Mapping[str, tuple[str, ...]] = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "format"),
    "number": _RANGE,
    "integer": _RANGE,
    "boolean": (),
    "null": (),
}
ALONE = ("enum", "const", "anyOf", "oneOf", "allOf", "$ref")  # each says all; only `type` may stand beside enum and const
_SUPPORTED = _ANNOTATIONS | {"type", *ALONE} | {keyword for keywords in _OF_TYPE.values() for keyword in keywords}

# Rules that a schema's own may name; only those that are reached are written. No surrogates: they are no characters.
_BASE = {
    "ws": r'(" " | "\n" " "{0,16})?',
    "char": r'[ !#-\[\]-\uD7FF\uE000-\U0010FFFF] | "\\" (["\\/bfnrt] | "u" hex4)',
    "hex4": "[0-9a-cA-Ce-fE-F] hex hex hex | [dD] [0-7] hex hex",
    "hex": "[0-9a-fA-F]",
    "chunk": f"char{{{_CHUNK}}}",
    "string": r'"\"" char* "\""',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,15})',
    "number": 'integer ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?',
    "date": r'"\"" day "\""',
    "day": '[12] [0-9]{3} "-" (("0" [13578] | "1" [02]) "-" (upto28 | "29" | "30" | "31") | '
    '("0" [469] | "11") "-" (upto28 | "29" | "30") | "02-" upto28)',
    "upto28": '"0" [1-9] | "1" [0-9] | "2" [0-8]',
    "time": r'"\"" clock "\""',
    "clock": 'hour ":" sixty ":" sixty ("." [0-9]{1,6})? ("Z" | [-+] hour ":" sixty)',
    "hour": '[01] [0-9] | "2" [0-3]',
    "sixty": "[0-5] [0-9]",
    "date-time": r'"\"" day "T" clock "\""',
    "uuid": r'"\"" lower{8} ("-" lower{4}){3} "-" lower{12} "\""',
    "lower": "[0-9a-f]",
    "boolean": '"true" | "false"',
    "null": '"null"',
    "object": r'"{" ws (member ("," ws member)*)? "}"',
    "member": r'string ":" ws value ws',
    "array": '"[" ws (value ws ("," ws value ws)*)? "]"',
    "value": "object | array | string | number | boolean | null",
}


def gbnf_of(schema: JsonSchema) -> str:
    """The grammar of the documents. Raises InvalidRequest with the keyword and where it stands."""
    root, rules = rules_of(schema, "r")
    return written({"root": root, **rules}, schema.param)


def rules_of(schema: JsonSchema, prefix: str) -> tuple[str, dict[str, str]]:
    """The name of the rule for the documents, and the rules it leads to, whose names begin with `prefix`.

    What they name besides comes with written(). Raises InvalidRequest as gbnf_of.
    """
    converter = _Converter(schema, prefix)
    return converter.rule(schema.value, "", 0), converter.rules


def written(rules: Mapping[str, str], param: str) -> str:
    """The grammar, `root` first, with the rules that all others may name. Raises InvalidRequest when it is too large."""
    # All of the base: unreached rules cost nothing but bytes, and there are few.
    text = "".join(f"{name} ::= {body}\n" for name, body in {**rules, **_BASE}.items())
    try:
        parse_gbnf(text, max_bytes=MAX_GRAMMAR_BYTES)
    except InvalidRequest as error:
        why = f"{param}: no grammar can be made of the schema: {error.message.rpartition('used: ')[2]}"
        raise InvalidRequest(why, param=param) from None
    return text


class _Converter:
    """Collects the rules of one schema. `at` is a JSON pointer into it, for messages."""

    def __init__(self, schema: JsonSchema, prefix: str) -> None:
        self._schema = schema
        self._prefix = prefix
        self.rules: dict[str, str] = {}
        self._refs: dict[int, str] = {}  # id of what a $ref leads to -> its rule: one place has many spellings (%61 is a)
        self._n_parts = 0  # subschemas, and the values of enums

    def rule(self, schema: object, at: str, depth: int) -> str:
        """The name of a rule for the subschema."""
        if depth > MAX_DEPTH:
            self._refuse(at, f"nests deeper than {MAX_DEPTH}")
        self._count(1, at)
        if schema is True:
            return "value"
        if not isinstance(schema, dict):
            self._refuse(at, "allows nothing" if schema is False else "must be an object or true")
        for keyword in schema:
            if keyword not in _SUPPORTED:
                self._refuse(f"{at}/{keyword}", "is a keyword that is not supported")
        alone = [keyword for keyword in ALONE if keyword in schema]
        if not alone:
            return self._typed(schema, at, depth)
        for keyword in schema.keys() - _ANNOTATIONS - {alone[0]}:
            if keyword != "type" or alone[0] not in ("enum", "const"):
                self._refuse(f"{at}/{keyword}", f"is not supported beside {alone[0]}")
        return self._alone(alone[0], schema, at, depth)

    def _alone(self, keyword: str, schema: Mapping[str, object], at: str, depth: int) -> str:
        value, at = schema[keyword], f"{at}/{keyword}"
        if keyword == "$ref":
            return self._reference(value, at, depth)
        if keyword == "const":
            return self._literals([value], schema, at)
        if not isinstance(value, list) or not value:
            self._refuse(at, "must be an array with at least one item")
        if keyword == "enum":
            self._count(len(value), at)
            return self._literals(value, schema, at)
        if keyword == "allOf" and len(value) != 1:
            self._refuse(at, "is supported with one item only")
        # oneOf as anyOf: what fits two of its schemas would have to be kept out, which no grammar of this kind can say.
        return self._either(self.rule(item, f"{at}/{i}", depth + 1) for i, item in enumerate(value))

    def _reference(self, ref: object, at: str, depth: int) -> str:
        target = self._target(ref, at)
        assert isinstance(ref, str)
        if id(target) not in self._refs:
            name = self._refs[id(target)] = self._new("")  # before its body, which may refer to it
            self.rules[name] = self.rule(target, ref[1:], depth + 1)
        return self._refs[id(target)]

    def _target(self, ref: object, at: str) -> object:
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            self._refuse(at, "must be a local reference like #/$defs/name")
        target: object = self._schema.value
        for part in ref.split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if not isinstance(target, dict) or key not in target:
                self._refuse(at, f"{ref[:80]!r} is not in the schema")
            target = target[key]
        return target

    def _literals(self, values: list[object], schema: Mapping[str, object], at: str) -> str:
        types = self._types(schema, at.rpartition("/")[0])
        fitting = [value for value in values if any(_is(value, name) for name in types)]
        if not fitting:
            self._refuse(at, f"has no value of type {', '.join(types)}")
        texts = (json.dumps(value, ensure_ascii=False, separators=(",", ":")) for value in fitting)
        return self._either(literal(text) for text in dict.fromkeys(texts))

    def _types(self, schema: Mapping[str, object], at: str) -> list[str]:
        """The types it names; without `type`, those that its keywords speak of, else all."""
        value = schema.get("type")
        if value is None and "type" not in schema:
            spoken = [name for name, keywords in _OF_TYPE.items() if any(keyword in schema for keyword in keywords)]
            return spoken or list(_OF_TYPE)
        names = value if isinstance(value, list) else [value]
        if not names or not all(isinstance(name, str) and name in _OF_TYPE for name in names):
            self._refuse(f"{at}/type", f"must be of {', '.join(_OF_TYPE)}")
        return list(dict.fromkeys(names))

    def _typed(self, schema: Mapping[str, object], at: str, depth: int) -> str:
        types = self._types(schema, at)
        if len(types) == len(_OF_TYPE) and not any(keyword in schema for keywords in _OF_TYPE.values() for keyword in keywords):
            return "value"
        return self._either([self._one_type(name, schema, at, depth) for name in types])

    def _one_type(self, name: str, schema: Mapping[str, object], at: str, depth: int) -> str:
        if not any(keyword in schema for keyword in _OF_TYPE[name]):
            return name  # the rule of the base
        if name == "number":
            keyword = next(keyword for keyword in _RANGE if keyword in schema)
            self._refuse(f"{at}/{keyword}", "is supported beside type integer only")
        if name == "integer":
            return self._integer(schema, at)
        if name == "object":
            return self._object(schema, at, depth)
        return self._array(schema, at, depth) if name == "array" else self._string(schema, at)

    def _integer(self, schema: Mapping[str, object], at: str) -> str:
        low, high = -LARGEST, LARGEST
        for keyword in _RANGE:
            value = schema.get(keyword, 0)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                self._refuse(f"{at}/{keyword}", "must be a number")
            if keyword not in schema:
                continue
            beyond = keyword.startswith("exclusive")
            if keyword.endswith("inimum"):
                low = max(low, math.floor(value) + 1 if beyond else math.ceil(value))
            else:
                high = min(high, math.ceil(value) - 1 if beyond else math.floor(value))
        if low > high:
            self._refuse(at, f"allows no integer of at most {len(str(LARGEST))} digits")
        return self._new(integers_between(low, high))

    def _string(self, schema: Mapping[str, object], at: str) -> str:
        if "format" in schema:
            return self._format(schema, at)
        low, high = self._bounds(schema, at, "minLength", "maxLength", MAX_LENGTH)
        q, r = divmod(low, _CHUNK)
        body = f"chunk{{{q}}} char{{{r}}}" if q else f"char{{{low}}}" if low else ""
        if high is None:
            body += " char*"
        elif high - low >= 2 * _CHUNK:
            # Counted in chunks, for char{0,2000} would be 2000 rules; what is left is 49 to 98, so that each length has a way.
            q = (high - low - _CHUNK + 1) // _CHUNK
            body += f" chunk{{0,{q}}} char{{0,{high - low - q * _CHUNK}}}"
        elif high > low:
            body += f" char{{0,{high - low}}}"
        return self._new(rf'"\"" {body} "\""')

    def _format(self, schema: Mapping[str, object], at: str) -> str:
        """One of the base's rules. 29 February and years before 1000 are not made."""
        value = schema["format"]
        if value not in _FORMATS:
            self._refuse(f"{at}/format", f"must be one of {', '.join(_FORMATS)}; others are not supported")
        for keyword in ("minLength", "maxLength"):
            if keyword in schema:
                self._refuse(f"{at}/{keyword}", "is not supported beside format")
        return str(value)

    def _array(self, schema: Mapping[str, object], at: str, depth: int) -> str:
        low, high = self._bounds(schema, at, "minItems", "maxItems", MAX_ITEMS)
        first = schema.get("prefixItems", [])
        if not isinstance(first, list):
            self._refuse(f"{at}/prefixItems", "must be an array")
        heads = [self.rule(item, f"{at}/prefixItems/{i}", depth + 1) for i, item in enumerate(first)]
        rest = schema.get("items", not first)  # beside prefixItems, further items come only when asked for
        item = None if rest is False else self.rule(rest, f"{at}/items", depth + 1)
        if item is None:
            high = len(heads) if high is None else min(high, len(heads))
        if high is not None and high < low:
            self._refuse(f"{at}/minItems", f"is {low}, but {high} items are the most")
        n_heads = len(heads) if high is None else min(high, len(heads))
        n_low, n_high = max(0, low - n_heads), None if high is None else high - n_heads
        if item is None or n_high == 0:
            tail = '""'
        elif n_heads:
            tail = self._new(f'"," ws {item} ws') + _times(n_low, n_high)
        else:
            # A rule and not a group: libllama multiplies the rules of a repeated group.
            more = self._new(f'"," ws {item} ws') + _times(max(0, n_low - 1), None if n_high is None else n_high - 1)
            tail = self._new(f"{item} ws {more}" if n_low else f"({item} ws {more})?")
        for i in reversed(range(n_heads)):
            comma = '"," ws ' if i else ""
            body = f"{comma}{heads[i]} ws {tail}"
            tail = self._new(body if i < low else f"({body})?")
        return self._new(f'"[" ws {tail} "]"')

    def _object(self, schema: Mapping[str, object], at: str, depth: int) -> str:
        properties = schema.get("properties", {})
        if not isinstance(properties, dict):
            self._refuse(f"{at}/properties", "must be an object")
        required = schema.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            self._refuse(f"{at}/required", "must be an array of strings")
        for name in required:
            if name not in properties:
                self._refuse(f"{at}/required", f"names {name[:80]!r}, which properties lacks")
        wanted = frozenset(required)
        others = schema.get("additionalProperties", "properties" not in schema)
        if not isinstance(others, (bool, dict)):
            self._refuse(f"{at}/additionalProperties", "must be a boolean or a schema")
        if isinstance(others, dict) and properties:
            self._refuse(f"{at}/additionalProperties", "is supported as a schema only where no properties are declared")
        if others is not False and not properties:
            member = f'string ":" ws {self.rule(others, f"{at}/additionalProperties", depth + 1)} ws'
            return self._new(f'"{{" ws ({member} ("," ws {member})*)? "}}"')
        # `head`: what may follow while nothing is written yet; `tail`: behind a member.
        head = tail = '""'  # not nothing: GBNF would take the next line for the end of this one
        for name, inner in reversed(properties.items()):
            key = json.dumps(name, ensure_ascii=False)
            pair = self._new(f"{literal(key + ':')} ws {self.rule(inner, f'{at}/properties/{_escaped(name)}', depth + 1)} ws")
            if name in wanted:
                head, tail = self._new(f"{pair} {tail}"), self._new(f'"," ws {pair} {tail}')
            else:
                head, tail = self._new(f"{pair} {tail} | {head}"), self._new(f'("," ws {pair})? {tail}')
        return self._new(f'"{{" ws {head} "}}"')

    def _bounds(self, schema: Mapping[str, object], at: str, low: str, high: str, most: int) -> tuple[int, int | None]:
        found: list[int | None] = []
        for keyword in (low, high):
            value = schema.get(keyword, 0)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value) or value < 0:
                self._refuse(f"{at}/{keyword}", "must be a whole number, 0 or above")
            if value > most:
                self._refuse(f"{at}/{keyword}", f"is {value}; at most {most} is supported")
            found.append(None if keyword not in schema else int(value))
        n_low, n_high = found[0] or 0, found[1]
        if n_high is not None and n_high < n_low:
            self._refuse(f"{at}/{high}", f"is less than {low}")
        return n_low, n_high

    def _either(self, names: Iterable[str]) -> str:
        alternates = list(dict.fromkeys(names))
        if len(alternates) == 1 and not alternates[0].startswith('"'):
            return alternates[0]
        return self._new(" | ".join(alternates))

    def _count(self, n_parts: int, at: str) -> None:
        self._n_parts += n_parts
        if self._n_parts > MAX_RULES:
            self._refuse(at, f"is too much: the schema has more than {MAX_RULES} parts and values of enums")

    def _new(self, body: str) -> str:
        name = f"{self._prefix}{len(self.rules)}"
        self.rules[name] = body
        return name

    def _refuse(self, at: str, why: str) -> NoReturn:
        param = self._schema.param
        raise InvalidRequest(f"{param}: {at[:200] or 'the schema'} {why}", param=param)


def _times(low: int, high: int | None) -> str:
    return f"{{{low},{'' if high is None else high}}}"


def literal(text: str) -> str:
    """The text as a GBNF literal."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\x7f", "\\x7F")
    return f'"{escaped}"'


def _escaped(name: str) -> str:
    """As a part of a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


def _is(value: object, name: str) -> bool:
    """Whether a JSON value has the type of that name."""
    if isinstance(value, bool) or value is None:
        return name == ("null" if value is None else "boolean")
    if isinstance(value, (int, float)):
        return name == "number" or (name == "integer" and value == int(value))
    return name == ("string" if isinstance(value, str) else "array" if isinstance(value, list) else "object")
