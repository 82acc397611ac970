"""What one client may take: buckets on a clock of the test's own, open requests and streams, who counts as one, and how many."""

from __future__ import annotations

import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.clientlimits import ClientLimits, LimitPolicy
from modeld.errors import RateLimitExceeded, RequestRateExceeded, TokenRateExceeded, TooManyRequests
from modeld.httpapi import quotas as quotas_module
from modeld.httpapi.caller import Access, Caller, counted_as
from modeld.httpapi.quotas import Counts, Quotas, Ticket, duration
from modeld.types import Share


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Desk:
    """Quotas on a clock that the test moves."""

    def __init__(self, per_key: dict[str, ClientLimits] | None = None, **limits: int) -> None:
        self.clock = Clock()
        self.quotas = Quotas(LimitPolicy(ClientLimits(**limits), per_key or {}), self.clock)
        self.fields: dict[str, str] = {}  # of the last request

    def enter(self, client: str = "a", counts: Counts = Counts.GENERATION, *, name: str = "anonymous") -> Ticket:
        self.fields = {}
        return self.quotas.enter(Caller(name, client, frozenset(Access)), counts, self.fields)

    def use(self, n_tokens: int, client: str = "a") -> None:
        self.enter(client).end(n_tokens)


# -- requests a minute


def test_a_minutes_requests_may_come_at_once_and_come_back_evenly() -> None:
    desk = Desk(requests_per_minute=6)
    for _ in range(6):
        desk.use(0)
    with pytest.raises(RequestRateExceeded, match=r"has taken 6 of the 6 requests .*; try again in 10s") as refused:
        desk.enter()
    assert (refused.value.retry_after_s, refused.value.retry_after_ms) == (10, 10_000)
    desk.clock.now += 10
    desk.use(0)
    with pytest.raises(RequestRateExceeded):
        desk.enter()
    desk.clock.now += 3600
    for _ in range(6):  # no more than a full limit is saved
        desk.use(0)
    with pytest.raises(RequestRateExceeded):
        desk.enter()


@given(st.integers(1, 10_000_000))
def test_whole_seconds_are_rounded_up_and_never_zero(ms: int) -> None:
    refused = RequestRateExceeded("", retry_after_ms=ms)
    assert refused.retry_after_s is not None
    assert 0 <= refused.retry_after_s * 1000 - refused.retry_after_ms < 1000


def test_a_refused_request_takes_nothing() -> None:
    desk = Desk(requests_per_minute=1)
    desk.use(0)
    for _ in range(50):
        with pytest.raises(RequestRateExceeded):
            desk.enter()
    desk.clock.now += 60
    desk.use(0)


def test_clients_have_limits_of_their_own() -> None:
    desk = Desk(requests_per_minute=1)
    desk.use(0, "a")
    desk.use(0, "b")
    with pytest.raises(RequestRateExceeded):
        desk.enter("a")


def test_a_key_may_have_other_limits_than_everybody() -> None:
    desk = Desk({"batch": ClientLimits(requests_per_minute=2)}, requests_per_minute=1)
    for _ in range(2):
        desk.enter("key:batch", name="batch").end(0)
    with pytest.raises(RequestRateExceeded, match="of the 2 requests"):
        desk.enter("key:batch", name="batch")
    desk.enter("key:other", name="other").end(0)
    with pytest.raises(RequestRateExceeded, match="of the 1 requests"):
        desk.enter("key:other", name="other")


def test_what_counts_for_nothing_is_never_refused() -> None:
    desk = Desk(requests_per_minute=1, tokens_per_minute=1, max_requests=1)
    open_one = desk.enter()
    for _ in range(10):
        desk.enter(counts=Counts.NOTHING).end(0)
        assert desk.fields == {}
    open_one.end(50)
    desk.enter(counts=Counts.NOTHING).end(0)


# -- tokens a minute


def test_tokens_are_taken_at_the_end_and_a_debt_is_paid_off_before_the_next_request() -> None:
    desk = Desk(tokens_per_minute=600)
    first, second = desk.enter(), desk.enter()  # nobody knows yet what they will use
    first.end(500)
    third = desk.enter()
    second.end(500)
    third.end(0)
    with pytest.raises(TokenRateExceeded, match=r"has taken 1000 of the 600 tokens .*; try again in 40.1s") as refused:
        desk.enter()
    assert refused.value.retry_after_s == 41
    desk.clock.now += 40
    with pytest.raises(TokenRateExceeded):
        desk.enter()
    desk.clock.now += 0.1
    desk.enter()


def test_a_request_that_ends_twice_is_charged_once() -> None:
    desk = Desk(tokens_per_minute=600, max_requests=1)
    ticket = desk.enter()
    ticket.end(100)
    ticket.end(100)
    assert desk.fields["x-ratelimit-remaining-tokens"] == "500"
    other = desk.enter()
    with pytest.raises(TooManyRequests):
        desk.enter()
    other.end(0)


