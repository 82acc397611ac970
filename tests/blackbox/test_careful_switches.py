"""What a switch may be asked to do besides replacing: drain, overlap, wait, undo, be foreseen, be conditional."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import MODELS, Daemon, StreamReader, demo_config
from tests.deep_model import deep_model

LONG = {"prompt": "One day", "max_tokens": 400, "ignore_eos": True, "n": 2, "temperature": 1.0, "seed": 3}
ENDS = ("model_ready", "model_error", "model_unloaded")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Its models are vouched for: no switch begins with a trial."""
    with Daemon(demo_config(tmp_path_factory.mktemp("daemon"), one_thread=True)) as daemon:
        daemon.wait_ready()
        assert daemon.switched("demo-calc")["state"] == "succeeded"
        yield daemon


def read_on(frames: Iterator[dict[str, Any]]) -> threading.Thread:
    """Read the rest of a stream on a thread, which ends with it."""
    thread = threading.Thread(target=lambda: list(frames))
    thread.start()
    return thread


def whole(stream: StreamReader) -> bool:
    ends = [choice["finish_reason"] for frame in stream.frames for choice in frame.get("choices", ())]
    return stream.done and [end for end in ends if end is not None] == ["length"] * 2


def test_drain_lets_a_stream_end_and_then_switches(daemon: Daemon) -> None:
    with ExitStack() as stack:
        events = stack.enter_context(daemon.events())
        next(iter(events))
        stream = stack.enter_context(daemon.stream("/v1/completions", LONG))
        frames = iter(stream)
        next(frames)
        op_id = daemon.switch("demo-calc", on_inflight="drain")
        events.until(lambda e: e.name == "model_switch_phase")
        assert (events.seen[-1].data["phase"], events.seen[-1].data["n_running"]) == ("drain", 2)
        reading = read_on(frames)
        status, fields, body = daemon.request("POST", "/v1/completions", {"prompt": "12+30="})
        assert (status, body["error"]["code"]) == (503, "model_loading")
        assert int(fields["retry-after"]) >= 1
        assert daemon.request("GET", "/readyz")[2]["state"] == "loading"
        reading.join()
        assert whole(stream)
        events.until(lambda e: e.name in ENDS)
    mine = [e for e in events.seen if e.data.get("op_id") == op_id]
    told = [(e.data.get("phase") or e.data.get("step"), e.data["pct"]) for e in mine if "pct" in e.data]
    assert told.index(("drain", 100)) < told.index(("unload", 0))
    assert mine[-1].name == "model_ready"
    assert daemon.complete("12+30=")["choices"][0]["text"] == "42"


def test_a_drain_without_time_cuts_with_the_reason(daemon: Daemon) -> None:
    with daemon.stream("/v1/completions", LONG) as stream:
        frames = iter(stream)
        next(frames)
        op = daemon.switched("demo-calc", on_inflight="drain", drain_timeout_s=0)
        list(frames)
    assert op["state"] == "succeeded"
    assert not stream.done
    assert stream.frames[-1]["error"]["code"] == "model_switched"


def test_a_cancelled_drain_leaves_the_stream_and_the_model(daemon: Daemon) -> None:
    generation = daemon.get("/status")["generation"]
    with daemon.events() as events, daemon.stream("/v1/completions", LONG) as stream:
        next(iter(events))
        frames = iter(stream)
        next(frames)
        op_id = daemon.switch("demo-calc", on_inflight="drain")
        events.until(lambda e: e.name == "model_switch_phase")
        assert daemon.request("DELETE", f"/ops/{op_id}")[0] == 202
        events.until(lambda e: e.name in ENDS)
        assert events.seen[-1].data["code"] == "op_cancelled"
        assert "rolled_back_to" not in events.seen[-1].data  # nothing had gone
        assert daemon.request("GET", "/readyz")[2] == {"state": "ready", "current_model": "demo-stories"}
        list(frames)
    assert whole(stream)
    assert daemon.get("/status")["generation"] == generation


