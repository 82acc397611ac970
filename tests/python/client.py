"""The official Python client over the whole generation surface: `python -W error client.py URL` prints a line of JSON a section.

tests/node/client.mjs has the same sections for Node. A section fails by raising; a warning is an error (-W error).
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
import traceback
from collections.abc import Callable
from datetime import date
from typing import Any, Literal

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

STORIES, CALC, VECTORS, CALLER = "demo-stories", "demo-calc", "demo-vectors", "demo-tools"  # the first is loaded
STORY: list[Any] = [{"role": "user", "content": "Tell me a story."}]
ONCE = "Once upon a time"

SECTIONS: dict[str, Callable[[OpenAI], None]] = {}


def section(run: Callable[[OpenAI], None]) -> Callable[[OpenAI], None]:
    SECTIONS[run.__name__] = run
    return run


def tokens_of(client: OpenAI, text: str, *, special: bool = True) -> list[int]:
    """/tokenize is llama-server's, beside /v1."""
    told: Any = client.post("/../tokenize", body={"content": text, "add_special": special}, cast_to=object)
    return [int(token) for token in told["tokens"]]


@section
def models(client: OpenAI) -> None:
    listed = client.models.list()
    assert [model.id for model in listed] == [STORIES]
    model = client.models.retrieve(STORIES)
    assert (model.id, model.object) == (STORIES, "model")
    assert model.created > 1_700_000_000
    assert model.owned_by


@section
def completion_whole(client: OpenAI) -> None:
    answer = client.completions.create(model=STORIES, prompt=ONCE, max_tokens=20, temperature=0)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.model == STORIES
    assert answer.created > 1_700_000_000
    (choice,) = answer.choices
    assert choice.text
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 20
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 20
    assert answer._request_id


