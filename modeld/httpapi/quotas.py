"""May this client have its request now? Quotas: requests and tokens a minute, requests and streams at once, for each client.

Two buckets a client: what it took comes back evenly, a full limit in a minute. Requests are taken when they are let in;
tokens when the request has ended, as many as it used: nobody is refused for an estimate, and a bucket may go into debt.
"""

from __future__ import annotations

import enum
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from modeld.clientlimits import ClientLimits, LimitPolicy
from modeld.errors import RateLimitExceeded, RequestRateExceeded, TokenRateExceeded, TooManyRequests
from modeld.httpapi.caller import Caller, counted_as
from modeld.types import Share

# Of clients that are remembered: whoever has many addresses must not have as much memory. About 4 MB.
MAX_ACCOUNTS = 10_000
_MINUTE_S = 60.0
_TINY = 1e-6  # of a request or a token; who waits as long as it was told must not come too early by a rounding


class Counts(enum.Enum):
    """As what the requests of a route count."""

    NOTHING = "nothing"  # probes, and what the control plane is asked
    REQUEST = "request"  # for requests a minute alone
    GENERATION = "generation"  # for all limits


@dataclass(slots=True)
class _Bucket:
    """What was taken and has not come back yet; more than the limit is debt."""

    taken: float = 0.0
    at: float = 0.0  # when that was so, on the clock
    limit: int = 0  # that it was looked at with

    def look(self, limit: int, now: float) -> None:
        if limit < self.limit:  # a reload has lowered it: what one might take before is no debt now, that took hours to pay
            self.taken = min(self.taken, limit + max(0.0, self.taken - self.limit))
        self.limit = limit
        self.taken = max(0.0, self.taken - (now - self.at) * limit / _MINUTE_S)
        self.at = now

    def wait_s(self, limit: int) -> float:
        """Until there is a whole one to take."""
        missing = self.taken + 1 - limit
        return missing * _MINUTE_S / limit if missing > _TINY else 0.0

    def fields(self, kind: str, limit: int) -> dict[str, str]:
        """`reset` says when all of the limit is there again."""
        return {
            f"x-ratelimit-limit-{kind}": str(limit),
            f"x-ratelimit-remaining-{kind}": str(max(0, math.floor(limit - self.taken + _TINY))),
            f"x-ratelimit-reset-{kind}": duration(self.taken * _MINUTE_S / limit),
        }


@dataclass(slots=True)
class _Account:
    """One client's."""

    requests: _Bucket = field(default_factory=_Bucket)
    tokens: _Bucket = field(default_factory=_Bucket)
    n_requests: int = 0
    n_streams: int = 0


