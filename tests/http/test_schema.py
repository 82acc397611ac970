"""What the parameters of a request mean, and which are refused by name. Pure."""

from __future__ import annotations

import json
import math

import pytest

from modeld.errors import (
    ContextLengthExceeded,
    InsufficientMemory,
    InvalidRequest,
    MethodNotAllowed,
    ModelCooldown,
    ModelLoading,
    ModelNotLoaded,
    ModelQuarantined,
    ModelSwitched,
    NoModel,
    QueueFull,
    SwitchRejected,
    UnsupportedMediaType,
)
from modeld.httpapi import schema
from modeld.httpapi.parameters import CompletionRequest, parse_chat, parse_completion
from modeld.policy import Strategy
from modeld.types import ChatMessage, OpError, OpReason, OpState, Phase, SamplingParams, Step, SwitchOp

USER = {"role": "user", "content": "hi"}


def completion(**params: object) -> CompletionRequest:
    return parse_completion(json.dumps({"prompt": "x", **params}).encode(), "r")


def chat(**params: object) -> CompletionRequest:
    return parse_chat(json.dumps({"messages": [USER], **params}).encode(), "r")


def test_defaults_are_llama_servers():
    for asked in (completion(), chat()):
        assert asked.generate.sampling == SamplingParams()
        assert (asked.generate.max_tokens, asked.generate.stop, asked.generate.model_id) == (None, (), None)
        assert (asked.stream, asked.include_usage) == (False, False)


def test_null_means_absent():
    names = "max_tokens temperature top_p n stop seed logprobs logit_bias stream stream_options model tools response_format user"
    assert completion(**dict.fromkeys(names.split())) == completion()


def test_parameters_reach_the_request():
    asked = completion(
        model="m",
        max_tokens=5,
        temperature=0,
        top_k=-1,
        top_p=1,
        min_p=0.5,
        typical_p=0.9,
        repeat_penalty=1.1,
        repeat_last_n=-1,
        presence_penalty=-2,
        frequency_penalty=2.0,
        logit_bias={"7": -100, "8": 1.5},
        seed=42,
        stop=["a", "b"],
        stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False},
        ignore_eos=True,
        cache_prompt=False,
        unheard_of={"x": 1},
    )
    assert asked.generate.sampling == SamplingParams(
        temperature=0.0,
        top_k=-1,
        top_p=1.0,
        min_p=0.5,
        typical_p=0.9,
        repeat_penalty=1.1,
        repeat_last_n=-1,
        presence_penalty=-2.0,
        frequency_penalty=2.0,
        logit_bias=((7, -100.0), (8, 1.5)),
        seed=42,
        ignore_eos=True,
    )
    assert (asked.generate.model_id, asked.generate.max_tokens, asked.generate.stop) == ("m", 5, ("a", "b"))
    assert (asked.stream, asked.include_usage) == (True, True)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", ("",)),
        ("a", ("a",)),
        (["a"], ("a",)),
        ([1, 2], ((1, 2),)),
        ([[1, 2]], ((1, 2),)),
        ([0], ((0,),)),
        (["a", "b"], ("a", "b")),
        ([[1], [2, 3]], ((1,), (2, 3))),
        (["a", [1]], ("a", (1,))),
    ],
)
def test_prompts(prompt, expected):
    assert completion(prompt=prompt, n=3).generate.prompts == expected
    assert completion(prompt=prompt, n=3).generate.n_choices == 3 * len(expected)


@pytest.mark.parametrize(
    "prompt", [None, 1, {}, [], [[]], ["a", []], [[1], [2.5]], [1, "a"], [1.5], [-1], [True], [2**31], ["a"] * 129]
)
def test_prompts_that_are_refused(prompt):
    with pytest.raises(InvalidRequest) as caught:
        completion(prompt=prompt)
    assert caught.value.param == "prompt"


