"""Does any body break what reads requests? An input is a letter, which says whose body it is, and the body.

What the strict JSON reader takes json.loads takes, too, as the same value; what it refuses for no reason that json.loads
lacks is refused there as well. A request that is read is a value of the type that its reader promises.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping

from fuzz.target import Target
from fuzz.typed import fault
from modeld.errors import InvalidRequest
from modeld.httpapi import schema
from modeld.httpapi.embeddings import EmbeddingsRequest, parse_embeddings
from modeld.httpapi.ops import SwitchRequest, parse_switch
from modeld.httpapi.parameters import CompletionRequest, parse_chat, parse_completion
from modeld.httpapi.strictjson import MAX_DEPTH, parse
from modeld.policy import SwitchOptions

READERS: Mapping[bytes, tuple[Callable[[bytes], object], object]] = {
    b"c": (lambda body: parse_completion(body, "r"), CompletionRequest),
    b"m": (lambda body: parse_chat(body, "r"), CompletionRequest),
    b"s": (lambda body: parse_switch(body, SwitchOptions()), SwitchRequest),
    b"e": (lambda body: parse_embeddings(body, "r"), EmbeddingsRequest),
    b"t": (schema.parse_tokenize, schema.TokenizeRequest),
    b"d": (schema.parse_detokenize, tuple[int, ...]),
}  # and what they promise
MAX_MESSAGE_CHARS = 1000


def check(data: bytes) -> str:
    (reader, promised), body = READERS.get(data[:1], (parse, object)), data[1:]
    try:
        value = parse(body)
    except InvalidRequest as error:
        _check_error(error)
        _check_refused(body)
    else:
        assert value == json.loads(body), "read otherwise than by json.loads"
        assert not _is_odd(value, 0), "taken, though not all readers would read it alike"
    try:
        asked = reader(body)
    except InvalidRequest as error:
        _check_error(error)
        return "InvalidRequest"
    wrong = fault(asked, promised)
    assert wrong is None, wrong
    _check_asked(asked)
    return "read"


def _check_error(error: InvalidRequest) -> None:
    assert error.status == 400
    assert 0 < len(error.message) < MAX_MESSAGE_CHARS, f"a message of {len(error.message)} characters"
    assert f"{error.message}{error.param}".encode(), "text that any reader of the answer takes"
    assert error.message.isprintable(), f"control characters in {error.message!r}"


def _check_refused(body: bytes) -> None:
    """json.loads refuses it, too, or it has what only strict readers refuse."""
    try:
        value = json.loads(body.decode())
    except (ValueError, RecursionError):
        return
    twice = False

    def look(pairs: list[tuple[str, object]]) -> dict[str, object]:
        nonlocal twice
        twice = twice or len(dict(pairs)) < len(pairs)
        return dict(pairs)

    json.loads(body, object_pairs_hook=look)
    assert twice or _is_odd(value, 0), "refused, and nobody can say why"


def _is_odd(value: object, depth: int) -> bool:
    """Not finite, no character, of more than 20 digits, too deep."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, int):
        return len(str(value)) > 20
    if isinstance(value, str):
        return any("\ud800" <= char <= "\udfff" for char in value)
    if depth >= MAX_DEPTH and isinstance(value, (list, dict)):
        return True
    if isinstance(value, dict):
        return any(_is_odd(item, depth + 1) for pair in value.items() for item in pair)
    return isinstance(value, list) and any(_is_odd(item, depth + 1) for item in value)


def _check_asked(asked: object) -> None:
    if isinstance(asked, CompletionRequest):
        generate = asked.generate
        assert generate.prompts
        assert 1 <= generate.n <= 128
        assert generate.max_tokens is None or generate.max_tokens >= 0
        assert all(generate.stop)
        numbers = generate.sampling
        assert 0 <= numbers.temperature <= 2
        assert 0 <= numbers.top_p <= 1
        assert numbers.seed is None or 0 <= numbers.seed < 1 << 32
        assert len({token for token, _ in numbers.logit_bias}) == len(numbers.logit_bias)
        assert not any(math.isnan(bias) for _, bias in numbers.logit_bias)
    elif isinstance(asked, SwitchRequest):
        assert asked.model_id
        assert 0 <= asked.options.drain_timeout_s <= 86_400
        assert 0 <= asked.options.ready_delay_s <= 3600
    elif isinstance(asked, EmbeddingsRequest):
        assert asked.embed.inputs