def test_overlap_answers_with_the_new_model_while_streams_of_the_old_one_end(daemon: Daemon) -> None:
    with ExitStack() as stack:
        events = stack.enter_context(daemon.events())
        next(iter(events))
        stream = stack.enter_context(daemon.stream("/v1/completions", LONG))
        frames = iter(stream)
        next(frames)
        daemon.switch("demo-calc", strategy="overlap")
        events.until(lambda e: e.name in ENDS)
        assert events.seen[-1].name == "model_ready"
        status = daemon.get("/status")
        assert (status["current_model"], status["retiring_model"]) == ("demo-calc", "demo-stories")
        assert daemon.complete("12+30=")["choices"][0]["text"] == "42"
        list(frames)
        assert whole(stream)
        events.until(lambda e: e.name == "model_unloaded")
        assert events.seen[-1].data["model_id"] == "demo-stories"
    assert daemon.get("/status")["retiring_model"] is None
    states = {e.data["state"] for e in events.seen if e.name == "snapshot"}
    assert states == {"ready"}
    steps = {e.data["step"] for e in events.seen if e.name == "model_loading_progress"}
    assert steps == {"mmap", "warmup"}


def test_who_waits_gets_the_record_and_who_joins_is_told(daemon: Daemon) -> None:
    status, fields, op = daemon.request("POST", "/switch?wait=60", {"model_id": "demo-calc"})
    assert (status, op["state"], op["joined"], fields["location"]) == (200, "succeeded", False, f"/ops/{op['op_id']}")
    with daemon.stream("/v1/completions", LONG | {"prompt": "12+30="}) as stream:
        frames = iter(stream)
        next(frames)
        first = daemon.request("POST", "/switch?wait=0", {"model_id": "demo-stories", "on_inflight": "drain"})
        assert (first[0], first[2]["state"] in ("queued", "running")) == (202, True)
        second = daemon.request("POST", "/switch", {"model_id": "demo-stories"})[2]
        assert (second["joined"], second["op_id"]) == (True, first[2]["op_id"])
        refused = daemon.request("POST", "/switch", {"model_id": "demo-calc", "on_busy": "reject"})
        assert (refused[0], refused[2]["error"]["code"]) == (409, "switch_rejected")
        assert first[2]["op_id"] in refused[2]["error"]["message"]
        instead = daemon.request("POST", "/switch?wait=60", {"model_id": "demo-calc", "on_busy": "supersede"})
        assert (instead[0], instead[2]["state"]) == (200, "succeeded")
        assert daemon.get(f"/ops/{first[2]['op_id']}")["error"]["code"] == "op_cancelled"
        list(frames)
    assert whole(stream)  # the drain had not cut it, and demo-calc was loaded already


def test_a_dry_run_says_what_a_switch_would_come_to_and_does_nothing(daemon: Daemon) -> None:
    before = daemon.get("/status")
    plan = daemon.request("POST", "/switch", {"model_id": "demo-calc", "dry_run": True, "strategy": "auto"})
    assert plan[0] == 200
    assert plan[2] == {
        "dry_run": True,
        "target_model_id": "demo-calc",
        "ok": True,
        "action": "load",
        "strategy": "overlap",
        "leaves": "demo-stories",
        "error": None,
    }
    keep = daemon.request("POST", "/switch", {"model_id": "demo-stories", "dry_run": True})[2]
    assert (keep["action"], keep["leaves"]) == ("keep", None)
    assert daemon.request("POST", "/switch", {"model_id": "nope", "dry_run": True})[0] == 404
    after = daemon.get("/status")
    assert [after[key] for key in ("generation", "last_op", "op")] == [before[key] for key in ("generation", "last_op", "op")]


def test_if_match_switches_only_what_was_seen(daemon: Daemon) -> None:
    seen = daemon.request("GET", "/status")[1]["etag"]
    assert seen == f'"{daemon.get("/status")["generation"]}"'
    assert daemon.switched("demo-calc")["state"] == "succeeded"
    status, _, body = daemon.request("POST", "/switch", {"model_id": "demo-stories"}, {"If-Match": seen})
    assert (status, body["error"]["code"]) == (412, "generation_mismatch")
    assert daemon.get("/status")["current_model"] == "demo-calc"
    now = daemon.request("GET", "/status")[1]["etag"]
    assert daemon.request("POST", "/switch?wait=60", {"model_id": "demo-stories"}, {"If-Match": now})[0] == 200
    assert daemon.request("POST", "/unload", {}, {"If-Match": now})[0] == 412


