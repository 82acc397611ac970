"""What client commands show: bars, lines, tables, figures; and that nothing from outside reaches a terminal as it came."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeld.arguments import parser
from modeld.cli import terminal
from modeld.cli.bar import WORDS, View, bar_line, plain_line
from modeld.cli.events import event_words
from modeld.cli.eventstream import Event
from modeld.cli.ops import STEPS, op_lines
from modeld.cli.record import Record, one_line, shown
from modeld.cli.status import ended_words, status_lines
from modeld.cli.switch import OPTIONS
from modeld.cli.terminal import Screen, cut, safe, seconds, size_of
from modeld.httpapi.description import document
from modeld.types import Phase, Step

ASCII = ("#", "-")
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\u202e\x00\x7f"


class Fake(io.StringIO):
    """A terminal without a descriptor."""

    def __init__(self, encoding: str = "utf-8", *, tty: bool = True) -> None:
        super().__init__()
        self._encoding, self._tty = encoding, tty

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return self._tty


def screen(*, tty: bool = True, encoding: str = "utf-8", **environ: str) -> Screen:
    return Screen(Fake(encoding, tty=tty), Fake(tty=tty), {"TERM": "xterm", **environ})


def written(of: Screen) -> str:
    assert isinstance(of.out, io.StringIO)
    return of.out.getvalue()


# -- the bar


def test_a_bar_has_step_percent_and_time() -> None:
    line = bar_line(View("deep", "mmap", 50), 12.34, 79, ASCII)
    assert line == "deep  loading (mmap)         [############------------]   50 %  12.3 s"
    assert bar_line(View("deep", "mmap", 0), 0, 79, ASCII).count("-") == 24
    assert bar_line(View("deep", "mmap", 100), 0, 79, ASCII).count("#") == 24


def test_a_step_without_percent_has_its_note_and_the_time() -> None:
    line = bar_line(View("deep", "drain", None, "3 still running"), 75, 79, ASCII)
    assert line == "deep  letting answers end (drain): 3 still running  1 min 15 s"


@pytest.mark.parametrize("width", range(1, 140))
def test_a_bar_never_wraps(width: int) -> None:
    for target in ("deep", "a-model-with-a-rather-long-name-of-sixty-four-characters-in-total"):
        for view in (View(target, "mmap", 43), View(target, "drain", None, "2 still running"), View(target)):
            assert len(bar_line(view, 12.3, width, ASCII)) <= width


def test_narrow_terminals_lose_the_bar_first_and_keep_the_percents() -> None:
    line = bar_line(View("deep", "mmap", 43), 12.3, 28, ASCII)
    assert "#" not in line
    assert "43 %" in line


def test_events_change_what_is_shown() -> None:
    view = View("b")
    for name, data, line in (
        ("model_switch_started", {"strategy": "overlap"}, "b: started (overlap)"),
        ("model_switch_phase", {"phase": "drain", "n_running": 2, "pct": None}, "b: drain (2 still running)"),
        ("model_loading_progress", {"step": "mmap", "pct": 43}, "b: mmap 43 %"),
        ("model_switch_phase", {"phase": "rollback", "pct": 5, "to": "a"}, "b: rollback 5 % (to a)"),
        ("model_loading_progress", {"step": "mmap", "pct": 1e9}, "b: mmap 100 %"),
        ("something_new", {"step": "x"}, "b: mmap 100 %"),
    ):
        view = view.after(Event("1", name, json.dumps(data)))
        assert plain_line(view, 0.5) == f"   0.50 s  {line}"


# -- what a terminal must not be sent


def test_generated_text_keeps_its_lines_and_loses_its_controls_on_a_terminal() -> None:
    out = screen()
    out.generated("One day,\n\tπ 🦊 \u200d" + HOSTILE)
    shown_text = written(out)
    assert shown_text.startswith("One day,\n\tπ 🦊 \u200d\\x1b]0;owned\\x07")
    assert not any(c in shown_text for c in "\x1b\x07\x9b\r\u202e\x00\x7f")


def test_generated_text_goes_into_a_pipe_as_it_is() -> None:
    out = screen(tty=False)
    out.generated("a\x1b[2Jb\r\n")
    assert written(out) == "a\x1b[2Jb\r\n"


def test_half_a_surrogate_pair_can_be_shown() -> None:
    assert safe("\ud83d!") == "\\ud83d!"


def test_names_and_messages_are_one_printable_line_wherever_they_go() -> None:
    record = Record({"name": f"a{HOSTILE}\nb", "long": "x" * 5000})
    assert record.text("name").isprintable()
    assert len(record.text("long")) <= 1000
    assert record.message("name").count("\n") == 1
    assert "\x1b" not in record.message("name")
    assert one_line({"a": HOSTILE}).isprintable()
    assert one_line({"a": HOSTILE}).isascii()
    assert json.loads(one_line({"a": HOSTILE})) == {"a": HOSTILE}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = (
    "state current_model error op last_op slots queue generation version uptime_s quarantined waiting busy total code message "
    "op_id kind target_model_id phase step pct steps_ms "
    "queued_at started_at ended_at ms added deadline_s n_running rolled_back_to unload"
).split()
BODIES = st.dictionaries(st.sampled_from(NAMES), JSON | st.dictionaries(st.sampled_from(NAMES), JSON, max_size=6), max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    BODIES,
    st.sampled_from(["snapshot", "model_ready", "model_error", "model_switch_phase", "shutdown", "config_reloaded", "\x1b[2J"]),
)
def test_whatever_an_answer_holds_is_shown_in_printable_lines(body: dict[str, object], event: str) -> None:
    record = Record(body)
    lines = [*status_lines(record, "http://x", screen(NO_COLOR="1"), 0.0), *op_lines(record, 0.0), ended_words(record, 0.0)]
    lines += [
        event_words(Event("1", event, json.dumps(body))),
        plain_line(View("a").after(Event("1", event, json.dumps(body))), 1),
    ]
    assert all(line.isprintable() for line in lines)


# -- what a terminal can show


def test_colour_is_for_terminals_that_want_it() -> None:
    assert screen().style("a", "good") == "\x1b[32ma\x1b[0m"
    for without in (screen(NO_COLOR="1"), screen(TERM="dumb"), screen(TERM=""), screen(tty=False)):
        assert without.style("a", "good") == "a"


def test_a_bar_is_for_terminals_that_are_not_dumb() -> None:
    assert screen().can_redraw
    assert screen(NO_COLOR="1").can_redraw
    assert not screen(TERM="dumb").can_redraw
    assert not screen(tty=False).can_redraw


@pytest.mark.parametrize(
    ("encoding", "blocks"), [("utf-8", ("█", "░")), ("latin-1", ("#", "-")), ("ascii", ("#", "-")), ("none", ("#", "-"))]
)
def test_a_bar_is_drawn_with_what_the_locale_has(encoding: str, blocks: tuple[str, str]) -> None:
    assert screen(encoding=encoding).blocks == blocks


def test_text_that_a_locale_cannot_write_is_escaped() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="latin-1")
    Screen(out, io.TextIOWrapper(io.BytesIO()), {}).line("ä 🦊")
    assert raw.getvalue() == b"\xe4 \\U0001f98a\n"


def test_tables_are_cut_at_the_edge_of_a_terminal_and_whole_in_a_pipe() -> None:
    rows = [("ID", "NAME"), ("a", "n" * 100)]
    narrow = screen(COLUMNS="30", NO_COLOR="1")
    narrow.table(rows)
    assert written(narrow).splitlines()[1] == "a   " + "n" * 25 + "…"
    whole = screen(tty=False)
    whole.table(rows)
    assert written(whole).splitlines() == ["ID  NAME", "a   " + "n" * 100]


@pytest.mark.parametrize("columns", ["", "0", "-4", "x", "99999999999", "1"])
def test_a_nonsense_width_is_none(columns: str) -> None:
    assert terminal.MIN_WIDTH <= screen(COLUMNS=columns).width <= 80


def test_quiet_shows_neither_progress_nor_result() -> None:
    quiet = Screen(Fake(), Fake(), {}, quiet=True)
    quiet.line("a")
    assert written(quiet) == ""


# -- figures


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.00 s"),
        (9.994, "9.99 s"),
        (59.94, "59.9 s"),
        (60, "1 min 0 s"),
        (3661, "1 h 1 min"),
        (90_000, "1 d 1 h"),
        (None, "?"),
    ],
)
def test_seconds(value: float | None, text: str) -> None:
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("n", "text"), [(104, "104 B"), (2048, "2.0 KiB"), (2_121_632, "2.0 MiB"), (7e9, "6.5 GiB"), (None, "?")]
)
def test_sizes(n: float | None, text: str) -> None:
    assert size_of(n) == text


def test_cutting() -> None:
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abcdefg", 6) == "abc..."
    assert shown("x" * 2000).endswith("...")


# -- nothing of the API is missing


def test_every_option_of_a_switch_has_a_flag() -> None:
    schema = document("1")["components"]["schemas"]["SwitchOptions"]
    taken = {*OPTIONS.values(), "force"}
    assert taken == set(schema["properties"])
    args = parser().parse_args(["switch", "m"])
    assert {*OPTIONS, "force"} <= set(vars(args))


def test_every_step_and_phase_has_its_words() -> None:
    assert {*Step, *Phase} <= set(WORDS)
    assert {*Step, *Phase} == set(STEPS)
