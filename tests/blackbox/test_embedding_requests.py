"""Embeddings from outside: a real daemon, a decoder and an encoder, raw JSON and the official client."""

from __future__ import annotations

import base64
import http.client
import json
import math
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openai
import pytest
from openai import OpenAI

from tests import tiny_bert
from tests.daemon import MODELS, Daemon, demo_config

TEXTS = ["One day", "Ella was a clever pig.", "It was a rainy evening, and she went to the market."]
ENTRIES = """
  - {id: vectors, path: %(stories)s, n_ctx: 2048, pooling: mean, n_ubatch: 128}
  - {id: per-token, path: %(stories)s, n_ctx: 1024, embeddings: on}
  - {id: bert, path: %(bert)s}
  - {id: no-encoder, path: %(bert)s, embeddings: off}
"""


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tiny_bert.TinyBert:
    return tiny_bert.make(tmp_path_factory.mktemp("bert") / "bert.gguf")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, bert: tiny_bert.TinyBert) -> Iterator[Daemon]:
    entries = ENTRIES % {"stories": MODELS / "demo-stories.gguf", "bert": bert.path}
    with Daemon(demo_config(tmp_path_factory.mktemp("daemon"), entries)) as daemon:
        yield daemon


def load(daemon: Daemon, model_id: str) -> None:
    if daemon.get("/status")["current_model"] != model_id:
        op = daemon.switch_and_wait(model_id)
        assert op["state"] == "succeeded", op


def embed(daemon: Daemon, **members: Any) -> list[list[float]]:
    status, fields, body = daemon.request("POST", "/v1/embeddings", members)
    assert status == 200, body
    assert fields["x-model-id"] == body["model"]
    assert [item["index"] for item in body["data"]] == list(range(len(body["data"])))
    return [item["embedding"] for item in body["data"]]


def refused(daemon: Daemon, path: str, body: object) -> tuple[int, str, str, str | None]:
    status, _, answer = daemon.request("POST", path, body)
    error = answer["error"]
    return status, error["code"], error["message"], error["param"]


def test_vectors_are_unit_and_the_same_alone_and_together(shared: Daemon) -> None:
    load(shared, "vectors")
    together = embed(shared, input=TEXTS * 20)
    for i, vector in enumerate(together):
        assert math.hypot(*vector) == pytest.approx(1, abs=1e-6)
        assert vector == pytest.approx(together[i % 3], abs=1e-4)
    for text, vector in zip(TEXTS, together, strict=False):
        assert embed(shared, input=text)[0] == pytest.approx(vector, abs=1e-4)


def test_text_and_its_tokens_are_the_same_input(shared: Daemon) -> None:
    load(shared, "vectors")
    _, _, body = shared.request("POST", "/tokenize", {"content": TEXTS[1], "add_special": True})
    tokens = body["tokens"]
    by_text, by_tokens, in_array = (embed(shared, input=value)[0] for value in (TEXTS[1], tokens, [tokens]))
    assert by_text == by_tokens == in_array
    _, _, answer = shared.request("POST", "/v1/embeddings", {"input": [tokens, tokens]})
    assert answer["usage"] == {"prompt_tokens": 2 * len(tokens), "total_tokens": 2 * len(tokens)}


def test_an_encoders_vectors_are_those_of_its_weights(shared: Daemon, bert: tiny_bert.TinyBert) -> None:
    load(shared, "bert")
    for text in ("hello world", "a", "zz top"):
        expected = bert.embed(tiny_bert.words(text), "mean")
        (vector,) = embed(shared, input=text)
        assert vector == pytest.approx(expected / np.linalg.norm(expected), abs=2e-3)
        (raw,) = embed(shared, input=text, embd_normalize=-1)
        assert raw == pytest.approx(expected, abs=5e-3)


