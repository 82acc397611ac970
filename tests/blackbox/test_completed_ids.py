"""Ids that a shell offers are those of the daemon which the line is for."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from modeld.arguments import parser
from modeld.cli.commandtree import tree
from modeld.cli.completion import GENERATORS
from tests.daemon import ROOT, Daemon
from tests.shells import shell


@pytest.mark.parametrize("name", GENERATORS)
def test_a_shell_offers_the_ids_of_the_daemon(name: str, daemon: Daemon, tmp_path: Path) -> None:
    assert daemon.switch_and_wait("demo-calc")["state"] == "succeeded"
    op_ids = {op["op_id"] for op in daemon.get("/ops")["ops"]}
    program = tmp_path / "modeld"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m modeld "$@"\n')
    program.chmod(0o755)
    script = tmp_path / f"script.{name}"
    script.write_text(GENERATORS[name](tree(parser())).replace("timeout 2 ", "timeout 60 "))  # a loaded machine
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "MODELD_SERVER": "http://127.0.0.1:1"}
    with shell(name, script, tmp_path, environment) as at:
        assert sorted(at.completed(f"modeld switch --server {daemon.url} ")) == ["demo-calc", "demo-stories"]
        assert at.completed(f"modeld switch --wait --server={daemon.url} demo-c") == ["demo-calc"]
        assert set(at.completed(f"modeld ops --server {daemon.url} ")) == op_ids
        assert at.completed("modeld switch demo") in ([], ["demo"])  # nobody listens there
