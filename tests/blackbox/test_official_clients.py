"""The official `openai` clients for Python and Node go over the whole surface, each with a script of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests import tool_templates
from tests.daemon import MODELS, ROOT, Daemon, demo_config

PYTHON = ROOT / "tests" / "python" / "client.py"
NODE = ROOT / "tests" / "node" / "client.mjs"
PYTHON_SECTIONS = re.findall(r"^@section\ndef (\w+)", PYTHON.read_text(), re.MULTILINE)
NODE_SECTIONS = re.findall(r"^section\(\"(\w+)\"", NODE.read_text(), re.MULTILINE)

Problems = dict[str, str | None]


def run(command: list[str], daemon: Daemon) -> Problems:
    """What each section of the script complains of. A warning on stderr is a complaint, too."""
    done = subprocess.run(
        [*command, daemon.url], capture_output=True, text=True, timeout=100, env={**os.environ, "NO_PROXY": "127.0.0.1"}
    )
    problems: Problems = {}
    for line in done.stdout.splitlines():
        told = json.loads(line)
        problems[told["section"]] = told["problem"]
    problems["warnings"] = done.stderr or None
    return problems


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """With a model for embeddings, and one whose template shows tools."""
    more = f"  - {{id: demo-vectors, path: {MODELS}/demo-stories.gguf, n_ctx: 1024, pooling: mean}}\n"
    template = json.dumps(tool_templates.HERMES)
    more += f"  - {{id: demo-tools, path: {MODELS}/demo-stories.gguf, n_ctx: 4096, n_parallel: 2, chat_template: {template}}}\n"
    with Daemon(demo_config(tmp_path_factory.mktemp("daemon"), more)) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def python(shared: Daemon) -> Problems:
    shared.wait_ready()
    return run([sys.executable, "-X", "dev", "-W", "error", str(PYTHON)], shared)


@pytest.fixture(scope="module")
def node(shared: Daemon) -> Problems:
    program = shutil.which("node")
    if program is None or not (NODE.parent / "node_modules" / "openai").is_dir():
        pytest.skip("the Node client is not installed: it takes node (>= 18) and npm (Debian: nodejs, npm), then `make test`")
    shared.wait_ready()
    return run([program, "--throw-deprecation", "--trace-warnings", str(NODE)], shared)


@pytest.mark.parametrize("section", [*PYTHON_SECTIONS, "warnings"])
def test_python(python: Problems, section: str) -> None:
    assert python.get(section, "did not run") is None, python.get(section) or python["warnings"]


@pytest.mark.parametrize("section", [*NODE_SECTIONS, "warnings"])
def test_node(node: Problems, section: str) -> None:
    assert node.get(section, "did not run") is None, node.get(section) or node["warnings"]


def test_both_scripts_go_over_the_same() -> None:
    assert PYTHON_SECTIONS == NODE_SECTIONS


def test_the_lock_names_no_host() -> None:
    lock = json.loads((NODE.parent / "package-lock.json").read_text())
    assert all("resolved" not in package and ("integrity" in package or not name) for name, package in lock["packages"].items())
