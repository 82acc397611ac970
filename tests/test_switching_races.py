"""Moments in between: what comes just then must not be lost, leak a model, or end the switch thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from modeld.policy import OnBusy, Strategy, SwitchOptions, SwitchPolicy
from modeld.types import GenerateRequest
from tests.test_switching import Bench

REQUEST = GenerateRequest("r1", ("hello",))
OVERLAP = SwitchOptions(strategy=Strategy.OVERLAP)
SUPERSEDE = SwitchOptions(on_busy=OnBusy.SUPERSEDE)
AUTO_SWITCH = SwitchPolicy(auto_switch=True, auto_switch_min_stay_s=86_400)

Make = Callable[..., Bench]


@pytest.fixture
def bench() -> Iterator[Make]:
    made: list[Bench] = []

    def make(*args: object, **named: object) -> Bench:
        made.append(Bench(*args, **named))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.manager.close()
    for one in made:
        assert all(runner.freed for runner in one.factory.runners), "a model leaked"


# -- memory -----------------------------------------------------------------------------------------------------------


def test_a_dead_models_memory_counts_as_leaving_when_it_is_loaded_again(bench: Make) -> None:
    b = bench(fits=lambda spec, leaving: "no room" if leaving is None and len(b.factory.runners) else None)
    dead = b.load("a")
    dead.die(RuntimeError("x"))
    b.load("a")
    assert b.manager.status().current_model == "a"


def test_a_switch_is_not_refused_for_the_memory_of_a_model_that_retires(bench: Make) -> None:
    b = bench(fits=lambda spec, leaving: "no room" if spec.id == "c" and b.factory.runners[0].closed_with is None else None)
    b.load("a")
    b.manager.generate(REQUEST)
    b.manager.switch("b", OVERLAP)
    b.load("b")
    op, _ = b.manager.switch("c")
    b.load("c")
    assert b.follower.ended(op).name == "model_ready"
