"""Whose turn is it? Clients take turns for slots and decodes, none is starved, and a share of the queue is one's own."""

from __future__ import annotations

import itertools
from collections import Counter
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.engine.engine import Engine
from modeld.engine.packing import Packing
from modeld.engine.runner import EngineRunner
from modeld.engine.scheduler import Scheduler
from modeld.engine.sequence import Sequence
from modeld.engine.stream import TokenStream
from modeld.engine.vectors import EmbeddingJob
from modeld.errors import ContextLengthExceeded, InvalidRequest, ModelSwitched, QueueFull, RequestCancelled
from modeld.llm.runtime import LlamaRuntime
from modeld.types import Chunk, EmbedRequest, Failed, Finished, GenerateRequest, ModelSpec, SamplingParams, Share
from tests.daemon import MODELS
from tests.engine.test_engine import SPEC, WARMUP, collect, open_fake, request
from tests.fake_runtime import FakeRuntime, load_fake

_token = itertools.count(1000)


def sequence(client: str) -> Sequence:
    """With a beginning of its own."""
    return Sequence([next(_token)], limit=100, sampling=SamplingParams(), stop=(), seed=0, client=client)


def scheduler_of(n_slots: int, *clients: str) -> Scheduler:
    """What the clients ask for waits, in that order."""
    scheduler = Scheduler(n_slots, n_batch=64, n_outputs=64)
    for client in clients:
        scheduler.add(sequence(client))
    return scheduler


def served(scheduler: Scheduler) -> str:
    """The clients in the order in which they get slots; whoever got one first ends first."""
    order = []
    while scheduler.has_work:
        while (placed := scheduler.place()) is not None:
            order.append(placed.sequence.client)
        scheduler.remove(scheduler.running[0])
    return "".join(order)


# -- slots


def test_one_clients_requests_are_served_in_their_order() -> None:
    scheduler = scheduler_of(2, *"aaaaa")
    waiting, order = scheduler.sequences, []
    while scheduler.has_work:
        while (placed := scheduler.place()) is not None:
            order.append(placed.sequence)
        scheduler.remove(scheduler.running[0])
    assert order == waiting


def test_clients_take_turns_however_many_requests_one_has() -> None:
    assert served(scheduler_of(1, *"aaaaa", *"bb", "c")) == "abcabaaa"


def test_who_has_fewer_slots_goes_first() -> None:
    scheduler = scheduler_of(4, *"aaaaaa")
    while scheduler.place() is not None:
        pass
    for client in "bbb":
        scheduler.add(sequence(client))
    got = []
    for _ in range(2):
        scheduler.remove(scheduler.running[0])
        placed = scheduler.place()
        assert placed is not None
        got.append(placed.sequence.client)
    assert got == ["b", "b"], "with 3 slots and with 2 it had more than the other"


def test_a_client_whose_prompt_is_being_computed_by_another_holds_nobody_up() -> None:
    scheduler = Scheduler(3, n_batch=64, n_outputs=64)
    shared = range(500, 540)
    same = [Sequence(shared, limit=9, sampling=SamplingParams(), stop=(), seed=0, client=client) for client in "ab"]
    other = sequence("c")
    for one in (*same, other):
        scheduler.add(one)
    first, second = scheduler.place(), scheduler.place()
    assert first is not None
    assert second is not None
    assert (first.sequence, second.sequence) == (same[0], other)
    assert scheduler.place() is None, "it takes over what the first one computes"
    scheduler.commit(scheduler.plan(1000))
    third = scheduler.place()
    assert third is not None
    assert third.sequence is same[1]
    assert third.reuse is not None
    assert third.reuse.n_tokens == 39


