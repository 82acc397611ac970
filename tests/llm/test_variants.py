"""The best library that computes right is taken; what does not is passed over, whatever the CPU says of itself."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from daemon import n_descriptors
from faulty import LIBRARY, put

from modeld.errors import LibraryMismatch
from modeld.llm import bundle, stamp, variants
from modeld.llm.bundle import LibrarySet, Taken
from modeld.llm.variants import How, Verdict

on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the code that is written into the library is x86-64's")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a set, which is the one that modeld comes with as soon as something is in it."""
    libraries = tmp_path / "libraries"
    monkeypatch.delenv("MODELD_LIBRARY", raising=False)
    monkeypatch.delenv(variants.FORCE, raising=False)
    monkeypatch.setattr(bundle, "library_set", lambda: found(libraries))
    return libraries


def found(folder: Path) -> LibrarySet:
    return LibrarySet(folder, in_zip=False, variants=tuple(sorted(path.name for path in folder.iterdir())))


def verdicts(tried: tuple[variants.Tried, ...]) -> dict[str, Verdict]:
    return {one.variant: one.verdict for one in tried}


def no_process(*args: object, **kwargs: object) -> None:
    raise AssertionError(f"a process was started: {args}")


def test_a_start_without_a_path_finds_its_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """`env -i bin/modeld`: Python does not know then by which file it was started."""
    monkeypatch.setattr(sys, "executable", "")
    assert variants.try_library(Taken(LIBRARY, stamp.verify(LIBRARY), None), "native").verdict is Verdict.RUNS


@on_x86
def test_the_best_that_computes_right_is_taken_and_worse_ones_are_not_tried(folder: Path) -> None:
    put(folder, "x86-64-amx", "illegal")
    put(folder, "x86-64-v4", "wrong")
    put(folder, "x86-64-v3")
    put(folder, "x86-64-v2", "illegal")
    chosen = variants.choose()
    assert (chosen.variant, chosen.how, chosen.path) == ("x86-64-v3", How.TRIED, folder / "x86-64-v3" / "libllama.so")
    assert verdicts(chosen.tried) == {
        "x86-64-amx": Verdict.DIED,
        "x86-64-v4": Verdict.WRONG,
        "x86-64-v3": Verdict.RUNS,
    }
    died, wrong, _ = map(str, chosen.tried)
    assert died == "x86-64-amx: died by SIGILL"
    assert wrong.startswith("x86-64-v4: decoding demo-calc.gguf, 0 of 32 tokens one at a time, gives logits that are off by ")


