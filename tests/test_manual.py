"""The manual pages: valid roff, the same bytes each time, and nothing of the parser or of the tables is missing on them."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from modeld import __date__, exits
from modeld.app import main
from modeld.arguments import COMMANDS, parser
from modeld.cli.commandtree import Node, tree
from modeld.cli.manual import STATUSES, VARIABLES, pages, roff
from modeld.cli.page import Code, Entry, Page, Section, Text, to_roff, to_text
from modeld.settings import LIMIT_KEYS, MODEL_KEYS, SERVER_KEYS, SWITCHING_KEYS

ROOT = Path(__file__).resolve().parent.parent
PAGES = {page.name: page for page in pages()}
NODES = {"-".join(node.words): node for node in tree(parser()).walk()}


def plain(page: Page) -> str:
    return to_text(page, version="", manual="")


def tool(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install {package}")
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("manual") / "new"
    assert main(["manual", "--output", str(folder)]) == exits.OK
    return folder


def test_there_is_a_page_for_the_program_for_each_command_and_for_the_configuration(written: Path) -> None:
    names = {"modeld.1", "modeld.yaml.5", *(f"modeld-{command.name}.1" for command in COMMANDS)}
    assert names <= {path.name for path in written.iterdir()}
    assert {path.name for path in written.iterdir()} == {page.file_name for page in PAGES.values()}


def test_mandoc_has_nothing_to_say(written: Path) -> None:
    said = subprocess.run(
        [tool("mandoc", "mandoc"), "-T", "lint", "-W", "all", *sorted(written.iterdir())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (said.returncode, said.stdout + said.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "package", "flags"),
    [("groff", "groff", ["-man", "-ww", "-Tutf8", "-z"]), ("man", "man-db", ["--warnings", "-l"])],
)
def test_groff_and_man_warn_of_nothing(written: Path, name: str, package: str, flags: list[str]) -> None:
    for path in sorted(written.iterdir()):
        said = subprocess.run([tool(name, package), *flags, path], capture_output=True, text=True, check=False)
        assert (said.returncode, said.stderr) == (0, ""), path.name


def test_man_finds_every_page_by_its_name(written: Path) -> None:
    """As `man -k` and `whatis` read the NAME section."""
    said = subprocess.run([tool("lexgrog", "man-db"), *written.iterdir()], capture_output=True, text=True, check=True).stdout
    names = set(re.findall(r': "(\S+) - \S', said))
    assert names == {*PAGES, "models.yaml"}


def test_pages_are_the_same_bytes_each_time(written: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONHASHSEED": "7", "COLUMNS": "40"}
    subprocess.run(
        [sys.executable, "-m", "modeld", "manual", "--output", tmp_path], env=environment, cwd=ROOT, check=True, timeout=60
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in written.iterdir()
    }
    assert all(f" {__date__} " in path.read_text() for path in written.iterdir())


@pytest.mark.parametrize("name", NODES)
def test_a_page_has_all_that_its_command_takes(name: str) -> None:
    node, text = NODES[name], " ".join(plain(PAGES[name]).split())
    assert re.search(rf"NAME {name} - \S", text)
    for flag in node.flags:
        assert ", ".join(flag.names).partition(",")[0] in text
        assert " ".join(flag.help.split())[1:60].rstrip(".").replace("`", "") in text
    for value in [place.value for place in node.places] + [flag.value for flag in node.flags if flag.value is not None]:
        assert all(choice in text for choice in value.choices or (value.name,))
    assert all(f"modeld-{command.name}(1)" in text for command in COMMANDS) == (name == "modeld")


@pytest.mark.parametrize("node", NODES.values(), ids=NODES)
def test_every_flag_and_argument_has_a_help_text(node: Node) -> None:
    assert not [flag.names for flag in node.flags if not flag.help]
    assert not [place.value.name for place in node.places if not place.help]
    assert node.help or len(node.words) == 1


@pytest.mark.parametrize("name", [name for name, node in NODES.items() if "Exit status: " in node.description])
def test_exit_statuses_have_a_section_of_their_own(name: str) -> None:
    told = NODES[name].description.partition("Exit status: ")[2]
    [section] = [section for section in PAGES[name].sections if section.title == "EXIT STATUS"]
    numbers = [block.term.strip("`") for block in section.blocks if isinstance(block, Entry)]
    assert numbers == re.findall(r"(?:^|[,;] )(\d+)\b", told)
    assert {int(number) for number in numbers} <= set(STATUSES)
    assert "Exit status:" not in plain(PAGES[name])


def test_the_page_of_the_configuration_has_every_key_with_kind_default_and_meaning() -> None:
    text = " ".join(plain(PAGES["modeld.yaml"]).split())
    for key in (*SERVER_KEYS, *SWITCHING_KEYS, *LIMIT_KEYS, *MODEL_KEYS):
        needed = "Required." if key.default == "required" else f"Default: {key.default}."
        doc = key.doc[:1].upper() + key.doc[1:].rstrip(".")
        assert f"{key.name} {doc}. Takes {key.kind.expected}. {needed}".replace("`", "") in text


def test_every_variable_of_the_sources_is_on_the_page() -> None:
    read = {name for path in (ROOT / "modeld").rglob("*.py") for name in re.findall(r'"(MODELD_[A-Z_]+)"', path.read_text())}
    assert read - set(VARIABLES) == set()
    assert {value for name, value in vars(exits).items() if name.isupper()} == set(STATUSES)


def test_what_roff_would_take_for_its_own_is_escaped() -> None:
    blocks = (Text("'a' \\n . `--x-y` <FILE> ~^\"` \u00fc"), Entry(".b", (".c",)), Code(".d\n'e\n  f-g"))
    lines = to_roff(Page("p", 1, (Section("S", blocks),)), date="2000-01-01", version="v", manual="m").splitlines()
    assert [line for line in lines if line.startswith("'")] == []
    assert {line.split()[0] for line in lines if line.startswith(".")} <= set(
        '.\\" .TH .SH .PP .TP .RS .RE .EX .EE .nh .ad'.split()
    )
    assert "\\(aqa\\(aq \\en . \\fB\\-\\-x\\-y\\fR \\fIFILE\\fR \\(ti\\(ha\\(dq\\(ga \\[u00FC]" in lines
    assert {"\\&.b", "\\&.c", "\\&.d", "\\&\\(aqe", "  f\\-g"} - set(lines) <= {"\\&\\(aqe"}


def test_a_page_is_shown_as_text_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["manual", "serve"]) == exits.OK
    said = capsys.readouterr().out
    assert "MODELD-SERVE(1)" in said
    assert "--config FILE" in said
    assert not re.search(r"\\f|\\-|[`\x1b]", said)
    assert main(["manual"]) == exits.OK
    assert capsys.readouterr().out.startswith("MODELD(1)")
    with pytest.raises(SystemExit) as ended:
        main(["manual", "nothing"])
    assert ended.value.code == exits.USAGE


@pytest.mark.parametrize("has_man", [True, False])
def test_on_a_terminal_man_shows_it_where_there_is_one(has_man: bool, tmp_path: Path) -> None:
    if has_man:
        tool("man", "man-db")
    environment = {**os.environ, "MANPAGER": "cat", "PAGER": "cat", "TERM": "xterm", "MANWIDTH": "100"}
    environment |= {} if has_man else {"PATH": str(tmp_path)}
    master, slave = pty.openpty()
    said = bytearray()

    def read() -> None:
        try:
            while got := os.read(master, 65536):
                said.extend(got)
        except OSError:  # EIO: the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    subprocess.run(
        [sys.executable, "-m", "modeld", "manual", "modeld.yaml"],
        stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, env=environment, check=True, timeout=60,
    )  # fmt: skip
    os.close(slave)
    reader.join()
    os.close(master)
    text = re.sub(rb"\x1b\[[0-9;]*m|.\x08", b"", bytes(said)).decode()
    assert "n_parallel" in text
    assert (f"modeld 0.1.0 {__date__}" in " ".join(text.split())) == has_man  # the plain text has no date


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["manual", "--output", str(tmp_path / "file")]) == exits.FAILED
    assert f"cannot write to {tmp_path / 'file'}" in capsys.readouterr().err


def test_a_page_and_a_folder_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["manual", "serve", "--output", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_roff_of_a_page_is_what_is_written(written: Path) -> None:
    assert {page.file_name: roff(page) for page in PAGES.values()} == {path.name: path.read_text() for path in written.iterdir()}
