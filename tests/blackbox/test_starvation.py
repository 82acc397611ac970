"""A daemon that runs out of descriptors or threads: it computes nothing for that, loses nothing, and is there again at once."""

from __future__ import annotations

import contextlib
import http.client
import json
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import DEADLINE_S, Daemon, cpu_seconds, demo_config, n_descriptors, n_threads

FLOOD = 200
WATCH_S = 3.0
MOST_OF_A_CORE = 0.10
BACK_WITHIN_S = 1.0


@contextlib.contextmanager
def flood(daemon: Daemon) -> Iterator[list[socket.socket]]:
    """Clients that connect and say nothing; who is closed stays away."""
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(FLOOD):
            client = stack.enter_context(socket.socket())
            client.settimeout(DEADLINE_S)
            client.connect((daemon.host, daemon.port))
            clients.append(client)
        yield clients


def share_of_a_core(daemon: Daemon, seconds: float = WATCH_S) -> float:
    """What the daemon computes while time passes."""
    pid = daemon.process.pid
    before, start = cpu_seconds(pid), time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        daemon.process.wait(seconds)
    return (cpu_seconds(pid) - before) / (time.monotonic() - start)


def seconds_until_livez(daemon: Daemon) -> float:
    start = time.monotonic()
    while time.monotonic() < start + DEADLINE_S:
        with contextlib.suppress(OSError):
            if daemon.request("GET", "/livez")[0] == 200:
                break
    return time.monotonic() - start


def test_a_daemon_of_64_descriptors_serves_fewer_at_once_and_all_else_works(tmp_path: Path) -> None:
    command = ("prlimit", "--nofile=64:64", sys.executable, "-m", "modeld")
    with Daemon(demo_config(tmp_path), command=command) as daemon:
        daemon.wait_line(lambda line: "serving 16 at once" in line.get("msg", ""))
        daemon.wait_ready()
        with daemon.stream("/v1/completions", {"prompt": "One day", "max_tokens": 400, "ignore_eos": True}) as stream:
            frames = iter(stream)
            next(frames)
            with flood(daemon):
                for _ in range(5):
                    assert daemon.request("GET", "/livez")[0] == 200
                assert daemon.switched("demo-calc", strategy="overlap")["state"] == "succeeded"
                assert daemon.request("POST", "/reload", {})[0] == 200
                list(frames)
                share = share_of_a_core(daemon)
                assert n_descriptors(daemon.process.pid) < 64
            back_s = seconds_until_livez(daemon)
        assert stream.done
        print(f"64 descriptors, {FLOOD} silent clients: {share:.1%} of a core, /livez {back_s * 1000:.0f} ms after")
        assert share < MOST_OF_A_CORE
        assert back_s < BACK_WITHIN_S
        assert daemon.switched("demo-stories")["state"] == "succeeded"


def test_where_the_last_descriptor_is_gone_nothing_spins_and_nothing_is_lost(tmp_path: Path) -> None:
    with Daemon(demo_config(tmp_path)) as daemon:
        daemon.wait_ready()
        pid = daemon.process.pid
        threads = n_threads(pid)
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (n_descriptors(pid) + 6, before[1]))
        with flood(daemon):
            daemon.wait_line(lambda line: "out of descriptors" in line.get("msg", ""))
            share = share_of_a_core(daemon)
            assert daemon.request("GET", "/livez")[0] == 200  # the oldest silent client had to go for it
            starved = daemon.switched("demo-calc")
            reload_status, _, reload = daemon.request("POST", "/reload", {})
        back_s = seconds_until_livez(daemon)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        print(f"no descriptors, {FLOOD} silent clients: {share:.1%} of a core, /livez {back_s * 1000:.0f} ms after")
        print(f"a switch: {starved.get('state')} {starved.get('error')}; a reload: {reload_status} {reload}")
        assert share < MOST_OF_A_CORE
        assert back_s < BACK_WITHIN_S
        assert starved["state"] == "succeeded" or starved["error"]["message"]
        assert reload_status in (200, 422)
        assert daemon.switched("demo-calc")["state"] == "succeeded"
        assert daemon.switched("demo-stories")["state"] == "succeeded"
        assert daemon.request("POST", "/reload", {})[0] == 200
        assert daemon.complete(max_tokens=5)["choices"]
        assert not [line for line in daemon.lines if "ended by an exception" in line.get("msg", "")]
        daemon.wait_status(lambda _: n_threads(pid) <= threads + 1)  # the one that answers
        assert (tmp_path / "state" / "ops.jsonl").read_text().count('"op_id"') >= 3


