"""`ready_delay_s` from outside: /readyz says first that the model will leave, and whoever comes meanwhile is answered."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from tests.daemon import Daemon, demo_config

LONG: dict[str, object] = {"on_inflight": "drain", "ready_delay_s": 3600}
ENDS = ("model_ready", "model_error", "model_unloaded")


def test_readyz_says_first_that_the_model_will_leave(daemon: Daemon) -> None:
    with daemon.events() as events:
        next(iter(events))
        op_id = daemon.switch("demo-calc", **LONG)
        events.until(lambda e: e.name == "model_switch_phase" and e.data["phase"] == "divert")
        assert (events.seen[-1].data["pct"], events.seen[-1].data["delay_s"]) == (0, 3600)
        for path in ("/readyz", "/healthz"):
            status, fields, body = daemon.request("GET", path)
            assert (status, fields["retry-after"]) == (503, "1")
            assert body == {"state": "ready", "current_model": "demo-stories", "diverting": True}
        assert daemon.request("GET", "/health")[0] == 503
        assert daemon.get("/livez") == {"status": "ok"}
        status = daemon.get("/status")
        assert (status["state"], status["diverting"], status["op"]["phase"]) == ("ready", True, "divert")
        assert daemon.complete(max_tokens=4)["model"] == "demo-stories"
        with daemon.stream("/v1/completions", {"prompt": "One day", "max_tokens": 4}) as stream:
            list(stream)
            assert stream.done
        assert daemon.request("DELETE", f"/ops/{op_id}")[0] == 202
        events.until(lambda e: e.name in ENDS)
        assert events.seen[-1].data["code"] == "op_cancelled"
        assert daemon.get("/readyz") == {"state": "ready", "current_model": "demo-stories"}


def test_the_new_model_is_ready_at_once(daemon: Daemon) -> None:
    with daemon.events() as events:
        next(iter(events))
        op_id = daemon.switch("demo-calc", on_inflight="drain", ready_delay_s=0.05)
        events.until(lambda e: e.name in ENDS)
        assert events.seen[-1].name == "model_ready"
        assert daemon.get("/readyz") == {"state": "ready", "current_model": "demo-calc"}
        assert daemon.get(f"/ops/{op_id}")["steps_ms"]["divert"] >= 50
        told = [(e.data["phase"], e.data["pct"]) for e in events.seen if e.name == "model_switch_phase" and "delay_s" in e.data]
        assert told == [("divert", 0)]


def test_the_configuration_sets_it_for_who_says_nothing(tmp_path: Path) -> None:
    config = demo_config(tmp_path, "switching: {ready_delay_s: 3600}\n", one_thread=True)
    with Daemon(config) as daemon:
        daemon.wait_ready()
        op_id = daemon.request("POST", "/unload", {})[2]["op_id"]
        with daemon.events() as events:
            if not next(iter(events)).data["diverting"]:
                events.until(lambda e: e.data.get("phase") == "divert")
        assert daemon.request("DELETE", f"/ops/{op_id}")[0] == 202
        assert daemon.wait_op(op_id)["state"] == "cancelled"
        assert daemon.switched("demo-calc", ready_delay_s=0)["state"] == "succeeded"


def test_a_stop_does_not_wait_for_it(tmp_path: Path) -> None:
    daemon = Daemon(demo_config(tmp_path, one_thread=True))
    try:
        daemon.wait_ready()
        with daemon.events() as events:
            next(iter(events))
            daemon.switch("demo-calc", **LONG)
            events.until(lambda e: e.data.get("phase") == "divert")
            began = time.monotonic()
            daemon.process.send_signal(signal.SIGTERM)
            events.until(lambda e: e.name == "model_error")
            assert events.seen[-1].data["code"] == "op_cancelled"
        assert daemon.wait() == 0
        assert time.monotonic() - began < 3600
    finally:
        if daemon.process.poll() is None:
            daemon.stop(signal.SIGKILL)
