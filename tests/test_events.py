"""Events: ids, snapshots, replay, slow readers, ends."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.errors import ShuttingDown, TooManyConnections
from modeld.events import RING_SIZE, EventHub, Snapshot, SubscriptionEnded
from modeld.types import Load, State, Status

DEADLINE_S = 20.0
STATUS = Status(State.LOADING, None, None, None, None, 0, Load(0, 0, 0), 0, "1", 0.0)


def status(generation: int) -> Status:
    return replace(STATUS, generation=generation)


def publish(hub: EventHub, n: int, first: int = 1) -> list[str]:
    return [hub.publish("e", {"n": i}, status(i)).id for i in range(first, first + n)]


def number(event_id: str) -> int:
    return int(event_id.rpartition("-")[2])


def test_ids_rise_by_one_and_carry_the_start_of_the_process() -> None:
    hub, other = EventHub(STATUS), EventHub(STATUS)
    ids = publish(hub, 12)
    assert [number(event_id) for event_id in ids] == list(range(1, 13))
    assert len({event_id.partition("-")[0] for event_id in ids}) == 1
    assert publish(other, 1)[0].partition("-")[0] != ids[0].partition("-")[0]


def test_a_snapshot_before_the_first_event_has_number_0_and_can_be_resumed_from() -> None:
    hub = EventHub(STATUS)
    first = hub.subscribe(None, STATUS).first
    assert first == Snapshot(first.id if first else "", STATUS, resync=False)
    assert number(first.id) == 0
    ids = publish(hub, 2)
    resumed = hub.subscribe(first.id, STATUS)
    assert resumed.first is None
    assert [event.id for event in resumed.take(0)] == ids


def test_a_snapshot_is_what_the_latest_event_left_with_what_moves_without_events_from_now() -> None:
    hub = EventHub(STATUS)
    publish(hub, 3)
    now = replace(status(99), queued_ops=5, load=Load(4, 3, 2), uptime_s=7.5, state=State.READY)
    first = hub.subscribe(None, now).first
    assert first is not None
    assert number(first.id) == 3
    assert first.status == replace(status(3), queued_ops=5, load=Load(4, 3, 2), uptime_s=7.5)


def test_events_come_in_order_and_all_that_is_pending_at_once() -> None:
    hub = EventHub(STATUS)
    subscription = hub.subscribe(None, STATUS)
    assert subscription.take(0) == ()
    publish(hub, 3)
    assert [event.data["n"] for event in subscription.take(None)] == [1, 2, 3]
    publish(hub, 1, first=4)
    assert [event.data["n"] for event in subscription.take(None)] == [4]
    assert subscription.take(0.001) == ()


def test_replay_starts_with_what_was_missed() -> None:
    hub = EventHub(STATUS)
    ids = publish(hub, 10)
    subscription = hub.subscribe(ids[6], STATUS)
    assert subscription.first is None
    assert [event.id for event in subscription.take(0)] == ids[7:]
    nothing_missed = hub.subscribe(ids[-1], STATUS)
    assert nothing_missed.first is None
    assert nothing_missed.take(0) == ()


def test_replay_reaches_as_far_back_as_the_ring() -> None:
    hub = EventHub(STATUS)
    ids = publish(hub, RING_SIZE + 5)
    oldest_known = hub.subscribe(ids[4], STATUS)  # the ring holds the event after it
    assert oldest_known.first is None
    assert len(oldest_known.take(0)) == RING_SIZE
    gone = hub.subscribe(ids[3], STATUS)
    assert gone.first is not None
    assert gone.first.resync
    assert gone.first.id == ids[-1]
    assert gone.take(0) == ()


@pytest.mark.parametrize(
    "make",
    [
        lambda start: f"{start}-11",  # has not happened
        lambda start: f"{start}-010",
        lambda start: f"{start}--1",
        lambda start: f"{start}-+1",
        lambda start: f"{start}-1 ",
        lambda start: f"{start}-\u0661",  # a digit, and not an ASCII one
        lambda start: f"{start}-" + "9" * 5000,
        lambda start: f"{start}-",
        lambda start: start,
        lambda start: f"{start}x-3",  # another life
        lambda start: "-3",
        lambda start: "7",
    ],
)
def test_an_id_that_is_not_held_brings_a_resync(make: object) -> None:
    hub = EventHub(STATUS)
    start = publish(hub, 10)[0].partition("-")[0]
    assert callable(make)
    first = hub.subscribe(make(start), STATUS).first
    assert first is not None
    assert first.resync


@given(st.text(max_size=40))
def test_any_text_as_an_id_brings_a_resync_or_nothing(event_id: str) -> None:
    hub = EventHub(STATUS)
    publish(hub, 2)
    first = hub.subscribe(event_id, STATUS).first
    assert first is not None
    assert first.resync == bool(event_id)


def test_a_reader_that_falls_behind_the_ring_is_dropped_and_told_so() -> None:
    hub = EventHub(STATUS)
    slow, slower = hub.subscribe(None, STATUS), hub.subscribe(None, STATUS)
    publish(hub, RING_SIZE)
    assert len(slow.take(0)) == RING_SIZE
    publish(hub, 1)
    assert len(slow.take(0)) == 1
    with pytest.raises(SubscriptionEnded, match="1 events were lost"):
        slower.take(0)
    with pytest.raises(SubscriptionEnded):
        slower.take(0)


def test_close_of_the_hub_ends_readers_after_what_is_pending() -> None:
    hub = EventHub(STATUS)
    subscription = hub.subscribe(None, STATUS)
    publish(hub, 2)
    hub.close()
    hub.close()
    assert len(subscription.take(0)) == 2
    with pytest.raises(SubscriptionEnded):
        subscription.take(None)
    with pytest.raises(ShuttingDown):
        hub.subscribe(None, STATUS)


def test_close_of_a_subscription_wakes_its_reader() -> None:
    hub = EventHub(STATUS)
    subscription = hub.subscribe(None, STATUS)
    with ThreadPoolExecutor(1) as pool:
        taking = pool.submit(subscription.take, DEADLINE_S)
        subscription.close()
        subscription.close()
        with pytest.raises(SubscriptionEnded):
            taking.result(DEADLINE_S)


def test_the_number_of_subscribers_is_bounded() -> None:
    hub = EventHub(STATUS, max_subscribers=2)
    one = hub.subscribe(None, STATUS)
    hub.subscribe(None, STATUS)
    with pytest.raises(TooManyConnections) as refused:
        hub.subscribe(None, STATUS)
    assert refused.value.retry_after_s
    one.close()
    hub.subscribe(None, STATUS)


def test_snapshot_and_id_agree_under_a_publisher_that_never_rests() -> None:
    hub = EventHub(STATUS)
    stop = threading.Event()

    def publisher() -> int:
        n = 0
        while not stop.is_set():
            n += 1
            hub.publish("e", {"n": n}, status(n))
        return n

    def reader() -> None:
        for _ in range(200):
            subscription = hub.subscribe(None, STATUS)
            assert subscription.first is not None
            at = number(subscription.first.id)
            assert subscription.first.status.generation == at
            try:
                taken = subscription.take(DEADLINE_S)
            except SubscriptionEnded:
                continue  # outrun by the whole ring
            assert [number(event.id) for event in taken] == list(range(at + 1, at + 1 + len(taken)))
            assert [event.data["n"] for event in taken] == [number(event.id) for event in taken]
            subscription.close()

    with ThreadPoolExecutor(4) as pool:
        publishing = pool.submit(publisher)
        readers = [pool.submit(reader) for _ in range(3)]
        try:
            for reading in readers:
                reading.result(DEADLINE_S)
        finally:
            stop.set()
        assert publishing.result(DEADLINE_S) > 0


def test_whoever_reads_many_subscriptions_is_woken_once_for_each_event_and_at_the_end() -> None:
    hub = EventHub(STATUS)
    woken: list[int] = []

    def wake() -> None:
        woken.append(hub._last)

    for _ in range(3):
        hub.subscribe(None, STATUS).on_event(wake)
    publish(hub, 2)
    assert woken == [1, 2]
    hub.close()
    assert woken == [1, 2, 2]
