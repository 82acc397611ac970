"""Scheduler: lowest free slot, first come first served, rows by slot, prompts in pieces."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.engine.pace import FIRST_ROWS, MIN_ROWS, Pace
from modeld.engine.prefix import Reuse, common_length
from modeld.engine.scheduler import Move, Placed, Planned, Scheduler
from modeld.engine.sequence import Sequence
from modeld.types import Chunk, Finished, SamplingParams


def sequence(n_prompt: int, limit: int = 100) -> Sequence:
    """With a beginning of its own."""
    first = next(_first)
    return with_tokens([first + i for i in range(n_prompt)], limit)


def with_tokens(tokens: Iterable[int], limit: int = 100, *, cache_prompt: bool = True) -> Sequence:
    return Sequence(tokens, limit=limit, sampling=SamplingParams(), stop=(), seed=0, cache_prompt=cache_prompt)


_first = itertools.count(1000, 1000)


def place_all(scheduler: Scheduler) -> list[Placed]:
    placed = []
    while (one := scheduler.place()) is not None:
        if one.reuse is not None:
            one.sequence.n_cached = one.sequence.n_reused = one.reuse.n_tokens
        placed.append(one)
    return placed


def step(scheduler: Scheduler, budget: int = 1000) -> list[tuple[int, int, int, bool]]:
    """One decode: (slot, pos, rows, output) of each span; every sequence with logits takes a token."""
    place_all(scheduler)
    planned = scheduler.plan(budget)
    for done, _ in scheduler.commit(planned):
        done.accept(7, b"x")
    return [(item.span.slot, item.span.pos, len(item.span.tokens), item.span.output) for item in planned]


def test_a_prompt_longer_than_the_batch_goes_in_pieces_and_only_its_end_asks_for_logits() -> None:
    scheduler = Scheduler(n_slots=1, n_batch=8, n_outputs=16)
    scheduler.add(sequence(20))
    assert [step(scheduler)[0] for _ in range(4)] == [(0, 0, 8, False), (0, 8, 8, False), (0, 16, 4, True), (0, 20, 1, True)]


def test_generation_rows_come_first_and_prompts_share_the_rest_in_order_of_admission() -> None:
    scheduler = Scheduler(n_slots=4, n_batch=8, n_outputs=16)
    scheduler.add(sequence(3))
    step(scheduler)
    scheduler.add(sequence(6))
    scheduler.add(sequence(6))
    assert step(scheduler) == [(0, 3, 1, True), (1, 0, 6, True), (2, 0, 1, False)]
    assert step(scheduler) == [(0, 4, 1, True), (1, 6, 1, True), (2, 1, 5, True)]


def test_rows_are_sorted_by_slot_whatever_the_order_of_admission() -> None:
    scheduler = Scheduler(n_slots=3, n_batch=32, n_outputs=16)
    first, *others = [sequence(2) for _ in range(3)]
    for one in (first, *others):
        scheduler.add(one)
    step(scheduler)
    assert scheduler.remove(first) == 0
    scheduler.add(sequence(4))
    assert [slot for slot, *_ in step(scheduler)] == [0, 1, 2]


def test_the_lowest_free_slot_goes_to_who_waits_longest() -> None:
    scheduler = Scheduler(n_slots=2, n_batch=8, n_outputs=16)
    sequences = [sequence(1) for _ in range(4)]
    for one in sequences:
        scheduler.add(one)
    assert [one.sequence for one in place_all(scheduler)] == sequences[:2]
    assert scheduler.place() is None
    scheduler.remove(sequences[0])
    scheduler.remove(sequences[1])
    assert [one.sequence for one in place_all(scheduler)] == sequences[2:]
    assert scheduler.n_busy == 2


def test_a_sequence_that_waits_can_be_removed() -> None:
    scheduler = Scheduler(n_slots=1, n_batch=8, n_outputs=16)
    running, waiting = sequence(1), sequence(1)
    scheduler.add(running)
    scheduler.add(waiting)
    place_all(scheduler)
    assert waiting in scheduler
    assert scheduler.remove(waiting) is None
    assert waiting not in scheduler
    assert scheduler.sequences == [running]


def test_the_batch_never_has_more_rows_than_it_may() -> None:
    scheduler = Scheduler(n_slots=4, n_batch=5, n_outputs=16)
    for n in (9, 2, 7, 1):
        scheduler.add(sequence(n))
    for _ in range(12):
        assert sum(rows for _, _, rows, _ in step(scheduler)) <= 5


def test_the_youngest_is_the_one_admitted_last() -> None:
    scheduler = Scheduler(n_slots=3, n_batch=8, n_outputs=16)
    for _ in range(3):
        scheduler.add(sequence(1))
    place_all(scheduler)
    planned: list[Planned] = scheduler.plan(1000)
    assert scheduler.youngest(planned).sequence is scheduler.sequences[-1]


def test_usage_counts_every_sampled_token() -> None:
    one = sequence(5, limit=3)
    one.n_cached = 5
    assert one.accept(1, b"a") == Chunk("a")
    assert one.accept(2, b"b") == Chunk("b")
    last = one.accept(3, b"\xe2")
    text, end = last.text, last.end
    assert isinstance(end, Finished)
    assert (text, end.reason, end.usage.prompt_tokens, end.usage.completion_tokens) == ("\ufffd", "length", 5, 3)


# -- pace ---------------------------------------------------------------------------------------------------------------


def test_prompts_get_their_budget_while_streams_run_and_all_of_the_batch_without() -> None:
    scheduler = Scheduler(n_slots=2, n_batch=100, n_outputs=16)
    scheduler.add(sequence(3))
    step(scheduler)
    scheduler.add(sequence(90))
    assert step(scheduler, budget=30) == [(0, 3, 1, True), (1, 0, 30, False)]
    assert step(scheduler, budget=30)[1] == (1, 30, 30, False)
    alone = Scheduler(n_slots=2, n_batch=100, n_outputs=16)
    alone.add(sequence(90))
    assert step(alone, budget=30) == [(0, 0, 90, True)]


def test_many_short_prompts_are_read_at_once_whatever_the_few_that_stream() -> None:
    scheduler = Scheduler(n_slots=4, n_batch=100, n_outputs=16)
    scheduler.add(sequence(3))
    step(scheduler)
    for _ in range(2):
        scheduler.add(sequence(40))
    assert [rows for _, _, rows, _ in step(scheduler, budget=30)] == [40, 40], "the few sit it out"
    assert [rows for _, _, rows, _ in step(scheduler, budget=30)] == [1, 1, 1]
    few = Scheduler(n_slots=4, n_batch=100, n_outputs=16)
    few.add(sequence(3))
    step(few)
    for _ in range(2):
        few.add(sequence(5))
    assert [rows for _, _, rows, _ in step(few, budget=30)] == [1, 5, 5], "a short step is for all"
    again = Scheduler(n_slots=4, n_batch=100, n_outputs=16)
    again.add(sequence(3))
    step(again)
    for _ in range(2):
        again.add(sequence(60))
    assert [rows for _, _, rows, _ in step(again, budget=30)] == [1, 30], "more than one decode: in pieces"


# -- shared beginnings ----------------------------------------------------------------------------------------------------


def run_to_end(scheduler: Scheduler, one: Sequence, n_steps: int = 3) -> None:
    scheduler.add(one)
    for _ in range(n_steps):
        step(scheduler)
    scheduler.remove(one, keep_cells=True)


def test_a_conversation_that_goes_on_keeps_its_slot_and_its_cells() -> None:
    scheduler = Scheduler(n_slots=4, n_batch=100, n_outputs=16)
    first = sequence(40)
    run_to_end(scheduler, first)
    again = with_tokens([*first.tokens[: first.n_cached], 1, 2, 3])
    scheduler.add(again)
    (placed,) = place_all(scheduler)
    assert placed.slot == 0
    assert placed.reuse == Reuse(source=0, n_tokens=first.n_cached, n_held=first.n_cached)
    assert step(scheduler) == [(0, first.n_cached, 3, True)]
    assert again.usage.cached_tokens == first.n_cached


def test_the_last_prompt_token_is_always_computed() -> None:
    scheduler = Scheduler(n_slots=2, n_batch=100, n_outputs=16)
    first = sequence(40)
    run_to_end(scheduler, first)
    scheduler.add(with_tokens(first.tokens[:40]))
    assert step(scheduler) == [(0, 39, 1, True)]


def test_a_beginning_is_copied_from_a_busy_slot() -> None:
    scheduler = Scheduler(n_slots=3, n_batch=100, n_outputs=16)
    first = sequence(40)
    scheduler.add(first)
    step(scheduler)
    scheduler.add(with_tokens([*first.tokens[:30], 1, 2]))
    (placed,) = place_all(scheduler)
    assert placed.slot == 1
    assert placed.reuse == Reuse(source=0, n_tokens=30, n_held=40)


def test_requests_that_share_a_beginning_wait_for_the_one_that_computes_it() -> None:
    scheduler = Scheduler(n_slots=4, n_batch=64, n_outputs=16)
    shared = list(range(100))
    for i in range(3):
        scheduler.add(with_tokens([*shared, 500 + i]))
    scheduler.add(sequence(10))
    assert step(scheduler) == [(0, 0, 64, False)], "the unlike one found the batch full, the like ones wait"
    assert step(scheduler) == [(0, 64, 37, True), (1, 0, 10, True)]
    assert [row for row in step(scheduler) if row[0] > 1] == [(2, 100, 1, True), (3, 100, 1, True)]


def test_who_comes_again_together_takes_each_a_slot_that_holds_the_beginning() -> None:
    scheduler = Scheduler(n_slots=3, n_batch=1000, n_outputs=16)
    shared = list(range(100))
    first = [with_tokens([*shared, 500 + i]) for i in range(3)]
    for one in first:
        scheduler.add(one)
    for _ in range(3):
        step(scheduler)
    for one in first:
        scheduler.remove(one, keep_cells=True)
    for i in range(3):
        scheduler.add(with_tokens([*shared, 600 + i]))
    placed = place_all(scheduler)
    assert [(one.slot, one.reuse.source) for one in placed if one.reuse] == [(0, 0), (1, 1), (2, 2)], "nothing is copied"


def test_short_beginnings_are_not_worth_it_and_cache_prompt_false_takes_and_leaves_nothing() -> None:
    scheduler = Scheduler(n_slots=3, n_batch=100, n_outputs=16)
    first = sequence(40)
    run_to_end(scheduler, first)
    scheduler.add(with_tokens([*first.tokens[:10], 1, 2]))
    scheduler.add(with_tokens(list(first.tokens), cache_prompt=False))
    assert [one.reuse for one in place_all(scheduler)] == [None, None]


def test_a_long_source_is_not_copied_for_a_short_beginning() -> None:
    scheduler = Scheduler(n_slots=2, n_batch=10_000, n_outputs=16)
    first = sequence(5000)
    scheduler.add(first)
    step(scheduler)
    scheduler.add(with_tokens([*first.tokens[:20], 1, 2]))
    assert [one.reuse for one in place_all(scheduler)] == [None]


def test_an_empty_slot_is_taken_before_a_cached_one_and_the_oldest_cache_before_others() -> None:
    scheduler = Scheduler(n_slots=3, n_batch=100, n_outputs=16)
    caches = [sequence(30) for _ in range(3)]
    for one in caches:
        scheduler.add(one)
    step(scheduler)
    for one in (caches[1], caches[0], caches[2]):
        scheduler.remove(one, keep_cells=True)
    scheduler.add(sequence(5))
    assert place_all(scheduler)[0].slot == 1
    scheduler.forget_cache()
    scheduler.add(sequence(5))
    assert place_all(scheduler)[0].slot in (0, 2), "beside the one that runs"


def test_without_sharing_nothing_is_taken_over_and_nobody_waits() -> None:
    scheduler = Scheduler(n_slots=3, n_batch=100, n_outputs=16, shares=False)
    shared = list(range(60))
    for i in range(3):
        scheduler.add(with_tokens([*shared, 500 + i]))
    assert [one.reuse for one in place_all(scheduler)] == [None] * 3
    scheduler.remove(scheduler.sequences[1])
    assert scheduler.next_move() is None


# -- holes ------------------------------------------------------------------------------------------------------------------


def test_the_outermost_sequence_moves_into_a_hole_until_there_is_none() -> None:
    scheduler = Scheduler(n_slots=8, n_batch=100, n_outputs=16)
    sequences = [sequence(2) for _ in range(8)]
    for one in sequences:
        scheduler.add(one)
    step(scheduler)
    for i in (1, 3, 4, 6):
        scheduler.remove(sequences[i])
    assert scheduler.next_move() == Move(source=7, target=1, rescue=None)
    assert scheduler.next_move() == Move(source=5, target=3, rescue=None)
    assert scheduler.next_move() is None
    assert sorted(scheduler.slot_of(sequences[i]) for i in (0, 2, 5, 7)) == [0, 1, 2, 3]


def test_what_a_hole_has_cached_goes_to_another_free_slot() -> None:
    scheduler = Scheduler(n_slots=4, n_batch=100, n_outputs=16)
    sequences = [sequence(30) for _ in range(3)]
    for one in sequences:
        scheduler.add(one)
    step(scheduler)
    scheduler.remove(sequences[1], keep_cells=True)
    assert scheduler.next_move() == Move(source=2, target=1, rescue=3)
    scheduler.add(with_tokens([*sequences[1].tokens[:30], 1]))
    (placed,) = place_all(scheduler)
    assert placed.reuse is not None
    assert (placed.slot, placed.reuse.source, placed.reuse.n_tokens) == (3, 3, 30)


@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.integers(0, 3), max_size=60))
def test_common_length_is_what_a_loop_counts(a: list[int], b: list[int]) -> None:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    assert common_length(a, b) == n
    assert common_length(a, [*a, *b]) == len(a)


def test_the_pace_keeps_a_step_near_its_target() -> None:
    pace = Pace(0.250)
    assert pace.budget() == FIRST_ROWS
    for _ in range(10):
        pace.measured(3, 0, 0.030)
        pace.measured(3, 100, 0.030 + 100 * 0.001)
    assert 200 <= pace.budget() <= 240
    for _ in range(20):
        pace.measured(3, 100, 0.030 + 100 * 0.1)
    assert pace.budget() == MIN_ROWS


def test_the_pace_foretells_a_step_from_what_it_measured() -> None:
    pace = Pace(0.250)
    assert pace.expected_s(3, 100) == 0.0, "nothing is known"
    pace.measured(3, 0, 0.030)
    pace.measured(3, 100, 0.130)
    assert pace.expected_s(3, 0) == pytest.approx(0.030)
    assert pace.expected_s(3, 200) == pytest.approx(0.230)
    assert pace.expected_s(0, 200) == pytest.approx(0.200)
