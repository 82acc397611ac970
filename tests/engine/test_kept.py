"""Cells over a switch: what is kept within the budget, and how an engine on the fake runtime leaves and finds it."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from modeld.engine.kept import CellStore, Held, KeptCells, worth_keeping
from modeld.engine.prefix import MIN_SHARED
from modeld.engine.runner import EngineRunner
from modeld.errors import ModelSwitched
from modeld.llm.adapter import DecodeFatal, StateNotSaved
from modeld.types import Failed, Finished, GenerateRequest
from tests.engine.test_engine import SPEC, WARMUP, collect, request
from tests.fake_runtime import FakeRuntime, load_fake

KB = 1024


def tokens(*parts: tuple[int, int]) -> array[int]:
    """(first, n) of each run of consecutive tokens."""
    return array("i", [first + i for first, n in parts for i in range(n)])


def add(cells: KeptCells, new: array[int], n_bytes: int = KB) -> None:
    """State and tokens take n_bytes together."""
    n_state = n_bytes - 4 * len(new)
    cells.add(new, n_state, lambda: bytearray(n_state))


def kept(cells: KeptCells, wanted: array[int], n_most: int = 1000) -> int:
    found = cells.find(wanted, n_most)
    return found.n_tokens if found is not None else 0


# -- the store


def test_the_longest_beginning_is_found_and_short_ones_are_not_worth_it() -> None:
    cells = CellStore(9 * KB).of("m")
    add(cells, tokens((0, 40)))
    add(cells, tokens((0, 20), (100, 30)))
    assert kept(cells, tokens((0, 60))) == 40
    assert kept(cells, tokens((0, 20), (100, 10))) == 30
    assert kept(cells, tokens((0, MIN_SHARED), (500, 9))) == MIN_SHARED
    assert kept(cells, tokens((0, MIN_SHARED - 1), (500, 9))) == 0
    assert kept(cells, tokens((0, 60)), n_most=39) == 0, "it would not fit into the slot"


def test_each_model_finds_its_own() -> None:
    store = CellStore(9 * KB)
    add(store.of(("file", 1)), tokens((0, 40)))
    assert kept(store.of(("file", 2)), tokens((0, 40))) == 0
    assert kept(store.of(("file", 1)), tokens((0, 40))) == 40


def test_the_least_recently_used_of_all_models_goes_first() -> None:
    store = CellStore(3 * KB)
    a, b = store.of("a"), store.of("b")
    for cells, first in ((a, 0), (b, 0), (a, 100)):
        add(cells, tokens((first, 40)))
    assert store.n_bytes == 3 * KB
    found = a.find(tokens((0, 40)), 1000)
    assert found is not None
    a.use(found.kept)
    add(b, tokens((200, 40)))
    assert (kept(a, tokens((0, 40))), kept(b, tokens((0, 40)))) == (40, 0)
    add(b, tokens((300, 40)), 2 * KB)
    assert (kept(a, tokens((0, 40))), kept(a, tokens((100, 40))), kept(b, tokens((200, 40)))) == (0, 0, 40)
    assert store.n_bytes == 3 * KB


def test_what_is_larger_than_the_budget_is_not_saved_and_drives_nothing_out() -> None:
    store = CellStore(2 * KB)
    cells = store.of("m")
    add(cells, tokens((0, 40)))

    def never() -> bytearray:
        raise AssertionError("saved")

    cells.add(tokens((100, 40)), 2 * KB, never)
    assert kept(cells, tokens((0, 40))) == 40


def test_room_is_made_before_more_is_taken() -> None:
    store = CellStore(2 * KB)
    cells = store.of("m")
    add(cells, tokens((0, 40)), 2 * KB)
    seen: list[int] = []

    def save() -> bytearray:
        seen.append(store.n_bytes)
        return bytearray(KB)

    cells.add(tokens((100, 40)), KB, save)
    assert seen == [0]


def test_a_sequence_takes_the_place_of_what_it_goes_on_from() -> None:
    store = CellStore(9 * KB)
    cells = store.of("m")
    add(cells, tokens((0, 40)))
    add(cells, tokens((0, 60)))
    assert store.n_bytes == KB
    assert kept(cells, tokens((0, 60))) == 60
    add(cells, tokens((0, 50)))
    add(cells, tokens((0, 60)))
    assert store.n_bytes == KB
    assert kept(cells, tokens((0, 60))) == 60


def test_a_save_that_fails_leaves_the_accounts_right() -> None:
    store = CellStore(9 * KB)

    def fail() -> bytearray:
        raise StateNotSaved("no")

    with pytest.raises(StateNotSaved):
        store.of("m").add(tokens((0, 40)), KB, fail)
    assert store.n_bytes == 0


def test_what_was_dropped_meanwhile_may_be_used_and_dropped_again() -> None:
    store = CellStore(9 * KB)
    cells = store.of("m")
    add(cells, tokens((0, 40)))
    found = cells.find(tokens((0, 40)), 1000)
    assert found is not None
    cells.drop(found.kept)
    cells.drop(found.kept)
    cells.use(found.kept)
    assert store.n_bytes == 0
    assert kept(cells, tokens((0, 40))) == 0


def test_many_threads_keep_the_accounts_right() -> None:
    store = CellStore(20 * KB)

    def work(key: int) -> None:
        cells = store.of(key)
        for i in range(200):
            add(cells, tokens((i * 50, 40)), KB + key)
            found = cells.find(tokens((i * 50, 40)), 1000)
            if found is not None:
                (cells.drop if i % 3 else cells.use)(found.kept)

    threads = [threading.Thread(target=work, args=(key,)) for key in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.n_bytes == sum(each.n_bytes for each in store._kept)
    assert store.n_bytes <= 20 * KB


# -- what to save


def test_the_most_recently_used_are_saved_as_far_as_the_budget_goes() -> None:
    held = [Held(slot, tokens((slot * 100, 40))) for slot in range(4)]
    sizes = {0: 500, 1: 5000, 2: 500, 3: 500}
    chosen = worth_keeping(held, sizes.__getitem__, 2 * (500 + 160) + 10)
    assert [(each.slot, n_bytes) for each, n_bytes in chosen] == [(0, 500), (2, 500)], "the second is too large, the next fits"


def test_short_empty_and_covered_slots_are_not_saved() -> None:
    held = [
        Held(0, tokens((0, 60))),
        Held(1, tokens((0, 40))),  # the first goes on from it
        Held(2, tokens((100, MIN_SHARED - 1))),
        Held(3, ()),
        Held(4, tokens((200, 40))),  # its cells are not there
        Held(5, tokens((0, 40), (300, 20))),
    ]
    chosen = worth_keeping(held, lambda slot: 0 if slot == 4 else 100, 10 * KB)
    assert [each.slot for each, _ in chosen] == [0, 5]


# -- the engine


class Switches:
    """One model that comes and goes, on a new fake runtime each time."""

    def __init__(self, budget_bytes: int = 100 * KB) -> None:
        self.store = CellStore(budget_bytes)
        self.runner: EngineRunner | None = None
        self.runtime = FakeRuntime()

    def open(self, change: Callable[[FakeRuntime], None] = lambda runtime: None) -> EngineRunner:
        self.runtime = FakeRuntime(n_ctx_slot=200, n_batch=256)
        change(self.runtime)
        load = partial(load_fake, self.runtime)
        self.runner = EngineRunner(
            SPEC, load, lambda step, pct: True, lambda error: None, queue_size=2, kept=self.store.of(SPEC.id)
        )
        return self.runner

    def close(self) -> None:
        if self.runner is not None:
            self.runtime.gate.open()
            self.runner.close(ModelSwitched("over"))
            self.runner.keep_cells()
            self.runner.free()
            self.runner = None


@pytest.fixture
def switches() -> Iterator[Switches]:
    switches = Switches()
    yield switches
    switches.close()


def n_cached(runner: EngineRunner, asked: GenerateRequest) -> int:
    end = collect(runner.submit(asked))[1]
    assert isinstance(end, Finished)
    return end.usage.cached_tokens


TEXT = "once upon a time there was a girl"


def test_a_conversation_goes_on_after_a_switch_there_and_back(switches: Switches) -> None:
    collect(switches.open().submit(request(TEXT)))
    switches.close()
    runner = switches.open()
    longer = TEXT + "abcdefghij and a dog"
    assert n_cached(runner, request(longer)) == len(TEXT + "abcdefghij")
    assert switches.runtime.restored == [0]
    assert [len(span.tokens) for span in switches.runtime.batches[WARMUP]] == [len(" and a dog")]
    switches.close()
    assert n_cached(switches.open(), request(longer + "abcdefghij!")) == len(longer + "abcdefghij"), "each time"


def test_a_beginning_is_cut_to_what_is_shared_and_stays_kept_for_others(switches: Switches) -> None:
    collect(switches.open().submit(request(TEXT)))
    switches.close()
    runner = switches.open()
    assert n_cached(runner, request(TEXT[:20] + "???", max_tokens=1)) == 20
    assert n_cached(runner, request(TEXT[:25] + "!!!", max_tokens=1)) == 20, "5 more than a slot holds are not worth it"
    assert switches.runtime.restored == [0]
    assert n_cached(runner, request(TEXT + "abcdefghij!!!", max_tokens=1)) == len(TEXT + "abcdefghij")
    assert len(switches.runtime.restored) == 2


def test_what_runs_when_the_model_leaves_is_kept_too(switches: Switches) -> None:
    runner = switches.open()
    switches.runtime.gate.shut()
    stream = runner.submit(request(TEXT))
    switches.runtime.gate.wait_arrived(WARMUP + 1)
    switches.runtime.gate.let(3)
    switches.runtime.gate.wait_arrived(WARMUP + 4)  # prompt, a, b; c is decoded when the model leaves
    switches.close()
    assert isinstance(collect(stream)[1], Failed)
    assert n_cached(switches.open(), request(TEXT + "abcd")) == len(TEXT + "ab")


def test_without_cache_prompt_nothing_is_kept_and_nothing_is_found(switches: Switches) -> None:
    runner = switches.open()
    collect(runner.submit(request(TEXT, cache_prompt=False)))
    switches.runtime.gate.shut()
    runner.submit(request(TEXT, cache_prompt=False))
    switches.runtime.gate.wait_arrived(switches.runtime.gate.n_arrived + 1)
    switches.close()
    assert switches.store.n_bytes == 0
    collect(switches.open().submit(request(TEXT)))
    switches.close()
    assert n_cached(switches.open(), request(TEXT, cache_prompt=False)) == 0


def test_a_refused_restore_is_computed_again_and_dropped(switches: Switches, caplog: pytest.LogCaptureFixture) -> None:
    collect(switches.open().submit(request(TEXT)))
    switches.close()
    refused: list[int] = []

    def refuse(runtime: FakeRuntime) -> None:
        def restore(slot: int, state: bytearray) -> bool:
            refused.append(slot)
            return False

        runtime.restore = restore  # type: ignore[method-assign]

    runner = switches.open(refuse)
    assert n_cached(runner, request(TEXT)) == 0
    assert collect(runner.submit(request("hi")))[0] == "abcdefghij"
    assert refused == [0]
    assert "refused" in caplog.text
    assert switches.store.n_bytes == 0


def test_a_slot_that_gives_its_cells_away_first_is_not_restored_into(switches: Switches) -> None:
    """Both come together: the first takes what slot 0 holds, and the second is given slot 0, all others being busy."""
    collect(switches.open().submit(request(TEXT)))
    switches.close()
    runner, runtime = switches.open(), switches.runtime
    other = "a" * 60
    collect(runner.submit(request(other, max_tokens=1)))
    runtime.gate.shut()
    n_before = runtime.gate.n_arrived
    running = [runner.submit(request(start * 30, max_tokens=50)) for start in "cd"]
    runtime.gate.wait_arrived(n_before + 1)
    first, second = runner.submit(request(other[:20] + "?")), runner.submit(request(TEXT))
    runtime.gate.open()
    ends = [collect(stream)[1] for stream in (first, second, *running)]
    assert [end.usage.cached_tokens for end in ends if isinstance(end, Finished)][:2] == [20, 0]
    assert runtime.restored == []
    assert kept(switches.store.of(SPEC.id), array("i", list(TEXT.encode()))) == len(TEXT), "for the next one"


def test_a_memory_that_cannot_be_cut_keeps_nothing_and_is_given_nothing(switches: Switches) -> None:
    collect(switches.open().submit(request(TEXT)))
    switches.close()
    n_bytes = switches.store.n_bytes

    def uncut(runtime: FakeRuntime) -> None:
        runtime.can_cut = False

    runner = switches.open(uncut)
    assert n_cached(runner, request(TEXT + "abc")) == 0
    switches.close()
    assert switches.store.n_bytes == n_bytes


def test_what_a_dead_engine_left_is_not_trusted(switches: Switches) -> None:
    runner = switches.open()
    collect(runner.submit(request(TEXT)))
    switches.runtime.fail_next = DecodeFatal("over")
    collect(runner.submit(request(TEXT)))
    switches.close()
    assert switches.store.n_bytes == 0


def test_cells_that_were_to_be_copied_are_not_kept(switches: Switches) -> None:
    """A copy is done with the next decode; here the model leaves before that."""
    runner = switches.open()
    collect(runner.submit(request(TEXT)))
    collect(runner.submit(request("x" * 20)))
    engine = runner._engine
    engine._cells._runtime.copy(0, 2)  # type: ignore[union-attr]
    engine._scheduler._slots[2].cached = array("i", list((TEXT + "abcdefghij, and on").encode()))  # type: ignore[union-attr]
    switches.close()
    assert [bytes(list(each.tokens[:4])) for each in switches.store._kept] == [b"once", b"xxxx"]
    assert all(ord(",") not in each.tokens for each in switches.store._kept)


def test_nothing_is_kept_without_a_budget() -> None:
    switches = Switches(0)
    collect(switches.open().submit(request(TEXT)))
    switches.close()
    assert switches.store.n_bytes == 0


def test_a_save_that_fails_is_told_and_costs_no_more(switches: Switches, caplog: pytest.LogCaptureFixture) -> None:
    def broken(runtime: FakeRuntime) -> None:
        def save(slot: int) -> bytearray:
            raise StateNotSaved("no memory")

        runtime.save = save  # type: ignore[method-assign]

    collect(switches.open(broken).submit(request(TEXT)))
    switches.close()
    assert "no memory" in caplog.text
    assert switches.runtime.closed
