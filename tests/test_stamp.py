"""A library is opened only when its stamp says that it is the tested one, for this binding and this CPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from modeld.errors import LibraryMismatch
from modeld.llm import bundle, stamp
from modeld.llm.libllama import LLAMA_COMMIT, LLAMA_H_SHA256

BUILT = Path(__file__).resolve().parent.parent / "build" / "libllama.so"
HEADER = BUILT.parent.parent / "third_party" / "llama.cpp" / "include" / "llama.h"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A copy of the built library with its stamp, to be spoiled."""
    shutil.copy(stamp.stamp_path(BUILT), tmp_path)
    return Path(shutil.copy(BUILT, tmp_path))


def change(library: Path, **values: object) -> None:
    path = stamp.stamp_path(library)
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_built_library_is_accepted(library: Path) -> None:
    found = stamp.verify(library)
    assert found.llama_commit == LLAMA_COMMIT
    assert found.llama_h_sha256 == LLAMA_H_SHA256
    assert found.flags["build_type"] == "Release"
    assert found.flags["amx_mend"] in ("", "-fno-tree-dse -fno-dse")
    assert found.flags["tokenizer_mend"] in ("", "yes")
    assert found.library_sha256 == stamp.digest_of(library)
    assert found.layout_sha256 == stamp.digest_of(BUILT.parent / "layout_check.c")


def test_a_library_of_another_llama_h_is_refused_and_both_are_named(library: Path) -> None:
    change(library, llama_h_sha256="f" * 64, llama_commit="abcdef1")
    with pytest.raises(LibraryMismatch) as raised:
        stamp.verify(library)
    for side in ("abcdef1", "f" * 12, LLAMA_COMMIT, LLAMA_H_SHA256[:12], "make build"):
        assert side in raised.value.message


def test_a_library_that_was_changed_after_its_test_is_refused_and_both_are_named(library: Path) -> None:
    tested = stamp.digest_of(library)
    with library.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(LibraryMismatch) as raised:
        stamp.verify(library)
    for side in (tested[:12], stamp.digest_of(library)[:12], "make build"):
        assert side in raised.value.message


def test_a_library_without_a_stamp_is_refused(library: Path) -> None:
    stamp.stamp_path(library).unlink()
    with pytest.raises(LibraryMismatch, match="has not passed the self-test"):
        stamp.verify(library)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"llama_commit": "x"}', "not json"])
def test_a_broken_stamp_is_refused(library: Path, text: str) -> None:
    stamp.stamp_path(library).write_text(text)
    with pytest.raises(LibraryMismatch, match="is not a stamp"):
        stamp.verify(library)


def test_a_library_for_another_cpu_is_refused_before_it_ends_the_process(library: Path) -> None:
    change(library, cpu_flags=["avx9000", "sse"])
    with pytest.raises(LibraryMismatch, match=r"a CPU with avx9000.*GGML_NATIVE=OFF"):
        stamp.verify(library)
    change(library, cpu_flags=[])  # built with GGML_NATIVE=OFF: for every CPU of its kind
    stamp.verify(library)


def test_cpu_flags_are_the_instructions_only(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx2 ibpb rsb_ctxsw amx_tile avx512f md_clear\n\nprocessor\t: 1\n")
    assert stamp.cpu_flags(cpuinfo) == ["amx_tile", "avx2", "avx512f"]
    assert stamp.cpu_flags(tmp_path / "absent") == []


def test_a_tree_of_another_header_is_stamped_as_unknown(library: Path, tmp_path: Path) -> None:
    header = tmp_path / "llama.h"
    header.write_text("int other;\n")
    written = stamp.write(library, llama_h=header, layout_check=header, flags={"GGML_NATIVE": "OFF"})
    assert written.llama_commit == "unknown"
    assert written.cpu_flags == []
    with pytest.raises(LibraryMismatch, match="unknown"):
        stamp.verify(library)


def test_modeld_library_names_another_library(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELD_LIBRARY", str(library))
    path, found = bundle.library_path()
    assert path == library
    assert found == stamp.verify(BUILT)


def test_a_missing_modeld_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELD_LIBRARY", str(tmp_path / "none.so"))
    with pytest.raises(LibraryMismatch, match=r"MODELD_LIBRARY is .*none\.so"):
        bundle.library_path()


def test_the_checkout_s_library_is_found_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELD_LIBRARY", raising=False)
    path, _ = bundle.library_path()
    assert path == BUILT
