"""How much may one client take? Every bound of the HTTP surface with its default."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds are absolute: from the moment named, not from the last byte, so that a trickle of bytes buys no time."""

    connections: int = 512  # served at once; one more takes the place of one that has no whole request yet, else it gets 503
    connections_per_address: int = 0  # of these; 0: no such bound
    refusals: int = 16  # connections beyond these that are being told 503, or to go; one more is closed without a word
    head_bytes: int = 16 << 10  # request line and fields together
    head_fields: int = 100
    head_line_bytes: int = 8190  # the request line; each field
    body_bytes: int = 1 << 20
    drain_bytes: int = 64 << 10  # of an unread body that are read away to keep a connection
    head_s: float = 10.0  # first byte of a head to its end; for the first head of a connection: from accept
    body_s: float = 30.0  # end of the head to the end of the body
    idle_s: float = 15.0  # a kept connection between two requests
    send_s: float = 10.0  # one write, until the kernel has taken all of it
    linger_s: float = 1.0  # reading away what a client still sends after the last response
    generation_s: float = math.inf  # a generation, from its request's body on
    heartbeat_s: float = 15.0  # silence on an event stream before a comment goes out
    unacknowledged_s: float = 20.0  # bytes that a client's kernel does not acknowledge (TCP_USER_TIMEOUT)
