"""What a scrape asks the manager for is told at once: while a model loads, and whatever its file does."""

from __future__ import annotations

import pytest

from modeld.manager.manager import Manager
from modeld.policy import SwitchPolicy
from modeld.types import CellFigures, State
from tests.fake_runner import FakeFactory, Files, Follower, specs


def test_figures_are_told_while_a_model_loads_and_no_file_is_looked_at() -> None:
    factory, files = FakeFactory(gated=True), Files()
    manager = Manager(specs("a", "b"), "a", factory, files.host(), version="0", policy=SwitchPolicy(probe=False))
    follower = Follower(manager.subscribe(None))
    manager.start()
    try:
        load = factory.next_load()
        files.error = OSError("the disk does not answer")
        figures = manager.figures()
        assert (figures.status.state, figures.status.current_model, figures.models) == (State.LOADING, None, ("a", "b"))
        assert (figures.event_clients, figures.ops) == (1, {})
        files.error = None
        load.finish()
        follower.until("model_ready")
        files.error = OSError("the disk does not answer")
        figures = manager.figures()
        assert (figures.status.state, figures.status.current_model, figures.status.generation) == (State.READY, "a", 1)
        assert figures.status.load.slots_total == specs("a")[0].n_parallel
        with pytest.raises(OSError, match="does not answer"):
            manager.models()  # which does look
    finally:
        files.error = None
        manager.close()
    assert manager.figures().ops == {("switch", "start", "succeeded"): 1}
    assert manager.figures().cells == CellFigures(0, 0, 0)


def test_a_scrape_is_no_use_of_a_model() -> None:
    """Else a model that is to be unloaded when it is idle would never be."""
    factory = FakeFactory()
    manager = Manager(specs("a"), "a", factory, Files().host(), version="0", policy=SwitchPolicy(probe=False))
    follower = Follower(manager.subscribe(None))
    manager.start()
    try:
        follower.until("model_ready")
        tenant = manager._life.tenant()
        assert tenant is not None
        used_at = tenant.used_at
        manager.figures()
        assert tenant.used_at == used_at
    finally:
        manager.close()
