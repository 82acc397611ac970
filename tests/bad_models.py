"""Model files that libllama accepts and dies of, or computes nonsense with: a demo model with a few bytes changed."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import Any

import gguf

GOOD = Path(__file__).resolve().parent.parent / "models" / "demo-stories.gguf"
GGML_TYPE_I32 = 26


def nan_epsilon(target: Path) -> Path:
    """Aborts in the first decode."""
    return _with_value(target, "llama.attention.layer_norm_rms_epsilon", struct.pack("<f", float("nan")))


def integer_norm(target: Path) -> Path:
    """Aborts in the first decode: no kernel multiplies by I32. The size of its elements is that of F32's."""
    [norm] = [tensor for tensor in _reader().tensors if tensor.name == "blk.0.attn_norm.weight"]
    name, n_dims, dims, kind, _offset = norm.field.parts[-5:]
    assert (bytes(name), int(n_dims[0]), int(kind[0])) == (norm.name.encode(), 1, 0)
    return _changed(target, norm.field.offset + 8 + len(name) + n_dims.nbytes + dims.nbytes, struct.pack("<I", GGML_TYPE_I32))


def too_many_layers(target: Path) -> Path:
    """Aborts in the load."""
    return _with_value(target, "llama.block_count", struct.pack("<I", 100_000))


def nan_weights(target: Path) -> Path:
    """Computes, but no numbers."""
    [norm] = [tensor for tensor in _reader().tensors if tensor.name == "output_norm.weight"]
    return _changed(target, int(norm.data_offset), struct.pack("<f", float("nan")) * int(norm.n_elements))


def _reader() -> Any:
    return gguf.GGUFReader(GOOD)


def _with_value(target: Path, key: str, value: bytes) -> Path:
    field = _reader().fields[key]
    return _changed(target, field.offset + 8 + len(key) + 4, value)  # the key's length, the key, the value's type


def _changed(target: Path, at: int, value: bytes) -> Path:
    shutil.copyfile(GOOD, target)
    with target.open("r+b") as file:
        file.seek(at)
        file.write(value)
    return target
