"""Grammars and schemas through the real daemon: with the official client, and with what would end the process."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
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


def test_a_grammar_of_the_client_is_followed_on_both_routes(client: OpenAI):
    grammar = {"grammar": 'root ::= ("yes" | "no") ", " [a-z]{3,8} "!"'}
    whole = re.compile(r"(yes|no), [a-z]{3,8}!")
    for seed in range(4):
        completion = client.completions.create(
            model="demo-stories", prompt="One day", seed=seed, temperature=1, max_tokens=60, extra_body=grammar
        )
        assert whole.fullmatch(completion.choices[0].text)
        assert completion.choices[0].finish_reason == "stop"
        stream = client.chat.completions.create(
            model="demo-stories", messages=ASK, seed=seed, temperature=1, max_tokens=60, stream=True, extra_body=grammar
        )
        assert whole.fullmatch("".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices))


@pytest.mark.parametrize(
    ("body", "param", "why"),
    [
        ({"grammar": "root ::= ["}, "grammar", "line 1, column 10"),
        ({"grammar": 'root ::= root "a"'}, "grammar", "begin with itself"),
        ({"grammar": "root ::= " + "(" * 20_000}, "grammar", "nest deeper"),
        ({"grammar": "root ::= " + "[a]|" * 20_000}, "grammar", "at most 65536"),
        ({"grammar": "root ::= <[3]>"}, "grammar", "not supported"),
        ({"grammar": "root ::= (" + '"x"? ' * 10 + "){600}"}, "grammar", "more than 4000 ways at once"),
        ({"grammar": "root ::= [a]", "json_schema": {}}, "json_schema", "contradict"),
        ({"grammar": "root ::= [a]", "response_format": {"type": "json_object"}}, "response_format", "contradict"),
        ({"grammar": ["root"]}, "grammar", "a string"),
    ],
)
def test_a_grammar_that_cannot_be_used_is_named(client: OpenAI, body: Any, param: str, why: str):
    with pytest.raises(openai.BadRequestError, match=why) as refused:
        client.completions.create(model="demo-stories", prompt="x", extra_body=body)
    assert refused.value.param == param


# Each doubles its readings with every character, or has very many of them; libllama would not come back from a token of them.
HOSTILE = [
    'root ::= a\na ::= "x" a "y" | "x" a "z" | [a-z ] a | [a-z ] a "q" | "x"',
    "root ::= a*\na ::= b b b\nb ::= [a-z ]* [a-z ]*",
    "root ::= (((([a-z ]*)*)*)*)*",
    "root ::= " + "(" * 99 + "[a-z ]*" + ")*" * 99,
    'root ::= ("a"? [a-z ]?){1900}',
    "root ::= c{1900}\nc ::= [" + "".join(chr(code) for code in range(0x3000, 0xA000, 3)) + "a-z ]",
]


def test_hostile_grammars_end_while_another_stream_goes_on(daemon: Daemon, client: OpenAI):
    def ask(grammar: str) -> str:
        try:
            done = client.completions.create(
                model="demo-stories", prompt="One day", seed=1, temperature=1, max_tokens=100, extra_body={"grammar": grammar}
            )
        except openai.BadRequestError as error:
            return "error" if "the grammar" in error.message else error.message
        return str(done.choices[0].finish_reason)

    with ThreadPoolExecutor(len(HOSTILE)) as pool:
        answers = [pool.submit(ask, grammar) for grammar in HOSTILE]
        stream = client.completions.create(
            model="demo-stories", prompt="Once", seed=1, max_tokens=200, stream=True, extra_body={"ignore_eos": True}
        )
        assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"
        assert {answer.result(timeout=60) for answer in answers} <= {"stop", "length", "error"}
    assert daemon.get("/status")["state"] == "ready"


def test_a_grammar_with_too_many_readings_ends_its_stream_with_an_error(daemon: Daemon, client: OpenAI):
    grammar = 'root ::= "N" ' + "(" + '"o"? ' * 10 + "){600}"
    request: Any = {"model": "demo-stories", "prompt": "One day", "temperature": 0, "extra_body": {"grammar": grammar}}
    with pytest.raises(openai.BadRequestError, match="more than 4000 ways at once") as refused:
        client.completions.create(**request)
    assert refused.value.param == "grammar"
    assert daemon.get("/status")["state"] == "ready"
    after = client.completions.create(model="demo-stories", prompt="One day", extra_body={"grammar": 'root ::= "no"'})
    assert after.choices[0].text == "no"


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
    schema: dict[str, object] = {"type": "object", "properties": {"when": {"type": "string", "format": "email"}}}
    with pytest.raises(openai.BadRequestError, match="/properties/when/format") as refused:
        client.chat.completions.create(
            model="demo-stories",
            messages=ASK,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        )
    assert refused.value.param == "response_format.json_schema.schema"
