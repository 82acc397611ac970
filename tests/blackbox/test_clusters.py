"""Two daemons behind the shipped haproxy: switches, unloads and stops that cost no client an answer, and those that do."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster import DRAIN, MODEL_IDS, OVERLAP, READY_DELAY_S, SHIPPED, Cluster, by_model, example, switch_by_turns
from tests.fronts import DEPLOY, find, make_certificate

# What one host alone can answer: through the balancer nobody knows which.
ONE_HOSTS = (
    ("POST", "/switch"),
    ("POST", "/unload"),
    ("GET", "/status"),
    ("GET", "/ops"),
    ("GET", "/events"),
    ("GET", "/metrics"),
)


@pytest.mark.parametrize("shipped", [SHIPPED, by_model()], ids=["the file", "with hosts by model"])
def test_haproxy_accepts_the_example(tmp_path: Path, shipped: str) -> None:
    config = tmp_path / "haproxy.cfg"
    certificate = make_certificate(tmp_path, "models.example.com")
    config.write_text(
        example(":443", certificate, tmp_path / "admin.sock", ["192.0.2.11:8080", "192.0.2.12:8080"], shipped=shipped)
    )
    command = [find("haproxy"), "-c", "-q", "-f", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_switches_by_turns_lose_no_request(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster, cluster.clients() as tally:
        tally.wait_more(50)
        assert [cluster.ask(method, path) for method, path in ONE_HOSTS] == [404] * len(ONE_HOSTS)
        assert cluster.ask("GET", "/readyz") == 200
        switch_by_turns(cluster, 6, OVERLAP, DRAIN, OVERLAP)
        tally.wait_more(50)
    assert not tally.failures, tally.failures
    assert len(tally.answers) == 4, tally.answers  # both models, streamed and whole


def test_an_unload_loses_requests_without_a_delay_and_none_with_it(tmp_path: Path) -> None:
    """The first half shows that the clients would notice."""
    with Cluster(tmp_path) as cluster, cluster.clients() as tally:
        tally.wait_more(50)
        assert cluster.daemons[0].unloaded(on_inflight="drain")["state"] == "succeeded"
        cluster.wait_up("two")
        assert set(tally.failures) <= {"503 no_model", "503 model_loading"}, tally.failures
        assert tally.failures
        assert cluster.daemons[0].switched(MODEL_IDS[0])["state"] == "succeeded"
        cluster.wait_up("one", "two")
        before = tally.failures.copy()
        tally.wait_more(50)
        assert cluster.daemons[0].unloaded(**DRAIN)["state"] == "succeeded"
        assert cluster.up() == {"two"}
        tally.wait_more(50)
    assert tally.failures == before


def test_a_rolling_switch_and_a_daemon_that_stops_lose_no_request(tmp_path: Path) -> None:
    with Cluster(tmp_path, stop_delay_s=READY_DELAY_S) as cluster, cluster.clients() as tally:
        tally.wait_more(50)
        urls = [daemon.url for daemon in cluster.daemons]
        command = [sys.executable, str(DEPLOY / "rolling-switch"), "--ready-delay", str(READY_DELAY_S), "--settle", "0.5"]
        done = subprocess.run([*command, MODEL_IDS[1], *urls], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert [daemon.get("/status")["current_model"] for daemon in cluster.daemons] == [MODEL_IDS[1]] * 2
        cluster.wait_up("one", "two")
        assert cluster.daemons[0].stop(signal.SIGTERM) == 0
        assert cluster.up() == {"two"}
        tally.wait_more(50)
    assert not tally.failures, tally.failures
