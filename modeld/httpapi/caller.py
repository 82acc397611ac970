"""Who asks, and what may they do? Caller, and the access that a route asks for."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Access(enum.Enum):
    """What a route asks of its caller."""

    OPEN = "open"  # nothing: the probes of whoever supervises the daemon
    USE = "use"  # generation, and reading
    ADMIN = "admin"  # what changes which model answers


@dataclass(frozen=True, slots=True)
class Caller:
    """`name` is for logs and metrics: it is the operator's word, never the client's. `client` is by what quotas count."""

    name: str
    client: str
    may: frozenset[Access]


def anonymous(address: str) -> Caller:
    """Who needs no key: everybody, where none are configured."""
    return Caller("anonymous", address, frozenset(Access))
