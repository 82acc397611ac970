"""The source is the pinned one, and the library is built from the header that the binding was written for."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from modeld.errors import LibraryMismatch
from modeld.llm import abi, libllama, selftest, stamp, variants
from modeld.llm.libllama import Function
from scripts import fetch_corpora, fetch_llama, variant
from scripts.sdist import FetchError, Pin

ROOT = Path(__file__).resolve().parent.parent
LLAMA = ROOT / "third_party" / "llama.cpp"
LIBRARY = ROOT / "build" / "libllama.so"


# -- fetch ----------------------------------------------------------------------------------------------------------------


def parcel(path: Path, names: dict[str, bytes]) -> Path:
    """A source distribution that holds these files below its top folder."""
    with tarfile.open(path, "w:gz") as tar:
        for name, data in names.items():
            info = tarfile.TarInfo(f"parcel-1.0/{name}")
            info.size = len(data)
            info.mode = 0o755 if name.endswith(".sh") else 0o644
            tar.addfile(info, io.BytesIO(data))
    return path


TREE = {
    "README.md": b"not ours",
    "vendor/llama.cpp/include/llama.h": b"int x;\n",
    "vendor/llama.cpp/ci/run.sh": b"#!/bin/sh\n",
    "vendor/llama.cpp/.git": b"gitdir: nowhere\n",
}


def lock_for(archive: Path) -> fetch_llama.Lock:
    pinned = fetch_llama.Lock.read(fetch_llama.LOCK)
    return dataclasses.replace(pinned, sha256=hashlib.sha256(archive.read_bytes()).hexdigest())


def test_fetch_unpacks_the_vendored_tree_and_nothing_else(tmp_path: Path) -> None:
    archive = parcel(tmp_path / "parcel.tar.gz", TREE)
    tree = tmp_path / "third_party" / "llama.cpp"
    line = fetch_llama.fetch(lock_for(archive), tree, archive)
    files = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    assert files == {"include/llama.h", "ci/run.sh", ".modeld-fetched"}
    assert (tree / "ci" / "run.sh").stat().st_mode & 0o100
    assert "2 files" in line
    assert list(tree.parent.iterdir()) == [tree]  # no temporary folder is left


def test_fetch_does_it_once(tmp_path: Path) -> None:
    archive = parcel(tmp_path / "parcel.tar.gz", TREE)
    tree = tmp_path / "llama.cpp"
    lock = lock_for(archive)
    fetch_llama.fetch(lock, tree, archive)
    archive.unlink()
    assert "already" in fetch_llama.fetch(lock, tree, archive)


def test_fetch_replaces_its_own_tree_when_the_pin_has_moved(tmp_path: Path) -> None:
    tree = tmp_path / "tree" / "llama.cpp"
    old = parcel(tmp_path / "old.tar.gz", TREE | {"vendor/llama.cpp/old.txt": b""})
    fetch_llama.fetch(lock_for(old), tree, old)
    new = parcel(tmp_path / "new.tar.gz", TREE)
    fetch_llama.fetch(lock_for(new), tree, new)
    assert not (tree / "old.txt").exists()
    assert list(tree.parent.iterdir()) == [tree]


def test_fetch_takes_a_tree_put_there_by_hand_as_it_is(tmp_path: Path) -> None:
    tree = tmp_path / "llama.cpp"
    (tree / "include").mkdir(parents=True)
    (tree / "include" / "llama.h").write_text("mine")
    lock = fetch_llama.Lock.read(fetch_llama.LOCK)
    assert "by hand" in fetch_llama.fetch(lock, tree, None)
    assert (tree / "include" / "llama.h").read_text() == "mine"


def test_fetch_names_both_hashes_when_they_differ(tmp_path: Path) -> None:
    archive = parcel(tmp_path / "parcel.tar.gz", TREE)
    lock = fetch_llama.Lock.read(fetch_llama.LOCK)
    with pytest.raises(FetchError) as raised:
        fetch_llama.fetch(lock, tmp_path / "llama.cpp", archive)
    assert lock.sha256 in str(raised.value)
    assert hashlib.sha256(archive.read_bytes()).hexdigest() in str(raised.value)
    assert not (tmp_path / "llama.cpp").exists()


def test_fetch_refuses_names_that_leave_the_tree(tmp_path: Path) -> None:
    archive = parcel(tmp_path / "parcel.tar.gz", TREE | {"vendor/llama.cpp/../../../evil": b""})
    with pytest.raises(FetchError, match="evil"):
        fetch_llama.fetch(lock_for(archive), tmp_path / "tree" / "llama.cpp", archive)
    assert not (tmp_path / "tree" / "llama.cpp").exists()


def test_fetch_says_what_to_do_without_the_archive(tmp_path: Path) -> None:
    lock = fetch_llama.Lock.read(fetch_llama.LOCK)
    with pytest.raises(FetchError, match=r"cannot read .*nowhere\.tar\.gz"):
        fetch_llama.fetch(lock, tmp_path / "llama.cpp", tmp_path / "nowhere.tar.gz")


def test_the_corpora_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = parcel(tmp_path / "parcel.tar.gz", {"tests/requests/valid/1.http": b"GET", "setup.py": b"not ours"})
    pin = Pin("parcel", "1.0", hashlib.sha256(archive.read_bytes()).hexdigest(), 1, "tests/requests")
    monkeypatch.setattr(fetch_corpora, "download", lambda *_: archive)
    folder = tmp_path / "corpora" / "parcel-1.0"
    assert "1 files of parcel 1.0" in fetch_corpora.fetch(pin, folder)
    assert [path.name for path in folder.parent.iterdir()] == ["parcel-1.0"]
    assert (folder / "valid" / "1.http").read_bytes() == b"GET"
    archive.unlink()
    assert "already" in fetch_corpora.fetch(pin, folder)


def test_corpora_of_another_hash_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = parcel(tmp_path / "parcel.tar.gz", {"tests/requests/valid/1.http": b"GET"})
    monkeypatch.setattr(fetch_corpora, "download", lambda *_: archive)
    with pytest.raises(FetchError, match="the lock wants"):
        fetch_corpora.fetch(Pin("parcel", "1.0", "0" * 64, 1, "tests/requests"), tmp_path / "parcel-1.0")
    assert not (tmp_path / "parcel-1.0").exists()


def test_the_lock_and_the_binding_name_the_same_source() -> None:
    lock = fetch_llama.Lock.read(fetch_llama.LOCK)
    assert lock.commit == libllama.LLAMA_COMMIT
    assert lock.llama_h_sha256 == libllama.LLAMA_H_SHA256
    assert hashlib.sha256((LLAMA / "include" / "llama.h").read_bytes()).hexdigest() == lock.llama_h_sha256


# -- the layout check -----------------------------------------------------------------------------------------------------


def compile_check(text: str, folder: Path) -> str:
    """The compiler's complaints about a generated check; empty when it compiles."""
    source = folder / "layout_check.c"
    source.write_text(text)
    includes = [f"-I{LLAMA / 'include'}", f"-I{LLAMA / 'ggml' / 'include'}"]
    done = subprocess.run(
        ["cc", "-std=c11", "-fsyntax-only", *includes, str(source)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode == 0) == ("error" not in done.stderr)
    return done.stderr if done.returncode else ""


def test_the_binding_is_what_the_headers_say(tmp_path: Path) -> None:
    assert compile_check(abi.layout_check(), tmp_path) == ""
    assert abi.differences() == []


@pytest.mark.parametrize(
    ("right", "wrong", "complaint"),
    [
        (
            r"sizeof\(struct llama_model_params\) == \d+",
            "sizeof(struct llama_model_params) == 72",
            "llama_model_params does not have",
        ),
        (
            r"offsetof\(struct llama_batch, logits\) == \d+",
            "offsetof(struct llama_batch, logits) == 40",
            "llama_batch.logits is not at",
        ),
        ("LLAMA_LOAD_MODE_MMAP == 1", "LLAMA_LOAD_MODE_MMAP == 2", "LLAMA_LOAD_MODE_MMAP is not"),
        (r"int32_t llama_decode\(.*\);", "int32_t llama_decode(struct llama_context * ctx);", "conflicting types for"),
        ("yarn_orig_ctx", "yarn_lost_ctx", "no member named"),
    ],
)
def test_a_binding_that_differs_does_not_compile(tmp_path: Path, right: str, wrong: str, complaint: str) -> None:
    changed, n = re.subn(right, wrong, abi.layout_check())
    assert n
    assert complaint in compile_check(changed, tmp_path)


@pytest.mark.parametrize(
    ("row", "difference"),
    [
        (Function("int32_t f(float x)", ctypes.c_int32, (ctypes.c_int32,)), "argument 1 is c_int, the prototype says c_float"),
        (Function("int32_t f(void)", ctypes.c_int32, (ctypes.c_int32,)), "1 argtypes, the prototype has 0"),
        (Function("void f(void)", ctypes.c_int32, ()), "restype is c_int"),
        (Function("void f(struct llama_model * m)", None, (libllama.context_p,)), "the prototype says LP_llama_model"),
        (Function("void f(struct unheard_of * m)", None, (ctypes.c_void_p,)), "does not know how ctypes spells"),
    ],
)
def test_ctypes_types_that_contradict_their_prototype_are_named(
    monkeypatch: pytest.MonkeyPatch, row: Function, difference: str
) -> None:
    monkeypatch.setattr(abi, "SIGNATURES", (row,))
    [found] = abi.differences()
    assert difference in found


# -- the library ----------------------------------------------------------------------------------------------------------


def test_the_library_needs_nothing_beyond_libc() -> None:
    found = subprocess.run(["objdump", "-p", str(LIBRARY)], capture_output=True, text=True, timeout=60, check=True).stdout
    needed = set(re.findall(r"NEEDED\s+(\S+)", found))
    assert needed <= {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}


def test_the_self_test_passes() -> None:
    assert "within" in selftest.check_apart(LIBRARY, selftest.REFERENCE)


def test_the_self_test_names_logits_that_are_off(tmp_path: Path) -> None:
    reference = json.loads(selftest.REFERENCE.read_text())
    reference["model"] = str(selftest.REFERENCE.parent / reference["model"])
    reference["logits"][3] += 5
    wrong = tmp_path / "reference.json"
    wrong.write_text(json.dumps(reference))
    with pytest.raises(selftest.SelfTestError, match=r"failed its self-test(.|\n)*off by [45]"):
        selftest.check_apart(LIBRARY, wrong)


def test_a_library_that_dies_in_the_self_test_is_told_from_one_that_lies(tmp_path: Path) -> None:
    (tmp_path / "dies.c").write_text("#include <stdlib.h>\n__attribute__((constructor)) static void die(void) { abort(); }\n")
    library = tmp_path / "libdies.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "dies.c")], timeout=60, check=True)
    with pytest.raises(selftest.SelfTestError, match=r"was built but died in its self-test: SIGABRT"):
        selftest.check_apart(library, selftest.REFERENCE)


def test_a_library_without_our_functions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.c").write_text("int nothing;\n")
    library = tmp_path / "libempty.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "empty.c")], timeout=60, check=True)
    with pytest.raises(LibraryMismatch, match=r"lacks \d+ of \d+ functions"):
        libllama.load_library(library)


# -- the Makefile -----------------------------------------------------------------------------------------------------------


def make(*args: str) -> str:
    assert shutil.which("make")
    return subprocess.run(["make", *args], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout


def test_make_help_lists_every_target_for_people() -> None:
    described = set(re.findall(r"^  make (\w+)", make("help"), re.MULTILINE))
    everyday = {"help", "fetch", "build", "run", "test", "soak", "fuzz", "lint", "tidy", "bench", "clean"}
    assert described == everyday | {"release", "dist", "distcheck"}
    assert make() == make("help")


def test_whatever_is_packed_into_the_one_file_makes_it_anew() -> None:
    """Its rule names each file of the tree that is in it: an edit of the page would not be in the next bin/modeld else."""
    database = subprocess.run(
        ["make", "-pn", "bin/modeld"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    ).stdout
    [rule] = re.findall(r"^bin/modeld: (.*)$", database, re.MULTILINE)
    needs = set(rule.partition("|")[0].split())
    with zipfile.ZipFile(ROOT / "bin" / "modeld") as archive:
        packed = {name for name in archive.namelist() if (ROOT / name).is_file() and not name.endswith("c")}
    assert len(packed) > 100
    assert any(name.endswith(".html") for name in packed)
    assert not packed - needs - {"__main__.py"}
    assert {"deploy/modeld.service", "scripts/licenses.py", "models/demo-calc.gguf"} <= needs


def test_nothing_that_is_built_is_built_again() -> None:
    make("build")  # `make test` has done it; somebody who calls pytest may have edited since
    assert make("build") == ""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="there are variants for x86-64 only")
@pytest.mark.parametrize("name", variants.NAMES)
def test_a_variant_needs_what_its_kernels_may_use(tmp_path: Path, name: str) -> None:
    """Names of /proc/cpuinfo against the macros of the compiler."""
    script = tmp_path / "ask.cmake"
    script.write_text(
        f'include("{ROOT}/cmake/Variants.cmake")\nvariant_flags({name} flags needs)\n'
        f'file(WRITE "{tmp_path}/flags" "${{flags}}")\nfile(WRITE "{tmp_path}/needs" "${{needs}}")\n'
    )
    subprocess.run([shutil.which("cmake") or ROOT / ".venv" / "bin" / "cmake", "-P", script], check=True)
    flags, needs = ((tmp_path / name).read_text().split(";") for name in ("flags", "needs"))
    done = subprocess.run(["c++", *flags, "-dM", "-E", "-x", "c++", os.devnull], capture_output=True, text=True, check=True)
    macros = set(
        re.findall(r"^#define __((?:SSE|SSSE|AVX|AMX|FMA|F16C|BMI|POPCNT|LZCNT|MOVBE)\w*)__ 1$", done.stdout, re.MULTILINE)
    )
    macros -= {"SSE", "SSE_MATH", "SSE2", "SSE2_MATH"}  # what every x86-64 CPU has
    names = {"pni": "SSE3", "abm": "LZCNT", "bmi1": "BMI"}
    assert macros == {names.get(need, need.upper().replace("AVX512_", "AVX512")) for need in needs}


@pytest.fixture
def variant_built(tmp_path: Path) -> Path:
    """As CMake leaves a variant."""
    folder = tmp_path / "variants" / "x86-64-v3"
    folder.mkdir(parents=True)
    shutil.copy(LIBRARY, folder)
    (folder / "libllama.flags").write_text("GGML_NATIVE=OFF\nneeds=sse2 sse4_2\nvariant=x86-64-v3\n")
    return folder


def released(built: Path, *, untested: bool = False) -> stamp.Stamp:
    target = built.parent.parent / "release" / built.name
    header, layout = LLAMA / "include" / "llama.h", ROOT / "build" / "layout_check.c"
    variant.release(built, target, llama_h=header, layout_check=layout, untested=untested)
    assert sorted(path.name for path in target.parent.iterdir()) == [built.name]
    return stamp.parse(stamp.stamp_path(target / "libllama.so").read_text(), where="its stamp")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="there are variants for x86-64 only")
def test_a_variant_is_released_when_it_computes_right(variant_built: Path) -> None:
    made = released(variant_built)
    assert made.cpu_flags == ["sse2", "sse4_2"]
    assert made.flags == {"GGML_NATIVE": "OFF", "variant": "x86-64-v3", "self_test": "passed"}
    assert released(variant_built) == made  # over the one before


def test_a_variant_that_this_host_cannot_test_is_not_released_in_silence(variant_built: Path) -> None:
    (variant_built / "libllama.flags").write_text("needs=avx9000\nvariant=x86-64-v3\n")
    with pytest.raises(selftest.SelfTestError, match=r"this host cannot test it: its CPU lacks avx9000.*UNTESTED=1"):
        released(variant_built)
    assert not (variant_built.parent.parent / "release").exists()
    assert released(variant_built, untested=True).flags["self_test"] == "not run"


def test_a_variant_that_fails_is_not_released(variant_built: Path) -> None:
    (variant_built / "libllama.so").write_bytes(b"no library")
    with pytest.raises(selftest.SelfTestError, match="failed its self-test"):
        released(variant_built)
    assert not (variant_built.parent.parent / "release").exists()