def test_tokenizing_is_not_refused_for_a_debt_of_tokens() -> None:
    desk = Desk(tokens_per_minute=1, requests_per_minute=60)
    desk.use(1000)
    desk.enter(counts=Counts.REQUEST).end(0)
    assert "x-ratelimit-limit-tokens" not in desk.fields
    assert desk.fields["x-ratelimit-remaining-requests"] == "58"


def test_of_two_empty_buckets_the_one_that_takes_longer_is_told() -> None:
    desk = Desk(tokens_per_minute=60, requests_per_minute=1)
    desk.use(300)
    with pytest.raises(TokenRateExceeded, match="in 4m1s"):
        desk.enter()
    desk = Desk(tokens_per_minute=60, requests_per_minute=1)
    desk.use(61)
    with pytest.raises(RequestRateExceeded, match="in 1m0s"):
        desk.enter()


@given(
    st.integers(1, 1_000_000_000),
    st.lists(st.tuples(st.floats(0, 200), st.integers(0, 3_000_000)), min_size=1, max_size=30),
)
def test_who_waits_as_long_as_it_was_told_is_let_in_and_nobody_gets_more_than_the_limit(
    limit: int, steps: list[tuple[float, int]]
) -> None:
    desk = Desk(tokens_per_minute=limit)
    begin, used, last = desk.clock.now, 0, 0
    for pause_s, n_tokens in steps:
        desk.clock.now += pause_s
        try:
            ticket = desk.enter()
        except RateLimitExceeded as refused:
            desk.clock.now += refused.retry_after_ms / 1000
            ticket = desk.enter()
        # What was used before the last request, which nobody could foresee, is within what came back and a full bucket.
        assert used <= (limit + limit * (desk.clock.now - begin) / 60) * (1 + 1e-9)
        used, last = used + n_tokens, n_tokens
        ticket.end(n_tokens)
    assert used - last <= limit + limit * (desk.clock.now - begin) / 60 + 1


# -- at once


def test_so_many_requests_at_once_and_one_more_when_one_has_ended() -> None:
    desk = Desk(max_requests=2)
    one, _ = desk.enter(), desk.enter()
    with pytest.raises(TooManyRequests, match=r"2 requests of this client .* may have 2 at once \(limits.max_requests\)"):
        desk.enter()
    desk.enter(counts=Counts.REQUEST)
    desk.enter("b")
    one.end(7)
    desk.enter()


def test_one_request_too_many_at_once_takes_none_of_a_minutes() -> None:
    desk = Desk(max_requests=1, requests_per_minute=2)
    one = desk.enter()
    for _ in range(5):
        with pytest.raises(TooManyRequests):
            desk.enter()
        assert desk.fields["x-ratelimit-remaining-requests"] == "1"
    one.end(0)
    desk.enter()


def test_streams_of_generations_and_of_events_are_counted_together() -> None:
    desk = Desk(max_streams=2)
    events, generation = desk.enter(counts=Counts.NOTHING), desk.enter()
    events.begin_stream()
    generation.begin_stream()
    third = desk.enter()  # one that does not stream
    with pytest.raises(TooManyRequests, match=r"2 streams .* \(limits.max_streams\)"):
        third.begin_stream()
    third.end(0)
    events.end(0)
    desk.enter(counts=Counts.NOTHING).begin_stream()
    with pytest.raises(TooManyRequests):
        desk.enter().begin_stream()


def test_a_ticket_names_the_share_of_the_queue() -> None:
    desk = Desk({"batch": ClientLimits(max_queued=9)}, max_queued=3)
    assert desk.enter("192.0.2.1").share == Share("192.0.2.1", 3)
    assert desk.enter("key:batch", name="batch").share == Share("key:batch", 9)


