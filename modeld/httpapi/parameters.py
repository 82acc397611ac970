"""What does a generation request ask? The JSON of /v1/completions and /v1/chat/completions -> GenerateRequest.

Parameters nobody knows are ignored; those that are known but not served yet are refused unless their value asks for
nothing, so that nobody gets an answer that silently lacks what was asked (contract, section 6).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from modeld.errors import InvalidRequest
from modeld.httpapi.constraint import parse_constraint
from modeld.httpapi.fields import INT32_MAX, Fields, brief, missing, out_of_range, token_ids, wrong_type
from modeld.httpapi.messages import parse_messages
from modeld.httpapi.strictjson import parse_object
from modeld.httpapi.tools import parse_tool_use
from modeld.types import GenerateRequest, JsonSchema, Prompt, SamplingParams, ToolUse

MAX_STOPS = 16
MAX_STOP_CHARS = 1000
MAX_TOP_LOGPROBS = 20
MAX_CHOICES = 128  # of n, and of prompts; the engine's own bound on both together depends on its slots and queue
_TOKEN_ID = re.compile(r"[0-9]{1,10}")


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A generation and how its answer is to be sent."""

    generate: GenerateRequest
    stream: bool
    include_usage: bool


def parse_completion(body: bytes, request_id: str) -> CompletionRequest:
    """/v1/completions. Raises InvalidRequest."""
    fields = Fields(parse_object(body))
    _refuse_unsupported(fields, _UNSUPPORTED_COMPLETION)
    echo = fields.boolean("echo", False)
    n_top = None if fields.get("logprobs") is False else fields.integer("logprobs", 0, MAX_TOP_LOGPROBS)
    return _parse(fields, _prompts(fields), request_id, echo=echo, n_top_logprobs=n_top)


def parse_chat(body: bytes, request_id: str) -> CompletionRequest:
    """/v1/chat/completions. Raises InvalidRequest."""
    fields = Fields(parse_object(body))
    _refuse_unsupported(fields, _UNSUPPORTED_CHAT)
    n_top = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if not fields.boolean("logprobs", False):
        if n_top:
            raise InvalidRequest(f"top_logprobs is {n_top} without logprobs; set logprobs to true", param="top_logprobs")
        n_top = None
    else:
        n_top = n_top or 0
    return _parse(fields, (parse_messages(fields),), request_id, n_top_logprobs=n_top, tools=parse_tool_use(fields))


def _parse(
    fields: Fields,
    prompts: tuple[Prompt, ...],
    request_id: str,
    *,
    echo: bool = False,
    n_top_logprobs: int | None,
    tools: ToolUse | None = None,
) -> CompletionRequest:
    constraint = parse_constraint(fields)
    if tools is not None and constraint is not None:
        # An answer that follows a schema is no call, and one that is a call follows its tool's.
        param = constraint.param.split(".")[0] if isinstance(constraint, JsonSchema) else "grammar"
        raise InvalidRequest(f"{param} and tools contradict each other; set tool_choice to none, or leave one out", param=param)
    return CompletionRequest(
        generate=GenerateRequest(
            request_id=request_id,
            prompts=prompts,
            model_id=fields.string("model"),
            n=fields.integer("n", 1, MAX_CHOICES) or 1,
            max_tokens=_max_tokens(fields, least=0 if echo else 1),
            stop=_stop(fields),
            sampling=_sampling(fields, constraint if isinstance(constraint, str) else None),
            json_schema=constraint if isinstance(constraint, JsonSchema) else None,
            tools=tools,
            cache_prompt=fields.boolean("cache_prompt", True),
            echo=echo,
            n_top_logprobs=n_top_logprobs,
        ),
        stream=fields.boolean("stream", False),
        include_usage=fields.object("stream_options").boolean("include_usage", False),
    )


# -- prompts


