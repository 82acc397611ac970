"""The control plane's answers, and the event stream as a reader sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from fake_service import LOADED, OP, FakeService
from raw_client import RawClient

from modeld.errors import ModelLoading, NoModel, QueueFull
from modeld.httpapi.limits import Limits
from modeld.types import OpError, State


def test_models(client: RawClient):
    first, second = client.request("GET", "/models").json["models"]
    assert (first["id"], first["state"], first["size_bytes"]) == (LOADED.id, "ready", 1234)
    assert (first["n_params"], first["n_ctx_train"]) == (1_967_808, 1024)
    assert (second["state"], second["size_bytes"], second["n_params"], second["n_ctx_train"]) == ("unloaded", None, None, None)


def test_status_has_the_contracts_shape(client: RawClient, service: FakeService):
    service.set_status(op=OP, error=OpError("model_load_failed", "no", "other", "op-0"))
    status = client.request("GET", "/status").json
    assert (
        status["op"] | {"op_id": "op-1", "target_model_id": "other", "step": "mmap", "pct": 43, "state": "running"}
        == status["op"]
    )
    assert status["error"] == {"code": "model_load_failed", "message": "no", "model_id": "other", "op_id": "op-0"}
    assert status["slots"] == {"total": 4, "busy": 0}
    assert {"state", "current_model", "queued_ops", "last_op", "queue", "generation", "version", "uptime_s"} <= set(status)


def test_switch_is_accepted_with_a_location(client: RawClient):
    answer = client.request("POST", "/switch", {"model_id": "other"})
    assert answer.status == 202
    assert answer.json == {"op_id": "op-7", "target_model_id": "other", "state": "queued"}
    assert answer.fields["location"] == "/ops/op-7"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"model_id": "nobody"}', 404, "model_not_found"),
        (b"{}", 400, "invalid_request"),
        (b"not json", 400, "invalid_request"),
        (b"", 400, "invalid_request"),
        (b'{"model_id": ["x"]}', 400, "invalid_request"),
    ],
)
def test_switches_that_are_refused(client: RawClient, body, status, code):
    answer = client.request("POST", "/switch", body)
    assert (answer.status, answer.code) == (status, code)
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}


def test_ops(client: RawClient):
    op = client.request("GET", "/ops/op-1").json
    assert (op["state"], op["step"], op["queued_at"], op["steps_ms"]) == ("running", "mmap", 10.5, {"unload": 12.5})
    assert client.request("GET", "/ops/nothing").code == "not_found"


def test_probes_when_a_model_answers(client: RawClient):
    for path in ("/readyz", "/healthz"):
        answer = client.request("GET", path)
        assert (answer.status, answer.json) == (200, {"state": "ready", "current_model": LOADED.id})
    assert client.request("GET", "/health").json == {"status": "ok"}
    assert client.request("GET", "/livez").status == 200


def test_probes_while_a_model_loads(client: RawClient, service: FakeService):
    service.set_status(state=State.LOADING, current_model=None)
    answer = client.request("GET", "/readyz")
    assert (answer.status, answer.json) == (503, {"state": "loading", "current_model": None})
    assert answer.fields["retry-after"] == "1"
    health = client.request("GET", "/health")
    assert (health.status, health.json) == (
        503,
        {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}},
    )
    assert client.request("GET", "/props").code == "model_loading"
    assert client.request("GET", "/v1/models").json == {"object": "list", "data": []}
    assert client.request("GET", "/livez").status == 200


def test_probes_in_error(client: RawClient, service: FakeService):
    service.set_status(state=State.ERROR, current_model=None, error=OpError("no_model", "no model is configured"))
    assert client.request("GET", "/readyz").status == 503
    assert client.request("GET", "/health").json["error"]["message"] == "no model is configured"
    answer = client.request("GET", "/props")
    assert (answer.code, answer.fields["x-should-retry"]) == ("no_model", "false")


def test_props_and_helper_routes(client: RawClient):
    props = client.request("GET", "/props").json
    assert (props["total_slots"], props["default_generation_settings"]["n_ctx"], props["bos_token"]) == (4, 1024, "<s>")
    assert props["tool_call_format"] is None
    assert props["chat_template_caps"] == {"supports_tools": False, "supports_tool_calls": False}
    assert client.request("POST", "/tokenize", {"content": "ab"}).json == {"tokens": [97, 98]}
    assert client.request("POST", "/tokenize", {"content": "a", "add_special": True, "parse_special": False}).json == {
        "tokens": [1, 2, 97]
    }
    assert client.request("POST", "/tokenize", {"content": "é", "with_pieces": True}).json["tokens"][0] == {
        "id": 0xC3,
        "piece": [0xC3],
    }
    assert client.request("POST", "/detokenize", {"tokens": [97, 98]}).json == {"content": "ab"}
    assert client.request("POST", "/apply-template", {"messages": [{"role": "user", "content": "x"}]}).json == {
        "prompt": "<user>x"
    }


def test_v1_model_by_id(client: RawClient):
    assert client.request("GET", "/v1/models/tiny%3Aq8").json["id"] == LOADED.id
    assert client.request("GET", "/v1/models/tiny:q8").json["object"] == "model"
    unloaded = client.request("GET", "/v1/models/other")
    assert (unloaded.status, unloaded.code) == (404, "model_not_found")
    assert "POST /switch" in unloaded.json["error"]["message"]
    assert client.request("GET", "/v1/models/x%22y").code == "model_not_found"


@pytest.mark.parametrize(
    ("error", "status", "field", "value"),
    [
        (QueueFull("full", retry_after_s=2), 429, "retry-after", "2"),
        (ModelLoading("loading"), 503, "retry-after", "1"),
        (NoModel("none"), 503, "x-should-retry", "false"),
    ],
)
def test_admission_errors_say_when_to_come_again(client: RawClient, service: FakeService, error, status, field, value):
    service.raises = error
    answer = client.request("POST", "/v1/completions", {"prompt": "x", "stream": True})
    assert (answer.status, answer.code, answer.fields[field]) == (status, error.code, value)


def test_another_model_is_409_and_not_to_be_retried(client: RawClient):
    answer = client.request("POST", "/v1/completions", {"prompt": "x", "model": "other"})
    assert (answer.status, answer.code, answer.fields["x-should-retry"]) == (409, "model_not_loaded", "false")


# -- events


def read_event(client: RawClient) -> dict[str, str]:
    lines = client.chunk().decode().removesuffix("\n\n").split("\n")
    return {} if lines[0].startswith(":") else dict(line.split(": ", 1) for line in lines)


def open_events(client: RawClient, target: str = "/events", *fields: str) -> dict[str, str]:
    client.post_only("GET", target, None, *fields)
    head = client.until(b"\r\n\r\n").decode().lower()
    assert "content-type: text/event-stream" in head
    assert "cache-control: no-cache, no-transform\r\n" in head
    assert "x-accel-buffering: no\r\n" in head
    return read_event(client)


def test_events_begin_with_a_snapshot_and_follow(client: RawClient, service: FakeService):
    snapshot = open_events(client)
    assert snapshot["event"] == "snapshot"
    assert '"state": "ready"' in snapshot["data"]
    event_id = service.publish("model_ready", {"op_id": "o", "current_model_id": "m"})
    assert read_event(client) == {"id": event_id, "event": "model_ready", "data": '{"op_id": "o", "current_model_id": "m"}'}
    assert event_id != snapshot["id"]


def test_the_first_event_says_when_to_come_back(client: RawClient, service: FakeService):
    assert open_events(client)["retry"] == "1000"
    service.publish("model_ready", {})
    assert "retry" not in read_event(client)


def test_a_retry_never_stands_alone(client: RawClient, service: FakeService):
    """Clients in Python take a block of a mere `retry:` for an empty event."""
    last = service.publish("model_ready", {"op_id": "o"})
    assert open_events(client, "/events", f"Last-Event-ID: {last}") == {}  # a comment
    following = service.publish("model_unloaded", {})
    assert read_event(client) == {"retry": "1000", "id": following, "event": "model_unloaded", "data": "{}"}


@pytest.mark.parametrize("how", ["header", "query"])
def test_a_reconnect_gets_what_it_missed_without_a_snapshot(client: RawClient, service: FakeService, how):
    first = service.publish("model_switch_started", {"op_id": "o"})
    missed = service.publish("model_ready", {"op_id": "o"})
    begin = (
        open_events(client, "/events", f"Last-Event-ID: {first}")
        if how == "header"
        else open_events(client, f"/events?last_event_id={first}")
    )
    assert begin["id"] == missed


def test_a_reconnect_that_missed_nothing_is_answered_at_once(client: RawClient, service: FakeService):
    last = service.publish("model_ready", {"op_id": "o"})
    assert open_events(client, "/events", f"Last-Event-ID: {last}") == {}  # a comment
    following = service.publish("model_unloaded", {})
    assert read_event(client)["id"] == following


def test_an_id_of_an_earlier_life_brings_resync_and_a_snapshot(client: RawClient):
    resync = open_events(client, "/events", "Last-Event-ID: other-17")
    snapshot = read_event(client)
    assert (resync["event"], snapshot["event"]) == ("resync", "snapshot")
    assert resync["id"] == snapshot["id"]


@pytest.mark.parametrize("limits", [Limits(heartbeat_s=0.05)])
def test_a_silent_event_stream_is_kept_open_by_comments(client: RawClient):
    open_events(client)
    assert client.chunk() == b": keep-alive\n\n"
    assert client.chunk() == b": keep-alive\n\n"


def test_events_end_when_the_hub_closes(client: RawClient, connect: Callable[[], RawClient], service: FakeService):
    open_events(client)
    service.hub.close()
    assert client.chunk() == b""
    assert client.is_closed()
    assert connect().request("GET", "/events").code == "shutting_down"


def test_the_snapshot_is_the_status(client: RawClient, service: FakeService):
    service.publish("model_ready", {})
    service.status_now = replace(service.status_now, queued_ops=3)
    assert '"queued_ops": 3' in open_events(client)["data"]
