"""Who is told what, in which order? Event, EventHub, Subscription: rising ids, a ring of recent events, bounded queues.

The switch thread publishes; it hands in, with each event, the daemon's status as that event left it, so that a snapshot
and the id it stands at are one thing, taken under one lock.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from modeld.errors import ShuttingDown, TooManyConnections
from modeld.types import Status

RING_SIZE = 1024  # events that a reconnecting client can still get
QUEUE_SIZE = 256  # events that wait for a slow subscriber before it is dropped


@dataclass(frozen=True, slots=True)
class Event:
    """`id` is `<start of the process>-<number>`; `data` is JSON-ready and never mutated."""

    id: str
    name: str
    data: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The status as the event `id` left it; the first thing a subscriber gets unless it resumes.

    `resync`: the client named an id that is no longer held, or of an earlier life.
    """

    id: str
    status: Status
    resync: bool
