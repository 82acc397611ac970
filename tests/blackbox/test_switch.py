"""Switching, seen from outside: order of events, cut streams, failures that leave the daemon well."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.daemon import MODELS, Daemon, Event, demo_config

ENDS = ("model_ready", "model_error")


def of_op(events: list[Event], op_id: str) -> list[Event]:
    return [event for event in events if event.data.get("op_id") == op_id]


def test_a_switch_tells_every_step_and_ready_is_true_when_it_is_read(daemon: Daemon) -> None:
    with daemon.events() as events:
        next(iter(events))
        op_id = daemon.switch("demo-calc")
        events.until(lambda e: e.name == "model_ready")
        status, _, ready = daemon.request("GET", "/readyz")
        assert (status, ready) == (200, {"state": "ready", "current_model": "demo-calc"})
    mine = of_op(events.seen, op_id)
    assert mine[0].name == "model_switch_started"
    assert mine[0].data["target_model_id"] == "demo-calc"
    assert mine[-1].name == "model_ready"
    assert mine[-1].data["current_model_id"] == "demo-calc"
    progress = [(e.data["step"], e.data["pct"]) for e in mine if e.name == "model_loading_progress"]
    phases = [(e.data["phase"], e.data["pct"]) for e in mine if e.name == "model_switch_phase"]
    assert phases == [("probe", 0), ("probe", 100)]  # nobody has vouched for the file yet; it is in the page cache already
    assert len(progress) + len(phases) == len(mine) - 2
    assert list(dict.fromkeys(step for step, _ in progress)) == ["unload", "mmap", "warmup"]
    for wanted in ("unload", "mmap", "warmup"):
        percents = [pct for step, pct in progress if step == wanted]
        assert percents == sorted(set(percents))
        assert percents[-1] == 100
    op = daemon.get(f"/ops/{op_id}")
    assert op["state"] == "succeeded"
    assert set(op["steps_ms"]) == {"probe", "unload", "mmap", "warmup"}


def test_three_switches_posted_at_once_run_one_after_another(tmp_path: Path) -> None:
    targets = ["demo-calc", "demo-stories", "third"]  # different ones: a switch to the last target would join its op
    op_ids: dict[int, str] = {}
    third = f"  - {{id: third, path: {MODELS}/demo-calc.gguf, n_ctx: 512}}\n"
    with Daemon(demo_config(tmp_path, third)) as daemon:
        daemon.wait_ready()
        with daemon.events() as events:
            next(iter(events))
            posts = [
                threading.Thread(target=lambda i=i, t=t: op_ids.update({i: daemon.switch(t)})) for i, t in enumerate(targets)
            ]
            for post in posts:
                post.start()
            for post in posts:
                post.join()
            left = set(op_ids.values())
            assert len(left) == 3

            def all_ended(event: Event) -> bool:
                if event.name in ENDS:
                    left.discard(event.data["op_id"])
                return not left

            events.until(all_ended)
    order = [event.data["op_id"] for event in events.seen if "op_id" in event.data and event.name != "snapshot"]
    runs = [op_id for i, op_id in enumerate(order) if i == 0 or order[i - 1] != op_id]
    assert len(runs) == 3, "the events of two ops were interleaved"
    assert all(of_op(events.seen, op_id)[-1].name == "model_ready" for op_id in op_ids.values())


def test_a_stream_cut_by_a_switch_is_told_why_and_the_next_model_answers(daemon: Daemon) -> None:
    with daemon.stream("/v1/completions", {"prompt": "One day", "max_tokens": 500, "ignore_eos": True}) as stream:
        frames = iter(stream)
        next(frames)
        op_id = daemon.switch("demo-calc")
        for _ in frames:
            pass
    assert stream.frames[-1]["error"]["code"] == "model_switched"
    assert "demo-calc" in stream.frames[-1]["error"]["message"]
    assert not stream.done
    assert daemon.wait_op(op_id)["state"] == "succeeded"
    status, headers, answer = daemon.request("POST", "/v1/completions", {"prompt": "12+30=", "temperature": 0})
    assert (status, answer["choices"][0]["text"], headers["x-model-id"]) == (200, "42", "demo-calc")


def test_a_request_that_was_not_streaming_gets_503(daemon: Daemon) -> None:
    answers: list[tuple[int, dict[str, str], dict[str, dict[str, str]]]] = []
    body: dict[str, object] = {"prompt": "One day", "max_tokens": 500, "ignore_eos": True}
    asking = threading.Thread(target=lambda: answers.append(daemon.request("POST", "/v1/completions", body)))
    with daemon.stream("/v1/completions", body) as running:  # tells when the engine is at work
        next(iter(running))
        asking.start()
        # in a slot or ended: either way the switch comes after its admission
        while asking.is_alive() and daemon.get("/status")["slots"]["busy"] < 2:
            pass
        op_id = daemon.switch("demo-calc")
        asking.join()
    daemon.wait_op(op_id)
    status, headers, answer = answers[0]
    assert (status, answer["error"]["code"]) == (503, "model_switched")
    assert int(headers["retry-after"]) >= 1


def test_switching_to_what_is_loaded_succeeds_without_unloading(daemon: Daemon) -> None:
    generation = daemon.get("/status")["generation"]
    op = daemon.switch_and_wait("demo-stories")
    assert op["state"] == "succeeded"
    assert daemon.get("/status")["generation"] == generation


def test_an_unknown_model_is_404_and_a_bad_body_is_400(daemon: Daemon) -> None:
    assert daemon.request("POST", "/switch", {"model_id": "nope"})[2]["error"]["code"] == "model_not_found"
    assert daemon.request("POST", "/switch", {"model_id": "nope"})[0] == 404
    bodies: tuple[object, ...] = ({}, {"model_id": 7}, [], "x")
    for body in bodies:
        assert daemon.request("POST", "/switch", body)[0] == 400


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    good = (MODELS / "demo-calc.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(good[: len(good) // 2])
    (tmp_path / "text.gguf").write_text("Dear diary, this is no model.\n" * 1000)
    (tmp_path / "folder.gguf").mkdir()
    entries = "".join(f"  - {{id: {name}, path: {tmp_path}/{name}.gguf}}\n" for name in ("cut", "missing", "text", "folder"))
    wrong = "0" * 64
    entries += f"  - {{id: forged, path: {MODELS}/demo-calc.gguf, sha256: '{wrong}'}}\n"
    return demo_config(tmp_path, entries)


def test_models_that_cannot_be_loaded_are_clear_errors_and_the_next_switch_works(damaged: Path) -> None:
    with Daemon(damaged) as daemon:
        daemon.wait_ready()
        answers = "demo-stories"
        for model_id, reason in [
            ("cut", "truncated|bounds|cut|shorter"),
            ("missing", "missing.gguf|not exist|No such file"),
            ("text", "GGUF"),
            ("folder", "directory|folder|regular file"),
            ("forged", "SHA-256"),
        ]:
            with daemon.events() as events:
                next(iter(events))
                op_id = daemon.switch(model_id)
                events.until(lambda e: e.name in ENDS)
            error = of_op(events.seen, op_id)[-1]
            assert error.name == "model_error"
            assert any(word in error.data["message"] for word in reason.split("|")), error
            # all of this is known before anything is unloaded: who answered goes on answering
            status = daemon.get("/status")
            assert (status["state"], status["current_model"], status["error"]["model_id"]) == ("ready", answers, model_id)
            assert daemon.request("GET", "/readyz")[0] == 200
            assert daemon.request("GET", "/livez")[0] == 200
            assert daemon.switch_and_wait("demo-calc")["state"] == "succeeded"
            assert daemon.get("/status")["error"] is None
            answers = "demo-calc"
            answer = daemon.request("POST", "/v1/completions", {"prompt": "12+30=", "temperature": 0})[2]
            assert answer["choices"][0]["text"] == "42"


def test_a_model_that_fails_at_start_leaves_a_daemon_that_can_be_switched(tmp_path: Path) -> None:
    config = demo_config(tmp_path, f"  - {{id: gone, path: {tmp_path}/gone.gguf}}\n")
    config.write_text(config.read_text().replace("default_model: demo-stories", "default_model: gone"))
    with Daemon(config) as daemon:
        with daemon.events() as events:
            events.until(lambda e: e.name == "model_error" or (e.name == "snapshot" and e.data["state"] == "error"))
        assert daemon.switch_and_wait("demo-stories")["state"] == "succeeded"


@pytest.mark.parametrize("models", ["[]", None])
def test_without_a_model_the_state_is_no_model(tmp_path: Path, models: str | None) -> None:
    config = demo_config(tmp_path)
    text = "models: []\n" if models else config.read_text().replace("default_model: demo-stories", "default_model: null")
    config.write_text(text)
    with Daemon(config) as daemon:
        status = daemon.get("/status")
        assert (status["state"], status["error"]["code"], status["current_model"]) == ("error", "no_model", None)
        assert daemon.request("GET", "/readyz")[0] == 503


def test_events_are_replayed_after_a_lost_connection(daemon: Daemon) -> None:
    with daemon.events() as events:
        first = next(iter(events))
        assert first.name == "snapshot"
    daemon.switch_and_wait("demo-calc")
    with daemon.events(first.id) as again:
        again.until(lambda e: e.name == "model_ready")
    assert again.seen[0].name == "model_switch_started"
    with daemon.events("0123-7") as stranger:
        stranger.until(lambda e: e.name == "snapshot")
    assert [event.name for event in stranger.seen] == ["resync", "snapshot"]
