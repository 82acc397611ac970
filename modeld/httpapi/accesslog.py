"""What does the log say of a request that has ended? The fields of its one line, none of which a client could fill. Pure.

A secret may stand anywhere in a request: in a field of the head, in a body, by mistake in a query, a path or a method. So the
line says in this server's own words what the request came to: the route of the table, not what was asked for; a path as it was
sent only where it named something that is here (an op, a model); of a query nothing. The request id alone is the client's.
"""

from __future__ import annotations

from modeld.httpapi.record import Record

_METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS", "TRACE", "CONNECT"})
_LONGEST_TARGET = 512


def fields(record: Record) -> dict[str, object]:
    """What is absent was not known, or does not apply."""
    line: dict[str, object] = {
        "request_id": record.request_id,
        "caller": record.caller,
        "method": method(record),
        "target": _target(record),
        "route": record.route,
        "status": record.status,
        "ms": _ms(record.seconds),
        "bytes": record.n_bytes,
        "code": record.code,
        "model_id": record.model_id,
    }
    if record.model_id is not None:
        line |= {
            "stream": record.stream,
            "prompt_tokens": record.prompt_tokens,
            "cached_tokens": record.cached_tokens,
            "completion_tokens": record.completion_tokens,
            "ttft_ms": _since(record, record.first_text_at),
            "last_token_ms": _since(record, record.last_text_at),
            "end": record.end,
        }
    return {name: value for name, value in line.items() if value is not None}


def method(record: Record) -> str:
    """One of a bounded set."""
    return record.method if record.method in _METHODS else "other"


def _target(record: Record) -> str | None:
    """The path: with its parameters where they named something, else the route's."""
    path = record.target.partition("?")[0]
    looked_up = record.route is not None and record.method != "OPTIONS"  # its answer is the same whatever the path names
    named_something = looked_up and record.status < 400 and path.startswith("/")
    return path[:_LONGEST_TARGET] if named_something else record.route


def _since(record: Record, at: float | None) -> float | None:
    return None if at is None else _ms(at - record.began)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
