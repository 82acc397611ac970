"""A real daemon's scrape: clean to promtool, documented to the last name, and monotone through switches."""

from __future__ import annotations

import itertools
import re
import subprocess
import threading
from pathlib import Path

import pytest

from tests.daemon import ROOT, Daemon, demo_config
from tests.scrapes import Scrape, scrape, scrape_text

DOCS = (ROOT / "docs" / "metrics.md").read_text()
# name, type, labels
ROWS = re.findall(r"^\| `([a-z_]+)` \| (counter|gauge|histogram) \| *([^|]*?) *\|", DOCS, re.MULTILINE)


def scraped(daemon: Daemon) -> Scrape:
    return scrape(daemon.host, daemon.port)


@pytest.fixture
def used(daemon: Daemon) -> Daemon:
    """It has answered, refused, switched there and back."""
    prompt = "One day, a little girl went to the park and saw a big dog that was running around"
    for _ in range(2):
        daemon.complete(prompt, max_tokens=5)
    daemon.request("GET", "/nothing")
    assert daemon.switch_and_wait("demo-calc")["state"] == "succeeded"
    assert daemon.switch_and_wait("demo-stories")["state"] == "succeeded"
    return daemon


def test_promtool_has_nothing_to_say(used: Daemon, promtool: str) -> None:
    """It reads Prometheus' own text alone; the other one is read by tests.scrapes, strictly, in all that follows."""
    text = scrape_text(used.host, used.port)
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(text.splitlines()) > 300


def test_every_metric_is_documented_with_its_type_and_every_documented_one_is_there(used: Daemon) -> None:
    found = scraped(used)
    kinds = {f"{name}_total" if kind == "counter" else name: kind for name, kind in found.kinds.items()}
    assert {name: kind for name, kind, _ in ROWS} == kinds
    assert len(ROWS) == len(kinds)


def test_every_label_is_documented(used: Daemon) -> None:
    told = {name: set(re.findall(r"`([a-z_]+)`", labels)) for name, _, labels in ROWS}
    for series in scraped(used).values:
        name, _, labels = series.partition("{")
        family = name if name in told else re.sub(r"_(bucket|sum|count)$", "", name)
        assert set(re.findall(r'(\w+)="', labels)) - {"le"} == told[family], series


def test_the_scrape_tells_what_was_done(used: Daemon) -> None:
    found = scraped(used)
    assert found['modeld_state{state="ready"}'] == 1
    assert found['modeld_model_loaded{model="demo-stories"}'] == 1
    assert found["modeld_generation"] == used.get("/status")["generation"]
    assert found.total("modeld_completion_tokens_total") >= 10
    assert found.total("modeld_prefix_cache_tokens_total") > 10
    assert found['modeld_op_step_seconds_count{step="total"}'] == found.total("modeld_ops_total")
    assert found["modeld_slots"] == 8
    assert found["process_open_fds"] < found["process_max_fds"]
    assert found['modeld_http_requests_total{method="GET",route="other",status="404"}'] >= 1


def counters(found: Scrape) -> dict[str, float]:
    """All that must not go back: counters, and what histograms are made of."""
    rising = {name for name, kind in found.kinds.items() if kind in ("counter", "histogram")}

    def rises(series: str) -> bool:
        return re.sub(r"_(total|bucket|sum|count)$", "", series.partition("{")[0]) in rising

    return {series: value for series, value in found.values.items() if rises(series)}


def test_no_counter_goes_back_while_models_come_and_go(tmp_path: Path) -> None:
    with Daemon(demo_config(tmp_path, one_thread=True)) as daemon:
        daemon.wait_ready()
        daemon.complete("One day", max_tokens=20)
        over = threading.Event()
        scrapes = [scraped(daemon)]

        def follow() -> None:
            while not over.is_set():
                scrapes.append(scraped(daemon))

        follower = threading.Thread(target=follow)
        follower.start()
        try:
            for _ in range(3):
                daemon.switch_and_wait("demo-calc")
                daemon.complete("1+1=", max_tokens=5)
                daemon.switch_and_wait("demo-stories")
                daemon.complete("One day", max_tokens=5)
        finally:
            over.set()
            follower.join()
        scrapes.append(scraped(daemon))
    assert len(scrapes) > 10
    states = {state for found in scrapes for state in ("ready", "loading") if found[f'modeld_state{{state="{state}"}}']}
    assert states == {"ready", "loading"}  # it was scraped during loads, too
    for before, after in itertools.pairwise(scrapes):
        later = counters(after)
        assert not {
            series: (value, later.get(series)) for series, value in counters(before).items() if later.get(series, -1) < value
        }
    assert scrapes[-1]["modeld_sequences_total"] == 7
