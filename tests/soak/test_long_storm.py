"""2,000 random requests, a third of whose clients leave, and switches; for MODELD_SOAK_S seconds where that is longer."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.daemon import Daemon, demo_config, n_descriptors, n_threads, resident_mb
from tests.storm import Storm, check_log, every_slot_answers, models_of, settle

pytestmark = pytest.mark.soak

N_REQUESTS = 2000
MAX_GROWTH_MB = 16  # the heap settles: 56 MB after 500 requests, 62 after 4,000, and 62 after 12,000


def test_2000_random_requests_end_once_each_and_leave_nothing(tmp_path: Path) -> None:
    seed = int(os.environ.get("MODELD_STORM_SEED") or random.randrange(2**32))
    soak_s = float(os.environ.get("MODELD_SOAK_S") or 0)
    print(f"MODELD_STORM_SEED={seed} asks the same again")
    start, ends, sizes = time.monotonic(), Counter[str](), list[float]()
    # Without cells that are kept: they may take what the budget gives, and here that is never used up.
    with Daemon(demo_config(tmp_path, "switching: {kv_keep_bytes: 0}\n")) as daemon:
        models = models_of(daemon)
        every_slot_answers(daemon)
        pid = daemon.process.pid
        before = n_descriptors(pid), n_threads(pid)
        storms: list[Storm] = []
        while len(storms) < 4 or time.monotonic() < start + soak_s:
            storms.append(Storm(daemon, models, seed + len(storms), N_REQUESTS // 4, switch_every=60))
            storms[-1].run()
            assert not storms[-1].failures, "\n".join(storms[-1].failures)
            ends += storms[-1].ends
            settle(daemon, before)
            daemon.switch_and_wait("demo-calc")  # the same state each time
            daemon.switch_and_wait("demo-stories")
            every_slot_answers(daemon)
            sizes.append(resident_mb(pid))
        took_s = time.monotonic() - start
    for storm in storms:
        check_log(daemon, storm)
    print(f"{len(storms) * N_REQUESTS // 4} requests in {took_s:.0f} s: {dict(ends.most_common())}; resident MB {sizes}")
    assert sizes[-1] - sizes[0] < MAX_GROWTH_MB, sizes
