"""A runner on a fake runtime, once of each kind, for tests that hold for both; others have fixtures of these names themselves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from modeld.engine.runner import EngineRunner
from modeld.errors import ModelSwitched
from tests.engine.test_engine import open_fake
from tests.fake_runtime import FakeRuntime


@pytest.fixture(params=[None, "mean"], ids=["generates", "embeds"])
def runtime(request: pytest.FixtureRequest) -> FakeRuntime:
    runtime = FakeRuntime()
    runtime.pooling = request.param
    return runtime


@pytest.fixture
def runner(runtime: FakeRuntime) -> Iterator[EngineRunner]:
    runner = open_fake(runtime)
    yield runner
    runtime.gate.open()
    runner.close(ModelSwitched("the test is over"))
    runner.free()
