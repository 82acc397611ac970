"""Several clients at one daemon: turns, shares, limits a minute, and what the official client makes of a refusal."""

from __future__ import annotations

import re
import select
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai import OpenAI

from tests.daemon import DEADLINE_S, Daemon, demo_config
from tests.http.raw_client import RawClient

PATH = "/v1/completions"
LONG = {"prompt": "One day", "max_tokens": 150, "ignore_eos": True, "cache_prompt": False}
SHORT = {"prompt": "One day", "max_tokens": 4}
N_SLOTS = 8  # of the demo models


def limited(folder: Path, limits: str) -> Path:
    """A configuration with these limits that takes any Host."""
    path = demo_config(folder, f"limits: {{{limits}}}\n", one_thread=True)
    path.write_text(path.read_text().replace("port: 0}", 'port: 0, allowed_hosts: ["*"]}'))
    return path


class Crowd:
    """Requests that were sent and not read."""

    def __init__(self, daemon: Daemon, n: int, source: str) -> None:
        self.clients = [RawClient((daemon.host, daemon.port), source) for _ in range(n)]
        for client in self.clients:
            client.post_only("POST", PATH, LONG)

    def answered(self) -> list[RawClient]:
        readable = select.select([client.sock for client in self.clients], [], [], 0)[0]
        return [client for client in self.clients if client.sock in readable]

    def n_answered(self) -> int:
        return len(self.answered())

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *exc: object) -> None:
        for client in self.clients:
            client.close()


def ask(daemon: Daemon, source: str) -> int:
    client = RawClient((daemon.host, daemon.port), source)
    client.sock.settimeout(DEADLINE_S)  # a slot has to come free first
    try:
        return client.request("POST", PATH, SHORT).status
    finally:
        client.close()


def test_one_request_is_answered_before_the_twentieth_of_another_client_that_has_a_hundred(tmp_path: Path) -> None:
    with Daemon(limited(tmp_path, "")) as daemon:
        daemon.wait_ready()
        with Crowd(daemon, 100, "127.0.0.1") as crowd:
            daemon.wait_status(lambda status: status["slots"]["busy"] + status["queue"] + crowd.n_answered() >= 100)
            n_before = crowd.n_answered()
            assert n_before < 80, "the crowd was answered before it was one"
            assert ask(daemon, "127.0.0.2") == 200
            assert crowd.n_answered() - n_before < 20
        daemon.wait_status(lambda status: status["slots"]["busy"] + status["queue"] == 0)


def test_a_client_that_fills_its_share_leaves_the_queue_to_the_others(tmp_path: Path) -> None:
    with Daemon(limited(tmp_path, "max_queued: 10")) as daemon:
        daemon.wait_ready()
        with Crowd(daemon, N_SLOTS, "127.0.0.1"):
            daemon.wait_status(lambda status: status["slots"]["busy"] == N_SLOTS)
            with Crowd(daemon, 60, "127.0.0.1") as crowd:
                daemon.wait_line(lambda line: line.get("status") == 429)
                answers = (client.answer("POST") for client in crowd.answered())
                refused = next(answer for answer in answers if answer.status == 429)
                assert refused.code == "queue_full"
                assert "its share of the queue is 10 (limits.max_queued)" in refused.json["error"]["message"]
                assert refused.fields["retry-after"] == "1"
                assert daemon.get("/status")["queue"] <= 10
                assert ask(daemon, "127.0.0.2") == 200


@pytest.fixture(scope="module")
def half_second(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """120 requests a minute: after the first 120, one each half second."""
    with Daemon(limited(tmp_path_factory.mktemp("daemon"), "requests_per_minute: 120, tokens_per_minute: 1000000")) as daemon:
        daemon.wait_ready()
        yield daemon


def test_the_official_client_waits_as_long_as_it_is_told_and_succeeds(half_second: Daemon) -> None:
    daemon = half_second
    with OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        raw = client.completions.with_raw_response.create(model="demo-stories", prompt="One day", max_tokens=1)
        assert raw.headers["x-ratelimit-limit-requests"] == "120"
        assert int(raw.headers["x-ratelimit-remaining-requests"]) <= 119
        assert raw.headers["x-ratelimit-limit-tokens"] == "1000000"
        assert raw.headers["x-ratelimit-reset-requests"].endswith("s")
        refused, begin = exhausted(client)
        assert (refused.code, refused.type) == ("rate_limit_exceeded", "requests")
        assert 0 < int(refused.response.headers["retry-after-ms"]) <= 500
        assert refused.response.headers["retry-after"] == "1"
        patient = client.with_options(max_retries=3)
        for _ in range(4):
            assert patient.completions.create(model="demo-stories", prompt="One day", max_tokens=1).choices
        assert time.monotonic() - begin > 1.49, "less than one was there, so three had to come back, each in half a second"


def exhausted(client: OpenAI) -> tuple[openai.RateLimitError, float]:
    """How the first request was refused, and when it was made."""
    for _ in range(1000):
        begin = time.monotonic()
        try:
            client.completions.create(model="demo-stories", prompt="One day", max_tokens=1)
        except openai.RateLimitError as error:
            return error, begin
    raise AssertionError("a thousand requests were let in")


def test_streams_of_the_official_client_wait_too(half_second: Daemon) -> None:
    with OpenAI(base_url=f"{half_second.url}/v1", api_key="none", max_retries=3, timeout=60) as client:
        for _ in range(3):
            stream = client.completions.create(model="demo-stories", prompt="One day", max_tokens=3, stream=True)
            assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices)


def test_limits_change_with_a_reload_and_a_name_that_nobody_has_is_told(tmp_path: Path) -> None:
    config = limited(tmp_path, "requests_per_minute: 1, per_key: {anonymous: {}, uid:7: {}, bacth: {}}")
    with Daemon(config) as daemon:
        daemon.wait_ready()
        line = daemon.wait_line(lambda line: "limits.per_key" in line.get("msg", ""))
        assert line["msg"] == "limits.per_key has names that no caller has: bacth"
        assert [ask(daemon, "127.0.0.1") for _ in range(2)] == [200, 429]
        config.write_text(config.read_text().replace("requests_per_minute: 1", "max_queued: 3"))
        assert daemon.request("POST", "/reload", {})[0] == 200
        assert [ask(daemon, "127.0.0.1") for _ in range(3)] == [200, 200, 200]


@pytest.mark.parametrize("way", ["reset", "half close"])
def test_the_tokens_of_a_stream_whose_client_left_are_charged(tmp_path: Path, way: str) -> None:
    with Daemon(limited(tmp_path, "tokens_per_minute: 60")) as daemon:  # one comes back each second
        daemon.wait_ready()
        leaving = RawClient((daemon.host, daemon.port))
        leaving.post_only("POST", PATH, {**LONG, "max_tokens": 400, "stream": True, "n": 4})
        leaving.until(b"\r\n\r\n")
        n_read = 0
        while n_read < 200:
            n_read += leaving.chunk().count(b"data: ")
        leaving.reset() if way == "reset" else leaving.half_close()
        daemon.wait_status(lambda status: status["slots"]["busy"] + status["queue"] == 0)
        client = RawClient((daemon.host, daemon.port))
        deadline = time.monotonic() + DEADLINE_S
        while (answer := client.request("POST", PATH, SHORT)).status == 200:
            assert time.monotonic() < deadline, "never charged"
        taken = re.search(r"has taken (\d+) of the 60 tokens", answer.json["error"]["message"])
        assert taken is not None
        assert n_read - 60 <= int(taken[1]) < 1600, "what was made until then, less what came back meanwhile"
        leaving.close()
        client.close()
