"""How many rows make a step of generation cheapest? Sometimes more than there are streams: by measurement. Pure."""

from __future__ import annotations

_TRIES = 2  # of each width before the two are compared
_WEIGHT = 0.3  # of the newest measurement
_WORTH_IT = 0.97  # of the time without filling
_REVIEW = 200  # steps after which the one that was not taken is tried again


class Width:
    """Learns what steps of so many rows cost. Engine thread only.

    ggml's matrix kernels for repacked weights compute rows in blocks (four, in repack.cpp's gemm for the CPU); what is left over
    goes one by one, each at the price of reading all weights. So 15 rows may take 1.6 times as long as 16 (q05, Q4_0, 2 cores:
    75 and 47 ms); other types and devices know no such steps.
    """

    def __init__(self, block: int) -> None:
        """`block`: rows that are computed together; 1: never fill."""
        self._block = block
        self._seconds: dict[int, float] = {}  # by width
        self._n_tries: dict[int, int] = {}
        self._n_chosen: dict[int, int] = {}  # since the last review, by number of streams

    def choose(self, n: int, n_room: int) -> int:
        """Rows for a step of `n` streams: n, or up to `n_room` more."""
        filled = -(-n // self._block) * self._block
        # Each row that is left over costs what one row alone does: to fill up with as many as there are can not pay.
        if filled - n >= n or filled - n > n_room or filled == n:
            return n
        for width in (n, filled):
            if self._n_tries.get(width, 0) < _TRIES:
                return width
        better, other = (filled, n) if self._seconds[filled] < _WORTH_IT * self._seconds[n] else (n, filled)
        self._n_chosen[n] = self._n_chosen.get(n, 0) + 1
        if self._n_chosen[n] % _REVIEW == 0:
            return other
        return better

    def measured(self, width: int, seconds: float) -> None:
        """A step of `width` rows, one for each slot, took so long."""
        old = self._seconds.get(width, seconds)
        self._seconds[width] = (1 - _WEIGHT) * old + _WEIGHT * seconds
        self._n_tries[width] = self._n_tries.get(width, 0) + 1