@given(st.integers(1, 3), st.lists(st.sampled_from(["a", "b", "c", "d", "end", "leave"]), max_size=60))
def test_nobody_without_a_slot_is_passed_over_twice_by_the_same_client(n_slots: int, steps: list[str]) -> None:
    scheduler = Scheduler(n_slots, n_batch=64, n_outputs=64)
    asked: dict[str, list[Sequence]] = {}
    passed_over: dict[str, Counter[str]] = {}  # while it waits and has no slot: who got one meanwhile
    for step in [*steps, *["end"] * (len(steps) + n_slots)]:
        if step == "leave":
            if waiting := [one for one in scheduler.sequences if one not in scheduler.running]:
                assert scheduler.remove(waiting[-1]) is None
                asked[waiting[-1].client].remove(waiting[-1])
        elif step != "end":
            asked.setdefault(step, []).append(sequence(step))
            scheduler.add(asked[step][-1])
        elif scheduler.running:
            scheduler.remove(scheduler.running[0])
        while (placed := scheduler.place()) is not None:
            client = placed.sequence.client
            assert placed.sequence is asked[client].pop(0), "a client's own requests keep their order"
            holders = {one.client for one in scheduler.running}
            for other in (name for name, queue in asked.items() if queue and name not in holders):
                passed_over.setdefault(other, Counter())[client] += 1
                assert passed_over[other][client] <= 1
            passed_over.pop(client, None)
        for name in [name for name in passed_over if not asked[name]]:
            del passed_over[name]
    assert not scheduler.has_work
    assert not any(asked.values())


# -- decodes of embeddings


def test_a_client_with_many_requests_for_embeddings_does_not_delay_anothers() -> None:
    packing = Packing(n_slots=2, n_batch=8, n_cells=100)
    many = [EmbeddingJob("m", [[0] * 4] * 2, lambda job: None, "a") for _ in range(10)]
    one = EmbeddingJob("m", [[0] * 4] * 2, lambda job: None, "b")
    for job in (*many, one):
        packing.add(job)
    order = []
    while packed := packing.plan():
        order += [item.input.job.client for item in packed]
        packing.commit(packed)
    assert "".join(order) == "abab" + 18 * "a"


def test_an_input_that_does_not_fit_beside_others_keeps_its_clients_turn() -> None:
    packing = Packing(n_slots=4, n_batch=8, n_cells=100)
    for client, n_tokens in (("a", 5), ("b", 5), ("a", 2), ("c", 1)):
        packing.add(EmbeddingJob("m", [[0] * n_tokens], lambda job: None, client))
    decodes = []
    while packed := packing.plan():
        decodes.append([(item.input.job.client, len(item.span.tokens)) for item in packed])
        packing.commit(packed)
    assert decodes == [[("a", 5), ("c", 1), ("a", 2)], [("b", 5)]]


# -- shares of the queue


def of(client: str, max_queued: int = 2, *, n: int = 1) -> GenerateRequest:
    return request(share=Share(client, max_queued), n=n)


def test_a_share_of_the_queue_is_one_clients_alone() -> None:
    runtime = FakeRuntime(n_slots=2)
    runner = open_fake(runtime, queue_size=8)
    runtime.gate.shut()
    try:
        taken = [runner.submit(of("a")) for _ in range(4)]
        runtime.gate.wait_arrived(WARMUP + 1)
        with pytest.raises(QueueFull, match=r"2 requests of this client wait.*its share of the queue is 2 \(limits.max_queued\)"):
            runner.submit(of("a"))
        taken += [runner.submit(of("b")) for _ in range(2)]
        with pytest.raises(QueueFull):
            runner.submit(of("b"))
        taken.append(runner.submit(of("c", 0)))
        runtime.gate.open()
        assert all(isinstance(collect(stream)[1], Finished) for stream in taken)
        runtime.gate.shut()
        taken = [runner.submit(of("a")) for _ in range(4)]  # all of it is there again
        with pytest.raises(QueueFull):
            runner.submit(of("a"))
    finally:
        runtime.gate.open()
        runner.close(ModelSwitched("the test is over"))
        runner.free()


