"""Two daemons behind the haproxy that deploy/haproxy-cluster.cfg makes, and clients that never pause and keep every failure."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import ssl
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.daemon import MODELS, ROOT, Daemon
from tests.fronts import DEPLOY, Front, haproxy, make_certificate, replaced

SHIPPED = (DEPLOY / "haproxy-cluster.cfg").read_text()
NAME = "models.localhost"  # which daemons let in without being told
MODEL_IDS = ("demo-stories", "demo-calc")
DEADLINE_S = 60.0
N_CLIENTS = 8
MAX_FAILURES = 5000  # a client that meets more goes home
READY_DELAY_S = 2  # a balancer that looks every 100 ms has looked away long before, on a busy machine, too
QUESTION = {"messages": [{"role": "user", "content": "12+30="}], "max_tokens": 8, "temperature": 0, "seed": 1}

DRAIN: dict[str, object] = {"on_inflight": "drain", "ready_delay_s": READY_DELAY_S}
OVERLAP: dict[str, object] = {"strategy": "overlap"}

CONFIG = """
server: {{host: 127.0.0.1, port: 0, stop_delay_s: {stop_delay_s}}}
switching: {{probe: false}}
default_model: demo-stories
models:
  - {{id: demo-stories, path: {models}/demo-stories.gguf, n_ctx: 4096, n_parallel: 8, n_threads: 1}}
  - {{id: demo-calc, path: {models}/demo-calc.gguf, n_ctx: 2048, n_parallel: 8, n_threads: 1}}
"""


def example(
    bind: str, certificate: Path, admin: Path, backends: Sequence[str], *, retries: str = "retries 0", shipped: str = SHIPPED
) -> str:
    """`shipped` but for addresses, places, times between checks, and no request is repeated."""
    return replaced(
        shipped,
        ("bind :443", f"bind {bind}"),
        ("/etc/haproxy/models.example.com.pem", str(certificate)),
        ("/run/haproxy/admin.sock", str(admin)),
        ("192.0.2.11:8080", backends[0]),
        ("192.0.2.12:8080", backends[1]),
        ("inter 1s fastinter 250ms", "inter 100ms fastinter 50ms"),
        ("retries 2\n    retry-on conn-failure", retries),
    )


def by_model() -> str:
    """deploy/haproxy-cluster.cfg with what docs/clusters.md adds for a model, for each of ours."""
    [block] = re.findall(r"```haproxy\n(.*?)```", (ROOT / "docs" / "clusters.md").read_text(), re.DOTALL)
    rules, _, backend = block.partition("\nbackend ")
    front = "".join(rules.replace("large", model) for model in MODEL_IDS)
    backends = "".join(f"\nbackend {backend.replace('large', model)}" for model in MODEL_IDS)
    mark = "    use_backend ready if"
    return replaced(SHIPPED, (mark, f"{front}\n{mark}")) + backends


class Lost(Exception):
    """A request that was answered with an error: its status and code."""


class Cluster:
    """Two daemons and the balancer. Context manager: ends them."""

    def __init__(self, folder: Path, *, stop_delay_s: int = 0, retries: str = "retries 0", shipped: str = SHIPPED) -> None:
        self._stack = contextlib.ExitStack()
        self.certificate = make_certificate(folder, NAME)
        try:
            self.daemons = [self._stack.enter_context(self._daemon(folder / name, stop_delay_s)) for name in ("one", "two")]
            for daemon in self.daemons:
                daemon.wait_ready()
            self._right = answers_of(self.daemons[0])
            places = self._stack.enter_context(tempfile.TemporaryDirectory())  # the path of a Unix socket must be short
            self.admin = Path(places) / "admin.sock"
            addresses = [f"{daemon.host}:{daemon.port}" for daemon in self.daemons]
            self.front: Front = self._stack.enter_context(
                haproxy(
                    folder,
                    lambda bind: example(bind, self.certificate, self.admin, addresses, retries=retries, shipped=shipped),
                )
            )
            self.wait_up("one", "two")
        except BaseException:
            self._stack.close()
            raise

    @staticmethod
    def _daemon(folder: Path, stop_delay_s: int) -> Daemon:
        folder.mkdir()
        config = folder / "models.yaml"
        config.write_text(CONFIG.format(models=MODELS, stop_delay_s=stop_delay_s))
        return Daemon(config)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stack.__exit__(*exc)

    # -- what the balancer sees

    def up(self, backend: str = "ready") -> set[str]:
        """Names of the servers that get what the back end is for: generations."""
        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(DEADLINE_S)
            try:
                admin.connect(str(self.admin))
            except (FileNotFoundError, ConnectionRefusedError):  # it is about to listen
                return set()
            admin.sendall(f"show servers state {backend}\n".encode())
            text = b"".join(iter(lambda: admin.recv(65536), b"")).decode()
        names, *rows = (line.lstrip("# ").split() for line in text.splitlines()[1:] if line)
        servers = [dict(zip(names, row, strict=False)) for row in rows]
        return {server["srv_name"] for server in servers if server["srv_op_state"] == "2"}  # SRV_ST_RUNNING

    def wait_up(self, *names: str, backend: str = "ready") -> None:
        """Until the balancer sends generations to these, and to no other."""
        deadline = time.monotonic() + DEADLINE_S
        while (up := self.up(backend)) != set(names):
            assert time.monotonic() < deadline, f"the balancer sees {up}, never {names}: {self.front.lines[-20:]}"
            time.sleep(0.02)

    # -- who asks

    def ask(self, method: str, path: str) -> int:
        """The status, through the balancer."""
        client = _Client(self.front.address, ssl.create_default_context(cafile=str(self.certificate)))
        with contextlib.closing(client):
            client.request(method, path, "{}" if method == "POST" else None, {"Host": NAME, "Content-Type": "application/json"})
            return client.getresponse().status

    @contextlib.contextmanager
    def clients(self, *models: str, n: int = N_CLIENTS) -> Iterator[Tally]:
        """So many clients that ask without a pause, until the block ends; by turns they name these models, or none."""
        tally = Tally(self._right, threading.Event())
        questions = [{**QUESTION, "model": model} for model in models] or [QUESTION]
        threads = [
            threading.Thread(target=self._ask, args=(tally, number, questions[number % len(questions)])) for number in range(n)
        ]
        for thread in threads:
            thread.start()
        try:
            yield tally
        finally:
            tally.stop.set()
            for thread in threads:
                thread.join()

    def _ask(self, tally: Tally, number: int, question: Mapping[str, object]) -> None:
        client = _Client(self.front.address, ssl.create_default_context(cafile=str(self.certificate)))
        streams = number % 2 == 0
        while not tally.stop.is_set():
            try:
                tally.count(_answer(client, question, streams=streams), streams=streams)
            except Exception as error:  # noqa: BLE001 - whatever it is, a client has lost its answer
                client.close()
                if tally.fail(str(error) if isinstance(error, Lost) else repr(error)) > MAX_FAILURES:
                    return
            streams = not streams
        client.close()


@dataclass
class Tally:
    """What the clients came to. Any thread."""

    right: dict[str, str]  # by model
    stop: threading.Event
    lock: threading.Lock = field(default_factory=threading.Lock)  # guards the counters
    answers: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    def count(self, answer: tuple[str, str], *, streams: bool) -> None:
        model, text = answer
        with self.lock:
            if text == self.right[model]:
                self.answers[f"{model}, {'streamed' if streams else 'whole'}"] += 1
            else:
                self.failures[f"{model} said {text!r}"] += 1

    def fail(self, why: str) -> int:
        """How many there are by now."""
        with self.lock:
            self.failures[why] += 1
            return self.failures.total()

    @property
    def n(self) -> int:
        with self.lock:
            return self.answers.total()

    def wait_more(self, n: int) -> None:
        """Until so many further answers have come."""
        wanted, deadline = self.n + n, time.monotonic() + DEADLINE_S
        while self.n < wanted:
            is_hopeless = self.failures.total() > MAX_FAILURES or time.monotonic() > deadline
            assert not is_hopeless, f"no answers any more: {self.answers}, {self.failures}"
            time.sleep(0.01)


def switch_by_turns(cluster: Cluster, n: int, *ways: dict[str, object]) -> None:
    """So many switches, on the one host and then on the other, in these ways; the next one when the balancer sees both."""
    for number in range(n):
        daemon = cluster.daemons[number % 2]
        cluster.wait_up("one", "two")
        [target] = set(MODEL_IDS) - {daemon.get("/status")["current_model"]}
        op = daemon.switched(target, **ways[number // 2 % len(ways)])
        assert op["state"] == "succeeded", op


class _Client(http.client.HTTPConnection):
    """Over TLS, to an address that the certificate does not know."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext) -> None:
        super().__init__(*address, timeout=DEADLINE_S)
        self._context = context

    def connect(self) -> None:
        super().connect()
        self.sock = self._context.wrap_socket(self.sock, server_hostname=NAME)