@on_x86
def test_each_way_to_fail_is_named_when_none_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder, "x86-64-amx", "aborts")
    put(folder, "x86-64-v4", "hangs")
    truncated = put(folder, "x86-64-v3")
    os.truncate(truncated, truncated.stat().st_size // 2)
    needs = put(folder, "x86-64-v2").with_suffix(".stamp.json")
    needs.write_text(json.dumps(json.loads(needs.read_text()) | {"cpu_flags": ["sse4_2", "avx9000"]}))
    put(folder, "x86-64-v1").with_suffix(".stamp.json").unlink()
    monkeypatch.setattr(variants, "LIMIT_S", 5.0)
    with pytest.raises(LibraryMismatch) as error:
        variants.choose()
    text = str(error.value)
    assert f"none of the 5 libraries in {folder} runs here" in text
    assert "x86-64-amx: died by SIGABRT; " in text
    assert "x86-64-v4: did not decode the reference within 5 s; " in text
    assert "x86-64-v3/libllama.so is not the library that was tested" in text
    assert "x86-64-v2: this CPU lacks avx9000; " in text
    assert "x86-64-v1/libllama.stamp.json cannot be read" in text
    assert "make build" in text


def test_a_file_that_is_no_library_is_told_by_what_the_loader_says(tmp_path: Path) -> None:
    text = tmp_path / "libllama.so"
    text.write_text("no library")
    tried = variants.try_library(Taken(text, stamp.verify(LIBRARY), None), "x86-64-v3")
    assert tried.verdict is Verdict.WRONG
    assert "cannot open" in str(tried)


def test_a_process_that_cannot_be_started_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    tried = variants.try_library(Taken(LIBRARY, stamp.verify(LIBRARY), None), "native")
    assert tried.verdict is Verdict.FAILED
    assert "could not be started" in str(tried)


def test_a_remembered_choice_starts_no_process(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder, "x86-64-v3")
    state = tmp_path / "not" / "there" / "yet"
    first = variants.choose(state)
    first.ended()
    monkeypatch.setattr(subprocess, "run", no_process)
    second = variants.choose(state)
    assert (first.how, second.how, second.variant) == (How.TRIED, How.REMEMBERED, "x86-64-v3")
    assert second.tried == ()


@on_x86
@pytest.mark.parametrize(("fault", "how"), [("illegal", How.REMEMBERED), ("aborts", How.TRIED), ("wrong", How.TRIED)])
def test_what_may_run_the_next_time_is_tried_again(folder: Path, tmp_path: Path, fault: str, how: How) -> None:
    put(folder, "x86-64-v4", fault)
    put(folder, "x86-64-v3")
    for _ in range(2):
        chosen = variants.choose(tmp_path / "state")
        chosen.ended()
        assert chosen.variant == "x86-64-v3"
    assert chosen.how is how


def test_nothing_is_remembered_of_a_cpu_that_nothing_is_known_of(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder, "x86-64-v3")
    monkeypatch.setattr(variants, "identity", lambda found: None)
    for _ in range(2):
        chosen = variants.choose(tmp_path / "state")
        chosen.ended()
        assert chosen.how is How.TRIED
    assert not (tmp_path / "state").exists()


def test_a_cpu_that_names_no_instructions_is_tried(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder, "x86-64-v3")
    monkeypatch.setattr(stamp, "cpu_flags", list)  # as under ProcSubset=pid
    assert variants.choose().how is How.TRIED


def test_a_choice_whose_process_did_not_end_in_order_is_tried_again(folder: Path, tmp_path: Path) -> None:
    put(folder, "x86-64-v3")
    assert variants.choose(tmp_path).how is How.TRIED  # and dies
    assert variants.choose(tmp_path).how is How.TRIED


@on_x86
def test_a_remembered_library_that_has_become_another_is_passed_over(folder: Path, tmp_path: Path) -> None:
    better = put(folder, "x86-64-v4")
    put(folder, "x86-64-v3")
    variants.choose(tmp_path).ended()
    better.write_bytes(better.read_bytes() + b"\0")
    chosen = variants.choose(tmp_path)
    assert chosen.variant == "x86-64-v3"
    assert verdicts(chosen.tried) == {"x86-64-v4": Verdict.DAMAGED, "x86-64-v3": Verdict.RUNS}


def test_another_cpu_or_another_set_chooses_anew(folder: Path, tmp_path: Path) -> None:
    put(folder, "x86-64-v3")
    text = "vendor_id\t: GenuineIntel\nmodel\t\t: 143\nstepping\t: 8\nmicrocode\t: 0x2b000461\nflags\t\t: fpu avx2\n"
    others = [
        text.replace("0x2b000461", "0x2b000590"),
        text.replace("143", "207"),
        text.replace("avx2", "avx2 amx_tile"),
        text + text.replace("stepping\t: 8", "stepping\t: 9"),  # two kinds of cores
        "",
        "processor\t: 0\n",
    ]

    def identity(cpu: str, alias: str = "") -> str | None:
        (tmp_path / "cpuinfo").write_text(cpu)
        (tmp_path / "modalias").write_text(alias)
        return variants.identity(found(folder), cpuinfo=tmp_path / "cpuinfo", modalias=tmp_path / "modalias")

    assert identity(text) == identity(f"cpu MHz : 1\n{text}\ncpu MHz : 2\n{text}")
    assert len({identity(cpu) for cpu in (text, *others)}) == 6
    assert identity("") is None
    assert identity("", "cpu:type:x86,ven0000fam0006mod008F:feature:,0000\n") not in (
        None,
        identity("", "cpu:type:x86,ven0000fam0006mod00CF:feature:,0000\n"),
    )
    before = identity(text)
    assert before is not None
    put(folder, "x86-64-v2")
    after = identity(text)
    assert after is not None
    assert after != before

    state = tmp_path / "state"
    variants.Memory(state, before).write("x86-64-v3", running=False)
    assert variants.Memory(state, before).read() == "x86-64-v3"
    assert variants.Memory(state, after).read() is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"variant": "x86-64-v3"}', b"[" * 100_000, None])
