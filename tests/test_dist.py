"""What is handed over: the same bytes from two folders, a package that lintian accepts, wheels, a bill of materials, floors."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from modeld import __version__
from modeld.arguments import COMMANDS
from scripts.bundle import MAIN
from scripts.dist import airgap, deb, elf, release, sbom, share
from scripts.dist.files import Tree
from scripts.dist.release import GLIBC, PYTHON, DistError, digest, dotted
from tests.dist_set import native_set

ROOT = Path(__file__).resolve().parent.parent
STORIES = ROOT / "models" / "demo-stories.gguf"
DECODES = (
    "from pathlib import Path\n"
    "from modeld.llm.probe import probe\n"
    "from modeld.types import ModelSpec\n"
    f"print(probe(ModelSpec(id='a', path=Path({os.fspath(STORIES)!r})), lambda: True, timeout_s=60).own_bytes)\n"
)


def run(*args: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [os.fspath(arg) for arg in args]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=110, check=False)


def needed(tool: str, package: str) -> str:
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"{tool} is not here: apt-get install {package}")
    return found


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return native_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def twice(libraries: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What was made in the first of two folders, and the comparison with the second."""
    needed("dpkg-deb", "dpkg")
    work = tmp_path_factory.mktemp("twice")
    flags = ("--libraries", libraries, "--allow-native", "--fast", "--work", work)
    done = run(sys.executable, "-m", "scripts.dist.twice", *flags, cwd=ROOT, env=os.environ | {"SOURCE_DATE_EPOCH": "1767225600"})
    assert done.returncode == 0, done.stdout + done.stderr
    return work / "one" / "dist", done.stdout


@pytest.fixture(scope="module")
def handed(twice: tuple[Path, str]) -> Path:
    return twice[0]


@pytest.fixture(scope="module")
def package(handed: Path) -> Path:
    [path] = handed.glob("*.deb")
    return path


@pytest.fixture(scope="module")
def unpacked(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deb")
    assert run("dpkg-deb", "--raw-extract", package, folder / "tree").returncode == 0
    return folder / "tree"


# -- the same bytes -------------------------------------------------------------------------------------------------------


def test_two_folders_give_the_same_bytes(twice: tuple[Path, str]) -> None:
    assert "identical, bit for bit" in twice[1]


def test_all_that_is_promised_is_there_with_its_digest(handed: Path) -> None:
    names = {path.name for path in handed.iterdir()}
    platform = f"manylinux_{GLIBC[0]}_{GLIBC[1]}_x86_64"
    assert {
        "modeld",
        "SHA256SUMS",
        "sbom.cdx.json",
        f"modeld-{__version__}-py3-none-{platform}.whl",
        f"modeld_{__version__}_amd64.deb",
        f"modeld-{__version__}-linux-x86_64.tar.gz",
    } < names
    lines = [line.split("  ") for line in (handed / "SHA256SUMS").read_text().splitlines()]
    assert {name: value for value, name in lines} == {name: digest(handed / name) for name in names - {"SHA256SUMS"}}


def test_archives_tell_nothing_of_the_host_that_made_them(handed: Path) -> None:
    [bundle] = handed.glob("*.tar.gz")
    assert bundle.read_bytes()[4:8] == b"\0\0\0\0"  # gzip's own time
    with tarfile.open(bundle) as tar:
        members = tar.getmembers()
    names = [member.name for member in members if member.isfile()]
    assert names == sorted(names)
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members} == {(0, 0, "", "", 1767225600)}
    assert {m.mode for m in members} == {0o644, 0o755}
    assert all(m.isfile() or m.isdir() for m in members)
    for wheel in handed.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            assert len({info.date_time for info in archive.infolist()}) == 1


def test_a_tree_keeps_no_two_files_of_one_name_and_none_outside() -> None:
    tree = Tree()
    tree.add("a/b", "1")
    for name in ("a/b", "/a", "a/../b"):
        with pytest.raises(AssertionError):
            tree.add(name, "2")


# -- floors ---------------------------------------------------------------------------------------------------------------


