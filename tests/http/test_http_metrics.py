"""What requests come to is counted under bounded labels, and a scrape does nothing but read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fake_service import FIGURES, FakeService
from raw_client import RawClient

from modeld.errors import ModelSwitched
from modeld.heartbeat import Heartbeat
from modeld.httpapi.limits import Limits
from modeld.httpapi.server import HttpServer
from modeld.types import Failed, Figures, Finished, Usage
from tests.scrapes import OPENMETRICS, Scrape, parse, scrape


def scraped(server: HttpServer) -> Scrape:
    return scrape(*server.address)


def ended(client: RawClient) -> None:
    """Its last request is counted when its connection has been closed."""
    client.request("GET", "/livez", None, "Connection: close")
    assert client.is_closed()


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain", "text/plain; version=0.0.4; charset=utf-8"),
        (OPENMETRICS, "application/openmetrics-text; version=1.0.0; charset=utf-8"),
    ],
)
def test_accept_chooses_the_text(accept: str, content_type: str, client: RawClient) -> None:
    answer = client.request("GET", "/metrics", None, f"Accept: {accept}")
    assert (answer.status, answer.fields["content-type"]) == (200, content_type)
    assert answer.body.endswith(b"# EOF\n") == (accept == OPENMETRICS)
    assert b'modeld_state{state="ready"} 1\n' in answer.body


def test_requests_are_counted_by_route_method_and_status(client: RawClient, server: HttpServer) -> None:
    for method, path in (
        ("GET", "/status"),
        ("GET", "/status?x=1"),
        ("HEAD", "/status"),
        ("GET", "/ops/op-1"),
        ("GET", "/ops/op-2"),
    ):
        client.request(method, path)
    ended(client)
    found = scraped(server)
    assert found['modeld_http_requests_total{method="GET",route="/status",status="200"}'] == 2
    assert found['modeld_http_requests_total{method="HEAD",route="/status",status="200"}'] == 1
    assert found['modeld_http_requests_total{method="GET",route="/ops/{op_id}",status="200"}'] == 1
    assert found['modeld_http_requests_total{method="GET",route="/ops/{op_id}",status="404"}'] == 1
    assert found['modeld_http_request_seconds_count{route="/status"}'] == 3
    assert found['modeld_caller_requests_total{caller="anonymous"}'] == 6


def test_what_clients_make_up_adds_no_series(connect: Callable[[], RawClient], server: HttpServer) -> None:
    def storm(i: int) -> None:
        client = connect()
        client.request("GET", f"/made-up-{i}")
        client.request(f"M{i}", "/status")
        client.request("GET", f"/ops/made-up-{i}")
        client.request("POST", "/v1/completions", {"prompt": "x", "model": f"made-up-{i}"})
        client.send(f"GET /made-up-{i} HTTP/9.1\r\n\r\n").rest()

    storm(0)
    before = set(scraped(server).values)
    for i in range(1, 20):
        storm(i)
    after = scraped(server)
    assert set(after.values) - {name for name in after.values if "/metrics" in name} == before
    assert not [name for name in after.values if "made-up" in name]


def test_a_generation_is_counted_with_its_tokens_and_its_end(client: RawClient, server: HttpServer, service: FakeService) -> None:
    service.script = ["Hello", " world", Finished("stop", Usage(7, 2, 4))]
    client.request("POST", "/v1/completions", {"prompt": "x", "stream": True})
    service.script = ["Hello", Failed(ModelSwitched("the model was switched"), Usage(5, 1))]
    client.request("POST", "/v1/completions", {"prompt": "x"})
    ended(client)
    found = scraped(server)
    assert found['modeld_generations_total{end="stop",model="tiny:q8"}'] == 1
    assert found['modeld_generations_total{end="model_switched",model="tiny:q8"}'] == 1
    assert found['modeld_prompt_tokens_total{model="tiny:q8"}'] == 12
    assert found['modeld_prompt_cached_tokens_total{model="tiny:q8"}'] == 4
    assert found['modeld_completion_tokens_total{model="tiny:q8"}'] == 3
    assert found['modeld_time_to_first_token_seconds_count{model="tiny:q8"}'] == 2
    assert found['modeld_caller_tokens_total{caller="anonymous",kind="completion"}'] == 3
    assert found['modeld_http_rejections_total{code="model_switched"}'] == 1


def test_a_client_that_leaves_is_counted_with_what_its_answer_had_come_to(
    connect: Callable[[], RawClient], server: HttpServer, service: FakeService
) -> None:
    service.script = None
    client = connect()
    client.post_only("POST", "/v1/completions", {"prompt": "x", "stream": True})
    generation = service.generation()
    generation.feed("Hello")
    client.until(b"Hello")
    client.close()
    assert generation.cancelled.wait(10)
    server.close(5.0)  # all requests have been counted then
    found = parse_registry(server)
    assert found['modeld_http_client_disconnects_total{route="/v1/completions"}'] == 1
    assert found['modeld_http_requests_total{method="POST",route="/v1/completions",status="499"}'] == 1
    assert found['modeld_generations_total{end="client_gone",model="tiny:q8"}'] == 1
    assert found['modeld_completion_tokens_total{model="tiny:q8"}'] == 1


def parse_registry(server: HttpServer) -> Scrape:
    from modeld.metrics import render

    return parse(render(server._meter.registry.read(), openmetrics=True).decode())


class TestShortGenerations:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(generation_s=0.2)

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("begun", [False, True])
    def test_a_generation_that_took_too_long_is_counted_with_its_tokens(
        self, stream: bool, begun: bool, client: RawClient, server: HttpServer, service: FakeService
    ) -> None:
        service.script = ["Hello"] if begun else None
        client.request("POST", "/v1/completions", {"prompt": "x", "stream": stream})
        ended(client)
        found = scraped(server)
        assert found['modeld_generations_total{end="generation_timeout",model="tiny:q8"}'] == 1
        assert found['modeld_completion_tokens_total{model="tiny:q8"}'] == 1
        assert found['modeld_prompt_tokens_total{model="tiny:q8"}'] == 3


class TestOneConnection:
    @pytest.fixture
    def limits(self) -> Limits:
        return Limits(connections=1)

    def test_a_connection_too_many_is_counted(
        self, client: RawClient, connect: Callable[[], RawClient], server: HttpServer, service: FakeService
    ) -> None:
        service.script = None
        client.post_only("POST", "/v1/completions", {"prompt": "x"})
        service.generation()
        other = connect()
        assert other.answer().status == 503
        assert other.is_closed()  # and counted
        found = parse_registry(server)
        assert found['modeld_http_connections_turned_away_total{reason="refused"}'] == 1
        assert found['modeld_http_rejections_total{code="too_many_connections"}'] == 1
        assert found["modeld_http_connections_busy"] == 1
        assert found["modeld_http_connections_limit"] == 1


def test_the_daemons_figures_are_told(client: RawClient, server: HttpServer, service: FakeService) -> None:
    service.subscribe(None)
    service.beats["engine"] = Heartbeat("modeld-engine", 90.0, "what comes after a decode", ok=False)
    found = scraped(server)
    assert found['modeld_state{state="ready"}'] == 1
    assert found['modeld_state{state="loading"}'] == found['modeld_state{state="error"}'] == 0
    assert found['modeld_model_loaded{model="tiny:q8"}'] == 1
    assert found['modeld_model_loaded{model="other"}'] == 0
    assert found["modeld_event_clients"] == 1
    assert found['modeld_thread_stuck{thread="modeld-engine"}'] == 1
    assert found['modeld_heartbeat_age_seconds{thread="modeld-engine"}'] == 90
    assert found['modeld_thread_stuck{thread="modeld-switch"}'] == 0
    assert found['modeld_ops_total{kind="switch",reason="request",state="succeeded"}'] == 2
    assert found['modeld_ops_total{kind="unload",reason="idle",state="failed"}'] == 0
    assert found['modeld_op_step_seconds_count{step="mmap"}'] == 3
    assert found["modeld_token_seconds_sum"] == 0.75
    assert found['modeld_decode_rows_total{kind="prompt"}'] == FIGURES.engine.n_rows_prompt
    assert found['modeld_prefix_cache_tokens_total{source="kept"}'] == FIGURES.engine.n_reused_kept
    assert found["modeld_kv_cells_used"] == FIGURES.cells.n_used


class Reluctant:
    """A Service that does nothing but tell its figures."""

    def __init__(self) -> None:
        self.n_asked = 0

    def figures(self) -> Figures:
        self.n_asked += 1
        figures: Figures = FIGURES
        return figures

    def heartbeats(self) -> list[Heartbeat]:
        return []

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"a scrape asked for {name}")


def test_a_scrape_asks_for_figures_and_nothing_else() -> None:
    service = Reluctant()
    server = HttpServer(service, "127.0.0.1", 0)
    server.start()
    try:
        for _ in range(3):
            scraped(server)
        assert service.n_asked == 3
    finally:
        server.close(5.0)


def test_a_scrape_is_answered_while_generations_are_stuck(
    connect: Callable[[], RawClient], server: HttpServer, service: FakeService
) -> None:
    service.script = None
    for i in range(4):
        connect().post_only("POST", "/v1/completions", {"prompt": "x"})
        service.generation(i)
    assert scraped(server)["modeld_http_connections_busy"] == 5  # with its own