def test_the_official_client_embeds(shared: Daemon) -> None:
    load(shared, "bert")
    with OpenAI(base_url=f"{shared.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        packed = client.embeddings.create(model="bert", input=["hello", "world"])
        plain = client.embeddings.create(model="bert", input=["hello", "world"], encoding_format="float")
        short = client.embeddings.create(model="bert", input="hello", dimensions=8)
        with pytest.raises(openai.BadRequestError) as too_many:
            client.embeddings.create(model="bert", input="hello", dimensions=33)
        with pytest.raises(openai.BadRequestError) as too_long:
            client.embeddings.create(model="bert", input=["hello", "a " * 60])
        with pytest.raises(openai.BadRequestError) as generating:
            client.completions.create(model="bert", prompt="hello")
        model = client.models.retrieve("bert")
    for a, b in zip(packed.data, plain.data, strict=True):
        assert a.embedding == pytest.approx(b.embedding, rel=1e-6)
    assert packed.usage.prompt_tokens == 14
    beginning = plain.data[0].embedding[:8]
    assert short.data[0].embedding == pytest.approx([x / math.hypot(*beginning) for x in beginning], abs=1e-6)
    assert too_many.value.param == "dimensions"
    assert (too_long.value.code, too_long.value.param) == ("context_length_exceeded", "input")
    assert "input[1] has 62 tokens" in str(too_long.value)
    assert "48" in str(too_long.value)
    assert generating.value.param == "model"
    assert model.model_dump()["meta"]["n_embd"] == tiny_bert.N_EMBD


def test_base64_is_little_endian_float32(shared: Daemon) -> None:
    load(shared, "bert")
    (numbers,) = embed(shared, input="hello", encoding_format="float")
    (packed,) = embed(shared, input="hello", encoding_format="base64")
    assert numbers == pytest.approx(struct.unpack(f"<{tiny_bert.N_EMBD}f", base64.b64decode(str(packed))), rel=1e-7)


def test_many_inputs_of_many_clients_come_each_to_its_own(shared: Daemon) -> None:
    load(shared, "bert")
    words = [letter * n for letter in "abcdefgh" for n in range(1, 9)]
    alone = {word: embed(shared, input=word)[0] for word in words}

    def client(i: int) -> None:
        mine = [words[(i * 11 + k * 7) % len(words)] for k in range(1 + i * 23 % 200)]
        for word, vector in zip(mine, embed(shared, input=mine), strict=True):
            assert vector == pytest.approx(alone[word], abs=1e-4)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(client, range(24)))
    status = shared.get("/status")
    assert (status["slots"]["busy"], status["queue"]) == (0, 0)


def test_a_model_does_one_of_both_and_says_what_to_set(shared: Daemon) -> None:
    load(shared, "demo-stories")
    status, code, message, param = refused(shared, "/v1/embeddings", {"input": "x"})
    assert (status, code, param) == (400, "invalid_request", "model")
    assert "embeddings: on" in message
    load(shared, "vectors")
    for path, body in (
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "stream": True}),
    ):
        status, code, message, param = refused(shared, path, body)
        assert (status, code, param) == (400, "invalid_request", "model")
        assert "embeddings: off" in message
    load(shared, "per-token")
    status, code, message, param = refused(shared, "/v1/embeddings", {"input": "x"})
    assert (status, code, param) == (400, "invalid_request", "model")
    assert "pooling: mean" in message


def test_an_encoder_that_shall_generate_is_told_in_the_op(shared: Daemon) -> None:
    op = shared.switch_and_wait("no-encoder")
    assert op["state"] == "failed"
    assert "is an encoder" in op["error"]["message"]
    load(shared, "bert")


def test_the_other_errors_are_those_of_generation(shared: Daemon) -> None:
    load(shared, "bert")
    assert refused(shared, "/v1/embeddings", {"input": "x", "model": "nope"})[:2] == (404, "model_not_found")
    assert refused(shared, "/v1/embeddings", {"input": "x", "model": "vectors"})[:2] == (409, "model_not_loaded")
    assert refused(shared, "/v1/embeddings", {"input": [[1, 10_000]]})[:2] == (400, "invalid_request")
    assert refused(shared, "/v1/embeddings", {"input": [1, "x"]})[:2] == (400, "invalid_request")
    status, fields, _ = shared.request("GET", "/v1/embeddings")
    assert (status, fields["allow"]) == (405, "OPTIONS, POST")


def started(daemon: Daemon, body: object) -> http.client.HTTPConnection:
    """A request whose inputs are being computed."""
    connection = http.client.HTTPConnection(daemon.host, daemon.port, timeout=60)
    connection.request("POST", "/v1/embeddings", json.dumps(body), {"Content-Type": "application/json"})
    while daemon.get("/status")["slots"]["busy"] == 0:
        pass
    return connection


def test_a_switch_ends_what_runs_with_its_reason(shared: Daemon) -> None:
    load(shared, "vectors")
    long = [[5] * 128] * 1500
    connection = started(shared, {"input": long})
    op_id = shared.switch("bert")
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    assert (response.status, answer["error"]["code"]) == (503, "model_switched")
    assert shared.wait_op(op_id)["state"] == "succeeded"


def test_a_client_that_leaves_frees_the_model_for_others(shared: Daemon) -> None:
    load(shared, "vectors")
    started(shared, {"input": [[5] * 128] * 1500}).close()
    embed(shared, input="next")
    while (status := shared.get("/status"))["queue"] or status["slots"]["busy"]:
        pass  # the engine drops what its client left; test timeouts bound this


def test_2048_inputs_in_one_request(shared: Daemon) -> None:
    load(shared, "bert")
    vectors = embed(shared, input=["abc"] * 2048)
    assert len(vectors) == 2048
    assert vectors[0] == pytest.approx(vectors[-1], abs=1e-4)
    assert refused(shared, "/v1/embeddings", {"input": ["a"] * 2049})[:2] == (400, "invalid_request")
