"""A model large enough to watch it load: 0.5B shape, random weights, 352 MB, made by bench/make_model.py."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.daemon import ROOT, Daemon, Event, demo_config

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def q05() -> Path:
    path = ROOT / "bench" / ".cache" / "q05.gguf"
    if not path.is_file():
        subprocess.run([sys.executable, str(ROOT / "bench" / "make_model.py"), "q05"], check=True, cwd=ROOT)
    return path


def evict(path: Path) -> None:
    """Drop the file from the page cache, so that the load is a cold one."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def test_a_load_is_seen_from_its_first_percent_to_its_last(tmp_path: Path, q05: Path) -> None:
    entry = f"  - {{id: q05, path: {q05}, n_ctx: 8192, n_parallel: 16}}\n"
    with Daemon(demo_config(tmp_path, entry)) as daemon:
        daemon.wait_ready()
        probes: list[tuple[int, int, str, int]] = []

        def probe(event: Event) -> bool:
            if event.name == "model_loading_progress" and event.data["step"] == "mmap":
                ready, headers, body = daemon.request("GET", "/readyz")
                live, _, _ = daemon.request("GET", "/livez")
                probes.append((live, ready, body["state"], int(headers.get("retry-after", 0))))
            return event.name == "model_ready"

        with daemon.events() as events:
            next(iter(events))
            daemon.switch("q05")
            events.until(probe)
            assert daemon.request("GET", "/readyz")[0] == 200
        percents = {e.data["pct"] for e in events.seen if e.name == "model_loading_progress" and e.data["step"] == "mmap"}
        assert len(percents) >= 10, percents
        assert probes
        print(f"{len(percents)} different percents; the first probe during the load: {probes[0]}")
        # the probes run beside the load, so the last ones may come after it; the first one cannot
        assert probes[0][:3] == (200, 503, "loading")
        assert probes[0][3] >= 1


def test_a_cold_load_leaves_the_control_plane_answering(tmp_path: Path, q05: Path) -> None:
    entry = f"  - {{id: q05, path: {q05}, n_ctx: 8192, n_parallel: 16}}\n"
    with Daemon(demo_config(tmp_path, entry)) as daemon:
        daemon.wait_ready()
        evict(q05)
        with daemon.events() as events:
            next(iter(events))
            daemon.switch("q05")
            ended = threading.Event()

            def follow() -> None:
                events.until(lambda e: e.name in ("model_ready", "model_error"))
                ended.set()

            follower = threading.Thread(target=follow)
            follower.start()
            n_probes = 0
            while not ended.is_set():
                assert daemon.request("GET", "/livez")[0] == 200
                assert daemon.get("/status")["state"] in ("loading", "ready")
                n_probes += 1
            follower.join()
        print(f"{n_probes} probes during a cold load of {q05.stat().st_size >> 20} MB")
        assert daemon.get("/status")["current_model"] == "q05"


def test_a_switch_interrupts_a_long_prompt_at_once(tmp_path: Path, q05: Path) -> None:
    """The running decode is aborted between two graph nodes: nobody waits for 3,000 tokens to be read."""
    entry = f"  - {{id: q05, path: {q05}, n_ctx: 8192, n_parallel: 2}}\n"
    with Daemon(demo_config(tmp_path, entry)) as daemon:
        daemon.wait_ready()
        daemon.switch_and_wait("q05")
        answers: list[int] = []
        body = {"prompt": list(range(1000, 4000)), "max_tokens": 4}
        asking = threading.Thread(target=lambda: answers.append(daemon.request("POST", "/v1/completions", body)[0]))
        asking.start()
        while daemon.get("/status")["slots"]["busy"] == 0:
            pass
        op = daemon.switch_and_wait("demo-calc")
        asking.join()
        assert answers == [503]  # cut, not answered
        print(f"unload took {op['steps_ms']['unload']} ms; reading that prompt takes seconds")
