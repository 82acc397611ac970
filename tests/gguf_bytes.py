"""How is a GGUF file taken apart and put together again, in tests? A writer that writes anything, also what no writer would."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from modeld.llm.ggufvalues import PLAIN, TENSOR_TYPES

UINT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 2, 4, 5, 6, 7, 8, 9, 10
F32, F16, Q8_0, I8, I32, I64, F64, BF16 = 0, 1, 8, 24, 26, 27, 28, 30


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


Value = tuple[int, bytes]  # gguf_type, and what stands behind it


def u16(value: int) -> Value:
    return UINT16, struct.pack("<H", value)


def u32(value: int) -> Value:
    return UINT32, struct.pack("<I", value)


def i32(value: int) -> Value:
    return INT32, struct.pack("<i", value)


def u64(value: int) -> Value:
    return UINT64, struct.pack("<Q", value)


def f32(value: float) -> Value:
    return FLOAT32, struct.pack("<f", value)


def flag(value: bool) -> Value:
    return BOOL, struct.pack("<?", value)


def string(value: str | bytes) -> Value:
    return STRING, text(value)


def numbers(kind: int, items: Iterable[float]) -> Value:
    items = list(items)
    return ARRAY, struct.pack("<IQ", kind, len(items)) + struct.pack(f"<{len(items)}{PLAIN[kind]}", *items)


def strings(items: Iterable[str | bytes]) -> Value:
    items = list(items)
    return ARRAY, struct.pack("<IQ", STRING, len(items)) + b"".join(text(item) for item in items)


@dataclass(frozen=True)
class RawTensor:
    name: str
    shape: tuple[int, ...]
    kind: int
    data: bytes
    offset: int | None = None  # None: where it belongs

    @property
    def n_elements(self) -> int:
        n = 1
        for length in self.shape:
            n *= length
        return n


def zeros(name: str, shape: tuple[int, ...], kind: int = F32) -> RawTensor:
    tensor = RawTensor(name, shape, kind, b"")
    _, block, block_bytes = TENSOR_TYPES[kind]
    return replace(tensor, data=b"\0" * (tensor.n_elements // block * block_bytes))


@dataclass
class File:
    """A GGUF file in parts. `keys` in their order; changes are made in place, on a copy."""

    keys: list[tuple[str, Value]] = field(default_factory=list)
    tensors: list[RawTensor] = field(default_factory=list)
    version: int = 3
    magic: bytes = b"GGUF"
    n_keys: int | None = None  # None: as many as there are
    n_tensors: int | None = None
    alignment: int = 32

    def copy(self) -> File:
        return replace(self, keys=list(self.keys), tensors=list(self.tensors))

    def set(self, key: str, value: Value) -> File:
        """Give a key another value, in its place or at the end."""
        keys = [(name, value if name == key else old) for name, old in self.keys]
        self.keys = keys if any(name == key for name, _ in self.keys) else [*keys, (key, value)]
        return self

    def drop(self, *names: str) -> File:
        self.keys = [(name, value) for name, value in self.keys if name not in names]
        return self

    def get(self, key: str) -> Value:
        return dict(self.keys)[key]

    def tensor(self, name: str) -> RawTensor:
        return next(tensor for tensor in self.tensors if tensor.name == name)

    def change(self, name: str, change: Callable[[RawTensor], RawTensor | None]) -> File:
        """Give a tensor another form; None: it goes."""
        changed = [change(tensor) if tensor.name == name else tensor for tensor in self.tensors]
        self.tensors = [tensor for tensor in changed if tensor is not None]
        return self

    def head(self) -> bytes:
        infos, at = [], 0
        for tensor in self.tensors:
            offset = at if tensor.offset is None else tensor.offset
            n_dims = len(tensor.shape)
            infos.append(text(tensor.name) + struct.pack(f"<I{n_dims}QIQ", n_dims, *tensor.shape, tensor.kind, offset))
            at += len(tensor.data) + -len(tensor.data) % self.alignment
        counts = (self.n_tensors, len(self.tensors)), (self.n_keys, len(self.keys))
        said = [real if claimed is None else claimed for claimed, real in counts]
        raw = self.magic + struct.pack("<IQQ", self.version, *said)
        raw += b"".join(text(name) + struct.pack("<I", kind) + value for name, (kind, value) in self.keys) + b"".join(infos)
        return raw + b"\0" * (-len(raw) % self.alignment)

    def bytes(self) -> bytes:
        return self.head() + b"".join(tensor.data + b"\0" * (-len(tensor.data) % self.alignment) for tensor in self.tensors)


class _Cursor:
    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.at = 0

    def take(self, n: int) -> bytes:
        self.at += n
        return self.raw[self.at - n : self.at]

    def number(self, code: str) -> int:
        number: int = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]
        return number

    def text(self) -> bytes:
        return self.take(self.number("Q"))

    def value(self, kind: int) -> None:
        """Walk over it."""
        if kind == STRING:
            self.text()
        elif kind == ARRAY:
            inner, n = self.number("I"), self.number("Q")
            for _ in range(n):
                self.value(inner)
        else:
            self.number(PLAIN[kind])


def parse(raw: bytes) -> File:
    """Take a sound file apart."""
    cursor = _Cursor(raw)
    magic, version = cursor.take(4), cursor.number("I")
    n_tensors, n_keys = cursor.number("Q"), cursor.number("Q")
    file = File(magic=magic, version=version)
    for _ in range(n_keys):
        name, kind = cursor.text().decode(), cursor.number("I")
        begin = cursor.at
        cursor.value(kind)
        file.keys.append((name, (kind, raw[begin : cursor.at])))
    infos = []
    for _ in range(n_tensors):
        name = cursor.text().decode()
        shape = tuple(cursor.number("Q") for _ in range(cursor.number("I")))
        infos.append((zeros(name, shape, cursor.number("I")), cursor.number("Q")))
    begin = cursor.at + -cursor.at % file.alignment
    for tensor, offset in infos:
        file.tensors.append(replace(tensor, data=raw[begin + offset : begin + offset + len(tensor.data)]))
    return file
