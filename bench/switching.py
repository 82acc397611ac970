"""What does a switch cost? `POST /switch` to `model_ready` on a real daemon against a bare load, in one run."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from bench.bare import load_once
from modeld.types import ModelSpec
from tests.daemon import Daemon

REGISTRY = """
default_model: first
models:
  - {id: first, path: %(model)s, n_ctx: 8192, n_parallel: 16}
  - {id: second, path: %(model)s, n_ctx: 8192, n_parallel: 16}
"""


def bare_load(model: Path) -> float:
    """On a thread of its own, since the decode binds it to a core."""
    seconds: list[float] = []
    spec = ModelSpec(id="bare", path=model, n_ctx=8192, n_parallel=16)
    thread = threading.Thread(target=lambda: seconds.append(load_once(spec)))
    thread.start()
    thread.join()
    return seconds[0]


def one_switch(daemon: Daemon, target: str) -> tuple[float, dict[str, float]]:
    """Seconds from the request to the arrival of model_ready, and the steps' milliseconds."""
    with daemon.events() as events:
        frames = iter(events)
        next(frames)
        start = time.perf_counter()
        op_id = daemon.switch(target)
        events.until(lambda e: e.name in ("model_ready", "model_error"))
        seconds = time.perf_counter() - start
    op = daemon.get(f"/ops/{op_id}")
    if op["state"] != "succeeded":
        raise RuntimeError(f"the switch failed: {op}")
    return seconds, op["steps_ms"]


def measure(model: Path, repeat: int) -> dict[str, Any]:
    """Pairs: a bare load, a switch; both with the file in the page cache."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "models.yaml"
        config.write_text(REGISTRY % {"model": model})
        pairs, steps = [], []
        with Daemon(config) as daemon:
            daemon.wait_ready()
            one_switch(daemon, "second")  # the first of each kind pays for what is cold
            bare_load(model)
            for i in range(repeat):
                bare = bare_load(model)
                seconds, step_ms = one_switch(daemon, ("first", "second")[i % 2])
                pairs.append((bare, seconds))
                steps.append(step_ms)
    return {
        "model": model.stem,
        "bare_load_s": round(statistics.median(bare for bare, _ in pairs), 3),
        "switch_s": round(statistics.median(seconds for _, seconds in pairs), 3),
        "ratio": round(statistics.median(seconds / bare for bare, seconds in pairs), 3),
        "ratios": [round(seconds / bare, 3) for bare, seconds in pairs],
        "steps_ms": {step: round(statistics.median(s[step] for s in steps), 1) for step in steps[0]},
    }
