"""GGUF heads: what good files say, and that bad ones get a reason in words and cost neither memory nor time."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.errors import LoadFailed
from modeld.llm import gguf
from modeld.llm.digest import sha256_of, verify_sha256
from modeld.llm.gguf import inspect
from modeld.llm.ggufreader import Budget, Reader, read_head
from modeld.llm.ggufvalues import PLAIN, QUANTS, TENSOR_TYPES, BadGguf, Head, quant_of
from modeld.llm.soundness import problem_of
from modeld.types import ModelSpec

ROOT = Path(__file__).resolve().parent.parent
LLAMA = ROOT / "third_party" / "llama.cpp"

F32, Q8_0 = 0, 8


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str = "t", shape: tuple[int, ...] = (32,), kind: int = F32, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


ARCHITECTURE = key("general.architecture", 8, text("llama"))
TOKENS = (b"<unk>", b"<s>", b"</s>", b"a")
VOCABULARY = struct.pack("<IQ", 8, len(TOKENS)) + b"".join(text(token) for token in TOKENS)
KEYS = (
    ARCHITECTURE,
    *(
        key(f"llama.{name}", 4, struct.pack("<I", number))
        for name, number in (("context_length", 512), ("embedding_length", 8), ("block_count", 1), ("attention.head_count", 1))
    ),
    key("tokenizer.ggml.model", 8, text("llama")),
    key("tokenizer.ggml.tokens", 9, VOCABULARY),
)


def build(
    keys: tuple[bytes, ...] = KEYS,
    tensors: tuple[bytes, ...] = (tensor("token_embd.weight", (8, 4)),),
    data: int = 128,
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """A file with a sound head, in which nothing is known against the model that it says it is; 128 bytes of data."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join(keys) + b"".join(tensors)
    return head + b"\0" * (-len(head) % alignment) + b"\1" * data


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def make(raw: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(raw)
        return path

    return make


Write = Callable[[bytes], Path]


def head_of(path: Path) -> Head:
    with path.open("rb") as file:
        return read_head(file)


def spec(path: Path) -> ModelSpec:
    return ModelSpec(id="a", path=path)


# -- good files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
def test_a_head_says_what_the_file_is(write: Write, version: int) -> None:
    keys = (
        *KEYS,
        key("general.name", 8, text("Storyteller")),
        key("general.file_type", 4, struct.pack("<I", 15)),
        key("tokenizer.ggml.scores", 9, struct.pack("<IQ4f", 6, 4, 1, 2, 3, 4)),
        key("tokenizer.chat_template", 8, text("x" * 100_000)),
        *(key(f"k{kind}", kind, b"\1" * struct.calcsize("<" + code)) for kind, code in PLAIN.items()),
    )
    tensors = (tensor("a", (32, 2), Q8_0, 0), tensor("token_embd.weight", (8, 4), F32, 96))
    path = write(build(keys, tensors, 96 + 128, version=version))
    head = head_of(path)
    assert (head.version, head.architecture, head.name, head.n_ctx_train) == (version, "llama", "Storyteller", 512)
    assert (quant_of(head, head.tensors), head.n_tensors, head.end_bytes, head.size_bytes) == (
        "Q4_K_M",
        2,
        path.stat().st_size,
        path.stat().st_size,
    )
    facts = inspect(spec(path))
    assert (facts.family, facts.quant, facts.name, facts.n_ctx_train) == ("llama", "Q4_K_M", "Storyteller", 512)
    assert (facts.size_bytes, facts.n_tensors, facts.problem) == (path.stat().st_size, 2, None)
    assert (facts.n_params, facts.n_layers) == (64 + 32, 1)


def test_without_a_file_type_the_quant_is_that_of_most_bytes(write: Write) -> None:
    tensors = (tensor("a", (32, 9), Q8_0, 0), tensor("b", (32,), F32, 320))
    assert inspect(spec(write(build(tensors=tensors, data=448)))).quant == "Q8_0"
    removed = (ARCHITECTURE, key("general.file_type", 4, struct.pack("<I", 33)))
    assert inspect(spec(write(build(removed)))).quant == "F32"


def test_an_alignment_moves_the_data(write: Write) -> None:
    keys = (ARCHITECTURE, key("general.alignment", 4, struct.pack("<I", 4096)))
    head = head_of(write(build(keys, data=127, alignment=4096)))
    assert (head.end_bytes, head.size_bytes, head.is_cut_off) == (4096 + 128, 4096 + 127, True)


@pytest.mark.parametrize("name", ["demo-stories", "demo-calc"])
def test_the_demo_models_are_sound(name: str) -> None:
    facts = inspect(spec(ROOT / "models" / f"{name}.gguf"))
    assert facts.problem is None
    assert (facts.family, facts.quant) == ("llama", "Q8_0")
    assert facts.n_tensors is not None
    assert facts.n_tensors > 10


@pytest.mark.skipif(not LLAMA.is_dir(), reason="llama.cpp's source is not there (make fetch)")
def test_the_tables_are_llama_cpps() -> None:
    header = (LLAMA / "include" / "llama.h").read_text()
    ftypes = re.findall(r"^\s+LLAMA_FTYPE_(?:ALL|MOSTLY)_(\w+)\s*=\s*(\d+)", header, re.MULTILINE)
    assert {int(number): name for name, number in ftypes} == {number: name for number, name in QUANTS.items() if name != "-"}
    header = (LLAMA / "ggml" / "include" / "ggml.h").read_text()
    types = re.findall(r"^\s+GGML_TYPE_(\w+)\s*=\s*(\d+)", header, re.MULTILINE)
    known = {int(number): name for name, number in types if name != "COUNT"}
    assert known == {number: name for number, (name, _, _) in TENSOR_TYPES.items()}


def test_block_sizes_are_those_of_the_gguf_package() -> None:
    package = pytest.importorskip("gguf")
    theirs = {int(kind): tuple(sizes) for kind, sizes in package.GGML_QUANT_SIZES.items()}
    for kind, (name, block, block_bytes) in TENSOR_TYPES.items():
        if kind in theirs and name != "Q8_1":  # 40 there; ggml-common.h's block_q8_1 has 36. No file holds it
            assert theirs[kind] == (block, block_bytes)


def test_a_text_ends_at_a_nul_as_libllama_sees_it(write: Write) -> None:
    keys = (key("general.architecture", 8, text("llama\0x")), *KEYS[1:], key("general.name", 8, text("a\0b")))
    facts = inspect(spec(write(build(keys))))
    assert (facts.problem, facts.family, facts.name) == (None, "llama", "a")


# -- bad files --------------------------------------------------------------------------------------------------------


def counts(n_tensors: int, n_keys: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_keys)


HUGE = 1 << 62


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not a GGUF file: empty"),
        (b"hello world", "not a GGUF file: begins with b'hell', expected b'GGUF'"),
        (b"GG", "not a GGUF file: begins with b'GG', expected b'GGUF'"),
        (b"GGUF", "cut off: the file ends at byte 4, within its head"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "a GGUF file for big-endian machines"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1; this reader knows 2 and 3"),
        (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), "GGUF version 4; this reader knows 2 and 3"),
        (counts(HUGE, 0), f"{HUGE} tensors and 0 keys; at most 65536 and 65536 are read"),
        (counts(0, HUGE), f"0 tensors and {HUGE} keys; at most 65536 and 65536 are read"),
        (counts(0, 5), "cut off: the file ends at byte 24, within its head"),
        (counts(0, 1) + struct.pack("<Q", HUGE), f"a key of {HUGE} bytes at byte 32; at most 65536"),
        (build((key("k", 13, b""),)), "the key 'k' has a value of unknown type 13"),
        (build((key("k", 8, struct.pack("<Q", HUGE)),)), "cut off: the file ends at byte"),
        (build((key("k", 9, struct.pack("<IQ", 6, HUGE)),)), "cut off: the file ends at byte"),
        (build((key("k", 9, struct.pack("<IQ", 8, HUGE)),)), f"the array 'k' has {HUGE} texts; at most 2097152 are walked over"),
        (build((key("", 8, text("x")),)), "a key without a name at byte 32"),
        (build((*KEYS, key("llama.expert_count\0", 4, b"\x08\0\0\0"))), "a key with a NUL in it at byte"),
        (build(tensors=(tensor("token_embd.weight\0x"),)), "a tensor's name with a NUL in it at byte"),
        (build(tensors=(tensor(), tensor(offset=128))), "the tensor 't' stands in it twice"),
        (build(tensors=(tensor(), tensor("u"))), "tensor 'u' begins at 0, expected 128, where the tensor before it ends"),
        (
            build(tensors=(tensor(offset=1 << 40),)),
            "tensor 't' begins at 1099511627776, expected 0, where the tensor before it ends",
        ),
        (
            build((key("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 1 << 21)),)),
            "tokenizer.ggml.tokens has 2097152 texts; at most",
        ),
        (build((key("tokenizer.ggml.tokens", 9, struct.pack("<IQQ", 8, 1, 1 << 16)),)), "token 0 has 65536 bytes; at most 32768"),
        (build((key("tokenizer.ggml.tokens", 9, struct.pack("<IQQ", 8, 1, 9999)),)), "cut off: the file ends at byte"),
        (build((key("k", 9, struct.pack("<IQ", 8, 1000)),), data=8), "cut off: the file ends at byte"),
        (build((key("k", 9, struct.pack("<IQ", 9, 1)),)), "the array 'k' has elements of unknown type 9"),
        (build((ARCHITECTURE, ARCHITECTURE)), "the key 'general.architecture' stands in it twice"),
        (build((key("general.alignment", 4, struct.pack("<I", 33)),)), "general.alignment is 33; expected a power of 2"),
        (build((key("general.alignment", 4, struct.pack("<I", 0)),)), "general.alignment is 0; expected a power of 2"),
        (build((key("general.alignment", 8, text("x")),)), "general.alignment is of type string; expected uint32"),
        (build(tensors=(tensor("n" * 64),)), "a tensor's name of 64 bytes at byte"),
        (build(tensors=(tensor(shape=(1,) * 5),)), "tensor 't' has 5 dimensions; at most 4"),
        (build(tensors=(tensor(kind=4),)), "tensor 't' has the unknown type 4"),
        (build(tensors=(tensor(kind=999),)), "tensor 't' has the unknown type 999"),
        (build(tensors=(tensor(shape=(HUGE, HUGE, HUGE, HUGE)),)), "tensor 't' has more than 2**63 elements"),
        (build(tensors=(tensor(shape=(33,), kind=Q8_0),)), "tensor 't' has rows of 33 elements, Q8_0 has blocks of 32"),
        (build(tensors=(tensor(offset=7),)), "tensor 't' begins at 7, no multiple of 32"),
    ],
)
def test_a_bad_head_gets_a_reason_in_words(write: Write, raw: bytes, reason: str) -> None:
    path = write(raw)
    with pytest.raises(BadGguf) as refused:
        head_of(path)
    assert reason in str(refused.value)
    facts = inspect(spec(path))
    assert facts.problem == str(refused.value)
    assert facts.size_bytes == len(raw)


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (build(data=127), f"cut off: its tensor data ends at byte {len(build())}, the file at {len(build()) - 1}"),
        (build(()), "not a model: it does not say general.architecture"),
        (build((*(ARCHITECTURE,), key("general.type", 8, text("adapter")))), "not a model: general.type is 'adapter'"),
        (build(tensors=()), "not a model: it holds no tensors"),
    ],
)
def test_a_sound_head_of_no_model_is_told(write: Write, raw: bytes, problem: str) -> None:
    assert inspect(spec(write(raw))).problem == problem


