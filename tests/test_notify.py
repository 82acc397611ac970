"""What the service manager hears, through a real datagram socket; and that it hears nothing while a thread is stuck."""

from __future__ import annotations

import itertools
import os
import re
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from modeld import notify
from modeld.errors import ModelSwitched
from modeld.heartbeat import Heartbeat, Pulse
from modeld.notify import Notifier, status_text
from modeld.types import OpError, OpState, Phase, State, Status, Step, SwitchOp
from modeld.watchdog import Watchdog
from tests.daemon import Daemon, demo_config
from tests.engine.test_engine import open_fake
from tests.engine.test_idle import Open
from tests.engine.test_pulses import Block
from tests.fake_runtime import FakeRuntime
from tests.http.fake_service import STATUS

DEADLINE_S = 60.0
_numbers = itertools.count()


class Manager:
    """Who reads $NOTIFY_SOCKET."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind("\0" + name[1:] if name.startswith("@") else name)
        self.sock.settimeout(DEADLINE_S)

    def next(self) -> list[str]:
        """The lines of the next message."""
        return self.sock.recv(4096).decode().split("\n")

    def until(self, line: str) -> list[str]:
        while line not in (lines := self.next()):
            pass
        return lines

    def hears_nothing(self) -> bool:
        """Nothing has come that was not read."""
        self.sock.setblocking(False)
        try:
            self.sock.recv(4096)
        except BlockingIOError:
            return True
        finally:
            self.sock.settimeout(DEADLINE_S)
        return False


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@modeld-test-{os.getpid()}-{next(_numbers)}"
    manager = Manager(name)
    yield manager
    manager.sock.close()


@pytest.fixture
def notifier(systemd: Manager) -> Iterator[Notifier]:
    notifier = Notifier({"NOTIFY_SOCKET": systemd.name, "WATCHDOG_USEC": "3000000"})
    yield notifier
    notifier.close()


# -- the messages -------------------------------------------------------------------------------------------------------


def test_each_message_is_a_datagram_of_its_lines(systemd: Manager, notifier: Notifier) -> None:
    notifier.ready()
    assert systemd.next() == ["READY=1"]
    before = time.monotonic()
    notifier.reloading()
    reloading, usec = systemd.next()
    assert reloading == "RELOADING=1"
    assert before <= int(usec.removeprefix("MONOTONIC_USEC=")) / 1e6 + 1e-6 <= time.monotonic() + 1e-6
    notifier.alive()
    assert systemd.next() == ["WATCHDOG=1"]
    notifier.stopping(300, 60)
    assert systemd.next() == ["STOPPING=1", "STATUS=stopping", "EXTEND_TIMEOUT_USEC=60000000"]


def test_the_same_status_is_told_once(systemd: Manager, notifier: Notifier) -> None:
    notifier.status(STATUS)
    notifier.status(STATUS)
    assert systemd.next() == [f"STATUS={STATUS.current_model} answers"]
    assert systemd.hears_nothing()


def changed(**changes: object) -> Status:
    return replace(STATUS, **changes)  # type: ignore[arg-type]


def running(target: str | None, **changes: object) -> SwitchOp:
    return replace(SwitchOp("op-1", target, OpState.RUNNING, queued_at=1.0), **changes)  # type: ignore[arg-type]


def loading(pct: int, step: Step = Step.MMAP) -> Status:
    return changed(state=State.LOADING, current_model=None, op=running("qwen", step=step, pct=pct))


def test_percents_are_told_now_and_then_and_all_else_at_once(
    systemd: Manager, notifier: Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    notifier.status(loading(0))
    assert systemd.next() == ["STATUS=loading qwen 0 % (mmap)"]
    for pct in range(1, 50):
        now += 0.01
        notifier.status(loading(pct))
    assert systemd.hears_nothing()
    now += 0.02
    notifier.status(loading(50))
    assert systemd.next() == ["STATUS=loading qwen 50 % (mmap)"]
    notifier.status(loading(60))
    notifier.status(loading(0, Step.WARMUP))
    assert systemd.next() == ["STATUS=loading qwen 0 % (warmup)"]
    notifier.status(STATUS)
    assert systemd.next() == ["STATUS=tiny:q8 answers"]


def test_percents_are_held_back_also_while_the_old_model_answers(
    systemd: Manager, notifier: Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is read ahead, and a model that is loaded beside the old one, have percents as any load."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for pct in range(50):
        notifier.status(changed(op=running("qwen", phase=Phase.PREFETCH, pct=pct)))
    assert systemd.next() == ["STATUS=tiny:q8 answers; loading qwen 0 % (prefetch)"]
    assert systemd.hears_nothing()
    notifier.status(STATUS)
    assert systemd.next() == ["STATUS=tiny:q8 answers"]


def test_a_status_that_was_held_back_comes_with_the_next_sign_of_life(systemd: Manager, notifier: Notifier) -> None:
    notifier.status(loading(0))
    notifier.status(loading(9))
    assert systemd.next() == ["STATUS=loading qwen 0 % (mmap)"]
    notifier.alive()
    assert systemd.next() == ["WATCHDOG=1", "STATUS=loading qwen 9 % (mmap)"]
    notifier.alive()
    assert systemd.next() == ["WATCHDOG=1"]


def fill(notifier: Notifier, caplog: pytest.LogCaptureFixture) -> None:
    """Send until the service manager's socket takes no more."""
    caplog.clear()
    while not caplog.records:
        notifier.alive()


