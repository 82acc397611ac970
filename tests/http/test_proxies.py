"""deploy/nginx.conf and deploy/haproxy.cfg do what docs/proxies.md says: TLS, frames at once, ids, hosts, kept connections.

The files are taken as they are but for addresses and the place of the certificate.
"""

from __future__ import annotations

import contextlib
import re
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_service import FakeService
from raw_client import RawClient

from modeld.httpapi import exchange
from modeld.httpapi.auth import Gate, Rules
from modeld.httpapi.browser import BrowserRules
from modeld.httpapi.head import RequestHead, parse_head
from modeld.httpapi.server import HttpServer
from modeld.types import State
from tests.fronts import (
    BACKEND,
    EXAMPLES,
    NAME,
    Front,
    find,
    haproxy_example,
    make_certificate,
    nginx_config,
    nginx_example,
)

Connect = Callable[[], RawClient]
Seen = list[tuple[str, RequestHead]]


@pytest.fixture
def gate() -> Gate:
    """As a proxy's administrator has to set it."""
    return Gate(Rules(BrowserRules(allowed_hosts=(NAME,))))


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return make_certificate(tmp_path, NAME)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """The heads that the server read, each with the thread of its connection."""
    heads: Seen = []

    def spy(*args: Any) -> RequestHead:
        head = parse_head(*args)
        heads.append((threading.current_thread().name, head))
        return head

    monkeypatch.setattr(exchange, "parse_head", spy)
    return heads


@pytest.fixture(params=["nginx", "haproxy"])
def front(request: pytest.FixtureRequest, server: HttpServer, certificate: Path, tmp_path: Path) -> Iterator[Front]:
    with EXAMPLES[request.param](tmp_path, certificate, "{}:{}".format(*server.address)) as front:
        yield front


@pytest.fixture
def connect_tls(front: Front, certificate: Path) -> Iterator[Connect]:
    context = ssl.create_default_context(cafile=str(certificate))
    with contextlib.ExitStack() as clients:

        def connect() -> RawClient:
            client = clients.enter_context(contextlib.closing(RawClient(front.address)))
            client.sock = context.wrap_socket(client.sock, server_hostname=NAME)
            return client

        yield connect


def ask(client: RawClient, method: str, target: str, body: str = "", *fields: str) -> RawClient:
    rest = [f"Content-Length: {len(body)}", "Content-Type: application/json"] if body else []
    return client.send("\r\n".join([f"{method} {target} HTTP/1.1", f"Host: {NAME}", *rest, *fields]) + "\r\n\r\n" + body)


def test_nginx_accepts_the_example(certificate: Path, tmp_path: Path):
    config = tmp_path / "nginx.conf"
    config.write_text(nginx_config(tmp_path, nginx_example(certificate, "127.0.0.1:443", BACKEND)))
    command = [find("nginx"), "-t", "-q", "-p", str(tmp_path), "-e", "stderr", "-c", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if "bind() to" not in line]
    assert (done.returncode, complaints) == (0, [])


def test_haproxy_accepts_the_example(certificate: Path, tmp_path: Path):
    config = tmp_path / "haproxy.cfg"
    config.write_text(haproxy_example(certificate, ":443", BACKEND))
    command = [find("haproxy"), "-c", "-q", "-f", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_frames_of_a_stream_arrive_while_it_runs(connect_tls: Connect, service: FakeService):
    service.script = None
    client = ask(connect_tls(), "POST", "/v1/completions", '{"prompt": "x", "stream": true}')
    generation = service.generation()
    for text in ("Hello", "again", "third"):  # each is fed when the one before has arrived at the client
        generation.feed(text)
        assert client.until(text.encode())
    generation.finish()
    assert client.until(b"data: [DONE]\n\n")


def test_events_arrive_when_they_happen(connect_tls: Connect, service: FakeService):
    client = ask(connect_tls(), "GET", "/events")
    client.until(b"event: snapshot")
    service.publish("model_unloaded", {})
    client.until(b"event: model_unloaded")


def test_host_and_a_well_formed_request_id_are_passed_on(connect_tls: Connect, seen: Seen):
    client = connect_tls()
    assert ask(client, "GET", "/v1/models", "", "X-Request-Id: mine-1").answer().fields["x-request-id"] == "mine-1"
    strange = ask(client, "GET", "/v1/models", "", "X-Request-Id: not mine").answer().fields["x-request-id"]
    assert re.fullmatch(r"[0-9a-f-]{32,36}", strange)
    heads = [head for _, head in seen if head.path == "/v1/models"]
    assert [head.host for head in heads] == [NAME, NAME]
    assert [head.field("x-request-id") for head in heads] == ["mine-1", strange]
    assert {(head.field("x-forwarded-for"), head.field("x-forwarded-proto")) for head in heads} == {("127.0.0.1", "https")}


def test_connections_to_modeld_are_kept(connect_tls: Connect, seen: Seen):
    for _ in range(5):
        assert ask(connect_tls(), "GET", "/status").answer().status == 200
    threads = [thread for thread, head in seen if head.path == "/status"]
    assert len(threads) == 5
    assert len(set(threads)) == 1


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_client_that_leaves_cancels_its_generation(connect_tls: Connect, service: FakeService, stream: str):
    service.script = ["Hello"]
    client = ask(connect_tls(), "POST", "/v1/completions", f'{{"prompt": "x", "stream": {stream}}}')
    generation = service.generation()
    if stream == "true":
        client.until(b"Hello")
    client.close()
    assert generation.cancelled.wait(10)


def test_errors_and_their_fields_are_passed_on(connect_tls: Connect):
    answer = ask(connect_tls(), "DELETE", "/status").answer()
    assert (answer.status, answer.fields["allow"], answer.code) == (405, "GET, HEAD, OPTIONS", "method_not_allowed")


@pytest.mark.parametrize("front", ["haproxy"], indirect=True)
def test_haproxy_takes_a_host_without_a_model_out_and_lets_modeld_say_why(front, connect_tls, service, seen):
    service.set_status(state=State.LOADING, current_model=None)
    front.wait_line("Server generation/one is DOWN")
    assert any("GET /readyz" in f"{head.method} {head.path}" for _, head in seen)
    answer = ask(connect_tls(), "GET", "/v1/models").answer()
    assert answer.status == 200
    service.set_status(state=State.READY, current_model="tiny:q8")
    front.wait_line("Server generation/one is UP")
