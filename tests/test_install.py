"""deploy/install.sh: it refuses what is not as it was packed before it touches anything, asks nothing, and can be undone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.dist.files import Tree

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "deploy" / "install.sh"

# Programs of coreutils, and the shell. Nothing else may be needed.
TOOLS = "sh cat chmod cp dirname id mkdir mktemp mv rm rmdir sha256sum sort uname"

# Stands for bin/modeld: what install.sh asks of it.
PROGRAM = """\
#!/usr/bin/env python3
import sys
print("modeld VERSION (llama.cpp 0c1e570)" if sys.argv[1] == "--version" else "fine")
"""


def bundle(folder: Path, *, version: str = "1.2.3", more: dict[str, str] | None = None) -> Path:
    """A small one, with the real install.sh and the real shape."""
    tree = Tree()
    tree.copy("install.sh", SCRIPT, mode=0o755)
    tree.add("release", f"version={version}\ncommit=abc\nsystem=Linux\nmachine=x86_64\nglibc=2.36\npython=3.11\n")
    tree.add("bin/modeld", PROGRAM.replace("VERSION", version), mode=0o755)
    tree.add("share/man/man1/modeld.1.gz", "page\n")
    tree.add("share/doc/modeld/docs/installing.md", "read me\n")
    tree.add("share/modeld/models/demo.gguf", "weights\n")
    tree.add("share/modeld/models.yaml", "path: /usr/local/share/modeld/models/demo.gguf   # mine\n")
    tree.add("share/modeld/modeld.service", "[Service]\nExecStart=/usr/local/bin/modeld serve --config /etc/modeld/models.yaml\n")
    for name, text in (more or {}).items():
        tree.add(name, text)
    tree.add("SHA256SUMS", tree.sums())
    tree.write(folder, 1767225600)
    return folder


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return bundle(tmp_path / "bundle")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A folder for PATH with coreutils, a shell and a Python, and nothing else; tests put stand-ins into it."""
    folder = tmp_path / "path"
    folder.mkdir()
    for name in TOOLS.split():
        found = shutil.which(name)
        assert found, name
        (folder / name).symlink_to(found)
    (folder / "python3").symlink_to(sys.executable)
    return folder


