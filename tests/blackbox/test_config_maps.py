"""A configuration that Kubernetes mounts: the kubelet swaps a link to a folder, and the daemon takes the new file over."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.daemon import DEMO, MODELS, Daemon

MORE = "  - {id: another, path: %s/demo-calc.gguf}\n"


class Volume:
    """As the kubelet's AtomicWriter keeps one: models.yaml -> ..data/models.yaml, ..data -> a folder with a time for a name."""

    def __init__(self, folder: Path, text: str) -> None:
        self.folder = folder
        self._n = 0
        self.write(text)
        (folder / "models.yaml").symlink_to("..data/models.yaml")

    def write(self, text: str) -> None:
        self._n += 1
        new = self.folder / f"..2026_11_25_12_00_0{self._n}.123"
        new.mkdir()
        (new / "models.yaml").write_text(text)
        (self.folder / "..data_tmp").symlink_to(new.name)
        before = (self.folder / "..data").resolve() if self._n > 1 else None
        (self.folder / "..data_tmp").rename(self.folder / "..data")
        if before is not None:
            shutil.rmtree(before)


def test_a_swapped_link_is_taken_over_by_the_running_daemon(tmp_path: Path) -> None:
    text = DEMO % {"models": MODELS, "one": ", n_threads: 1"}
    mounted = tmp_path / "etc"
    mounted.mkdir()
    volume = Volume(mounted, text)
    config = mounted / "models.yaml"
    with Daemon(config) as daemon:
        daemon.wait_ready()
        with daemon.events() as events:
            next(iter(events))
            volume.write(text + MORE % MODELS)
            events.until(lambda e: e.name == "config_reloaded")
            assert events.seen[-1].data["added"] == ["another"]
            volume.write(text + "nonsense: 1\n")
            events.until(lambda e: e.name == "config_error")
            assert "nonsense" in events.seen[-1].data["message"]
        status = daemon.get("/status")
        assert (status["state"], status["current_model"], status["generation"]) == ("ready", "demo-stories", 1)
