"""Random generation requests, legal and illegal, and what each answer must look like whatever the model said.

Independent of the daemon's code: token counts of prompts come from /tokenize and /apply-template before the storm begins, those
of answers from limits that must be reached exactly, and from logprobs, one a token, where they were asked for.
"""

from __future__ import annotations

import json
import random
import re
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
# GBNF and what it comes to. The last one can be read in ever more ways: it may end in an error, and harms nobody else.
GRAMMARS = {
    'root ::= "yes" | "no"': "yes|no",
    'root ::= word (" " word){0,3} "."\nword ::= [a-z]{1,6}': r"[a-z]{1,6}( [a-z]{1,6}){0,3}\.",
    'root ::= ("日本" | [é-ü])+ "語"': "(日本|[é-ü])+語",
    'root ::= "(" root ")" | [0-9]': r"\(*[0-9]\)*",
    'root ::= a\na ::= "x" a "y" | "x" a "z" | "q"': "x*q[yz]*",
}
STOPS = [".", "e", " the", "named", "\n", "42", "日", "語é", "\N{REPLACEMENT CHARACTER}", "\x00never", "x" * 1000, "a", "th", '"']

LIMITS = ("max_tokens", "max_completion_tokens", "n_predict")
CONTROL = re.compile(rb"<(unk|s|/s|\|\w+\|)>")
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
    ({"max_tokens": 0, "echo": None}, "max_tokens", False),
    ({"max_tokens": None, "n_predict": -2}, "n_predict", False),
    ({"ignore_eos": 1}, "ignore_eos", False),
    ({"stream": "yes"}, "stream", False),
    ({"stream_options": []}, "stream_options", False),
    ({"response_format": {"type": "xml"}}, "response_format.type", False),
    ({"json_schema": {"type": "string", "pattern": "a"}, "response_format": None}, "json_schema", True),
    ({"n": 0}, "n", False),
    ({"n": 129}, "n", False),
    ({"n": "two"}, "n", False),
    ({"logprobs": -1}, "logprobs", False),
    ({"logprobs": "all", "top_logprobs": 2}, "top_logprobs|logprobs", False),
    ({"grammar": "root ::= missing"}, "grammar", True),
    ({"grammar": 'root ::= "x'}, "grammar", True),
    ({"grammar": "root ::= root"}, "grammar", True),
    ({"grammar": 'root ::= "x"', "json_schema": {}}, "json_schema", False),
    ({"prompt": None, "messages": None}, "prompt|messages", False),
    ({"prompt": ["x", []], "messages": []}, "prompt|messages", False),
    ({"prompt": ["x", 7], "messages": [{"role": "user"}]}, "prompt|messages[0].content", False),
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
    def prompts(self) -> list[Any]:
        """Texts, lists of token ids, or one list of messages."""
        if self.is_chat:
            return [self.body["messages"]]
        prompt = self.body["prompt"]
        return prompt if isinstance(prompt, list) and isinstance(prompt[0], (str, list)) else [prompt]

    @property
    def limit(self) -> int | None:
        return next((n for name in LIMITS if (n := self.body.get(name)) is not None), None)

    @property
    def stops(self) -> list[str]:
        stop = self.body.get("stop") or []
        return [stop] if isinstance(stop, str) else stop

    @property
    def schema(self) -> Any:
        """What the answer is to follow; None: nothing."""
        format_ = self.body.get("response_format")
        return self.body.get("json_schema") or (format_ and format_.get("json_schema", {}).get("schema", {"type": "object"}))

    @property
    def constraint(self) -> str | None:
        """The parameter that the answer is to follow."""
        return next((name for name in ("grammar", "json_schema", "response_format") if self.body.get(name) is not None), None)

    def is_followed_by(self, text: str) -> bool:
        if (grammar := self.body.get("grammar")) is not None:
            return re.fullmatch(GRAMMARS[grammar], text) is not None
        return self.schema is None or follows(json.loads(text), self.schema) is None

    @property
    def wants_logprobs(self) -> bool:
        return self.body.get("logprobs") is not None  # 0 on /v1/completions: of the chosen tokens alone

    @property
    def never_ends(self) -> bool:
        """Only its limit can end it."""
        bias = self.body.get("logit_bias")
        forbids_all = isinstance(bias, list) and len(bias) >= N_COMMON_TOKENS - 1  # then anything may come, an end too
        return bool(self.body.get("ignore_eos")) and not self.stops and self.constraint is None and not forbids_all

    @property
    def param(self) -> str | None:
        if self.refused is None or "|" not in self.refused:
            return self.refused
        return self.refused.split("|")[self.is_chat]


