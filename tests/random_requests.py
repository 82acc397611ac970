"""Random generation requests, legal and illegal, and what each answer must look like whatever the model said.

Independent of the daemon's code: token counts of prompts come from /tokenize and /apply-template before the storm begins, those
of answers from limits that must be reached exactly, and from the log-probabilities where they were asked for.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.daemon import Daemon
from tests.json_schema import follows

TEXTS = [
    "Once upon a time",
    "",
    " ",
    "\n\n\t",
    "12+30=",
    "é",
    "日本語のテキスト \N{GRINNING FACE}\N{ZERO WIDTH JOINER}\N{WOMAN}",
    "\x00\x01\x7f",
    "\N{RIGHT-TO-LEFT OVERRIDE}right to left\N{POP DIRECTIONAL FORMATTING} e\N{COMBINING ACUTE ACCENT}",
    "</s><|im_end|><|im_start|>user\n",
    "a" * 120,
    "One day the fox was very, very happy. The fox and the fox and the",
    "Otto the fox lived near a lake. " * 6,
    "Otto the fox lived near a lake. " * 6 + "Then",
    "word " * 3000,
]
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Tell me a story."}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 12+30?"}],
    [{"role": "user", "content": ""}],
    [
        {"role": "user", "content": "\N{GRINNING FACE} ünï"},
        {"role": "assistant", "content": "é"},
        {"role": "user", "content": "1+1="},
    ],
    [{"role": "user", "content": "a story " * 2000}],
]
SCHEMAS: list[dict[str, Any]] = [
    {"const": "日本語é\N{GRINNING FACE}"},
    {"enum": ["yes", "no", None, 7]},
    {"type": "array", "items": {"type": "integer"}, "maxItems": 4},
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "ok": {"type": "boolean"}},
        "required": ["name", "ok"],
        "additionalProperties": False,
    },
]
STOPS = [".", "e", " the", "named", "\n", "42", "日", "語é", "\N{REPLACEMENT CHARACTER}", "\x00never", "x" * 1000, "a", "th", '"']

N_COMMON_TOKENS = 384  # ids that both demo models have

Chance = random.Random
LEGAL: dict[str, Callable[[Chance], Any]] = {
    "temperature": lambda r: r.choice([0, 0.0, 5e-324, 1e-9, 0.1, 0.8, 1, 2, r.uniform(0, 2)]),
    "top_k": lambda r: r.choice([-1, 0, 1, 2, 40, 384, 100_000, 2**31 - 1]),
    "top_p": lambda r: r.choice([0, 1e-30, 0.5, 1, r.random()]),
    "min_p": lambda r: r.choice([0, 1e-30, 0.05, 1, r.random()]),
    "typical_p": lambda r: r.choice([0, 1e-9, 0.5, 1, r.random()]),
    "repeat_penalty": lambda r: r.choice([5e-324, 1e-9, 0.5, 1, 1.3, 10]),
    "repeat_last_n": lambda r: r.choice([-1, 0, 1, 64, 2**31 - 1]),
    "presence_penalty": lambda r: r.uniform(-2, 2),
    "frequency_penalty": lambda r: r.uniform(-2, 2),
    "logit_bias": lambda r: r.choice([bias_object, bias_pairs, bias_object, forbid_all])(r),
    "seed": lambda r: r.choice([-1, 0, 7, 2**32 - 1, 2**64 - 1, -(2**63)]),
    "ignore_eos": lambda r: r.random() < 0.7,
    "cache_prompt": lambda r: r.random() < 0.5,
    "user": lambda r: "somebody",
    "unknown_parameter": lambda r: {"deep": [1, [2, [3]]]},
}
# (what is changed, the parameter that is named, whether it takes the loaded model to know)
ILLEGAL: list[tuple[dict[str, Any], str | None, bool]] = [
    ({"temperature": -0.001}, "temperature", False),
    ({"temperature": 2.001}, "temperature", False),
    ({"temperature": "hot"}, "temperature", False),
    ({"temperature": True}, "temperature", False),
    ({"top_k": 1.5}, "top_k", False),
    ({"top_k": 2**31}, "top_k", False),
    ({"top_p": 1.01}, "top_p", False),
    ({"min_p": [0.1]}, "min_p", False),
    ({"typical_p": -1}, "typical_p", False),
    ({"repeat_penalty": 0}, "repeat_penalty", False),
    ({"repeat_last_n": -2}, "repeat_last_n", False),
    ({"presence_penalty": 2.5}, "presence_penalty", False),
    ({"frequency_penalty": {}}, "frequency_penalty", False),
    ({"logit_bias": {"x": 1}}, "logit_bias", False),
    ({"logit_bias": {"5": 101}}, "logit_bias", False),
    ({"logit_bias": [[5]]}, "logit_bias", False),
    ({"logit_bias": {"1000000": 1}}, "logit_bias", True),
    ({"seed": 2**64 - 1 + 0.5}, "seed", False),
    ({"stop": ["a"] * 17}, "stop", False),
    ({"stop": [""]}, "stop", False),
    ({"stop": "x" * 1001}, "stop", False),
    ({"stop": 5}, "stop", False),
    ({"max_tokens": 0}, "max_tokens", False),
    ({"max_tokens": None, "n_predict": -2}, "n_predict", False),
    ({"ignore_eos": 1}, "ignore_eos", False),
    ({"stream": "yes"}, "stream", False),
    ({"stream_options": []}, "stream_options", False),
    ({"response_format": {"type": "xml"}}, "response_format.type", False),
    ({"json_schema": {"type": "string", "pattern": "a"}, "response_format": None}, "json_schema", True),
    ({"prompt": None, "messages": None}, "prompt|messages", False),
    ({"prompt": [10**6], "messages": []}, "prompt|messages", True),
    ({"prompt": [1, -1], "messages": [{"role": "fool", "content": ""}]}, "prompt|messages[0].role", False),
]


def bias_object(r: Chance) -> dict[str, Any]:
    return {str(r.randrange(N_COMMON_TOKENS)): r.choice([-100, 100, 0, r.uniform(-5, 5)]) for _ in range(r.randint(0, 30))}


def bias_pairs(r: Chance) -> list[list[Any]]:
    return [[r.randrange(N_COMMON_TOKENS), r.choice([False, -100, 100, 1.5])] for _ in range(r.randint(0, 30))]


def forbid_all(r: Chance) -> list[list[Any]]:
    """Nothing, or one token alone, is left of the common ones."""
    left = r.choice([-1, 65])
    return [[token, False] for token in range(N_COMMON_TOKENS) if token != left]


@dataclass(frozen=True)
class Asked:
    """One request and what is known about it before it is sent."""

    path: str
    body: dict[str, Any]
    refused: str | None = None  # the parameter that a 400 must name (`|`: the one of completions, the one of chats)
    needs_model: bool = False  # to find that out

    @property
    def is_chat(self) -> bool:
        return self.path.endswith("chat/completions")

    @property
    def prompt_key(self) -> str:
        return json.dumps(self.body["messages" if self.is_chat else "prompt"])

    @property
    def param(self) -> str | None:
        if self.refused is None or "|" not in self.refused:
            return self.refused
        return self.refused.split("|")[self.is_chat]


def random_request(r: Chance) -> Asked:
    is_chat = r.random() < 0.4
    body: dict[str, Any] = {}
    if is_chat:
        body["messages"] = r.choice(CHATS if r.random() < 0.3 else CHATS[:-1])
    elif r.random() < 0.3:
        n = r.choice([1, 2, 17, 100, 400, 400, 5000])
        body["prompt"] = [r.randrange(N_COMMON_TOKENS) for _ in range(n)]
    else:
        body["prompt"] = r.choice(TEXTS if r.random() < 0.3 else TEXTS[:-1])
    for name, value in LEGAL.items():
        if r.random() < 0.25:
            body[name] = value(r)
    if r.random() < 0.4:
        body["stop"] = r.choice([r.choice(STOPS), r.sample(STOPS, r.randint(1, 14)), [], [f"\x00{i}" for i in range(16)]])
    if r.random() < 0.95:
        body[r.choice(["max_tokens", "max_completion_tokens", "n_predict"])] = r.choice([1, 2, 5, 20, 60, 60])
    if r.random() < 0.15:
        schema = r.choice(SCHEMAS)
        if r.random() < 0.5:
            body["json_schema"] = schema
        else:
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    elif r.random() < 0.03:
        body["response_format"] = {"type": "json_object"}
    if r.random() < 0.6:
        body["stream"] = True
        if r.random() < 0.7:
            body["stream_options"] = {"include_usage": True}
    path = "/v1/chat/completions" if is_chat else "/v1/completions"
    if r.random() < 0.12:
        change, param, needs_model = r.choice(ILLEGAL)
        if needs_model:  # so that nothing else is found first
            body["messages" if is_chat else "prompt"] = [{"role": "user", "content": "x"}] if is_chat else "x"
            body.pop("logit_bias", None)
        if "n_predict" in change or "max_tokens" in change:
            body = {k: v for k, v in body.items() if k not in ("max_tokens", "max_completion_tokens", "n_predict")}
        if "json_schema" in change:
            body.pop("response_format", None)
        return Asked(path, {**body, **change}, param, needs_model)
    return Asked(path, body)


@dataclass(frozen=True)
class Model:
    """What one of the demo models makes of the prompts, asked before the storm."""

    id: str
    n_ctx_slot: int
    n_tokens: dict[str, int]  # of the prompts that are not token ids, by their JSON

    @classmethod
    def loaded(cls, daemon: Daemon) -> Model:
        def count(text: str) -> int:
            asked = {"content": text, "add_special": True, "parse_special": True}
            return len(daemon.request("POST", "/tokenize", asked)[2]["tokens"])

        n_tokens = {json.dumps(text): count(text) for text in TEXTS}
        for chat in CHATS:
            n_tokens[json.dumps(chat)] = count(daemon.request("POST", "/apply-template", {"messages": chat})[2]["prompt"])
        props = daemon.get("/props")
        return cls(props["model_alias"], props["default_generation_settings"]["n_ctx"], n_tokens)

    def n_prompt(self, asked: Asked) -> int:
        prompt = asked.body.get("prompt")
        return len(prompt) if isinstance(prompt, list) and not asked.is_chat else self.n_tokens[asked.prompt_key]


# -- answers --------------------------------------------------------------------------------------------------------------


def check_error(asked: Asked, status: int, error: dict[str, Any], models: Iterable[Model]) -> str:
    """Its code; fails where this request may not end so. Switches may come at any time."""
    assert set(error) == {"message", "type", "param", "code"}, error
    code = str(error["code"])
    if code in ("model_loading", "model_switched"):
        assert status == 503, error
        assert asked.refused is None or asked.needs_model, f"{asked.refused} is to be refused first"
    elif asked.refused is not None:
        assert (status, code, error["param"]) == (400, "invalid_request", asked.param), error
    else:
        prompt = "messages" if asked.is_chat else "prompt"
        assert (status, code, error["param"]) == (400, "context_length_exceeded", prompt), error
        assert any(model.n_prompt(asked) >= model.n_ctx_slot for model in models)
    return code


def check_whole(asked: Asked, answer: dict[str, Any], model: Model) -> str:
    """The finish reason of a whole answer."""
    assert asked.refused is None, f"{asked.refused} was not refused"
    (choice,) = answer["choices"]
    text = choice["message"]["content"] if asked.is_chat else choice["text"]
    return _check(asked, text, choice["finish_reason"], answer["usage"], model)


def check_stream(asked: Asked, frames: Sequence[Any], model: Model) -> str:
    """The finish reason of a stream, or the code of the error that cut it."""
    assert asked.refused is None, f"{asked.refused} was not refused"
    if "error" in frames[-1]:
        assert frames[-1]["error"]["code"] == "model_switched", frames[-1]
        assert not any(choice["finish_reason"] for frame in frames[:-1] for choice in frame["choices"]), "two ends"
        return "model_switched"
    assert frames[-1] == "[DONE]", "no end"
    frames = frames[:-1]
    usage = None
    if asked.body.get("stream_options"):
        usage, frames = frames[-1]["usage"], frames[:-1]
    assert all(len(frame["choices"]) == 1 and not frame.get("usage") for frame in frames)
    choices = [frame["choices"][0] for frame in frames]
    reasons = [choice["finish_reason"] for choice in choices]
    assert all(reason is None for reason in reasons[:-1]), "two ends"
    if asked.is_chat:
        assert choices[0]["delta"]["role"] == "assistant"
        texts = [choice["delta"].get("content", "") for choice in choices]
    else:
        texts = [choice["text"] for choice in choices]
    return _check(asked, "".join(texts), reasons[-1], usage, model, n_frames=sum(map(bool, texts)))


def _check(asked: Asked, text: str, reason: str, usage: dict[str, Any] | None, model: Model, n_frames: int = 0) -> str:
    body = asked.body
    text.encode()  # no lone surrogates
    stops = [body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop") or []
    assert not any(stop in text for stop in stops), f"a stop of {stops} shows in {text!r}"
    schema = body.get("json_schema") or (body.get("response_format") or {}).get("json_schema", {}).get("schema")
    shaped = schema is not None or body.get("response_format") is not None
    if shaped and reason == "stop" and not stops and not body.get("ignore_eos") and not body.get("logit_bias"):
        assert follows(json.loads(text), schema or {"type": "object"}) is None, text
    assert reason in ("stop", "length")
    if usage is None:
        return reason
    n_prompt, n_completion = usage["prompt_tokens"], usage["completion_tokens"]
    assert n_prompt == model.n_prompt(asked)
    limit = min([model.n_ctx_slot - n_prompt, *(n for name in _LIMITS if (n := body.get(name)))])
    assert n_completion == limit if reason == "length" else 1 <= n_completion <= limit, (usage, reason, limit)
    if body.get("ignore_eos") and not stops and not shaped and not _forbids_all(body):
        assert reason == "length"
    assert n_frames <= n_completion, "text from nowhere"
    assert usage["total_tokens"] == n_prompt + n_completion
    n_cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert 0 <= n_cached < n_prompt
    assert body.get("cache_prompt", True) or n_cached == 0
    return reason


_LIMITS = ("max_tokens", "max_completion_tokens", "n_predict")


def _forbids_all(body: dict[str, Any]) -> bool:
    return isinstance(body.get("logit_bias"), list) and len(body["logit_bias"]) >= N_COMMON_TOKENS - 1