@section
def completion_streamed(client: OpenAI) -> None:
    whole = client.completions.create(model=STORIES, prompt=ONCE, max_tokens=20, temperature=0)
    chunks = list(
        client.completions.create(
            model=STORIES, prompt=ONCE, max_tokens=20, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [*[None] * (len(chunks) - 2), "length"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    plain = list(client.completions.create(model=STORIES, prompt=ONCE, max_tokens=5, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in plain)


@section
def chat_whole(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=STORIES, messages=STORY, max_completion_tokens=20, temperature=0)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.message.refusal is None
    assert choice.message.tool_calls is None
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 20
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens is not None
    parts: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Tell me a story."}]},
        {"role": "assistant", "content": "Once."},
        {"role": "user", "content": "Go on."},
    ]
    assert client.chat.completions.create(model=STORIES, messages=parts, max_tokens=5).choices[0].message.content


@section
def chat_streamed(client: OpenAI) -> None:
    whole = client.chat.completions.create(model=STORIES, messages=STORY, max_tokens=20, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model=STORIES, messages=STORY, max_tokens=20, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


@section
def stream_helpers(client: OpenAI) -> None:
    # The helper takes an answer that ends by its length for an error.
    whole = client.chat.completions.create(model=STORIES, messages=STORY, stop=".", temperature=0)
    with client.chat.completions.stream(model=STORIES, messages=STORY, stop=".", temperature=0) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == "stop"


@section
def stops(client: OpenAI) -> None:
    text = client.completions.create(model=STORIES, prompt=ONCE, max_tokens=60, temperature=0).choices[0].text
    for stop in (".", [".", "never"], [str(i) for i in range(15)] + ["."]):
        (choice,) = client.completions.create(model=STORIES, prompt=ONCE, max_tokens=60, temperature=0, stop=stop).choices
        assert (choice.text, choice.finish_reason) == (text.partition(".")[0], "stop")
        (chat,) = client.chat.completions.create(model=STORIES, messages=STORY, max_tokens=60, temperature=0, stop=stop).choices
        assert "." not in (chat.message.content or "")
        assert chat.finish_reason == "stop"


@section
def seeds(client: OpenAI) -> None:
    def tell(seed: int) -> str | None:
        answer = client.chat.completions.create(model=STORIES, messages=STORY, max_tokens=30, temperature=1.5, seed=seed)
        return answer.choices[0].message.content

    assert tell(1) == tell(1)
    assert len({tell(seed) for seed in range(4)}) > 1


@section
def sampling(client: OpenAI) -> None:
    greedy = client.completions.create(model=STORIES, prompt=ONCE, max_tokens=8, temperature=0).choices[0].text
    narrow = client.completions.create(model=STORIES, prompt=ONCE, max_tokens=8, temperature=2, top_p=0).choices[0].text
    assert narrow == greedy
    own: list[dict[str, object]] = [{"top_k": 1}, {"min_p": 1}, {"top_k": 1, "typical_p": 0.5, "cache_prompt": False}]
    for extra_body in own:
        (choice,) = client.completions.create(
            model=STORIES, prompt=ONCE, max_tokens=8, temperature=2, extra_body=extra_body
        ).choices
        assert choice.text == greedy
    varied = client.completions.create(
        model=STORIES, prompt=ONCE, max_tokens=60, temperature=0, presence_penalty=2, frequency_penalty=2
    )
    plain = client.completions.create(model=STORIES, prompt=ONCE, max_tokens=60, temperature=0)
    assert len(set(varied.choices[0].text.split())) > len(set(plain.choices[0].text.split()))


@section
def logit_bias(client: OpenAI) -> None:
    (fox,) = tokens_of(client, " fox", special=False)
    forced = client.completions.create(model=STORIES, prompt=ONCE, max_tokens=3, temperature=0, logit_bias={str(fox): 100})
    assert forced.choices[0].text == " fox fox fox"
    chat = client.chat.completions.create(model=STORIES, messages=STORY, max_tokens=3, temperature=0, logit_bias={str(fox): 100})
    assert chat.choices[0].message.content == " fox fox fox"


@section
def token_prompts(client: OpenAI) -> None:
    ids = tokens_of(client, ONCE)
    text, tokens = (
        client.completions.create(model=STORIES, prompt=prompt, max_tokens=10, temperature=0) for prompt in (ONCE, ids)
    )
    assert tokens.choices[0].text == text.choices[0].text
    assert tokens.usage is not None
    assert tokens.usage.prompt_tokens == len(ids)


@section
def several_choices(client: OpenAI) -> None:
    answer = client.completions.create(model=STORIES, prompt=ONCE, n=3, max_tokens=20, temperature=1.5, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.text for choice in answer.choices}) == 3
    alone = client.completions.create(model=STORIES, prompt=ONCE, n=1, max_tokens=20, temperature=1.5, seed=1)
    assert answer.usage is not None
    assert alone.usage is not None
    assert answer.usage.prompt_tokens == alone.usage.prompt_tokens
    assert answer.usage.completion_tokens <= 3 * 20
    texts, ends = ["", "", ""], dict[int, str]()
    for chunk in client.chat.completions.create(model=STORIES, messages=STORY, n=3, max_tokens=20, stream=True):
        for choice in chunk.choices:
            assert choice.index not in ends
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    assert all(texts)
    assert sorted(ends) == [0, 1, 2]


@section
def lists_of_prompts(client: OpenAI) -> None:
    prompts = [ONCE, "One day", "The fox"]
    alone = [client.completions.create(model=STORIES, prompt=prompt, max_tokens=8, temperature=0) for prompt in prompts]
    together = client.completions.create(model=STORIES, prompt=prompts, max_tokens=8, temperature=0)
    assert [choice.text for choice in together.choices] == [answer.choices[0].text for answer in alone]
    assert together.usage is not None
    assert together.usage.prompt_tokens == sum(answer.usage.prompt_tokens for answer in alone if answer.usage)
    ids = [tokens_of(client, prompt) for prompt in prompts]
    texts = ["", "", ""]
    for chunk in client.completions.create(model=STORIES, prompt=ids, max_tokens=8, temperature=0, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [answer.choices[0].text for answer in alone]


@section
def completion_logprobs(client: OpenAI) -> None:
    answer = client.completions.create(model=STORIES, prompt=ONCE, max_tokens=6, temperature=0, logprobs=3)
    (choice,) = answer.choices
    told = choice.logprobs
    assert told is not None
    assert told.tokens is not None
    assert "".join(told.tokens) == choice.text
    assert told.token_logprobs is not None
    assert all(logprob <= 0 for logprob in told.token_logprobs)
    assert told.top_logprobs is not None
    for token, logprob, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert len(top) == 3
        assert max(top.values()) == top[token] == logprob  # greedy
    assert told.text_offset == [sum(map(len, told.tokens[:i])) for i in range(6)]
    streamed = list(client.completions.create(model=STORIES, prompt=ONCE, max_tokens=6, temperature=0, logprobs=3, stream=True))
    parts = [chunk.choices[0].logprobs for chunk in streamed if chunk.choices]
    assert [token for part in parts if part for token in part.tokens or []] == told.tokens


@section
def chat_logprobs(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=STORIES, messages=STORY, max_tokens=6, temperature=0, logprobs=True, top_logprobs=4
    )
    (choice,) = answer.choices
    assert choice.logprobs is not None
    told = choice.logprobs.content
    assert told is not None
    assert "".join(item.token for item in told) == choice.message.content
    for item in told:
        assert bytes(item.bytes or []).decode() == item.token
        assert len(item.top_logprobs) == 4
        assert item.top_logprobs[0].token == item.token
        assert item.top_logprobs[0].logprob == item.logprob <= 0
        assert sorted((top.logprob for top in item.top_logprobs), reverse=True) == [top.logprob for top in item.top_logprobs]
    tokens = []
    for chunk in client.chat.completions.create(
        model=STORIES, messages=STORY, max_tokens=6, temperature=0, logprobs=True, stream=True
    ):
        for choice_chunk in chunk.choices:
            content = choice_chunk.logprobs.content if choice_chunk.logprobs else None
            tokens += [item.token for item in content or []]
            assert all(item.top_logprobs == [] for item in content or [])
    assert tokens == [item.token for item in told]


@section
def echo(client: OpenAI) -> None:
    plain = client.completions.create(model=STORIES, prompt=ONCE, max_tokens=6, temperature=0)
    answer = client.completions.create(model=STORIES, prompt=ONCE, max_tokens=6, temperature=0, echo=True, logprobs=0)
    (choice,) = answer.choices
    assert choice.text == ONCE + plain.choices[0].text
    assert choice.logprobs is not None
    assert answer.usage is not None
    assert len(choice.logprobs.tokens or []) == answer.usage.total_tokens
    scored = client.completions.create(model=STORIES, prompt=ONCE, max_tokens=0, echo=True, logprobs=1)
    assert scored.choices[0].text == ONCE
    assert scored.choices[0].logprobs is not None
    foretold: Any = scored.choices[0].logprobs.token_logprobs
    assert foretold[0] is None
    assert all(logprob <= 0 for logprob in foretold[1:])
    assert scored.usage is not None
    assert scored.usage.completion_tokens == 0


@section
def grammars(client: OpenAI) -> None:
    extra: dict[str, object] = {"grammar": 'root ::= ("yes" | "no") " " [0-9]{3}'}
    text = client.completions.create(model=STORIES, prompt=ONCE, extra_body=extra).choices[0].text
    assert re.fullmatch("(yes|no) [0-9]{3}", text)
    streamed = client.chat.completions.create(model=STORIES, messages=STORY, extra_body=extra, stream=True)
    told = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert re.fullmatch("(yes|no) [0-9]{3}", told)


class Friend(BaseModel):
    name: str = Field(max_length=10)
    kind: Literal["cat", "dog"]
    age: int = Field(ge=0, le=20)


class Tale(BaseModel):
    hero: str = Field(max_length=10)
    good: bool
    age: int | None
    born: date
    friends: list[Friend] = Field(max_length=2)


@section
def json_objects(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=STORIES, messages=STORY, response_format={"type": "json_object"}, max_tokens=300, seed=1
    )
    text = answer.choices[0].message.content
    assert text is not None
    assert text.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


@section
def json_schemas(client: OpenAI) -> None:
    schema: dict[str, object] = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 10},
            "kind": {"enum": ["cat", "dog"]},
            "age": {"type": "integer", "minimum": 0, "maximum": 20},
        },
        "required": ["name", "kind", "age"],
        "additionalProperties": False,
    }
    for seed in range(3):
        answer = client.chat.completions.create(
            model=STORIES,
            messages=STORY,
            response_format={"type": "json_schema", "json_schema": {"name": "friend", "schema": schema, "strict": True}},
            seed=seed,
        )
        assert answer.choices[0].finish_reason == "stop"
        Friend.model_validate_json(answer.choices[0].message.content or "")


@section
def typed_parse(client: OpenAI) -> None:
    for parse in (client.chat.completions.parse, client.beta.chat.completions.parse):
        (choice,) = parse(model=STORIES, messages=STORY, response_format=Tale, seed=2).choices
        assert choice.finish_reason == "stop"
        assert isinstance(choice.message.parsed, Tale)
        assert choice.message.parsed == Tale.model_validate_json(choice.message.content or "")
    with client.chat.completions.stream(model=STORIES, messages=STORY, response_format=Tale, seed=2) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Tale)


