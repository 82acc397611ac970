"""One line a request, which says what it came to and nothing that its client put into it."""

from __future__ import annotations

import contextlib
import json
import logging

import pytest
from fake_service import FakeService
from raw_client import RawClient

from modeld.errors import ModelSwitched
from modeld.httpapi import accesslog
from modeld.httpapi.record import Record
from modeld.logs import JsonFormatter, TextFormatter
from modeld.types import Failed, Finished, Usage

SECRET = "sk-4b1d2e"


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


def lines(logged: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    records = [record for record in logged.records if record.getMessage() == "request"]
    return [json.loads(JsonFormatter().format(record)) for record in records]


def last(client: RawClient, logged: pytest.LogCaptureFixture) -> dict[str, object]:
    """The line of the connection's last request, which it has written when it has closed."""
    client.request("GET", "/livez", None, "Connection: close")
    assert client.is_closed()
    return lines(logged)[-2]


def test_a_request_is_told_by_its_route(client: RawClient, logged) -> None:
    client.request("GET", "/status?wait=60", None, "X-Request-Id: req-1")
    line = last(client, logged)
    assert line.pop("ts")
    assert line.pop("ms") >= 0  # type: ignore[operator]
    assert line.pop("bytes") > 100  # type: ignore[operator]
    assert line == {
        "level": "info", "logger": "modeld.http", "msg": "request", "request_id": "req-1", "caller": "anonymous",
        "method": "GET", "target": "/status", "route": "/status", "status": 200,
    }  # fmt: skip


def test_a_path_is_told_where_it_named_something_that_is_here(client: RawClient, logged) -> None:
    client.request("GET", f"/ops/op-1?{SECRET}={SECRET}")
    line = last(client, logged)
    assert (line["route"], line["target"]) == ("/ops/{op_id}", "/ops/op-1")


@pytest.mark.parametrize(
    "raw",
    [
        f"GET /{SECRET} HTTP/1.1\r\nHost: h\r\n\r\n",
        f"GET /ops/{SECRET} HTTP/1.1\r\nHost: h\r\n\r\n",
        f"GET /v1/models/{SECRET} HTTP/1.1\r\nHost: h\r\n\r\n",
        f"OPTIONS /ops/{SECRET} HTTP/1.1\r\nHost: h\r\n\r\n",
        f"GET /status/{SECRET} HTTP/1.1\r\nHost: h\r\n\r\n",
        f"GET http://{SECRET}/{SECRET} HTTP/1.1\r\nHost: h\r\n\r\n",
        f"GET /status?{SECRET}&key={SECRET} HTTP/1.1\r\nHost: h\r\n\r\n",
        f"GET /status HTTP/1.1\r\nHost: {SECRET}\r\nAuthorization: Bearer {SECRET}\r\nX-Request-Id: {SECRET} {SECRET}\r\n\r\n",
        f"{SECRET} /status HTTP/1.1\r\nHost: h\r\n\r\n",
        f"GET /status {SECRET}\r\nHost: h\r\n\r\n",
        f"GET /status HTTP/1.1\r\nHost: h\r\n{SECRET}\r\n\r\n",
        f"POST /switch HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n{{\"{SECRET}",
        f"POST /switch HTTP/1.1\r\nHost: h\r\nContent-Type: {SECRET}\r\nContent-Length: 2\r\n\r\n{{}}",
    ],
)  # fmt: skip
def test_no_secret_reaches_a_line(raw: str, client: RawClient, logged) -> None:
    client.send(raw).half_close()
    with contextlib.suppress(ConnectionResetError):  # what is no whole request gets no answer
        client.rest()
    assert lines(logged)
    for record in logged.records:
        for formatter in (JsonFormatter(), TextFormatter()):
            assert SECRET not in formatter.format(record)


def test_a_fault_while_streaming_quotes_nothing(client: RawClient, service: FakeService, logged) -> None:
    service.script = ["Hello", Failed(KeyError(SECRET))]
    client.request("POST", "/v1/completions", {"prompt": "x", "stream": True})
    line = last(client, logged)
    assert (line["code"], line["end"], line["status"]) == ("internal_error", "internal_error", 200)
    assert not any(SECRET in JsonFormatter().format(record) for record in logged.records)


@pytest.mark.parametrize("stream", [False, True])
def test_a_generation_is_told_with_its_tokens_and_times(stream: bool, client: RawClient, service: FakeService, logged) -> None:
    service.script = ["Hello", " world", Finished("stop", Usage(7, 2, 4))]
    client.request("POST", "/v1/completions", {"prompt": "x", "stream": stream})
    line = last(client, logged)
    assert (line["model_id"], line["stream"], line["end"]) == ("tiny:q8", stream, "stop")
    assert (line["prompt_tokens"], line["cached_tokens"], line["completion_tokens"]) == (7, 4, 2)
    assert 0 <= line["ttft_ms"] <= line["last_token_ms"] <= line["ms"]  # type: ignore[operator]


@pytest.mark.parametrize("stream", [False, True])
def test_a_generation_that_was_cut_is_told_with_what_it_had_come_to(stream: bool, client, service: FakeService, logged) -> None:
    service.script = ["Hello", Failed(ModelSwitched("the model was switched"), Usage(7, 1, 4))]
    client.request("POST", "/v1/completions", {"prompt": "x", "stream": stream})
    line = last(client, logged)
    assert (line["end"], line["code"]) == ("model_switched", "model_switched")
    assert (line["prompt_tokens"], line["cached_tokens"], line["completion_tokens"]) == (7, 4, 1)


def test_answers_that_went_on_when_one_failed_are_ended_and_counted(client: RawClient, service: FakeService, logged) -> None:
    service.script = ["Hello", Failed(ModelSwitched("the model was switched"), Usage(7, 1))]
    client.request("POST", "/v1/completions", {"prompt": ["x", "y"], "stream": True})
    assert service.generation().cancelled.is_set()
    line = last(client, logged)
    assert (line["end"], line["prompt_tokens"], line["completion_tokens"]) == ("model_switched", 7, 1)


def test_what_is_not_known_is_left_out() -> None:
    assert set(accesslog.fields(Record("r"))) == {"request_id", "method", "status", "ms", "bytes"}


@pytest.mark.parametrize(
    ("method", "told"), [("GET", "GET"), ("DELETE", "DELETE"), ("get", "other"), ("-", "other"), (SECRET, "other")]
)
def test_only_methods_that_everybody_knows_are_told(method: str, told: str) -> None:
    assert accesslog.method(Record("r", method=method)) == told


def test_what_is_refused_before_its_route_is_looked_for_is_told_by_it_all_the_same(client: RawClient, logged) -> None:
    client.request("GET", "/ops/op-1", None, "Origin: https://elsewhere.example")
    line = last(client, logged)
    assert (line["status"], line["code"]) == (403, "origin_not_allowed")
    assert (line["route"], line["target"]) == ("/ops/{op_id}", "/ops/{op_id}")
