"""The real daemon behind the examples in deploy/, asked over TLS as a client on another host would."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import Daemon, demo_config
from tests.fronts import EXAMPLES, Front, make_certificate

NAME = "models.localhost"  # which the daemon lets in without being told


@contextlib.contextmanager
def completion(front: Front, certificate: Path, **parameters: object) -> Iterator[http.client.HTTPResponse]:
    client = http.client.HTTPConnection(*front.address, timeout=60)
    client.connect()
    client.sock = ssl.create_default_context(cafile=str(certificate)).wrap_socket(client.sock, server_hostname=NAME)
    body = json.dumps({"prompt": "One day", "temperature": 0, "stream": True, **parameters})
    client.request("POST", "/v1/completions", body, {"Host": NAME, "Content-Type": "application/json", "X-Request-Id": "mine"})
    with contextlib.closing(client), client.getresponse() as response:
        yield response


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_stream_comes_through_tls_while_it_is_made(name: str, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, NAME)
    with (
        Daemon(demo_config(tmp_path, one_thread=True)) as daemon,
        EXAMPLES[name](tmp_path, certificate, f"{daemon.host}:{daemon.port}") as front,
    ):
        daemon.wait_ready()
        with completion(front, certificate, max_tokens=8) as response:
            text = response.read().decode()
            assert response.headers["X-Request-Id"] == "mine"
            assert text.endswith("data: [DONE]\n\n")
        with completion(front, certificate, max_tokens=400) as response:
            assert response.readline().startswith(b"data: ")
        # The client has left after the first frame; had that come with the last, there would be nothing left to cancel.
        daemon.wait_line(lambda line: line.get("request_id") == "mine" and line.get("status") == 499)
