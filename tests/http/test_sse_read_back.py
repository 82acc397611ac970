"""Whatever is sent as events, a reader that follows the standard gets it back, and nothing else. Pure."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from event_source import EventSource, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from modeld.httpapi import sse

often = settings(max_examples=200, deadline=None)  # the machine may have other work

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
LINE = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]))
BREAK = st.sampled_from("\r\n\0")
EVENT = st.tuples(LINE, LINE, JSON)


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"data: a\n\n", [("", "message", "a")]),
        (b"\xef\xbb\xbfdata:a\r\ndata:  b\r\r", [("", "message", "a\n b")]),
        (b"id: 1\nevent: e\ndata\n\ndata: x\n\n", [("1", "e", ""), ("1", "message", "x")]),
        (b"id: 1\n\nid: a\0b\nretry: 7\nretry: x\n: c\nother: y\ndata: x\n\n", [("1", "message", "x")]),
        (b"event: e\n\ndata: x\n", []),
    ],
)
def test_the_reader_follows_the_standard(raw: bytes, told: list[tuple[str, str, str]]):
    assert EventSource().feed(raw) == [Message(*one) for one in told]


@often
@given(LINE, LINE, JSON)
def test_an_event_is_read_back_as_exactly_one_with_the_same_id_name_and_data(event_id: str, name: str, data: object):
    (message,) = EventSource().feed(sse.event_frame(event_id, name, data))
    assert (message.last_event_id, message.type) == (event_id, name or "message")
    assert json.loads(message.data) == data


@often
@given(JSON)
def test_a_frame_of_data_is_read_back_as_one_message_without_a_name(data: object):
    reader = EventSource()
    (message,) = reader.feed(sse.data_frame(data))
    assert (message.last_event_id, message.type, json.loads(message.data)) == ("", "message", data)
    assert reader.feed(sse.DONE) == [Message("", "message", "[DONE]")]


@often
@given(st.lists(EVENT, max_size=5), st.lists(st.integers(0, 400)))
def test_a_stream_is_read_alike_however_it_is_cut(events: list[tuple[str, str, object]], cuts: list[int]):
    raw = b"".join(sse.KEEP_ALIVE + sse.event_frame(*event) for event in events) + sse.KEEP_ALIVE
    places = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
    reader = EventSource()
    told = [message for begin, end in pairwise(places) for message in reader.feed(raw[begin:end])]
    assert [(message.last_event_id, json.loads(message.data)) for message in told] == [(id_, data) for id_, _, data in events]


@often
@given(st.lists(LINE, min_size=2, max_size=2), BREAK)
def test_what_would_end_a_line_is_refused_wherever_it_stands(parts: list[str], broken: str):
    for event_id, name in ((broken.join(parts), "x"), ("x", broken.join(parts))):
        with pytest.raises(ValueError, match="one line"):
            sse.event_frame(event_id, name, None)


@often
@given(st.none() | st.text(), st.none() | st.text())
def test_a_client_goes_on_after_the_beginning_of_what_it_names(header: str | None, query: str | None):
    told = sse.last_event_id(header, query)
    if told is None:
        assert not header
        assert not query
    else:
        assert 0 < len(told) <= 128
        assert (header or query or "").startswith(told)
        assert len(told) == 128 or told == (header or query)


@often
@given(LINE.filter(lambda line: 0 < len(line) <= 128))
def test_the_id_that_a_client_was_told_comes_back_as_it_was(event_id: str):
    (message,) = EventSource().feed(sse.event_frame(event_id, "x", None))
    assert sse.last_event_id(message.last_event_id, None) == event_id
