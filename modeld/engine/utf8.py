"""Which bytes spell a class of characters? spelled(): ranges of code points -> a graph of bytes, as UTF-8 (RFC 3629). Pure.

A piece of the vocabulary may end inside a character. Following a class byte by byte needs no care for that, and takes well
formed UTF-8 only: no surrogates, nothing overlong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Arc = tuple[int, int, "Spelling | None"]  # first byte, last byte, what follows; None: the character is whole

_SURROGATES = (0xD800, 0xDFFF)
_LENGTHS = ((0x0, 0x7F, 0, 0x00), (0x80, 0x7FF, 1, 0xC0), (0x800, 0xFFFF, 2, 0xE0), (0x10000, 0x10FFFF, 3, 0xF0))


class Spelling:
    """What may follow at one point within a character. Equal ones of one Speller are the same object."""

    __slots__ = ("arcs",)

    def __init__(self, arcs: tuple[Arc, ...]) -> None:
        self.arcs = arcs


class Speller:
    """Makes the graphs of one grammar's classes; they share what they have in common."""

    def __init__(self) -> None:
        self._known: dict[tuple[Arc, ...], Spelling] = {}

    def spelled(self, ranges: Sequence[tuple[int, int]]) -> Spelling:
        """The graph of a class; it has no arcs where the class has no character of Unicode."""
        arcs: list[Arc] = []
        for first, last, n_more, lead in _LENGTHS:
            inside = [
                (max(low, first), min(high, last)) for low, high in _without_surrogates(ranges) if low <= last and high >= first
            ]
            arcs += [(lead | a, lead | b, follow) for a, b, follow in self._arcs(inside, n_more)]
        return self._node(arcs)

    def _arcs(self, ranges: Sequence[tuple[int, int]], n_more: int) -> list[Arc]:
        """Arcs over the topmost bits of values that have 6 * n_more bits below them."""
        if not n_more:
            return [(low, high, None) for low, high in ranges]
        shift = 6 * n_more
        below = (1 << shift) - 1
        parts: dict[int, list[tuple[int, int]]] = {}  # topmost bits -> ranges of what is below
        arcs: list[Arc] = []
        for low, high in ranges:
            first, last = low >> shift, high >> shift
            if first == last:
                parts.setdefault(first, []).append((low & below, high & below))
                continue
            if low & below:
                parts.setdefault(first, []).append((low & below, below))
                first += 1
            if high & below != below:
                parts.setdefault(last, []).append((0, high & below))
                last -= 1
            if first <= last:
                arcs.append((first, last, self._continued([(0, below)], n_more - 1)))
        arcs += [(top, top, self._continued(inside, n_more - 1)) for top, inside in parts.items()]
        return arcs

    def _continued(self, ranges: Sequence[tuple[int, int]], n_more: int) -> Spelling:
        return self._node([(0x80 | a, 0x80 | b, follow) for a, b, follow in self._arcs(ranges, n_more)])

    def _node(self, arcs: list[Arc]) -> Spelling:
        arcs.sort(key=lambda arc: arc[0])
        joined: list[Arc] = []
        for low, high, follow in arcs:
            if joined and joined[-1][2] is follow and joined[-1][1] + 1 == low:
                joined[-1] = joined[-1][0], high, follow
            else:
                joined.append((low, high, follow))
        key = tuple(joined)
        return self._known.setdefault(key, Spelling(key))

    def nodes(self) -> Iterator[Spelling]:
        """All that were made."""
        yield from self._known.values()


def _without_surrogates(ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    first, last = _SURROGATES
    for low, high in ranges:
        if low < first:
            yield low, min(high, first - 1)
        if high > last:
            yield max(low, last + 1), high
