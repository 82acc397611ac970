"""200 random requests, a third of whose clients leave, with switches in between (`make soak` has 2,000, and fresh seeds)."""

from __future__ import annotations

import os
from pathlib import Path

from tests.daemon import Daemon, demo_config, n_descriptors, n_threads, resident_mb
from tests.storm import Storm, check_log, every_slot_answers, models_of, settle


def test_200_random_requests_end_once_each_and_leave_nothing(tmp_path: Path) -> None:
    seed = int(os.environ.get("MODELD_STORM_SEED") or 1)
    with Daemon(demo_config(tmp_path, one_thread=True)) as daemon:
        models = models_of(daemon)
        every_slot_answers(daemon)
        pid = daemon.process.pid
        before, before_mb = (n_descriptors(pid), n_threads(pid)), resident_mb(pid)
        storm = Storm(daemon, models, seed, 200, switch_every=80)
        storm.run()
        assert not storm.failures, "\n".join(storm.failures)
        settle(daemon, before)
        every_slot_answers(daemon)
        assert resident_mb(pid) - before_mb < 32
    check_log(daemon, storm)
    print(dict(storm.ends))
    assert storm.ends["stop"] + storm.ends["length"] > 60