def test_the_floors_are_told_alike_everywhere(handed: Path, unpacked: Path, libraries: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={dotted(PYTHON)}"
    assert f"sys.version_info < {PYTHON}" in MAIN
    depends = re.search(r"^Depends: (.*)$", (unpacked / "DEBIAN" / "control").read_text(), re.MULTILINE)
    assert depends
    assert depends[1] == f"libc6 (>= {dotted(GLIBC)}), python3 (>= {dotted(PYTHON)}), python3-yaml"
    facts = dict(line.split("=", 1) for line in airgap.facts(release.read(libraries, allow_native=True)).splitlines())
    assert (facts["glibc"], facts["python"]) == (dotted(GLIBC), dotted(PYTHON))
    page = (ROOT / "docs" / "installing.md").read_text()
    assert f"glibc {dotted(GLIBC)}" in page
    assert f"Python {dotted(PYTHON)}" in page
    bill = json.loads((handed / "sbom.cdx.json").read_text())
    properties = {one["name"]: one["value"] for one in bill["metadata"]["component"]["properties"]}
    assert properties["modeld:floor:glibc"] == dotted(GLIBC)


def test_what_a_library_wants_is_what_readelf_says(libraries: Path) -> None:
    needed("readelf", "binutils")
    library = libraries / "x86-64-v3" / "libllama.so"
    found = elf.read(library)
    assert {*found.needed} == {*re.findall(r"NEEDED.*\[(.*)\]", run("readelf", "-dW", library).stdout)}
    assert {*found.versions} == {*re.findall(r"Name: (\S+)", run("readelf", "-VW", library).stdout.split(".gnu.version_r")[1])}
    assert (2, 17) <= found.glibc <= GLIBC
    with pytest.raises(ValueError, match="no 64-bit"):
        elf.read(ROOT / "LICENSE")


def test_a_set_that_must_not_leave_the_house_is_refused(libraries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DistError, match=r"holds no VARIANT/libllama\.so"):
        release.read(tmp_path)
    with pytest.raises(DistError, match="this host's CPU alone"):
        release.read(libraries)
    copied = tmp_path / "set"
    shutil.copytree(libraries, copied)
    with (copied / "x86-64-v3" / "libllama.so").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(DistError, match="is not the library"):
        release.read(copied, allow_native=True)
    (copied / "x86-64-v3" / "libllama.stamp.json").unlink()
    with pytest.raises(DistError, match="no stamp"):
        release.read(copied, allow_native=True)
    wants = elf.read(libraries / "x86-64-v3" / "libllama.so")
    monkeypatch.setattr(elf, "read", lambda _: dataclasses.replace(wants, versions=("GLIBC_2.39", "GLIBC_2.4")))
    with pytest.raises(DistError, match=r"want glibc 2\.39, 2\.36 is promised"):
        release.read(libraries, allow_native=True)
    monkeypatch.setattr(elf, "read", lambda _: dataclasses.replace(wants, needed=("libc.so.6", "libcudart.so.12")))
    with pytest.raises(DistError, match=r"wants libcudart\.so\.12"):
        release.read(libraries, allow_native=True)


# -- the Debian package -----------------------------------------------------------------------------------------------------


def test_lintian_finds_nothing(package: Path) -> None:
    done = run(needed("lintian", "lintian"), "--allow-root", package)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_package_has_what_an_administrator_looks_for(package: Path, unpacked: Path) -> None:
    listed = run("dpkg-deb", "--contents", package).stdout.splitlines()
    owners = {line.split()[1] for line in listed}
    names = {line.split()[-1].removeprefix("./") for line in listed if not line.endswith("/")}
    assert owners == {"root/root"}
    assert {
        "usr/bin/modeld",
        "usr/lib/systemd/system/modeld.service",
        "etc/modeld/models.yaml",
        "usr/share/man/man5/modeld.yaml.5.gz",
        "usr/share/bash-completion/completions/modeld",
        "usr/share/zsh/vendor-completions/_modeld",
        "usr/share/fish/vendor_completions.d/modeld.fish",
        "usr/share/modeld/models/demo-stories.gguf",
        "usr/share/doc/modeld/README.md",
        "usr/share/doc/modeld/docs/installing.md",
        "usr/share/doc/modeld/deploy/prometheus-alerts.yml",
        "usr/share/doc/modeld/copyright",
        "usr/lib/modeld/modeld/libraries/x86-64-v3/libllama.so",
        "usr/lib/modeld/modeld/llm/reference/selftest.json",
        "usr/lib/modeld/modeld/deploy/modeld.service",
    } < names
    assert {f"usr/share/man/man1/modeld-{command.name}.1.gz" for command in COMMANDS} < names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    assert (unpacked / "DEBIAN" / "conffiles").read_text() == "/etc/modeld/models.yaml\n"
    # Each path that a file of it names as its own is there.
    unit = (unpacked / "usr/lib/systemd/system/modeld.service").read_text()
    assert "/usr/local" not in unit
    for path in re.findall(r"(?:file://|ExecStart=|--config )(/\S+)", unit):
        assert path.lstrip("/") in names
    for path in re.findall(r"path: (/\S+)", (unpacked / "etc/modeld/models.yaml").read_text()):
        assert path.lstrip("/") in names
    with gzip.open(unpacked / "usr/share/doc/modeld/changelog.gz", "rt") as file:
        assert file.readline() == f"modeld ({__version__}) stable; urgency=medium\n"


def test_the_packaged_modeld_decodes_with_its_own_library(unpacked: Path) -> None:
    home = unpacked / "usr" / "lib" / "modeld"
    done = run(sys.executable, "-I", "-B", "-c", f"import sys; sys.path.insert(0, {os.fspath(home)!r})\n{DECODES}", env={})
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
    program = (unpacked / "usr/bin/modeld").read_text()
    assert program.startswith("#!/usr/bin/python3\n")
    done = run(
        sys.executable, "-B", "-c", program.replace("/usr/lib/modeld", os.fspath(home)).replace("main()", "main(['--version'])")
    )
    assert done.stdout.startswith(f"modeld {__version__} ")


@pytest.mark.parametrize("script", deb.SCRIPTS)
def test_what_dpkg_runs_is_plain_shell(script: str, unpacked: Path) -> None:
    path = unpacked / "DEBIAN" / script
    assert path.stat().st_mode & 0o777 == 0o755
    assert run("sh", "-n", path).returncode == 0
    assert "set -e\n" in path.read_text()


# -- wheels -----------------------------------------------------------------------------------------------------------------


def test_pip_installs_command_and_library_without_an_index(handed: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    assert run(sys.executable, "-m", "venv", "--without-pip", venv).returncode == 0
    python = venv / "bin" / "python"
    pip = ("-m", "pip", "--disable-pip-version-check", "--python", python, "install", "--no-index", "--find-links", handed)
    done = run(sys.executable, *pip, "modeld", env=os.environ | {"PIP_CONFIG_FILE": os.devnull})
    assert done.returncode == 0, done.stdout + done.stderr
    done = run(venv / "bin" / "modeld", "--version", env={}, cwd=tmp_path)
    assert (done.returncode, done.stdout.split()[1]) == (0, __version__)
    done = run(python, "-I", "-c", f"import yaml\nassert not yaml.__with_libyaml__\n{DECODES}", env={}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_the_records_of_the_wheels_are_right(handed: Path) -> None:
    for wheel in handed.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            [name] = [name for name in archive.namelist() if name.endswith("/RECORD")]
            listed = [line.rsplit(",", 2) for line in archive.read(name).decode().splitlines()]
            assert {row[0] for row in listed} == set(archive.namelist())
            assert all(int(row[2]) == archive.getinfo(row[0]).file_size for row in listed if row[2])


# -- the bill of materials -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bill(handed: Path) -> dict[str, object]:
    return dict(json.loads((handed / "sbom.cdx.json").read_text()))


def test_the_bill_is_whole(bill) -> None:
    assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.6", 1)
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", bill["serialNumber"])
    assert bill["metadata"]["timestamp"] == "2026-01-01T00:00:00Z"
    components = [bill["metadata"]["component"], *bill["components"]]
    refs = [one["bom-ref"] for one in components]
    assert len(refs) == len(set(refs))
    assert {edge["ref"] for edge in bill["dependencies"]} == set(refs)
    assert {ref for edge in bill["dependencies"] for ref in edge["dependsOn"]} <= set(refs)
    for one in components:
        assert one["type"] in {"application", "library", "file", "machine-learning-model"}
        assert one["version"]
        for licence in one.get("licenses", ()):
            assert licence in ({"license": {"id": "MIT"}}, {"expression": "GPL-3.0-or-later WITH GCC-exception-3.1"})
        assert one["type"] == "file" or one["licenses"]
        assert re.fullmatch(r"pkg:[a-z]+/[\w./-]+@[\w.-]+", one.get("purl", "pkg:generic/a@1"))
        for found in one.get("hashes", ()):
            assert found["alg"] == "SHA-256"
            assert re.fullmatch("[0-9a-f]{64}", found["content"])


def test_the_bill_names_llama_cpp_by_commit_tree_and_mends(bill) -> None:
    lock = tomllib.loads((ROOT / "third_party" / "llama.cpp.lock").read_text())
    [llama] = [one for one in bill["components"] if one["name"] == "llama.cpp"]
    assert llama["purl"] == f"pkg:github/ggml-org/llama.cpp@{lock['commit']}"
    assert lock["sha256"] in json.dumps(llama["externalReferences"])
    properties = {one["name"]: one["value"] for one in llama["properties"]}
    assert properties["modeld:llama.h-sha256"] == lock["llama_h_sha256"]
    assert len(properties["modeld:tree-sha256"]) == 64
    [patch] = llama["pedigree"]["patches"]
    changed = [line for line in patch["diff"]["text"]["content"].splitlines() if re.match(r"[-+](?![-+])", line)]
    assert changed == ["-            output.reserve(output.size() + symbol.n);"]


def test_the_bill_has_the_digests_of_what_is_handed_over(bill, handed: Path, libraries: Path) -> None:
    hashes = {
        one["name"]: one["hashes"][0]["content"]
        for one in bill["components"]
        if one["type"] in ("file", "library") and "hashes" in one
    }
    assert hashes["bin/modeld"] == digest(handed / "modeld")
    for path in (*handed.glob("*.whl"), *handed.glob("*.deb")):
        assert hashes[f"packages/{path.name}"] == digest(path)
    assert hashes["libllama.so"] == digest(libraries / "x86-64-v3" / "libllama.so")


def test_a_source_tree_has_one_digest(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    (tmp_path / "b").write_text("2")
    lines = f"{hashlib.sha256(b'1').hexdigest()}  a/x\n{hashlib.sha256(b'2').hexdigest()}  b\n"
    assert sbom.tree_digest(tmp_path) == hashlib.sha256(lines.encode()).hexdigest()
    (tmp_path / ".modeld-fetched").write_text("of make fetch")
    assert sbom.tree_digest(tmp_path) == hashlib.sha256(lines.encode()).hexdigest()


# -- the bundle -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(handed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    [archive] = handed.glob("*.tar.gz")
    folder = tmp_path_factory.mktemp("bundle")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    [top] = folder.iterdir()
    return top


def test_the_bundle_installs_a_program_that_accepts_its_configuration(bundle: Path, tmp_path: Path) -> None:
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "TMPDIR": os.fspath(tmp_path)}
    prefix = tmp_path / "prefix"
    done = run("sh", bundle / "install.sh", "--prefix", prefix, env=environment)
    assert done.returncode == 0, done.stderr
    done = run(prefix / "bin/modeld", "check", "--config", prefix / "etc/modeld/models.yaml", env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in share.MODELS:
        assert os.fspath(prefix / "share/modeld/models" / name) in done.stdout


def test_what_the_archive_holds_is_what_lies_beside_it(bundle: Path, handed: Path) -> None:
    for path in (*bundle.glob("packages/*"), bundle / "bin" / "modeld", bundle / "sbom.cdx.json"):
        assert path.read_bytes() == (handed / path.name).read_bytes()


def test_pages_lead_to_pages_that_came_along(bundle: Path) -> None:
    for page in (bundle / "share" / share.DOC).rglob("*.md"):
        for link in re.findall(r"\]\(([^)\s#]+)[^)\s]*\)", page.read_text()):
            assert "://" in link or (page.parent / link).exists(), f"{page.name}: {link}"


# -- what lies beside the program ---------------------------------------------------------------------------------------------


def test_each_licence_comes_along(handed: Path) -> None:
    [bundle] = handed.glob("*.tar.gz")
    with tarfile.open(bundle) as tar:
        found = {Path(name).stem for name in tar.getnames() if f"/{share.DOC}/licenses/" in name}
    assert found == {"modeld", "llama.cpp", "llamafile", "YaRN", "PyYAML", "gcc-runtime"}
