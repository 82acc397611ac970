"""Limits for each client through a real socket: which routes count, what a 429 says, and when what was taken comes back."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_service import FakeAdmission, FakeService
from raw_client import DEADLINE_S, Answer, RawClient, data_frames

from modeld.clientlimits import ClientLimits, LimitPolicy
from modeld.errors import EngineFailed, ModelSwitched
from modeld.httpapi.auth import Gate, Rules
from modeld.httpapi.browser import BrowserRules
from modeld.httpapi.caller import KeyRules
from modeld.httpapi.quotas import Counts, Quotas
from modeld.httpapi.router import ROUTES
from modeld.types import ApiKey, Chunk, Failed, Finished, Share, Usage

Connect = Callable[..., RawClient]

COUNTED = {
    "/v1/completions": {"prompt": "x"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/embeddings": {"input": "x"},
    "/tokenize": {"content": "x"},
    "/detokenize": {"tokens": [1]},
    "/apply-template": {"messages": [{"role": "user", "content": "x"}]},
}
COMPLETIONS, PROMPT = "/v1/completions", {"prompt": "x"}
STREAM = {**PROMPT, "stream": True}


@pytest.fixture
def limit(quotas: Quotas) -> Callable[..., None]:
    """Set the limits that hold from now on."""
    return lambda **limits: quotas.set_policy(LimitPolicy(ClientLimits(**limits)))


Limit = Callable[..., None]


def told(answer: Answer) -> dict[str, str]:
    prefix = "x-ratelimit-"
    return {name.removeprefix(prefix): value for name, value in answer.fields.items() if name.startswith(prefix)}


def until_let_in(connect: Connect, body: object) -> Answer:
    """Ask again until the answer is no 429."""
    deadline = time.monotonic() + DEADLINE_S
    while (answer := connect().request("POST", COMPLETIONS, body)).status == 429:
        assert time.monotonic() < deadline, answer.json
    return answer


# -- a minute


@pytest.mark.parametrize("path", COUNTED)
def test_the_routes_that_work_for_a_client_count_its_requests(client: RawClient, limit: Limit, path: str) -> None:
    limit(requests_per_minute=1)
    first = client.request("POST", path, COUNTED[path])
    assert first.status == 200
    assert {"limit-requests", "remaining-requests", "reset-requests"} == set(told(first))
    assert told(first)["remaining-requests"] == "0"
    refused = client.request("POST", path, COUNTED[path])
    assert (refused.status, refused.code, refused.json["error"]["type"]) == (429, "rate_limit_exceeded", "requests")
    assert refused.json["error"]["param"] is None
    assert 1 <= int(refused.fields["retry-after"]) <= 60
    assert 0 < int(refused.fields["retry-after-ms"]) <= 60_000
    assert told(refused)["remaining-requests"] == "0"


def test_no_other_route_counts_or_is_refused(client: RawClient, limit: Limit) -> None:
    limit(requests_per_minute=1, tokens_per_minute=1, max_requests=1, max_queued=1)
    client.request("POST", COMPLETIONS, PROMPT)
    assert client.request("POST", COMPLETIONS, PROMPT).status == 429
    others = [route for route in ROUTES if route.path not in COUNTED and route.path != "/events"]
    assert len(others) > 10
    for route in others:
        path = route.path.replace("{op_id}", "op-1").replace("{model_id}", "other")
        answer = client.request(route.method, path, {"model_id": "other"} if route.method == "POST" else None)
        assert answer.status in (200, 202, 404), (route, answer.body)
        assert told(answer) == {}


def test_without_limits_no_field_speaks_of_them(client: RawClient) -> None:
    for path, body in COUNTED.items():
        assert told(client.request("POST", path, body)) == {}


def test_requests_that_are_wrong_count_too_and_are_told(client: RawClient, limit: Limit) -> None:
    limit(requests_per_minute=2)
    wrong = client.request("POST", COMPLETIONS, {"prompt": 3})
    assert wrong.status == 400
    assert told(wrong)["remaining-requests"] == "1"
    client.request("POST", COMPLETIONS, {"prompt": 3})
    assert client.request("POST", COMPLETIONS, PROMPT).status == 429


def test_what_is_refused_is_refused_before_its_body_is_asked_for(client: RawClient, limit: Limit) -> None:
    limit(requests_per_minute=1)
    client.request("POST", COMPLETIONS, PROMPT)
    client.send(
        f"POST {COMPLETIONS} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: 900000\r\n"
        "Expect: 100-continue\r\n\r\n"
    )
    assert client.answer("POST").status == 429


def test_a_whole_answer_tells_what_is_left_after_its_own_tokens(service: FakeService, client: RawClient, limit: Limit) -> None:
    limit(tokens_per_minute=6000)
    service.script = ("x", Finished("stop", Usage(500, 30, 400)))
    answer = client.request("POST", COMPLETIONS, PROMPT)
    assert told(answer) == {"limit-tokens": "6000", "remaining-tokens": "5870", "reset-tokens": "1.3s"}, (
        "the cached ones are free"
    )


def test_embeddings_count_their_inputs(client: RawClient, limit: Limit) -> None:
    limit(tokens_per_minute=6000)
    client.request("POST", "/v1/embeddings", {"input": ["x"] * 400})  # 5 tokens each
    left = int(told(client.request("POST", "/v1/embeddings", {"input": "x"}))["remaining-tokens"])
    assert 4000 <= left < 4000 + 6000 * DEADLINE_S / 60


def test_a_stream_is_charged_when_it_has_ended(service: FakeService, client: RawClient, limit: Limit) -> None:
    limit(tokens_per_minute=60)
    service.script = ("x", Finished("stop", Usage(1000, 30)))
    stream = client.request("POST", COMPLETIONS, STREAM)
    assert stream.status == 200
    assert told(stream) == {"limit-tokens": "60", "remaining-tokens": "60", "reset-tokens": "0s"}
    assert data_frames(stream.body)[-1] == "[DONE]"
    refused = client.request("POST", COMPLETIONS, PROMPT)
    assert (refused.status, refused.json["error"]["type"]) == (429, "tokens")
    assert "has taken 1030 of the 60 tokens" in refused.json["error"]["message"]


def test_a_stream_that_fails_is_charged_for_what_it_has(service: FakeService, client: RawClient, limit: Limit) -> None:
    limit(tokens_per_minute=60)
    service.script = (
        Chunk("x", None, 0),
        Chunk("", Finished("stop", Usage(70, 30)), 0),
        Chunk("", Failed(EngineFailed("it died")), 1),
    )
    stream = client.request("POST", COMPLETIONS, {**STREAM, "n": 2})
    assert data_frames(stream.body)[-1]["error"]["code"] == "engine_failed"
    assert "has taken 100 of" in client.request("POST", COMPLETIONS, PROMPT).json["error"]["message"]


def test_two_addresses_are_two_clients(connect: Connect, limit: Limit, service: FakeService) -> None:
    limit(requests_per_minute=1, max_queued=7)
    assert connect("127.0.0.1").request("POST", COMPLETIONS, PROMPT).status == 200
    assert connect("127.0.0.1").request("POST", COMPLETIONS, PROMPT).status == 429
    assert connect("127.0.0.2").request("POST", COMPLETIONS, PROMPT).status == 200
    assert [service.generation(i).request.share for i in range(2)] == [Share("127.0.0.1", 7), Share("127.0.0.2", 7)]
    connect("127.0.0.3").request("POST", "/v1/embeddings", {"input": "x"})
    assert service.embedding().request.share == Share("127.0.0.3", 7)


def test_keys_are_clients_wherever_they_come_from_and_may_have_limits_of_their_own(
    connect: Connect, gate: Gate, quotas: Quotas, service: FakeService
) -> None:
    keys = tuple(ApiKey(name, False, hashlib.sha256(f"key-of-{name}".encode()).digest()) for name in ("web", "batch"))
    gate.rules = Rules(BrowserRules(allowed_hosts=("*",)), KeyRules(keys))
    quotas.set_policy(
        LimitPolicy(ClientLimits(requests_per_minute=1), {"batch": ClientLimits(requests_per_minute=3, max_queued=9)})
    )

    def ask(source: str, key: str) -> int:
        return int(connect(source).request("POST", COMPLETIONS, PROMPT, f"Authorization: Bearer key-of-{key}").status)

    assert [ask("127.0.0.1", "nobody") for _ in range(5)] == [401] * 5, "who is not let in takes nothing from anybody"
    assert [ask("127.0.0.1", "web"), ask("127.0.0.2", "web")] == [200, 429]
    assert [ask("127.0.0.1", "batch") for _ in range(4)] == [200, 200, 200, 429]
    assert [service.generation(i).request.share for i in (0, 3)] == [Share("key:web"), Share("key:batch", 9)]


@pytest.mark.parametrize("cut", ["left", "switched"])
def test_embeddings_that_were_cut_count_what_was_computed(service: FakeService, connect: Connect, limit: Limit, cut: str) -> None:
    limit(tokens_per_minute=1000, max_requests=1)
    service.embeddings_held = True
    client = connect().post_only("POST", "/v1/embeddings", {"input": ["x"] * 400})
    embedding = service.embedding()
    embedding.n_computed = 1500  # of 2000
    if cut == "left":
        client.reset()
        assert embedding.cancelled.wait(DEADLINE_S)
    else:
        embedding.error = ModelSwitched("away")
        embedding.ended.set()
        assert client.answer().status == 503
    deadline = time.monotonic() + DEADLINE_S
    while (answer := connect().request("POST", COMPLETIONS, PROMPT)).code == "too_many_requests":
        assert time.monotonic() < deadline
    assert (answer.code, answer.json["error"]["type"]) == ("rate_limit_exceeded", "tokens")


# -- at once


def test_one_too_many_at_once_is_refused_until_one_has_ended(service: FakeService, connect: Connect, limit: Limit) -> None:
    limit(max_requests=1)
    service.script = None
    running = connect().post_only("POST", COMPLETIONS, PROMPT)
    generation = service.generation()
    refused = connect().request("POST", COMPLETIONS, PROMPT)
    assert (refused.status, refused.code, refused.json["error"]["type"]) == (429, "too_many_requests", "rate_limit_error")
    assert "1 requests of this client are open, and it may have 1 at once" in refused.json["error"]["message"]
    assert refused.fields["retry-after"] == "1"
    assert connect("127.0.0.2").post_only("POST", COMPLETIONS, PROMPT)
    assert service.generation(1).request.share.client == "127.0.0.2"
    assert connect().request("POST", "/tokenize", {"content": "x"}).status == 200
    generation.finish()
    assert running.answer().status == 200
    service.script = ("x", Finished("stop", Usage(1, 1)))
    assert connect().request("POST", COMPLETIONS, PROMPT).status == 200


@pytest.mark.parametrize("body", [PROMPT, STREAM, {**STREAM, "n": 2}], ids=["whole", "stream", "failing stream"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_who_has_its_answer_may_ask_again_at_once(
    service: FakeService, connect: Connect, limit: Limit, body: dict[str, object], version: str
) -> None:
    limit(max_requests=1, max_streams=1)
    if body.get("n"):
        service.script = (Chunk("x", None, 0), Chunk("", Failed(EngineFailed("it died")), 1))
    for _ in range(50):
        client = connect().post_only("POST", COMPLETIONS, body, version=version)
        client.until(b"engine_failed" if body.get("n") else b"[DONE]" if body.get("stream") else b'"usage"')


def test_who_only_asked_for_the_head_of_the_events_has_no_stream(connect: Connect, limit: Limit) -> None:
    limit(max_streams=1)
    for _ in range(50):
        assert connect().request("HEAD", "/events").status == 200


def test_a_fault_in_telling_that_a_client_left_keeps_no_request_open(
    service: FakeService, connect: Connect, limit: Limit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise OSError("a fault")

    monkeypatch.setattr(FakeAdmission, "cancel", fail)
    limit(max_requests=1)
    service.script = None
    leaving = connect().post_only("POST", COMPLETIONS, STREAM)
    generation = service.generation()
    leaving.reset()
    service.script = ("x", Finished("stop", Usage(1, 1)))
    generation.feed("what cannot be written")
    assert until_let_in(connect, PROMPT).status == 200


def test_a_client_that_left_may_come_again(service: FakeService, connect: Connect, limit: Limit) -> None:
    limit(max_requests=1)
    service.script = None
    leaving = connect().post_only("POST", COMPLETIONS, STREAM)
    service.generation()
    leaving.reset()
    assert service.generation().cancelled.wait(DEADLINE_S)
    service.script = ("x", Finished("stop", Usage(1, 1)))
    assert until_let_in(connect, PROMPT).status == 200


def test_streams_and_subscriptions_have_a_bound_together(service: FakeService, connect: Connect, limit: Limit) -> None:
    limit(max_streams=2)
    service.script = None
    events = connect()
    events.post_only("GET", "/events").until(b"event: snapshot")
    connect().post_only("POST", COMPLETIONS, STREAM)
    service.generation()
    for refused in (connect().request("GET", "/events"), connect().request("POST", COMPLETIONS, STREAM)):
        assert (refused.status, refused.code) == (429, "too_many_requests")
        assert "limits.max_streams" in refused.json["error"]["message"]
    connect("127.0.0.2").post_only("GET", "/events").until(b"event: snapshot")
    service.script = ("x", Finished("stop", Usage(1, 1)))
    assert connect().request("POST", COMPLETIONS, PROMPT).status == 200, "no stream"
    events.close()
    assert until_let_in(connect, STREAM).status == 200


def test_a_connection_goes_on_after_a_refusal(client: RawClient, limit: Limit) -> None:
    limit(requests_per_minute=1)
    client.request("POST", COMPLETIONS, PROMPT)
    for _ in range(3):
        assert client.request("POST", COMPLETIONS, PROMPT).status == 429
    assert client.request("GET", "/livez").status == 200


def test_every_route_that_counts_is_named_in_the_documentation() -> None:
    counted = {route.path for route in ROUTES if route.counts is not Counts.NOTHING}
    assert counted == set(COUNTED)
    text = (Path(__file__).resolve().parents[2] / "docs" / "limits.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| `requests_per_minute`"))
    assert set(re.findall(r"`(/[a-z0-9/-]+)`", row)) == counted