def seeds() -> Iterator[bytes]:
    def body(letter: str, value: object) -> bytes:
        return letter.encode() + json.dumps(value).encode()

    user = {"role": "user", "content": "hi"}
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    yield body("c", {"prompt": "x", "max_tokens": 5, "stop": ["a"], "logit_bias": {"7": -100}, "seed": -1, "stream": True})
    yield body(
        "c", {"prompt": [1, 2], "n": 2, "logprobs": 3, "echo": True, "logit_bias": [[1, False], [1, 2.5]], "n_predict": -1}
    )
    yield body("c", {"prompt": [], "n_predict": -1, "max_tokens": 1, "max_completion_tokens": 2})
    yield body("c", {"prompt": [[]], "stop": [""], "top_logprobs": 1})
    yield body("c", {"prompt": "", "stop": "a" * 1001, "json_schema": {}, "grammar": "root ::= x"})
    yield body("c", {"prompt": ["a", [1]], "grammar": "root ::= x", "stop": "a", "stream_options": {"include_usage": True}})
    yield body("c", {"prompt": "x", "temperature": 0.5, "top_p": 1, "top_k": -1, "min_p": 0, "repeat_penalty": 1.1, "user": None})
    yield body("m", {"messages": [user], "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}})
    yield body("c", {"prompt": "x", "n_predict": 1, "max_tokens": 2})
    yield body("c", {"prompt": "x", "n_predict": 1, "max_completion_tokens": 1, "json_schema": {}, "grammar": ""})
    for wrong in ({"stop": [1]}, {"n": 1.5}, {"seed": "x"}, {"stream": 1}, {"top_p": True}, {"model": 1}):
        yield body("c", {"prompt": "x", **wrong})
    yield body("m", {"messages": [user], "response_format": {"type": "json_object"}, "logprobs": True, "top_logprobs": 5})
    yield body("m", {"messages": [user], "tools": [tool], "tool_choice": {"type": "function", "function": {"name": "f"}}})
    yield body("m", {"messages": [user], "tools": [tool], "tool_choice": "required", "parallel_tool_calls": False})
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "2"}]}
    yield body("m", {"messages": [{"role": "developer", "content": "s"}, user, answer, result], "model": "m"})
    yield body("s", {"model_id": "a", "on_inflight": "drain", "drain_timeout_s": 1.5, "on_busy": "reject", "dry_run": True})
    yield body("s", {"model_id": "", "strategy": "overlap", "on_failure": "error", "force": True})
    yield body("e", {"input": ["a", [1]], "dimensions": 2, "encoding_format": "base64", "embd_normalize": 0})
    yield body("t", {"content": "a", "add_special": True, "with_pieces": True})
    yield body("d", {"tokens": [1, 2]})
    yield b"j" + b'{"a": 1, "b": {"a": 1, "\\u0061": 2}, "a": 2}'
    for odd in (
        b'"\\ud83d\\ude00"',
        b'"\\ud800"',
        b'{"\\udfff": 1}',
        b"1e999",
        b"NaN",
        b"-Infinity",
        b"123456789012345678901",
        b"0.5",
    ):
        yield b"j[" + odd + b"]"
    yield b"j" + b"[" * 101 + b"]" * 101
    yield b"j" + b'"\xff"'
    yield b"j"


WORDS = tuple(
    b'"prompt": |"messages": |"role": |"content": |"model": |"max_tokens": |"max_completion_tokens": |"n_predict": |"top_p": |'
    b'"temperature": |"stop": |"seed": |"logit_bias": |"logprobs": |"tools": |"tool_choice": |"tool_calls": |"function": |'
    b'"type": |"response_format": |"json_schema": |"schema": |"grammar": |"stream": |"stream_options": |"arguments": |"name": |'
    b'"input": |"tokens": |"model_id": |"suffix": |"best_of": |"samplers": |null|true|false|[]|{}|1e999|-1|'
    b'NaN|\\u0000|\\ud800|, |": '.split(b"|")
)

TARGET = Target(
    modules=tuple(f"modeld.httpapi.{name}" for name in "strictjson fields parameters constraint messages tools".split()),
    check=check,
    seeds=seeds,
    words=WORDS,
    max_bytes=4096,
)
