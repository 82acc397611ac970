"""The official `openai` client against the real daemon: typed parse, streams, errors."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from openai import OpenAI

from tests.daemon import Daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_models_lists_what_can_be_asked_for(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo-stories"]
    assert client.models.retrieve("demo-stories").object == "model"


def test_a_chat_whole_and_streamed_is_the_same_story(client: OpenAI) -> None:
    whole = client.chat.completions.create(
        model="demo-stories",
        messages=[{"role": "user", "content": "Tell me a story."}],
        seed=5,
        max_tokens=60,
        extra_body={"cache_prompt": False},
    )
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].finish_reason in ("stop", "length")
    text, reason, usage = "", None, None
    stream = client.chat.completions.create(
        model="demo-stories",
        messages=[{"role": "user", "content": "Tell me a story."}],
        seed=5,
        max_tokens=60,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"cache_prompt": False},
    )
    for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
        usage = chunk.usage or usage
    assert text == whole.choices[0].message.content
    assert reason == whole.choices[0].finish_reason
    assert usage is not None
    assert usage == whole.usage
    assert usage.prompt_tokens + usage.completion_tokens == usage.total_tokens


def test_a_completion_streams(client: OpenAI) -> None:
    pieces = [
        chunk.choices[0].text
        for chunk in client.completions.create(model="demo-stories", prompt="One day", max_tokens=30, stream=True)
        if chunk.choices
    ]
    assert "".join(pieces)


def test_stop_strings_and_limits(client: OpenAI) -> None:
    answer = client.completions.create(model="demo-stories", prompt="One day", max_tokens=200, stop=["."], temperature=0)
    assert "." not in answer.choices[0].text
    assert answer.choices[0].finish_reason == "stop"
    short = client.completions.create(model="demo-stories", prompt="One day", max_tokens=3, extra_body={"ignore_eos": True})
    assert short.choices[0].finish_reason == "length"
    assert short.usage is not None
    assert short.usage.completion_tokens == 3


def test_errors_have_their_types(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no model"):
        client.completions.create(model="nope", prompt="x")
    with pytest.raises(openai.ConflictError) as conflict:
        client.completions.create(model="demo-calc", prompt="x")
    assert conflict.value.code == "model_not_loaded"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="demo-stories", prompt="word " * 5000)
    assert long.value.code == "context_length_exceeded"
    assert "512" in str(long.value)
    with pytest.raises(openai.BadRequestError) as unsupported:
        client.completions.create(model="demo-stories", prompt="x", best_of=2)
    assert unsupported.value.param == "best_of"


def test_a_stream_that_a_switch_cuts_raises(daemon: Daemon, client: OpenAI) -> None:
    stream = client.completions.create(
        model="demo-stories", prompt="One day", max_tokens=500, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    op_id = daemon.switch("demo-calc")
    with pytest.raises(openai.APIError) as cut:
        for _ in stream:
            pass
    assert cut.value.code == "model_switched"
    daemon.wait_op(op_id)
    answer = client.chat.completions.create(
        model="demo-calc", messages=[{"role": "user", "content": "12+30="}], temperature=0, max_tokens=5
    )
    assert answer.choices[0].message.content == "42"


def test_a_client_that_closes_its_stream_frees_the_slot(daemon: Daemon, client: OpenAI) -> None:
    streams = [
        client.completions.create(
            model="demo-stories", prompt="One day", max_tokens=500, stream=True, extra_body={"ignore_eos": True}
        )
        for _ in range(8)
    ]
    for stream in streams:
        next(iter(stream))
        stream.close()
    # the next one is answered whatever the slots still do; afterwards none may be busy
    client.completions.create(model="demo-stories", prompt="One day", max_tokens=5)
    with daemon.stream("/v1/completions", {"prompt": "One day", "max_tokens": 5}) as last:
        for _ in last:
            pass
    assert daemon.get("/status")["queue"] == 0
