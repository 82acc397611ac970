"""What is remembered over the end of the process, and which model the next start loads. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from modeld.manager.remembered import (
    MAX_CRASHED,
    MAX_VOUCHED,
    Identity,
    ModelFile,
    Remembered,
    StartChoice,
    same_file,
)
from modeld.policy import AtStart

A, B = ModelFile("a", (1, 10, 100, 1000)), ModelFile("b", (1, 20, 200, 2000))
NEW_B: Identity = (1, 21, 200, 2001)
IDS = ("a", "b", "d")  # d is default_model, where a test does not say otherwise


def loaded(before: Remembered, file: ModelFile, default_model: str | None = "d") -> Remembered:
    return before.after_trying(file).after_loaded(file, f"/models/{file.model_id}", default_model)


def crashed(before: Remembered, file: ModelFile, times: int = 1) -> Remembered:
    for n in range(times):
        before = before.after_trying(file).after_death(100.0 + n)
    return before


def choose(
    memory: Remembered,
    default_model: str | None = "d",
    at_start: AtStart = AtStart.LAST,
    ids: tuple[str, ...] = IDS,
    identity_of: Callable[[str], Identity | None] = {"a": A.identity, "b": B.identity}.get,
) -> StartChoice:
    return memory.choose(ids, default_model, at_start, identity_of)


# -- changes


def test_wanted_is_what_came_last_and_nothing_after_an_unload() -> None:
    memory = loaded(loaded(Remembered(), A), B)
    assert (memory.wanted, memory.last_good) == ("b", B)
    assert memory.after_trying(A).after_ended() == memory
    unloaded = memory.after_unloaded("d")
    assert (unloaded.wanted, unloaded.last_good) == (None, B)
    assert loaded(unloaded, A).wanted == "a"


def test_two_crashes_in_a_row_are_a_quarantine_and_one_is_not() -> None:
    once = crashed(loaded(Remembered(), A), B)
    assert once.quarantine_of("b", B.identity) is None
    twice = crashed(once, B)
    quarantine = twice.quarantine_of("b", B.identity)
    assert quarantine is not None
    assert (quarantine.model_id, quarantine.identity, quarantine.crashes) == ("b", B.identity, 2)
    third = crashed(twice, B).quarantine_of("b", B.identity)
    assert third is not None
    assert (third.crashes, third.since) == (3, quarantine.since)


def test_a_load_that_went_well_ends_the_row_and_the_quarantine() -> None:
    memory = crashed(loaded(crashed(Remembered(), B), B), A)
    assert loaded(crashed(memory, B), A).quarantine_of("b", B.identity) is None
    assert dict(loaded(crashed(Remembered(), B, 2), B).crashes) == {}


def test_crashes_of_models_do_not_add_up() -> None:
    memory = crashed(crashed(crashed(Remembered(), A), B), ModelFile("d", None))
    assert [row.n for row in memory.crashes.values()] == [1, 1, 1]
    assert choose(memory).quarantined == ()


def test_a_cancelled_load_is_no_crash_and_does_not_end_the_row() -> None:
    memory = crashed(Remembered(), B).after_trying(B).after_ended()
    assert memory.after_death(1.0) == memory
    assert crashed(memory, B).quarantine_of("b", B.identity) is not None


def test_what_was_loaded_last_is_not_quarantined_but_a_new_file_of_its_name_is() -> None:
    memory = crashed(loaded(Remembered(), B), B, 5)
    assert memory.quarantine_of("b", B.identity) is None
    assert choose(memory).model_id == "b"
    replaced = ModelFile("b", NEW_B)
    assert crashed(memory, replaced).quarantine_of("b", NEW_B) is None  # its own first crash
    assert crashed(memory, replaced, 2).quarantine_of("b", NEW_B) is not None


def test_a_replaced_file_is_out_of_quarantine_and_a_missing_one_is_not() -> None:
    memory = crashed(Remembered(), B, 2)
    assert memory.quarantine_of("b", NEW_B) is None
    assert memory.quarantine_of("b", None) is not None
    assert memory.quarantine_of("a", B.identity) is None


def test_the_number_of_a_device_does_not_tell_files_apart() -> None:
    assert same_file((1, 2, 3, 4), (9, 2, 3, 4))
    assert not any(same_file((1, 2, 3, 4), other) for other in ((1, 9, 3, 4), (1, 2, 9, 4), (1, 2, 3, 9)))


def test_a_quarantine_can_be_lifted() -> None:
    memory = crashed(Remembered(), B, 2).after_lift("b")
    assert memory.quarantine_of("b", B.identity) is None
    assert crashed(memory, B).quarantine_of("b", B.identity) is None
    assert memory.after_lift("unknown") is memory


def test_a_file_is_vouched_for_by_path_and_identity() -> None:
    memory = loaded(Remembered(), A).after_vouched("/models/b", B.identity)
    assert memory.is_vouched("/models/a", A.identity)
    assert memory.is_vouched("/models/b", B.identity)
    assert not memory.is_vouched("/models/b", NEW_B)
    assert not memory.is_vouched("/models/a", None)
    assert not memory.is_vouched("/models/other", A.identity)
    assert memory.after_vouched("/models/c", None) is memory
    assert not memory.after_vouched("/models/b", NEW_B).is_vouched("/models/b", B.identity)


def test_what_grows_is_bounded_and_the_oldest_goes() -> None:
    memory = Remembered()
    for n in range(MAX_VOUCHED + 10):
        memory = memory.after_vouched(f"/models/{n}", (1, n, 1, 1))
    memory = memory.after_vouched("/models/10", (1, 10, 1, 1))  # used again: the latest now
    memory = memory.after_vouched("/models/more", (1, 1, 1, 1))
    assert len(memory.vouched) == MAX_VOUCHED
    assert "/models/10" in memory.vouched
    assert "/models/11" not in memory.vouched
    for n in range(MAX_CRASHED + 10):
        memory = crashed(memory, ModelFile(f"m{n}", None))
    assert len(memory.crashes) == MAX_CRASHED
    assert "m9" not in memory.crashes


# -- the start


def test_a_first_start_loads_the_default() -> None:
    assert choose(Remembered()) == StartChoice("d", "default_model", ())
    assert choose(Remembered(), default_model=None) == StartChoice(None, "default_model is null", ())


def test_a_start_loads_what_answered_last() -> None:
    assert choose(loaded(loaded(Remembered(), A), B)).model_id == "b"


def test_at_start_default_loads_the_default_whatever_was() -> None:
    for memory in (loaded(Remembered(), A), loaded(Remembered(), A).after_unloaded("d")):
        assert choose(memory, at_start=AtStart.DEFAULT).model_id == "d"


def test_after_an_unload_nothing_is_loaded() -> None:
    for memory in (Remembered(), loaded(Remembered(), A)):
        choice = choose(memory.after_unloaded("d"))
        assert (choice.model_id, choice.reason) == (None, "the last model was unloaded on request")


@pytest.mark.parametrize("unload", [False, True])
def test_a_changed_default_is_the_latest_word_until_something_is_loaded_or_unloaded(unload: bool) -> None:
    memory = loaded(Remembered(), A)
    memory = memory.after_unloaded("d") if unload else memory
    for again in (memory, crashed(memory, B)):  # also at the start after a start that came to nothing
        assert choose(again, default_model="b").model_id == "b"
        assert choose(again, default_model=None) == StartChoice(None, "default_model is null now", ())
    assert choose(loaded(memory, A, "b"), default_model="b").model_id == "a"


def test_a_crash_in_a_switch_brings_back_what_answered_before() -> None:
    memory = crashed(loaded(Remembered(), A), B)
    assert choose(memory).model_id == "a"
    assert choose(crashed(memory, B)).model_id == "a"


def test_a_default_that_crashes_is_tried_twice() -> None:
    once = crashed(Remembered(), ModelFile("d", None))
    assert choose(once).model_id == "d"
    for at_start in AtStart:
        choice = choose(crashed(once, ModelFile("d", None)), at_start=at_start)
        assert choice.model_id is None
        assert choice.reason == "'d' is quarantined: the process died 2 times in a row while it loaded it"
        assert [row.model_id for row in choice.quarantined] == ["d"]


def test_a_changed_default_that_is_quarantined_gives_way_to_what_answered_last() -> None:
    choice = choose(crashed(loaded(Remembered(), A), B, 2), default_model="b")
    assert choice.model_id == "a"
    assert "'b' is quarantined" in choice.reason


def test_a_quarantined_file_that_was_replaced_is_loaded() -> None:
    memory = crashed(Remembered(), B, 2)
    assert choose(memory, default_model="b").model_id is None
    choice = choose(memory, default_model="b", identity_of=lambda _id: NEW_B)
    assert (choice.model_id, choice.quarantined) == ("b", ())


def test_a_model_that_left_the_registry_gives_way_to_the_default() -> None:
    choice = choose(loaded(Remembered(), A), ids=("b", "d"))
    assert (choice.model_id, choice.reason) == ("d", "'a' is not registered any more (answered last); default_model")
    assert choose(crashed(Remembered(), B, 2), ids=("a", "d")).quarantined == ()


def test_only_files_of_models_with_crashes_are_looked_at() -> None:
    asked: list[str] = []
    memory = crashed(loaded(Remembered(), A), B, 2)
    choose(memory, identity_of=lambda model_id: asked.append(model_id))
    assert asked == ["b"]


# -- the JSON form


def test_what_is_written_is_read_as_it_was() -> None:
    old = ModelFile("of 1969 and a huge disk", ((1 << 64) - 1, (1 << 64) - 1, 1 << 62, -1))
    memory = crashed(loaded(Remembered(), A), B, 2).after_vouched("/m/\udcff\n", A.identity).after_trying(old)
    for value in (Remembered(), memory, memory.after_unloaded(None), loaded(memory, old, None)):
        assert Remembered.from_json(json.loads(json.dumps(value.to_json()))) == value


FORM = json.loads(json.dumps(crashed(loaded(Remembered(), A), B).after_trying(B).to_json()))
WRONG: list[tuple[str, Any]] = [
    ("version", 2),
    ("version", None),
    ("last_good", []),
    ("last_good", {"model_id": "a"}),
    ("last_good", {"model_id": 1, "identity": None}),
    ("last_good", {"model_id": "", "identity": None}),
    ("last_good", {"model_id": "a" * 5000, "identity": None}),
    ("trying", {"model_id": "a", "identity": [1, 2, 3]}),
    ("trying", {"model_id": "a", "identity": [1, 2, 3, 4.5]}),
    ("trying", {"model_id": "a", "identity": [1, 2, 3, True]}),
    ("trying", {"model_id": "a", "identity": [1, 2, 3, 1 << 64]}),
    ("trying", {"model_id": "a", "identity": None, "more": 1}),
    ("unloaded", 1),
    ("crashes", []),
    ("crashes", {"b": {"identity": None, "n": "2", "since": None}}),
    ("crashes", {"b": {"identity": None, "n": 0, "since": None}}),
    ("crashes", {"b": {"identity": None, "n": 2, "since": float("nan")}}),
    ("crashes", {"b": {"identity": None, "n": 2, "since": 10**400}}),
    ("crashes", {"b": {"identity": None, "n": 2, "since": True}}),
    ("crashes", {"b": 2}),
    ("crashes", {str(n): {"identity": None, "n": 1, "since": None} for n in range(MAX_CRASHED + 1)}),
    ("vouched", {"/a": None}),
    ("vouched", None),
    ("default_model", 5),
    ("a key of tomorrow", None),
]


@pytest.mark.parametrize(("key", "value"), WRONG, ids=[f"{key}-{value!r:.30}" for key, value in WRONG])
def test_what_was_not_written_here_is_refused(key: str, value: Any) -> None:
    Remembered.from_json(FORM)
    with pytest.raises(ValueError, match=r"."):
        Remembered.from_json({**FORM, key: value})
    with pytest.raises(ValueError, match=r"keys|version"):
        Remembered.from_json({other: row for other, row in FORM.items() if other != key} | {"x": 1})


@pytest.mark.parametrize("value", [None, [], "text", 1, True])
def test_a_form_that_is_no_table_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="table"):
        Remembered.from_json(value)
