"""What do the benchmarks run? Models with the shape of real ones and random weights, made here, since none can be downloaded.

    python bench/make_model.py q05      # 24 layers of 896, Qwen2's vocabulary of 151,936; Q4_0, 352 MB
    python bench/make_model.py tiny     # 4 layers of 256, Llama 2's vocabulary of 32,000; Q4_0, 10 MB

Speed does not depend on what the weights say, so these measure as the real models would. Weights are written tensor by tensor
in half precision and quantized by llama.cpp itself. A model that is there already is left alone; its path is printed.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "bench" / ".cache"
VOCABULARIES = ROOT / "third_party" / "llama.cpp" / "models"
LIBRARY = ROOT / "build" / "libllama.so"

LLAMA_FTYPE_MOSTLY_Q4_0 = 2


@dataclass(frozen=True, slots=True)
class Shape:
    arch: str
    vocabulary: str  # the file ggml-vocab-NAME.gguf of llama.cpp's tree
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    n_ff: int
    n_ctx: int
    rope_freq_base: float

    @property
    def n_embd_kv(self) -> int:
        return self.n_embd // self.n_head * self.n_head_kv


SHAPES = {
    "q05": Shape("qwen2", "qwen2", 24, 896, 14, 2, 4864, 32768, 1_000_000.0),
    "tiny": Shape("llama", "llama-spm", 4, 256, 4, 2, 1024, 4096, 10_000.0),
}


class QuantizeParams(ctypes.Structure):
    """llama.h, struct llama_model_quantize_params."""

    _fields_ = (
        ("nthread", ctypes.c_int32),
        ("ftype", ctypes.c_int32),
        ("output_tensor_type", ctypes.c_int32),
        ("token_embedding_type", ctypes.c_int32),
        ("flags", ctypes.c_bool * 6),
        ("pointers", ctypes.c_void_p * 4),
        ("max_buf_size", ctypes.c_size_t),
    )


def tensors(shape: Shape, n_vocab: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and numpy shapes (rows first). The output matrix is the embedding's, as in Qwen2 0.5B."""
    n, kv, ff = shape.n_embd, shape.n_embd_kv, shape.n_ff
    yield "token_embd.weight", (n_vocab, n)
    for i in range(shape.n_layer):
        yield f"blk.{i}.attn_norm.weight", (n,)
        for name, rows in (("q", n), ("k", kv), ("v", kv)):
            yield f"blk.{i}.attn_{name}.weight", (rows, n)
            if shape.arch == "qwen2":
                yield f"blk.{i}.attn_{name}.bias", (rows,)
        yield f"blk.{i}.attn_output.weight", (n, n)
        yield f"blk.{i}.ffn_norm.weight", (n,)
        yield f"blk.{i}.ffn_gate.weight", (ff, n)
        yield f"blk.{i}.ffn_up.weight", (ff, n)
        yield f"blk.{i}.ffn_down.weight", (n, ff)
    yield "output_norm.weight", (n,)


def write_half_precision(shape: Shape, name: str, seed: int, path: Path) -> None:
    vocabulary = gguf.GGUFReader(VOCABULARIES / f"ggml-vocab-{shape.vocabulary}.gguf")
    writer = gguf.GGUFWriter(path, shape.arch)
    writer.add_name(f"{name} (random weights, seed {seed})")
    writer.add_block_count(shape.n_layer)
    writer.add_context_length(shape.n_ctx)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_rope_freq_base(shape.rope_freq_base)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    for key, field in vocabulary.fields.items():
        if key.startswith("tokenizer."):
            sub_type = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type)
    n_vocab = len(vocabulary.fields["tokenizer.ggml.tokens"].data)

    plan = list(tensors(shape, n_vocab))
    for tensor, dims in plan:
        dtype: Any = np.float16 if len(dims) == 2 else np.float32
        writer.add_tensor_info(tensor, dims, np.dtype(dtype), int(np.prod(dims)) * np.dtype(dtype).itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(seed)
    for tensor, dims in plan:
        if tensor.endswith("norm.weight"):
            data = np.ones(dims, dtype=np.float32)
        elif len(dims) == 1:
            data = np.zeros(dims, dtype=np.float32)
        else:
            data = rng.standard_normal(dims, dtype=np.float32)
            data *= 0.02 if tensor == "token_embd.weight" else dims[1] ** -0.5
            data = data.astype(np.float16)
        writer.write_tensor_data(data)
    writer.close()


def quantize(library: Path, source: Path, target: Path) -> None:
    """Q4_0 by llama_model_quantize, as llama-quantize does it."""
    lib = ctypes.CDLL(os.fspath(library))
    lib.llama_model_quantize_default_params.restype = QuantizeParams
    lib.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(QuantizeParams)]
    lib.llama_model_quantize.restype = ctypes.c_uint32
    log_type = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    lines: list[str] = []
    log = log_type(lambda _level, text, _data: lines.append(text.decode(errors="replace")))
    lib.llama_log_set(log, None)
    params = lib.llama_model_quantize_default_params()
    params.ftype = LLAMA_FTYPE_MOSTLY_Q4_0
    code = lib.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
    if code != 0:
        raise SystemExit(f"llama_model_quantize({source.name}) returned {code}:\n" + "".join(lines[-20:]))


def make(name: str, *, library: Path = LIBRARY, cache: Path = CACHE, seed: int = 1) -> Path:
    """The path of the model; made when it is not there yet (q05: half a minute, 1 GB of disk for the time)."""
    suffix = "" if seed == 1 else f"-seed{seed}"
    target = cache / f"{name}{suffix}.gguf"
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    half, part = (cache / f".{target.name}.{os.getpid()}.{step}" for step in ("f16", "part"))
    try:
        write_half_precision(SHAPES[name], name, seed, half)
        quantize(library, half, part)
        part.rename(target)
    finally:
        half.unlink(missing_ok=True)
        part.unlink(missing_ok=True)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the models that the benchmarks run.")
    parser.add_argument("names", nargs="*", choices=[*SHAPES, []], help="default: all")
    parser.add_argument("--seed", type=int, default=1, help="another model of the same shape (switches need two)")
    parser.add_argument("--library", type=Path, default=LIBRARY)
    args = parser.parse_args()
    for name in args.names or SHAPES:
        print(f"{name}: making it, unless it is there", file=sys.stderr, flush=True)
        path = make(name, library=args.library, seed=args.seed)
        print(f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path} {path.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
