"""A real daemon in a process of its own, and the smallest client that can look at its bytes."""

from __future__ import annotations

import http.client
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
DEADLINE_S = 60.0

DEMO = """
server: {host: 127.0.0.1, port: 0}
default_model: demo-stories
models:
  - {id: demo-stories, name: Demo storyteller, path: %(models)s/demo-stories.gguf, n_ctx: 4096, n_parallel: 8%(one)s}
  - {id: demo-calc, path: %(models)s/demo-calc.gguf, n_ctx: 2048, n_parallel: 8%(one)s}
"""


def demo_config(folder: Path, more: str = "", *, one_thread: bool = False) -> Path:
    """The registry of the demo models, written to `folder`; `more` are further entries of `models`.

    `one_thread`: two threads wait for each other at each node of the graph, which takes for ever where somebody else computes,
    too.
    """
    path = folder / "models.yaml"
    path.write_text(DEMO % {"models": MODELS, "one": ", n_threads: 1" if one_thread else ""} + more)
    return path


def kept_beside(config: Path) -> dict[str, str]:
    """The variable by which a daemon keeps its state in the folder of its configuration."""
    return {"STATE_DIRECTORY": str(config.parent / "state")}


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def n_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - /proc


def n_threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))  # noqa: PTH208 - /proc


def has_ipv6() -> bool:
    """Whether this host has the loopback address ::1."""
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
    return True


def cpu_seconds(pid: int) -> float:
    """What all its threads have computed so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime: proc(5)


class Daemon:
    """`modeld serve` on a free port. Context manager: ends it by SIGTERM and wants exit status 0.

    What it remembers lies beside its configuration, never in the home directory: a test with `env` says so itself.
    """

    def __init__(
        self,
        config: Path,
        *,
        command: tuple[str, ...] = (sys.executable, "-m", "modeld"),
        env: Mapping[str, str] | None = None,
        flags: Sequence[str] = (),
        close_fds: bool = True,
    ) -> None:
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [*command, "serve", "--config", str(config), "--port", "0", *flags],
            cwd=ROOT if env is None else config.parent,
            env={**os.environ, "PYTHONDEVMODE": "", **kept_beside(config)} if env is None else dict(env),
            stderr=subprocess.PIPE,
            text=True,
            close_fds=close_fds,
        )
        self.lines: list[dict[str, Any]] = []
        self._new_line: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        try:
            url = self.wait_line(lambda line: "url" in line)["url"]
        except BaseException:
            self.process.kill()
            self._end()
            raise
        self.host, port = url.removeprefix("http://").rsplit(":", 1)
        self.port = int(port)
        self.url = url

    def _read(self) -> None:
        assert self.process.stderr is not None
        for text in self.process.stderr:
            try:
                line = json.loads(text)
            except ValueError:
                line = {"raw": text}
            self.lines.append(line)
            self._new_line.put(None)
        self._new_line.put(None)

    def wait_line(self, wanted: Any) -> dict[str, Any]:
        """The first log line for which `wanted` holds."""
        seen, deadline = 0, time.monotonic() + DEADLINE_S
        while True:
            for line in self.lines[seen:]:
                seen += 1
                if wanted(line):
                    return line
            if self.process.poll() is not None and not self._reader.is_alive() and seen == len(self.lines):
                raise AssertionError(f"the daemon ended with {self.process.returncode}: {self.lines}")
            try:
                self._new_line.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no such log line within {DEADLINE_S} s: {self.lines}") from None

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *exc: object) -> None:
        status = self.stop()
        if exc[0] is None:
            assert status == 0, f"exit status {status}: {self.lines[-20:]}"

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self._end()

    def wait(self) -> int:
        """Its exit status, once it has ended by itself."""
        return self._end()

    def _end(self) -> int:
        try:
            status = self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the daemon does not end: {self.lines[-20:]}") from None
        finally:
            self._reader.join()
            assert self.process.stderr is not None
            self.process.stderr.close()
        return status

    # -- a client

    def request(
        self, method: str, path: str, body: object = None, fields: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], Any]:
        """Status, headers in lower case, JSON."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=DEADLINE_S)
        try:
            headers = {**({} if body is None else {"Content-Type": "application/json"}), **(fields or {})}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            data = response.read()
            return (
                response.status,
                {name.lower(): value for name, value in response.getheaders()},
                json.loads(data) if data else None,
            )
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        status, _, body = self.request("GET", path)
        assert status == 200, body
        return body

    def switch(self, model_id: str, **options: object) -> str:
        status, _, body = self.request("POST", "/switch", {"model_id": model_id, **options})
        assert status == 202, body
        return str(body["op_id"])

    def switched(self, model_id: str, **options: object) -> dict[str, Any]:
        """The record of a switch that has ended, or {"error"} of one that was refused."""
        return dict(self.request("POST", f"/switch?wait={DEADLINE_S:.0f}", {"model_id": model_id, **options})[2])

    def unloaded(self, **options: object) -> dict[str, Any]:
        """The record of an unload that has ended."""
        return dict(self.request("POST", f"/unload?wait={DEADLINE_S:.0f}", options)[2])

    def complete(self, prompt: str = "One day", **parameters: object) -> dict[str, Any]:
        """The answer to a greedy completion; fails on anything but 200."""
        status, _, body = self.request("POST", "/v1/completions", {"prompt": prompt, "temperature": 0, **parameters})
        assert status == 200, body
        return dict(body)

    def wait_op(self, op_id: str) -> dict[str, Any]:
        """The op, once it has ended; read from /events, whose snapshot says if it ended before."""
        with self.events() as events:
            op = dict(self.get(f"/ops/{op_id}"))
            if op["ended_at"] is None:
                events.until(lambda e: e.name in ("model_ready", "model_error") and e.data["op_id"] == op_id)
                op = dict(self.get(f"/ops/{op_id}"))
            return op

    def switch_and_wait(self, model_id: str) -> dict[str, Any]:
        return self.wait_op(self.switch(model_id))

    def wait_ready(self) -> None:
        with self.events() as events:
            events.until(lambda e: e.name == "model_ready" or (e.name == "snapshot" and e.data["state"] == "ready"))

    def wait_status(self, wanted: Any) -> dict[str, Any]:
        """The first /status for which `wanted` holds."""
        deadline = time.monotonic() + DEADLINE_S
        while not wanted(status := self.get("/status")):
            assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {status}"
        return dict(status)

    def events(self, last_event_id: str | None = None) -> EventReader:
        return EventReader(self, last_event_id)

    def stream(self, path: str, body: dict[str, Any]) -> StreamReader:
        return StreamReader(self, path, body)


