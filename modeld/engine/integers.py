"""Which digits spell the integers of a range? integers_between(): two bounds -> the body of a GBNF rule. Pure."""

from __future__ import annotations

from collections.abc import Iterator

LARGEST = 10**16 - 1  # more digits make a model spin


def integers_between(low: int, high: int) -> str:
    """The integers from low to high, both within -LARGEST..LARGEST and low <= high, without leading zeros and -0."""
    alternates = []
    if low < 0:
        alternates += [f'"-" {digits}' for digits in _between(max(1, -high), -low)]
    if high >= 0:
        alternates += _between(max(0, low), high)
    return " | ".join(alternates)


def _between(low: int, high: int) -> Iterator[str]:
    """Alternates for 0 <= low..high, by the number of digits."""
    for n in range(len(str(low)), len(str(high)) + 1):
        first, last = 10 ** (n - 1) if n > 1 else 0, 10**n - 1
        yield from _same_length(str(max(low, first)), str(min(high, last)))


def _same_length(low: str, high: str) -> Iterator[str]:
    """Alternates for digits from low to high, which have as many."""
    rest = len(low) - 1
    if not rest:
        yield _digit(low, high)
    elif low[1:] == "0" * rest and high[1:] == "9" * rest:
        yield f"{_digit(low[0], high[0])} [0-9]{{{rest}}}"
    elif low[0] == high[0]:
        for tail in _same_length(low[1:], high[1:]):
            yield f"{_digit(low[0], low[0])} {tail}"
    else:
        middle_from, middle_to = int(low[0]), int(high[0])
        if low[1:] != "0" * rest:
            yield from _same_length(low, low[0] + "9" * rest)
            middle_from += 1
        if high[1:] != "9" * rest:
            middle_to -= 1
        if middle_from <= middle_to:
            yield f"{_digit(str(middle_from), str(middle_to))} [0-9]{{{rest}}}"
        if middle_to < int(high[0]):
            yield from _same_length(high[0] + "0" * rest, high)


def _digit(low: str, high: str) -> str:
    return f"[{low}]" if low == high else f"[{low}-{high}]"
