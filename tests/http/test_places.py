"""Who may stay when more come than there are places. Pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.httpapi.places import Places, Verdict

SERVE, REFUSE, DROP = Verdict.SERVE, Verdict.REFUSE, Verdict.DROP


def places(n: int = 2, extra: int = 2, per_address: int = 0) -> Places[str]:
    return Places(n, extra, per_address)


def test_the_longest_waiting_goes_first_whether_it_is_new_or_was_answered_before() -> None:
    room = places(3)
    for who in "abc":
        assert room.admit(who, "1.1.1.1") == (SERVE, None)
    assert room.begin("a")
    assert room.wait("a")  # answered: its wait begins anew
    assert room.admit("d", "1.1.1.1") == (SERVE, "b")
    assert room.admit("e", "1.1.1.1") == (SERVE, "c")
    room.leave("b")
    assert room.admit("f", "1.1.1.1") == (SERVE, "a")


def test_whoever_is_answered_stays_and_one_more_is_refused_and_then_dropped() -> None:
    room = places(2, extra=1)
    for who in "ab":
        room.admit(who, "1.1.1.1")
        assert room.begin(who)
    assert room.admit("c", "1.1.1.1") == (REFUSE, None)
    assert not room.is_settling  # it is not: nobody could go
    assert room.admit("d", "1.1.1.1") == (DROP, None)
    room.leave("c")
    room.leave("a")
    assert room.admit("e", "1.1.1.1") == (SERVE, None)


def test_bodies_go_when_no_head_is_left_and_come_to_stay_once_they_are_whole() -> None:
    room = places(3, extra=3)
    for who in "abc":
        room.admit(who, "1.1.1.1")
    for who in "ab":
        room.begin(who)
        room.depend(who)
    assert room.admit("d", "1.1.1.1") == (SERVE, "c")
    room.begin("d")
    room.stay("a")
    assert room.admit("e", "1.1.1.1") == (SERVE, "b")
    assert room.send_oldest_away() == "e"


def test_who_was_sent_away_begins_nothing_and_frees_its_place_at_once() -> None:
    room = places(1)
    room.admit("a", "1.1.1.1")
    assert room.admit("b", "1.1.1.1") == (SERVE, "a")
    assert not room.begin("a")
    assert not room.wait("a")
    room.depend("a")
    assert room.begin("b")
    room.leave("a")
    assert list(room) == ["b"]


def test_no_more_are_sent_away_than_may_be_on_their_way_out() -> None:
    room = places(1, extra=1)
    room.admit("a", "1.1.1.1")
    assert room.admit("b", "1.1.1.1") == (SERVE, "a")
    assert room.is_crowded
    assert room.is_settling  # it is worth a moment: b could go
    assert room.admit("c", "1.1.1.1") == (DROP, None)
    assert room.send_oldest_away() is None
    room.leave("a")
    assert room.send_oldest_away() == "b"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1.1.1.1", "1.1.1.1", True),
        ("1.1.1.1", "1.1.1.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("unix", "unix", False),  # nobody can tell them apart
    ],
)
def test_a_bound_for_each_address_is_kept_among_its_own(one: str, other: str, same: bool) -> None:
    room = places(9, per_address=1)
    room.admit("z", "9.9.9.9")
    room.admit("a", one)
    assert room.admit("b", other) == (SERVE, "a" if same else None)
    room.begin("b")
    assert room.admit("c", other)[0] is (SERVE if other == "unix" else REFUSE)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12))))
def test_whatever_happens_no_more_are_served_than_there_are_places(
    n: int, extra: int, per: int, steps: list[tuple[int, int]]
) -> None:
    room: Places[int] = Places(n, extra, per)
    gone: set[int] = set()
    here: set[int] = set()
    for number, (what, whom) in enumerate(steps):
        if what == 0:
            verdict, leaver = room.admit(1000 + number, f"1.1.1.{whom % 3}")
            if verdict is not DROP:
                here.add(1000 + number)
            if verdict is REFUSE:
                gone.add(1000 + number)
            if leaver is not None:
                assert leaver in here - gone
                gone.add(leaver)
        elif here:
            who = sorted(here)[whom % len(here)]
            if what == 1:
                assert room.begin(who) == (who not in gone)
            elif what == 2:
                assert room.wait(who) == (who not in gone)
            elif what == 3:
                room.depend(who)
            elif what == 4:
                room.stay(who)
            else:
                room.leave(who)
                here.remove(who)
                gone.discard(who)
        assert set(room) == here
        assert len(here - gone) <= n
        assert len(gone) <= extra
        assert not set(room._heads) & gone
