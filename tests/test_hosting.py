"""What the manager is told about memory and files, by the real readers and by tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from modeld import hosting
from modeld.errors import LoadFailed
from modeld.hosting import ModelHost, lack
from modeld.llm.available import Available, Device
from modeld.llm.footprint import Footprint, estimate
from modeld.types import ModelSpec

GIB = 1 << 30
BIG, SMALL = ModelSpec("big", Path("/big.gguf")), ModelSpec("small", Path("/small.gguf"))
NEEDS_4 = Footprint(3 * GIB, GIB // 2, GIB // 2)
GIVES_1 = Footprint(GIB, 0, 0)
STORIES = ModelSpec("stories", Path(__file__).resolve().parent.parent / "models" / "demo-stories.gguf")


def gpu(free: int) -> Device:
    return Device("CUDA0", "gpu", free, 24 * GIB)


@pytest.mark.parametrize(
    ("spec", "leaving", "host", "gpus", "why"),
    [
        (BIG, None, 5 * GIB, [], None),
        (BIG, None, 3 * GIB, [], "model big needs about 4.00 GiB"),
        (BIG, SMALL, 3 * GIB, [], None),  # with what the other one gives back
        (BIG, SMALL, 2 * GIB, [], "plus 1.00 that model small gives back"),
        (BIG, None, GIB, [gpu(5 * GIB)], None),  # the host's memory is not what it takes
        (BIG, None, 64 * GIB, [gpu(3 * GIB)], "CUDA0 3.00"),
        (BIG, None, 64 * GIB, [gpu(3 * GIB), gpu(2 * GIB)], None),
        (BIG, SMALL, 64 * GIB, [gpu(3 * GIB)], None),
        (replace(BIG, n_gpu_layers=0), None, 3 * GIB, [gpu(24 * GIB)], "MemAvailable 3.00"),
        (replace(BIG, n_gpu_layers=5), None, GIB, [gpu(GIB)], None),  # nobody knows what goes where
    ],
)
def test_the_memory_that_counts(
    spec: ModelSpec, leaving: ModelSpec | None, host: int, gpus: list[Device], why: str | None
) -> None:
    said = lack(spec, NEEDS_4, leaving, GIVES_1 if leaving else None, Available(host, "MemAvailable"), gpus)
    assert said is why if why is None else why in (said or "")


def test_a_model_that_could_never_fit_is_told_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    host = ModelHost(queue_size=1, kv_keep_bytes=0).host()
    assert host.fits(STORIES, None) is None
    vast = replace(STORIES, n_ctx=1 << 30)
    assert "KV cells" in (host.fits(vast, STORIES) or "")
    needed = estimate(STORIES)
    assert needed is not None
    monkeypatch.setattr(hosting, "available_bytes", lambda: Available(needed.total - 1, "cgroup /x"))
    assert "cgroup /x" in (host.fits(STORIES, None) or "")
    assert host.fits(STORIES, STORIES) is None


def test_a_file_that_memory_cannot_hold_is_not_read_ahead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    def read(room: int, cached: int) -> None:
        told.clear()
        monkeypatch.setattr(hosting, "available_bytes", lambda: Available(room, "x"))
        monkeypatch.setattr(hosting, "read_ahead", lambda paths, on_progress: on_progress(cached, 100) and on_progress(100, 100))
        ModelHost(queue_size=1, kv_keep_bytes=0).host().read_ahead(STORIES, listen)

    def listen(done: int, total: int) -> bool:
        told.append((done, total))
        return True

    read(room=50, cached=10)
    assert told == []
    read(room=1000, cached=100)
    assert told == []  # nothing is missing: nothing to tell
    read(room=1000, cached=10)
    assert told == [(10, 100)]


def test_a_digest_is_compared_only_where_there_is_one() -> None:
    host = ModelHost(queue_size=1, kv_keep_bytes=0).host()
    told: list[int] = []

    def listen(pct: int) -> bool:
        told.append(pct)
        return True

    host.verify(STORIES, listen)
    assert told == []
    with pytest.raises(LoadFailed, match="the configuration says"):
        host.verify(replace(STORIES, sha256="ab" * 32), listen)
    assert told