class Event:
    def __init__(self, event_id: str, name: str, data: Any) -> None:
        self.id, self.name, self.data = event_id, name, data

    def __repr__(self) -> str:
        return f"<{self.id} {self.name} {self.data}>"


class _Reader:
    """A response that is read line by line."""

    def __init__(self, daemon: Daemon, method: str, path: str, body: object, headers: Mapping[str, str]) -> None:
        self.connection = http.client.HTTPConnection(daemon.host, daemon.port, timeout=DEADLINE_S)
        self.connection.request(method, path, None if body is None else json.dumps(body), dict(headers))
        self._hung_up = False
        self._sock = self.connection.sock  # which http.client forgets where the server closes after the answer
        self.response = self.connection.getresponse()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.response.close()
        self.connection.close()

    def hang_up(self) -> None:
        """End the response for a thread that reads it."""
        self._hung_up = True
        self._sock.shutdown(socket.SHUT_RDWR)

    def lines(self) -> Iterator[str]:
        try:
            while line := self.response.readline():
                yield line.decode().rstrip("\r\n")
        except (http.client.HTTPException, OSError, AttributeError):  # the last where it reads on after an end between chunks
            if not self._hung_up:
                raise


class EventReader(_Reader):
    def __init__(self, daemon: Daemon, last_event_id: str | None) -> None:
        super().__init__(daemon, "GET", "/events", None, {} if last_event_id is None else {"Last-Event-ID": last_event_id})
        assert self.response.status == 200
        self.seen: list[Event] = []

    def __iter__(self) -> Iterator[Event]:
        fields: dict[str, str] = {}
        for line in self.lines():
            if line and not line.startswith(":"):
                name, _, value = line.partition(": ")
                fields[name] = value
            elif not line and fields:
                event = Event(fields.get("id", ""), fields["event"], json.loads(fields["data"]))
                fields = {}
                self.seen.append(event)
                yield event

    def until(self, wanted: Any) -> list[Event]:
        """All events up to the one for which `wanted` holds."""
        for event in self:
            if wanted(event):
                return self.seen
        raise AssertionError(f"the events ended: {self.seen}")


class StreamReader(_Reader):
    """A generation: `text` so far, the frames, and whether [DONE] came."""

    def __init__(self, daemon: Daemon, path: str, body: dict[str, Any]) -> None:
        super().__init__(daemon, "POST", path, {"stream": True, **body}, {"Content-Type": "application/json"})
        self.frames: list[dict[str, Any]] = []
        self.done = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for line in self.lines():
            if line == "data: [DONE]":
                self.done = True
            elif line.startswith("data: "):
                self.frames.append(json.loads(line[6:]))
                yield self.frames[-1]
            else:
                assert not line or line.startswith(":"), line

    @property
    def text(self) -> str:
        choices = [choice for frame in self.frames for choice in frame.get("choices", ())]
        return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)
