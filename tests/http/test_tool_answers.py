"""Answers that call tools: their JSON, whole and streamed, as bytes and as the official client puts them together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fake_service import LOADED, FakeService
from openai import OpenAI
from raw_client import RawClient, data_frames

from modeld.httpapi.server import HttpServer
from modeld.types import Chunk, Finished, TokenLogprob, ToolCallFormat, Usage

TOOLS: list[Any] = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("f", "g")]
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "tools": TOOLS}
F = '<tool_call>\n{"name": "f", "arguments": {"a": "é", "b": [1, 2]}}\n</tool_call>'
G = '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
STOP, LENGTH = Finished("stop", Usage(3, 2)), Finished("length", Usage(3, 2))


@pytest.fixture
def service() -> FakeService:
    service = FakeService()
    service.tool_call_format = ToolCallFormat.HERMES
    return service


@pytest.fixture
def openai_client(server: HttpServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=10) as client:
        yield client


def says(service: FakeService, text: str, end: Finished = STOP, n: int = 3) -> None:
    """What each generation gets, in pieces of n characters."""
    service.script = (*(text[i : i + n] for i in range(0, len(text), n)), end)


def ask(client: RawClient, **params: object) -> tuple[dict[str, Any], str]:
    """Message and finish reason of a whole answer."""
    answer = client.request("POST", "/v1/chat/completions", {**CHAT, **params})
    assert answer.status == 200, answer.body
    (choice,) = answer.json["choices"]
    return choice["message"], choice["finish_reason"]


def stream(client: RawClient, **params: object) -> list[dict[str, Any]]:
    """The choices of a stream's frames."""
    answer = client.request("POST", "/v1/chat/completions", {**CHAT, **params, "stream": True})
    *frames, done = data_frames(answer.body)
    assert done == "[DONE]"
    return [choice for frame in frames for choice in frame["choices"]]


def test_whole_calls(client: RawClient, service: FakeService) -> None:
    says(service, "Let me look. " + F + "\n" + G)
    message, reason = ask(client)
    assert reason == "tool_calls"
    ids = [call.pop("id") for call in message["tool_calls"]]
    assert message == {
        "role": "assistant",
        "content": "Let me look. ",
        "refusal": None,
        "tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": '{"a": "é", "b": [1, 2]}'}},
            {"type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    }
    assert len(set(ids)) == 2
    assert all(id_.startswith("call_") for id_ in ids)
    tools = service.generation().request.tools
    assert tools is not None
    assert [tool.name for tool in tools.tools] == ["f", "g"]


def test_content_is_null_beside_calls_alone_and_text_where_there_is_none(client: RawClient, service: FakeService) -> None:
    says(service, F)
    assert ask(client)[0]["content"] is None
    for text in ("", "Hello.", "<tool_call>oh</tool_call>"):
        says(service, text)
        assert ask(client) == ({"role": "assistant", "content": text, "refusal": None}, "stop")


@pytest.mark.parametrize("cut", [5, 20, 50])
def test_a_call_that_was_cut_is_never_shown_as_one(client: RawClient, service: FakeService, cut: int) -> None:
    says(service, F[:cut], LENGTH)
    assert ask(client) == ({"role": "assistant", "content": F[:cut], "refusal": None}, "length")
    choices = stream(client)
    assert choices[-1]["finish_reason"] == "length"
    pieces = [call for choice in choices for call in choice["delta"].get("tool_calls", ())]
    arguments = "".join(piece["function"]["arguments"] for piece in pieces)
    assert '{"a": "é", "b": [1, 2]}'.startswith(arguments)
    assert bool(arguments) == (cut == 50)


def test_a_call_that_broke_off_by_itself_does_not_finish_as_calls(client: RawClient, service: FakeService) -> None:
    says(service, F[:50])
    assert ask(client)[1] == stream(client)[-1]["finish_reason"] == "stop"


def test_calls_that_are_complete_when_the_answer_is_cut(client: RawClient, service: FakeService) -> None:
    says(service, F + " And", LENGTH)
    message, reason = ask(client)
    assert (message["tool_calls"][0]["function"]["name"], message["content"], reason) == ("f", " And", "length")


def test_streamed_calls_come_name_first_and_then_arguments(client: RawClient, service: FakeService) -> None:
    says(service, "So: " + F + G)
    choices = stream(client)
    assert choices[0]["delta"] == {"role": "assistant", "content": None}
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == "So: "
    pieces = [call for choice in choices for call in choice["delta"].get("tool_calls", ())]
    first = [piece for piece in pieces if "id" in piece]
    assert [(piece["index"], piece["type"], piece["function"]["name"]) for piece in first] == [
        (0, "function", "f"),
        (1, "function", "g"),
    ]
    assert [piece["index"] for piece in pieces] == sorted(piece["index"] for piece in pieces)
    assert len([piece for piece in pieces if piece["index"] == 0]) > 3, "they come as they are made"
    assert all(set(piece) == {"index", "function"} for piece in pieces if piece not in first)
    assert choices[-1] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "tool_calls"}


