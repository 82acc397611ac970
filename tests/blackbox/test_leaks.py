"""Switches under load leave nothing behind: resident memory, descriptors and threads of a real daemon."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

from tests.daemon import Daemon, demo_config, n_descriptors, n_threads, resident_mb


class Clients:
    """Threads that ask without end and count what they get: whole answers, and answers cut with a reason."""

    def __init__(self, daemon: Daemon, n: int) -> None:
        self._daemon = daemon
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.n_whole = self.n_cut = self.n_refused = 0
        self.unexplained: list[object] = []
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(n)]
        for thread in self._threads:
            thread.start()

    def _ask(self, number: int) -> None:
        while not self._stop.is_set():
            with self._daemon.stream("/v1/completions", {"prompt": "One day", "max_tokens": 100, "ignore_eos": True}) as stream:
                if stream.response.status != 200:
                    code = json.loads(stream.response.read())["error"]["code"]
                    with self._lock:
                        self.n_refused += 1
                        if code not in ("model_loading", "model_switched"):
                            self.unexplained.append(code)
                    continue
                for _ in stream:
                    pass
                error = stream.frames[-1].get("error", {}).get("code") if stream.frames else None
                with self._lock:
                    self.n_whole += stream.done
                    self.n_cut += error == "model_switched"
                    if stream.done == (error is not None):
                        self.unexplained.append(stream.frames[-1:])

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def switch_back_and_forth(daemon: Daemon, n: int) -> None:
    for i in range(n):
        op = daemon.switch_and_wait(("demo-calc", "demo-stories")[i % 2])
        assert op["state"] == "succeeded", op


def figures(daemon: Daemon) -> tuple[float, int, int]:
    """At rest, in the same state each time: a fresh model that has answered one request.

    How much of a model's compute buffer is resident depends on the largest batch since it was loaded.
    """
    pid = daemon.process.pid
    switch_back_and_forth(daemon, 2)
    with daemon.stream("/v1/completions", {"prompt": "One day", "max_tokens": 100, "ignore_eos": True}) as stream:
        for _ in stream:
            pass
    # The connection's thread ends just after its last byte, so the least of what is seen within a second.
    until = time.monotonic() + 1
    samples = [(n_descriptors(pid), n_threads(pid))]
    while time.monotonic() < until:
        samples.append((n_descriptors(pid), n_threads(pid)))
    return resident_mb(pid), min(fds for fds, _ in samples), min(threads for _, threads in samples)


def test_200_switches_under_four_clients_leave_nothing_behind(tmp_path: Path) -> None:
    # Without cells that are kept: they may take what the budget gives, and here that is never used up.
    with Daemon(demo_config(tmp_path, "switching: {kv_keep_bytes: 0}\n")) as daemon:
        daemon.wait_ready()
        results = []
        for n in (50, 150):
            clients = Clients(daemon, 4)
            switch_back_and_forth(daemon, n)
            clients.stop()
            assert not clients.unexplained, clients.unexplained[:5]
            results.append(figures(daemon))
        print(f"resident MB, descriptors, threads: {results}; whole {clients.n_whole}, cut {clients.n_cut}")
        (early_mb, early_fds, early_threads), (late_mb, late_fds, late_threads) = results
        assert late_mb - early_mb < 4
        assert (late_fds, late_threads) == (early_fds, early_threads)
