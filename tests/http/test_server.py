"""The server as a peer of raw bytes: framing, limits, deadlines, clients that leave, a clean end."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import select
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from fake_service import LOADED, FakeService
from raw_client import RawClient, data_frames

from modeld.errors import ModelSwitched, ShuttingDown
from modeld.httpapi.limits import Limits
from modeld.httpapi.server import HttpServer
from modeld.logs import JsonFormatter
from modeld.types import Failed, Finished, Usage

STREAM = {"prompt": "x", "stream": True}
POST_SWITCH = "POST /switch HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
Connect = Callable[[], RawClient]


def with_limits(**changes: float) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("limits", [Limits(**changes)], ids=[",".join(changes)])  # type: ignore[arg-type]


def serves_soon(connect: Connect) -> None:
    """Until a new connection is served. Those before may be refused, or dropped while others are being refused."""
    deadline = time.monotonic() + 10
    while True:
        client = connect()
        with contextlib.suppress(AssertionError, ConnectionResetError, BrokenPipeError):
            if client.request("GET", "/livez").status == 200:
                return
        client.close()
        assert time.monotonic() < deadline, "no connection was served"


# -- framing


def test_a_connection_is_kept_and_requests_may_be_pipelined(client: RawClient):
    client.send("GET /livez HTTP/1.1\r\nHost: h\r\n\r\n" * 3 + "\r\nGET /status HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert [client.answer().status for _ in range(4)] == [200] * 4
    assert client.is_closed()


def test_http_1_0_is_closed_unless_it_asks_to_be_kept(connect: Connect):
    answer = connect().request("GET", "/livez", version="1.0")
    assert answer.fields["connection"] == "close"
    client = connect()
    assert client.request("GET", "/livez", None, "Connection: keep-alive", version="1.0").fields["connection"] == "keep-alive"
    assert client.request("GET", "/livez", version="1.0").status == 200
    assert client.is_closed()


def test_a_stream_for_http_1_0_has_no_chunks_and_ends_with_the_connection(client: RawClient):
    answer = client.request("POST", "/v1/completions", STREAM, "Connection: keep-alive", version="1.0")
    assert "transfer-encoding" not in answer.fields
    assert answer.fields["connection"] == "close"
    assert data_frames(answer.body)[-1] == "[DONE]"


@pytest.mark.parametrize("path", ["/status", "/v1/models", "/nothing"])
def test_head_is_get_without_its_body(client: RawClient, path):
    whole = client.request("GET", path)
    head = client.request("HEAD", path)
    assert head.status == whole.status
    assert head.fields["content-type"] == whole.fields["content-type"]
    assert abs(int(head.fields["content-length"]) - len(whole.body)) < 3  # uptime
    assert client.request("GET", "/livez").status == 200


def test_head_of_the_events_leaves_no_subscriber(client: RawClient, service: FakeService):
    assert client.request("HEAD", "/events").fields["content-type"] == "text/event-stream"
    assert client.request("GET", "/livez").status == 200
    assert not service.hub._subscribers


def test_a_wrong_verb_is_405_with_allow(client: RawClient):
    answer = client.request("DELETE", "/status")
    assert (answer.status, answer.fields["allow"], answer.code) == (405, "GET, HEAD, OPTIONS", "method_not_allowed")
    answer = client.request("BREW", "/switch")
    assert (answer.status, answer.fields["allow"]) == (405, "OPTIONS, POST")
    assert client.request("GET", "/switch").status == 405
    assert client.request("get", "/status").status == 405


def test_connect_is_405_and_what_follows_it_is_no_request(client: RawClient):
    client.send("CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\nGET /livez HTTP/1.1\r\nHost: h\r\n\r\n")
    answer = client.answer()
    assert (answer.status, answer.fields["allow"], answer.fields["connection"]) == (405, "", "close")
    assert client.is_closed()


def test_chunked_requests_are_read_and_the_connection_kept(client: RawClient, service: FakeService):
    client.send(
        "POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        '6;x=1\r\n{"prom\r\n8\r\npt":"q"}\r\n0\r\nX-Trailer: 1\r\n\r\nGET /livez HTTP/1.1\r\nHost: h\r\n\r\n'
    )
    assert client.answer().status == 200
    assert client.answer().status == 200
    assert service.generation().request.prompts == ("q",)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /livez HTTP/1.1", 400),
        ("GET /livez HTTP/1.1\r\nHost: a\r\nHost: b", 400),
        ("GET /livez HTTP/2.0\r\nHost: h", 505),
        ("GET /livez\r\nHost: h", 400),
        ("GET /livez HTTP/1.1\nHost: h\n", 400),
        ("GET /livez HTTP/1.1\r\nHost: h\r\n folded", 400),
        ("GET /livez HTTP/1.1\r\nHost : h", 400),
        ("GET /livez HTTP/1.1\r\nHost: h\r\nX: \x00", 400),
        ("POST /switch HTTP/1.1\r\nHost: h\r\nContent-Length: +1", 400),
        ("POST /switch HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 1", 400),
        ("POST /switch HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\nTransfer-Encoding: chunked", 400),
        ("POST /switch HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked", 501),
        ("POST /switch HTTP/1.0\r\nTransfer-Encoding: chunked", 400),
        ("POST /switch HTTP/1.1\r\nHost: h\r\nExpect: tea", 417),
    ],
)
def test_what_follows_a_refused_head_is_never_a_request(client: RawClient, head, status):
    client.send(head + "\r\n\r\n0\r\n\r\nGET /status HTTP/1.1\r\nHost: h\r\n\r\n")
    answer = client.answer()
    assert (answer.status, answer.fields["connection"]) == (status, "close")
    assert answer.json["error"]["type"] == "invalid_request_error"
    assert answer.fields["x-request-id"]
    assert client.is_closed()


def test_a_wrong_chunk_closes_the_connection(client: RawClient):
    client.send(POST_SWITCH + "Transfer-Encoding: chunked\r\n\r\n3\r\nabcGET /status HTTP/1.1\r\nHost: h\r\n\r\n")
    assert client.answer().status == 400
    assert client.is_closed()


def test_a_chunk_line_that_ends_in_lf_alone_is_refused_at_once(client: RawClient):
    client.send(POST_SWITCH + "Transfer-Encoding: chunked\r\n\r\n3\n")  # and waits
    start = time.monotonic()
    assert client.answer().status == 400
    assert time.monotonic() - start < 5
    assert client.is_closed()


def test_answers_to_pipelined_requests_arrive_though_the_client_ends_within_the_next(connect: Connect):
    for rest in (
        "GET /liv",
        "\r\n",
        "POST /tokenize HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
    ):
        client = connect().send("GET /livez HTTP/1.1\r\nHost: h\r\n\r\n" * 3 + rest)
        client.half_close()
        assert [client.answer().status for _ in range(3)] == [200] * 3
        assert client.rest() == b""  # and no reset


def test_an_absolute_target_is_a_path_on_this_server(client: RawClient):
    assert client.request("GET", "http://anything:1/livez").status == 200


def test_a_short_unread_body_is_read_away(client: RawClient):
    body = b"GET /status HTTP/1.1\r\nHost: h\r\n\r\n" * 100
    answer = client.request("POST", "/nothing", body)
    assert answer.status == 404
    assert "connection" not in answer.fields
    assert client.request("GET", "/livez").status == 200


def test_a_long_unread_body_closes_but_the_answer_arrives(client: RawClient):
    answer = client.request("POST", "/nothing", b" " * 900_000)
    assert (answer.status, answer.fields["connection"]) == (404, "close")
    assert client.is_closed()


def test_a_body_over_the_cap_is_413_and_the_answer_arrives(connect: Connect):
    answer = connect().request("POST", "/switch", b" " * ((1 << 20) + 1))
    assert (answer.status, answer.code, answer.fields["connection"]) == (413, "payload_too_large", "close")
    client = connect().send(POST_SWITCH + "Transfer-Encoding: chunked\r\n\r\n100001\r\n")
    assert client.answer().status == 413


def test_a_post_needs_json_for_its_type(client: RawClient):
    body = '{"model_id":"other"}'
    rest = f"Content-Length: {len(body)}\r\n\r\n{body}"
    for content_type in ("", "Content-Type: text/plain\r\n", "Content-Type: application/x-www-form-urlencoded\r\n"):
        answer = client.send(f"POST /switch HTTP/1.1\r\nHost: h\r\n{content_type}{rest}").answer()
        assert (answer.status, answer.code) == (415, "unsupported_media_type")
    client.send("POST /switch HTTP/1.1\r\nHost: h\r\nContent-Type: Application/JSON; charset=utf-8\r\n" + rest)
    assert client.answer().status == 202


# -- Expect


def test_continue_is_sent_once_the_head_is_accepted(client: RawClient):
    client.send(POST_SWITCH + "Content-Length: 20\r\nExpect: 100-continue\r\n\r\n")
    assert client.answer().status == 100
    client.send('{"model_id":"other"}')
    assert client.answer().status == 202
    assert client.request("GET", "/livez").status == 200


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        ("/nothing", "Content-Type: application/json\r\nContent-Length: 20", 404),
        ("/status", "Content-Type: application/json\r\nContent-Length: 20", 405),
        ("/switch", "Content-Length: 20", 415),
        ("/switch", "Content-Type: application/json\r\nContent-Length: 99999999", 413),
    ],
)
def test_continue_is_not_sent_for_what_is_refused_anyway(client: RawClient, path, fields, status):
    client.send(f"POST {path} HTTP/1.1\r\nHost: h\r\n{fields}\r\nExpect: 100-continue\r\n\r\n")
    answer = client.answer()
    assert (answer.status, answer.fields["connection"]) == (status, "close")
    assert client.is_closed()


# -- ids, log, errors


def test_a_well_formed_request_id_is_kept_another_is_replaced(client: RawClient):
    assert client.request("GET", "/livez", None, "X-Request-Id: a.B_c-9").fields["x-request-id"] == "a.B_c-9"
    for bad in ("a b", "x" * 129, "é", "a;b", ""):
        given = client.request("GET", "/livez", None, f"X-Request-Id: {bad}").fields["x-request-id"]
        assert given
        assert given != bad


def test_a_fault_of_ours_says_nothing_but_the_request_id(client: RawClient, service: FakeService, caplog):
    service.raises = KeyError("secret")
    answer = client.request("GET", "/status", None, "X-Request-Id: req-9")
    assert (answer.status, answer.code) == (500, "internal_error")
    assert "req-9" in answer.json["error"]["message"]
    assert b"secret" not in answer.body
    [fault] = [vars(record) for record in caplog.records if record.levelno == logging.ERROR]
    assert (fault["request_id"], fault["route"]) == ("req-9", "/status")
    assert "in status" in fault["exception"]  # where it happened, and of what kind it was; not what it said
    assert fault["exception"].endswith("KeyError")
    assert not any("secret" in JsonFormatter().format(record) for record in caplog.records)
    assert client.request("GET", "/livez").status == 200  # also proves that livez asks nobody


def test_no_version_is_told(client: RawClient):
    assert client.request("GET", "/livez").fields["server"] == "modeld"


# -- deadlines


@with_limits(head_s=0.3, linger_s=0.1)
def test_a_slow_head_is_closed_at_its_deadline_however_it_trickles(client: RawClient):
    start = time.monotonic()
    trickle = "GET /livez HTTP/1.1\r\nX: " + "a" * 1000
    sent = 0
    client.sock.settimeout(0.02)
    while time.monotonic() - start < 10:
        client.sock.send(trickle[sent].encode())
        sent += 1
        try:
            client.buffer += client.sock.recv(1000)
            break
        except TimeoutError:
            continue
    assert 0.3 <= time.monotonic() - start < 2
    assert 3 < sent < 100
    client.sock.settimeout(10)
    answer = client.answer()
    assert (answer.status, answer.code) == (408, "request_timeout")


@with_limits(head_s=0.2, linger_s=0.1)
def test_a_connection_that_says_nothing_is_closed_without_a_word(client: RawClient):
    assert client.rest() == b""


@with_limits(idle_s=0.2, linger_s=0.1)
def test_a_kept_connection_that_idles_is_closed(client: RawClient):
    assert client.request("GET", "/livez").status == 200
    assert client.rest() == b""


@with_limits(idle_s=0.2, head_s=0.1, linger_s=0.1)
def test_a_blank_line_after_a_request_begins_no_request_and_gets_no_answer(client: RawClient):
    assert client.request("GET", "/livez").status == 200
    client.send("\r\n")
    assert client.rest() == b""


@with_limits(body_s=0.2, linger_s=0.1)
def test_a_slow_body_is_408(client: RawClient):
    client.send(POST_SWITCH + "Content-Length: 20\r\n\r\n{")
    assert client.answer().status == 408
    assert client.is_closed()


@with_limits(body_s=0.2, linger_s=0.1)
def test_an_unread_body_that_does_not_come_closes_the_connection(client: RawClient):
    client.send("POST /nothing HTTP/1.1\r\nHost: h\r\nContent-Length: 20\r\n\r\n")
    assert client.answer().status == 404
    assert client.is_closed()


@with_limits(head_bytes=1000)
def test_a_head_over_its_bound_is_431(client: RawClient):
    answer = client.request("GET", "/livez", None, "X: " + "a" * 1000)
    assert (answer.status, answer.code) == (431, "headers_too_large")
    assert client.is_closed()


@with_limits(send_s=0.3)
def test_a_reader_that_stalls_is_cut_and_its_generation_cancelled(client: RawClient, service: FakeService):
    service.script = None
    client.post_only("POST", "/v1/completions", STREAM)
    generation = service.generation()
    generation.feed("x" * 30_000_000)  # more than the buffers of both kernels hold
    assert generation.cancelled.wait(10)


# -- clients that leave


@pytest.mark.parametrize("leave", ["close", "reset", "half_close"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("begun", [True, False])
def test_a_client_that_leaves_cancels_its_generation_while_no_byte_is_written(client, service, leave, stream, begun):
    service.script = ["Hello"] if begun else None
    client.post_only("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "q"}], "stream": stream})
    generation = service.generation()
    if begun and stream:
        assert b"Hello" in client.until(b"Hello")
    start = time.monotonic()
    getattr(client, leave)()
    assert generation.cancelled.wait(5)
    assert time.monotonic() - start < 1


def test_a_client_that_left_behind_pipelined_bytes_is_noticed(client: RawClient, service: FakeService):
    service.script = None
    client.post_only("POST", "/v1/completions", {"prompt": "x"})
    generation = service.generation()
    client.send("GET /livez HTTP/1.1\r\nHost: h\r\n\r\n")
    client.close()
    assert generation.cancelled.wait(1)


@pytest.mark.parametrize("leave", ["close", "reset", "half_close"])
def test_a_subscriber_that_leaves_is_unsubscribed(client: RawClient, service: FakeService, leave):
    client.post_only("GET", "/events")
    client.until(b"event: snapshot")
    (subscription,) = service.subscriptions
    getattr(client, leave)()
    with service.hub._cond:
        assert service.hub._cond.wait_for(lambda: subscription not in service.hub._subscribers, 1)


# -- errors in generations


def test_an_error_before_the_first_byte_is_a_status(client: RawClient, service: FakeService):
    for stream in (True, False):
        service.script = [Failed(ModelSwitched("the model was switched", retry_after_s=2))]
        answer = client.request("POST", "/v1/completions", {"prompt": "x", "stream": stream})
        assert (answer.status, answer.code, answer.fields["retry-after"]) == (503, "model_switched", "2")
        assert answer.fields["x-model-id"] == LOADED.id
    assert client.request("GET", "/livez").status == 200


def test_an_error_in_a_stream_is_a_frame_and_no_done(client: RawClient, service: FakeService):
    service.script = ["Hello", Failed(ModelSwitched("the model was switched"))]
    answer = client.request("POST", "/v1/completions", STREAM)
    assert answer.status == 200
    frames = data_frames(answer.body)
    assert frames[0]["choices"][0]["text"] == "Hello"
    assert frames[-1]["error"]["code"] == "model_switched"
    assert b"[DONE]" not in answer.body
    assert client.request("GET", "/livez").status == 200


def test_a_fault_in_a_stream_is_an_internal_error_frame(client: RawClient, service: FakeService):
    service.script = ["Hello", Failed(KeyError("secret"))]
    answer = client.request("POST", "/v1/completions", STREAM)
    assert data_frames(answer.body)[-1]["error"]["code"] == "internal_error"
    assert b"secret" not in answer.body


@with_limits(heartbeat_s=0.05)
def test_a_silent_stream_is_kept_open_by_comments_but_only_once_it_has_begun(client: RawClient, service: FakeService):
    service.script = None
    client.post_only("POST", "/v1/completions", STREAM)
    generation = service.generation()
    client.sock.settimeout(0.3)
    with pytest.raises(TimeoutError):
        client.sock.recv(1)
    client.sock.settimeout(10)
    generation.feed("Hello")
    client.until(b": keep-alive\n\n")
    client.until(b": keep-alive\n\n")
    generation.finish()
    client.until(b"[DONE]")


# -- bounds and the end


@with_limits(connections=2)
def test_one_connection_too_many_is_503_and_freed_places_are_used_again(connect: Connect, service: FakeService):
    service.script = None
    busy = [connect().post_only("POST", "/v1/completions", {"prompt": "x"}) for _ in range(2)]
    first = service.generation(0)
    service.generation(1)
    answer = connect().answer()
    assert (answer.status, answer.code, answer.fields["retry-after"]) == (503, "too_many_connections", "1")
    first.finish()
    assert select.select([client.sock for client in busy], [], [], 10)[0]
    serves_soon(connect)  # its thread comes back for the next request just after its last byte


@with_limits(connections=3, connections_per_address=2)
def test_an_address_may_not_take_more_than_its_share(connect: Connect, service: FakeService):
    service.script = None
    for n in range(2):
        connect().post_only("POST", "/v1/completions", {"prompt": "x"})
        service.generation(n)
    refused = connect().answer()
    assert refused.code == "too_many_connections"
    assert refused.json["error"]["message"] == "all 3 connections are in use, or the 2 that one address may have"


@with_limits(connections=3)
def test_for_one_connection_more_the_oldest_unfinished_head_goes(server: HttpServer, connect: Connect, service: FakeService):
    service.script = None
    running = connect().post_only("POST", "/v1/completions", {"prompt": "x"})
    service.generation()
    slow_head = connect().send("GET /livez HTTP/1.1\r\n")
    kept = connect()
    assert kept.request("GET", "/livez").status == 200
    late = connect()
    assert late.request("GET", "/livez").status == 200
    assert slow_head.is_closed()
    assert server.turned_away() == {"let_go": 1, "refused": 0, "dropped": 0, "descriptors": 0, "threads": 0}
    assert kept.request("GET", "/livez").status == 200
    service.generation().feed("done", Finished("stop", Usage(1, 1)))
    assert running.answer().status == 200


@with_limits(connections=2)
def test_where_no_head_is_unfinished_the_oldest_unfinished_body_goes(connect: Connect):
    bodies = []
    for _ in range(2):  # one after the other: the oldest is the one whose thread came to its body first
        bodies.append(connect().send(POST_SWITCH + "Content-Length: 20\r\nExpect: 100-continue\r\n\r\n"))
        assert bodies[-1].answer().status == 100
    assert connect().request("GET", "/livez").status == 200
    assert bodies[0].is_closed()
    bodies[1].send('{"model_id":"other"}')
    assert bodies[1].answer().status == 202


@with_limits(connections=2)
def test_who_was_refused_and_sends_no_body_goes_for_others(connect: Connect, service: FakeService):
    """Else who has no key could hold all places, for body_s each: a body that nobody wants is read away."""
    service.script = None
    running = connect().post_only("POST", "/v1/completions", {"prompt": "x"})
    service.generation()
    refused = connect().send("POST /nothing HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n")
    assert refused.answer().status == 404
    serves_soon(connect)  # its thread comes to the body just after its answer
    assert refused.is_closed()
    service.generation().feed("done", Finished("stop", Usage(1, 1)))
    assert running.answer().status == 200


@with_limits(connections=2)
def test_who_asks_on_and_reads_no_answer_goes_for_others(server: HttpServer, connect: Connect, service: FakeService):
    service.script = None
    running = connect().post_only("POST", "/v1/completions", {"prompt": "x"})
    service.generation()
    with socket.socket() as greedy:
        greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        greedy.connect(server.address)
        greedy.settimeout(1)  # its answers fill all buffers, and after them its requests do
        with contextlib.suppress(TimeoutError):
            while True:
                greedy.send(b"GET /livez HTTP/1.1\r\nHost: h\r\n\r\n" * 50)
        serves_soon(connect)
        assert server.turned_away()["let_go"] == 1
    service.generation().feed("done", Finished("stop", Usage(1, 1)))
    assert running.answer().status == 200


def test_without_a_thread_a_connection_is_told_503_and_the_next_is_served(
    server: HttpServer, connect: Connect, monkeypatch, caplog
):

    def refused(*_: object, **__: object) -> threading.Thread:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("modeld.httpapi.server.start_thread", refused)
    cpu_before = time.process_time()
    for _ in range(20):
        client = connect()
        answer = client.answer()
        assert (answer.status, answer.code, answer.fields["retry-after"]) == (503, "too_many_connections", "1")
        assert client.is_closed()
    assert time.process_time() - cpu_before < 0.3
    monkeypatch.undo()
    deadline = time.monotonic() + 10  # the last one is counted just after its answer
    while server.turned_away()["threads"] != 20:
        assert time.monotonic() < deadline, server.turned_away()
    assert connect().request("GET", "/livez").status == 200
    assert len([record for record in caplog.records if "out of threads" in record.getMessage()]) == 1
    assert len(server._places) == 1


def test_out_of_descriptors_connections_are_dropped_and_accept_does_not_spin(server: HttpServer, connect: Connect):
    clients = [socket.socket() for _ in range(3)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        cpu_before = time.process_time()
        for client in clients:
            client.settimeout(10)
            client.connect(server.address)
            assert client.recv(1) == b""
            client.close()
            taken.append(os.open(os.devnull, os.O_RDONLY))  # what the client gave back
        assert time.process_time() - cpu_before < 0.5
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert connect().request("GET", "/livez").status == 200


def test_many_clients_at_once(server: HttpServer):
    def ask(_: int) -> int:
        client = RawClient(server.address)
        try:
            return sum(client.request("POST", "/v1/completions", STREAM).status for _ in range(5))
        finally:
            client.close()

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(64))) == [1000] * 64


def test_close_ends_idle_connections_at_once(server: HttpServer, connect: Connect):
    client = connect()
    client.request("GET", "/livez")
    silent = connect()
    refused = connect()  # what is left of its body is wanted for the next request alone
    refused.send("POST /nothing HTTP/1.1\r\nHost: h\r\nContent-Length: 20\r\n\r\n")
    assert refused.answer().status == 404
    start = time.monotonic()
    server.close(10)
    assert time.monotonic() - start < 3
    assert client.is_closed()
    assert refused.is_closed()
    assert silent.is_closed()
    with pytest.raises(OSError):  # noqa: PT011  refused or reset, as the kernel likes
        connect()


def test_close_lets_streams_end_with_their_error_frame(server, service, client, connect):
    service.script = ["Hello"]
    client.post_only("POST", "/v1/completions", STREAM)
    client.until(b"Hello")
    events = connect()
    events.post_only("GET", "/events")
    events.until(b"event: snapshot")
    closer = threading.Thread(target=server.close, args=(10.0,))
    closer.start()
    service.hub.close()
    service.generation().fail(ShuttingDown("the daemon is stopping"))
    rest = client.rest()
    closer.join(10)
    assert not closer.is_alive()
    assert b'"code": "shutting_down"' in rest
    assert rest.endswith(b"0\r\n\r\n")
    assert b"[DONE]" not in rest
    assert events.rest().endswith(b"0\r\n\r\n")


def test_close_cuts_what_does_not_end(server: HttpServer, service: FakeService, client: RawClient):
    service.script = ["Hello"]
    client.post_only("POST", "/v1/completions", STREAM)
    client.until(b"Hello")
    server.close(0.1)
    assert service.generation().cancelled.is_set()
    server.close(0.1)  # once more does nothing


def test_a_running_answer_is_finished_while_closing(server: HttpServer, service: FakeService, client: RawClient):
    service.script = None
    client.post_only("POST", "/v1/completions", {"prompt": "x"})
    generation = service.generation()
    closer = threading.Thread(target=server.close, args=(10.0,))
    closer.start()
    generation.feed("done", Finished("stop", Usage(1, 1)))
    answer = client.answer()
    closer.join(10)
    assert answer.json["choices"][0]["text"] == "done"


def test_a_server_that_was_never_started_closes(service: FakeService):
    HttpServer(service, "127.0.0.1", 0).close(1)
