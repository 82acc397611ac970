"""Readers of /events: one thread for all of them, which none of them can hold up."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fake_service import FakeService
from raw_client import RawClient

from modeld.events import RING_SIZE
from modeld.httpapi import load, sse
from modeld.httpapi.limits import Limits
from modeld.httpapi.server import HttpServer
from modeld.types import Load

Connect = Callable[[], RawClient]
DEADLINE_S = 10.0
LARGE = {"text": "x" * 400_000}


def follow(client: RawClient, *fields: str, version: str = "1.1") -> RawClient:
    client.post_only("GET", "/events", None, *fields, version=version)
    client.until(b"event: snapshot")
    client.until(b"\n\n")
    return client


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, "not within the deadline"


def n_subscribers(service: FakeService) -> int:
    with service.hub._cond:
        return len(service.hub._subscribers)


def test_readers_hold_no_thread_and_an_event_is_encoded_once(connect: Connect, service: FakeService, monkeypatch):
    readers = [follow(connect()) for _ in range(20)]
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("modeld-http-")])
    encoded: list[str] = []
    whole = sse.event_frame

    def counted(event_id: str, name: str, data: object) -> bytes:
        encoded.append(event_id)
        return whole(event_id, name, data)

    monkeypatch.setattr(sse, "event_frame", counted)
    ids = [service.publish("e", {"n": n}) for n in range(5)]
    for reader in readers:
        for event_id in ids:
            assert reader.until(b"\n\n").split(b"id: ")[1].startswith(event_id.encode())
    assert encoded == ids


def test_readers_of_both_versions_get_the_same_events(connect: Connect, service: FakeService):
    old, new = follow(connect(), version="1.0"), follow(connect())
    service.publish("e", {})
    assert new.until(b"\n\n").split(b"\r\n")[-1] == (frame := old.until(b"\n\n"))
    assert frame.startswith(b"id: ")
    service.hub.close()
    assert old.rest() == b""
    assert new.rest() == b"\r\n0\r\n\r\n"


def test_an_end_that_comes_with_the_last_event_is_seen(client: RawClient, service: FakeService, monkeypatch):
    follow(client)
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("modeld-http-")])
    read, both_are_there = os.eventfd_read, threading.Event()

    def read_later(fd: int) -> int:
        assert both_are_there.wait(DEADLINE_S)
        return read(fd)

    monkeypatch.setattr(os, "eventfd_read", read_later)
    service.publish("e", {})
    service.hub.close()
    both_are_there.set()
    assert client.rest().endswith(b"event: e\ndata: {}\n\n\r\n0\r\n\r\n")


@pytest.mark.parametrize("limits", [Limits(send_s=0.5, heartbeat_s=0.1)])
def test_a_reader_that_stalls_holds_up_nobody_and_is_cut(connect: Connect, service: FakeService):
    stalled, reader = follow(connect()), follow(connect())
    for n in range(30):  # 12 MB: more than the kernels' buffers take
        event_id = service.publish("e", {**LARGE, "n": n})
        reader.until(f"id: {event_id}\n".encode())
        reader.until(b"\n\n")
    wait_until(lambda: n_subscribers(service) == 1)
    with pytest.raises(ConnectionResetError):  # what its kernel has got is thrown away
        stalled.rest()
    last = service.publish("e", {})
    reader.until(f"id: {last}\n".encode())


def test_what_a_slow_reader_missed_comes_in_order_once_it_goes_on(client: RawClient, service: FakeService):
    follow(client)
    ids = [service.publish("e", {**LARGE, "n": n}) for n in range(40)]
    seen = [client.until(b"\n\n").split(b"id: ")[1].split(b"\n")[0].decode() for _ in ids]
    assert seen == ids


def test_a_reader_that_fell_out_of_the_ring_finds_its_stream_ended(client, server: HttpServer, service: FakeService):
    follow(client)
    for n in range(30):
        service.publish("e", {**LARGE, "n": n})
    wait_until(lambda: bool(server._followers._stalled.members()))
    last = [service.publish("e", {"n": n}) for n in range(RING_SIZE + 1)][-1]
    rest = client.rest()
    assert rest.endswith(b"\r\n0\r\n\r\n")
    assert last.encode() not in rest


def test_the_end_arrives_also_where_the_client_goes_on_sending(client: RawClient, service: FakeService):
    follow(client)
    client.send(b"x" * 100_000)
    service.hub.close()
    assert client.rest() == b"\r\n0\r\n\r\n"


@pytest.mark.parametrize("limits", [Limits(linger_s=0.1)])
def test_a_client_that_does_not_close_after_the_end_is_closed(client: RawClient, server: HttpServer, service: FakeService):
    follow(client)
    service.hub.close()
    assert client.rest() == b"\r\n0\r\n\r\n"
    wait_until(lambda: not len(server._places))


def test_a_fault_with_one_reader_is_logged_and_ends_only_its_stream(connect: Connect, service: FakeService, caplog):
    broken, reader = follow(connect()), follow(connect())
    service.subscriptions[0].take = None
    service.publish("e", {})
    reader.until(b"event: e")
    assert broken.is_closed()
    assert [record for record in caplog.records if record.levelno == logging.ERROR]


def test_the_access_log_tells_of_a_reader_when_it_has_left(connect: Connect, service: FakeService, caplog):
    caplog.set_level(logging.INFO, "modeld.http")
    reader = follow(connect(), "X-Request-Id: reader")
    lines = [record for record in caplog.records if record.name == "modeld.http"]
    assert not lines
    service.publish("e", {})
    reader.until(b"event: e")
    reader.close()
    wait_until(lambda: any(vars(record).get("request_id") == "reader" for record in caplog.records))
    (line,) = [vars(record) for record in caplog.records if vars(record).get("request_id") == "reader"]
    assert (line["status"], line["target"]) == (200, "/events")
    assert line["bytes"] > 300


def test_closing_the_server_cuts_readers_whose_events_do_not_end(server: HttpServer, client: RawClient):
    follow(client)
    server.close(0.1)
    assert client.rest() == b"\r\n"  # of the chunk that was there; no last chunk


# -- who watches the load


def figures(client: RawClient) -> dict[str, Any]:
    """The next look at the load, which has no id."""
    before = client.until(b"event: figures\n")
    assert before.endswith(b"\r\nevent: figures\n"), "it begins its chunk"
    return dict(json.loads(client.until(b"\n\n").removeprefix(b"data: ")))


def watch(client: RawClient, *fields: str) -> RawClient:
    return client.post_only("GET", "/events?figures", None, *fields)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "INTERVAL_S", 0.02)


def test_who_watches_the_load_is_told_it_at_once_and_when_it_moves(client: RawClient, service: FakeService, quick: None):
    first = figures(watch(client))
    assert first["slots"] == {"total": 4, "busy": 0}
    assert first["kv_cells"] == {"total": 4096, "used": 40}
    assert first["tokens_per_s"] == {"prompt": 0, "generation": 0}
    service.set_status(load=Load(4, 3, 2), queued_ops=1, waiting=5)
    while (moved := figures(client))["slots"]["busy"] == 0:
        pass
    assert (moved["slots"]["busy"], moved["queue"], moved["queued_ops"], moved["waiting"]) == (3, 2, 1, 5)


def test_a_rate_goes_back_to_nothing_when_nothing_is_computed(client: RawClient, service: FakeService, quick: None):
    figures(watch(client))
    engine = service.figures_now.engine
    more = replace(engine, n_rows_prompt=engine.n_rows_prompt + 500, n_rows_generation=engine.n_rows_generation + 40)
    service.figures_now = replace(service.figures_now, engine=more)
    busy = figures(client)["tokens_per_s"]
    assert busy["prompt"] > busy["generation"] > 0
    assert figures(client)["tokens_per_s"] == {"prompt": 0, "generation": 0}


def test_who_does_not_watch_it_is_told_nothing_and_nobody_looks(connect, server: HttpServer, service: FakeService, quick):
    plain, watching = follow(connect()), watch(connect())
    figures(watching)
    service.set_status(load=Load(4, 1, 0))
    while figures(watching)["slots"]["busy"] == 0:
        pass
    service.publish("e", {})
    assert b"figures" not in plain.until(b"event: e")
    watching.close()
    wait_until(lambda: n_subscribers(service) == 1)
    time.sleep(2 * load.INTERVAL_S)  # a look would be due
    looked_at = server._followers._load._looked_at
    for _ in range(5):
        service.publish("e", {})
        plain.until(b"event: e")
    assert server._followers._load._looked_at == looked_at
    assert server._followers._load.due <= time.monotonic()


def test_the_load_is_no_part_of_what_is_replayed(connect: Connect, service: FakeService, quick: None):
    first = watch(connect())
    figures(first)
    event_id = service.publish("e", {"n": 1})
    first.until(event_id.encode())
    service.publish("e", {"n": 2})
    again = watch(connect(), f"Last-Event-ID: {event_id}")
    assert b'{"n": 2}' in (seen := again.until(b"figures"))
    assert b"snapshot" not in seen


@pytest.mark.parametrize("limits", [Limits(send_s=20, heartbeat_s=0.05)])
def test_a_stalled_reader_misses_looks_and_no_event(client: RawClient, server: HttpServer, service: FakeService, quick: None):
    figures(watch(client))
    ids = [service.publish("e", {**LARGE, "n": n}) for n in range(30)]
    wait_until(lambda: bool(server._followers._stalled.members()))
    for busy in range(4):
        service.set_status(load=Load(4, busy, 0))
    for event_id in ids:
        client.until(f"id: {event_id}\n".encode())
        client.until(b"\n\n")
    wait_until(lambda: not server._followers._stalled.members())
    service.set_status(load=Load(4, 4, 0))
    while figures(client)["slots"]["busy"] != 4:
        pass


@pytest.mark.parametrize("limits", [Limits(send_s=20, heartbeat_s=20)])
def test_a_reader_that_was_stalled_gets_what_holds_though_nothing_moves_any_more(connect, server: HttpServer, service, quick):
    stalled, other = watch(connect()), watch(connect())
    figures(stalled)
    figures(other)
    ids = [service.publish("e", {**LARGE, "n": n}) for n in range(30)]
    wait_until(lambda: len(server._followers._stalled.members()) == 2)
    service.set_status(load=Load(4, 3, 0))
    for event_id in ids:
        other.until(f"id: {event_id}\n".encode())
    while figures(other)["slots"]["busy"] != 3:
        pass
    for event_id in ids:
        stalled.until(f"id: {event_id}\n".encode())
    assert figures(stalled)["slots"]["busy"] == 3


def test_who_begins_to_watch_takes_no_look_away_from_the_others(client, server: HttpServer, service: FakeService, monkeypatch):
    watch(client)
    assert figures(client)["slots"]["busy"] == 0
    service.set_status(load=Load(4, 3, 0))
    looked = threading.Event()

    def begin_to_watch() -> None:  # what the thread does where a reader comes just when a look is due
        server._followers._load.look()
        looked.set()

    monkeypatch.setattr(server._followers, "_take_over", begin_to_watch)
    server._followers.wake()
    assert looked.wait(DEADLINE_S)
    assert figures(client)["slots"]["busy"] == 3


def test_a_fault_in_looking_at_the_load_ends_no_stream(client, server: HttpServer, service: FakeService, quick, caplog):
    figures(watch(client))

    def fail() -> Any:
        raise RuntimeError("no figures today")

    server._followers._load._read = fail
    wait_until(lambda: "a fault while looking at the load" in caplog.text)
    service.publish("e", {})
    client.until(b"event: e")
