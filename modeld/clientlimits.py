"""How much may one client take? The section `limits` of the configuration: the same for everybody, but for who is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """Of one client; 0 is no limit. What each counts is in docs/limits.md."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    max_requests: int = 0  # generations at once, waiting or running
    max_streams: int = 0  # event streams at once, of generations and of /events
    max_queued: int = 0  # places in the queue


@dataclass(frozen=True, slots=True)
class LimitPolicy:
    """`per_key` has whole limits, not differences: what the file leaves out there was taken from `each`."""

    each: ClientLimits = ClientLimits()
    per_key: Mapping[str, ClientLimits] = field(default_factory=dict)  # by the caller's name

    def of(self, name: str) -> ClientLimits:
        return self.per_key.get(name, self.each)