def _prompts(fields: Fields) -> tuple[Prompt, ...]:
    """A text, a list of texts, a list of token ids, or a list of such lists."""
    value = fields.get("prompt")
    if value is None:
        raise missing("prompt", "a string")
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        raise wrong_type("prompt", "a string, an array of token ids, or an array of those", value)
    if not any(isinstance(item, (str, list)) for item in value):
        return (_prompt_ids(value, "prompt"),)
    if len(value) > MAX_CHOICES:
        raise InvalidRequest(f"prompt has {len(value)} prompts; at most {MAX_CHOICES} are allowed", param="prompt")
    return tuple(_one_of_prompts(item, f"prompt[{i}]") for i, item in enumerate(value))


def _one_of_prompts(item: object, path: str) -> Prompt:
    if isinstance(item, str):
        return item
    if not isinstance(item, list):
        raise InvalidRequest(f"{path} is {brief(item)}; a string or an array of token ids is expected", param="prompt")
    return _prompt_ids(item, path)


def _prompt_ids(items: list[object], path: str) -> tuple[int, ...]:
    if not items:
        raise InvalidRequest(f"{path} is an empty array; a string or at least one token id is expected", param="prompt")
    return token_ids(items, "prompt")


# -- parameters


def _max_tokens(fields: Fields, least: int) -> int | None:
    """OpenAI's two names and llama-server's, which must agree; n_predict -1 is without limit, as there."""
    given = {name: fields.integer(name, least, INT32_MAX) for name in ("max_completion_tokens", "max_tokens")}
    n_predict = fields.integer("n_predict", -1, INT32_MAX)
    if n_predict is not None and -1 < n_predict < least:
        raise out_of_range("n_predict", n_predict, f"-1 or {least} to {INT32_MAX}")
    given["n_predict"] = None if n_predict == -1 else n_predict
    values = {name: value for name, value in given.items() if value is not None}
    if len(set(values.values())) > 1:
        said = ", ".join(f"{name} {value}" for name, value in values.items())
        raise InvalidRequest(f"{said} contradict each other; give one of them", param=next(iter(values)))
    return next(iter(values.values()), None)


def _stop(fields: Fields) -> tuple[str, ...]:
    value = fields.get("stop")
    if value is None:
        return ()
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list):
        raise wrong_type("stop", "a string or an array of strings", value)
    if len(items) > MAX_STOPS:
        raise InvalidRequest(f"stop has {len(items)} strings; at most {MAX_STOPS} are allowed", param="stop")
    for item in items:
        if not isinstance(item, str):
            raise wrong_type("stop", "a string or an array of strings", item)
        if not 1 <= len(item) <= MAX_STOP_CHARS:
            raise InvalidRequest(f"a stop string has {len(item)} characters; allowed are 1 to {MAX_STOP_CHARS}", param="stop")
    return tuple(items)


def _sampling(fields: Fields, grammar: str | None) -> SamplingParams:
    default = SamplingParams()
    top_k = fields.integer("top_k", -1, INT32_MAX)
    repeat_last_n = fields.integer("repeat_last_n", -1, INT32_MAX)
    return SamplingParams(
        temperature=fields.number("temperature", default.temperature, 0.0, 2.0),
        top_k=default.top_k if top_k is None else top_k,
        top_p=fields.number("top_p", default.top_p, 0.0, 1.0),
        min_p=fields.number("min_p", default.min_p, 0.0, 1.0),
        typical_p=fields.number("typical_p", default.typical_p, 0.0, 1.0),
        repeat_penalty=fields.number("repeat_penalty", default.repeat_penalty, 0.0, 10.0, above=True),
        repeat_last_n=default.repeat_last_n if repeat_last_n is None else repeat_last_n,
        presence_penalty=fields.number("presence_penalty", default.presence_penalty, -2.0, 2.0),
        frequency_penalty=fields.number("frequency_penalty", default.frequency_penalty, -2.0, 2.0),
        logit_bias=_logit_bias(fields),
        seed=_seed(fields),
        ignore_eos=fields.boolean("ignore_eos", default.ignore_eos),
        grammar=grammar,
    )


def _seed(fields: Fields) -> int | None:
    """OpenAI's seeds have 64 bits, the samplers' 32: the low ones count. -1 asks for a fresh one, as in llama-server."""
    seed = fields.integer("seed", -(2**63), 2**64 - 1)
    if seed == -1:
        return secrets.randbits(32)  # not None, which would take the seed of the model's entry
    return None if seed is None else seed % 2**32


