"""Completions, asked of real shells: of a made-up program that has all that a parser may hold, and of modeld itself."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from modeld.arguments import COMMANDS, parser
from modeld.cli.commandtree import tree
from modeld.cli.completion import GENERATORS
from tests.shells import Fish, Shell, shell

IDS = """#!/bin/sh
# Stands for a modeld that a daemon has answered.
printf '%s\\n' "$*" >> {log}
case $1 in
models) echo '{{"models": [{{"id": "qwen2.5:7b", "name": "a b"}}, {{"id":"qwen2.5:14b"}}, {{"id": "mistral"}}]}}' ;;
ops) echo '{{"ops": [{{"op_id": "op-1"}}, {{"op_id": "op-2"}}]}}' ;;
esac
"""


def made_up() -> argparse.ArgumentParser:
    program = argparse.ArgumentParser(prog="modeld")
    program.add_argument("--version", action="version", version="1")
    commands = program.add_subparsers(metavar="COMMAND")
    for name in ("models", "ops"):
        commands.add_parser(name, help=f"list {name}: all")
    one = commands.add_parser("switch", help="it's [one]")
    one.add_argument("--server", metavar="URL", help="where: http://...")
    one.add_argument("--key-file", type=Path, metavar="FILE", help="key")
    one.add_argument("--on-busy", choices=("queue", "reject"), help="what else")
    one.add_argument("--text", help=argparse.SUPPRESS)
    rivals = one.add_mutually_exclusive_group()
    rivals.add_argument("--wait", action="store_true", help="wait")
    rivals.add_argument("--no-wait", action="store_true", help="do not")
    one.add_argument("-v", "--verbose", action="count", help="more")
    one.add_argument("model_id", metavar="ID")
    several = commands.add_parser("verify", help="several")
    several.add_argument("model_ids", metavar="MODEL_ID", nargs="*")
    nested = commands.add_parser("op", help="one of them").add_subparsers(metavar="WHAT")
    cancel = nested.add_parser("cancel", help="end it")
    cancel.add_argument("op_id", metavar="ID")
    cancel.add_argument("how", choices=("soon", "now"))
    return program


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("shells")
    for name in ("bin", "work", "work/sub"):
        (made / name).mkdir()
    (made / "work" / "conf.yaml").touch()
    (made / "bin" / "modeld").write_text(IDS.format(log=made / "asked"))
    (made / "bin" / "modeld").chmod(0o755)
    return made


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}


@pytest.fixture(scope="module", params=["bash", "zsh", "fish"])
def at(request: pytest.FixtureRequest, folder: Path) -> Iterator[Shell | Fish]:
    script = folder / f"script.{request.param}"
    script.write_text(GENERATORS[request.param](tree(made_up())))
    with shell(request.param, script, folder / "work", environment(folder)) as one:
        yield one


CASES = {
    "modeld ": "models op ops switch verify",
    "modeld sw": "switch",
    "modeld -": "--help --version -h",
    "modeld switch --on": "--on-busy",
    "modeld switch --on-busy ": "queue reject",
    "modeld switch --on-busy re": "reject",
    "modeld switch --on-busy=re": "--on-busy=reject",
    "modeld switch --key-file co": "conf.yaml",
    "modeld switch ": "mistral qwen2.5:14b qwen2.5:7b",
    "modeld switch qwen2.5:1": "qwen2.5:14b",
    "modeld switch --verbose qw": "qwen2.5:14b qwen2.5:7b",
    "modeld switch --on-busy queue m": "mistral",
    "modeld verify mistral qwen2.5:7": "qwen2.5:7b",
    "modeld op ": "cancel",
    "modeld op cancel ": "op-1 op-2",
    "modeld op cancel op-1 ": "now soon",
}


@pytest.mark.parametrize("line", CASES)
def test_a_shell_offers_what_the_parser_takes(at: Shell | Fish, line: str) -> None:
    offered = at.completed(line)
    if line.endswith("-"):  # fish shows short flags in other company
        assert {"--help", "--version"} <= set(offered)
    else:
        assert sorted(offered) == CASES[line].split()


def test_nothing_is_offered_where_nothing_is_taken(at: Shell | Fish) -> None:
    for line in ("modeld models ", "modeld switch --server ", "modeld switch mistral ", "modeld switch --te", "modeld nothing "):
        offered = set(at.completed(line)) - {line.split()[-1]}  # a word that nothing fits stays
        assert not [word for word in offered if not word.startswith("-")]  # zsh goes on to flags
        assert "--text" not in offered


def test_the_daemon_is_asked_that_the_line_is_for(at: Shell | Fish, folder: Path) -> None:
    (folder / "asked").write_text("")
    at.completed("modeld switch --server http://[::1]:9000 --key-file=conf.yaml mis")
    asked = (folder / "asked").read_text().splitlines()
    assert asked
    assert set(asked) == {"models --json --server http://[::1]:9000 --key-file=conf.yaml"}


def test_zsh_offers_one_of_two_that_exclude_each_other(folder: Path) -> None:
    script = folder / "exclusive.zsh"
    script.write_text(GENERATORS["zsh"](tree(made_up())))
    with shell("zsh", script, folder / "work", environment(folder)) as at:
        assert at.completed("modeld switch --wa") == ["--wait"]
        assert "--wait" not in at.completed("modeld switch --no-wait --")


def test_zsh_loads_it_from_a_folder_of_its_fpath(folder: Path) -> None:
    """As a package installs it: a file _modeld, whose first call defines what it calls."""
    functions = folder / "functions"
    functions.mkdir()
    (functions / "_modeld").write_text(GENERATORS["zsh"](tree(made_up())))
    script = folder / "fpath.zsh"
    script.write_text(f"fpath=({functions} $fpath)\ncompinit -D -u\n")
    with shell("zsh", script, folder / "work", environment(folder)) as at:
        assert at.completed("modeld sw") == ["switch"]
        assert at.completed("modeld switch --on-busy re") == ["reject"]


@pytest.mark.parametrize("name", GENERATORS)
def test_every_command_and_flag_of_modeld_is_offered(name: str, folder: Path) -> None:
    program = tree(parser())
    script = folder / f"modeld.{name}"
    script.write_text(GENERATORS[name](program))
    with shell(name, script, folder / "work", environment(folder)) as at:
        assert sorted(at.completed("modeld ")) == sorted(command.name for command in COMMANDS)
        for node in program.walk():
            wanted = {name for flag in node.flags for name in flag.names if name.startswith("--")}
            assert wanted <= set(at.completed(f"{node.path} --")), node.path


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_a_daemon_that_does_not_answer_costs_no_message(name: str, folder: Path, tmp_path: Path) -> None:
    program = tmp_path / "modeld"
    program.write_text("#!/bin/sh\necho 'no daemon there' >&2\nexit 1\n")
    program.chmod(0o755)
    script = folder / f"alone.{name}"
    script.write_text(GENERATORS[name](tree(made_up())))
    with shell(name, script, folder / "work", {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}) as at:
        assert at.completed("modeld switch mi") in ([], ["mi"])


def test_the_command_prints_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    from modeld.app import main

    for name, generate in GENERATORS.items():
        assert main(["completion", name]) == 0
        assert capsys.readouterr().out == generate(tree(parser()))