def test_two_threads_never_get_the_same_last_one() -> None:
    desk = Desk(requests_per_minute=500, max_requests=500)
    let_in: list[int] = []

    def knock() -> None:
        n = 0
        for _ in range(200):
            try:
                desk.enter().end(0)
                n += 1
            except RateLimitExceeded:
                pass
        let_in.append(n)

    threads = [threading.Thread(target=knock) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(let_in) == 500


# -- other limits while it runs


def test_other_limits_hold_from_the_next_request_on_and_what_was_taken_stays_taken() -> None:
    desk = Desk(requests_per_minute=10)
    for _ in range(5):
        desk.use(0)
    desk.quotas.set_policy(LimitPolicy(ClientLimits(requests_per_minute=5)))
    with pytest.raises(RequestRateExceeded):
        desk.enter()
    desk.quotas.set_policy(LimitPolicy())
    before = desk.enter()
    desk.quotas.set_policy(LimitPolicy(ClientLimits(requests_per_minute=7, max_requests=1)))
    one = desk.enter()
    before.end(0)
    with pytest.raises(TooManyRequests):
        desk.enter()
    one.end(0)
    assert desk.fields["x-ratelimit-remaining-requests"] == "1"


def test_a_limit_that_is_lowered_makes_no_debt_of_what_was_allowed_and_forgives_none() -> None:
    desk = Desk(tokens_per_minute=100_000)
    desk.use(90_000, "within")
    desk.use(100_200, "in debt")
    running = desk.enter("running")
    desk.quotas.set_policy(LimitPolicy(ClientLimits(tokens_per_minute=100)))
    waits = {}
    for client in ("within", "in debt"):
        with pytest.raises(TokenRateExceeded) as refused:
            desk.enter(client)
        waits[client] = refused.value.retry_after_ms
    assert waits == {"within": 600, "in debt": 120_600}
    desk.enter("running").end(0)
    running.end(300)
    with pytest.raises(TokenRateExceeded, match="has taken 300 of the 100 tokens"):
        desk.enter("running")


# -- who is a client, and how many are remembered


@pytest.mark.parametrize(
    ("client", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("::1", "::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("unix", "unix"),
        ("uid:1000", "uid:1000"),
        ("key:abc", "key:abc"),
        ("key:fe80::1", "key:fe80::1"),
    ],
)
def test_an_ipv6_address_counts_as_its_network(client: str, counted: str) -> None:
    assert counted_as(client) == counted


def test_a_host_with_many_addresses_of_one_network_is_one_client() -> None:
    desk = Desk(requests_per_minute=1)
    desk.use(0, "2001:db8::1")
    with pytest.raises(RequestRateExceeded):
        desk.enter("2001:db8::2")
    desk.use(0, "2001:db8:0:1::1")


def test_many_addresses_do_not_make_many_accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas_module, "MAX_ACCOUNTS", 100)
    desk = Desk(requests_per_minute=1, max_requests=1)
    open_ones = [desk.enter(f"open-{i}") for i in range(10)]
    desk.use(0, "known")
    for i in range(1000):
        desk.use(0, f"{i}")
        if i % 50 == 0:
            with pytest.raises(RateLimitExceeded):
                desk.enter("known")  # it is not forgotten as long as it comes
    assert len(desk.quotas._accounts) == 100
    for i, ticket in enumerate(open_ones):
        with pytest.raises((TooManyRequests, RateLimitExceeded)):
            desk.enter(f"open-{i}")
        ticket.end(0)
    for i in range(200):
        desk.use(0, f"more-{i}")
    desk.enter("known")  # forgotten now


def test_accounts_that_are_all_in_use_are_kept_beyond_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas_module, "MAX_ACCOUNTS", 5)
    desk = Desk(max_requests=1)
    tickets = [desk.enter(f"{i}") for i in range(20)]
    for i in range(20):
        with pytest.raises(TooManyRequests):
            desk.enter(f"{i}")
    for ticket in tickets:
        ticket.end(0)
    for i in range(20):
        desk.enter(f"new-{i}").end(0)
    assert len(desk.quotas._accounts) == 5


def test_without_limits_nothing_is_remembered_and_nothing_told() -> None:
    desk = Desk()
    for i in range(10):
        ticket = desk.enter(f"{i}")
        ticket.begin_stream()
        ticket.end(10)
    assert not desk.quotas._accounts
    assert desk.fields == {}


# -- what a client is told


def test_the_fields_tell_what_is_left_and_when_all_is_back() -> None:
    desk = Desk(requests_per_minute=60, tokens_per_minute=6000)
    ticket = desk.enter()
    told = {name.removeprefix("x-ratelimit-"): value for name, value in desk.fields.items()}
    assert told == {
        "limit-requests": "60", "remaining-requests": "59", "reset-requests": "1s",
        "limit-tokens": "6000", "remaining-tokens": "6000", "reset-tokens": "0s",
    }  # fmt: skip
    desk.clock.now += 0.5
    ticket.end(36_000)
    told = {name.removeprefix("x-ratelimit-"): value for name, value in desk.fields.items()}
    assert told == {
        "limit-requests": "60", "remaining-requests": "59", "reset-requests": "500ms",
        "limit-tokens": "6000", "remaining-tokens": "0", "reset-tokens": "6m0s",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0001, "1ms"),
        (0.02, "20ms"),
        (0.9999, "1s"),
        (1, "1s"),
        (1.5, "1.5s"),
        (59.9999, "1m0s"),
        (60, "1m0s"),
        (72.25, "1m12.25s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (90061.001, "25h1m1.001s"),
    ],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 1e7))
def test_a_duration_reads_back_rounded_up_to_a_millisecond(seconds: float) -> None:
    text, total = duration(seconds), 0.0
    for unit, factor in (("h", 3600.0), ("ms", 0.001), ("m", 60.0), ("s", 1.0)):
        if unit == "ms" and not text.endswith("ms"):
            continue
        number, mark, rest = text.partition(unit)
        if mark:
            total, text = total + float(number) * factor, rest
    assert text == ""
    assert math.isclose(total, seconds, abs_tol=0.0011)
    assert total >= seconds - 1e-6
