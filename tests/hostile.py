"""What is a hostile file? Its name, its damage, and the small changes out of which damages are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from tests.gguf_bytes import File, RawTensor, Value, zeros

Change = Callable[[File], object]
TensorChange = Callable[[RawTensor], RawTensor | None]


@dataclass(frozen=True)
class Hostile:
    """One damaged model. `files` makes its files, the first of which is the entry: name -> bytes.

    `needs_probe`: nothing in the head tells, and libllama ends the process when it computes; somebody has to try it elsewhere.
    """

    name: str
    kind: str  # container | semantic | tensors | shards | weights
    files: Callable[[], dict[str, bytes]]
    needs_probe: bool = False


def of_bytes(name: str, kind: str, make: Callable[[], bytes]) -> Hostile:
    return Hostile(name, kind, lambda: {f"{name}.gguf": make()})


def of_change(demo: File, name: str, kind: str, change: Change, *, needs_probe: bool = False) -> Hostile:
    """The demo model with a change, which is made on a copy when the file is wanted."""

    def files() -> dict[str, bytes]:
        file = demo.copy()
        change(file)
        return {f"{name}.gguf": file.bytes()}

    return Hostile(name, kind, files, needs_probe)


def setting(key: str, value: Value) -> Change:
    return lambda file: file.set(key, value)


def dropping(key: str) -> Change:
    return lambda file: file.drop(key)


def changing(tensor: str, change: TensorChange) -> Change:
    return lambda file: file.change(tensor, change)


def adding(tensor: RawTensor) -> Change:
    return lambda file: file.tensors.append(tensor)


def retyped(kind: int) -> TensorChange:
    """Of the same shape, all zeros."""
    return lambda tensor: zeros(tensor.name, tensor.shape, kind)


def moved(offset: int) -> TensorChange:
    return partial(replace, offset=offset)
