"""Two models loaded at once on the real libllama: they take turns, and each says what it says alone."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest

from modeld.engine.runner import EngineRunner
from modeld.errors import ModelSwitched, RequestCancelled
from modeld.llm import pool
from modeld.llm.adapter import Span
from modeld.llm.context import AbortFlag
from modeld.llm.runtime import LlamaRuntime
from modeld.types import EmbedRequest, Failed, Finished, GenerateRequest, ModelSpec
from tests.daemon import MODELS
from tests.engine.test_engine import collect
from tests.engine.test_engine_on_libllama import GREEDY, STORIES

CALC = ModelSpec(id="demo-calc", path=MODELS / "demo-calc.gguf", n_ctx=2048, n_parallel=4)
N_TOKENS = 200
DEADLINE_S = 10


class HeldTurn:
    """While the test has the turn, engines that want to decode wait for it; `wait_for(n)` until n of them do."""

    def __init__(self, asked: threading.Semaphore) -> None:
        self._asked = asked

    def wait_for(self, n: int) -> None:
        for _ in range(n):
            assert self._asked.acquire(timeout=DEADLINE_S)
        with pool._turns._lock:  # under which they asked, and joined those that wait
            assert len(pool._turns._waiting) == n

    def __enter__(self) -> HeldTurn:
        while self._asked.acquire(blocking=False):
            pass
        assert pool._turns.take(self, lambda: False)
        return self

    def __exit__(self, *_: object) -> None:
        pool._turns.pass_on()


@pytest.fixture
def turn(monkeypatch: pytest.MonkeyPatch) -> HeldTurn:
    asked = threading.Semaphore(0)
    is_set = AbortFlag.is_set

    def watched(self: AbortFlag) -> bool:
        asked.release()
        return is_set(self)

    monkeypatch.setattr(AbortFlag, "is_set", watched)
    return HeldTurn(asked)


@pytest.fixture
def open_model() -> Iterator[Callable[[ModelSpec], EngineRunner]]:
    opened: list[EngineRunner] = []

    def open_one(spec: ModelSpec) -> EngineRunner:
        opened.append(EngineRunner(spec, LlamaRuntime, lambda step, pct: True, lambda error: None, queue_size=8))
        return opened[-1]

    yield open_one
    for runner in opened:
        runner.close(ModelSwitched("the test is over"))
        runner.free()


def request(prompt: str, n_tokens: int = N_TOKENS) -> GenerateRequest:
    return GenerateRequest("r", (prompt,), max_tokens=n_tokens, sampling=GREEDY, cache_prompt=False)


def test_each_says_what_it_says_alone_while_they_alternate(
    turn: HeldTurn, open_model: Callable[[ModelSpec], EngineRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[LlamaRuntime] = []
    decode = LlamaRuntime.decode

    def watched(self: LlamaRuntime, spans: Sequence[Span]) -> None:
        decode(self, spans)
        decoded.append(self)

    monkeypatch.setattr(LlamaRuntime, "decode", watched)
    runners = [open_model(STORIES), open_model(CALC), open_model(replace(STORIES, id="another", n_threads=1))]
    asked = [request("Once upon a time"), request("12+30="), request("The little dog")]
    alone = [collect(runner.submit(each)) for runner, each in zip(runners, asked, strict=True)]
    for _ in range(3):
        decoded.clear()
        with turn:
            streams = [runner.submit(each) for runner, each in zip(runners, asked, strict=True)]
            turn.wait_for(len(runners))
        together = [collect(stream) for stream in streams]
        assert together == alone
        n_changes = sum(a is not b for a, b in itertools.pairwise(decoded))
        assert n_changes > N_TOKENS, "they took turns"


def test_a_model_that_waits_for_its_turn_can_be_closed(turn: HeldTurn, open_model: Callable[[ModelSpec], EngineRunner]) -> None:
    staying, leaving = open_model(STORIES), open_model(CALC)
    with turn:
        streams = [staying.submit(request("Once upon a time")), leaving.submit(request("1+1="))]
        turn.wait_for(2)
        leaving.close(ModelSwitched("switched"))
        end = collect(streams[1])[1]
        assert isinstance(end, Failed)
        assert isinstance(end.error, ModelSwitched)
    assert isinstance(collect(streams[0])[1], Finished)


def test_an_embedding_that_waits_for_its_turn_can_be_closed(
    turn: HeldTurn, open_model: Callable[[ModelSpec], EngineRunner]
) -> None:
    leaving = open_model(replace(CALC, pooling="mean"))
    with turn:
        job = leaving.embed(EmbedRequest("r", ("1+1=",)))
        turn.wait_for(1)
        leaving.close(ModelSwitched("switched"))
        with pytest.raises(ModelSwitched):
            job.result(DEADLINE_S)


def test_a_client_that_leaves_does_not_wait_for_the_other_model(
    turn: HeldTurn, open_model: Callable[[ModelSpec], EngineRunner]
) -> None:
    runner = open_model(STORIES)
    with turn:
        stream = runner.submit(request("Once upon a time"))
        turn.wait_for(1)
        stream.cancel()
        end = collect(stream)[1]
        assert isinstance(end, Failed)
        assert isinstance(end.error, RequestCancelled)
        assert runner.load().slots_busy == 0
    assert isinstance(collect(runner.submit(request("The little dog")))[1], Finished)


def test_a_model_is_freed_while_another_computes(open_model: Callable[[ModelSpec], EngineRunner]) -> None:
    staying = open_model(STORIES)
    alone = collect(staying.submit(request("Once upon a time", 400)))
    for _ in range(3):
        stream = staying.submit(request("Once upon a time", 400))
        assert stream.take(DEADLINE_S, None) is not None
        coming = EngineRunner(CALC, LlamaRuntime, lambda step, pct: True, lambda error: None, queue_size=8)
        collect(coming.submit(request("12+30=", 20)))
        coming.close(ModelSwitched("over"))
        coming.free()
        assert collect(stream)[1] == alone[1]
