"""slowhttptest, 500 slow heads and 500 slow bodies at once: others do not notice, and the slow ones are gone in time."""

from __future__ import annotations

import contextlib
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from modeld.config import ServerConfig
from tests.daemon import MODELS, Daemon

N_EACH = 500
PER_SECOND = 250
GRACE_S = 5.0  # beyond the deadline, in which the slow ones have to be gone
PROBE_EVERY_S = 0.05
BOUND_S = 0.1  # on a machine that does nothing else
BOUND_BESIDE_OTHERS_S = 1.0


@dataclass
class Figures:
    livez_s: list[float]
    n_frames: int
    gone_s: dict[str, float]  # after the first connection

    @property
    def p99_s(self) -> float:
        return statistics.quantiles(self.livez_s, n=100)[98]

    def __str__(self) -> str:
        p50, worst = statistics.median(self.livez_s) * 1000, max(self.livez_s) * 1000
        livez = f"/livez of {len(self.livez_s)}: p50 {p50:.1f} ms, p99 {self.p99_s * 1000:.1f} ms, longest {worst:.1f} ms"
        gone = ", ".join(f"slow {what} gone after {seconds:.1f} s" for what, seconds in self.gone_s.items())
        return f"{livez}; {gone}; {self.n_frames} frames of the stream meanwhile"


class Follower(threading.Thread):
    """Reads a stream without end and counts its frames."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__()
        self.n_frames = 0
        self.begun = threading.Event()
        self.enough = threading.Event()
        self.was_cut = True
        self._daemon = daemon

    def run(self) -> None:
        ask = {"prompt": "One day", "ignore_eos": True, "max_tokens": 250_000}
        with self._daemon.stream("/v1/completions", ask) as stream:
            for frame in stream:
                assert "error" not in frame, frame
                self.n_frames += 1
                self.begun.set()
                if self.enough.is_set():
                    self.was_cut = False
                    break


def slow_clients(daemon: Daemon, folder: Path, what: str, seconds: float) -> subprocess.Popen[str]:
    """It ends by itself when none of its connections is left, else after `seconds`."""
    kinds = {
        "heads": ["-H", "-u", f"{daemon.url}/livez"],
        "bodies": ["-B", "-t", "POST", "-f", "application/json", "-s", "4096", "-u", f"{daemon.url}/v1/completions"],
    }
    return subprocess.Popen(
        ["slowhttptest", "-c", str(N_EACH), "-r", str(PER_SECOND), "-i", "1", "-l", f"{seconds:.0f}", *kinds[what]],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@contextlib.contextmanager
def streaming(daemon: Daemon) -> Iterator[Follower]:
    follower = Follower(daemon)
    follower.start()
    try:
        assert follower.begun.wait(60)
        yield follower
    finally:
        follower.enough.set()
        follower.join()


def attack(tmp_path: Path, head_s: float, body_s: float) -> Figures:
    if shutil.which("slowhttptest") is None:
        pytest.skip("slowhttptest is not installed")
    config = tmp_path / "models.yaml"
    config.write_text(
        f"""
server: {{port: 0, head_timeout_s: {head_s}, body_timeout_s: {body_s}}}
models: [{{id: long, path: {MODELS}/demo-stories.gguf, n_ctx: 262144, n_parallel: 1, n_threads: 1}}]
"""
    )
    deadlines = {"heads": head_s, "bodies": body_s}
    connecting_s = N_EACH / PER_SECOND
    with Daemon(config) as daemon:
        daemon.wait_ready()
        with streaming(daemon) as follower:
            n_before = follower.n_frames
            start = time.monotonic()
            attackers = {
                what: slow_clients(daemon, tmp_path, what, connecting_s + seconds + 3 * GRACE_S)
                for what, seconds in deadlines.items()
            }
            livez_s: list[float] = []
            gone_s: dict[str, float] = {}
            while len(gone_s) < len(attackers):
                before = time.monotonic()
                status, _, _ = daemon.request("GET", "/livez")
                livez_s.append(time.monotonic() - before)
                assert status == 200
                for what, attacker in attackers.items():
                    if what not in gone_s:
                        with contextlib.suppress(subprocess.TimeoutExpired):
                            attacker.wait(PROBE_EVERY_S / len(attackers))
                            gone_s[what] = time.monotonic() - start
        for what, attacker in attackers.items():
            said = attacker.communicate()[0]
            assert "No open connections left" in said, f"slow {what}: {said[-600:]}"
            assert gone_s[what] < connecting_s + deadlines[what] + GRACE_S
        assert not follower.was_cut
        assert daemon.lines[-1].get("level") != "error"
        return Figures(livez_s, follower.n_frames - n_before, gone_s)


def test_slow_heads_and_bodies_are_not_noticed_by_others(tmp_path: Path) -> None:
    figures = attack(tmp_path, 3, 4)
    print(f"deadlines of 3 and 4 s: {figures}")
    assert figures.p99_s < BOUND_BESIDE_OTHERS_S


@pytest.mark.soak
def test_slow_heads_and_bodies_are_not_noticed_by_others_with_the_deadlines_of_the_defaults(tmp_path: Path) -> None:
    default = ServerConfig()
    figures = attack(tmp_path, default.head_timeout_s, default.body_timeout_s)
    print(f"default deadlines: {figures}")
    assert figures.p99_s < BOUND_S
