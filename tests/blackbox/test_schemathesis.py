"""Schemathesis asks a real daemon whatever /openapi.json allows, and whatever it forbids; MODELD_SOAK_S lets it go on."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import DEADLINE_S, MODELS, Daemon

PROGRAM = Path(sysconfig.get_path("scripts")) / "schemathesis"
KEY = "schemathesis-may-do-everything"
SETTINGS = Path(__file__).with_name("schemathesis.toml")

# Small contexts end every answer soon. With auto_switch the next request brings back what an unload took away.
CONFIG = """
server: {host: 127.0.0.1, port: 0, generation_timeout_s: 20, api_key_file: keys}
switching: {auto_switch: true, auto_switch_min_stay_s: 0, cooldown_failures: 0}
default_model: %(default)s
models:
  - {id: demo-stories, path: %(models)s/demo-stories.gguf, n_ctx: 256, n_parallel: 4, n_threads: 1}
  - {id: demo-vectors, path: %(models)s/demo-stories.gguf, n_ctx: 256, n_threads: 1, pooling: mean}
"""


@pytest.fixture
def daemon(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Daemon]:
    config = tmp_path / "models.yaml"
    config.write_text(CONFIG % {"models": MODELS, "default": request.param})
    (tmp_path / "keys").touch(0o600)
    (tmp_path / "keys").write_text(f"schemathesis admin {KEY}")
    with Daemon(config) as daemon:
        daemon.wait_line(lambda line: line["msg"] == "model ready")
        yield daemon


def ask(daemon: Daemon, folder: Path, *options: str, timeout_s: float) -> dict[str, Any]:
    """Its report, after a run that found nothing; else what it found."""
    # From a file: what loads it from the daemon sends each request's key by another way, and then no request without one.
    document, report = folder / "openapi.json", folder / "report.json"
    api = daemon.request("GET", "/openapi.json", fields={"X-Api-Key": KEY})[2]
    # Unasked for: a switch that lets balancers look away for an hour holds up all behind it, and who waits for them, for as long.
    del api["components"]["schemas"]["SwitchOptions"]["properties"]["ready_delay_s"]
    document.write_text(json.dumps(api))
    command = f"{PROGRAM} --config-file {SETTINGS} --no-color run {document} --url {daemon.url} --report json"
    done = subprocess.run(
        [*command.split(), "--report-json-path", report, "--request-timeout", f"{DEADLINE_S:.0f}", *options],
        cwd=folder,
        env={**os.environ, "NO_PROXY": "127.0.0.1", "MODELD_TEST_KEY": KEY},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    told: dict[str, Any] = json.loads(report.read_text())
    assert told["complete"], told["stop_reason"]
    print(f"{told['test_cases']['generated']} cases in {told['running_time']:.0f} s")
    return told


@pytest.mark.timeout(400)
@pytest.mark.parametrize("daemon", ["demo-stories"], indirect=True)
def test_whatever_it_asks_the_answer_is_as_documented(daemon: Daemon, tmp_path: Path) -> None:
    """The same requests each time."""
    told = ask(daemon, tmp_path, "--generation-deterministic", "--max-examples", "10", timeout_s=350)
    assert told["operations"]["tested"] == told["operations"]["total"] > 20
    assert told["test_cases"]["generated"] > 2000


@pytest.mark.parametrize("daemon", ["demo-vectors"], indirect=True)
def test_a_model_for_embeddings_is_asked_for_them(daemon: Daemon, tmp_path: Path) -> None:
    told = ask(daemon, tmp_path, "--generation-deterministic", "--include-path", "/v1/embeddings", timeout_s=100)
    rates = told["valid_rates"]["POST /v1/embeddings"]
    assert sum(phase["accepted"] for phase in rates.values()) > 20


@pytest.mark.soak
@pytest.mark.parametrize("daemon", ["demo-stories"], indirect=True)
def test_other_requests_each_time(daemon: Daemon, tmp_path: Path) -> None:
    seed = int(os.environ.get("MODELD_STORM_SEED", random.randrange(2**32)))
    seconds = int(os.environ.get("MODELD_SOAK_S", "120"))
    print(f"MODELD_STORM_SEED={seed}")
    ask(
        daemon,
        tmp_path,
        "--seed",
        str(seed),
        "--max-time",
        str(seconds),
        "--generation-database",
        "none",
        timeout_s=seconds + 300,
    )
