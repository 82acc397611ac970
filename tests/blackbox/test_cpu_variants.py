"""A release whose best library this CPU does not run serves with the next best, and says so."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import pytest
from daemon import DEADLINE_S, ROOT, Daemon, demo_config, kept_beside
from faulty import put

from modeld.llm import variants

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the code that is written into the library is x86-64's")


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    put(folder, "x86-64-amx", "illegal")
    put(folder, "x86-64-v3")
    return folder


@pytest.fixture(scope="module")
def one_file(libraries: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("bin") / "modeld"
    subprocess.run([sys.executable, ROOT / "scripts" / "bundle.py", target, "--libraries", libraries], check=True)
    return target


def environ(config: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("MODELD_LIBRARY", variants.FORCE)}
    return {**kept, **kept_beside(config), **more}


def chosen(daemon: Daemon) -> dict[str, Any]:
    """The log line about the library."""
    return dict(daemon.wait_line(lambda line: line.get("msg") == "library"))


def test_the_next_best_serves_and_is_remembered_until_a_process_dies(one_file: Path, tmp_path: Path) -> None:
    config = demo_config(tmp_path)
    command, env = (sys.executable, str(one_file)), environ(config)
    with Daemon(config, command=command, env=env) as daemon:
        line = chosen(daemon)
        assert line["variant"] == "x86-64-v3"
        assert line["chosen"] == "the first that computes right"
        assert line["passed_over"] == "x86-64-amx: died by SIGILL"
        assert isinstance(line["choice_ms"], int)
        daemon.wait_ready()  # the process that tried the model had the same library
        assert daemon.complete(max_tokens=8)["choices"][0]["text"]
        with urllib.request.urlopen(f"{daemon.url}/metrics", timeout=DEADLINE_S) as answer:
            metrics = answer.read().decode()
        assert re.search(r'^modeld_build_info\{[^}]*cpu_variant="x86-64-v3"[^}]*\} 1$', metrics, re.MULTILINE)

    daemon = Daemon(config, command=command, env=env)
    line = chosen(daemon)
    assert (line["variant"], line["chosen"]) == ("x86-64-v3", "remembered")
    assert "passed_over" not in line
    assert daemon.stop(signal.SIGKILL) == -signal.SIGKILL

    with Daemon(config, command=command, env=env) as daemon:
        assert chosen(daemon)["chosen"] == "the first that computes right"


def test_a_daemon_goes_on_where_its_file_is_replaced_or_removed(one_file: Path, tmp_path: Path) -> None:
    """The process that tries a model has the modules of the daemon, not those of an upgrade; Jinja's are not found any more."""
    config = demo_config(tmp_path)
    file = Path(shutil.copy(one_file, tmp_path / "modeld"))
    with Daemon(config, command=(sys.executable, str(file)), env=environ(config)) as daemon:
        daemon.wait_ready()
        file.unlink()
        for path in ("/", "/openapi.json"):
            asked = urllib.request.Request(f"{daemon.url}{path}", headers={"Accept": "text/html"})
            with urllib.request.urlopen(asked, timeout=DEADLINE_S) as answer:
                assert answer.status == 200
        for model in ("demo-calc", "demo-stories"):
            assert daemon.switch_and_wait(model)["state"] == "succeeded"
        assert daemon.complete(max_tokens=8)["choices"][0]["text"]


def test_a_second_start_by_mistake_leaves_what_is_remembered_of_the_first(one_file: Path, tmp_path: Path) -> None:
    """Else one whose library ends it later would be taken for one that ended in order."""
    config = demo_config(tmp_path)
    with Daemon(config, command=(sys.executable, str(one_file)), env=environ(config)) as daemon:
        file = tmp_path / "state" / variants.FILE
        before = file.read_bytes()
        assert json.loads(before)["running"] is True
        done = subprocess.run(
            [sys.executable, one_file, "serve", "--config", config, "--port", daemon.url.rpartition(":")[2]],
            env=environ(config),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert (done.returncode, "in use" in done.stderr) == (1, True), done.stderr
        assert file.read_bytes() == before
    assert json.loads(file.read_bytes())["running"] is False


def test_one_that_is_named_and_does_not_run_is_a_failure_to_start(one_file: Path, tmp_path: Path) -> None:
    config = demo_config(tmp_path)
    done = subprocess.run(
        [sys.executable, one_file, "serve", "--config", config, "--port", "0"],
        env=environ(config, MODELD_CPU_VARIANT="x86-64-amx"),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 1
    assert "MODELD_CPU_VARIANT names a library that does not run here: x86-64-amx: died by SIGILL" in done.stderr


def test_a_wheel_chooses_from_the_set_beside_its_modules(libraries: Path, tmp_path: Path) -> None:
    command = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT)
    subprocess.run(command, env=os.environ | {"MODELD_LIBRARIES": str(libraries)}, capture_output=True, check=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    package = tmp_path / "site" / "modeld"
    assert not (package / "libllama.so").exists()
    config = demo_config(tmp_path)
    env = environ(config, PYTHONPATH=str(tmp_path / "site"))
    with Daemon(config, command=(sys.executable, "-m", "modeld"), env=env) as daemon:
        line = chosen(daemon)
        assert (line["variant"], line["passed_over"]) == ("x86-64-v3", "x86-64-amx: died by SIGILL")
        assert line["path"] == str(package / "libraries" / "x86-64-v3" / "libllama.so")
        daemon.wait_ready()
        assert daemon.complete(max_tokens=8)["choices"][0]["text"]