def test_that_it_listens_is_heard_when_the_queue_was_full(
    systemd: Manager, notifier: Notifier, caplog: pytest.LogCaptureFixture
) -> None:
    """systemd ends a service that does not say so in time. The queue is full for a moment when many services start at once."""
    fill(notifier, caplog)
    with ThreadPoolExecutor(1) as pool:
        ready = pool.submit(notifier.ready)
        systemd.until("READY=1")
        ready.result(DEADLINE_S)
    assert len(caplog.records) == 1


def test_a_queue_that_stays_full_is_waited_for_no_longer_than_that(
    systemd: Manager, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "WAIT_S", 1)
    notifier = Notifier({"NOTIFY_SOCKET": systemd.name})
    fill(notifier, caplog)
    notifier.ready()
    assert "does not hear READY=1" in caplog.records[-1].getMessage()
    fill(notifier, caplog)
    notifier.status(STATUS)  # does not wait, and is told later
    assert len(caplog.records) == 2
    while not systemd.hears_nothing():
        pass
    notifier.alive()
    assert systemd.next() == ["WATCHDOG=1", "STATUS=tiny:q8 answers"]
    notifier.close()


def test_a_stop_asks_for_time_while_it_goes_on_and_not_past_its_end(
    systemd: Manager, notifier: Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    notifier.alive()
    assert systemd.next() == ["WATCHDOG=1"]
    notifier.stopping(100, 60)
    assert systemd.next()[2:] == ["EXTEND_TIMEOUT_USEC=60000000"]
    notifier.status(changed(stopping=True))  # known
    now += 30
    notifier.alive()
    assert systemd.next() == ["WATCHDOG=1", "EXTEND_TIMEOUT_USEC=60000000"]
    now += 30
    notifier.alive()
    assert systemd.next() == ["WATCHDOG=1", "EXTEND_TIMEOUT_USEC=40000000"]
    now += 40
    notifier.alive()
    assert systemd.next() == ["WATCHDOG=1"]


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (STATUS, "tiny:q8 answers"),
        (changed(stopping=True), "stopping"),
        (changed(state=State.LOADING, current_model=None), "loading"),
        (
            changed(state=State.LOADING, current_model=None, op=SwitchOp("op-1", "other", OpState.RUNNING, queued_at=1.0)),
            "loading other",
        ),
        (
            changed(state=State.LOADING, current_model=None, op=running("qwen", step=Step.MMAP, pct=43)),
            "loading qwen 43 % (mmap)",
        ),
        (
            changed(state=State.LOADING, op=running("qwen", phase=Phase.PREFETCH, step=None, pct=7)),
            "tiny:q8 answers; loading qwen 7 % (prefetch)",
        ),
        (changed(state=State.LOADING, op=running(None, phase=Phase.DRAIN, pct=0)), "tiny:q8 answers; unloading 0 % (drain)"),
        (changed(state=State.ERROR, current_model=None, error=OpError("x", "two\nlines")), "no model answers: two lines"),
        (changed(current_model=None), "no model is loaded"),
    ],
)
def test_the_status_is_one_line(status: Status, text: str) -> None:
    assert status_text(status) == text
    long = changed(state=State.ERROR, current_model=None, error=OpError("x", "y" * 10_000))
    assert len(status_text(long)) == 200