def test_a_place_comes_back_from_who_left_while_waiting_and_from_who_was_refused() -> None:
    runtime = FakeRuntime(n_slots=1)
    runner = open_fake(runtime, queue_size=8)
    runtime.gate.shut()
    try:
        running, leaving = runner.submit(of("a", 1)), runner.submit(of("a", 1))
        runtime.gate.wait_arrived(WARMUP + 1)
        leaving.cancel()
        runtime.gate.let(1)
        end = collect(leaving)[1]
        assert isinstance(end, Failed)
        assert isinstance(end.error, RequestCancelled)
        for _ in range(3):
            with pytest.raises(ContextLengthExceeded):
                runner.submit(GenerateRequest("r", ("x" * 1000,), share=Share("a", 1)))
        waiting = runner.submit(of("a", 1))
        with pytest.raises(QueueFull):
            runner.submit(of("a", 1))
        runtime.gate.open()
        assert isinstance(collect(running)[1], Finished)
        assert isinstance(collect(waiting)[1], Finished)
    finally:
        runtime.gate.open()
        runner.close(ModelSwitched("the test is over"))
        runner.free()


def test_free_slots_belong_to_no_share() -> None:
    runtime = FakeRuntime(n_slots=4)
    runner = open_fake(runtime, queue_size=8)
    try:
        assert isinstance(collect_all(runner.submit(of("a", 1, n=5)), 5)[-1], Finished)
        with pytest.raises(InvalidRequest, match=r"6 answers .* takes 5 at most \(4 slots, the others wait\)"):
            runner.submit(of("a", 1, n=6))
    finally:
        runner.close(ModelSwitched("the test is over"))
        runner.free()


def collect_all(stream: TokenStream, n: int) -> list[Finished | Failed]:
    ends: list[Finished | Failed] = []
    while len(ends) < n:
        chunks = stream.take(10)
        assert chunks is not None, "no chunk within 10 s"
        ends += [chunk.end for chunk in chunks if chunk.end is not None]
    return ends


def test_requests_for_embeddings_have_shares_too() -> None:
    runtime = FakeRuntime(n_slots=1)
    runtime.pooling = "mean"
    runner = EngineRunner(SPEC, partial(load_fake, runtime), lambda step, pct: True, lambda error: None, queue_size=8)
    runtime.gate.shut()
    try:
        jobs = [runner.embed(EmbedRequest("r", ("hi",), share=Share("a", 1))) for _ in range(2)]
        with pytest.raises(QueueFull, match="its share of the queue is 1"):
            runner.embed(EmbedRequest("r", ("hi",), share=Share("a", 1)))
        jobs.append(runner.embed(EmbedRequest("r", ("hi",), share=Share("b", 1))))
        runtime.gate.open()
        assert all(job.result(10) for job in jobs)
        assert runner.embed(EmbedRequest("r", ("hi",), share=Share("a", 1))).result(10)
    finally:
        runtime.gate.open()
        runner.close(ModelSwitched("the test is over"))
        runner.free()


# -- the real library


def test_one_request_is_not_behind_a_hundred_of_another_client(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    end = Engine._end

    def watched(self: Engine, sequence: Sequence, last: Chunk) -> None:
        ended.append(sequence.client)
        end(self, sequence, last)

    monkeypatch.setattr(Engine, "_end", watched)
    spec = ModelSpec(id="demo-stories", path=MODELS / "demo-stories.gguf", n_ctx=1024, n_parallel=4, n_threads=1)
    runner = EngineRunner(spec, LlamaRuntime, lambda step, pct: True, lambda error: None, queue_size=128)

    def asked(client: str, prompt: str) -> GenerateRequest:
        greedy = SamplingParams(temperature=0, ignore_eos=True)
        return GenerateRequest("r", (prompt,), max_tokens=16, sampling=greedy, share=Share(client))

    try:
        many = [runner.submit(asked("a", f"{i} little dogs")) for i in range(100)]
        n_before = len(ended)
        one = runner.submit(asked("b", "One day"))
        assert isinstance(collect(one)[1], Finished)
        assert ended.index("b") - n_before < 20, "those that ran, and those that run beside it"
        assert all(isinstance(collect(stream)[1], Finished) for stream in many)
    finally:
        runner.close(ModelSwitched("the test is over"))
        runner.free()
