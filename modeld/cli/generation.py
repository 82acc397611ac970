"""What does the model answer, as it comes? One request to /v1/*, streamed or whole; whatever cuts it is a Failure.

The flags that say how the text is made become members of the request.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modeld.cli import eventstream, failures
from modeld.cli.connection import Client
from modeld.cli.failures import Failure
from modeld.cli.record import Record
from modeld.cli.terminal import Screen, seconds

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
MAX_INPUT_BYTES = 16 << 20  # the daemon's own limit is mostly lower, and it says so

_PLAIN = ("model", "max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "stop")
_OURS = ("stream", "stream_options")
_DONE = "[DONE]"


@dataclass(slots=True)
class Answer:
    text: str = ""
    finish_reason: str = ""
    model: str = ""
    usage: Record = Record(None)  # noqa: RUF009 - a record never changes


def parameters(args: argparse.Namespace) -> dict[str, object]:
    """Of the request, as the flags say. Raises Failure for files that cannot be read, and for what is no NAME=VALUE."""
    said: dict[str, object] = {name: value for name in _PLAIN if (value := getattr(args, name)) is not None}
    if args.stop is not None:
        said["stop"] = [typed(text, "--stop") for text in args.stop]
    if args.grammar_file is not None:
        said["grammar"] = _text_of(args.grammar_file)
    if args.json_schema_file is not None:
        try:
            said["json_schema"] = json.loads(_text_of(args.json_schema_file))
        except (ValueError, RecursionError) as error:
            raise failures.usage(f"{args.json_schema_file}: no JSON: {error}") from None
    for setting in args.set:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise failures.usage(f"--set {setting[:80]!r}: expected NAME=VALUE")
        if name in _OURS:
            raise failures.usage(f"--set {name}: whether the answer is streamed is said by --no-stream and --json")
        try:
            said[name] = json.loads(value)
        except (ValueError, RecursionError):
            said[name] = value
    return said


def generate(
    client: Client, path: str, body: dict[str, object], on_text: Callable[[str], None], args: argparse.Namespace
) -> Answer:
    """Streams, unless --no-stream; `on_text` gets each piece. `args`: timeout, no_stream.

    Raises Failure; what came before it has been given to on_text.
    """
    limit_s = 0.0 if args.timeout is None else args.timeout  # a queue and a long prompt take what they take
    if args.no_stream:
        answer = _answer_of(client.ask("POST", path, body, timeout_s=limit_s).body)
        on_text(answer.text)
        return answer
    answer = Answer()
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    with client.open("POST", path, streamed, timeout_s=limit_s) as stream:
        try:
            for event in eventstream.read(stream, lambda: limit_s or None):
                if event.data == _DONE:
                    return answer
                if event.data:
                    _take(answer, event.record, on_text)
        except eventstream.Dropped as dropped:
            raise failures.lost(f"the answer is not whole: {dropped}") from None
    raise failures.lost("the answer is not whole: the stream ended without a word about its end")


def whole(client: Client, path: str, body: dict[str, object], args: argparse.Namespace) -> Record:
    """The answer as the API gives it."""
    return client.ask("POST", path, body, timeout_s=0.0 if args.timeout is None else args.timeout).body


def tell_stats(screen: Screen, answer: Answer, began: float) -> None:
    """`began`: monotonic."""
    took = time.monotonic() - began
    usage = answer.usage
    n_prompt, n_made = usage.integer("prompt_tokens") or 0, usage.integer("completion_tokens") or 0
    n_cached = usage.record("prompt_tokens_details").integer("cached_tokens") or 0
    cached = f" ({n_cached} from the cache)" if n_cached else ""
    rate = f", {n_made / took:.1f} tokens/s" if took > 0 else ""
    end = answer.finish_reason or "no end"
    screen.say(f"{answer.model}: {n_prompt} tokens of prompt{cached}, {n_made} made in {seconds(took)}{rate}; {end}")


def standard_input() -> str:
    """All of it, without the line feed that ends its last line. Raises Failure."""
    data = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
    if len(data) > MAX_INPUT_BYTES:
        raise failures.usage(f"standard input has more than {MAX_INPUT_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise failures.usage(f"standard input: byte 0x{data[error.start]:02x} at {error.start} is not UTF-8") from None
    return text.removesuffix("\n").removesuffix("\r")


def typed(text: str, name: str) -> str:
    """An argument as text: bytes that the locale knows no letters for count as UTF-8. Raises Failure where they are none."""
    try:
        return os.fsencode(text).decode() if any("\ud800" <= letter <= "\udfff" for letter in text) else text
    except UnicodeError:
        raise failures.usage(f"{name}: it holds bytes that are no UTF-8") from None


def _take(answer: Answer, frame: Record, on_text: Callable[[str], None]) -> None:
    if error := frame.record("error"):
        code = error.text("code") or "unknown"
        raise Failure(error.message() or code, code=code, status=failures.exit_status(code, 0))
    answer.model = frame.text("model") or answer.model
    if usage := frame.record("usage"):
        answer.usage = usage
    for choice in frame.records("choices"):
        if choice.integer("index"):
            continue  # of several answers, which --set n=2 asks for, the first
        answer.finish_reason = choice.text("finish_reason") or answer.finish_reason
        if text := choice.exact("text") or choice.record("delta").exact("content"):
            answer.text += text
            on_text(text)


def _answer_of(body: Record) -> Answer:
    first = next(iter(body.records("choices")), Record(None))
    text = first.exact("text") or first.record("message").exact("content")
    return Answer(text, first.text("finish_reason"), body.text("model"), body.record("usage"))


def _text_of(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_INPUT_BYTES + 1)
        if len(data) > MAX_INPUT_BYTES:
            raise failures.usage(f"{file}: more than {MAX_INPUT_BYTES} bytes")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise failures.usage(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise failures.usage(f"{file}: cannot be read: {error}") from None
