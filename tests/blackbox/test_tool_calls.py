"""Calls of tools out of a real model, which knows none: a grammar makes it call, in the format of its chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests import tool_templates as texts
from tests.daemon import MODELS, Daemon, demo_config
from tests.json_schema import follows

FORMATS = {"hermes": texts.HERMES, "llama3": texts.LLAMA3, "mistral": texts.MISTRAL, "mistral-args": texts.MISTRAL_ARGS}
MORE = "".join(
    f"  - {{id: {model_id}, path: {MODELS}/demo-stories.gguf, n_ctx: 8192, n_parallel: 2, "
    f"chat_template: {json.dumps(template)}}}\n"
    for model_id, template in {**FORMATS, "plain": texts.PLAIN, "named": "chatml"}.items()
)
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
SUM: dict[str, Any] = {
    "type": "object",
    "properties": {"terms": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3}},
    "required": ["terms"],
}
SCHEMAS = {"get_weather": CITY, "add": SUM}
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "description": f"It is {name}.", "parameters": schema}}
    for name, schema in SCHEMAS.items()
]
ASK: Any = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture(scope="module")
def tooled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(demo_config(tmp_path_factory.mktemp("tools"), MORE)) as daemon:
        daemon.wait_ready()
        yield daemon


@pytest.fixture
def client(tooled: Daemon) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{tooled.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def load(daemon: Daemon, model_id: str) -> None:
    assert daemon.switch_and_wait(model_id)["state"] == "succeeded"


def called(message: Any) -> list[tuple[str, str]]:
    """Name and arguments of each call, checked against the tool's schema."""
    calls = [(call.function.name, call.function.arguments) for call in message.tool_calls]
    for name, arguments in calls:
        assert not follows(json.loads(arguments), SCHEMAS[name])
    return calls


def test_a_call_that_is_required_is_made_in_every_format_whole_and_streamed(tooled: Daemon, client: OpenAI) -> None:
    for format_ in FORMATS:
        load(tooled, format_)
        props = tooled.get("/props")
        assert props["tool_call_format"] == format_
        assert props["chat_template_caps"] == {"supports_tools": True, "supports_tool_calls": True}
        # Two at once in one format: what the tiny model likes to call, it calls again and again.
        several = format_ == "hermes"
        params: Any = {"model": format_, "messages": ASK, "tools": TOOLS, "tool_choice": "required", "seed": int(several)}
        params |= {"temperature": 1.5, "max_tokens": 400, "parallel_tool_calls": several, "extra_body": {"cache_prompt": False}}
        whole = client.chat.completions.create(**params)
        assert whole.choices[0].finish_reason == "tool_calls", whole
        assert whole.choices[0].message.content is None
        calls = called(whole.choices[0].message)
        assert len(calls) == 1 + several
        with client.chat.completions.stream(**params) as events:
            final = events.get_final_completion()
        assert final.choices[0].finish_reason == "tool_calls"
        assert called(final.choices[0].message) == calls
        assert final.choices[0].message.content is None


def test_a_named_function_and_one_call(tooled: Daemon, client: OpenAI) -> None:
    load(tooled, "hermes")
    for name in SCHEMAS:
        answer = client.chat.completions.create(
            model="hermes",
            messages=ASK,
            tools=TOOLS,
            tool_choice={"type": "function", "function": {"name": name}},
            max_tokens=200,
        )
        ((called_name, _),) = called(answer.choices[0].message)
        assert called_name == name
    several = client.chat.completions.create(
        model="hermes", messages=ASK, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, n=2
    )
    assert all(len(called(choice.message)) == 1 for choice in several.choices)


def test_a_whole_talk_with_calls_and_results(tooled: Daemon, client: OpenAI) -> None:
    for format_ in ("hermes", "mistral"):
        load(tooled, format_)
        first = client.chat.completions.create(
            model=format_, messages=ASK, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, max_tokens=300
        )
        message = first.choices[0].message
        assert message.tool_calls
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "42"}
        talk: Any = [*ASK, message.model_dump(exclude_none=False), result]
        answer = client.chat.completions.create(model=format_, messages=talk, tools=TOOLS, temperature=0, max_tokens=5)
        assert answer.choices[0].message.content
        assert answer.choices[0].message.tool_calls is None
        _, _, prompt = tooled.request("POST", "/apply-template", {"messages": talk, "tools": TOOLS})
        assert "It is get_weather." in prompt["prompt"]
        assert "42" in prompt["prompt"]
        _, _, prompt = tooled.request("POST", "/apply-template", {"messages": talk, "tools": TOOLS, "tool_choice": "none"})
        assert "It is get_weather." not in prompt["prompt"]


def test_a_call_that_max_tokens_cuts_is_not_shown_as_one(tooled: Daemon, client: OpenAI) -> None:
    load(tooled, "hermes")
    params: Any = {"model": "hermes", "messages": ASK, "tools": TOOLS, "tool_choice": "required", "temperature": 0}
    whole = client.chat.completions.create(**params, max_tokens=25)
    assert whole.choices[0].finish_reason == "length"
    assert whole.choices[0].message.tool_calls is None
    assert (whole.choices[0].message.content or "").startswith('<tool_call>\n{"name": "')
    chunks = list(client.chat.completions.create(**params, max_tokens=60, stream=True))
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] in ("length", "tool_calls")


def test_words_that_are_no_call_stay_words(tooled: Daemon, client: OpenAI) -> None:
    load(tooled, "hermes")
    params: Any = {"model": "hermes", "messages": ASK, "tools": TOOLS, "temperature": 0, "max_tokens": 10}
    whole = client.chat.completions.create(**params)
    assert whole.choices[0].message.content
    assert whole.choices[0].message.tool_calls is None
    text = "".join(chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**params, stream=True))
    assert text == whole.choices[0].message.content


def test_what_cannot_be_is_refused_by_name(tooled: Daemon, client: OpenAI) -> None:
    load(tooled, "hermes")
    dated: Any = {"type": "function", "function": {"name": "at", "parameters": {"properties": {"t": {"pattern": "^a"}}}}}
    with pytest.raises(openai.BadRequestError, match="/properties/t/pattern") as refused:
        client.chat.completions.create(model="hermes", messages=ASK, tools=[dated], tool_choice="required")
    assert refused.value.param == "tools[0].function.parameters"
    for model_id, said in (("plain", "does not show tools"), ("named", r"llama\.cpp's built-in list")):
        load(tooled, model_id)
        for choice in ("auto", "required"):
            with pytest.raises(openai.BadRequestError, match=said) as refused:
                client.chat.completions.create(model=model_id, messages=ASK, tools=TOOLS, tool_choice=choice)
            assert refused.value.param == "tools"
        answer = client.chat.completions.create(model=model_id, messages=ASK, tools=TOOLS, tool_choice="none", max_tokens=5)
        assert answer.choices[0].message.content
