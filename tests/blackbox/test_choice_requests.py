"""n, lists of prompts, logprobs and echo through real sockets, against what the model says one by one."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI

from tests.daemon import Daemon

STORY = "One day a little"


@pytest.fixture
def client(daemon: Daemon) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def complete(daemon: Daemon, **body: Any) -> dict[str, Any]:
    status, _, answer = daemon.request("POST", "/v1/completions", {"prompt": STORY, "max_tokens": 12, **body})
    assert status == 200, answer
    return dict(answer)


def test_n_answers_are_those_of_n_requests_with_rising_seeds(daemon: Daemon) -> None:
    together = complete(daemon, n=3, seed=40)
    alone = [complete(daemon, seed=40 + i, cache_prompt=False) for i in range(3)]
    assert [choice["index"] for choice in together["choices"]] == [0, 1, 2]
    assert [choice["text"] for choice in together["choices"]] == [answer["choices"][0]["text"] for answer in alone]
    assert together["usage"]["prompt_tokens"] == alone[0]["usage"]["prompt_tokens"], "the prompt counts once"
    assert together["usage"]["completion_tokens"] == sum(answer["usage"]["completion_tokens"] for answer in alone)


def test_several_prompts_are_answered_in_their_order(daemon: Daemon) -> None:
    tokens = daemon.request("POST", "/tokenize", {"content": STORY, "add_special": True})[2]["tokens"]
    together = complete(daemon, prompt=["A cat", tokens, "The sun"], temperature=0)
    alone = [complete(daemon, prompt=prompt, temperature=0) for prompt in ("A cat", STORY, "The sun")]
    assert [choice["text"] for choice in together["choices"]] == [answer["choices"][0]["text"] for answer in alone]
    assert together["usage"]["prompt_tokens"] == sum(answer["usage"]["prompt_tokens"] for answer in alone)


def test_streams_of_several_answers_can_be_told_apart(daemon: Daemon) -> None:
    body = {"prompt": ["A cat", STORY], "n": 2, "seed": 3, "max_tokens": 12, "stream_options": {"include_usage": True}}
    whole = complete(daemon, **{key: value for key, value in body.items() if key != "stream_options"})
    texts, reasons = [""] * 4, [None] * 4
    with daemon.stream("/v1/completions", body) as stream:
        for frame in stream:
            for choice in frame["choices"]:
                assert reasons[choice["index"]] is None, "a frame after the choice's last one"
                texts[choice["index"]] += choice["text"]
                reasons[choice["index"]] = choice["finish_reason"]
        assert stream.done
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert reasons == [choice["finish_reason"] for choice in whole["choices"]]
    usage = stream.frames[-1]["usage"]
    assert {k: v for k, v in usage.items() if k != "prompt_tokens_details"} == {
        k: v for k, v in whole["usage"].items() if k != "prompt_tokens_details"
    }


def test_logprobs_of_a_greedy_answer_are_the_largest(daemon: Daemon, client: OpenAI) -> None:
    answer = client.completions.create(model="demo-stories", prompt=STORY, max_tokens=8, temperature=0, logprobs=3)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.top_logprobs is not None
    assert "".join(logprobs.tokens) == answer.choices[0].text
    for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs or (), logprobs.top_logprobs, strict=True):
        assert math.isclose(max(top.values()), logprob, abs_tol=1e-6)
        assert top[token] == logprob
        assert math.exp(logprob) <= 1
    at = 0
    for token, offset in zip(logprobs.tokens, logprobs.text_offset or (), strict=True):
        assert offset == at
        at += len(token)


def test_chat_logprobs_whole_and_streamed_are_the_same(client: OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "demo-stories", "messages": [{"role": "user", "content": "Tell me a story."}], "seed": 5, "max_tokens": 20,
        "logprobs": True, "top_logprobs": 2,
    }  # fmt: skip
    whole = client.chat.completions.create(**asked).choices[0]
    streamed = [
        item
        for chunk in client.chat.completions.create(**asked, stream=True)
        for choice in chunk.choices
        if choice.logprobs is not None
        for item in choice.logprobs.content or ()
    ]
    assert whole.logprobs is not None
    assert whole.logprobs.content is not None
    assert [item.token for item in streamed] == [item.token for item in whole.logprobs.content]
    for ours, theirs in zip(streamed, whole.logprobs.content, strict=True):
        assert math.isclose(ours.logprob, theirs.logprob, abs_tol=1e-3)
        assert len(ours.top_logprobs) == 2
    assert b"".join(bytes(item.bytes or ()) for item in streamed).decode() == whole.message.content


def test_echo_scores_the_prompt_as_generation_would(daemon: Daemon) -> None:
    generated = complete(daemon, temperature=0, logprobs=0, max_tokens=6)["choices"][0]
    scored = complete(daemon, prompt=STORY + generated["text"], echo=True, logprobs=0, max_tokens=0)["choices"][0]
    assert scored["text"] == STORY + generated["text"]
    assert scored["finish_reason"] == "length"
    assert scored["logprobs"]["token_logprobs"][0] is None
    n = len(generated["logprobs"]["tokens"])
    assert scored["logprobs"]["tokens"][-n:] == generated["logprobs"]["tokens"]
    pairs = zip(scored["logprobs"]["token_logprobs"][-n:], generated["logprobs"]["token_logprobs"], strict=True)
    assert max(abs(a - b) for a, b in pairs) < 1e-2, "a batch of many rows rounds otherwise than one row"


def test_echo_comes_before_the_answer_streamed_too(daemon: Daemon) -> None:
    whole = complete(daemon, echo=True, seed=1)["choices"][0]["text"]
    assert whole.startswith(STORY)
    with daemon.stream("/v1/completions", {"prompt": STORY, "max_tokens": 12, "echo": True, "seed": 1}) as stream:
        list(stream)
    assert stream.text == whole


def test_more_answers_than_there_are_places_is_an_error_that_says_the_numbers(daemon: Daemon) -> None:
    status, _, body = daemon.request("POST", "/v1/completions", {"prompt": ["x"] * 128, "n": 128})
    assert status == 400
    assert "16384 answers" in body["error"]["message"]
    assert daemon.get("/status")["queue"] == 0


def test_a_reader_that_pauses_gets_every_byte_in_its_order(daemon: Daemon) -> None:
    body = {"prompt": STORY, "n": 8, "seed": 9, "max_tokens": 100, "ignore_eos": True, "logprobs": 20}
    whole = complete(daemon, **body)
    with socket.socket() as sock:
        sock.settimeout(60)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((daemon.host, daemon.port))
        data = json.dumps({**body, "stream": True}).encode()
        head = f"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        sock.sendall(head.encode() + data)
        received = sock.recv(100)
        # Nothing more is read until all slots are free: then the rest lies in the kernel and in the connection's hands.
        daemon.wait_status(lambda status: status["slots"]["busy"] == 0)
        while piece := sock.recv(65536):
            received += piece
    lines = received.decode().split("\n")
    frames = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    texts = [""] * 8
    for frame in frames:
        for choice in frame["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert "data: [DONE]" in lines
