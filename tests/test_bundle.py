"""bin/modeld is one file that needs a Python and nothing else; the wheel holds the library where one is built."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from modeld import __version__

ROOT = Path(__file__).resolve().parent.parent
BUNDLE = ROOT / "bin" / "modeld"


def run(*args: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(arg) for arg in args],
        env={} if env is None else env,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def lonely(tmp_path: Path) -> Path:
    """The file alone in a folder, far from the checkout."""
    return Path(shutil.copy(BUNDLE, tmp_path))


def test_it_runs_with_an_empty_environment_and_no_site_packages(lonely: Path) -> None:
    done = run(sys.executable, "-I", "-S", lonely, "--version", cwd=lonely.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"modeld {__version__}")


def test_it_is_executable_by_itself(lonely: Path) -> None:
    done = run(lonely, "--version", env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}, cwd=lonely.parent)
    assert (done.returncode, done.stderr) == (0, "")


def test_it_opens_its_own_library_and_leaves_nothing_behind(lonely: Path) -> None:
    program = (
        "import sys, os; sys.path.insert(0, sys.argv[1])\n"
        "from modeld.llm import bundle, libllama\n"
        "path, stamp = bundle.library_path()\n"
        "libllama.load_library(path).llama_backend_init()\n"
        "print(path, os.readlink(path), stamp.llama_commit, bundle.__file__)\n"
    )
    temporary = lonely.parent / "tmp"
    temporary.mkdir()
    done = run(sys.executable, "-I", "-S", "-c", program, lonely, env={"TMPDIR": str(temporary)})
    assert done.returncode == 0, done.stderr
    assert re.match(r"/proc/self/fd/\d+ /memfd:libllama.so \(deleted\) ", done.stdout)
    assert str(lonely) in done.stdout.split()[-1]

    # Where memory may not be executed: a file without a name.
    done = run(
        sys.executable, "-I", "-S", "-c", "import os; del os.memfd_create\n" + program, lonely, env={"TMPDIR": str(temporary)}
    )
    assert done.returncode == 0, done.stderr
    assert f"{temporary}/modeld-" in done.stdout
    assert list(temporary.iterdir()) == []


def test_it_describes_its_routes(lonely: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from modeld.httpapi.description import document\n"
        "print(len(document('1')['paths']))\n"
    )
    done = run(sys.executable, "-I", "-S", "-c", program, lonely, cwd=lonely.parent)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


def test_it_has_the_page_for_browsers(lonely: Path) -> None:
    program = "import sys; sys.path.insert(0, sys.argv[1])\nfrom modeld.httpapi.frontpage import files\nprint(*sorted(files()))\n"
    done = run(sys.executable, "-I", "-S", "-c", program, lonely, cwd=lonely.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == sorted(path.name for path in (ROOT / "modeld" / "httpapi" / "page").iterdir())


TRY_A_MODEL = (
    "import sys; sys.path.insert(0, sys.argv[1])\n"
    "from pathlib import Path\n"
    "from modeld.llm.probe import probe\n"
    "from modeld.types import ModelSpec\n"
    "print(probe(ModelSpec(id='a', path=Path(sys.argv[2])), lambda: True, timeout_s=60).own_bytes)\n"
)
STORIES = ROOT / "models" / "demo-stories.gguf"


def test_it_tries_a_model_in_a_process_of_its_own(lonely: Path) -> None:
    done = run(sys.executable, "-I", "-S", "-c", TRY_A_MODEL, lonely, STORIES, cwd=lonely.parent)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_a_library_spoiled_inside_the_file_is_refused(lonely: Path, tmp_path: Path) -> None:
    spoiled = tmp_path / "spoiled"
    with zipfile.ZipFile(lonely) as source, zipfile.ZipFile(spoiled, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name) + (b"\0" if name == "libllama.so" else b""))
    program = "import sys; sys.path.insert(0, sys.argv[1])\nfrom modeld.llm import bundle\nbundle.library_path()\n"
    done = run(sys.executable, "-I", "-S", "-c", program, spoiled)
    assert done.returncode != 0
    assert "is not the library that was tested" in done.stderr


def test_an_old_python_is_told_before_anything_else() -> None:
    with zipfile.ZipFile(BUNDLE) as bundle:
        main = bundle.read("__main__.py").decode()
    pretend = f"import sys; sys.version_info = (3, 8, 10, 'final', 0)\nexec({main!r})\n"
    done = run(sys.executable, "-I", "-c", pretend)
    assert done.returncode == 1
    assert "modeld needs Python 3.11 or newer; this is Python 3.8" in done.stderr


def test_it_holds_the_package_yaml_the_library_and_their_licences() -> None:
    with zipfile.ZipFile(BUNDLE) as bundle:
        names = bundle.namelist()
        for part in ("modeld", "llama.cpp", "PyYAML"):
            assert b"ermission" in bundle.read(f"licenses/{part}.txt")
    assert names == sorted(names)
    assert {
        "__main__.py",
        "modeld/app.py",
        "modeld/deploy/modeld.service",
        "modeld/httpapi/openapi.json",
        "modeld/httpapi/page/index.html",
        "modeld/llm/__init__.py",
        "yaml/__init__.py",
        "libllama.so",
        "libllama.stamp.json",
        "modeld/llm/reference/selftest.json",
        "modeld/llm/reference/demo-calc.gguf",
    } <= {*names}
    assert not [name for name in names if name.endswith((".so", ".pyx")) and name != "libllama.so"]
    assert not [name for name in names if name.endswith(".pyc") and name[:-1] not in names]


def test_another_python_compiles_the_source(tmp_path: Path) -> None:
    """Bytecode with a magic number that is not this Python's is passed over."""
    other = tmp_path / "modeld"
    with zipfile.ZipFile(BUNDLE) as bundle, zipfile.ZipFile(other, "w") as changed:
        for name in bundle.namelist():
            data = bundle.read(name)
            changed.writestr(name, b"\0\0\r\n" + data[4:] if name.endswith(".pyc") else data)
    done = run(sys.executable, other, "--version", env={})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("modeld ")


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        done = run(sys.executable, ROOT / "scripts" / "bundle.py", tmp_path / name, env=dict(os.environ))
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def wheel(folder: Path, **environ: str) -> Path:
    folder.mkdir()
    command = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    done = run(*command, env={**os.environ, **environ})
    assert done.returncode == 0, done.stdout + done.stderr
    [made] = folder.glob("*.whl")
    assert made.name.startswith(f"modeld-{__version__}-py3-none-linux_")
    return made