@contextlib.contextmanager
def no_threads(daemon: Daemon, from_the: int = 1) -> Iterator[None]:
    """The kernel's answer to new threads of the daemon is EAGAIN, by strace; root passes by RLIMIT_NPROC.

    `from_the`: the how many-th that each thread asks for; before that it gets them.
    """
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    strace = subprocess.Popen(
        ["strace", "-f", "-p", str(daemon.process.pid), "-e", "trace=clone,clone3",
         "-e", f"inject=clone,clone3:error=EAGAIN:when={from_the}+",
         "-o", "/dev/null"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert strace.stderr is not None
        line = strace.stderr.readline()
        if "attached" not in line:
            pytest.skip(f"strace may not attach here: {line}")
        yield
    finally:
        strace.send_signal(signal.SIGINT)  # detaches
        strace.wait(DEADLINE_S)
        assert strace.stderr is not None
        strace.stderr.close()


def test_without_threads_clients_are_told_503_nothing_spins_and_nothing_is_lost(tmp_path: Path) -> None:
    with Daemon(demo_config(tmp_path)) as daemon:
        daemon.wait_ready()
        with daemon.stream("/v1/completions", {"prompt": "One day", "max_tokens": 400, "ignore_eos": True}) as stream:
            frames = iter(stream)
            next(frames)
            kept = socket.create_connection((daemon.host, daemon.port), timeout=DEADLINE_S)
            with kept, no_threads(daemon):
                status, fields, body = daemon.request("GET", "/livez")
                assert (status, body["error"]["code"], fields["retry-after"]) == (503, "too_many_connections", "1")
                with flood(daemon):
                    list(frames)
                    share = share_of_a_core(daemon)
            back_s = seconds_until_livez(daemon)
        assert stream.done
        print(f"no threads, {FLOOD} silent clients: {share:.1%} of a core, /livez {back_s * 1000:.0f} ms after")
        assert share < MOST_OF_A_CORE
        assert back_s < BACK_WITHIN_S
        assert daemon.switched("demo-calc")["state"] == "succeeded"
        daemon.wait_line(lambda line: "out of threads" in line.get("msg", ""))
        assert len([line for line in daemon.lines if "out of threads" in line.get("msg", "")]) in (1, 2)


def test_a_switch_without_threads_fails_and_the_next_one_works(tmp_path: Path) -> None:
    with Daemon(demo_config(tmp_path)) as daemon:
        daemon.wait_ready()
        kept = http.client.HTTPConnection(daemon.host, daemon.port, timeout=DEADLINE_S)  # it has its thread
        kept.request("GET", "/livez")
        kept.getresponse().read()
        with no_threads(daemon):
            body = json.dumps({"model_id": "demo-calc"})
            kept.request("POST", f"/switch?wait={DEADLINE_S:.0f}", body, {"Content-Type": "application/json"})
            starved = json.loads(kept.getresponse().read())
            kept.request("GET", "/livez")
            live = json.loads(kept.getresponse().read())
        kept.close()
        print(f"a switch without threads: {starved}")
        assert starved["state"] == "failed"
        assert starved["error"]["message"]
        assert live == {"status": "ok"}
        assert daemon.switched("demo-calc")["state"] == "succeeded"
        assert daemon.switched("demo-stories")["state"] == "succeeded"
        assert daemon.complete(max_tokens=5)["choices"]


def test_a_switch_that_runs_out_of_threads_on_its_way_does_not_end_the_process(tmp_path: Path) -> None:
    config = demo_config(tmp_path)  # a plan of its own: ggml makes new threads, and would abort without
    config.write_text(config.read_text().replace("demo-calc.gguf,", "demo-calc.gguf, n_threads: 3,"))
    with Daemon(config) as daemon:
        daemon.wait_ready()
        with no_threads(daemon, from_the=2):
            starved = daemon.switched("demo-calc")
        print(f"the second thread refused: {starved['error']}")
        assert starved["state"] == "failed"
        assert daemon.switched("demo-calc")["state"] == "succeeded"
        assert daemon.complete("12+3=", max_tokens=3)["choices"]
