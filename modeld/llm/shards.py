"""Which files is a model? One, or the shards that llama.cpp would open beside the first: all there, whole and of one kind.

Names and rules are those of llama.cpp's llama_split_prefix, llama_split_path and of llama_model_loader's constructor, which
looks only at the number of a shard and ends the process where that is no uint16 (gguf_get_val_u16 asserts).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modeld.llm.ggufreader import Budget, Identity, identify, identity_of, open_regular, read_head
from modeld.llm.ggufvalues import INT32, KIND_NAMES, UINT16, BadGguf, Head, Tensor

MAX_SHARDS = 1 << 10

NO_KEY, COUNT_KEY, TENSORS_KEY = "split.no", "split.count", "split.tensors.count"


@dataclass(frozen=True, slots=True)
class Shards:
    """What the files of a model hold together."""

    identities: tuple[Identity, ...]  # of those after the first
    tensors: dict[str, Tensor]
    size_bytes: int


def further_paths(path: Path, head: Head) -> tuple[Path, ...]:
    """The shards after the first, which `path` must be. Raises BadGguf."""
    n = _uint16(head, COUNT_KEY, 0)
    if n <= 1:
        return ()
    number = _uint16(head, NO_KEY, None)
    if number != 0:
        raise BadGguf(f"it is shard {number + 1} of {n}; a model is loaded by its first")
    if n > MAX_SHARDS:
        raise BadGguf(f"{COUNT_KEY} is {n}; at most {MAX_SHARDS} shards are read")
    ending = f"-{1:05d}-of-{n:05d}.gguf"
    prefix = str(path).removesuffix(ending)
    if prefix in (str(path), ""):
        raise BadGguf(f"it is the first of {n} shards, so its name has to end with {ending}: llama.cpp finds the others by it")
    return tuple(Path(f"{prefix}-{number:05d}-of-{n:05d}.gguf") for number in range(2, n + 1))


def read_shards(paths: Sequence[Path], head: Head, budget: Budget) -> Shards:
    """Read the heads of the shards after the first, whose head is given. Raises BadGguf."""
    tensors, size = dict(head.tensors), head.size_bytes
    identities = []
    for number, shard in enumerate(paths, 1):
        what = f"shard {number + 1} of {len(paths) + 1} ({shard.name})"
        try:
            with open_regular(shard) as file:
                identities.append(identify(file))
                other = read_head(file, budget)
        except OSError as error:
            raise BadGguf(f"{what}: {error.strerror or error}") from None
        except BadGguf as error:
            raise BadGguf(f"{what}: {error}") from None
        _check_shard(other, number, len(paths) + 1, what)
        for name, tensor in other.tensors.items():
            if name in tensors:
                raise BadGguf(f"{what}: the tensor {name!r} stands in an earlier shard, too")
            tensors[name] = tensor
        size += other.size_bytes
    if paths:
        _check_count(head, len(tensors), len(paths) + 1)
    return Shards(tuple(identities), tensors, size)


def joint_identity(first: Identity, others: Sequence[Identity]) -> Identity:
    """One identity for all the files of a model: that of the only one, or the first's place, all sizes and a digest."""
    if not others:
        return first
    digest = hashlib.sha256(repr((first, *others)).encode()).digest()
    return first[0], first[1], sum(identity[2] for identity in (first, *others)), int.from_bytes(digest[:8], "big") >> 1


def identities_now(paths: Sequence[Path]) -> tuple[Identity, ...]:
    """What the shards are at this moment; zeros for one that is not there."""
    found = []
    for path in paths:
        try:
            found.append(identity_of(os.stat(path)))  # noqa: PTH116 - as fstat gives it
        except OSError:
            found.append((0, 0, 0, 0))
    return tuple(found)


def _check_shard(head: Head, number: int, n: int, what: str) -> None:
    try:
        if (said := _uint16(head, NO_KEY, None)) != number:
            raise BadGguf(f"it says that it is shard {said + 1} ({NO_KEY} {said}, expected {number})")
        if (count := _uint16(head, COUNT_KEY, n)) != n:
            raise BadGguf(f"it says that there are {count} shards; the first says {n}")
        if head.is_cut_off:
            raise BadGguf(f"cut off: its tensor data ends at byte {head.end_bytes}, the file at {head.size_bytes}")
    except BadGguf as error:
        raise BadGguf(f"{what}: {error}") from None


def _check_count(head: Head, n_tensors: int, n: int) -> None:
    expected = head.number(TENSORS_KEY)
    if expected is None or head.kinds[TENSORS_KEY] != INT32:
        raise BadGguf(f"it has {n} shards, and no int32 {TENSORS_KEY} to count their tensors by")
    if expected != n_tensors:
        raise BadGguf(f"{TENSORS_KEY} is {expected}; the {n} shards hold {n_tensors} tensors")


def _uint16(head: Head, key: str, default: int | None) -> int:
    kind = head.kinds.get(key)
    value = head.number(key)
    if kind is None and default is not None:
        return default
    if kind != UINT16 or value is None:
        raise BadGguf(f"{key} is {'missing' if kind is None else KIND_NAMES[kind]}; expected a uint16")
    return value
