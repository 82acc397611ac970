"""The server's end: what is answered until then, and that no connection is reset before its client has the last byte."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable

import pytest
from fake_service import LOADED, FakeService
from raw_client import DEADLINE_S, RawClient

from modeld.errors import ShuttingDown
from modeld.httpapi.server import HttpServer
from modeld.types import Failed

Connect = Callable[[], RawClient]
STREAM = {"prompt": "x", "stream": True}


def wait_for_fin(client: RawClient) -> None:
    """Until the server has ended its side, with nothing read."""
    poll = select.poll()
    poll.register(client.sock, select.POLLRDHUP)
    assert poll.poll(DEADLINE_S * 1000), "the server does not end its side"


class Closing:
    """Somebody closes the server."""

    def __init__(self, server: HttpServer, deadline_s: float = DEADLINE_S) -> None:
        self._thread = threading.Thread(target=lambda: server.close(deadline_s))
        self._thread.start()

    def ended(self) -> None:
        self._thread.join(2 * DEADLINE_S)
        assert not self._thread.is_alive()


@pytest.mark.parametrize("path", ["/readyz", "/healthz"])
def test_the_probes_of_a_daemon_that_stops(client: RawClient, service: FakeService, path):
    service.set_status(stopping=True)
    answer = client.request("GET", path)
    assert (answer.status, answer.fields["retry-after"]) == (503, "5")
    assert answer.json == {"state": "ready", "current_model": LOADED.id, "stopping": True}
    health = client.request("GET", "/health")
    assert (health.status, health.json["error"]["message"]) == (503, "The server is stopping")
    assert client.request("GET", "/status").json["stopping"] is True
    assert client.request("GET", "/livez").status == 200


def test_once_a_stop_is_begun_everything_is_answered_and_each_connection_ends_with_that(
    server: HttpServer, connect: Connect, service: FakeService
):
    kept = connect()
    assert "connection" not in kept.request("GET", "/livez").fields
    server.begin_stop()
    service.script = [Failed(ShuttingDown("the daemon is stopping"))]
    for client in (kept, connect()):
        answer = client.request("GET", "/livez")
        assert (answer.status, answer.fields["connection"]) == (200, "close")
        assert client.is_closed()
    client = connect()
    answer = client.request("POST", "/v1/completions", {"prompt": "x"})
    assert (answer.status, answer.code) == (503, "shutting_down")
    assert (answer.fields["connection"], answer.fields["retry-after"]) == ("close", "5")
    assert client.is_closed()


def test_a_kept_connection_ends_without_a_reset_whatever_its_client_sends(server: HttpServer, client: RawClient):
    """The answer lies unread in the client's kernel, which throws it away at a reset."""
    client.post_only("GET", "/status")
    select.select([client.sock], [], [], DEADLINE_S)
    closing = Closing(server)
    wait_for_fin(client)
    for _ in range(3):
        client.post_only("GET", "/status")
    assert client.answer().status == 200
    assert client.rest() == b""
    client.close()
    closing.ended()


def test_half_a_head_is_not_waited_for_and_not_reset(server: HttpServer, client: RawClient):
    client.request("GET", "/status")
    client.send("GET /status HTTP/1.1\r\nHo")
    closing = Closing(server)
    assert client.rest() == b""
    client.close()
    closing.ended()


def test_a_stream_that_ends_in_time_arrives_whole_at_a_client_that_goes_on_sending(
    server: HttpServer, client: RawClient, service: FakeService
):
    service.script = ["Hello"]
    client.post_only("POST", "/v1/completions", STREAM)
    client.send("GET /livez HTTP/1.1\r\nHost: h\r\n\r\n" * 100)  # pipelined, and not answered any more
    generation = service.generation()
    closing = Closing(server)
    generation.feed("x" * 100_000)
    generation.finish()
    wait_for_fin(client)
    client.send("more")
    closing.ended()
    answer = client.answer()
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert len(answer.body) > 100_000
    assert client.rest() == b""
