"""Tools on their way through the engine: into the prompt, as a grammar where a call is required, and markers as text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from modeld.engine.runner import EngineRunner
from modeld.errors import InvalidRequest, ModelSwitched
from modeld.llm.runtime import LlamaRuntime
from modeld.types import ChatMessage, Finished, GenerateRequest, ModelSpec, SamplingParams, Tool, ToolCallFormat, ToolUse
from tests import tool_templates as texts
from tests.fake_runtime import MARKER, FakeRuntime, load_fake

STORIES = Path(__file__).resolve().parents[2] / "models" / "demo-stories.gguf"
TOOL = Tool("f", "", {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
ASK = (ChatMessage("user", "Tell me a story."),)


def answer(runner: EngineRunner, tools: ToolUse | None, **more: object) -> str:
    stream = runner.submit(GenerateRequest("r", (ASK,), tools=tools, **more))  # type: ignore[arg-type]
    text = ""
    while True:
        for chunk in stream.take(60) or pytest.fail("nothing came within 60 s"):
            text += chunk.text
            if chunk.end is not None:
                assert isinstance(chunk.end, Finished)
                return text


@pytest.fixture
def open_fake() -> Iterator[Callable[[FakeRuntime], EngineRunner]]:
    runners: list[EngineRunner] = []

    def open_fake(runtime: FakeRuntime) -> EngineRunner:
        spec = ModelSpec(id="fake", path=Path("/fake.gguf"))
        load = partial(load_fake, runtime)
        runners.append(EngineRunner(spec, load, lambda step, pct: True, lambda error: None, queue_size=2))
        return runners[-1]

    yield open_fake
    for runner in runners:
        runner.close(ModelSwitched("the test is over"))
        runner.free()


def test_tools_reach_the_prompt_and_markers_the_text(open_fake: Callable[[FakeRuntime], EngineRunner]) -> None:
    runtime = FakeRuntime(script=(MARKER, *b"[]"), tool_call_format=ToolCallFormat.MISTRAL)
    runner = open_fake(runtime)
    assert answer(runner, None) == "[]"
    assert answer(runner, ToolUse((TOOL,))) == "[TOOL_CALLS][]"
    prompt = b"".join(bytes(list(span.tokens)) for batch in runtime.batches for span in batch if len(span.tokens) > 1)
    assert prompt.count(b"fTell me") == 1


def test_a_call_that_is_required_is_a_grammar(open_fake: Callable[[FakeRuntime], EngineRunner]) -> None:
    runtime = FakeRuntime(tool_call_format=ToolCallFormat.HERMES)
    runner = open_fake(runtime)
    with pytest.raises(InvalidRequest, match="/properties/a/multipleOf"):
        answer(runner, ToolUse((Tool("f", "", {"properties": {"a": {"multipleOf": 3}}}),), required=True))
    answer(runner, ToolUse((Tool("f", "", {"properties": {"a": {"multipleOf": 3}}}),)))  # nothing is asked of a grammar
    assert runner.load().queued == 0


def test_a_format_that_is_not_known_is_refused(open_fake: Callable[[FakeRuntime], EngineRunner]) -> None:
    for required in (False, True):
        with pytest.raises(InvalidRequest, match="no format that is known here \\(hermes, llama3") as caught:
            answer(open_fake(FakeRuntime()), ToolUse((TOOL,), required=required))
        assert caught.value.param == "tools"
    # Where the template shows no tools, rendering says that instead; the fake's shows all.
    assert answer(open_fake(FakeRuntime(shows_tools=False)), ToolUse((TOOL,), required=True)) == "abcdefghij"


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storyteller, whose control token <|im_start|> is [TOOL_CALLS]: as long, so that nothing moves."""
    path = tmp_path_factory.mktemp("marked") / "marked.gguf"
    path.write_bytes(STORIES.read_bytes().replace(b"<|im_start|>", b"[TOOL_CALLS]"))
    return path


@pytest.mark.parametrize(
    ("template", "begins"), [(texts.MISTRAL, '[TOOL_CALLS][{"name": "f", "arguments": {'), (texts.MISTRAL_ARGS, "[TOOL_CALLS]f[")]
)
def test_a_marker_that_is_a_control_token_comes_as_text(marked: Path, template: str, begins: str) -> None:
    spec = ModelSpec(id="marked", path=marked, n_ctx=1024, n_parallel=1, chat_template=template)
    runner = EngineRunner(spec, LlamaRuntime, lambda step, pct: True, lambda error: None, queue_size=1)
    try:
        (marker,) = runner.tokenize("[TOOL_CALLS]", add_special=False, parse_special=True)
        often = SamplingParams(logit_bias=((marker, 100.0),), seed=1)
        assert answer(runner, None, sampling=often, max_tokens=5) == ""
        assert answer(runner, ToolUse((TOOL,)), sampling=often, max_tokens=5) == "[TOOL_CALLS]" * 5
        required = answer(runner, ToolUse((TOOL,), required=True, parallel=False), sampling=often)
        assert required.startswith(begins)
        assert required.count("[TOOL_CALLS]") == 1
    finally:
        runner.close(ModelSwitched("the test is over"))
        runner.free()
