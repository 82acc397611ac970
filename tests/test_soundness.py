"""What libllama asserts of a model: our rules against its source, good models of many kinds, and bad ones that would end it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from modeld.llm import architectures, soundness
from modeld.llm.gguf import inspect, problem_with
from modeld.llm.ggufreader import read_head
from modeld.llm.ggufvalues import Array, Tensor
from modeld.llm.vocabsound import check_vocabulary
from modeld.types import FileFacts, ModelSpec
from tests import tiny_models
from tests.gguf_bytes import BOOL, File, numbers, parse, u32
from tests.hostile_gguf import DEMO, shard_name, shards
from tests.try_models import ROOT, outcomes, spec_of

SOURCE = ROOT / "third_party" / "llama.cpp" / "src"
VOCABULARIES = sorted((ROOT / "third_party" / "llama.cpp" / "models").glob("*.gguf"))

with_source = pytest.mark.skipif(not SOURCE.is_dir(), reason="llama.cpp's source is not there (make fetch)")
with_library = pytest.mark.skipif(not (ROOT / "build" / "libllama.so").is_file(), reason="libllama is not built (make build)")


def problem(path: Path, file: File) -> str | None:
    path.write_bytes(file.bytes())
    return inspect(spec_of(path)).problem


# -- the rules are the source's ---------------------------------------------------------------------------------------


def sources() -> dict[str, str]:
    """The source of each architecture's graph, without comments, by the name that files give it."""
    names = dict(re.findall(r'\{ (LLM_ARCH_\w+),\s+"([^"]+)"', (SOURCE / "llama-arch.cpp").read_text()))
    found: dict[str, str] = {}
    cases: list[str] = []
    for line in (SOURCE / "llama-model.cpp").read_text().splitlines():
        if match := re.match(r"\s+case (LLM_ARCH_\w+):", line):
            cases.append(names[match[1]])
        else:
            made = re.search(r"return new llama_model_(\w+)\(", line)
            path = SOURCE / "models" / f"{made[1].replace('_', '-')}.cpp" if made else None
            if path is not None and path.is_file():
                text = "\n".join(row for row in path.read_text().splitlines() if not row.lstrip().startswith("//"))
                found.update(dict.fromkeys(cases, text))
            cases = []
    return found


@with_source
def test_the_groups_of_architectures_are_those_of_the_source() -> None:
    source = sources()
    alike = re.compile(
        r"n_embd_head\s*= hparams\.n_embd_head_v\(\);\s+.*?GGML_ASSERT\(n_embd_head == hparams\.n_embd_head_k\(\)\)", re.DOTALL
    )
    table = re.compile(r'create_tensor\(tn\(LLM_TENSOR_TOKEN_EMBD,\s*"weight"\), \{n_embd, n_vocab\}, 0\)')
    for arch in architectures.ALIKE_HEADS:
        assert alike.search(source[arch]), arch
        assert table.search(source[arch]), arch
    for arch in architectures.EQUAL_LENGTHS:
        assert alike.search(source[arch]), arch
    for arch in architectures.WHOLE_ROPE:
        assert re.search(r"GGML_ASSERT\(n_embd_head\s*== n_rot\)", source[arch]), arch
    for arch in architectures.ROTATED_BY_SECTIONS:
        assert "ggml_rope_multi(" in source[arch], arch
    for arch in architectures.ROTATED:
        assert re.search(r"ggml_rope_(ext|multi)\(", source[arch]), arch
    for arch in architectures.LEARNED_POSITIONS:
        assert re.search(r"LLM_TENSOR_POS_EMBD,\s*\"weight\"\), \{n_embd, n_ctx_train\}", source[arch]), arch
    for arch, (period, dense_first) in {**architectures.ALWAYS_SLIDING, **architectures.MAY_SLIDE}.items():
        assert f"load_swa_pattern(ml, {period}{', true' if dense_first else ''})" in source[arch], arch
    assert architectures.WHOLE_ROPE <= architectures.EQUAL_LENGTHS <= architectures.HEADED <= source.keys()
    assert architectures.NEEDS_RECURRENT <= architectures.HYBRID_BY_HEADS <= source.keys()


