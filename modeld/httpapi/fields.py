"""What type and range has this member of a request? Readers that name the parameter in their error; null means absent."""

from __future__ import annotations

from collections.abc import Mapping

from modeld.errors import InvalidRequest
from modeld.httpapi.strictjson import kind

INT32_MAX = 2**31 - 1


class Fields:
    """The members of one JSON object; errors name a member with `path` before it ("stream_options.include_usage").

    Every reader raises InvalidRequest with `param` set.
    """

    def __init__(self, members: Mapping[str, object], path: str = "") -> None:
        self._members = members
        self._path = path

    def name_of(self, member: str) -> str:
        return f"{self._path}.{member}" if self._path else member

    def get(self, member: str) -> object:
        """The value as it is; None where it is absent or null."""
        return self._members.get(member)

    def string(self, member: str) -> str | None:
        value = self.get(member)
        if value is None or isinstance(value, str):
            return value
        raise wrong_type(self.name_of(member), "a string", value)

    def required_string(self, member: str) -> str:
        value = self.string(member)
        if value is None:
            raise missing(self.name_of(member), "a string")
        return value

    def boolean(self, member: str, default: bool) -> bool:
        value = self.get(member)
        if value is None:
            return default
        if isinstance(value, bool):
            return value
        raise wrong_type(self.name_of(member), "true or false", value)

    def integer(self, member: str, low: int, high: int) -> int | None:
        value = self.get(member)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool):
            raise wrong_type(self.name_of(member), "an integer", value)
        if not low <= value <= high:
            raise out_of_range(self.name_of(member), value, f"{low} to {high}")
        return value

    def number(self, member: str, default: float, low: float, high: float, *, above: bool = False) -> float:
        """A number in low..high; `above`: low itself is not allowed."""
        value = self.get(member)
        if value is None:
            return default
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise wrong_type(self.name_of(member), "a number", value)
        if not low <= value <= high or (above and value == low):
            raise out_of_range(self.name_of(member), value, f"{'above ' if above else ''}{low:g} to {high:g}")
        return float(value)

    def array(self, member: str) -> list[object] | None:
        value = self.get(member)
        if value is None or isinstance(value, list):
            return value
        raise wrong_type(self.name_of(member), "an array", value)

    def object(self, member: str) -> Fields:
        """The object of that name, an empty one where it is absent."""
        value = self.get(member)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise wrong_type(self.name_of(member), "an object", value)
        return Fields(value, self.name_of(member))


def token_ids(items: list[object], param: str) -> tuple[int, ...]:
    """A list of token ids; that they are in the vocabulary is the engine's to check."""
    ids: list[int] = []
    for i, item in enumerate(items):
        if not isinstance(item, int) or isinstance(item, bool) or not 0 <= item <= INT32_MAX:
            raise InvalidRequest(f"{param}[{i}] is {brief(item)}; a token id from 0 to {INT32_MAX} is expected", param=param)
        ids.append(item)
    return tuple(ids)


def missing(param: str, expected: str) -> InvalidRequest:
    return InvalidRequest(f"{param} is missing; {expected} is expected", param=param)


def wrong_type(param: str, expected: str, value: object) -> InvalidRequest:
    return InvalidRequest(f"{param} must be {expected}, not {kind(value)}", param=param)


def out_of_range(param: str, value: object, allowed: str) -> InvalidRequest:
    return InvalidRequest(f"{param} is {brief(value)}; allowed is {allowed}", param=param)


def brief(value: object) -> str:
    """The value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}... ({kind(value)})"
