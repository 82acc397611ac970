"""A model that ends the process, past all checks: two restarts at most, then the last good model answers and stays."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon import MODELS, Daemon, demo_config
from tests.hostile_gguf import all_hostile

FATAL = "tensor-blk.0.attn_norm.weight-f16"  # no kernel multiplies by it: GGML_ABORT in the first decode
UNPROBED = "switching: {probe: false}\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    [fatal] = [hostile for hostile in all_hostile() if hostile.name == FATAL]
    [(_, raw)] = fatal.files().items()
    (tmp_path / "fatal.gguf").write_bytes(raw)
    return demo_config(tmp_path, f"  - {{id: fatal, path: fatal.gguf, n_ctx: 512, n_threads: 1}}\n{UNPROBED}", one_thread=True)


def dies_of(config: Path, doing: Callable[[Daemon], object]) -> None:
    """Start a daemon, as a service manager does after its end, and have it end by what is done."""
    daemon = Daemon(config)
    try:
        doing(daemon)
        assert daemon.wait() == -signal.SIGABRT, daemon.lines[-5:]
    finally:
        if daemon.process.poll() is None:
            daemon.stop(signal.SIGKILL)


def switch_when_ready(daemon: Daemon) -> None:
    daemon.wait_ready()
    status = daemon.get("/status")
    assert status["current_model"] == "demo-stories"
    assert daemon.complete(max_tokens=2)["usage"]["completion_tokens"] == 2
    daemon.switch("fatal")


def remembered(config: Path) -> dict[str, object]:
    return dict(json.loads((config.parent / "state" / "state.json").read_text()))


def test_a_switch_that_ends_the_process_twice_is_refused_until_somebody_insists_or_mends_the_file(config: Path) -> None:
    dies_of(config, switch_when_ready)
    dies_of(config, switch_when_ready)  # which begins with the last good model, at once

    def look_and_insist(daemon: Daemon) -> None:
        daemon.wait_ready()
        status = daemon.get("/status")
        assert (status["current_model"], status["quarantined"]) == ("demo-stories", ["fatal"])
        daemon.wait_line(lambda line: line.get("msg") == "the last process died while it loaded a model")
        code, fields, body = daemon.request("POST", "/switch", {"model_id": "fatal"})
        assert (code, body["error"]["code"], fields["x-should-retry"]) == (503, "model_quarantined", "false")
        assert "2 times" in body["error"]["message"]
        plan = daemon.request("POST", "/switch", {"model_id": "fatal", "dry_run": True})[2]
        assert (plan["ok"], plan["error"]["code"]) == (False, "model_quarantined")
        assert daemon.switched("demo-calc")["state"] == "succeeded"
        daemon.switch("fatal", force=True)

    dies_of(config, look_and_insist)
    with Daemon(config) as daemon:
        daemon.wait_ready()
        status = daemon.get("/status")
        assert (status["current_model"], status["quarantined"]) == ("demo-calc", ["fatal"])
        with_good = config.with_name("mended.gguf")
        with_good.write_bytes((MODELS / "demo-calc.gguf").read_bytes())
        with_good.rename(config.with_name("fatal.gguf"))
        assert daemon.get("/status")["quarantined"] == []
        assert daemon.switched("fatal")["state"] == "succeeded"
        assert daemon.complete("12+30=")["choices"][0]["text"] == "42"
    assert remembered(config)["crashes"] == {}


@pytest.mark.soak
def test_a_quarantine_that_was_lifted_gives_two_more_tries(config: Path) -> None:
    dies_of(config, switch_when_ready)
    dies_of(config, switch_when_ready)

    def lift_and_switch(daemon: Daemon) -> None:
        daemon.wait_ready()
        assert daemon.request("DELETE", "/quarantine/fatal")[0] == 200
        assert daemon.get("/status")["quarantined"] == []
        assert daemon.request("DELETE", "/quarantine/fatal")[0] == 404
        daemon.switch("fatal")

    dies_of(config, lift_and_switch)
    dies_of(config, switch_when_ready)
    with Daemon(config) as daemon:
        daemon.wait_ready()
        assert daemon.get("/status")["quarantined"] == ["fatal"]


@pytest.mark.parametrize("default", ["fatal", pytest.param("null", marks=pytest.mark.soak)])
def test_a_default_model_that_ends_the_process_costs_two_starts(config: Path, default: str) -> None:
    """`null`: no default; the model is switched to in a daemon that never had another one."""
    config.write_text(config.read_text().replace("default_model: demo-stories", f"default_model: {default}"))
    doing = (lambda daemon: None) if default == "fatal" else (lambda daemon: daemon.switch("fatal"))
    dies_of(config, doing)
    dies_of(config, doing)
    with Daemon(config) as daemon:
        status = daemon.get("/status")
        assert (status["state"], status["error"]["code"], status["quarantined"]) == ("error", "no_model", ["fatal"])
        assert daemon.request("GET", "/livez")[0] == 200
        if default == "fatal":
            assert "quarantined" in status["error"]["message"], status["error"]
        assert daemon.switched("demo-calc")["state"] == "succeeded"
    with Daemon(config) as daemon:  # which is the last good one now
        daemon.wait_ready()
        assert daemon.get("/status")["current_model"] == "demo-calc"


@pytest.mark.soak
def test_a_changed_default_that_ends_the_process_gives_way_to_the_last_good_model(config: Path) -> None:
    with Daemon(config) as daemon:
        daemon.wait_ready()
    config.write_text(config.read_text().replace("default_model: demo-stories", "default_model: fatal"))
    dies_of(config, lambda daemon: None)
    dies_of(config, lambda daemon: None)
    with Daemon(config) as daemon:
        daemon.wait_ready()
        status = daemon.get("/status")
        assert (status["current_model"], status["quarantined"]) == ("demo-stories", ["fatal"])


@pytest.mark.soak
def test_a_last_good_model_whose_file_was_replaced_by_a_fatal_one_gives_way_to_the_default(config: Path) -> None:
    """The last good file is never quarantined; another file under its name is not that file."""
    fatal = config.with_name("fatal.gguf")
    fatal.rename(config.with_name("kept.gguf"))
    fatal.write_bytes((MODELS / "demo-calc.gguf").read_bytes())
    with Daemon(config) as daemon:
        daemon.wait_ready()
        assert daemon.switched("fatal")["state"] == "succeeded"
    config.with_name("kept.gguf").rename(fatal)
    dies_of(config, lambda daemon: None)
    dies_of(config, lambda daemon: None)
    with Daemon(config) as daemon:
        daemon.wait_ready()
        status = daemon.get("/status")
        assert (status["current_model"], status["quarantined"]) == ("demo-stories", ["fatal"])
