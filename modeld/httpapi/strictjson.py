"""Is this body one JSON value that every reader reads alike? Stricter than json.loads; errors are for the client.

Refused beyond bad syntax: NaN and Infinity, numbers too large for a float or 64 bits, a name given twice, lone
surrogates (no UTF-8 exists for them), and nesting so deep that the C scanner would use up a small thread stack.
"""

from __future__ import annotations

import json
import math
import re
from typing import NoReturn

from modeld.errors import InvalidRequest

MAX_DEPTH = 100
_MAX_INT_DIGITS = 20  # of a 64-bit integer with its sign

_STRUCTURE = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[{]|[\]}]', re.DOTALL)
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def parse(body: bytes) -> object:
    """The value. Raises InvalidRequest."""
    _check_depth(body)
    try:
        value = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_int=_bounded_int,
            parse_float=_finite_float,
        )
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise InvalidRequest(f"the body nests deeper than {MAX_DEPTH} levels") from None
    if _SURROGATE_ESCAPE.search(body):
        _refuse_surrogates(value)
    return value


def parse_object(body: bytes) -> dict[str, object]:
    """The members of the object that the body must be. Raises InvalidRequest."""
    if not body.strip():
        raise InvalidRequest("the body is empty; a JSON object is expected")
    value = parse(body)
    if not isinstance(value, dict):
        raise InvalidRequest(f"the body is a JSON {kind(value)}; an object is expected")
    return value


def kind(value: object) -> str:
    """What JSON calls the value, for messages."""
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return "null" if value is None else names[type(value)]


def _check_depth(body: bytes) -> None:
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for match in _STRUCTURE.finditer(body):
        if match[0] in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise InvalidRequest(f"the body nests deeper than {MAX_DEPTH} levels")
        elif match[0] in b"]}":
            depth -= 1


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        param = None if _SURROGATE.search(twice) else twice[:80]  # what is no text does not go into the answer
        raise InvalidRequest(f"the body gives {twice[:80]!r} twice in one object", param=param)
    return members


def _refuse_constant(text: str) -> NoReturn:
    raise InvalidRequest(f"the body is not JSON: {text} is no JSON number")


def _bounded_int(text: str) -> int:
    if len(text) > _MAX_INT_DIGITS:
        raise InvalidRequest(f"the body has an integer of {len(text)} digits; 64 bits are the most")
    return int(text)


def _finite_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise InvalidRequest(f"the body has a number out of range: {text[:40]}")
    return value


def _refuse_surrogates(value: object) -> None:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            if _SURROGATE.search(item):
                raise InvalidRequest("the body has half of a surrogate pair, which is no character")
        elif isinstance(item, dict):
            waiting += item.keys()
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
