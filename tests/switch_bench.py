"""A manager on a fake factory with gates, and who looks on: what the tests of switches begin with (the fixture `bench`)."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from modeld.errors import LoadFailed
from modeld.manager.journal import Journal
from modeld.manager.manager import Manager
from modeld.manager.statefile import StateFile
from modeld.policy import SwitchPolicy
from modeld.types import SwitchOp
from tests.fake_runner import DEADLINE_S, FakeFactory, FakeRunner, Files, Follower, specs


class Bench:
    """A manager of a, b and c with gated loads, and who follows its events."""

    def __init__(
        self, policy: SwitchPolicy | None = None, *, folder: Path | None = None, default: str | None = "a", **host: object
    ):
        self.files = Files()
        self.factory = FakeFactory(gated=True, at_once=2)
        self.memory = StateFile(folder)
        self.manager = Manager(
            specs(*"abc"),
            default,
            self.factory,
            self.files.host(**host),
            version="1",
            policy=policy,
            memory=self.memory,
            journal=Journal(self.memory.folder),
        )
        self.follower = Follower(self.manager.subscribe(None))
        self.manager.start()

    def load(self, model_id: str) -> FakeRunner:
        """The next load is of that model; it succeeds, and the model answers."""
        load = self.factory.next_load()
        assert load.spec.id == model_id
        generation = self.manager.status().generation
        runner = load.finish()
        self.wait(lambda: self.manager.status().generation > generation)
        return runner

    def fail(self, model_id: str, message: str = "no such tensor") -> None:
        load = self.factory.next_load()
        assert load.spec.id == model_id
        load.fail(LoadFailed(message))

    def wait(self, until: Callable[[], bool]) -> None:
        """Until it holds, looking whenever an op or the state changes."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            seen = self.manager._life.ticks()
            if until():
                return
            assert self.manager._life.pause(seen, deadline), f"never: {self.manager.status()}"

    def wait_at(self, op: SwitchOp, phase: str) -> None:
        while not any(e.data.get("phase") == phase for e in self.follower.of(op)):
            events = self.follower.subscription.take(DEADLINE_S)
            assert events
            self.follower.seen += events

    def names(self, op: SwitchOp) -> list[str]:
        return [event.name for event in self.follower.of(op)]


Make = Callable[..., Bench]


def error_of(bench: Bench, op: SwitchOp) -> tuple[str, str | None]:
    """The code of its model_error, and what came back."""
    event = bench.follower.ended(op)
    assert event.name == "model_error", event
    back = event.data.get("rolled_back_to")
    assert back is None or isinstance(back, str)
    return str(event.data["code"]), back