def test_a_memory_that_makes_no_sense_is_none(tmp_path: Path, content: bytes | None) -> None:
    if content is None:
        (tmp_path / variants.FILE).symlink_to("/dev/zero")
    else:
        (tmp_path / variants.FILE).write_bytes(content)
    assert variants.Memory(tmp_path, "key").read() is None


def test_where_nothing_can_be_kept_each_start_tries(folder: Path, tmp_path: Path) -> None:
    put(folder, "x86-64-v3")
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "state", Path("/proc/1/state"), None):
        chosen = variants.choose(place)
        chosen.ended()
        assert (chosen.variant, chosen.how) == ("x86-64-v3", How.TRIED)


@on_x86
def test_the_environment_names_a_variant(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder, "x86-64-v4")
    put(folder, "x86-64-v3")
    put(folder, "x86-64-v2", "illegal")
    monkeypatch.setenv(variants.FORCE, "x86-64-v3")
    chosen = variants.choose()
    assert (chosen.variant, chosen.how, len(chosen.tried)) == ("x86-64-v3", How.FORCED, 1)
    monkeypatch.setenv(variants.FORCE, "x86-64-v2")
    with pytest.raises(
        LibraryMismatch, match="MODELD_CPU_VARIANT names a library that does not run here: x86-64-v2: died by SIGILL"
    ):
        variants.choose()
    monkeypatch.setenv(variants.FORCE, "x86-64-v5")
    with pytest.raises(LibraryMismatch, match=r"MODELD_CPU_VARIANT is 'x86-64-v5', but .* has x86-64-v4, x86-64-v3, x86-64-v2"):
        variants.choose()


def test_a_source_build_has_one_library_and_tries_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", no_process)
    monkeypatch.delenv("MODELD_LIBRARY", raising=False)
    monkeypatch.delenv(variants.FORCE, raising=False)
    chosen = variants.choose()
    assert (chosen.variant, chosen.how, chosen.path) == ("native", How.ONLY, LIBRARY)
    monkeypatch.setenv(variants.FORCE, "x86-64-v3")
    with pytest.raises(LibraryMismatch, match="this modeld has one library, for the CPU that built it"):
        variants.choose()
    monkeypatch.setenv("MODELD_LIBRARY", str(LIBRARY))
    assert variants.choose().how is How.ONLY


@on_x86
def test_a_survey_tries_every_library_and_says_which_one_a_start_takes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder, "x86-64-amx", "illegal")
    put(folder, "x86-64-v4")
    put(folder, "x86-64-v2")
    before = sorted(tmp_path.rglob("*"))
    survey = variants.survey(tmp_path / "state")
    assert [(tried.variant, tried.verdict) for tried in survey.tried] == [
        ("x86-64-amx", Verdict.DIED),
        ("x86-64-v4", Verdict.RUNS),
        ("x86-64-v2", Verdict.RUNS),
    ]
    assert (survey.where, survey.chosen, survey.why) == (folder, "x86-64-v4", "the first that computes right")
    assert sorted(tmp_path.rglob("*")) == before
    variants.choose(tmp_path / "state").ended()
    assert variants.survey(tmp_path / "state").why == "remembered from an earlier start"
    monkeypatch.setenv(variants.FORCE, "x86-64-amx")
    survey = variants.survey()
    assert (survey.chosen, survey.why) == (None, "MODELD_CPU_VARIANT names it")


def test_a_survey_of_a_source_build_tries_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELD_LIBRARY", raising=False)
    survey = variants.survey()
    assert str(survey.tried[0]).startswith("native: runs, logits within ")
    assert (survey.chosen, survey.why) == ("native", "the only library")


@on_x86
def test_nothing_of_a_try_is_left_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    init = subprocess.Popen.__init__

    def watched(self: subprocess.Popen[bytes], *args: object, **kwargs: object) -> None:
        init(self, *args, **kwargs)  # type: ignore[call-overload]
        started.append(self)

    monkeypatch.setattr(subprocess.Popen, "__init__", watched)
    put(folder, "x86-64-v4", "hangs")
    descriptors = n_descriptors(os.getpid())
    tried = variants.try_library(found(folder).take("x86-64-v4"), "x86-64-v4", limit_s=1.0)
    assert tried.verdict is Verdict.HUNG
    [process] = started
    assert process.returncode == -9
    assert n_descriptors(os.getpid()) == descriptors