def test_the_official_client_puts_the_pieces_together(openai_client: OpenAI, service: FakeService) -> None:
    says(service, F + G)
    whole = openai_client.chat.completions.create(model=LOADED.id, messages=CHAT["messages"], tools=TOOLS)
    with openai_client.chat.completions.stream(model=LOADED.id, messages=CHAT["messages"], tools=TOOLS) as events:
        streamed = events.get_final_completion()
    for answer in (whole, streamed):
        assert answer.choices[0].finish_reason == "tool_calls"
        assert answer.choices[0].message.content is None
        calls = answer.choices[0].message.tool_calls
        assert calls is not None
        found = [(call.function.name, json.loads(call.function.arguments)) for call in calls if call.type == "function"]
        assert found == [("f", {"a": "é", "b": [1, 2]}), ("g", {})]


def test_one_call_and_one_tool_where_that_is_asked_for(client: RawClient, service: FakeService) -> None:
    says(service, F + "x" + G)
    message, reason = ask(client, parallel_tool_calls=False)
    assert (len(message["tool_calls"]), message["content"], reason) == (1, None, "tool_calls")
    named = {"type": "function", "function": {"name": "g"}}
    message, _ = ask(client, tool_choice=named)
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["g"]
    assert message["content"] == F + "x", "a call of a tool that may not be called"
    tools = service.generation(1).request.tools
    assert tools is not None
    assert (tools.required, tools.named) == (True, "g")


def test_with_tool_choice_none_text_is_text(client: RawClient, service: FakeService) -> None:
    says(service, F)
    assert ask(client, tool_choice="none") == ({"role": "assistant", "content": F, "refusal": None}, "stop")
    assert service.generation().request.tools is None
    choices = stream(client, tool_choice="none")
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}


def test_each_choice_has_calls_of_its_own(client: RawClient, service: FakeService) -> None:
    service.script = [Chunk(F[:30], None, 0), Chunk(G[:30], None, 1), Chunk(F[30:], STOP, 0), Chunk(G[30:], STOP, 1)]
    choices = stream(client, n=2)
    for index, name in enumerate("fg"):
        own = [choice for choice in choices if choice["index"] == index]
        assert own[-1]["finish_reason"] == "tool_calls"
        pieces = [call for choice in own for call in choice["delta"].get("tool_calls", ())]
        assert [piece["function"]["name"] for piece in pieces if "id" in piece] == [name]


def test_logprobs_are_those_of_all_tokens(client: RawClient, service: FakeService) -> None:
    logprob = TokenLogprob(b"x", -0.5)
    service.script = [Chunk(F[:30], logprobs=(logprob,)), Chunk(F[30:], STOP, logprobs=(logprob,))]
    choices = stream(client, logprobs=True)
    assert sum(len(choice["logprobs"]["content"]) for choice in choices if choice["logprobs"]) == 2


def test_apply_template_takes_tools_and_calls(client: RawClient) -> None:
    messages = [*CHAT["messages"], {"role": "tool", "tool_call_id": "c", "content": "r"}]
    assert client.request("POST", "/apply-template", {"messages": messages, "tools": TOOLS}).json == {
        "prompt": "[f][g]<user>hi<tool>r"
    }
    assert client.request("POST", "/apply-template", {**CHAT, "tool_choice": "none"}).json == {"prompt": "<user>hi"}
    assert client.request("POST", "/apply-template", {**CHAT, "tools": {}}).status == 400
