"""A proxy and our server agree on every request: what the one forwarded is what the other took, in number and in order.

Each vector goes through nginx and haproxy, strict as they come and as lenient as they get, to one server over few kept
connections. Afterwards another client asks something innocent over the same connections and must get its own answer. The
proxy's log says what it forwarded, the server's what it took for a request: the two lists must be the same.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from raw_client import RawClient

from modeld.httpapi.limits import Limits
from modeld.httpapi.record import Record
from modeld.httpapi.server import HttpServer
from tests.fronts import Front, haproxy, nginx
from tests.http import smuggling_h2
from tests.http.smuggling import VECTORS

# Behind every vector, on the same connection: whoever keeps that one answers this and closes.
END = "GET /livez?end=000 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


@pytest.fixture
def limits() -> Limits:
    return Limits(head_s=1.0, body_s=1.0, idle_s=60.0)  # an idle end would race with what the proxy sends next


def nginx_front(more: str, protocol: str = "") -> Callable[[Path, str], Front]:
    def http(address: str, backend: str) -> str:
        return f"""
  log_format forwarded 'FORWARDED $upstream_addr|$request';
  access_log /dev/stdout forwarded;
  upstream backend {{ server {backend}; keepalive 4; }}
  server {{
    listen {address} {protocol};
    lingering_close off;
    client_header_timeout 5s; client_body_timeout 5s;
    {more}
    location / {{
      proxy_pass http://backend;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_next_upstream off;
      proxy_ignore_client_abort on;
      proxy_read_timeout 5s;
    }}
  }}"""

    return lambda folder, backend: nginx(folder, lambda address: http(address, backend))


def haproxy_front(more: str, protocol: str = "") -> Callable[[Path, str], Front]:
    def config(bind: str, backend: str) -> str:
        return f"""
global
  log stdout format raw local0
defaults
  mode http
  log global
  log-format "FORWARDED %s|%HM %HU"
  timeout client 5s
  timeout connect 5s
  timeout server 5s
  retries 0
  http-reuse always
listen front
  bind {bind} {protocol}
  {more}
  server backend {backend}
"""

    return lambda folder, backend: haproxy(folder, lambda bind: config(bind, backend))


FRONTS = {
    "nginx": nginx_front(""),
    "nginx, unbuffered and lenient": nginx_front(
        "proxy_request_buffering off; ignore_invalid_headers off; underscores_in_headers on; merge_slashes off;"
    ),
    "haproxy": haproxy_front(""),
    "haproxy, lenient": haproxy_front("option accept-invalid-http-request\n  option http-server-close"),
    "haproxy, lenient and pooled": haproxy_front("option accept-invalid-http-request"),
}
FRONTS_H2 = {
    "nginx": nginx_front("", "http2"),
    "nginx, unbuffered": nginx_front(
        "proxy_request_buffering off; ignore_invalid_headers off; underscores_in_headers on;", "http2"
    ),
    "haproxy": haproxy_front("", "proto h2"),
    "haproxy, lenient": haproxy_front("option accept-invalid-http-request", "proto h2"),
}


def send_vector(address: tuple[str, int], raw: bytes) -> None:
    """Until the proxy ends the connection. Where it waits for more, it is told that there is none."""
    with socket.create_connection(address, timeout=10) as sock, contextlib.suppress(ConnectionError):
        sock.sendall(raw)
        sock.settimeout(0.1)
        with contextlib.suppress(TimeoutError):
            while sock.recv(65536):
                pass
            return
        sock.settimeout(10)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass


@pytest.mark.parametrize("name", FRONTS)
def test_a_proxy_and_the_server_agree_on_every_request(name: str, server: HttpServer, tmp_path: Path, records: list[Record]):
    with FRONTS[name](tmp_path, "{}:{}".format(*server.address)) as front:
        for number, vector in enumerate(VECTORS):
            send_vector(front.address, vector.numbered(number) + END.replace("=000", f"={number:03}").encode())
            mine = f"innocent-{number:03}"
            with contextlib.closing(RawClient(front.address)) as client:
                answer = client.request("GET", f"/livez?innocent={number:03}", None, f"X-Request-Id: {mine}", "Connection: close")
            assert (answer.status, answer.fields["x-request-id"]) == (200, mine), f"{vector.name}: another's answer"
        front.wait_line(f"innocent={len(VECTORS) - 1:03}")
    server.close(5.0)
    compare(name, [vector.name for vector in VECTORS], front, records)


@pytest.mark.parametrize("name", FRONTS_H2)
def test_a_proxy_that_takes_http_2_and_the_server_agree_on_every_request(
    name: str, server: HttpServer, tmp_path: Path, records: list[Record]
):
    with FRONTS_H2[name](tmp_path, "{}:{}".format(*server.address)) as front:
        for number, vector in enumerate(smuggling_h2.VECTORS):
            smuggling_h2.exchange(front.address, vector.numbered(number))
            answer = smuggling_h2.exchange(front.address, smuggling_h2.innocent(number))
            assert f"there is no /none-{number:03} here".encode() in answer, f"{vector.name}: another's answer"
        front.wait_line(f"none-{number:03}")
    server.close(5.0)
    compare(f"{name}, HTTP/2", [vector.name for vector in smuggling_h2.VECTORS], front, records)


def compare(title: str, names: list[str], front: Front, records: list[Record]) -> None:
    """What the proxy forwarded, and what the server took for requests; there is an innocent one for each vector, too."""
    forwarded = [line.partition("|")[2] for line in front.lines if re.match(r"FORWARDED (?!-|<NOSRV>)", line)]
    taken = [record.target for record in records]
    desyncs = [name for number, name in enumerate(names) if not agree(number, forwarded, taken)]
    n_through = sum(bool(marks(number, forwarded)) for number in range(len(names)))
    n_requests = len(forwarded) - len(names)
    print(f"{title}: {len(names)} vectors, {n_through} of them forwarded as {n_requests} requests, {len(desyncs)} desyncs")
    assert not desyncs
    # What the server refused before it knew the target has no mark: it is of what is missing.
    assert len(taken) <= len(forwarded)
    assert n_through > len(names) // 10, "hardly anything reached the server"


def marks(number: int, targets: list[str]) -> list[str]:
    """What a vector's requests are; the innocent one after it is no part of it."""
    mark = re.compile(rf"(carrier|smuggled|second|end)={number:03}")
    return [match[1] for target in targets if (match := mark.search(target))]


def agree(number: int, forwarded: list[str], taken: list[str]) -> bool:
    """Whether the server took nothing that was not forwarded. Requests over two connections have no order."""
    return Counter(marks(number, taken)) <= Counter(marks(number, forwarded))
