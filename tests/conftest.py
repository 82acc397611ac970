"""What every test is held to: it leaves no thread of ours and no open handle; it says loudly why it skips."""

from __future__ import annotations

import faulthandler
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.switch_bench import Bench, Make

ROOT = Path(__file__).resolve().parent.parent


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In CI a skip is a failure: there, everything that a test may need is installed."""
    if report.skipped and os.environ.get("MODELD_NO_SKIP") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"


@pytest.fixture(autouse=True)
def leaves_the_thread_its_cores() -> Iterator[None]:
    """A test that decodes on the main thread has that bound to one core; all that is started later would inherit it."""
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    yield
    from modeld.llm.handles import open_handles

    deadline = time.monotonic() + 5
    for thread in threading.enumerate():
        if thread.name.startswith("modeld-"):
            thread.join(max(0.0, deadline - time.monotonic()))
    alive = [thread.name for thread in threading.enumerate() if thread.name.startswith("modeld-")]
    if alive:
        faulthandler.dump_traceback(file=sys.stderr)
    assert not alive, f"threads outlive the test: {alive}"
    assert not open_handles(), f"handles outlive the test: {open_handles()}"


@pytest.fixture
def bench() -> Iterator[Make]:
    """Makes managers of the models a, b and c (tests.switch_bench); closes them, and looks for models that leaked."""
    made: list[Bench] = []

    def make(*args: object, **named: object) -> Bench:
        made.append(Bench(*args, **named))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.manager.close()
    for one in made:
        assert all(runner.freed for runner in one.factory.runners), "a model leaked"


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    return found