def test_a_conversation_goes_on_where_it_was_after_a_model_was_away(daemon: Daemon) -> None:
    opening = [{"role": "user", "content": "Tell me a story."}]

    def say(messages: list[dict[str, str]]) -> dict[str, Any]:
        body = {"messages": messages, "temperature": 0, "max_tokens": 60}
        status, _, answer = daemon.request("POST", "/v1/chat/completions", body)
        assert status == 200, answer
        return dict(answer)

    def text(answer: dict[str, Any]) -> str:
        return str(answer["choices"][0]["message"]["content"])

    first = say(opening)
    talk = [*opening, {"role": "assistant", "content": text(first)}, {"role": "user", "content": "And then?"}]
    uninterrupted = say(talk)
    n_talk = uninterrupted["usage"]["prompt_tokens"]
    assert daemon.switched("demo-calc")["state"] == "succeeded"
    assert daemon.complete("12+30=")["choices"][0]["text"] == "42"
    assert daemon.switched("demo-stories")["state"] == "succeeded"
    after = say(talk)
    assert text(after) == text(uninterrupted)
    cached = after["usage"]["prompt_tokens_details"]["cached_tokens"]
    print(f"{cached} of {n_talk} prompt tokens were kept while the model was away")
    assert cached > n_talk // 2


# -- what is undone ------------------------------------------------------------------------------------------------------


@pytest.fixture
def replaceable(tmp_path: Path) -> Path:
    """A configuration with a model whose file a test may change."""
    (tmp_path / "own.gguf").write_bytes((MODELS / "demo-calc.gguf").read_bytes())
    entry = f"  - {{id: own, path: {tmp_path}/own.gguf, n_ctx: 512, n_threads: 1}}\n"
    return demo_config(tmp_path, entry + "switching: {cooldown_failures: 0}\n", one_thread=True)


def switch_to_a_file_that_breaks_after_the_checks(daemon: Daemon, folder: Path, **options: object) -> dict[str, Any]:
    """While the old model is drained, all checks are over and nothing is loaded yet. The file that breaks is vouched for."""
    broken = folder / "broken.gguf"
    broken.write_bytes((MODELS / "demo-calc.gguf").read_bytes()[:100_000])
    with daemon.events() as events, daemon.stream("/v1/completions", LONG) as stream:
        next(iter(events))
        frames = iter(stream)
        next(frames)
        daemon.switch("own", on_inflight="drain", **options)
        events.until(lambda e: e.data.get("phase") == "drain")
        broken.rename(folder / "own.gguf")
        list(frames)
        events.until(lambda e: e.name in ENDS)
    assert whole(stream)
    return dict(events.seen[-1].data)


def test_a_load_that_fails_after_the_checks_brings_the_old_model_back(replaceable: Path) -> None:
    with Daemon(replaceable) as daemon:
        daemon.wait_ready()
        story = daemon.complete(max_tokens=20)["choices"][0]["text"]
        assert daemon.switched("own")["state"] == "succeeded"
        assert daemon.switched("demo-stories")["state"] == "succeeded"
        end = switch_to_a_file_that_breaks_after_the_checks(daemon, replaceable.parent)
        assert (end["code"], end["rolled_back_to"]) == ("model_load_failed", "demo-stories")
        assert "own.gguf" in end["message"]
        assert daemon.request("GET", "/readyz")[0] == 200
        assert daemon.complete(max_tokens=20)["choices"][0]["text"] == story
        status = daemon.get("/status")
        assert (status["state"], status["error"]["model_id"]) == ("ready", "own")
        op = daemon.get(f"/ops/{end['op_id']}")
        assert (op["state"], op["rolled_back_to"]) == ("failed", "demo-stories")
        assert set(op["steps_ms"]) >= {"drain", "unload", "rollback"}
        # and where nobody wants it back, it does not come
        (replaceable.parent / "own.gguf").write_bytes((MODELS / "demo-calc.gguf").read_bytes())
        assert daemon.switched("own")["state"] == "succeeded"
        assert daemon.switched("demo-stories")["state"] == "succeeded"
        end = switch_to_a_file_that_breaks_after_the_checks(daemon, replaceable.parent, on_failure="error")
        assert "rolled_back_to" not in end
        status = daemon.get("/status")
        assert (status["state"], status["current_model"], status["error"]["code"]) == ("error", None, "model_load_failed")
        assert daemon.request("POST", "/v1/completions", {"prompt": "x"})[2]["error"]["code"] == "no_model"
        assert daemon.switched("demo-stories")["state"] == "succeeded"
        assert daemon.get("/status")["error"] is None


