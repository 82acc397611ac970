"""What has one engine done so far? Counts: plain numbers that its thread keeps, and anybody reads."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import fields
from functools import reduce
from typing import Any

from modeld.engine.scheduler import Placed
from modeld.engine.sequence import Sequence
from modeld.metrics import TOKEN_S, WAIT_S, Buckets
from modeld.types import Distribution, EngineFigures


class Counts:
    """Written by the engine thread without a lock, a few times a step and not once a token; who reads may see a step less."""

    def __init__(self) -> None:
        self._n_decodes = 0
        self._n_aborted = 0
        self._n_rows_prompt = 0
        self._n_rows_generation = 0
        self._n_rows_filling = 0
        self._decode_s = 0.0
        self._busy_s = 0.0
        self._n_placed = 0
        self._n_reused_slots = 0
        self._n_reused_kept = 0
        self._token_s = Buckets(TOKEN_S)
        self._queue_s = Buckets(WAIT_S)
        self._woke_at = time.monotonic()
        self._sampled_at = 0.0  # when the sequences that generate got their last token

    # -- the engine thread

    def woke(self) -> None:
        """There is work."""
        self._woke_at = time.monotonic()

    def rested(self) -> None:
        """That work is done."""
        self._busy_s += time.monotonic() - self._woke_at

    def placed(self, placed: Placed) -> None:
        """A sequence got its slot, and what was computed of its prompt already."""
        sequence = placed.sequence
        self._queue_s.observe(time.monotonic() - sequence.submitted_at)
        self._n_placed += 1
        if placed.kept is not None:
            self._n_reused_kept += sequence.n_reused
        else:
            self._n_reused_slots += sequence.n_reused

    def aborted(self, seconds: float) -> None:
        self._n_aborted += 1
        self._decode_s += seconds

    def decoded(self, seconds: float, *, n_prompt: int, n_generation: int, n_filling: int = 0) -> None:
        """A decode of so many rows has ended."""
        self._n_decodes += 1
        self._decode_s += seconds
        self._n_rows_prompt += n_prompt
        self._n_rows_generation += n_generation
        self._n_rows_filling += n_filling

    def sampled(self, ready: Iterable[Sequence], running: Iterable[Sequence]) -> None:
        """The `ready` ones are about to get a token each.

        All that generate get their tokens in the same steps, so one look at the clock tells what each of them has waited. Those
        that sit out a step of prompts go on waiting; for who gets a first token in that step it counts, too, once.
        """
        now = time.monotonic()
        n_ready = sum(sequence.n_generated > 0 for sequence in ready)
        if n_ready:
            self._token_s.observe(now - self._sampled_at, n_ready)
        if n_ready or not any(sequence.n_generated for sequence in running):
            self._sampled_at = now

    # -- any thread

    def figures(self) -> EngineFigures:
        return EngineFigures(
            n_decodes=self._n_decodes,
            n_aborted=self._n_aborted,
            n_rows_prompt=self._n_rows_prompt,
            n_rows_generation=self._n_rows_generation,
            n_rows_filling=self._n_rows_filling,
            decode_s=self._decode_s,
            busy_s=self._busy_s,
            n_placed=self._n_placed,
            n_reused_slots=self._n_reused_slots,
            n_reused_kept=self._n_reused_kept,
            token_s=self._token_s.read(),
            queue_s=self._queue_s.read(),
        )


NONE = Counts().figures()


def total(figures: Iterable[EngineFigures]) -> EngineFigures:
    """Of several engines."""
    return reduce(_plus, figures, NONE)


def _plus(one: EngineFigures, other: EngineFigures) -> EngineFigures:
    sums: dict[str, Any] = {item.name: _sum(getattr(one, item.name), getattr(other, item.name)) for item in fields(one)}
    return EngineFigures(**sums)


def _sum(one: float | Distribution, other: float | Distribution) -> float | Distribution:
    if isinstance(one, Distribution) and isinstance(other, Distribution):
        return Distribution(one.bounds, tuple(map(int.__add__, one.counts, other.counts)), one.sum + other.sum)
    assert not isinstance(one, Distribution)
    assert not isinstance(other, Distribution)
    return one + other