@section
def errors(client: OpenAI) -> None:
    def refused(kind: type[openai.APIStatusError], **asked: Any) -> openai.APIStatusError:
        refusal: openai.APIStatusError | None = None
        try:
            client.completions.create(**{"model": STORIES, "prompt": ONCE, "max_tokens": 5, **asked})
        except kind as error:
            refusal = error
        assert refusal is not None, f"{asked} was not refused"
        assert refusal.request_id
        assert isinstance(refusal.body, dict)
        assert set(refusal.body) == {"message", "type", "param", "code"}
        return refusal

    unknown = refused(openai.NotFoundError, model="nope")
    assert (unknown.status_code, unknown.code, unknown.param) == (404, "model_not_found", "model")
    other = refused(openai.ConflictError, model=CALC)
    assert (other.status_code, other.code) == (409, "model_not_loaded")
    long = refused(openai.BadRequestError, prompt="word " * 5000)
    assert (long.code, long.param, long.type) == ("context_length_exceeded", "prompt", "invalid_request_error")
    for name, value in (("temperature", 3), ("top_p", "high"), ("stop", ["x"] * 17), ("logit_bias", {"a": 1})):
        bad = refused(openai.BadRequestError, **{name: value})
        assert (bad.code, bad.param, bad.type) == ("invalid_request", name, "invalid_request_error")
        refused(openai.BadRequestError, stream=True, **{name: value})
    big = refused(openai.APIStatusError, prompt="x" * (2 << 20))
    assert (big.status_code, big.code) == (413, "payload_too_large")