def _logit_bias(fields: Fields) -> tuple[tuple[int, float], ...]:
    """OpenAI's object {"id": bias} or llama-server's array [[id, bias], ...], whose bias may be false: never.

    Those of one token are added up, as libllama does: each answer's sampler takes one for each token at most.
    """
    value = fields.get("logit_bias")
    if value is None:
        return ()
    if isinstance(value, dict):
        pairs = [(int(key) if _TOKEN_ID.fullmatch(key) else key, bias) for key, bias in value.items()]
    elif isinstance(value, list) and all(isinstance(item, list) and len(item) == 2 for item in value):
        pairs = [(item[0], float("-inf") if item[1] is False else item[1]) for item in value]
    else:
        raise wrong_type("logit_bias", "an object of token id and bias", value)
    biases: dict[int, float] = {}
    for pair in pairs:
        token, bias = _bias(*pair)
        biases[token] = biases.get(token, 0.0) + bias
    return tuple(biases.items())


def _bias(token: object, bias: object) -> tuple[int, float]:
    if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token <= INT32_MAX:
        raise InvalidRequest(f"logit_bias has {brief(token)} where a token id is expected", param="logit_bias")
    if not isinstance(bias, (int, float)) or isinstance(bias, bool):
        raise wrong_type("logit_bias", "numbers for token ids", bias)
    if not -100 <= bias <= 100 and bias != float("-inf"):
        raise out_of_range("logit_bias", bias, "-100 to 100")
    return token, float(bias)


# -- known, not served


def _unsupported(param: str) -> InvalidRequest:
    return InvalidRequest(f"{param} is not supported yet with this value; leave it out", param=param)


def _one(value: object) -> bool:
    return value == 1 and not isinstance(value, bool)


def _false(value: object) -> bool:
    return value is False


def _empty(value: object) -> bool:
    return value in ([], {})


def _not_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value <= 0


# Parameter -> whether a value (never null) asks for nothing.
_UNSUPPORTED: Mapping[str, Callable[[object], bool]] = {
    # llama-server's samplers and answers beyond ours
    "mirostat": _not_positive,
    "dynatemp_range": _not_positive,
    "dry_multiplier": _not_positive,
    "xtc_probability": _not_positive,
    "top_n_sigma": _not_positive,
    "n_probs": _not_positive,
    "min_keep": _not_positive,
    "adaptive_target": lambda value: isinstance(value, (int, float)) and value < 0,
    "samplers": _empty,
    "lora": _empty,
    "t_max_predict_ms": _not_positive,
    "n_indent": _not_positive,
    "return_tokens": _false,
    "return_progress": _false,
    "timings_per_token": _false,
    "post_sampling_probs": _false,
    "response_fields": _empty,
    "image_data": _empty,
    "grammar_lazy": _false,
    "grammar_triggers": _empty,
}
_UNSUPPORTED_COMPLETION: Mapping[str, Callable[[object], bool]] = {
    **_UNSUPPORTED,
    "best_of": _one,
    "suffix": lambda value: value == "",
    # chat's
    "tools": _empty,
    "tool_choice": lambda value: value in ("none", "auto"),
    "top_logprobs": _not_positive,
}
_UNSUPPORTED_CHAT: Mapping[str, Callable[[object], bool]] = {
    **_UNSUPPORTED,
    "functions": _empty,
    "function_call": lambda value: value == "none",
    "audio": lambda _: False,
    "modalities": lambda value: value == ["text"],
    "web_search_options": lambda _: False,
    "chat_template_kwargs": _empty,
    "add_generation_prompt": lambda value: value is True,
    "continue_final_message": _false,
    "reasoning_format": lambda value: value in ("none", "auto"),
    "reasoning_effort": lambda value: value == "none",
    "verbosity": lambda value: value == "medium",
    # completions'
    "best_of": _one,
    "suffix": lambda value: value == "",
    "echo": _false,
}


def _refuse_unsupported(fields: Fields, table: Mapping[str, Callable[[object], bool]]) -> None:
    for name, asks_nothing in table.items():
        value = fields.get(name)
        if value is not None and not asks_nothing(value):
            raise _unsupported(name)