def test_messages_become_role_and_text():
    messages = [
        {"role": "developer", "content": "d"},
        {"role": "system", "content": ""},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "tool_calls": None, "refusal": None},
    ]
    assert chat(messages=messages).generate.prompts[0] == (
        ChatMessage("system", "d"),
        ChatMessage("system", ""),
        ChatMessage("user", "a\nb"),
        ChatMessage("assistant", "c"),
    )


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ("hi", "messages"),
        (["hi"], "messages[0]"),
        ([USER, {"content": "x"}], "messages[1].role"),
        ([{"role": "function", "content": "x"}], "messages[0].role"),
        ([{"role": 1, "content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": 1}], "messages[0].content"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
    ],
)
def test_messages_that_are_refused(messages, param):
    with pytest.raises(InvalidRequest) as caught:
        chat(messages=messages)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("model", 1),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", "5"),
        ("max_tokens", 5.0),
        ("max_tokens", True),
        ("max_tokens", 2**31),
        ("max_completion_tokens", 0),
        ("n_predict", 0),
        ("n_predict", -2),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "1"),
        ("temperature", False),
        ("top_p", 1.1),
        ("top_k", 1.5),
        ("top_k", -2),
        ("min_p", -1),
        ("typical_p", 2),
        ("repeat_penalty", 0),
        ("repeat_last_n", -2),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("n", 0),
        ("n", 129),
        ("n", "1"),
        ("n", True),
        ("logprobs", 1.5),
        ("seed", "x"),
        ("seed", 2**64),
        ("stop", 1),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", ["a"] * 17),
        ("stop", ["a" * 1001]),
        ("stop", [1]),
        ("logit_bias", 1),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"1": "x"}),
        ("logit_bias", [[1]]),
        ("stream", 1),
        ("stream", "true"),
        ("stream_options", True),
        ("stream_options.include_usage", {"include_usage": 1}),
        ("ignore_eos", 1),
        ("cache_prompt", "no"),
    ],
)
def test_wrong_types_and_ranges_name_their_parameter(param, value):
    for parse in (completion, chat):
        with pytest.raises(InvalidRequest) as caught:
            parse(**{param.split(".")[0]: value})
        assert caught.value.param == param
        assert param in caught.value.message


@pytest.mark.parametrize(
    ("param", "refused", "passes"),
    [
        ("mirostat", [1], [0]),
        ("xtc_probability", [0.5], [0.0]),
    ],
)
def test_what_is_known_but_not_served_is_refused_where_it_asks_for_something(param, refused, passes):
    for parse in (completion, chat):
        for value in refused:
            with pytest.raises(InvalidRequest) as caught:
                parse(**{param: value})
            assert caught.value.param == param
        for value in passes:
            assert parse(**{param: value}) == parse()


@pytest.mark.parametrize(
    ("parse", "param", "refused", "passes"),
    [
        (completion, "best_of", 2, 1),
        (completion, "suffix", "x", ""),
        (chat, "functions", [{}], []),
        (chat, "echo", True, False),
        (chat, "best_of", 2, 1),
        (chat, "suffix", "x", ""),
        (completion, "tools", [{}], []),
        (completion, "tool_choice", "required", "auto"),
        (completion, "top_logprobs", 1, 0),
        (chat, "function_call", "auto", "none"),
        (chat, "audio", {}, None),
        (chat, "modalities", ["text", "audio"], ["text"]),
    ],
)
def test_what_one_route_knows_but_does_not_serve(parse, param, refused, passes):
    with pytest.raises(InvalidRequest) as caught:
        parse(**{param: refused})
    assert caught.value.param == param
    assert parse(**{param: passes}) == parse()


