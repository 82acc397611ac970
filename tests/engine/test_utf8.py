"""Classes of characters as graphs of bytes, held against Python's own UTF-8."""

from __future__ import annotations

import random

import pytest

from modeld.engine.utf8 import Speller, Spelling

EDGES = (0, 0x7F, 0x80, 0x7FF, 0x800, 0xFFF, 0x1000, 0xD7FF, 0xD800, 0xDFFF, 0xE000, 0xFFFF, 0x10000, 0x3FFFF, 0xFFFFF, 0x10FFFF)


def spells(spelling: Spelling, text: bytes) -> bool:
    """Whether the bytes are exactly one character of the class."""
    at: Spelling | None = spelling
    for byte in text:
        if at is None:
            return False
        follows = [follow for low, high, follow in at.arcs if low <= byte <= high]
        assert len(follows) <= 1, "arcs overlap"
        if not follows:
            return False
        at = follows[0]
    return at is None


def near(chance: random.Random) -> int:
    return min(0x10FFFF, max(0, chance.choice(EDGES) + chance.randint(-70, 70)))


@pytest.mark.parametrize("seed", range(60))
def test_a_class_spells_its_characters_and_no_other(seed):
    chance = random.Random(seed)
    speller = Speller()
    points = sorted(near(chance) for _ in range(2 * chance.randint(1, 6)))
    ranges = list(zip(points[::2], points[1::2], strict=True))
    ranges = [(low, high) for i, (low, high) in enumerate(ranges) if not i or low > ranges[i - 1][1] + 1]
    spelling = speller.spelled(ranges)
    probes = {near(chance) for _ in range(3000)} | {edge + by for pair in ranges for edge in pair for by in (-1, 0, 1)}
    for code in probes - {-1, 0x110000}:
        if not 0xD800 <= code <= 0xDFFF:
            assert spells(spelling, chr(code).encode()) == any(low <= code <= high for low, high in ranges), hex(code)


def test_only_well_formed_utf8_is_taken():
    anything = Speller().spelled([(0, 0x10FFFF)])
    chance = random.Random(1)
    samples = [
        bytes(chance.choices((0, 0x41, 0x80, 0x9F, 0xA0, 0xBF, 0xC0, 0xC2, 0xE0, 0xED, 0xF0, 0xF4, 0xF5, 0xFF), k=n))
        for n in (1, 2, 3, 4)
        for _ in range(3000)
    ]
    for text in samples:
        try:
            is_one = len(text.decode()) == 1
        except UnicodeDecodeError:
            is_one = False
        assert spells(anything, text) == is_one, text


def test_a_class_without_characters_has_no_way():
    speller = Speller()
    assert speller.spelled([]).arcs == ()
    assert speller.spelled([(0xD800, 0xDFFF)]).arcs == ()


def test_what_classes_have_in_common_is_one_object():
    speller = Speller()
    assert speller.spelled([(0x4E00, 0x9FFF)]) is speller.spelled([(0x4E00, 0x9FFF)])
    assert len(list(speller.nodes())) < 20
