"""`kill -9` at random moments of switches and of writes of the state file: the next start knows what answered last."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from modeld.manager.remembered import Remembered
from tests.daemon import DEADLINE_S, Daemon, demo_config

MODELS = ("demo-stories", "demo-calc")
WRITE_DEADLINE_S = 5.0


class Switching:
    """A client that switches back and forth until its daemon is gone. What it knows of it is for after the end."""

    def __init__(self, daemon: Daemon, answering: str) -> None:
        self.confirmed = answering  # the last model whose op was seen to succeed
        self.in_flight: str | None = None  # was asked for since
        self.refused: list[Any] = []
        self._daemon = daemon
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):  # ValueError: an answer that was cut
            while not self.refused:
                target = MODELS[MODELS.index(self.confirmed) - 1]
                self.in_flight = target
                op = self._daemon.switched(target)
                if op.get("state") != "succeeded":
                    self.refused.append(op)
                self.confirmed, self.in_flight = target, None

    def join(self) -> None:
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "the client hangs though its daemon is gone"


def wait_for_a_write(state: Path, nth: int) -> None:
    """Return in the middle of the nth write from now on, or just behind it."""
    deadline = time.monotonic() + WRITE_DEADLINE_S
    new, file = state / "state.json.new", state / "state.json"
    for _ in range(nth):
        before = inode(file)
        while not new.exists() and inode(file) == before:
            assert time.monotonic() < deadline, "nothing is written"


def inode(path: Path) -> int | None:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_ino
    return None


def kill_at_random(daemon: Daemon, r: random.Random, state: Path) -> str:
    """Where in time the daemon is killed is what this test tries out, so no event says it."""
    if r.random() < 0.5:
        nth = r.randint(1, 6)
        wait_for_a_write(state, nth)
        how = f"in write {nth}"
    else:
        after_s = r.uniform(0, 0.4)
        threading.Event().wait(after_s)
        how = f"after {after_s * 1000:.0f} ms"
    os.kill(daemon.process.pid, signal.SIGKILL)
    return how


@pytest.mark.parametrize("n", [8, pytest.param(100, marks=pytest.mark.soak)])
def test_a_start_after_kill_9_has_the_last_good_model_and_blames_no_other(tmp_path: Path, n: int) -> None:
    seed = int(os.environ.get("MODELD_KILL_SEED") or (1 if n < 100 else random.randrange(2**32)))
    print(f"MODELD_KILL_SEED={seed} kills at the same moments again")
    r = random.Random(seed)
    config, state = demo_config(tmp_path, one_thread=True), tmp_path / "state"
    with Daemon(config) as daemon:  # a first start has no last good model: let it find one
        daemon.wait_ready()
    allowed = {"demo-stories"}
    blamable: dict[str, int] = {}  # kills in a row that may have come in the middle of a load of that model
    starts_ms, n_interrupted, n_loading = [], 0, 0
    for turn in range(n):
        daemon = Daemon(config)
        try:
            early = r.random() < 0.15  # in the load at start
            if early:
                how = kill_at_start(daemon, r)
                loading = set(allowed)
            else:
                daemon.wait_ready()
                starts_ms.append(int((time.monotonic() - daemon.started) * 1000))
                status = daemon.get("/status")
                assert status["current_model"] in allowed, (turn, status, allowed)
                assert daemon.complete(max_tokens=1)["usage"]["completion_tokens"] == 1
                blamable.pop(status["current_model"], None)
                quarantined = status["quarantined"]
                assert {model_id for model_id in quarantined if blamable.get(model_id, 0) < 2} == set(), (turn, blamable)
                for model_id in quarantined:
                    assert daemon.request("DELETE", f"/quarantine/{model_id}")[0] == 200
                    del blamable[model_id]
                client = Switching(daemon, status["current_model"])
                how = kill_at_random(daemon, r, state)
                client.join()
                assert not client.refused, (turn, client.refused)
                allowed = {client.confirmed} | ({client.in_flight} if client.in_flight else set())
                loading = {client.in_flight} if client.in_flight else set()
                if client.confirmed != status["current_model"]:
                    blamable = {}  # both were loaded well since
        finally:
            if daemon.process.poll() is None:
                daemon.process.kill()
            assert daemon.wait() == -signal.SIGKILL, (turn, daemon.lines[-5:])
        kept = Remembered.from_json(json.loads((state / "state.json").read_bytes()))
        n_interrupted += (state / "state.json.new").exists()
        n_loading += kept.trying is not None
        assert kept.last_good is not None
        assert kept.last_good.model_id in allowed, (turn, how, kept, allowed)
        if kept.trying is not None:
            assert kept.trying.model_id in loading, (turn, how, kept, loading)
            blamable[kept.trying.model_id] = blamable.get(kept.trying.model_id, 0) + 1
        assert not (state / "state.json.bad").exists(), (turn, how)
        allowed = {kept.last_good.model_id}  # what the file says is what the next start has to load
    with Daemon(config) as daemon:
        daemon.wait_ready()
        assert daemon.get("/status")["current_model"] in allowed
    print(
        f"{n} kills, {n_loading} in a load, {n_interrupted} in a write; start to ready: median "
        f"{statistics.median(starts_ms):.0f} ms, longest {max(starts_ms)} ms"
    )


def kill_at_start(daemon: Daemon, r: random.Random) -> str:
    after_s = r.uniform(0, 0.15)
    threading.Event().wait(after_s)
    os.kill(daemon.process.pid, signal.SIGKILL)
    return f"{after_s * 1000:.0f} ms after it listens"
