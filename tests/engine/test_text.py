"""TextAssembler: characters are whole, a stop string never shows, nothing else is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.engine.text import TextAssembler


def feed_all(assembler: TextAssembler, pieces: list[bytes]) -> tuple[list[str], bool]:
    shown = []
    for piece in pieces:
        text, stopped = assembler.feed(piece)
        shown.append(text)
        if stopped:
            return shown, True
    return [*shown, assembler.flush()], False


def test_a_character_split_over_pieces_shows_once_it_is_whole() -> None:
    shown, _ = feed_all(TextAssembler(()), ["ä".encode()[:1], "ä".encode()[1:], b"!"])
    assert shown == ["", "ä", "!", ""]


def test_bytes_that_never_become_a_character_show_as_replacement() -> None:
    shown, _ = feed_all(TextAssembler(()), [b"a\xff", b"\xe2\x82"])
    assert "".join(shown) == "a\ufffd\ufffd"


@pytest.mark.parametrize(
    ("stop", "pieces", "expected", "met"),
    [
        (("END",), [b"one E", b"N", b"D two"], "one ", True),
        (("END",), [b"one E", b"N", b"E two"], "one ENE two", False),
        (("\n\n",), [b"a\n", b"b\n", b"\nc"], "a\nb", True),
        (("abcd", "c"), [b"ab", b"cx"], "ab", True),
        (("xy", "y"), [b"x", b"y"], "", True),
        (("aab",), [b"a", b"a", b"a", b"b", b"z"], "a", True),
        (("€",), [b"1", "€".encode()[:2], "€".encode()[2:]], "1", True),
        (("stop",), [b"st"], "st", False),
        (("a\ufffd",), [b"xa", b"\xe4"], "x", False),
    ],
)
def test_stop_strings(stop: tuple[str, ...], pieces: list[bytes], expected: str, met: bool) -> None:
    shown, stopped = feed_all(TextAssembler(stop), pieces)
    assert ("".join(shown), stopped) == (expected, met)


@given(st.text(max_size=40), st.lists(st.text("ab€\n", min_size=1, max_size=4), max_size=3), st.data())
def test_whatever_the_pieces_the_text_is_that_of_the_whole(text: str, stop: list[str], data: st.DataObject) -> None:
    text = text.encode("utf-8", "ignore").decode()
    whole = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    shown, stopped = feed_all(TextAssembler(tuple(stop)), pieces)
    joined = "".join(shown)
    for fragment in shown:
        fragment.encode()  # no lone surrogate
    assert not any(s in joined for s in stop)
    assert text.startswith(joined)
    if not stopped:
        assert joined == text
