"""How is the progress of an op shown? As a bar that is drawn over itself on a terminal, and as lines elsewhere.

The clock of the bar ticks between events, too: SIGALRM draws it anew. Each drawing is one write of a whole line, so
that one which comes into another does no harm.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import FrameType

from modeld.cli.eventstream import Event
from modeld.cli.record import Record
from modeld.cli.terminal import Screen, cut, seconds

TICK_S = 0.25
LINE_EVERY_S = 1.0  # of one step, where lines are written; each step's begin and end has one in any case
_DONE_PCT = 100
_BAR_COLUMNS = 24
_SHORTEST_BAR = 5

# What a step or phase is, in words that fit beside its name.
WORDS = {
    "check": "comparing the SHA-256",
    "probe": "trying the file",
    "prefetch": "reading ahead",
    "divert": "letting balancers look away",
    "drain": "letting answers end",
    "unload": "unloading",
    "mmap": "loading",
    "warmup": "first decode",
    "rollback": "bringing the old model back",
}


@dataclass(frozen=True, slots=True)
class View:
    """What is known of an op that runs: `target` a model's id, `step` as the API calls it, `note` what is said beside it."""

    target: str
    step: str = ""
    pct: int | None = None
    note: str = ""

    def after(self, event: Event) -> View:
        """What an event of this op changes; the same view where it changes nothing."""
        data = event.record
        if event.name == "model_switch_started":
            return replace(self, step="started", pct=None, note=data.text("strategy"))
        if event.name == "model_loading_progress":
            return replace(self, step=data.text("step"), pct=_percent(data), note="")
        if event.name == "model_switch_phase":
            note = ""
            if (n_running := data.integer("n_running")) is not None:
                note = f"{n_running} still running"
            if to := data.text("to"):
                note = f"to {to}"
            return replace(self, step=data.text("phase"), pct=_percent(data), note=note)
        return self


def bar_line(view: View, elapsed_s: float, width: int, blocks: tuple[str, str]) -> str:
    """One line of at most `width` columns: target, step, bar, percent, elapsed. What does not fit goes, the bar first."""
    clock = f"{elapsed_s:.1f} s" if elapsed_s < 60 else seconds(elapsed_s)
    words = WORDS.get(view.step)
    pct = "" if view.pct is None else f"{view.pct:3d} %"
    short = "  ".join(part for part in (view.target, view.step, pct, clock) if part)
    named = f"{words} ({view.step})" if words else view.step
    parts = [view.target, f"{named}{f': {view.note}' if view.note else ''}".ljust(len("first decode (warmup)"))]
    text = "  ".join([*parts, *([pct] if pct else []), clock])
    if view.pct is not None and width - len(text) - 4 >= _SHORTEST_BAR:
        columns = min(_BAR_COLUMNS, width - len(text) - 4)
        full = round(columns * view.pct / _DONE_PCT)
        return "  ".join([*parts, f"[{blocks[0] * full}{blocks[1] * (columns - full)}]", pct, clock])
    return text if len(text) <= width else cut(short, width)


def plain_line(view: View, elapsed_s: float) -> str:
    pct = "" if view.pct is None else f" {view.pct} %"
    note = f" ({view.note})" if view.note else ""
    return f"{elapsed_s:7.2f} s  {view.target}: {view.step}{pct}{note}"


class Progress:
    """Shows one op until `wipe`. Main thread only; `shown` draws it while the context lasts."""

    def __init__(self, screen: Screen, target: str) -> None:
        self._screen = screen
        self._view = View(target)
        self._began = time.monotonic()
        self._drawn = 0  # columns of the bar that stand on the terminal
        self._last: tuple[str, float] = ("", 0.0)  # the step of the last line, and when
        self._mute = screen.quiet or screen.as_json
        self._bar = screen.can_redraw and not self._mute

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """The bar's clock ticks; at the end the bar is wiped away."""
        if not self._bar:
            yield
            return
        before = signal.signal(signal.SIGALRM, self._tick)
        signal.setitimer(signal.ITIMER_REAL, TICK_S, TICK_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            self._wipe()

    def take(self, event: Event) -> None:
        """An event of this op."""
        self._set(self._view.after(event))

    def at(self, op: Record) -> None:
        """Where an op is that had begun before its events are read."""
        if step := op.text("phase") or op.text("step"):
            self._set(replace(self._view, step=step, pct=_percent(op), note=""))

    def waits(self, other: Record, n_before: int) -> None:
        """It has not begun: `other` is the op that runs."""
        behind = other.text("target_model_id") or other.text("op_id") or "another op"
        more = f" and {n_before - 1} more" if n_before > 1 else ""
        self._set(replace(self._view, step="queued", pct=None, note=f"behind {behind}{more}"))

    def note(self, text: str) -> None:
        """Something that is no progress: on a line of its own, and the bar goes on below it."""
        if not self._mute:
            self._wipe()
            self._screen.say(text)
            self._draw()

    def _set(self, view: View) -> None:
        if view is self._view or view == self._view:
            return
        self._view = view
        if self._mute:
            return
        if self._bar:
            self._draw()
            return
        step, when = self._last
        now = time.monotonic()
        if view.step != step or view.pct == _DONE_PCT or now - when >= LINE_EVERY_S:
            self._last = (view.step, now)
            self._screen.line(plain_line(view, self.elapsed_s))

    def _tick(self, _number: int, _frame: FrameType | None) -> None:
        self._draw()

    def _draw(self) -> None:
        if self._bar and self._view.step:
            text = bar_line(self._view, self.elapsed_s, self._screen.width - 1, self._screen.blocks)
            self._write("\r" + text.ljust(self._drawn))
            self._drawn = len(text)

    def _wipe(self) -> None:
        if self._drawn:
            self._write("\r" + " " * self._drawn + "\r")
            self._drawn = 0

    def _write(self, text: str) -> None:
        """Past the buffer, which a signal handler must not enter while somebody is in it."""
        data = text.encode(self._screen.out.encoding or "ascii", "backslashreplace")
        with contextlib.suppress(OSError):  # a terminal that was closed
            os.write(self._screen.out.fileno(), data)


def _percent(data: Record) -> int | None:
    pct = data.integer("pct")
    return None if pct is None else max(0, min(_DONE_PCT, pct))
