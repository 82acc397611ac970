"""What comes on a stream of server-sent events, and how is it taken up again when it breaks? read(), follow()."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

from modeld import exits
from modeld.cli import failures
from modeld.cli.connection import IDLE_S, Client, Stream
from modeld.cli.failures import Failure
from modeld.cli.record import Record, shown

MAX_LINE = 1 << 20
MAX_ID = 128
FIRST_DELAY_S = 1.0  # what the daemon's own `retry:` says
MAX_DELAY_S = 10.0
WAITED_OUT = (exits.UNREACHABLE, exits.NOT_NOW, exits.CUT)  # of a failure behind which the daemon may be there again


@dataclass(frozen=True, slots=True)
class Event:
    """`data` is the text of its data lines. A comment has neither name nor data, and is told so that a reader sees life."""

    id: str = ""
    name: str = ""
    data: str = ""

    @property
    def record(self) -> Record:
        """The data as the JSON object that it should be; an empty record else."""
        try:
            return Record(json.loads(self.data))
        except (ValueError, RecursionError):
            return Record(None)


class Dropped(Exception):
    """The stream broke, or said nothing for too long. An end that the server made is none: read() just ends."""


def read(stream: Stream, timeout_s: Callable[[], float | None]) -> Iterator[Event]:
    """Its events, to the end that the server makes. `timeout_s` is asked before each line. Raises Dropped.

    As the standard has it, an event that is not finished when the stream ends is none.
    """
    event = Event()
    lines: list[str] = []
    size = 0
    while True:
        try:
            raw = stream.readline(MAX_LINE, timeout_s())
        except TimeoutError:
            raise Dropped("nothing came for too long") from None
        except (OSError, http.client.HTTPException) as error:
            raise Dropped(shown(str(error) or type(error).__name__, 200)) from None
        if not raw:
            return
        size += len(raw)
        if size > MAX_LINE or len(raw) == MAX_LINE:
            raise Dropped(f"an event has more than {MAX_LINE} bytes")
        if not raw.endswith(b"\n"):
            raise Dropped("the stream ended within a line")
        line = raw.decode(errors="replace").rstrip("\r\n")
        if not line:
            if lines:
                yield Event(event.id, event.name, "\n".join(lines))
            event, lines, size = Event(), [], 0
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "":
            size = size if lines else 0  # a comment within an event does not make it smaller
            yield Event()
        elif name == "data":
            lines.append(value)
        elif name == "event":
            event = Event(event.id, value, "")
        elif name == "id":
            event = Event(value if len(value) <= MAX_ID and value.isprintable() and value.isascii() else "", event.name, "")


@dataclass(slots=True)
class Patience:
    """How long a follower waits. `deadline`: a time of the monotonic clock after which it stops; None: never."""

    deadline: float | None = None
    give_up_s: float | None = None  # of trying to connect again; None: for ever
    on_lost: Callable[[str, float], None] = field(
        default=lambda _reason, _delay_s: None
    )  # the stream broke; the delay until the next try

    def left(self) -> float | None:
        """Seconds to the deadline, not below 0."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def over(self) -> bool:
        return self.left() == 0.0


def follow(client: Client, last_event_id: str, patience: Patience) -> Generator[Event]:
    """Events of /events without comments, across breaks: each reconnect goes on behind the last event that came.

    Ends when the deadline is over. Raises Failure where the first connection fails, where the daemon says no for good, and where
    nothing comes any more within give_up_s: it cannot be reached, or what answers (a proxy) ends each stream at once.
    """
    delay_s, lost_at, came = FIRST_DELAY_S, 0.0, False
    while not patience.over():
        try:
            fields = {"Last-Event-ID": last_event_id} if last_event_id else None
            limit_s = shorter(client.timeout_s, patience.left())
            with client.open("GET", "/events", fields=fields, timeout_s=limit_s) as stream:
                for event in read(stream, lambda: shorter(IDLE_S, patience.left())):
                    came, lost_at, delay_s = True, 0.0, FIRST_DELAY_S
                    if event.name:
                        last_event_id = event.id or last_event_id
                        yield event
            failure = failures.lost("the daemon has ended the stream of events")
        except Dropped as dropped:
            failure = failures.lost(f"the stream of events broke: {dropped}")
        except Failure as no:
            if not came or no.status not in WAITED_OUT:
                raise
            failure = no
        if patience.over():
            return
        if lost_at and patience.give_up_s is not None and time.monotonic() - lost_at > patience.give_up_s:
            raise failure
        lost_at = lost_at or time.monotonic()
        pause_s = shorter(delay_s, patience.left())
        patience.on_lost(failure.message, pause_s)
        time.sleep(pause_s)
        delay_s = min(delay_s * 2, MAX_DELAY_S)


def shorter(seconds: float, other: float | None) -> float:
    return seconds if other is None else max(0.001, min(seconds, other))