@pytest.mark.parametrize(
    ("parse", "given", "n_top"),
    [
        (completion, {}, None),
        (completion, {"logprobs": False}, None),
        (completion, {"logprobs": 0}, 0),
        (completion, {"logprobs": 20}, 20),
        (chat, {}, None),
        (chat, {"logprobs": False, "top_logprobs": 0}, None),
        (chat, {"logprobs": True}, 0),
        (chat, {"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
def test_logprobs_are_asked_for_in_two_ways(parse, given, n_top):
    assert parse(**given).generate.n_top_logprobs == n_top


@pytest.mark.parametrize(
    ("parse", "given", "param"),
    [
        (completion, {"logprobs": 21}, "logprobs"),
        (completion, {"logprobs": True}, "logprobs"),
        (completion, {"echo": 1}, "echo"),
        (chat, {"logprobs": 5}, "logprobs"),
        (chat, {"top_logprobs": 5}, "top_logprobs"),
        (chat, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (chat, {"max_tokens": 0}, "max_tokens"),
    ],
)
def test_logprobs_and_echo_that_are_refused(parse, given, param):
    with pytest.raises(InvalidRequest) as caught:
        parse(**given)
    assert caught.value.param == param


def test_no_token_at_all_may_be_asked_for_with_echo():
    assert completion(prompt="x", echo=True, max_tokens=0).generate.max_tokens == 0
    assert completion(prompt="x", echo=True, n_predict=0).generate.max_tokens == 0


def test_the_names_of_max_tokens_must_agree():
    assert completion(max_tokens=4, n_predict=4).generate.max_tokens == 4
    assert completion(max_completion_tokens=4, n_predict=-1).generate.max_tokens == 4
    with pytest.raises(InvalidRequest):
        completion(max_tokens=4, max_completion_tokens=5)


@pytest.mark.parametrize(("seed", "expected"), [(0, 0), (2**32, 0), (-5, 2**32 - 5), (2**63, 0)])
def test_seeds_of_64_bits_are_folded(seed, expected):
    assert completion(seed=seed).generate.sampling.seed == expected


def test_minus_one_asks_for_a_fresh_seed_whatever_the_models_entry_says():
    seeds = {completion(seed=-1).generate.sampling.seed for _ in range(5)}
    assert None not in seeds
    assert len(seeds) > 1


def test_llama_servers_list_of_biases():
    added_up = completion(logit_bias=[[5, 1.5], [6, False], [6, 2], *[[5, 1]] * 1000]).generate.sampling.logit_bias
    assert added_up == ((5, 1001.5), (6, -math.inf)), "one for each token, however many were given"
    assert completion(logit_bias=[[5, 1], [6, False]]).generate.sampling.logit_bias == ((5, 1.0), (6, -math.inf))


def test_a_single_stop_string():
    assert completion(stop="END").generate.stop == ("END",)


def test_bodies_of_the_small_requests():
    assert schema.parse_tokenize(b'{"content": ""}') == schema.TokenizeRequest("", False, True, False)
    assert schema.parse_detokenize(b'{"tokens": []}') == ()
    for body in (b"{}", b'{"tokens": "x"}', b'{"tokens": [1.0]}', b'{"tokens": [-1]}'):
        with pytest.raises(InvalidRequest) as caught:
            schema.parse_detokenize(body)
        assert caught.value.param == "tokens"


def test_an_op_in_json():
    op = SwitchOp(
        "o", "m", OpState.FAILED, 1.5, reason=OpReason.AUTO, strategy=Strategy.REPLACE, phase=Phase.ROLLBACK, step=Step.UNLOAD,
        pct=7, error=OpError("c", "msg", "m", "o"), rolled_back_to="n", started_at=2.5, ended_at=3.5,
        steps_ms={"unload": 1.23456},
    )  # fmt: skip
    assert schema.op_json(op) == {
        "op_id": "o",
        "kind": "switch",
        "reason": "auto",
        "target_model_id": "m",
        "state": "failed",
        "cancelling": False,
        "strategy": "replace",
        "phase": "rollback",
        "step": "unload",
        "pct": 7,
        "queued_at": 1.5,
        "started_at": 2.5,
        "ended_at": 3.5,
        "error": {"code": "c", "message": "msg", "model_id": "m", "op_id": "o"},
        "rolled_back_to": "n",
        "steps_ms": {"unload": 1.235},
    }


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (InvalidRequest("x"), {}),
        (ContextLengthExceeded("x"), {}),
        (MethodNotAllowed("x", allow=("GET", "HEAD")), {"Allow": "GET, HEAD"}),
        (ModelLoading("x"), {"Retry-After": "1"}),
        (ModelLoading("x", retry_after_s=7), {"Retry-After": "7"}),
        (ModelSwitched("x"), {"Retry-After": "1"}),
        (QueueFull("x", retry_after_s=3), {"Retry-After": "3"}),
        (ModelNotLoaded("x"), {"x-should-retry": "false"}),
        (NoModel("x", retry_after_s=3), {"x-should-retry": "false"}),
        (SwitchRejected("x"), {"x-should-retry": "false"}),
        (InsufficientMemory("x"), {"x-should-retry": "false"}),
        (ModelQuarantined("x"), {"x-should-retry": "false"}),
        (ModelCooldown("x", retry_after_s=60), {"Retry-After": "60"}),
    ],
)
def test_the_fields_that_an_error_brings(error, fields):
    assert schema.error_fields(error) == fields


@pytest.mark.parametrize("value", [None, "", "text/plain", "application/jsonx", "text/plain; application/json", "é"])
def test_content_types_that_are_refused(value):
    with pytest.raises(UnsupportedMediaType) as caught:
        schema.check_content_type(value)
    assert caught.value.message.isascii()