def test_an_unloaded_model_stays_unloaded_over_a_restart(tmp_path: Path) -> None:
    config = demo_config(tmp_path, one_thread=True)
    with Daemon(config) as daemon:
        daemon.wait_ready()
        with daemon.events() as events:
            next(iter(events))
            op = daemon.unloaded()
            assert (op["kind"], op["state"], op["target_model_id"]) == ("unload", "succeeded", None)
            events.until(lambda e: e.name == "model_unloaded")
            assert events.seen[-1].data["model_id"] == "demo-stories"
    with Daemon(config) as daemon:
        status = daemon.get("/status")
        assert (status["state"], status["error"]["code"]) == ("error", "no_model")
        assert "unloaded on request" in status["error"]["message"]
        assert daemon.get("/ops?limit=1")["ops"][0]["op_id"] == op["op_id"]
        assert daemon.switched("demo-calc")["state"] == "succeeded"
    with Daemon(config) as daemon:
        daemon.wait_ready()
        assert daemon.get("/status")["current_model"] == "demo-calc"


# -- the end of the daemon -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["drain", "mmap", pytest.param("probe", marks=pytest.mark.soak)])
def test_a_stop_in_the_middle_of_switches_ends_each_of_them_and_blames_nobody(tmp_path: Path, at: str) -> None:
    deep = deep_model(tmp_path)
    entry = f"  - {{id: deep, path: {deep}, n_ctx: 256, n_parallel: 1, n_threads: 1}}\n"
    more = f"switching: {{probe: {str(at == 'probe').lower()}}}\n"
    config = demo_config(tmp_path, entry + more, one_thread=True)
    with Daemon(config) as daemon, daemon.events() as events, ExitStack() as stack:
        daemon.wait_ready()
        stream = stack.enter_context(daemon.stream("/v1/completions", LONG))
        frames = iter(stream)
        next(frames)
        targets = ("deep", "demo-calc", "demo-stories", "deep")
        options = {"on_inflight": "drain"} if at == "drain" else {}
        op_ids = [daemon.switch(target, **options) for target in targets]
        events.until(lambda e: at in (e.data.get("phase"), e.data.get("step")) and e.data["op_id"] == op_ids[0])
        daemon.process.terminate()
        list(frames)
        list(events)  # until the daemon closes them
        assert daemon.wait() == 0
    ends = {e.data["op_id"]: (e.name, e.data["code"]) for e in events.seen if e.name in ENDS and e.data["op_id"] in op_ids}
    assert ends == dict.fromkeys(op_ids, ("model_error", "op_cancelled"))
    assert sum(e.name in ENDS and e.data["op_id"] in op_ids for e in events.seen) == len(op_ids)
    if at == "mmap":
        assert stream.frames[-1]["error"]["code"] == "model_switched"
    else:  # its model goes on, and it has the time of the stop
        assert stream.done
    with Daemon(config) as daemon:
        daemon.wait_ready()
        status = daemon.get("/status")
        assert (status["current_model"], status["quarantined"]) == ("demo-stories", [])
        assert not any("died" in str(line.get("msg")) for line in daemon.lines)
        history = daemon.get("/ops")["ops"]
        assert {op["op_id"]: op["state"] for op in history if op["op_id"] in op_ids} == dict.fromkeys(op_ids, "cancelled")
