"""The routes that change something: what they take, what they refuse, what they answer."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from fake_service import LOADED, OP, FakeService
from raw_client import RawClient, data_frames

from modeld.errors import (
    ConfigRefused,
    GenerationMismatch,
    InsufficientMemory,
    ModelCooldown,
    ModelLoading,
    SwitchRejected,
)
from modeld.httpapi.limits import Limits
from modeld.policy import OnBusy, OnFailure, OnInflight, Strategy, SwitchOptions
from modeld.types import OpError, OpState, State


def test_a_switch_says_how_it_is_to_be_done(client: RawClient, service: FakeService):
    body = {
        "model_id": "other",
        "on_inflight": "drain",
        "drain_timeout_s": 2.5,
        "on_busy": "supersede",
        "on_failure": "error",
        "strategy": "auto",
        "ready_delay_s": 0.5,
        "force": True,
        "what nobody knows": 1,
    }
    assert client.request("POST", "/switch", body).status == 202
    options = SwitchOptions(OnInflight.DRAIN, 2.5, OnBusy.SUPERSEDE, OnFailure.ERROR, Strategy.AUTO, 0.5, force=True)
    assert service.called("switch") == ("switch", "other", options, None)


@pytest.mark.parametrize(
    ("member", "value", "told"),
    [
        ("model_id", "", "model_id is empty"),
        ("on_inflight", "wait", "on_inflight is 'wait'; allowed are cancel, drain"),
        ("on_busy", 1, "on_busy must be a string"),
        ("on_failure", "retry", "allowed are rollback, error"),
        ("strategy", "both", "allowed are replace, overlap, auto"),
        ("drain_timeout_s", -1, "drain_timeout_s is -1"),
        ("drain_timeout_s", 1e9, "0 to 86400"),
        ("ready_delay_s", -0.1, "ready_delay_s is -0.1"),
        ("ready_delay_s", 3601, "0 to 3600"),
        ("force", "yes", "force must be true or false"),
        ("dry_run", 1, "dry_run must be true or false"),
    ],
)
def test_choices_that_are_none(client: RawClient, member: str, value: object, told: str):
    answer = client.request("POST", "/switch", {"model_id": "other", member: value})
    assert (answer.status, answer.json["error"]["param"]) == (400, member)
    assert told in answer.json["error"]["message"]


def test_a_switch_that_joined_another_one_says_so(client: RawClient, service: FakeService):
    service.joins = True
    answer = client.request("POST", "/switch", {"model_id": "other"})
    assert answer.json == {"op_id": "op-7", "target_model_id": "other", "state": "queued", "joined": True}


def test_a_dry_run_queues_nothing(client: RawClient, service: FakeService):
    answer = client.request("POST", "/switch", {"model_id": "other", "dry_run": True})
    assert answer.status == 200
    assert answer.json == {
        "dry_run": True, "target_model_id": "other", "ok": False, "action": "load", "strategy": "replace", "leaves": LOADED.id,
        "error": {"code": "insufficient_memory", "message": "needs 9 GiB", "model_id": "other", "op_id": None},
    }  # fmt: skip
    assert [call[0] for call in service.calls] == ["plan"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (SwitchRejected("busy"), 409, "switch_rejected"),
        (GenerationMismatch("another"), 412, "generation_mismatch"),
        (InsufficientMemory("needs 9 GiB"), 507, "insufficient_memory"),
        (ModelCooldown("failed", retry_after_s=60), 503, "model_cooldown"),
    ],
)
def test_refusals_have_their_status(client: RawClient, service: FakeService, error: Exception, status: int, code: str):
    service.raises = error
    answer = client.request("POST", "/switch", {"model_id": "other"})
    assert (answer.status, answer.code) == (status, code)


@pytest.mark.parametrize(("given", "taken"), [('"7"', 7), ("7", 7), ("*", None)])
def test_if_match_takes_the_generation_of_status(client: RawClient, service: FakeService, given: str, taken: int | None):
    assert client.request("GET", "/status").fields["etag"] == '"1"'
    assert client.request("POST", "/switch", {"model_id": "other"}, f"If-Match: {given}").status == 202
    assert service.called("switch")[3] == taken


@pytest.mark.parametrize("given", ["x", '"1", "2"', 'W/"1"', "-1", "9" * 19])
def test_an_if_match_that_is_no_generation(client: RawClient, given: str):
    answer = client.request("POST", "/switch", {"model_id": "other"}, f"If-Match: {given}")
    assert (answer.status, answer.json["error"]["param"]) == (400, "If-Match")
    assert client.request("POST", "/switch", {"model_id": "other", "dry_run": True}, f"If-Match: {given}").status == 400


@pytest.mark.parametrize(
    ("ended", "status"),
    [
        (replace(OP, state=OpState.SUCCEEDED), 200),
        (replace(OP, state=OpState.CANCELLED, error=OpError("op_cancelled", "x")), 409),
        (replace(OP, state=OpState.FAILED, error=OpError("model_load_failed", "x")), 500),
        (replace(OP, state=OpState.FAILED, error=OpError("insufficient_memory", "x")), 507),
        (replace(OP, state=OpState.FAILED, error=OpError("model_cooldown", "x")), 503),
    ],
)
def test_an_answer_that_waits_has_the_ops_end_for_its_status(client: RawClient, service: FakeService, ended, status: int):
    service.ended = ended
    answer = client.request("POST", "/switch?wait=5", {"model_id": "other"})
    assert (answer.status, answer.json["state"], answer.json["op_id"]) == (status, ended.state.value, "op-7")
    assert answer.fields["location"] == "/ops/op-7"
    assert service.called("wait_op") == ("wait_op", "op-7", 5.0)


def test_an_answer_that_has_waited_for_long_enough_says_that_it_goes_on(client: RawClient):
    answer = client.request("POST", "/switch?wait=0.01", {"model_id": "other"})
    assert (answer.status, answer.json["state"], answer.json["pct"]) == (202, "running", 43)


@pytest.mark.parametrize("wait", ["", "x", "-1", "1e3", "3601", "nan", "99999"])
def test_a_wait_that_is_none(client: RawClient, service: FakeService, wait: str):
    answer = client.request("POST", f"/switch?wait={wait}", {"model_id": "other"})
    assert (answer.status, answer.json["error"]["param"]) == (400, "wait")
    assert not service.calls


@pytest.mark.parametrize("wait", ["0", "0.30000000000000004", "1e-06", "1819.9088186891875", "3600"])
def test_a_wait_is_a_float_as_languages_write_it(client: RawClient, service: FakeService, wait: str):
    service.ended = replace(OP, state=OpState.SUCCEEDED)
    assert client.request("POST", f"/switch?wait={wait}", {"model_id": "other"}).status == 200
    assert service.called("wait_op") == ("wait_op", "op-7", float(wait))


def test_a_client_that_leaves_while_it_waits_is_not_waited_for(client: RawClient, service: FakeService):
    client.post_only("POST", "/switch?wait=60", {"model_id": "other"})
    service.called("wait_op")
    client.close()
    service.called("look_again")


def test_unload(client: RawClient, service: FakeService):
    for body in (None, {}, {"on_inflight": "drain"}):
        answer = client.request("POST", "/unload", b"" if body is None else body)
        assert answer.status == 202
        assert answer.json == {"op_id": "op-8", "target_model_id": None, "state": "queued"}
    assert service.called("unload") == ("unload", SwitchOptions(on_inflight=OnInflight.DRAIN), None)
    assert client.request("POST", "/unload", [1]).status == 400


def test_the_history_of_ops(client: RawClient):
    ops = client.request("GET", "/ops").json["ops"]
    assert [op["op_id"] for op in ops] == ["op-1", "op-0"]
    assert len(client.request("GET", "/ops?limit=1").json["ops"]) == 1
    for limit in ("0", "257", "x", ""):
        assert client.request("GET", f"/ops?limit={limit}").json["error"]["param"] == "limit"


def test_an_op_is_cancelled_by_deleting_it(client: RawClient, service: FakeService):
    answer = client.request("DELETE", "/ops/op-1")
    assert (answer.status, answer.json["state"], answer.json["cancelling"]) == (202, "running", True)
    answer = client.request("DELETE", "/ops/op-0")
    assert (answer.status, answer.code) == (409, "op_ended")
    assert client.request("DELETE", "/ops/nothing").code == "not_found"
    assert client.request("POST", "/ops/op-1", {}).fields["allow"] == "DELETE, GET, HEAD, OPTIONS"


def test_a_quarantine_is_lifted_by_deleting_it(client: RawClient):
    assert client.request("DELETE", "/quarantine/other").json == {"model_id": "other", "quarantined": False}
    assert client.request("DELETE", "/quarantine/nobody").status == 404


def test_reload(client: RawClient, service: FakeService):
    answer = client.request("POST", "/reload", b"")
    assert (answer.status, answer.json["added"], answer.json["restart_needed"]) == (200, ["new"], ["server.port"])
    service.raises = ConfigRefused("models.yaml:3: unknown key")
    answer = client.request("POST", "/reload", b"")
    assert (answer.status, answer.code) == (422, "config_error")
    assert "models.yaml:3" in answer.json["error"]["message"]


def test_a_reload_with_a_body_that_is_no_object_reloads_nothing(client: RawClient, service: FakeService):
    service.raises = ConfigRefused("read, all the same")
    bodies: tuple[object, ...] = ([], "x", None)
    for body in bodies:
        assert client.request("POST", "/reload", json.dumps(body).encode()).status == 400
    service.raises = None
    assert client.request("POST", "/reload", {"whatever": 1}).status == 200


# -- requests that wait for a switch --------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [Limits(heartbeat_s=0.02)])
def test_a_stream_that_waits_for_a_switch_is_kept_alive_and_then_answered(client: RawClient, service: FakeService):
    service.switched.clear()
    client.post_only("POST", "/v1/chat/completions", {"stream": True, "messages": [{"role": "user", "content": "x"}]})
    assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    assert [client.chunk(), client.chunk()] == [b": keep-alive\n\n"] * 2
    service.switched.set()
    rest = data_frames(b"".join(iter(client.chunk, b"")))
    assert rest[-1] == "[DONE]"
    assert "".join(frame["choices"][0]["delta"].get("content", "") for frame in rest[:-1]) == "Hello world"


@pytest.mark.parametrize("limits", [Limits(heartbeat_s=0.02)])
def test_a_stream_whose_model_does_not_come_ends_with_the_reason(client: RawClient, service: FakeService):
    service.switched.clear()
    client.post_only("POST", "/v1/completions", {"stream": True, "prompt": "x"})
    client.until(b"\r\n\r\n")
    assert client.chunk() == b": keep-alive\n\n"
    service.raises = ModelLoading("it will not come")
    service.switched.set()
    (last,) = data_frames(b"".join(iter(client.chunk, b"")))
    assert last["error"]["code"] == "model_loading"


@pytest.mark.parametrize("limits", [Limits(generation_s=0.1)])
def test_waiting_for_a_switch_counts_as_generation_time(client: RawClient, service: FakeService):
    service.switched.clear()
    answer = client.request("POST", "/v1/completions", {"prompt": "x"})
    assert (answer.status, answer.code) == (504, "generation_timeout")


def test_with_auto_switch_every_registered_model_can_be_asked_for(client: RawClient, service: FakeService):
    assert [model["id"] for model in client.request("GET", "/v1/models").json["data"]] == [LOADED.id]
    service.set_status(auto_switch=True)
    assert [model["id"] for model in client.request("GET", "/v1/models").json["data"]] == [LOADED.id, "other"]
    assert client.request("GET", "/v1/models/other").json["id"] == "other"


def test_with_auto_switch_a_daemon_without_a_model_is_ready(client: RawClient, service: FakeService):
    service.set_status(state=State.READY, current_model=None, auto_switch=True)
    assert client.request("GET", "/readyz").status == 200
    service.set_status(auto_switch=False)
    assert client.request("GET", "/readyz").status == 503
