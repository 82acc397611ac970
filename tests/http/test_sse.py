"""The bytes of events. Pure."""

from __future__ import annotations

import pytest

from modeld.httpapi import sse


def test_an_event_has_id_name_and_one_data_line():
    assert (
        sse.event_frame("a-1", "model_ready", {"m": "x\ny\u2028é"})
        == b'id: a-1\nevent: model_ready\ndata: {"m": "x\\ny\\u2028\\u00e9"}\n\n'
    )


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\0b"])
def test_an_id_or_a_name_that_would_break_the_frame_is_refused(value):
    with pytest.raises(ValueError, match="one line"):
        sse.event_frame(value, "x", {})
    with pytest.raises(ValueError, match="one line"):
        sse.event_frame("x", value, {})


def test_a_data_frame_has_nothing_but_data():
    assert sse.data_frame({"a": 1}) == b'data: {"a": 1}\n\n'


@pytest.mark.parametrize(
    ("header", "query", "expected"),
    [
        (None, None, None),
        ("", "", None),
        ("h", None, "h"),
        (None, "q", "q"),
        ("h", "q", "h"),
        ("", "q", "q"),
        ("x" * 500, None, "x" * 128),
    ],
)
def test_where_the_client_goes_on(header, query, expected):
    assert sse.last_event_id(header, query) == expected