@with_source
def test_recurrent_architectures_are_those_of_the_source() -> None:
    text = (SOURCE / "llama-arch.cpp").read_text()
    names = dict(re.findall(r'\{ (LLM_ARCH_\w+),\s+"([^"]+)"', text))
    functions = re.findall(r"^bool llm_arch_is_(\w+)\(.*?\{(.*?)^\}", text, re.DOTALL | re.MULTILINE)
    bodies = {name: re.findall(r"case (LLM_ARCH_\w+):", body) for name, body in functions}
    assert {names[name] for name in bodies["recurrent"]} == architectures.RECURRENT
    hybrid = architectures.HYBRID_BY_HEADS | architectures.HYBRID_BY_INTERVAL | architectures.HYBRID_WHOLLY
    assert {names[name] for name in bodies["hybrid"]} - hybrid <= architectures.OTHER_MEMORY
    assert hybrid <= {names[name] for name in bodies["hybrid"]}


@with_source
def test_the_limits_are_those_of_the_source() -> None:
    header = (SOURCE / "llama-hparams.h").read_text()
    for name, value in (("LLAMA_MAX_LAYERS", soundness.MAX_LAYERS), ("LLAMA_MAX_EXPERTS", soundness.MAX_EXPERTS)):
        assert re.search(rf"#define {name}\s+{value}\b", header)
    table = (SOURCE / "llama-model.cpp").read_text().split("LLAMA_ROPE_SCALING_TYPES = {")[1].split("};")[0]
    assert tuple(re.findall(r'"(\w+)"', table)) == soundness.ROPE_SCALINGS


# -- good models ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not VOCABULARIES, reason="llama.cpp's source is not there (make fetch)")
@pytest.mark.parametrize("path", VOCABULARIES, ids=[path.stem for path in VOCABULARIES])
def test_real_vocabularies_and_hyperparameters_pass(path: Path) -> None:
    with path.open("rb") as file:
        head = read_head(file)
    tokens = head.values["tokenizer.ggml.tokens"]
    n_embd = head.number(f"{head.architecture}.embedding_length")
    assert isinstance(tokens, Array)
    if n_embd is None:  # some were written by a tool that kept nothing but the vocabulary
        check_vocabulary(head)
        return
    assert soundness.problem_of(head, {"token_embd.weight": Tensor((n_embd, tokens.n), 0, 0)}) is None


@with_library
@pytest.mark.parametrize("make", [tiny_models.gpt2, tiny_models.gemma2, tiny_models.mamba2, tiny_models.qwen2moe])
def test_models_of_other_architectures_pass_and_run(tmp_path: Path, make: Callable[[], File]) -> None:
    path = tmp_path / "model.gguf"
    assert problem(path, make()) is None
    assert outcomes([path])[path].end == "ran"


def test_numbers_may_differ_between_layers(tmp_path: Path) -> None:
    demo = parse(DEMO.read_bytes())
    for name, number in (("attention.head_count", 6), ("attention.head_count_kv", 6), ("feed_forward_length", 512)):
        demo.set(f"llama.{name}", numbers(4, [number] * 4))
    assert problem(tmp_path / "model.gguf", demo) is None


# -- bad ones of other architectures ----------------------------------------------------------------------------------


def gemma2_without_sliding_layers() -> File:
    return tiny_models.gemma2().set("gemma2.attention.sliding_window_pattern", u32(1))


def gemma2_with_a_pattern_of_false() -> File:
    return tiny_models.gemma2().set("gemma2.attention.sliding_window_pattern", numbers(BOOL, [False] * 4))


def mamba2_without_groups() -> File:
    return tiny_models.mamba2(0)


