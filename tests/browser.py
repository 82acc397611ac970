"""A real browser: one that only shows a page of a site that tells what it has seen, and one that a test looks into."""

from __future__ import annotations

import base64
import contextlib
import http.server
import itertools
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
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


# Chromium reads commands from descriptor 3 and writes answers to 4, each ended by a zero byte (--remote-debugging-pipe).
LAUNCH = """
import os, sys
ends = [os.dup(os.dup(os.dup(int(fd)))) for fd in sys.argv[1:3]]  # out of the way of 3 and 4
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class BrowserRefused(Exception):
    """It did not do what it was told; a page that is just being replaced answers nothing."""


class Chromium:
    """A browser that is driven by its own protocol (Chrome DevTools Protocol) over two pipes. One thread uses it.

    It is one browser for many tests: each opens a tab in a context of its own, which shares nothing with another one.
    """

    def __init__(self, folder: Path) -> None:
        read, self._commands = os.pipe()
        self._answers, write = os.pipe()
        for fd in (read, write):
            os.set_inheritable(fd, True)
        with (folder / "chromium.log").open("wb") as log:
            command = chromium(folder, "--remote-debugging-pipe", "--hide-scrollbars", "about:blank")
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-c", LAUNCH, str(read), str(write), *command],
                pass_fds=(read, write),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        os.close(read)
        os.close(write)
        self._ids = itertools.count(1)
        self._cond = threading.Condition()
        # Guards the two below. Notified when an answer or an event has come, and at the end.
        self._replies: dict[int, dict[str, Any]] = {}
        self._listeners: dict[str, Callable[[str, dict[str, Any]], None]] = {}  # by session
        self._ended = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def close(self) -> None:
        os.killpg(self.process.pid, 9)
        self.process.wait(DEADLINE_S)
        self._reader.join()
        os.close(self._commands)
        os.close(self._answers)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._commands, data) :]
        with self._cond:
            arrived = self._cond.wait_for(lambda: number in self._replies or self._ended, DEADLINE_S)
            assert arrived, f"no answer to {method}"
            assert number in self._replies, f"the browser ended before it answered to {method}"
            reply = self._replies.pop(number)
        if "error" in reply:
            raise BrowserRefused(f"{method}: {reply['error']}")
        return reply["result"]

    @contextlib.contextmanager
    def tab(self, **options: Any) -> Iterator[Tab]:
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        try:
            yield Tab(self, session, **options)
        finally:
            self._listeners.pop(session, None)
            self.call("Target.disposeBrowserContext", browserContextId=context)

    def listen(self, session: str, listener: Callable[[str, dict[str, Any]], None]) -> None:
        """It runs on the thread that reads, and may not call."""
        self._listeners[session] = listener

    def _read(self) -> None:
        rest = b""
        while data := os.read(self._answers, 1 << 16):
            *messages, rest = (rest + data).split(b"\0")
            for text in messages:
                message = json.loads(text)
                with self._cond:
                    if "id" in message:
                        self._replies[message["id"]] = message
                    elif (listener := self._listeners.get(message.get("sessionId", ""))) is not None:
                        listener(message["method"], message["params"])
                    self._cond.notify_all()
        with self._cond:
            self._ended = True
            self._cond.notify_all()


KEYS = {"Enter": (13, "\r"), "Tab": (9, ""), "Escape": (27, ""), " ": (32, " ")}

# Kept by the page's own window, so that a violation before the first look is seen, too.
WITNESS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => violations.push([event.violatedDirective, event.blockedURI]));
"""


class Tab:
    """A page, what it has asked for (`asked`: addresses) and what it has complained of (`complaints`: its console)."""

    def __init__(self, browser: Chromium, session: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        self._browser, self._session = browser, session
        self.asked: list[str] = []
        self.complaints: list[str] = []
        browser.listen(session, self._on_event)
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.addScriptToEvaluateOnNewDocument", source=WITNESS)
        # Else the page of a browser without a screen is one that nobody looks at.
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        self.show(width, height, dark=dark)

    def call(self, method: str, **parameters: Any) -> Any:
        return self._browser.call(method, self._session, **parameters)

    def _on_event(self, method: str, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"])[:2000])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{params['entry']['source']}: {params['entry']['text']}")
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(json.dumps(params["args"])[:2000])

    def show(self, width: int, height: int, *, dark: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def open(self, url: str) -> None:
        failed = self.call("Page.navigate", url=url).get("errorText")
        assert not failed, failed

    def js(self, expression: str) -> Any:
        """The value of an expression in the page; of a promise, what it comes to."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition: str) -> Any:
        """The first value of the expression that is something, on this page or on the one that takes its place meanwhile."""
        deadline = time.monotonic() + DEADLINE_S
        shown = None
        while True:
            try:
                if value := self.js(condition):
                    return value
                shown = self.js("document.body?.innerText")
                self.js("new Promise((resolve) => setTimeout(resolve, 20))")
            except BrowserRefused as error:
                shown = error
            assert time.monotonic() < deadline, f"never: {condition}\n{shown}\n{self.complaints}"

    def text(self, selector: str) -> str:
        """What can be read there."""
        return str(self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")).strip()

    def wait_text(self, selector: str, part: str) -> str:
        self.wait(f"document.querySelector({json.dumps(selector)})?.innerText.includes({json.dumps(part)})")
        return self.text(selector)

    def click(self, selector: str) -> None:
        """As a mouse does it, so that what lies above it, or is disabled, keeps it away."""
        place = self.wait(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); if (!e || !e.checkVisibility()) return null;"
            "e.scrollIntoView({block: 'center', behavior: 'instant'}); const b = e.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2] })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def press(self, key: str, *, shift: bool = False) -> None:
        code, text = KEYS[key]
        common = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def screenshot(self, target: Path, *, whole: bool = True) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=0, y=0)
        self.js("scrollTo(0, 0)")
        target.parent.mkdir(parents=True, exist_ok=True)
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        target.write_bytes(base64.b64decode(shot["data"]))
