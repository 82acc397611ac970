"""Which inputs share a decode: full batches, turns between requests, inputs that are longer than a batch."""

from __future__ import annotations

from modeld.engine.packing import Packed, Packing
from modeld.engine.vectors import EmbeddingJob


def job(*lengths: int) -> EmbeddingJob:
    return EmbeddingJob("m", [[0] * n for n in lengths], lambda job: None)


def shape(packed: list[Packed], names: dict[EmbeddingJob, str]) -> list[tuple[str, int, int]]:
    """(request, which input, rows) of each span, whose slots must rise."""
    slots = [item.span.slot for item in packed]
    assert slots == sorted(set(slots))
    return [(names[item.input.job], item.input.index, len(item.span.tokens)) for item in packed]


def run(packing: Packing, names: dict[EmbeddingJob, str]) -> list[list[tuple[str, int, int]]]:
    """All decodes until nothing waits; their completed inputs are checked to be right."""
    decodes: list[list[tuple[str, int, int]]] = []
    while packed := packing.plan():
        assert len(decodes) < 1000
        decodes.append(shape(packed, names))
        for item in packing.commit(packed):
            assert item.input.n_done == len(item.input.tokens)
    assert not packing.has_work
    return decodes


def packing_of(
    n_slots: int = 4, n_batch: int = 8, n_cells: int = 100, **jobs: EmbeddingJob
) -> tuple[Packing, dict[EmbeddingJob, str]]:
    packing = Packing(n_slots, n_batch, n_cells)
    for item in jobs.values():
        packing.add(item)
    return packing, {item: name for name, item in jobs.items()}


def test_inputs_fill_a_decode_up_to_its_rows() -> None:
    assert run(*packing_of(a=job(3, 3, 2, 4))) == [[("a", 0, 3), ("a", 1, 3), ("a", 2, 2)], [("a", 3, 4)]]


def test_inputs_fill_a_decode_up_to_its_slots() -> None:
    assert run(*packing_of(n_slots=2, a=job(1, 1, 1))) == [[("a", 0, 1), ("a", 1, 1)], [("a", 2, 1)]]


def test_requests_take_turns_so_a_short_one_is_not_behind_a_long_one() -> None:
    decodes = run(*packing_of(a=job(*[4] * 10), b=job(4)))
    assert decodes[0] == [("a", 0, 4), ("b", 0, 4)]


def test_a_request_that_comes_later_gets_its_turn_in_the_next_decode() -> None:
    packing, names = packing_of(a=job(*[4] * 10))
    packing.commit(packing.plan())
    late = job(4)
    packing.add(late)
    assert ("late", 0, 4) in shape(packing.plan(), {**names, late: "late"})


def test_an_input_that_does_not_fit_beside_others_keeps_its_turn() -> None:
    decodes = run(*packing_of(a=job(2, 2, 2, 2, 2, 2), b=job(8)))
    assert decodes[0] == [("a", 0, 2), ("a", 1, 2), ("a", 2, 2), ("a", 3, 2)], "what fits goes in, past the one that does not"
    assert decodes[1] == [("b", 0, 8)]


def test_an_input_longer_than_a_batch_takes_turns_with_all_others() -> None:
    decodes = run(*packing_of(long=job(20), a=job(*[8] * 4)))
    assert decodes == [
        [("a", 0, 8)],
        [("long", 0, 8)],
        [("a", 1, 8)],
        [("long", 0, 8)],
        [("a", 2, 8)],
        [("long", 0, 4)],
        [("a", 3, 8)],
    ]


def test_the_pieces_of_a_long_input_follow_each_other_in_one_slot_and_only_the_last_is_its_end() -> None:
    packing, _ = packing_of(long=job(20))
    spans = []
    while packed := packing.plan():
        packing.commit(packed)
        spans += [item.span for item in packed]
    assert [(span.slot, span.pos, len(span.tokens), span.output) for span in spans] == [
        (3, 0, 8, False),
        (3, 8, 8, False),
        (3, 16, 4, True),
    ]


def test_long_inputs_come_one_after_another() -> None:
    decodes = run(*packing_of(a=job(16, 16), b=job(16)))
    assert [decode[0][:2] for decode in decodes] == [("a", 0), ("a", 0), ("b", 0), ("b", 0), ("a", 1), ("a", 1)]


def test_beside_a_long_input_only_so_much_is_decoded_as_the_cells_hold() -> None:
    decodes = run(*packing_of(n_cells=22, long=job(20), a=job(*[1] * 8)))
    assert [[n for _, _, n in decode] for decode in decodes] == [[1, 1, 1], [8], [1, 1], [8], [1, 1], [4], [1]]


def test_with_one_slot_others_wait_for_the_long_input() -> None:
    assert [d[0][0] for d in run(*packing_of(n_slots=1, long=job(20), a=job(1, 1)))] == ["long", "long", "long", "a", "a"]


def test_with_cells_for_nobody_else_others_wait_for_the_long_input() -> None:
    decodes = run(*packing_of(n_cells=20, long=job(20), a=job(8, 1), b=job(20)))
    assert [d[0][0] for d in decodes] == ["a", "long", "long", "long", "a", "b", "b", "b"]


def test_a_request_that_is_removed_leaves_nothing() -> None:
    gone, stays = job(1, 1, 1), job(1)
    packing, names = packing_of(gone=gone, stays=stays)
    assert packing.remove(gone) == []
    assert run(packing, names) == [[("stays", 0, 1)]]


def test_a_removed_long_input_names_the_slot_whose_cells_are_dropped() -> None:
    gone = job(20)
    packing, _ = packing_of(gone=gone)
    packing.commit(packing.plan())
    assert packing.remove(gone) == [3]
    assert not packing.has_work