def gpt2_with_heads_of_two_lengths() -> File:
    return tiny_models.gpt2().set("gpt2.attention.key_length", u32(16))


@with_library
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (gemma2_without_sliding_layers, "sliding_window_pattern gives none of the 4 layers sliding attention"),
        (gemma2_with_a_pattern_of_false, "sliding_window_pattern gives none of the 4 layers sliding attention"),
        (mamba2_without_groups, "mamba2.ssm.group_count is 0; expected 1 or more"),
        (gpt2_with_heads_of_two_lengths, "keys have 16 numbers a head, values 8"),
    ],
)
def test_what_would_end_the_process_is_refused(tmp_path: Path, make: Callable[[], File], words: str) -> None:
    path = tmp_path / "model.gguf"
    refusal = problem(path, make())
    assert refusal is not None
    assert words in refusal
    assert outcomes([path])[path].end in ("died", "refused")


@pytest.mark.parametrize("key", ["rope.dimension_count", "rope.dimension_count_swa"])
def test_a_rotation_of_nothing_is_refused(tmp_path: Path, key: str) -> None:
    """libllama would load it, and its first decode would never end."""
    refusal = problem(tmp_path / "model.gguf", tiny_models.gemma2().set(f"gemma2.{key}", u32(0)))
    assert refusal == f"gemma2.{key} is 0; expected an even number up to the 8 of a head"


# -- learned positions ------------------------------------------------------------------------------------------------


def test_a_slot_longer_than_the_learned_positions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_models.gpt2().bytes())

    def refusal(n_ctx: int, n_parallel: int, **more: str) -> str | None:
        return inspect(replace(spec_of(path), n_ctx=n_ctx, n_parallel=n_parallel, **more)).problem  # type: ignore[arg-type]

    assert refusal(512, 1) is None
    assert refusal(0, 1) is None
    assert refusal(1024, 2) is None
    assert refusal(1024, 2, embeddings="on") is None
    told = refusal(513, 1)
    assert told is not None
    assert "a slot would hold 768 tokens (513 for 1 slots, in steps of 256), the model has 512 positions" in told
    assert refusal(1024, 1, embeddings="on") is None, "texts for embeddings are cut at n_ctx_train already"


def test_an_entry_without_a_length_needs_a_file_with_one() -> None:
    spec = ModelSpec(id="a", path=Path("a"), n_ctx=0)
    assert problem_with(spec, FileFacts(n_ctx_train=0)) == "n_ctx: 0 takes the model's own, and the file says 0; give a number"
    assert problem_with(spec, FileFacts(n_ctx_train=512)) is None
    assert problem_with(spec, FileFacts()) is None


# -- shards -----------------------------------------------------------------------------------------------------------


def test_a_model_in_shards_is_one_model(tmp_path: Path) -> None:
    demo = parse(DEMO.read_bytes())
    paths = [tmp_path / shard_name("m", number, 3) for number in (1, 2, 3)]
    for path, file in zip(paths, shards(demo, 3), strict=True):
        path.write_bytes(file.bytes())
    spec = ModelSpec(id="m", path=paths[0])
    facts, whole = inspect(spec), inspect(ModelSpec(id="w", path=DEMO))
    assert facts.problem is None
    assert (facts.n_params, facts.n_tensors, facts.quant) == (whole.n_params, whole.n_tensors, "Q8_0")
    assert facts.size_bytes == sum(path.stat().st_size for path in paths)
    assert inspect(spec) is facts, "remembered"

    raw = paths[2].read_bytes()
    paths[2].unlink()
    missing = inspect(spec)
    assert missing.problem == "shard 3 of 3 (m-00003-of-00003.gguf): No such file or directory"
    paths[2].write_bytes(raw)
    back = inspect(spec)
    assert back.problem is None
    assert len({facts.identity, missing.identity, back.identity}) == 3
    assert back.identity is not None
    assert all(isinstance(number, int) for number in back.identity)