def test_every_way_to_cut_a_file_off_is_noticed(write: Write) -> None:
    whole = build((*KEYS, key("merges", 9, struct.pack("<IQ", 8, 2) + text("a") + text("b"))))
    for length in range(len(whole)):
        assert inspect(spec(write(whole[:length]))).problem, length


@given(st.integers(0, 500), st.binary(min_size=1, max_size=8))
def test_any_damage_gives_a_head_or_a_reason(at: int, damage: bytes) -> None:
    raw = bytearray(build((*KEYS, key("merges", 9, struct.pack("<IQ", 8, 2) + text("a") + text("b")))))
    raw[at : at + len(damage)] = damage
    reader = Reader(io.BytesIO(bytes(raw)), len(raw), Budget())
    try:
        head = reader.head()
    except BadGguf:
        return
    assert head.n_tensors <= 1
    problem = problem_of(head, head.tensors)  # never raises
    assert problem is None or problem


def test_numbers_that_lie_cost_no_memory(write: Write) -> None:
    path = write(build((key("k", 8, struct.pack("<Q", 1 << 40)),)))
    tracemalloc.start()
    try:
        with pytest.raises(BadGguf):
            head_of(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_head_full_of_everything_costs_a_bounded_time_and_memory(write: Write) -> None:
    many = 1 << 20
    token = struct.Struct("<Q4s")
    tokens = b"".join(token.pack(4, i.to_bytes(4, "little")) for i in range(1 << 24, (1 << 24) + many))
    keys = (
        ARCHITECTURE,
        *(key(f"k{i}", 9, struct.pack("<IQ1024d", 12, 1024, *[0.5] * 1024)) for i in range(100)),
        key("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, many) + tokens),
        key("merges", 9, struct.pack("<IQ", 8, many) + bytes(8 * many)),
    )
    path = write(build(keys, tuple(tensor(f"t{i}", (1,), F32, 32 * i) for i in range(1 << 14)), 32 << 14))
    inspected = """
import sys, time
from pathlib import Path
from modeld.llm.gguf import inspect
from modeld.types import ModelSpec
def highest():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before, began = highest(), time.monotonic()
print(inspect(ModelSpec(id="a", path=Path(sys.argv[1]))).problem)
print(highest() - before, time.monotonic() - began)
"""
    done = subprocess.run([sys.executable, "-c", inspected, path], cwd=ROOT, capture_output=True, text=True, check=True)
    problem, measured = done.stdout.splitlines()
    kib, seconds = (float(number) for number in measured.split())
    assert problem == "llama.block_count is missing"
    assert kib < 100 << 10
    assert seconds < 15  # 2 where nobody else computes


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda tmp: tmp / "missing", "No such file or directory"),
        (lambda tmp: tmp, "Is a directory"),
        (lambda tmp: Path("/dev/null"), "Not a regular file"),
        (lambda tmp: tmp / "a\0b", "embedded null byte"),
    ],
)
def test_what_is_no_file_is_told(tmp_path: Path, make: Callable[[Path], Path], problem: str) -> None:
    facts = inspect(spec(make(tmp_path)))
    assert facts.problem == problem
    assert facts.identity is None


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert inspect(spec(tmp_path / "pipe")).problem == "Not a regular file"