@pytest.mark.parametrize("address", ["", "relative", "@", "/", "/nowhere/at/all"])
def test_where_nobody_listens_nothing_happens(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready()
    notifier.alive()
    notifier.close()
    notifier.close()


def test_a_service_manager_that_does_not_read_is_not_waited_for(systemd: Manager, notifier: Notifier) -> None:
    for _ in range(100_000):  # more than its socket holds
        notifier.alive()
    assert systemd.next() == ["WATCHDOG=1"]


@pytest.mark.parametrize(
    ("environ", "watchdog_s"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_wanted_of_us(systemd: Manager, environ: dict[str, str], watchdog_s: float | None) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": systemd.name, **environ})
    assert notifier.watchdog_s == watchdog_s
    notifier.close()


# -- the watchdog -------------------------------------------------------------------------------------------------------


def test_the_watchdog_tells_again_and_again_that_all_are_well(systemd: Manager, notifier: Notifier) -> None:
    watchdog = Watchdog(lambda: [Pulse("modeld-x").beat(30)], notifier.alive, 0.01)
    watchdog.start()
    for _ in range(3):
        assert systemd.next() == ["WATCHDOG=1"]
    watchdog.close()
    watchdog.close()


def test_a_stuck_engine_withholds_it_until_it_goes_on(
    systemd: Manager, notifier: Notifier, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = FakeRuntime()
    runner = open_fake(runtime)
    later_s = 0.0

    def heartbeats() -> list[Heartbeat]:
        return [pulse.beat(30, now=time.monotonic() + later_s) for pulse in runner.pulses()]

    watchdog = Watchdog(heartbeats, notifier.alive, 30)
    try:
        runtime.gate.shut()
        n_before = runtime.gate.n_arrived
        work = Open(runner)
        runtime.gate.wait_arrived(n_before + 1)
        later_s = 3600  # in one decode
        assert watchdog.look()
        assert systemd.next() == ["WATCHDOG=1"]
        block = Block(runtime, "sample", monkeypatch)
        runtime.gate.open()
        assert block.reached.wait(DEADLINE_S)
        for _ in range(3):
            assert not watchdog.look()
        assert systemd.hears_nothing()
        told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert told == ["a thread is not well: modeld-engine: what comes after a decode for 3600 s"]
        block.go_on.set()
        work.end()
        later_s = 0
        assert watchdog.look()
        assert systemd.next() == ["WATCHDOG=1"]
        assert caplog.records[-1].getMessage() == "a thread is well again: modeld-engine"
    finally:
        runner.close(ModelSwitched("the test is over"))
        runner.free()


# -- the daemon ---------------------------------------------------------------------------------------------------------


def test_the_daemon_tells_of_its_life(systemd: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start, load, a reload, a switch, a stop: all that is told, in its order."""
    monkeypatch.setenv("NOTIFY_SOCKET", systemd.name)
    with Daemon(demo_config(tmp_path)) as daemon:
        assert systemd.next() == ["READY=1"]
        assert parts(systemd, "demo-stories") == ["", "probe", "unload", "mmap", "warmup"]
        daemon.process.send_signal(signal.SIGHUP)
        assert systemd.next()[0] == "RELOADING=1"
        assert systemd.next() == ["READY=1"]
        daemon.switch_and_wait("demo-calc")
        assert parts(systemd, "demo-calc") == ["", "probe", "unload", "mmap", "warmup"]
        daemon.process.send_signal(signal.SIGTERM)
        assert systemd.next() == ["STOPPING=1", "STATUS=stopping", "EXTEND_TIMEOUT_USEC=60000000"]
        assert daemon.wait() == 0
        assert systemd.hears_nothing()


def parts(systemd: Manager, model_id: str) -> list[str]:
    """What a load did according to the statuses, until the model answers; without what it does for a cold file only."""
    found: list[str] = []
    while (lines := systemd.next()) != [f"STATUS={model_id} answers"]:
        if lines[0] == "WATCHDOG=1" and len(lines) == 1:
            continue
        match = re.search(rf"loading {model_id}(?: \d+ % \((\w+)\))?$", lines[-1])
        assert match, lines
        if (part := match[1] or "") not in [*found, "prefetch"]:
            found.append(part)
    return found


def test_the_daemon_says_again_and_again_that_it_is_well(
    systemd: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", systemd.name)
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    with Daemon(demo_config(tmp_path)):
        for _ in range(3):
            systemd.until("WATCHDOG=1")


def test_every_thread_of_a_daemon_that_answers_is_well(tmp_path: Path) -> None:
    with Daemon(demo_config(tmp_path)) as daemon:
        daemon.wait_ready()
        daemon.complete(max_tokens=5)
        names = ["ping", "switch", "engine", "deliver", "tokenize-0", "tokenize-1", "accept", "watch", "events", "config"]
        assert verbose(daemon, "/livez") == [*(f"[+]{name} ok" for name in names), "livez check passed"]


HANGS = """
import pathlib, sys, time
from modeld import app
from modeld.engine.engine import Engine

flag, sample = pathlib.Path(sys.argv[1]), Engine._sample

def hangs(self, ready):
    while flag.exists():
        time.sleep(0.01)
    sample(self, ready)

Engine._sample = hangs
sys.exit(app.main(sys.argv[2:]))
"""


def test_a_daemon_whose_engine_hangs_is_not_called_alive_until_it_goes_on(
    systemd: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", systemd.name)
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    flag = tmp_path / "hangs"
    config = demo_config(tmp_path)
    config.write_text(config.read_text().replace("port: 0", "port: 0, stuck_after_s: 1"))
    with Daemon(config, command=(sys.executable, "-c", HANGS, str(flag))) as daemon:
        daemon.wait_ready()
        flag.touch()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(daemon.complete, max_tokens=2)
            line = daemon.wait_line(lambda line: "not well" in line["msg"])
            assert (line["unwell"], line["doing"]) == ("modeld-engine", "what comes after a decode")
            while not systemd.hears_nothing():  # what was sent before
                pass
            assert daemon.request("GET", "/readyz")[0] == 503
            assert daemon.request("GET", "/livez")[0] == 200
            assert "[-]engine failed: reason withheld" in verbose(daemon, "/livez")
            systemd.sock.settimeout(0.6)  # six of its intervals
            with pytest.raises(TimeoutError):
                systemd.next()
            systemd.sock.settimeout(DEADLINE_S)
            flag.unlink()
            systemd.until("WATCHDOG=1")
            assert answer.result(DEADLINE_S)["usage"]["completion_tokens"] == 2
        assert daemon.request("GET", "/readyz")[0] == 200


ACCEPTS_NOT = """
import pathlib, sys, time
from modeld import app
from modeld.httpapi.listeners import Acceptor

flag, accept = pathlib.Path(sys.argv[1]), Acceptor._accept

def hangs(self, listener):
    while flag.exists():
        time.sleep(0.01)
    accept(self, listener)

Acceptor._accept = hangs
sys.exit(app.main(sys.argv[2:]))
"""


def test_a_daemon_that_accepts_no_connections_is_not_called_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the engine does."""
    systemd = Manager(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", systemd.name)
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    flag, config = tmp_path / "hangs", demo_config(tmp_path)
    config.write_text(config.read_text().replace("port: 0", "port: 0, stuck_after_s: 1"))
    with Daemon(config, command=(sys.executable, "-c", ACCEPTS_NOT, str(flag))) as daemon:
        daemon.wait_ready()
        flag.touch()
        with socket.create_connection((daemon.host, daemon.port), DEADLINE_S):
            line = daemon.wait_line(lambda line: "not well" in line["msg"])
            assert (line["unwell"], line["doing"]) == ("modeld-accept", "accepting connections")
            while not systemd.hears_nothing():  # what was sent before
                pass
            systemd.sock.settimeout(0.6)  # six of its intervals
            with pytest.raises(TimeoutError):
                systemd.next()
            systemd.sock.settimeout(DEADLINE_S)
            flag.unlink()
            systemd.until("WATCHDOG=1")
    systemd.sock.close()


def verbose(daemon: Daemon, path: str) -> list[str]:
    """The lines of a probe."""
    with socket.create_connection((daemon.host, daemon.port), 10) as client:
        client.sendall(f"GET {path}?verbose HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        text = b"".join(iter(lambda: client.recv(65536), b"")).decode()
    return text.split("\r\n\r\n")[1].splitlines()


def test_an_abort_leaves_the_stacks_of_all_threads_in_the_log(tmp_path: Path) -> None:
    """The service manager's watchdog sends it."""
    daemon = Daemon(demo_config(tmp_path))
    daemon.wait_ready()
    resource.prlimit(daemon.process.pid, resource.RLIMIT_CORE, (0, 0))
    assert daemon.stop(signal.SIGABRT) == -signal.SIGABRT
    stacks = "".join(str(line.get("raw", "")) for line in daemon.lines)
    for place in ("inbox.py", "manager.py", "app.py", "watchdog.py"):
        assert place in stacks
