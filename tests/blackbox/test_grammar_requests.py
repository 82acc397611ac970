"""Grammars and schemas through the real daemon: with the official client, and with what would end the process."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.daemon import Daemon
from tests.json_schema import follows

SCHEMA = {
    "$defs": {"word": {"type": "string", "minLength": 1, "maxLength": 12}},
    "type": "object",
    "properties": {
        "hero": {"$ref": "#/$defs/word"},
        "age": {"type": "integer"},
        "friends": {"type": "array", "items": {"$ref": "#/$defs/word"}, "maxItems": 3},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["hero", "age", "friends", "kind"],
    "additionalProperties": False,
}
ASK: Any = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture
def client(daemon: Daemon):
    with OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_a_chat_follows_its_schema_whole_and_streamed(client: OpenAI):
    response_format: Any = {"type": "json_schema", "json_schema": {"name": "story", "schema": SCHEMA, "strict": True}}
    for seed in range(5):
        whole = client.chat.completions.create(
            model="demo-stories", messages=ASK, response_format=response_format, seed=seed, temperature=1, max_tokens=300
        )
        assert whole.choices[0].finish_reason == "stop"
        text = whole.choices[0].message.content
        assert text is not None
        assert follows(json.loads(text), SCHEMA) is None
        stream = client.chat.completions.create(
            model="demo-stories",
            messages=ASK,
            response_format=response_format,
            seed=seed,
            temperature=1,
            max_tokens=300,
            stream=True,
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == text


def test_json_objects(client: OpenAI):
    free = client.chat.completions.create(
        model="demo-stories", messages=ASK, response_format={"type": "json_object"}, seed=1, max_tokens=200
    )
    text = free.choices[0].message.content
    assert text is not None
    assert text.startswith("{")
    if free.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_a_grammar_of_the_client_is_refused_for_now(client: OpenAI):
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="demo-stories", prompt="x", extra_body={"grammar": 'root ::= "yes" | "no"'})
    assert refused.value.param == "grammar"


def test_alternatives_that_begin_alike_may_lead_back_to_themselves(daemon: Daemon, client: OpenAI):
    node: dict[str, object] = {
        "anyOf": [
            {"properties": {"a": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}, key: {"const": 1}}, "required": ["a", key]}
            for key in "bc"
        ]
    }
    schema = {"$defs": {"n": node}, "$ref": "#/$defs/n"}
    for seed in range(3):
        done = client.completions.create(
            model="demo-stories", prompt="x", seed=seed, temperature=1, max_tokens=200, extra_body={"json_schema": schema}
        )
        if done.choices[0].finish_reason == "stop":
            assert follows(json.loads(done.choices[0].text), schema) is None
    assert daemon.get("/status")["state"] == "ready"


def test_an_unsupported_keyword_is_named(client: OpenAI):
    schema: dict[str, object] = {"type": "object", "properties": {"when": {"type": "string", "format": "date"}}}
    with pytest.raises(openai.BadRequestError, match="/properties/when/format") as refused:
        client.chat.completions.create(
            model="demo-stories",
            messages=ASK,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        )
    assert refused.value.param == "response_format.json_schema.schema"