def random_prompt(r: Chance) -> Any:
    if r.random() < 0.3:
        return [r.randrange(N_COMMON_TOKENS) for _ in range(r.choice([1, 2, 17, 100, 400, 400, 5000]))]
    return r.choice(TEXTS if r.random() < 0.3 else TEXTS[:-1])


def random_request(r: Chance) -> Asked:
    is_chat = r.random() < 0.4
    body: dict[str, Any] = {}
    if is_chat:
        body["messages"] = r.choice(CHATS if r.random() < 0.3 else CHATS[:-1])
    elif r.random() < 0.15:
        body["prompt"] = [random_prompt(r) for _ in range(r.randint(1, 3))]
    else:
        body["prompt"] = random_prompt(r)
    if r.random() < 0.15:
        body["n"] = r.randint(1, 3)
    if r.random() < 0.3:
        body |= {"logprobs": True, "top_logprobs": r.choice([0, 1, 20])} if is_chat else {"logprobs": r.choice([0, 1, 20])}
    if not is_chat and r.random() < 0.15:
        body["echo"] = True
    for name, value in LEGAL.items():
        if r.random() < 0.25:
            body[name] = value(r)
    if r.random() < 0.4:
        body["stop"] = r.choice([r.choice(STOPS), r.sample(STOPS, r.randint(1, 14)), [], [f"\x00{i}" for i in range(16)]])
    if r.random() < 0.95:
        body[r.choice(LIMITS)] = r.choice([0 if "echo" in body else 1, 2, 5, 20, 60, 60])
    if r.random() < 0.15:
        schema = r.choice(SCHEMAS)
        if r.random() < 0.5:
            body["json_schema"] = schema
        else:
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    elif r.random() < 0.03:
        body["response_format"] = {"type": "json_object"}
    elif r.random() < 0.1:
        body["grammar"] = r.choice(list(GRAMMARS))
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
            body = {name: value for name, value in body.items() if name not in LIMITS}
        if change.keys() & {"json_schema", "response_format", "grammar"}:
            body = {name: value for name, value in body.items() if name not in ("json_schema", "response_format", "grammar")}
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

    def n_prompt(self, prompt: Any) -> int:
        is_ids = isinstance(prompt, list) and isinstance(prompt[0], int)
        return len(prompt) if is_ids else self.n_tokens[json.dumps(prompt)]

    def room(self, prompt: Any) -> int:
        """Tokens that an answer may have; not even one where the prompt is too long."""
        return self.n_ctx_slot - self.n_prompt(prompt)


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
    elif asked.constraint is not None and code == "invalid_request":
        assert error["param"] == asked.constraint == "grammar", error
        assert "ways" in error["message"] or "steps" in error["message"], error
    else:
        prompt = "messages" if asked.is_chat else "prompt"
        assert (status, code, error["param"]) == (400, "context_length_exceeded", prompt), error
        assert any(model.room(prompt) < 1 for model in models for prompt in asked.prompts)
    return code


@dataclass
class Choice:
    """What came of one choice: text, its end, the bytes of the tokens that logprobs tell of, frames with text."""

    text: str = ""
    reason: str | None = None
    pieces: list[bytes] | None = None
    n_frames: int = 0

    def add(self, asked: Asked, choice: dict[str, Any], text: str) -> None:
        assert self.reason is None, "something after the end"
        self.text += text
        self.n_frames += text != ""
        self.reason = choice["finish_reason"]
        if (told := choice["logprobs"]) is not None:
            assert asked.wants_logprobs
            if asked.is_chat:
                pieces = [bytes(item["bytes"]) for item in told["content"]]
                assert all(len(item["top_logprobs"]) == asked.body["top_logprobs"] for item in told["content"])
            else:
                pieces = [token.encode() for token in told["tokens"]]
                assert len(pieces) == len(told["token_logprobs"]) == len(told["top_logprobs"]) == len(told["text_offset"])
            self.pieces = [*(self.pieces or []), *pieces]


