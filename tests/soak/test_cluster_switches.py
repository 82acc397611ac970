"""Twenty switches behind haproxy with 8 clients: none fails with ready_delay_s, and what is lost without it.

python -m pytest -m soak -s tests/soak/test_cluster_switches.py
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.cluster import DRAIN, MODEL_IDS, N_CLIENTS, OVERLAP, Cluster, by_model, switch_by_turns

pytestmark = pytest.mark.soak

N_SWITCHES = 20
AT_ONCE: dict[str, object] = {"on_inflight": "drain", "ready_delay_s": 0}
CUT: dict[str, object] = {"on_inflight": "cancel", "ready_delay_s": 0}
# What haproxy may repeat on another host: a 503 of modeld's is a refusal, or an answer that was cut before its first byte.
REPEATED = "retries 3\n    retry-on conn-failure 503"


def lost(folder: Path, name: str, *ways: dict[str, object], retries: str = "retries 0") -> int:
    """How many requests failed while the hosts were switched by turns in these ways."""
    with Cluster(folder, retries=retries) as cluster, cluster.clients() as tally:
        tally.wait_more(100)
        began = time.monotonic()
        switch_by_turns(cluster, N_SWITCHES, *ways)
        seconds = time.monotonic() - began
        tally.wait_more(100)
    n_failed = tally.failures.total()
    print(
        f"\n{name}: {N_CLIENTS} clients, {N_SWITCHES} switches in {seconds:.1f} s, {tally.n} answers, {n_failed} failed "
        f"{dict(tally.failures)}; {dict(tally.answers)}"
    )
    return n_failed


def test_twenty_draining_and_overlapping_switches_lose_nothing(tmp_path: Path) -> None:
    assert lost(tmp_path, "drain with ready_delay_s, and overlap", DRAIN, OVERLAP) == 0


def test_draining_without_a_delay_loses_requests(tmp_path: Path) -> None:
    assert lost(tmp_path, "drain without ready_delay_s", AT_ONCE) > 0


def test_cancelling_without_a_delay_loses_requests(tmp_path: Path) -> None:
    assert lost(tmp_path, "cancel without ready_delay_s", CUT) > 0


def test_what_repeating_refused_requests_adds(tmp_path: Path) -> None:
    """Told, not demanded: how many get through depends on which host comes next."""
    lost(tmp_path, "drain without ready_delay_s, haproxy repeats what is refused", AT_ONCE, retries=REPEATED)


def test_who_names_a_model_is_sent_to_a_host_that_has_it(tmp_path: Path) -> None:
    """With what docs/clusters.md adds to the example."""
    with Cluster(tmp_path, shipped=by_model()) as cluster:
        with cluster.clients(MODEL_IDS[0]) as named:
            named.wait_more(50)
            assert cluster.daemons[0].switched(MODEL_IDS[1], **DRAIN)["state"] == "succeeded"
            named.wait_more(50)
        cluster.wait_up("one", backend=f"model-{MODEL_IDS[1]}")
        cluster.wait_up("two", backend=f"model-{MODEL_IDS[0]}")
        with cluster.clients(*MODEL_IDS) as both:
            both.wait_more(50)
    assert not named.failures, named.failures
    assert not both.failures, both.failures
    assert {answer.partition(",")[0] for answer in both.answers} == set(MODEL_IDS)
