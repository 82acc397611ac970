"""/v1/embeddings: what is understood, what is refused, how vectors look, on the wire and to the official client."""

from __future__ import annotations

import base64
import json
import math
import struct
from array import array
from typing import Any

import pytest
from fake_service import LOADED, FakeService
from openai import OpenAI
from raw_client import RawClient

from modeld.errors import EngineFailed, InvalidRequest, ModelSwitched, QueueFull
from modeld.httpapi.embeddings import MAX_INPUTS, EmbeddingsRequest, normalized, parse_embeddings
from modeld.httpapi.limits import Limits
from modeld.httpapi.server import HttpServer


def parse(**members: object) -> EmbeddingsRequest:
    return parse_embeddings(json.dumps(members).encode(), "r")


# -- requests


@pytest.mark.parametrize(
    ("value", "inputs"),
    [
        ("hello", ("hello",)),
        ("", ("",)),
        (["hello"], ("hello",)),
        (["a", "b"], ("a", "b")),
        ([1, 2, 3], ((1, 2, 3),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
        (["a", [1, 2]], ("a", (1, 2))),
        (["x"] * MAX_INPUTS, ("x",) * MAX_INPUTS),
    ],
)
def test_the_shapes_of_input(value: object, inputs: tuple[object, ...]) -> None:
    assert parse(input=value).embed.inputs == inputs


def test_the_defaults() -> None:
    asked = parse(input="a", user="u", encoding_format=None, dimensions=None, input_type="query")
    assert (asked.as_base64, asked.normalize) == (False, 2)
    assert (asked.embed.model_id, asked.embed.dimensions, asked.embed.request_id) == (None, None, "r")
    asked = parse(input="a", model="m", encoding_format="base64", dimensions=7, embd_normalize=-1)
    assert (asked.as_base64, asked.normalize, asked.embed.model_id, asked.embed.dimensions) == (True, -1, "m", 7)


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({}, "input"),
        ({"input": None}, "input"),
        ({"input": 7}, "input"),
        ({"input": True}, "input"),
        ({"input": {"content": "x"}}, "input"),
        ({"input": []}, "input"),
        ({"input": ["x"] * (MAX_INPUTS + 1)}, "input"),
        ({"input": [None]}, "input"),
        ({"input": [1.5]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": [1, "a"]}, "input"),
        ({"input": [2**31]}, "input"),
        ({"input": ["a", 1]}, "input[1]"),
        ({"input": ["a", None]}, "input[1]"),
        ({"input": ["a", {"text": "b"}]}, "input[1]"),
        ({"input": [[1], [True]]}, "input[1]"),
        ({"input": [[[1]]]}, "input[0]"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "encoding_format": 1}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": 1.0}, "dimensions"),
        ({"input": "a", "dimensions": "3"}, "dimensions"),
        ({"input": "a", "dimensions": 2**31}, "dimensions"),
        ({"input": "a", "embd_normalize": -2}, "embd_normalize"),
        ({"input": "a", "embd_normalize": 101}, "embd_normalize"),
        ({"input": "a", "embd_normalize": True}, "embd_normalize"),
        ({"input": "a", "model": 1}, "model"),
    ],
)
def test_what_is_wrong_is_named(members: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(**members)
    assert caught.value.param == param
    assert len(caught.value.message) < 300


# -- vectors


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (-1, [3, -4, 0]),
        (0, [24570, -32760, 0]),
        (1, [3 / 7, -4 / 7, 0]),
        (2, [0.6, -0.8, 0]),
        (3, [3 / 91 ** (1 / 3), -4 / 91 ** (1 / 3), 0]),
    ],
)
def test_vectors_are_normalized_as_llama_server_does(p: int, expected: list[float]) -> None:
    assert list(normalized(array("f", (3, -4, 0)), p)) == pytest.approx(expected)


@pytest.mark.parametrize("p", [-1, 0, 1, 2, 3, 100])
def test_no_vector_is_too_small_or_too_large_to_be_normalized(p: int) -> None:
    assert list(normalized(array("f", (0, 0)), p)) == [0, 0]
    for size in (1e-38, 1e38):
        values = normalized(array("f", (size, -size, size / 3)), p)
        assert all(map(math.isfinite, values))
        assert values[0] > 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("p", [-1, 0, 2, 3])
def test_a_vector_that_is_none_is_an_error_and_not_bad_json(bad: float, p: int) -> None:
    with pytest.raises(EngineFailed, match="NaN"):
        normalized(array("f", (1, bad, 2)), p)


# -- on the wire


def test_an_answer_has_its_vectors_in_order(client: RawClient) -> None:
    answer = client.request("POST", "/v1/embeddings", {"input": ["a", "b", "c"]})
    assert answer.status == 200
    assert answer.fields["content-type"] == "application/json"
    assert answer.fields["cache-control"] == "no-store"
    assert answer.fields["x-model-id"] == LOADED.id
    body = answer.json
    assert (body["object"], body["model"]) == ("list", LOADED.id)
    assert body["usage"] == {"prompt_tokens": 15, "total_tokens": 15}
    assert [(item["object"], item["index"]) for item in body["data"]] == [("embedding", i) for i in range(3)]
    for i, item in enumerate(body["data"]):
        assert math.hypot(*item["embedding"]) == pytest.approx(1, abs=1e-6)
        assert item["embedding"][0] / item["embedding"][1] == pytest.approx((3 + i) / 4)
    assert client.request("GET", "/livez").status == 200  # the connection is kept


def test_numbers_and_base64_are_the_same_float32(client: RawClient) -> None:
    asked = {"input": "a", "embd_normalize": -1}
    (numbers,) = client.request("POST", "/v1/embeddings", asked).json["data"]
    (packed,) = client.request("POST", "/v1/embeddings", {**asked, "encoding_format": "base64"}).json["data"]
    exact = struct.unpack("<4f", base64.b64decode(packed["embedding"]))
    assert array("f", numbers["embedding"]) == array("f", exact) == array("f", (3, 4, 0, 0.1))


def test_dimensions_cuts_before_it_normalizes(client: RawClient) -> None:
    (item,) = client.request("POST", "/v1/embeddings", {"input": "a", "dimensions": 2}).json["data"]
    assert item["embedding"] == pytest.approx([0.6, 0.8])


def test_a_large_answer_comes_in_several_writes(client: RawClient) -> None:
    answer = client.request("POST", "/v1/embeddings", {"input": ["x"] * MAX_INPUTS})
    assert answer.chunks is not None
    assert len(answer.chunks) > 2
    assert [item["index"] for item in answer.json["data"]] == list(range(MAX_INPUTS))


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (QueueFull("full", retry_after_s=1), 429, "queue_full"),
        (InvalidRequest("it generates", param="model"), 400, "invalid_request"),
    ],
)
def test_a_refusal_has_its_status(client: RawClient, service: FakeService, error: Exception, status: int, code: str) -> None:
    service.raises = error
    answer = client.request("POST", "/v1/embeddings", {"input": "a"})
    assert (answer.status, answer.code) == (status, code)


