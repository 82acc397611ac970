"""Scheduler: lowest free slot, first come first served, rows by slot, prompts in pieces."""

from __future__ import annotations

from modeld.engine.scheduler import Planned, Scheduler
from modeld.engine.sequence import Sequence
from modeld.types import SamplingParams


def sequence(n_prompt: int, limit: int = 100) -> Sequence:
    return Sequence(list(range(n_prompt)), limit=limit, sampling=SamplingParams(), stop=(), seed=0)


def step(scheduler: Scheduler) -> list[tuple[int, int, int, bool]]:
    """One decode: (slot, pos, rows, output) of each span; every sequence with logits takes a token."""
    scheduler.place()
    planned = scheduler.plan()
    for done, _ in scheduler.commit(planned):
        done.accept(7, b"x")
    return [(item.span.slot, item.span.pos, len(item.span.tokens), item.span.output) for item in planned]


def test_a_prompt_longer_than_the_batch_goes_in_pieces_and_only_its_end_asks_for_logits() -> None:
    scheduler = Scheduler(n_slots=1, n_batch=8)
    scheduler.add(sequence(20))
    assert [step(scheduler)[0] for _ in range(4)] == [(0, 0, 8, False), (0, 8, 8, False), (0, 16, 4, True), (0, 20, 1, True)]


def test_generation_rows_come_first_and_prompts_share_the_rest_in_order_of_admission() -> None:
    scheduler = Scheduler(n_slots=4, n_batch=8)
    scheduler.add(sequence(3))
    step(scheduler)
    scheduler.add(sequence(6))
    scheduler.add(sequence(6))
    assert step(scheduler) == [(0, 3, 1, True), (1, 0, 6, True), (2, 0, 1, False)]
    assert step(scheduler) == [(0, 4, 1, True), (1, 6, 1, True), (2, 1, 5, True)]


def test_rows_are_sorted_by_slot_whatever_the_order_of_admission() -> None:
    scheduler = Scheduler(n_slots=3, n_batch=32)
    first, *others = [sequence(2) for _ in range(3)]
    for one in (first, *others):
        scheduler.add(one)
    step(scheduler)
    assert scheduler.remove(first) == 0
    scheduler.add(sequence(4))
    assert [slot for slot, *_ in step(scheduler)] == [0, 1, 2]


def test_the_lowest_free_slot_goes_to_who_waits_longest() -> None:
    scheduler = Scheduler(n_slots=2, n_batch=8)
    sequences = [sequence(1) for _ in range(4)]
    for one in sequences:
        scheduler.add(one)
    assert scheduler.place() == sequences[:2]
    assert scheduler.place() == []
    scheduler.remove(sequences[0])
    scheduler.remove(sequences[1])
    assert scheduler.place() == sequences[2:]
    assert scheduler.n_busy == 2


def test_a_sequence_that_waits_can_be_removed() -> None:
    scheduler = Scheduler(n_slots=1, n_batch=8)
    running, waiting = sequence(1), sequence(1)
    scheduler.add(running)
    scheduler.add(waiting)
    scheduler.place()
    assert waiting in scheduler
    assert scheduler.remove(waiting) is None
    assert waiting not in scheduler
    assert scheduler.sequences == [running]


def test_the_batch_never_has_more_rows_than_it_may() -> None:
    scheduler = Scheduler(n_slots=4, n_batch=5)
    for n in (9, 2, 7, 1):
        scheduler.add(sequence(n))
    for _ in range(12):
        assert sum(rows for _, _, rows, _ in step(scheduler)) <= 5


def test_the_youngest_is_the_one_admitted_last() -> None:
    scheduler = Scheduler(n_slots=3, n_batch=8)
    for _ in range(3):
        scheduler.add(sequence(1))
    scheduler.place()
    planned: list[Planned] = scheduler.plan()
    assert scheduler.youngest(planned).sequence is scheduler.sequences[-1]


def test_usage_counts_every_sampled_token() -> None:
    one = sequence(5, limit=3)
    one.n_prompt_done = 5
    assert one.accept(1, b"a") == ("a", None)
    assert one.accept(2, b"b") == ("b", None)
    text, end = one.accept(3, b"\xe2")
    assert end is not None
    assert (text, end.reason, end.usage.prompt_tokens, end.usage.completion_tokens) == ("\ufffd", "length", 5, 3)
