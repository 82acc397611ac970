"""Do any bytes break the reader of model files, or pass as a sound model that they are not? An input is a file, or its shards.

Shards stand one behind the other: each begins with GGUF and its version. A file that is found sound is taken apart once more by
the tests' own reader, which must see the same keys and tensors, all of them within the file.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from dataclasses import replace

from fuzz.target import Target, folder
from modeld.llm import gguf
from modeld.llm.ggufreader import Budget, Reader
from modeld.llm.ggufvalues import BadGguf, Head
from modeld.llm.soundness import problem_of
from modeld.types import FileFacts, ModelSpec
from tests.gguf_bytes import F32, File, i32, numbers, parse, string, strings, u16, u32, u64, zeros
from tests.hostile_gguf import shard_name, shards

_FILE = re.compile(rb"(?<=.)(?=GGUF[\x02\x03]\0\0\0)", re.DOTALL)


def check(data: bytes) -> str:
    files = _FILE.split(data)
    names = [shard_name("m", number, len(files)) for number in range(1, len(files) + 1)] if len(files) > 1 else ["m.gguf"]
    paths = [folder() / name for name in names]
    for path, raw in zip(paths, files, strict=True):
        path.write_bytes(raw)
    try:
        gguf._seen.clear()  # by name, and these names come again
        facts = gguf.inspect(ModelSpec(id="m", path=paths[0]))
        again = gguf.inspect(ModelSpec(id="m", path=paths[0]))
        looked_at = gguf.files_of(paths[0])
    finally:
        for path in paths:
            path.unlink()
    assert facts == again, "what is remembered is what was read"
    assert facts.problem is None or facts.problem, "a problem says something"
    assert "\0" not in f"{facts.family}{facts.name}", "libllama sees texts up to a NUL"
    for n_ctx, embeddings in ((0, "auto"), (4096, "off"), (1 << 30, "on")):
        gguf.problem_with(ModelSpec(id="m", path=paths[0], n_ctx=n_ctx, embeddings=embeddings), facts)
    try:
        head = Reader(io.BytesIO(files[0]), len(files[0]), Budget()).head()
    except BadGguf as refused:
        _check_same(facts.problem, str(refused))
        return "BadGguf"
    _check_head(head, files[0])
    problem = problem_of(head, head.tensors)  # never raises
    if len(looked_at) == 1:
        assert facts.problem is not None or problem is None
    if facts.problem is not None:
        return "refused"
    for raw in files[: len(looked_at)]:
        _check_sound(raw)
    _check_facts(facts)
    return "read"


def _check_same(problem: str | None, told: str) -> None:
    assert problem == told, f"inspect says {problem}, the reader {told}"


def _check_head(head: Head, raw: bytes) -> None:
    assert head.size_bytes == len(raw)
    assert set(head.values) <= set(head.kinds)
    at = 0
    for tensor in head.tensors.values():
        assert tensor.offset >= at, "tensors do not overlap"
        assert 0 <= tensor.n_elements < 1 << 63
        assert 0 <= tensor.n_bytes < 1 << 63
        at = tensor.offset + tensor.n_bytes
    assert head.end_bytes >= at
    if head.tensors and not head.is_cut_off:
        assert head.end_bytes - at <= len(raw) - at, "the data lies within the file"


def _check_sound(raw: bytes) -> None:
    """Another reader sees the same. It does not look at names as the first does: libllama compares them up to a NUL."""
    head = Reader(io.BytesIO(raw), len(raw), Budget()).head()
    try:
        other = parse(raw)
    except UnicodeDecodeError:
        return  # a name that is no text, which that reader does not take
    assert [name.partition("\0")[0] for name, _ in other.keys] == list(head.kinds)
    assert [tensor.name.partition("\0")[0] for tensor in other.tensors] == list(head.tensors)
    for tensor in other.tensors:
        told = head.tensors[tensor.name]
        assert (told.shape, told.kind) == (tensor.shape, tensor.kind)
        # zeros() gave it the length that its shape and type ask for; the file had as many bytes there
        assert len(tensor.data) == told.n_bytes, f"{tensor.name} reaches beyond the file"


def _check_facts(facts: FileFacts) -> None:
    assert facts.family
    assert facts.size_bytes is not None
    assert facts.n_tensors
    assert facts.n_layers
    if facts.shape is not None:
        numbers_ = (facts.shape.weights_bytes, facts.shape.n_embd, facts.shape.n_vocab, facts.shape.state_bytes)
        assert all(isinstance(number, int) and 0 <= number < math.inf for number in numbers_)
        assert facts.shape.weights_bytes <= facts.size_bytes


def tiny() -> File:
    """A model of one layer in some 600 bytes, sound as far as anybody knows."""
    keys = [
        ("general.architecture", string("llama")),
        ("general.name", string("tiny")),
        ("general.file_type", u32(0)),
        *((f"llama.{name}", u32(n)) for name, n in {"context_length": 512, "embedding_length": 8, "block_count": 1}.items()),
        *((f"llama.{name}", u32(n)) for name, n in {"feed_forward_length": 8, "attention.head_count": 2}.items()),
        ("tokenizer.ggml.model", string("llama")),
        ("tokenizer.ggml.tokens", strings(["<unk>", "<s>", "</s>", "a"])),
        ("tokenizer.ggml.scores", numbers(6, [0, 0, 0, 0])),
        ("tokenizer.ggml.token_type", numbers(5, [2, 3, 3, 1])),
    ]
    return File(keys, [zeros("token_embd.weight", (8, 4), F32), zeros("output_norm.weight", (8,), F32)])


def of(arch: str, model: File) -> File:
    """The same numbers under the names of another architecture."""
    renamed = [(name.replace("llama.", f"{arch}."), value) for name, value in model.keys]
    return File(renamed, list(model.tensors)).set("general.architecture", string(arch))


def seeds() -> Iterator[bytes]:
    plain = tiny()
    yield plain.bytes()
    yield plain.copy().set("general.alignment", u32(32)).bytes()
    yield plain.copy().set("general.alignment", u64(32)).bytes()
    yield plain.copy().set("tokenizer.ggml.tokens", strings(["a", "b", "a", "\0"])).bytes()
    yield plain.copy().set("tokenizer.chat_template", string("x" * 4097)).bytes()
    yield plain.copy().set("llama.attention.head_count", numbers(4, [2])).bytes()
    yield plain.copy().set("numbers", numbers(4, range(1025))).bytes()
    yield plain.copy().set("llama.rope.scaling.type", string("yarn")).bytes()
    yield plain.copy().set("llama.expert_count", u32(4)).set("llama.expert_used_count", u32(2)).bytes()
    yield plain.copy().set("llama.rope.dimension_count", u32(4)).bytes()
    yield plain.copy().set("llama.attention.layer_norm_rms_epsilon", (6, b"\0\0\xc0\x7f")).bytes()
    yield plain.copy().set("llama.expert_count\0", u32(8)).bytes()
    yield plain.copy().set("general.architecture", string("llama\0x")).bytes()
    yield plain.copy().change("output_norm.weight", lambda tensor: replace(tensor, name="output_norm.weight\0x")).bytes()
    yield b"".join(file.bytes() for file in shards(plain, 2))
    yield plain.copy().set("split.count", u16(2)).set("split.no", u16(0)).set("split.tensors.count", i32(2)).bytes()
    twice = shards(plain, 2)
    twice[1].tensors = list(twice[0].tensors)
    yield b"".join(file.bytes() for file in twice)
    for arch in ("mamba", "qwen3next", "gemma3", "bert", "jamba", "rwkv6", "gpt-oss"):
        yield of(arch, plain).bytes()
    learned = of("gpt2", plain).set("gpt2.context_length", u32(4))
    learned.tensors = [*plain.tensors, zeros("position_embd.weight", (8, 4), F32)]
    yield learned.bytes()
    for n_sections in ([0, 0, 0, 0], [2, 1, 1, 0]):
        yield of("qwen2vl", plain).set("qwen2vl.rope.dimension_sections", numbers(5, n_sections)).bytes()
    sliding = of("gemma3", plain).set("gemma3.attention.sliding_window", u32(4))
    for pattern in ([True], [False], [True] * 513):
        yield sliding.copy().set("gemma3.attention.sliding_window_pattern", numbers(7, pattern)).bytes()
    yield of("qwen3next", plain).set("qwen3next.attention.recurrent_layers", numbers(7, [True])).bytes()
    yield of("hunyuan_vl", plain).set("hunyuan_vl.expert_count", u32(1)).bytes()
    yield plain.bytes()[:-40]
    yield b"GGUF" + bytes(20)


WORDS = tuple(
    b"GGUF llama gpt2 bert t5 gemma2 gemma3 mamba qwen3next jamba no_vocab yarn general.architecture general.alignment "
    b"general.type general.file_type tokenizer.ggml.tokens tokenizer.ggml.model tokenizer.ggml.scores tokenizer.ggml.token_type "
    b"tokenizer.ggml.merges tokenizer.ggml.pre tokenizer.ggml.bos_token_id tokenizer.ggml.add_eos_token .context_length "
    b".block_count .embedding_length .attention.head_count .attention.head_count_kv .attention.key_length "
    b".attention.value_length .attention.sliding_window .attention.sliding_window_pattern .expert_count .expert_used_count "
    b".rope.dimension_count .rope.scaling.type .rope.dimension_sections .pooling_type .nextn_predict_layers "
    b".ssm.conv_kernel .ssm.state_size split.count split.no split.tensors.count token_embd.weight output.weight "
    b"position_embd.weight".split()
)

TARGET = Target(
    modules=tuple(f"modeld.llm.{name}" for name in "gguf ggufreader ggufvalues shards soundness vocabsound modelshape".split()),
    check=check,
    seeds=seeds,
    words=WORDS,
    max_bytes=8192,
)
