"""A configuration that Kubernetes mounts: the kubelet swaps a link to a folder, and the daemon takes the new file over."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.daemon import MODELS, Daemon

ONE = "server: {{port: 0}}\nmodels: [{{id: assistant, path: {models}/{name}.gguf, n_ctx: 2048, n_threads: 1}}]\n"
SUM = {"messages": [{"role": "user", "content": "12+30="}], "max_tokens": 8, "temperature": 0, "model": "assistant"}


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


def test_a_swapped_link_gives_a_name_another_file_and_the_next_switch_loads_it(tmp_path: Path) -> None:
    """So a cluster comes to another model, and clients go on to call it as they did."""
    mounted = tmp_path / "etc"
    mounted.mkdir()
    volume = Volume(mounted, ONE.format(models=MODELS, name="demo-stories"))
    with Daemon(mounted / "models.yaml") as daemon:
        daemon.wait_ready()
        with daemon.events() as events:
            next(iter(events))
            volume.write(ONE.format(models=MODELS, name="demo-calc"))
            events.until(lambda e: e.name == "config_reloaded")
        assert events.seen[-1].data["altered"] == ["assistant"]
        status = daemon.get("/status")
        assert (status["state"], status["generation"], status["config_stale"]) == ("ready", 1, True)
        op = daemon.switched("assistant", on_inflight="drain", ready_delay_s=0.1)
        assert (op["state"], "divert" in op["steps_ms"]) == ("succeeded", True)
        answer = daemon.request("POST", "/v1/chat/completions", SUM)[2]
        assert answer["choices"][0]["message"]["content"] == "42"
        assert daemon.get("/status")["config_stale"] is False
