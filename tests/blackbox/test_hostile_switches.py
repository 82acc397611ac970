"""Switches of one daemon to hostile files: it lives, says what is wrong with each, and goes on answering."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from modeld.llm.gguf import inspect
from tests.daemon import Daemon, demo_config
from tests.hostile import Hostile
from tests.hostile_gguf import all_hostile
from tests.try_models import spec_of

N_TRIED = 6  # by default, of those that the head does not betray and that survive: a process for each, 0.3 s
GENERIC = re.compile(r"gave no reason|unknown error|Traceback|fault of modeld's own", re.IGNORECASE)


def config_of(hostile: list[Hostile], folder: Path) -> Path:
    entries = "".join(
        f"  - {{id: {ids(h)}, path: {folder}/{h.name}/{next(iter(h.files()))}, n_ctx: 256, n_parallel: 1, n_threads: 1}}\n"
        for h in hostile
    )
    return demo_config(folder, entries + "switching: {cooldown_failures: 0}\n", one_thread=True)


def ids(hostile: Hostile) -> str:
    return re.sub(r"[^A-Za-z0-9._:-]", "_", hostile.name)


def written(hostile: Hostile, folder: Path) -> list[Path]:
    place = folder / hostile.name
    place.mkdir()
    paths = []
    for name, raw in hostile.files().items():
        (place / name).write_bytes(raw)
        paths.append(place / name)
    return paths


def selection() -> list[Hostile]:
    """Every third, and all that end whatever process computes with them."""
    found = all_hostile()
    return found[::3] + [one for one in found if one.needs_probe and one not in found[::3]]


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["some", "all"])
@pytest.mark.timeout(600)
def test_no_hostile_file_ends_the_daemon_or_the_model_that_answers(tmp_path: Path, *, whole: bool) -> None:
    hostile = all_hostile() if whole else selection()
    n_tried = 0
    table: list[tuple[str, str, str]] = []
    with Daemon(config_of(hostile, tmp_path)) as daemon:
        daemon.wait_ready()
        greedy = daemon.complete(max_tokens=8)["choices"][0]["text"]
        for one in hostile:
            paths = written(one, tmp_path)
            if not one.needs_probe and inspect(spec_of(paths[0])).problem is None:
                n_tried += 1
                if n_tried > N_TRIED and not whole:
                    continue
            before = daemon.get("/status")["generation"]
            op = daemon.switched(ids(one))
            assert daemon.process.poll() is None, f"{one.name} ended the daemon: {daemon.lines[-5:]}"
            assert daemon.request("GET", "/livez")[0] == 200
            if op.get("state") == "succeeded":  # refused at once, it is an error and no op
                table.append((one.name, "", "it runs"))
                daemon.switched("demo-stories")
            else:
                error = op["error"]
                reason = (
                    error["message"].replace(f"{paths[0]}", "").replace("cannot load ", "").replace(str(tmp_path), "").strip(" :")
                )
                table.append((one.name, error["code"], reason))
                assert error["code"] in ("model_load_failed", "probe_failed", "insufficient_memory"), (one.name, error)
                assert not GENERIC.search(error["message"]), (one.name, error)
                assert 15 < len(reason) < 1000, (one.name, error)
                status = daemon.get("/status")
                assert (status["state"], status["current_model"]) == ("ready", "demo-stories"), (one.name, status)
                if op.get("rolled_back_to") is None:
                    assert status["generation"] == before, one.name  # nothing was taken away
            assert daemon.complete(max_tokens=8)["choices"][0]["text"] == greedy, one.name
            for path in paths:
                path.unlink()
        assert daemon.get("/status")["quarantined"] == []
    for name, code, reason in table:
        print(f"{name:55} {code:20} {reason}")
    print(f"{len(table)} files: {Counter(code or 'runs' for _, code, _ in table)}")
    assert len(table) >= 80