@section
def many_at_once(client: OpenAI) -> None:
    async def ask() -> None:
        asyncio.get_running_loop().slow_callback_duration = 60  # development mode tells of slow ones, and a busy machine has some
        async with AsyncOpenAI(base_url=client.base_url, api_key="none", max_retries=0, timeout=60) as many:
            answers = await asyncio.gather(
                *(many.completions.create(model=STORIES, prompt=ONCE, max_tokens=20, seed=seed) for seed in range(12))
            )
            assert all(answer.usage is not None and answer.usage.completion_tokens <= 20 for answer in answers)
            async with many.chat.completions.stream(model=STORIES, messages=STORY, stop=".") as stream:
                async for _ in stream:
                    pass
                assert (await stream.get_final_completion()).choices[0].message.content

    asyncio.run(ask())


@section
def leaving_early(client: OpenAI) -> None:
    extra: dict[str, object] = {"ignore_eos": True}
    for _ in range(10):
        with client.completions.create(model=STORIES, prompt=ONCE, stream=True, extra_body=extra) as stream:
            next(iter(stream))
    assert client.completions.create(model=STORIES, prompt=ONCE, max_tokens=5).choices[0].text


def switch(client: OpenAI, model_id: str) -> None:
    told: Any = client.post("/../switch", body={"model_id": model_id}, cast_to=object)
    op: Any = told
    while op["state"] in ("queued", "running"):
        op = client.get(f"/../ops/{told['op_id']}", cast_to=object)
    assert op["state"] == "succeeded", op


