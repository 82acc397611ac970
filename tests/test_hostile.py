"""Damaged model files: each is refused by its head, or libllama survives it. In processes of its own, where it may die."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from modeld.llm.gguf import inspect
from tests import tiny_models
from tests.gguf_bytes import File, parse
from tests.hostile import Hostile
from tests.hostile_gguf import DEMO, all_hostile, shard_name, shards
from tests.mutations import mutations
from tests.tiny_bert import make as make_bert
from tests.try_models import ROOT, Outcome, outcomes, spec_of

pytestmark = pytest.mark.skipif(not (ROOT / "build" / "libllama.so").is_file(), reason="libllama is not built (make build)")

# Refused although libllama would run them: numbers that no model has, and that this daemon or its users would stumble over.
STRICTER = {
    "type-adapter",  # general.type says that it is no model
    "context-length-2147483648",  # llama_model_n_ctx_train gives it as a negative int32
    "context-length-4294967295",
    "eps-inf",  # every norm is zero
    "shards-second-of-three",  # a shard of another model
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Path, Hostile]]:
    """Every hostile model as files, by its entry."""
    found = {}
    for hostile in all_hostile():
        directory = tmp_path_factory.mktemp("hostile") / hostile.name
        directory.mkdir()
        files = hostile.files()
        for name, raw in files.items():
            (directory / name).write_bytes(raw)
        found[directory / next(iter(files))] = hostile
    yield found
    for path in found:  # half a gigabyte
        for file in path.parent.iterdir():
            file.unlink()


def test_there_are_many_kinds_of_damage(written: dict[Path, Hostile]) -> None:
    kinds = [hostile.kind for hostile in written.values()]
    assert len(kinds) >= 300
    assert {kind: kinds.count(kind) > 5 for kind in kinds} == dict.fromkeys(
        ("container", "semantic", "tensors", "shards", "weights"), True
    )


def test_what_is_not_refused_is_survived_or_known_to_need_a_probe(written: dict[Path, Hostile]) -> None:
    passed = {path: hostile for path, hostile in written.items() if inspect(spec_of(path)).problem is None}
    assert len(passed) > 50  # the test itself would be worth nothing if all were refused
    tried = outcomes(list(passed))
    died = {passed[path].name: outcome.reason for path, outcome in tried.items() if outcome.end == "died"}
    assert {name: died[name] for name in died if name not in needing_a_probe(written)} == {}
    assert needing_a_probe(written) - died.keys() == set(), "these are no longer fatal"


def test_what_needs_a_probe_is_not_told_by_the_head(written: dict[Path, Hostile]) -> None:
    refused = [h.name for path, h in written.items() if h.needs_probe and inspect(spec_of(path)).problem is not None]
    assert refused == []


def test_each_refusal_has_words_and_numbers(written: dict[Path, Hostile]) -> None:
    for path, hostile in written.items():
        problem = inspect(spec_of(path)).problem
        if problem is not None:
            assert 15 < len(problem) < 300, (hostile.name, problem)
            assert "Traceback" not in problem
            assert problem.isprintable(), (hostile.name, problem)


def test_a_value_of_the_wrong_kind_is_not_quoted_as_if_it_were_right(written: dict[Path, Hostile]) -> None:
    problems = {hostile.name: str(inspect(spec_of(path)).problem) for path, hostile in written.items()}
    assert problems["alignment-text"].endswith("general.alignment is of type string; expected uint32")
    assert "llama.rope.scaling.type is a long text; expected one of" in problems["rope-scaling-xxxxxxxx"]


@pytest.mark.soak
def test_what_is_refused_would_not_have_run(written: dict[Path, Hostile]) -> None:
    refused = {path: hostile for path, hostile in written.items() if inspect(spec_of(path)).problem is not None}
    tried = outcomes(list(refused))
    ran = {refused[path].name for path, outcome in tried.items() if outcome.end == "ran"}
    assert ran == STRICTER
    died = [path for path, outcome in tried.items() if outcome.end == "died"]
    assert len(died) > 50  # deaths of the daemon that reading the head prevents


HALF_PRECISION = re.compile(r"(norm\.weight|\.bias|ssm_d|token_types\.weight)-(F16|BF16)$")


@pytest.mark.soak
@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2", "mamba2", "qwen2moe", "bert"])
def test_any_number_of_a_model_may_be_another(tmp_path: Path, arch: str) -> None:
    """Of some 600 changes of one number each, only norms and biases in half precision end the process unseen."""
    passed: dict[Path, str] = {}
    for index, (name, file) in enumerate(mutations(sound_model(arch, tmp_path), arch)):
        path = tmp_path / f"{index}.gguf"
        path.write_bytes(file.bytes())
        if inspect(spec_of(path)).problem is None:
            passed[path] = name
        else:
            path.unlink()
    assert len(passed) > 200
    tried = outcomes(list(passed))
    died = {passed[path]: outcome.reason for path, outcome in tried.items() if outcome.end == "died"}
    assert {name: reason for name, reason in died.items() if not HALF_PRECISION.search(name)} == {}


def sound_model(arch: str, tmp_path: Path) -> File:
    if arch == "llama":
        return parse(DEMO.read_bytes())
    if arch == "bert":
        return parse(make_bert(tmp_path / "bert").path.read_bytes())
    made: File = getattr(tiny_models, arch)()
    return made


def test_the_demo_model_itself_runs_whole_and_in_shards(tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    whole.write_bytes(parse(DEMO.read_bytes()).bytes())
    for number, file in enumerate(shards(parse(DEMO.read_bytes()), 3), 1):
        (tmp_path / shard_name("split", number, 3)).write_bytes(file.bytes())
    split = tmp_path / shard_name("split", 1, 3)
    assert [inspect(spec_of(path)).problem for path in (whole, split)] == [None, None]
    assert outcomes([whole, split]) == {whole: Outcome("ran"), split: Outcome("ran")}


def needing_a_probe(written: dict[Path, Hostile]) -> set[str]:
    return {hostile.name for hostile in written.values() if hostile.needs_probe}
