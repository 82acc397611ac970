"""How long does a step take, and how many prompt rows may go beside running streams? By measurement. Pure."""

from __future__ import annotations

MIN_ROWS = 16  # a prompt always goes on
FIRST_ROWS = 64  # before anything was measured
_WEIGHT = 0.3  # of the newest measurement


class Pace:
    """Learns what a step of streams costs and what a prompt row adds. Engine thread only."""

    def __init__(self, target_s: float) -> None:
        """`target_s`: what a step may take while streams run and a prompt is read."""
        self._target_s = target_s
        self._streams_s: float | None = None  # a step with generation rows alone
        self._row_s: float | None = None  # one prompt row

    def budget(self) -> int:
        """Prompt rows for the next step, at least MIN_ROWS."""
        if self._row_s is None:
            return FIRST_ROWS
        left_s = self._target_s - (self._streams_s or 0.0)
        return max(MIN_ROWS, int(left_s / self._row_s))

    def expected_s(self, n_generating: int, n_prompt: int) -> float:
        """What a decode of so many rows takes; rows of a kind that was never measured count as none."""
        return (self._streams_s or 0.0) * bool(n_generating) + (self._row_s or 0.0) * n_prompt

    def measured(self, n_generating: int, n_prompt: int, seconds: float) -> None:
        """A decode of so many rows took `seconds`."""
        if not n_prompt:
            self._streams_s = _blend(self._streams_s, seconds)
        elif n_prompt >= MIN_ROWS:  # with fewer, the noise of the rest is larger than what they cost
            beside = (self._streams_s or 0.0) if n_generating else 0.0
            self._row_s = _blend(self._row_s, max(seconds - beside, seconds / 10) / n_prompt)


def _blend(old: float | None, new: float) -> float:
    return new if old is None else (1 - _WEIGHT) * old + _WEIGHT * new
