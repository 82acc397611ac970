"""A model whose load takes long enough to be seen and cut short: the demo model with its layers repeated. Answers nonsense."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.gguf_bytes import parse, u32
from tests.hostile_gguf import DEMO

N_LAYERS = 240  # 105 MB; the demo model has 4


def deep_model(folder: Path, n_layers: int = N_LAYERS) -> Path:
    """Write it to `folder`."""
    file = parse(DEMO.read_bytes())
    layers = [tensor for tensor in file.tensors if tensor.name.startswith("blk.")]
    file.tensors = [tensor for tensor in file.tensors if tensor not in layers]
    n_known = len({tensor.name.split(".")[1] for tensor in layers})
    for number in range(n_layers):
        for tensor in layers:
            _, known, rest = tensor.name.split(".", 2)
            if int(known) == number % n_known:
                file.tensors.append(replace(tensor, name=f"blk.{number}.{rest}"))
    file.set("llama.block_count", u32(n_layers))
    path = folder / "deep.gguf"
    path.write_bytes(file.bytes())
    return path
