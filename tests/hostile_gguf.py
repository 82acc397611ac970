"""Which files might be given to the daemon to end it? Damaged copies of a demo model, each with the damage in its name.

`needs_probe`: nothing in the head tells, and libllama ends the process when it computes; somebody has to try it elsewhere.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from tests.gguf_bytes import Q8_0, File, i32, numbers, parse, string, u16, u32, u64
from tests.hostile import Change, Hostile, TensorChange, changing, moved, of_bytes, of_change, setting
from tests.hostile_models import damaged_models

DEMO = Path(__file__).resolve().parent.parent / "models" / "demo-stories.gguf"


def all_hostile() -> list[Hostile]:
    """Every damage, in a fixed order; names are unique."""
    raw = DEMO.read_bytes()
    demo = parse(raw)
    assert demo.bytes().rstrip(b"\0") == raw.rstrip(b"\0"), "the writer does not give the demo model back"
    found = [*_container(raw, demo), *damaged_models(demo), *_shards(demo)]
    assert len({hostile.name for hostile in found}) == len(found)
    return found


# -- the container ---------------------------------------------------------------------------------------------------


def _container(raw: bytes, demo: File) -> Iterator[Hostile]:
    def cut(n_bytes: int) -> bytes:
        return raw[:n_bytes]

    n_head = len(demo.head())
    places = (0, 3, 4, 7, 8, 16, 23, 24, 40, 100, 1000, 12_000, n_head // 2, n_head - 300, n_head - 1, n_head, len(raw) // 2)
    for at in (*places, len(raw) - 4096):
        yield of_bytes(f"cut-at-{at}", "container", partial(cut, at))

    def patched(at: int, damage: bytes) -> bytes:
        return raw[:at] + damage + raw[at + len(damage) :]

    for name, at, damage in (
        ("magic-ggml", 0, b"ggml"),
        ("magic-zero", 0, bytes(4)),
        ("version-0", 4, struct.pack("<I", 0)),
        ("version-1", 4, struct.pack("<I", 1)),
        ("version-4", 4, struct.pack("<I", 4)),
        ("version-big-endian", 4, struct.pack(">I", 3)),
        ("tensors-none", 8, struct.pack("<Q", 0)),
        ("tensors-one-less", 8, struct.pack("<Q", len(demo.tensors) - 1)),
        ("tensors-one-more", 8, struct.pack("<Q", len(demo.tensors) + 1)),
        ("tensors-huge", 8, struct.pack("<Q", 1 << 62)),
        ("tensors-negative", 8, struct.pack("<q", -1)),
        ("keys-none", 16, struct.pack("<Q", 0)),
        ("keys-one-less", 16, struct.pack("<Q", len(demo.keys) - 1)),
        ("keys-one-more", 16, struct.pack("<Q", len(demo.keys) + 1)),
        ("keys-huge", 16, struct.pack("<Q", 1 << 62)),
        ("first-key-huge", 24, struct.pack("<Q", 1 << 62)),
        ("first-key-empty", 24, struct.pack("<Q", 0)),
        ("first-key-negative", 24, struct.pack("<q", -8)),
    ):
        yield of_bytes(name, "container", partial(patched, at, damage))

    def keys(change: Change, name: str) -> Hostile:
        return of_change(demo, name, "container", change)

    yield keys(lambda f: f.keys.append(f.keys[0]), "key-twice")
    yield keys(lambda f: f.set("x", (13, b"\0" * 8)), "value-of-unknown-type")
    yield keys(lambda f: f.set("x", (9, struct.pack("<IQ", 9, 1) + bytes(16))), "array-of-arrays")
    yield keys(lambda f: f.set("x", (9, struct.pack("<IQ", 99, 1) + bytes(16))), "array-of-unknown-type")
    yield keys(lambda f: f.set("x", (9, struct.pack("<IQ", 6, 1 << 62))), "array-huge")
    yield keys(lambda f: f.set("x", (9, struct.pack("<IQ", 8, 1 << 62))), "texts-huge")
    yield keys(lambda f: f.set("x", (9, struct.pack("<IQ", 10, 1 << 61))), "array-whose-bytes-overflow")
    yield keys(lambda f: f.set("x", (8, struct.pack("<Q", 1 << 63))), "text-huge")
    for alignment in (0, 3, 1 << 31):
        yield keys(setting("general.alignment", u32(alignment)), f"alignment-{alignment}")
    yield keys(lambda f: f.set("general.alignment", u64(32)), "alignment-uint64")
    yield keys(lambda f: f.set("general.alignment", string("32")), "alignment-text")
    yield keys(lambda f: f.set("general.alignment", u32(64)), "alignment-64-where-tensors-have-32")
    last = demo.tensors[-1].name
    first, second = demo.tensors[0], demo.tensors[1]
    changes: dict[str, TensorChange] = {
        "offset-beyond-the-file": moved(1 << 40),
        "offset-huge": moved((1 << 64) - 32),
        "offset-unaligned": moved(7),
        "offset-of-the-first": moved(0),
        "five-dimensions": lambda t: replace(t, shape=(1, 1, 1, 1, t.n_elements)),
        "elements-overflow": lambda t: replace(t, shape=(1 << 40, 1 << 40)),
        "dimension-negative": lambda t: replace(t, shape=((1 << 64) - 32,)),
        "type-removed": lambda t: replace(t, kind=4),
        "type-unknown": lambda t: replace(t, kind=999),
        "name-too-long": lambda t: replace(t, name="n" * 64),
        "name-of-the-first": lambda t: replace(t, name=first.name),
        "row-no-multiple-of-the-block": lambda t: replace(t, kind=Q8_0, shape=(193,)),
    }
    for name, change in changes.items():
        yield keys(changing(last, change), f"tensor-{name}")
    yield keys(changing(second.name, moved(0)), "tensors-overlap")


# -- shards ----------------------------------------------------------------------------------------------------------


def shards(demo: File, n: int = 2) -> list[File]:
    """The model in n sound shards: the keys in the first, tensors in all."""
    files = []
    for number in range(n):
        tensors = demo.tensors[number::n]
        keys = list(demo.keys) if number == 0 else []
        split = [("split.no", u16(number)), ("split.count", u16(n)), ("split.tensors.count", i32(len(demo.tensors)))]
        files.append(File([*keys, *split], tensors))
    return files


def shard_name(name: str, number: int, n: int) -> str:
    """As llama_split_path writes it; `number` from 1."""
    return f"{name}-{number:05d}-of-{n:05d}.gguf"


def _shards(demo: File) -> Iterator[Hostile]:
    def of(name: str, change: Callable[[list[File]], object], *, entry: str | None = None, drop: int | None = None) -> Hostile:
        def make() -> dict[str, bytes]:
            files = shards(demo)
            change(files)
            named = {shard_name(name, number, 2): file.bytes() for number, file in enumerate(files, 1)}
            if drop is not None:
                del named[shard_name(name, drop, 2)]
            if entry is not None:
                named = {entry: named.pop(shard_name(name, 1, 2)), **named}
            return named

        return Hostile(f"shards-{name}", "shards", make)

    yield of("second-missing", lambda files: None, drop=2)
    yield of("entered-by-the-second", lambda files: None, drop=1)
    yield of("first-misnamed", lambda files: None, entry="model.gguf")
    yield of("second-without-number", lambda files: files[1].drop("split.no"))
    yield of("second-with-another-number", lambda files: files[1].set("split.no", u16(0)))
    yield of("second-number-uint32", lambda files: files[1].set("split.no", u32(1)))
    yield of("second-number-text", lambda files: files[1].set("split.no", string("1")))
    yield of("second-number-array", lambda files: files[1].set("split.no", numbers(2, [1, 1])))
    yield of("second-of-three", lambda files: files[1].set("split.count", u16(3)))
    yield of("first-number-1", lambda files: files[0].set("split.no", u16(1)))
    yield of("count-uint32", lambda files: files[0].set("split.count", u32(2)))
    yield of("count-65535", lambda files: files[0].set("split.count", u16(65535)))
    yield of("tensors-uncounted", lambda files: files[0].drop("split.tensors.count"))
    yield of("tensors-miscounted", lambda files: files[0].set("split.tensors.count", i32(3)))
    yield of("tensor-in-both", lambda files: files[1].tensors.append(files[0].tensors[0]))
    yield of("second-cut", lambda files: files[1].tensors.__setitem__(-1, replace(files[1].tensors[-1], data=b"")))
    yield of("second-no-gguf", lambda files: setattr(files[1], "magic", b"nope"))