def stand_in(folder: Path, name: str, script: str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def install(packed: Path, path: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    temporary = tmp_path / "tmp"
    temporary.mkdir()

    def run(*args: str | Path, script: Path = packed / "install.sh") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [os.fspath(path / "sh"), os.fspath(script), *(os.fspath(arg) for arg in args)],
            env={"PATH": os.fspath(path), "TMPDIR": os.fspath(temporary), "HOME": os.fspath(tmp_path)},
            stdin=subprocess.DEVNULL,  # whoever asks gets no answer
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert list(temporary.iterdir()) == [], "temporary files are left"
        return done

    return run


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# -- what is refused ------------------------------------------------------------------------------------------------------


def resum(folder: Path, change: Callable[[str], str]) -> None:
    path = folder / "SHA256SUMS"
    path.write_text(change(path.read_text()))


def elsewhere(folder: Path, name: str) -> None:
    """The file's place is taken by a link to a copy of it: each digest is right."""
    (folder / name).rename(folder.parent / "copy")
    (folder / name).symlink_to(folder.parent / "copy")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file is missing": (lambda top: (top / "share/modeld/models.yaml").unlink(), "share/modeld/models.yaml is missing"),
    "a file is shorter": (lambda top: (top / "bin/modeld").write_text(""), "bin/modeld has changed"),
    "there is one file more": (lambda top: (top / "share/more").write_text(""), "share/more is not in SHA256SUMS"),
    "there is one hidden file more": (lambda top: (top / "share/.more").write_text(""), "share/.more is not in SHA256SUMS"),
    "there is one more with two dots": (lambda top: (top / "..more").write_text(""), "..more is not in SHA256SUMS"),
    "a file is a link to its like": (lambda top: elsewhere(top, "bin/modeld"), "bin/modeld is a symbolic link"),
    "a folder is a link to its like": (lambda top: elsewhere(top, "share/modeld"), "share/modeld is a symbolic link"),
    "the list is a link": (lambda top: elsewhere(top, "SHA256SUMS"), "SHA256SUMS is a symbolic link"),
    "a dangling link more": (lambda top: (top / "bin/x").symlink_to("nowhere"), "bin/x is a symbolic link"),
    "a pipe more": (lambda top: os.mkfifo(top / "bin/x"), "bin/x is neither a file nor a folder"),
    "a name with a line break": (lambda top: (top / "bin/x\ny").write_text(""), "odd characters"),
    "a name with a space": (lambda top: (top / "bin/x y").write_text(""), "odd characters"),
    "there is no list": (lambda top: (top / "SHA256SUMS").unlink(), "holds no SHA256SUMS"),
    "the list is empty": (lambda top: resum(top, lambda _: ""), "SHA256SUMS is empty"),
    "the list leaves the bundle": (
        lambda top: resum(top, lambda t: t + "0" * 64 + "  ../outside\n"),
        "a path outside the bundle",
    ),
    "the list leaves it in the middle": (
        lambda top: resum(top, lambda t: t + "0" * 64 + "  bin/../../x\n"),
        "a path outside the bundle",
    ),
    "the list names a root": (lambda top: resum(top, lambda t: t + "0" * 64 + "  /etc/passwd\n"), "a path outside the bundle"),
    "the list names an option": (lambda top: resum(top, lambda t: t + "0" * 64 + "  -c\n"), "a path outside the bundle"),
    "the list says a thing twice": (lambda top: resum(top, lambda t: t + t.splitlines()[0] + "\n"), "twice"),
    "the list has a short digest": (lambda top: resum(top, lambda t: t + "abc  release\n"), "none of its kind"),
    "the list has another line": (lambda top: resum(top, lambda t: "# hello\n" + t), "none of its kind"),
    "the list comes from Windows": (lambda top: resum(top, lambda t: t.replace("\n", "\r\n")), "a path outside the bundle"),
    "the list leaves one out": (
        lambda top: resum(top, lambda t: "".join(t.splitlines(keepends=True)[1:])),
        "is not in SHA256SUMS",
    ),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_bundle_that_is_not_as_it_was_packed_is_refused(what: str, packed: Path, tmp_path: Path, install) -> None:
    change, said = TAMPERED[what]
    change(packed)
    done = install("--prefix", tmp_path / "prefix")
    assert done.returncode == 1, done.stdout
    assert said in done.stderr
    assert not (tmp_path / "prefix").exists()


def test_one_byte_changed_in_any_file_is_found(packed: Path, tmp_path: Path, install) -> None:
    for name in files(packed):
        if name == "SHA256SUMS":
            continue  # its own bytes are covered by the table above, and by whoever tells the archive's digest
        before = (packed / name).read_bytes()
        if name == "install.sh":  # another byte in the middle could be any program
            (packed / name).write_bytes(before + b"#")
        else:
            flip(packed / name)
        done = install("--prefix", tmp_path / "prefix")
        assert done.returncode == 1, name
        assert f"{name} has changed. Nothing was installed" in done.stderr
        (packed / name).write_bytes(before)
    assert not (tmp_path / "prefix").exists()
    assert install("verify").stdout == "modeld 1.2.3: every file is as it was packed\n"
    assert not (tmp_path / "prefix").exists()


# -- which hosts ----------------------------------------------------------------------------------------------------------


HOSTS = {
    "another machine": (
        "uname",
        "case $1 in -m) echo aarch64 ;; *) echo Linux ;; esac",
        "this is for x86_64; this host is aarch64",
    ),
    "another system": (
        "uname",
        "case $1 in -m) echo x86_64 ;; *) echo FreeBSD ;; esac",
        "this is for Linux; this host runs FreeBSD",
    ),
    "an old Python": ("python3", "echo 3.9", "modeld needs Python 3.11 or newer"),
    "an old glibc": (
        "python3",
        "case $2 in *version_info*) echo 3.11 ;; *) echo glibc 2.31 ;; esac",
        "need glibc 2.36 or newer; this host has 2.31",
    ),
    "no glibc": ("python3", "case $2 in *version_info*) echo 3.12 ;; *) echo ;; esac", "another one (musl?)"),
    "a program that does not run": (
        "python3",
        "case $2 in *version_info*) echo 4.0 ;; *confstr*) echo glibc 3.0 ;; *) echo Segmentation fault; exit 1 ;; esac",
        "bin/modeld does not run here: Segmentation fault",
    ),
    "a user of no rights, without a prefix": ("id", "echo 1000", 'sh install.sh --prefix "$HOME/.local"'),
}


@pytest.mark.parametrize("what", HOSTS)
def test_a_host_that_cannot_run_it_is_told_why(what: str, path: Path, tmp_path: Path, install) -> None:
    tool, script, said = HOSTS[what]
    stand_in(path, tool, script)
    flags = () if tool == "id" else ("--prefix", tmp_path / "prefix")
    done = install(*flags)
    assert done.returncode == 1
    assert said in done.stderr
    assert not (tmp_path / "prefix").exists()


def test_a_host_without_python_is_told_what_to_install(path: Path, tmp_path: Path, install) -> None:
    (path / "python3").unlink()
    done = install("--prefix", tmp_path / "prefix")
    assert (done.returncode, "apt-get install python3" in done.stderr) == (1, True)
    done = install("--prefix", tmp_path / "prefix", "--python", sys.executable)
    assert done.returncode == 0, done.stderr
    unit = (tmp_path / "prefix/lib/systemd/system/modeld.service").read_text()
    assert f"ExecStart={sys.executable} {tmp_path}/prefix/bin/modeld serve" in unit


@pytest.mark.parametrize("args", [["--perfix"], ["--prefix"], ["--prefix", "/"], ["--prefix", "/a b"], ["update"]])
def test_a_wrong_command_line_is_told(args: list[str], install) -> None:
    done = install(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


def test_help_tells_every_flag(install) -> None:
    done = install("--help")
    assert done.returncode == 0
    for word in ("--prefix", "--no-dpkg", "--no-start", "--python", "--purge", "verify", "uninstall"):
        assert word in done.stdout


# -- what is installed ----------------------------------------------------------------------------------------------------


def test_everything_goes_below_the_prefix_and_names_it(packed: Path, tmp_path: Path, install) -> None:
    prefix = tmp_path / "prefix"
    done = install("--prefix", prefix)
    assert done.returncode == 0, done.stderr
    found = files(prefix)
    assert (prefix / "bin/modeld").stat().st_mode & 0o777 == 0o755
    assert found["etc/modeld/models.yaml"].decode() == f"path: {prefix}/share/modeld/models/demo.gguf   # mine\n"
    unit = found["lib/systemd/system/modeld.service"].decode()
    assert f"ExecStart={prefix}/bin/modeld serve --config {prefix}/etc/modeld/models.yaml\n" in unit
    listed = (prefix / "share/modeld/installed").read_text().splitlines()
    names = {name for name in listed if not name.endswith("/")}
    assert {f"{prefix}/{name}" for name in found} == {*names, f"{prefix}/etc/modeld/models.yaml"}
    assert {*listed} - names == {f"{prefix}/", *(f"{path}/" for path in prefix.rglob("*") if path.is_dir())}
    assert str(prefix) in done.stdout


def test_a_second_run_changes_nothing(tmp_path: Path, install) -> None:
    prefix = tmp_path / "prefix"
    first = install("--prefix", prefix)
    before = files(prefix)
    second = install("--prefix", prefix)
    assert (second.returncode, second.stdout) == (0, first.stdout)
    assert files(prefix) == before


def test_an_upgrade_keeps_the_configuration_and_takes_away_what_is_no_more(packed: Path, tmp_path: Path, install) -> None:
    prefix = tmp_path / "prefix"
    old = bundle(tmp_path / "old", version="1.0.0", more={"share/man/man1/modeld-gone.1.gz": "page\n"})
    assert install("--prefix", prefix, script=old / "install.sh").returncode == 0
    assert (prefix / "share/man/man1/modeld-gone.1.gz").exists()
    (prefix / "etc/modeld/models.yaml").write_text("my own\n")
    done = install("--prefix", prefix)
    assert done.returncode == 0, done.stderr
    assert (prefix / "etc/modeld/models.yaml").read_text() == "my own\n"
    assert not (prefix / "share/man/man1/modeld-gone.1.gz").exists()
    assert "1.2.3" in (prefix / "bin/modeld").read_text()
    assert "modeld-gone" not in (prefix / "share/modeld/installed").read_text()


def test_uninstall_leaves_the_configuration_and_purge_nothing(packed: Path, tmp_path: Path, install) -> None:
    prefix = tmp_path / "prefix"
    install("--prefix", prefix)
    other = prefix / "bin" / "another"
    other.write_text("not ours")
    assert install("--prefix", prefix).returncode == 0  # the folders stay known as made by the first
    shutil.rmtree(packed)  # the stick is gone
    done = install("uninstall", "--prefix", prefix, script=prefix / "share/modeld/install.sh")
    assert done.returncode == 0, done.stderr
    assert {*files(prefix)} == {"etc/modeld/models.yaml", "bin/another"}
    shutil.copy(SCRIPT, tmp_path / "install.sh")
    other.unlink()
    done = install("uninstall", "--purge", "--prefix", prefix, script=tmp_path / "install.sh")
    assert done.returncode == 0, done.stderr
    assert files(prefix) == {}
    done = install("uninstall", "--prefix", prefix, script=tmp_path / "install.sh")
    assert (done.returncode, "nothing of modeld is installed" in done.stderr) == (1, True)


@pytest.mark.parametrize("n", [1, 2, 5, 11])
def test_a_run_that_was_cut_can_be_undone_or_completed(n: int, path: Path, tmp_path: Path, install) -> None:
    """The n-th file cannot be put into its place: no space, no power, an impatient administrator."""
    prefix, real = tmp_path / "prefix", os.path.realpath(path / "mv")
    stand_in(
        path,
        "mv",
        f'echo >> {tmp_path}/n; n=0; while read -r _; do n=$((n + 1)); done < {tmp_path}/n\n[ $n -ne {n} ] && {real} "$@"',
    )
    assert install("--prefix", prefix).returncode == 1
    assert not list(prefix.rglob("*.modeld-new"))
    if (prefix / "share/modeld/installed").exists():
        shutil.copytree(prefix, tmp_path / "copy")
        assert install("uninstall", "--purge", "--prefix", prefix).returncode == 0
        assert not prefix.exists()
        (tmp_path / "copy").rename(prefix)
    assert install("--prefix", prefix).returncode == 0
    assert (prefix / "bin/modeld").exists()
    assert install("uninstall", "--purge", "--prefix", prefix).returncode == 0
    assert files(prefix) == {}


def test_purge_at_once_leaves_not_even_a_folder(tmp_path: Path, install) -> None:
    prefix = tmp_path / "new" / "prefix"
    install("--prefix", prefix)
    assert install("uninstall", "--purge", "--prefix", prefix).returncode == 0
    assert not prefix.exists()


def test_folders_that_were_there_before_stay(tmp_path: Path, install) -> None:
    prefix = tmp_path / "prefix"
    (prefix / "share" / "man").mkdir(parents=True)
    install("--prefix", prefix)
    install("uninstall", "--purge", "--prefix", prefix)
    assert [path.relative_to(prefix).as_posix() for path in sorted(prefix.rglob("*"))] == ["share", "share/man"]


def test_a_list_of_installed_files_that_names_others_takes_none_of_them_away(tmp_path: Path, install) -> None:
    prefix, precious = tmp_path / "prefix", tmp_path / "precious"
    precious.write_text("")
    install("--prefix", prefix)
    with (prefix / "share/modeld/installed").open("a") as file:
        file.write(f"{precious}\n{prefix}/../precious\n")
    assert install("uninstall", "--prefix", prefix).returncode == 0
    assert precious.exists()


def test_the_stick_may_lie_under_a_name_with_spaces_and_be_read_only(packed: Path, tmp_path: Path, install) -> None:
    stick = tmp_path / "USB STICK"
    stick.mkdir()
    moved = packed.rename(stick / "bundle")
    for path in sorted(moved.rglob("*"), reverse=True):
        path.chmod(0o555)
    done = install("--prefix", tmp_path / "prefix", script=moved / "install.sh")
    assert done.returncode == 0, done.stderr
    assert install("--prefix", tmp_path / "prefix", script=moved / "install.sh").returncode == 0