def test_the_wheel_holds_the_library_and_the_command(tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel(tmp_path / "wheel", MODELD_LIBRARIES="")) as archive:
        names = set(archive.namelist())
        assert {
            "modeld/app.py",
            "modeld/httpapi/openapi.json",
            "modeld/deploy/modeld.service",
            "modeld/libllama.so",
            "modeld/libllama.stamp.json",
            "modeld/llm/reference/selftest.json",
            "modeld/llm/reference/demo-calc.gguf",
        } <= names
        page = {f"modeld/httpapi/page/{path.name}" for path in (ROOT / "modeld" / "httpapi" / "page").iterdir()}
        assert len(page) > 5
        assert page <= names
        entry = archive.read(f"modeld-{__version__}.dist-info/entry_points.txt").decode()
        archive.extractall(tmp_path / "site")
    assert "modeld = modeld.app:main" in entry
    program = "import sys; sys.path.insert(0, sys.argv[1])\nfrom modeld.llm import bundle\nprint(bundle.library_path()[0])\n"
    done = run(sys.executable, "-I", "-c", program, tmp_path / "site")
    assert done.stdout.strip() == str(tmp_path / "site" / "modeld" / "libllama.so"), done.stderr
    done = run(sys.executable, "-I", "-c", TRY_A_MODEL, tmp_path / "site", STORIES)
    assert (done.returncode, done.stderr) == (0, "")
