"""The OpenAI routes as bytes on the wire and as the official client reads them."""

from __future__ import annotations

import pytest
from fake_service import LOADED, FakeService
from openai import OpenAI
from raw_client import RawClient, data_frames

from modeld.httpapi.limits import Limits
from modeld.httpapi.server import HttpServer
from modeld.types import ChatMessage, Finished, Usage

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def openai_client(server: HttpServer):
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=10) as client:
        yield client


def test_chat_completion_as_the_official_client_reads_it(openai_client, service):
    answer = openai_client.chat.completions.create(model=LOADED.id, messages=[{"role": "user", "content": "hi"}])
    assert answer.choices[0].message.content == "Hello world"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == 5
    assert answer.object == "chat.completion"
    assert service.generation().request.prompts == ((ChatMessage("user", "hi"),),)
    assert not service.generation().cancelled.is_set()


def test_chat_stream_as_the_official_client_reads_it(openai_client):
    stream = openai_client.chat.completions.create(
        model=LOADED.id, messages=[{"role": "user", "content": "hi"}], stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello world"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 2
    assert len({c.id for c in chunks}) == 1


def test_completion_and_its_stream_as_the_official_client_reads_them(openai_client):
    whole = openai_client.completions.create(model=LOADED.id, prompt="hi")
    assert (whole.choices[0].text, whole.object) == ("Hello world", "text_completion")
    chunks = list(openai_client.completions.create(model=LOADED.id, prompt="hi", stream=True))
    assert "".join(c.choices[0].text for c in chunks) == "Hello world"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_one_frame_a_chunk_and_done_at_the_end(client: RawClient):
    answer = client.request("POST", "/v1/chat/completions", {**CHAT, "stream": True})
    assert answer.status == 200
    assert answer.fields["content-type"] == "text/event-stream"
    assert answer.fields["x-model-id"] == LOADED.id
    assert all(chunk.endswith(b"\n\n") and chunk.count(b"\n\n") == 1 for chunk in answer.chunks)
    assert data_frames(answer.body)[-1] == "[DONE]"
    assert client.request("GET", "/livez").status == 200  # the connection is kept


def test_text_in_a_frame_is_escaped(client: RawClient, service: FakeService):
    text = 'a"b\\c\n\u2028é😀\x00'
    service.script = (text, Finished("length", Usage(1, 1)))
    frames = data_frames(client.request("POST", "/v1/completions", {"prompt": "", "stream": True}).body)
    assert frames[0]["choices"][0]["text"] == text
    assert frames[1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("limits", [Limits(generation_s=0.1)])
@pytest.mark.parametrize("stream", [False, True])
def test_a_generation_that_takes_too_long_is_cancelled_and_says_so(client: RawClient, service: FakeService, stream: bool):
    service.script = ()
    answer = client.request("POST", "/v1/completions", {"prompt": "x", "stream": stream})
    assert answer.status == 504
    assert answer.json["error"]["code"] == "generation_timeout"
    assert service.generation().cancelled.is_set()


@pytest.mark.parametrize("limits", [Limits(generation_s=0.2)])
def test_a_stream_that_has_always_more_to_send_is_cancelled_in_time_too(client: RawClient, service: FakeService):
    service.script = ("x",) * 50_000
    frames = data_frames(client.request("POST", "/v1/completions", {"prompt": "x", "stream": True}).body)
    assert 1 < len(frames) < 50_000
    assert frames[-1]["error"]["code"] == "generation_timeout"
    assert service.generation().cancelled.is_set()


@pytest.mark.parametrize("limits", [Limits(generation_s=0.3, heartbeat_s=0.05)])
def test_a_stream_that_takes_too_long_ends_with_an_error_frame(client: RawClient, service: FakeService):
    service.script = ("Hello",)
    answer = client.request("POST", "/v1/completions", {"prompt": "x", "stream": True})
    assert answer.status == 200
    frames = data_frames(answer.body)
    assert frames[0]["choices"][0]["text"] == "Hello"
    assert frames[-1]["error"]["code"] == "generation_timeout"
    assert service.generation().cancelled.is_set()
