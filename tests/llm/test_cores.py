"""compute_cores: the affinity mask, the cgroup's quota, the clamp."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modeld.llm import cores


def group(root: Path, name: str, limit: str) -> None:
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / name / "cpu.max").write_text(limit)


def test_the_smallest_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    group(root, "a", "150000 100000\n")
    group(root, "a/b", "max 100000\n")
    member = tmp_path / "self"
    member.write_text("0::/a/b\n")
    assert cores._cgroup_quota(member, root) == 1.5


@pytest.mark.parametrize("content", ["", "1:cpu:/x\n", "0::/gone\n", "0::/../../etc\n"])
def test_no_quota_is_no_limit(tmp_path: Path, content: str) -> None:
    member = tmp_path / "self"
    member.write_text(content)
    (tmp_path / "cgroup").mkdir()
    assert cores._cgroup_quota(member, tmp_path / "cgroup") is None


def test_more_threads_than_cores_are_clamped_and_said(caplog: pytest.LogCaptureFixture) -> None:
    usable = cores.usable_cores()
    assert cores.compute_cores(5000) == usable
    assert "5000 asked" in caplog.text
    assert cores.compute_cores(0) == usable
    assert cores.compute_cores(1) == usable[:1]


def test_the_affinity_mask_counts() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {max(before)})
        assert cores.usable_cores() == [max(before)]
    finally:
        os.sched_setaffinity(0, before)
