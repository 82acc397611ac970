"""compute_plan: the affinity mask, the cgroup's quota, the clamp, and which threads are bound to a core."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from modeld.llm import cores
from modeld.llm.adapter import Span
from modeld.llm.runtime import LlamaRuntime
from modeld.types import ModelSpec

MODELS = Path(__file__).resolve().parents[2] / "models"


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


def plan(
    monkeypatch: pytest.MonkeyPatch, allowed: list[int], quota: float | None, n_threads: int, pinning: str
) -> tuple[int, ...]:
    monkeypatch.setattr(cores, "_allowed_cores", lambda: allowed)
    monkeypatch.setattr(cores, "_cgroup_quota", lambda *_: quota)
    found = cores.compute_plan(n_threads, pinning)
    return (found.n_threads, *found.cores)


@pytest.mark.parametrize(
    ("allowed", "quota", "n_threads", "auto", "on", "off"),
    [
        ([0, 1, 2, 3], None, 0, (4, 0, 1, 2, 3), (4, 0, 1, 2, 3), (4,)),
        ([4, 6], None, 2, (2, 4, 6), (2, 4, 6), (2,)),  # an affinity mask says which cores are meant
        ([0, 1, 2, 3], None, 2, (2,), (2, 0, 1), (2,)),  # which two? a second process would take the same ones
        ([0, 1, 2, 3], 1.5, 0, (2,), (2, 0, 1), (2,)),  # a quota is no choice of cores
        ([0, 1], 8.0, 0, (2, 0, 1), (2, 0, 1), (2,)),
        ([0, 1], 0.2, 0, (1,), (1, 0), (1,)),
        ([0], None, 0, (1, 0), (1, 0), (1,)),
    ],
)
def test_threads_and_the_cores_they_are_bound_to(monkeypatch, allowed, quota, n_threads, auto, on, off):
    assert plan(monkeypatch, allowed, quota, n_threads, "auto") == auto
    assert plan(monkeypatch, allowed, quota, n_threads, "on") == on
    assert plan(monkeypatch, allowed, quota, n_threads, "off") == off


def test_more_threads_than_cores_are_clamped_and_said(caplog: pytest.LogCaptureFixture) -> None:
    n_usable = cores.compute_plan(0, "auto").n_threads
    assert cores.compute_plan(5000, "auto").n_threads == n_usable
    assert "5000 asked" in caplog.text
    assert cores.compute_plan(1, "auto").n_threads == 1


def test_the_affinity_mask_counts() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {max(before)})
        assert cores.compute_plan(0, "auto") == cores.ComputePlan(1, (max(before),))
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize("pinning", ["on", "off"])
def test_the_threads_that_compute_run_where_the_plan_says(pinning: str) -> None:
    spec = ModelSpec(id="m", path=MODELS / "demo-calc.gguf", n_ctx=512, n_parallel=1, cpu_pinning=pinning)
    runtime = LlamaRuntime(spec, lambda step, pct: True)
    allowed = os.sched_getaffinity(0)
    bound: list[set[int]] = []

    def compute() -> None:
        runtime.decode([Span(0, 0, [1, 2], True)])
        tasks = [int(task.name) for task in Path("/proc/self/task").iterdir()]
        bound.extend(mask for mask in map(os.sched_getaffinity, tasks) if len(mask) < len(allowed) or len(allowed) == 1)

    thread = threading.Thread(target=compute)  # a thread of its own: the one that computes is bound, too
    thread.start()
    thread.join()
    n_threads = runtime.describe().n_threads
    runtime.close()
    assert os.sched_getaffinity(0) == allowed, "the others keep all cores"
    if pinning == "on" and len(allowed) > 1:
        assert sorted(map(sorted, bound)) == [[core] for core in sorted(allowed)[:n_threads]]
    elif len(allowed) > 1:
        assert bound == []
