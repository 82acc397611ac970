"""What deploy/rolling-switch says where it gets no further: in one line, never a traceback."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "deploy" / "rolling-switch"


class Somebody(http.server.ThreadingHTTPServer):
    """Answers everything alike."""

    status = 200
    body = b""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Somebody

    def do_POST(self) -> None:
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def somebody() -> Iterator[Somebody]:
    with Somebody(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def said(*arguments: str) -> str:
    command = [sys.executable, str(SCRIPT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (502, b'{"error": "bad gateway"}', "502: bad gateway"),
        (502, b"<h1>Bad gateway</h1>", "502: the host did not say why"),
        (404, b"[]", "404: the host did not say why"),
        (409, b'{"error": {"code": "switch_rejected", "message": "busy"}}', "switch_rejected: busy"),
        (200, b"[]", "what answers there is no modeld"),
        (200, b"hello", "what answers there is no modeld"),
    ],
)
def test_what_somebody_else_answers_is_told(somebody: Somebody, status: int, body: bytes, says: str) -> None:
    somebody.status, somebody.body = status, body
    assert said("large", somebody.url) == f"rolling-switch: {somebody.url}: {says}\n"


def test_a_key_that_cannot_be_had_is_told(tmp_path: Path) -> None:
    assert said("--key-file", str(tmp_path / "none"), "large", "http://127.0.0.1:1").startswith(
        "rolling-switch: cannot read the key"
    )
    (tmp_path / "keys").write_text("chief admin a-key\n")  # the file that the daemon reads
    assert "holds more than a key" in said("--key-file", str(tmp_path / "keys"), "large", "http://127.0.0.1:1")
