"""The code on the pages, run as it stands against a daemon with the demo models; unit files, looked at by systemd."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modeld.config import load_config
from tests.daemon import Daemon, demo_config
from tests.documented import PROGRAMS, ROOT, Block, all_blocks

BLOCKS = all_blocks()
TO_RUN = [block for block in BLOCKS if block.mark == "run"]
UNITS = [block for block in BLOCKS if block.mark == "unit"]
# Those of others have top keys of their own: Prometheus', Kubernetes', client.yaml.
OTHERS = re.compile(r"^(scrape_configs|apiVersion|key_file):", re.MULTILINE)
CONFIGURATIONS = [block for block in BLOCKS if block.language == "yaml" and OTHERS.search(block.code) is None]
IN_RECIPES = [block for block in BLOCKS if block.page == "recipes.md"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(demo_config(tmp_path_factory.mktemp("daemon"))) as daemon:
        yield daemon


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home directory with a `modeld` on its path, and the packages of the Node client."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "modeld"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m modeld "$@"\n')
    program.chmod(0o755)
    (tmp_path / "node_modules").symlink_to(ROOT / "tests" / "node" / "node_modules")
    return tmp_path


def test_there_is_something_to_run() -> None:
    assert len(TO_RUN) >= 10
    assert len(CONFIGURATIONS) >= 3
    assert {block.language for block in TO_RUN} == {"sh", "console", "python", "js"}


@pytest.mark.parametrize("block", [block for block in IN_RECIPES if block.language in PROGRAMS], ids=str)
def test_a_recipe_says_whether_it_is_run(block: Block) -> None:
    assert block.mark in ("run", "not run", "unit")
    assert block.said


@pytest.mark.parametrize("block", TO_RUN, ids=str)
def test_a_block_does_what_the_page_says(block: Block, daemon: Daemon, home: Path) -> None:
    language = "sh" if block.language == "console" else block.language
    script = home / {"sh": "block.sh", "python": "block.py", "js": "block.mjs"}[language]
    script.write_text(re.sub(r"(localhost|127\.0\.0\.1):8080", rf"\1:{daemon.port}", block.script))
    command = {
        "sh": ["bash", "-eu", "-o", "pipefail"],
        "python": [sys.executable, "-W", "error"],
        "js": [shutil.which("node") or "node"],
    }[language]
    if language == "js" and not (shutil.which("node") and (ROOT / "tests/node/node_modules/openai").is_dir()):
        pytest.skip("the Node client is not installed: it takes node (>= 18) and npm (Debian: nodejs, npm), then `make test`")
    environment = {
        **os.environ,
        "HOME": str(home),
        "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
        "MODELD_SERVER": daemon.url,
        "NO_PROXY": "127.0.0.1,localhost",
    }
    done = subprocess.run(
        [*command, str(script)], cwd=home, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert block.said in done.stdout, done.stdout + done.stderr


def test_systemd_takes_the_units(home: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not here: apt-get install systemd")
    assert UNITS
    # What another machine has: the installed program, the service, the model of the template.
    for block in UNITS:
        (home / block.said).write_text(block.code.replace("/usr/local/bin/modeld", str(home / "bin" / "modeld")))
    (home / "modeld.service").write_text("[Service]\nExecStart=/bin/true\n")
    (home / "modeld-switch@large.service").symlink_to("modeld-switch@.service")
    names = [str(home / block.said.replace("@.", "@large.")) for block in UNITS]
    done = subprocess.run([analyze, "verify", "--man=no", *names], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("block", CONFIGURATIONS, ids=str)
def test_a_configuration_on_a_page_is_one(block: Block, tmp_path: Path) -> None:
    whole = block.code if re.search(r"^models:", block.code, re.MULTILINE) else f"{block.code}\nmodels: []\n"
    path = tmp_path / "models.yaml"
    path.write_text(whole)
    load_config(path)