def _answer(client: http.client.HTTPConnection, question: Mapping[str, object], *, streams: bool) -> tuple[str, str]:
    """Model and text of one complete answer; raises where it is anything else."""
    body = json.dumps({**question, "stream": streams})
    client.request("POST", "/v1/chat/completions", body, {"Host": NAME, "Content-Type": "application/json"})
    response = client.getresponse()
    text = response.read().decode()
    if response.status != 200:
        raise Lost(f"{response.status} {_code(text)}")
    if not streams:
        whole = json.loads(text)
        assert whole["choices"][0]["finish_reason"] in ("stop", "length"), text
        return whole["model"], whole["choices"][0]["message"]["content"]
    frames = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    assert frames, "an empty stream"
    if frames[-1] != "[DONE]":
        raise Lost(f"cut {_code(frames[-1])}")
    chunks = [json.loads(frame) for frame in frames[:-1]]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    ends = [choice["finish_reason"] for choice in choices if choice["finish_reason"] is not None]
    assert len(ends) == 1, ends
    assert ends[0] in ("stop", "length"), ends
    return chunks[0]["model"], "".join(choice["delta"].get("content") or "" for choice in choices)


def _code(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return text[:80]


def answers_of(daemon: Daemon) -> dict[str, str]:
    """What each model says, greedily, asked without a balancer; the daemon has the first one again afterwards."""
    right = {}
    for model in (*MODEL_IDS[1:], MODEL_IDS[0]):
        assert daemon.switched(model)["state"] == "succeeded"
        status, _, body = daemon.request("POST", "/v1/chat/completions", QUESTION)
        assert status == 200, body
        right[model] = body["choices"][0]["message"]["content"]
    return right
