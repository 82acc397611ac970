"""Is a value what its type says? Types at run time, deep into dataclasses, as far as requests need them."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass


def fault(value: object, hint: object, where: str = "it") -> str | None:
    """What is not of its type, in words; None where all is. A bool is no number here, and a whole number is a float."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        faults = [fault(value, one, where) for one in arguments]
        return None if None in faults else f"{where} is {value!r}, none of {hint}"
    if origin is tuple and isinstance(value, tuple):
        wanted = (arguments[0],) * len(value) if arguments[1:] == (...,) else arguments
        if len(wanted) != len(value):
            return f"{where} has {len(value)} items, {hint} has {len(wanted)}"
        return next(filter(None, map(fault, value, wanted, (f"{where}[{i}]" for i in range(len(value))))), None)
    if origin is not None:
        hint = Mapping if issubclass(origin, Mapping) else origin
    if hint in (int, float) and isinstance(value, bool):
        return f"{where} is {value!r}, no number"
    wanted_type = (int, float) if hint is float else hint
    if not isinstance(value, wanted_type):  # type: ignore[arg-type]
        return f"{where} is {value!r}, no {hint}"
    if not is_dataclass(value) or isinstance(value, type):
        return None
    hints = typing.get_type_hints(type(value))
    names = [field.name for field in fields(value)]
    return next(filter(None, (fault(getattr(value, name), hints[name], f"{where}.{name}") for name in names)), None)
