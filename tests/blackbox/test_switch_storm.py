"""Random switches, cancellations, reloads and generations of 8 clients: 300, in soak for MODELD_SOAK_S seconds at least."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.daemon import Daemon, n_descriptors, n_threads, resident_mb
from tests.storm import every_slot_answers, settle
from tests.switch_storm import ENDS, Registry, SwitchStorm, Watcher, check_events, check_status, mapped

N_OPS = 300
MAX_GROWTH_MB = 16


@pytest.mark.parametrize("auto_switch", [False, True], ids=["refusing", "auto_switch"])
@pytest.mark.parametrize("n_storms", [1, pytest.param(5, marks=pytest.mark.soak)])
def test_random_operations_end_once_each_and_leave_nothing(tmp_path: Path, n_storms: int, *, auto_switch: bool) -> None:
    seed = int(os.environ.get("MODELD_STORM_SEED") or (1 if n_storms == 1 else random.randrange(2**32)))
    soak_s = float(os.environ.get("MODELD_SOAK_S") or 0) if n_storms > 1 else 0.0
    print(f"MODELD_STORM_SEED={seed} does the same again")
    begin = time.monotonic()
    registry = Registry(tmp_path, auto_switch=auto_switch)
    storms: list[SwitchStorm] = []
    sizes: list[float] = []
    with Daemon(registry.path) as daemon:
        daemon.wait_ready()
        for model_id in ("third", "demo-calc", "demo-stories"):
            assert daemon.switched(model_id)["state"] == "succeeded"
        every_slot_answers(daemon)
        pid = daemon.process.pid
        before = n_descriptors(pid), n_threads(pid)
        watcher = Watcher(daemon)
        while len(storms) < n_storms or time.monotonic() < begin + soak_s:
            storms.append(SwitchStorm(daemon, registry, seed + len(storms), N_OPS))
            storms[-1].run()
            assert not storms[-1].failures, "\n".join(storms[-1].failures)
            # One switch more, and everything is as it was.
            assert daemon.switched("demo-stories", drain_timeout_s=0)["state"] == "succeeded"
            status = daemon.wait_status(lambda status: status["retiring_model"] is None and status["op"] is None)
            check_status(status)
            assert (status["current_model"], status["queued_ops"], status["error"]) == ("demo-stories", 0, None)
            assert status["waiting"] == 0
            settle(daemon, (before[0] + 1, before[1] + 1))  # the watcher has a connection, and a thread, of its own
            every_slot_answers(daemon)
            assert mapped(daemon) == {"demo-stories.gguf"}
            sizes.append(resident_mb(pid))
            for op_id in storms[-1].op_ids[-50:]:
                assert daemon.get(f"/ops/{op_id}")["ended_at"] is not None
    events = watcher.end()
    ends = check_events(events, [op_id for storm in storms for op_id in storm.op_ids])
    faults = [line for line in daemon.lines if "exception" in line or "raw" in line]
    assert not faults, faults[:5]
    assert set(ends) <= {*ENDS, "op_cancelled", "model_load_failed"}, ends
    took_s = time.monotonic() - begin
    print(f"{len(storms) * N_OPS} operations in {took_s:.0f} s, {len(events)} events, ops: {dict(ends)}; resident MB {sizes}")
    print(dict(sum((storm.ends for storm in storms), Counter[str]()).most_common()))
    assert sizes[-1] - sizes[0] < MAX_GROWTH_MB, sizes