@section
def embeddings(client: OpenAI) -> None:
    """Last: it loads another model for a while."""

    def refused(model: str, value: str | list[str]) -> tuple[str | None, str | None]:
        try:
            client.embeddings.create(model=model, input=value)
        except openai.BadRequestError as refusal:
            return refusal.code, refusal.param
        raise AssertionError(f"{value!r:.80} was not refused")

    assert refused(STORIES, ONCE) == ("invalid_request", "model")
    switch(client, VECTORS)
    try:
        packed = client.embeddings.create(model=VECTORS, input=[ONCE, "the end"])
        assert (packed.object, packed.model) == ("list", VECTORS)
        assert [(item.object, item.index) for item in packed.data] == [("embedding", 0), ("embedding", 1)]
        assert packed.usage.total_tokens == packed.usage.prompt_tokens > 2
        plain = client.embeddings.create(model=VECTORS, input=ONCE, encoding_format="float").data[0].embedding
        assert all(abs(a - b) < 1e-4 for a, b in zip(packed.data[0].embedding, plain, strict=True))
        assert abs(math.hypot(*plain) - 1) < 1e-5
        ids = client.embeddings.create(model=VECTORS, input=tokens_of(client, ONCE), dimensions=16)
        beginning = math.hypot(*plain[:16])
        assert all(abs(a - b / beginning) < 1e-4 for a, b in zip(ids.data[0].embedding, plain[:16], strict=True))
        assert refused(VECTORS, ["a", "word " * 5000]) == ("context_length_exceeded", "input")
    finally:
        switch(client, STORIES)


class Weather(BaseModel):
    """What is the weather like?"""

    city: str = Field(max_length=10)
    unit: Literal["C", "F"]


class Add(BaseModel):
    terms: list[int] = Field(min_length=1, max_length=3)


@section
def tools(client: OpenAI) -> None:
    """The model knows of none: that they are required makes it call."""
    both = [openai.pydantic_function_tool(Weather), openai.pydantic_function_tool(Add, name="add")]
    asked: dict[str, Any] = {"messages": STORY, "tools": both, "tool_choice": "required", "seed": 1, "temperature": 1}
    asked |= {"model": CALLER, "parallel_tool_calls": False}

    refusal: openai.BadRequestError | None = None
    try:
        client.chat.completions.create(**{**asked, "model": STORIES})
    except openai.BadRequestError as error:
        refusal = error
    assert refusal is not None, "a template that shows no tools was given some"
    assert refusal.param == "tools"

    switch(client, CALLER)
    try:
        choice = client.chat.completions.create(**asked).choices[0]
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        (call,) = choice.message.tool_calls or []
        assert call.type == "function"
        call_id = call.id
        assert call_id.startswith("call_")
        name, arguments = call.function.name, call.function.arguments
        kinds: dict[str, type[BaseModel]] = {"Weather": Weather, "add": Add}
        made = kinds[name].model_validate_json(arguments)

        chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True) if chunk.choices]
        parts = [part for chunk in chunks for part in chunk.delta.tool_calls or []]
        assert {part.index for part in parts} == {0}
        assert [(part.type, part.function.name) for part in parts if part.id and part.function] == [("function", name)]
        assert "".join(part.function.arguments or "" for part in parts if part.function) == arguments
        assert chunks[-1].finish_reason == "tool_calls"

        (parsed,) = client.chat.completions.parse(**asked).choices[0].message.tool_calls or []
        assert parsed.function.parsed_arguments == made
        with client.chat.completions.stream(**asked) as stream:
            events = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
            (final,) = stream.get_final_completion().choices[0].message.tool_calls or []
        assert [event.name for event in events] == [name]
        assert final.function.parsed_arguments == made

        for wanted in ("Weather", "add"):
            named = {**asked, "tool_choice": {"type": "function", "function": {"name": wanted}}}
            (call,) = client.chat.completions.create(**named).choices[0].message.tool_calls or []
            assert call.type == "function"
            assert call.function.name == wanted

        result = {"role": "tool", "tool_call_id": call_id, "content": "42"}
        talk = [*STORY, choice.message, result]
        for free in ("auto", "none"):
            after = client.chat.completions.create(**{**asked, "messages": talk, "tool_choice": free, "max_tokens": 5})
            assert after.choices[0].message.content
            assert after.choices[0].message.tool_calls is None
    finally:
        switch(client, STORIES)


def main(url: str) -> int:
    n_failed = 0
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        for name, run in SECTIONS.items():
            problem = None
            try:
                run(client)
            except Exception:  # noqa: BLE001 - told to who runs this
                problem = traceback.format_exc()
                n_failed += 1
            print(json.dumps({"section": name, "problem": problem}), flush=True)
    return n_failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