class Quotas:
    """Of one server. Any thread."""

    def __init__(self, policy: LimitPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # Guards all below, and what is in the accounts.
        self._policy = policy
        self._accounts: OrderedDict[str, _Account] = OrderedDict()  # by client, the least recently used first

    def set_policy(self, policy: LimitPolicy) -> None:
        """For the requests from now on. What was taken stays taken, as far as that is possible under the new limits."""
        with self._lock:
            self._policy = policy

    def enter(self, caller: Caller, counts: Counts, fields: dict[str, str]) -> Ticket:
        """Let a request in, of which the head was read. Its answer is to bring `fields`, which this and the ticket fill.

        Raises RateLimitExceeded, TooManyRequests; then nothing was taken.
        """
        client = counted_as(caller.client)
        with self._lock:
            limits = self._policy.of(caller.name)
            ticket = Ticket(self, client, limits, fields)
            if counts is Counts.NOTHING or limits == ClientLimits():
                return ticket
            account, now = self._account(client), self._clock()
            waits: list[RateLimitExceeded] = []
            if limit := limits.requests_per_minute:
                ticket.requests = account.requests
                account.requests.look(limit, now)
                if wait_s := account.requests.wait_s(limit):
                    waits.append(_refusal(RequestRateExceeded, limit, "requests", account.requests, wait_s))
            if counts is Counts.GENERATION and (limit := limits.tokens_per_minute):
                ticket.tokens = account.tokens
                account.tokens.look(limit, now)
                if wait_s := account.tokens.wait_s(limit):
                    waits.append(_refusal(TokenRateExceeded, limit, "tokens", account.tokens, wait_s))
            try:
                if waits:
                    raise max(waits, key=lambda refusal: refusal.retry_after_ms)
                if counts is Counts.GENERATION:
                    if 0 < limits.max_requests <= account.n_requests:
                        raise _too_many(account.n_requests, "requests", "max_requests", limits.max_requests)
                    account.n_requests += 1
                    ticket.account = account
                if ticket.requests is not None:
                    ticket.requests.taken += 1
            finally:
                ticket.show()
            return ticket

    def _account(self, client: str) -> _Account:
        """The client's, which is then the most recently used one. _lock held."""
        account = self._accounts.pop(client, None)
        if account is None:
            self._make_room()
            account = _Account()
        self._accounts[client] = account
        return account

    def _make_room(self) -> None:
        """Forget the one that was not used for longest and has nothing open: it finds all of its limits again. _lock held.

        Those that have something open are in use, and no more than there are connections.
        """
        for _ in range(max(0, len(self._accounts) - MAX_ACCOUNTS + 1)):
            client, account = next(iter(self._accounts.items()))
            if account.n_requests or account.n_streams:
                self._accounts.move_to_end(client)
            else:
                del self._accounts[client]

    # -- for Ticket

    def _begin_stream(self, ticket: Ticket) -> None:
        limit = ticket.limits.max_streams
        with self._lock:
            account = self._account(ticket.client)
            if account.n_streams >= limit:
                raise _too_many(account.n_streams, "streams", "max_streams", limit)
            account.n_streams += 1
            ticket.streaming = account

    def _end(self, ticket: Ticket, n_tokens: int) -> None:
        with self._lock:
            now = self._clock()
            if ticket.account is not None:
                ticket.account.n_requests -= 1
                ticket.account = None
            if ticket.streaming is not None:
                ticket.streaming.n_streams -= 1
                ticket.streaming = None
            if ticket.requests is not None:
                ticket.requests.look(ticket.requests.limit, now)  # which may be another one by now
            if ticket.tokens is not None:
                ticket.tokens.look(ticket.tokens.limit, now)
                ticket.tokens.taken += n_tokens
            ticket.show()


class Ticket:
    """What one request takes, from its head to its end. The thread's that answers it.

    The four below are the Quotas': None where nothing of the kind was taken or is limited.
    """

    def __init__(self, quotas: Quotas, client: str, limits: ClientLimits, fields: dict[str, str]) -> None:
        self._quotas = quotas
        self._fields = fields
        self._ended = False
        self.client = client
        self.limits = limits
        self.account: _Account | None = None
        self.streaming: _Account | None = None
        self.requests: _Bucket | None = None
        self.tokens: _Bucket | None = None

    @property
    def share(self) -> Share:
        """Of the engine's queue."""
        return Share(self.client, self.limits.max_queued)

    def begin_stream(self) -> None:
        """The answer is going to be an event stream. Raises TooManyRequests."""
        if self.limits.max_streams:
            self._quotas._begin_stream(self)

    def end(self, n_tokens: int) -> None:
        """The request has ended, having used so many tokens. Before its client can know: its next one may come at once.
        Idempotent."""
        if not self._ended:
            self._ended = True
            self._quotas._end(self, n_tokens)

    def show(self) -> None:
        """Fill the fields of the answer. The Quotas call it, with their lock."""
        if self.requests is not None:
            self._fields.update(self.requests.fields("requests", self.limits.requests_per_minute))
        if self.tokens is not None:
            self._fields.update(self.tokens.fields("tokens", self.limits.tokens_per_minute))


def duration(seconds: float) -> str:
    """As the OpenAI API writes it: 20ms, 1s, 1.5s, 6m0s, 1h0m0s. Rounded up to milliseconds."""
    ms = math.ceil(seconds * 1000 - _TINY)
    if ms < 1000:
        return f"{ms}ms" if ms else "0s"
    minutes, ms = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{ms // 1000}.{ms % 1000:03}".rstrip("0").rstrip(".") + "s"
    return f"{hours}h{minutes}m{text}" if hours else f"{minutes}m{text}" if minutes else text


def _refusal(kind: type[RateLimitExceeded], limit: int, what: str, bucket: _Bucket, wait_s: float) -> RateLimitExceeded:
    return kind(
        f"this client has taken {math.ceil(bucket.taken - _TINY)} of the {limit} {what} that it may take a minute "
        f"(limits.{what}_per_minute); try again in {duration(wait_s)}",
        retry_after_ms=math.ceil(wait_s * 1000),
    )


def _too_many(n: int, what: str, key: str, limit: int) -> TooManyRequests:
    return TooManyRequests(
        f"{n} {what} of this client are open, and it may have {limit} at once (limits.{key}); try again when one has ended",
        retry_after_s=1,
    )
