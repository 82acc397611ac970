"""Daemons for tests that look from outside."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.daemon import Daemon, demo_config


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for the tests of a module; a test may switch it and finds it ready."""
    with Daemon(demo_config(tmp_path_factory.mktemp("daemon"))) as daemon:
        yield daemon


@pytest.fixture
def daemon(shared: Daemon) -> Daemon:
    """The shared daemon with the storyteller loaded."""
    shared.wait_ready()
    if shared.get("/status")["current_model"] != "demo-stories":
        assert shared.switch_and_wait("demo-stories")["state"] == "succeeded"
    return shared