def test_a_file_is_read_again_only_when_it_has_changed(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(build())
    first = inspect(spec(path))

    def explode(file: object) -> Head:
        raise AssertionError("read again")

    with monkeypatch.context() as patched:
        patched.setattr(gguf, "read_head", explode)
        assert inspect(spec(path)) == first
    write(build(data=127))
    changed = inspect(spec(path))
    assert changed.problem is not None
    assert changed.identity != first.identity


# -- digests ----------------------------------------------------------------------------------------------------------


def test_the_right_digest_passes_with_rising_percents(write: Write) -> None:
    path = write(b"x" * (3 << 20))
    told: list[int] = []

    def on_progress(pct: int) -> bool:
        told.append(pct)
        return True

    expected = sha256(path.read_bytes()).hexdigest()
    verify_sha256(path, expected.upper(), on_progress)
    assert told == sorted(set(told))
    assert told[-1] == 100
    told.clear()
    verify_sha256(path, expected, on_progress)  # remembered
    assert told == [100]


def test_the_wrong_digest_names_both(write: Write) -> None:
    path = write(b"x")
    with pytest.raises(LoadFailed) as refused:
        verify_sha256(path, "ab" * 32, lambda pct: True)
    assert "ab" * 32 in refused.value.message
    assert sha256(b"x").hexdigest() in refused.value.message


def test_a_digest_is_computed_again_when_the_file_has_changed(write: Write) -> None:
    path = write(b"x")
    verify_sha256(path, sha256(b"x").hexdigest(), lambda pct: True)
    write(b"yy")
    with pytest.raises(LoadFailed):
        verify_sha256(path, sha256(b"x").hexdigest(), lambda pct: True)


def test_a_file_under_another_name_is_not_read_again(write: Write, tmp_path: Path) -> None:
    path = write(b"x" * (3 << 20))
    expected = sha256_of(path, lambda pct: True)
    (tmp_path / "link.gguf").hardlink_to(path)
    told: list[int] = []

    def on_progress(pct: int) -> bool:
        told.append(pct)
        return True

    verify_sha256(tmp_path / "link.gguf", expected, on_progress)
    assert told == [100]


def test_a_check_can_be_ended(write: Write) -> None:
    with pytest.raises(LoadFailed, match="was ended at 50 %"):
        verify_sha256(write(b"x" * (2 << 20)), "ab" * 32, lambda pct: False)


def test_a_file_that_changes_while_it_is_checked_does_not_pass(write: Write) -> None:
    path = write(b"x" * (2 << 20))

    def on_progress(pct: int) -> bool:
        with path.open("ab") as file:
            file.write(b"more")
        return True

    with pytest.raises(LoadFailed, match="changed while it was checked"):
        verify_sha256(path, "ab" * 32, on_progress)


def test_an_empty_and_a_missing_file_are_no_match(write: Write, tmp_path: Path) -> None:
    verify_sha256(write(b""), sha256(b"").hexdigest(), lambda pct: True)
    with pytest.raises(LoadFailed, match="cannot be read: No such file or directory"):
        verify_sha256(tmp_path / "missing", "ab" * 32, lambda pct: True)
