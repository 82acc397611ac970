"""A real browser, and a site whose pages tell what they have seen."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import DEADLINE_S


class Pages:
    """A site on a free port: a page with a script at `/`, which sends what it found to `/told`."""

    def __init__(self) -> None:
        self.script = ""
        self._told: queue.SimpleQueue[Any] = queue.SimpleQueue()
        pages = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(f"<!doctype html><body><script>{pages.script}</script>".encode())

            def do_POST(self) -> None:
                pages._told.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self._answer(b"")

            def _answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def told(self) -> Any:
        return self._told.get(timeout=DEADLINE_S)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def chromium(folder: Path, *arguments: str) -> list[str]:
    """A command for which every name below .example is this host, as an attacker's name server would have it."""
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("chromium is not installed")
    return [
        found, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--no-proxy-server",
        "--disable-background-networking", f"--user-data-dir={folder}/profile", "--host-resolver-rules=MAP *.example 127.0.0.1",
        *arguments,
    ]  # fmt: skip


@contextlib.contextmanager
def browsing(folder: Path, url: str) -> Iterator[None]:
    """A browser of its own process group that shows the page."""
    with (folder / "chromium.log").open("wb") as log:
        command = chromium(folder, "--remote-debugging-port=0", url)
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            yield
        finally:
            os.killpg(process.pid, 9)
            process.wait(DEADLINE_S)