def test_a_switch_meanwhile_has_its_status(client: RawClient, service: FakeService) -> None:
    service.embeddings_held = True
    client.post_only("POST", "/v1/embeddings", {"input": "a"})
    embedding = service.embedding()
    embedding.error = ModelSwitched("away", retry_after_s=1)
    embedding.ended.set()
    answer = client.answer()
    assert (answer.status, answer.code) == (503, "model_switched")


def test_a_vector_that_is_none_is_a_500(client: RawClient, service: FakeService) -> None:
    service.embeddings_held = True
    client.post_only("POST", "/v1/embeddings", {"input": ["a", "b"]})
    embedding = service.embedding()
    embedding.vectors[1][2] = math.nan
    embedding.ended.set()
    answer = client.answer()
    assert (answer.status, answer.code) == (500, "engine_failed")


@pytest.mark.parametrize("limits", [Limits(generation_s=0.05)])
def test_what_takes_too_long_is_cancelled(client: RawClient, service: FakeService) -> None:
    service.embeddings_held = True
    answer = client.request("POST", "/v1/embeddings", {"input": "a"})
    assert (answer.status, answer.code) == (504, "generation_timeout")
    assert service.embedding().cancelled.wait(10)


def test_a_client_that_leaves_is_told_to_the_engine(client: RawClient, service: FakeService) -> None:
    service.embeddings_held = True
    client.post_only("POST", "/v1/embeddings", {"input": "a"})
    embedding = service.embedding()
    client.close()
    assert embedding.cancelled.wait(10)


def test_the_official_client_reads_its_own_default(server: HttpServer, service: FakeService) -> None:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=10) as client:
        answer = client.embeddings.create(model=LOADED.id, input=["a", "b"])
        numbers = client.embeddings.create(model=LOADED.id, input=["a", "b"], encoding_format="float")
    assert [len(item.embedding) for item in answer.data] == [4, 4]
    for packed, plain in zip(answer.data, numbers.data, strict=True):
        assert packed.embedding == pytest.approx(plain.embedding, rel=1e-6)
    assert answer.usage.total_tokens == 10
    assert answer.object == "list"