def check_whole(asked: Asked, answer: dict[str, Any], model: Model) -> str:
    """The finish reason of a whole answer, its first choice's."""
    assert asked.refused is None, f"{asked.refused} was not refused"
    choices = []
    for index, told in enumerate(answer["choices"]):
        assert told["index"] == index
        choices.append(Choice())
        choices[-1].add(asked, told, told["message"]["content"] if asked.is_chat else told["text"])
        assert asked.wants_logprobs == (choices[-1].pieces is not None)
    return _check(asked, choices, answer["usage"], model)


def check_stream(asked: Asked, frames: Sequence[Any], model: Model) -> str:
    """The finish reason of a stream, its first choice's, or the code of the error that cut it."""
    assert asked.refused is None, f"{asked.refused} was not refused"
    if "error" in frames[-1]:
        error = frames[-1]["error"]
        assert error["code"] == "model_switched" or (error["code"], error["param"]) == ("invalid_request", "grammar"), error
        return str(error["code"])
    assert frames[-1] == "[DONE]", "no end"
    frames, usage = frames[:-1], None
    if asked.body.get("stream_options"):
        usage, frames = frames[-1]["usage"], frames[:-1]
    choices: dict[int, Choice] = {}
    for frame in frames:
        (told,) = frame["choices"]
        assert not frame.get("usage")
        choice = choices.get(told["index"])
        if choice is None:
            choice = choices[told["index"]] = Choice()
            assert not asked.is_chat or told["delta"]["role"] == "assistant"
        choice.add(asked, told, told["delta"].get("content", "") if asked.is_chat else told["text"])
    return _check(asked, [choices[i] for i in range(len(choices))], usage, model)


def _check(asked: Asked, choices: Sequence[Choice], usage: dict[str, Any] | None, model: Model) -> str:
    prompts = [prompt for prompt in asked.prompts for _ in range(asked.body.get("n", 1))]
    counts = [_check_choice(asked, prompt, choice, model) for prompt, choice in zip(prompts, choices, strict=True)]
    if usage is not None:
        n_prompt, n_completion = usage["prompt_tokens"], usage["completion_tokens"]
        assert n_prompt == sum(map(model.n_prompt, asked.prompts))
        assert sum(least for least, _ in counts) <= n_completion <= sum(most for _, most in counts), (usage, counts)
        assert usage["total_tokens"] == n_prompt + n_completion
        n_cached = usage["prompt_tokens_details"]["cached_tokens"]
        assert 0 <= n_cached < n_prompt
        assert asked.body.get("cache_prompt", True) or n_cached == 0
    return str(choices[0].reason)


def _check_choice(asked: Asked, prompt: Any, choice: Choice, model: Model) -> tuple[int, int]:
    """Between how many and how many tokens it has."""
    text, reason, is_echo = choice.text, choice.reason, bool(asked.body.get("echo"))
    text.encode()  # no lone surrogates
    assert reason in ("stop", "length")
    assert is_echo or not any(stop in text for stop in asked.stops), f"a stop of {asked.stops} shows in {text!r}"
    assert reason == "length" or not asked.never_ends
    clean = not asked.stops and not is_echo
    hindered = asked.body.get("ignore_eos") or asked.body.get("logit_bias")
    if reason == "stop" and clean and not hindered:
        assert asked.is_followed_by(text), text
    most = model.room(prompt) if asked.limit is None else min(model.room(prompt), asked.limit)
    least = most if reason == "length" else 1
    if asked.wants_logprobs:
        pieces = choice.pieces or []
        n_told = len(pieces) - (model.n_prompt(prompt) if is_echo else 0)
        assert n_told == most if reason == "length" else n_told < most or asked.stops, (n_told, most, reason)
        if clean and asked.is_chat:
            shown = [piece for piece in pieces if not CONTROL.fullmatch(piece)]  # which have no text
            assert b"".join(shown).decode(errors="replace") == text
        if not asked.stops:  # what a stop string took away is told nowhere; EOG is a token without text
            least = most = n_told + (reason == "stop")
        least = max(least, n_told)
    assert choice.n_frames <= max(most, 1), "text from nowhere"
    return least, most
