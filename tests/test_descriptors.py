"""Connections never take the last descriptors."""

from __future__ import annotations

import resource

import pytest

from modeld.descriptors import OWN, connections_that_fit


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "fitting", "then"),
    [
        (1024, 4096, 512, 512, None),
        (1024, 4096, 2000, 2000, 2000 + 16 + OWN),
        (64, 64, 512, 64 - 16 - OWN, 64),
        (20, 20, 512, 1, 20),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 65536, 65536, None),
        (256, resource.RLIM_INFINITY, 512, 512, 512 + 16 + OWN),
    ],
)
def test_the_limit_is_raised_or_connections_are_fewer(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, wanted: int, fitting: int, then: int | None
) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: told.append(limits))
    assert connections_that_fit(wanted, 16) == fitting
    assert told == ([] if then is None else [(then, hard)])
