"""What does a GGUF file say about itself? A bounded reader of its head: pure Python, nothing is loaded.

The layout is that of ggml/include/gguf.h: magic, version, counts, key-value pairs, tensor infos, padding, tensor data.
Numbers in the file are never believed before they are compared with the file's size.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from modeld.types import FileFacts, ModelSpec

MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_KEY_BYTES = 1 << 16  # 65535 in the specification
MAX_VALUE_BYTES = 1 << 12  # of a text that is kept
MAX_TEXTS = 1 << 22  # in arrays, all together: each is walked over in Python
CHUNK_BYTES = 1 << 16
MAX_TENSOR_NAME_BYTES = 64  # GGML_MAX_NAME
MAX_DIMS = 4  # GGML_MAX_DIMS
DEFAULT_ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT

# enum gguf_type: the format and size of the plain ones
_PLAIN = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_UINT32, _STRING, _ARRAY = 4, 8, 9

# enum llama_ftype, LLAMA_FTYPE_ALL_ and LLAMA_FTYPE_MOSTLY_
QUANTS: Mapping[int, str] = dict(
    enumerate(
        "F32 F16 Q4_0 Q4_1 - - - Q8_0 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ2_XXS IQ2_XS "
        "Q2_K_S IQ3_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ3_M IQ2_S IQ2_M IQ4_XS IQ1_M BF16 - - - TQ1_0 TQ2_0 MXFP4_MOE NVFP4 Q1_0 "
        "Q2_0".split()
    )
)

# enum ggml_type: name, elements of a block, bytes of a block (ggml_blck_size, ggml_type_size). Removed types are absent.
TENSOR_TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1),
    25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip

Identity = tuple[int, int, int, int]
Value = int | float | bool | str


class BadGguf(ValueError):
    """Not a GGUF file, or one that llama.cpp would refuse; the text says why."""


@dataclass(frozen=True, slots=True)
class Head:
    """What stands before the tensor data. `values`: the plain `general.*` keys and the context length."""

    version: int
    values: Mapping[str, Value]
    quant: str | None
    n_tensors: int
    end_bytes: int  # where the tensor data ends; more than size_bytes: the file was cut off
    size_bytes: int

    @property
    def architecture(self) -> str | None:
        return self._text("general.architecture")

    @property
    def name(self) -> str | None:
        return self._text("general.name")

    @property
    def n_ctx_train(self) -> int | None:
        value = self.values.get(f"{self.architecture}.context_length")
        return value if isinstance(value, int) else None

    def problem(self) -> str | None:
        """Why llama.cpp could not load the file as a model, in words; None when nothing is known against it."""
        if self.end_bytes > self.size_bytes:
            return f"cut off: its tensor data ends at byte {self.end_bytes}, the file at {self.size_bytes}"
        if self.architecture is None:
            return "not a model: it does not say general.architecture"
        kind = self._text("general.type") or "model"
        if kind != "model":
            return f"not a model: general.type is {kind!r}"
        if self.n_tensors == 0:
            return "not a model: it holds no tensors"
        return None

    def _text(self, key: str) -> str | None:
        value = self.values.get(key)
        return value if isinstance(value, str) else None


# -- what callers use ------------------------------------------------------------------------------------------------

_seen: dict[Path, tuple[Identity, FileFacts]] = {}
# One entry a path, so as many as the registry has. No lock: two threads that miss at once read the same file twice.


def inspect(spec: ModelSpec) -> FileFacts:
    """What the model's file says; a missing or bad one is told in `problem`. Reads a file once until it changes."""
    try:
        with open_regular(spec.path) as file:
            identity = identify(file)
            known = _seen.get(spec.path)
            if known is not None and known[0] == identity:
                return known[1]
            facts = _facts(file, identity)
    except OSError as error:
        return FileFacts(problem=error.strerror or str(error))
    except ValueError as error:  # a NUL in the path
        return FileFacts(problem=str(error))
    _seen[spec.path] = (identity, facts)
    return facts


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; OSError for anything else, also for a pipe, which would not open at once."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        return os.fdopen(fd, "rb", buffering=1 << 18)
    except BaseException:
        os.close(fd)
        raise


def identify(file: BinaryIO) -> Identity:
    """(device, inode, size, mtime_ns): equal ones are the same bytes as far as the file system tells."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def read_head(file: BinaryIO) -> Head:
    """Read from the file's beginning to the end of its tensor infos. Raises BadGguf, OSError."""
    size = os.fstat(file.fileno()).st_size
    return _Reader(file, size).head()


def _facts(file: BinaryIO, identity: Identity) -> FileFacts:
    try:
        head = read_head(file)
    except BadGguf as error:
        return FileFacts(identity=identity, size_bytes=identity[2], problem=str(error))
    return FileFacts(
        identity=identity,
        size_bytes=head.size_bytes,
        quant=head.quant,
        family=head.architecture,
        name=head.name,
        n_ctx_train=head.n_ctx_train,
        n_tensors=head.n_tensors,
        problem=head.problem(),
    )


# -- reading ---------------------------------------------------------------------------------------------------------


class _Reader:
    """One pass over one file's head."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self._at = 0
        self._n_texts = 0

    def head(self) -> Head:
        magic = self._file.read(4)
        self._at = len(magic)
        if magic != b"GGUF":
            raise BadGguf(f"not a GGUF file: begins with {magic!r}, expected b'GGUF'" if magic else "not a GGUF file: empty")
        version = self._number("I")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            if swapped in (2, 3):
                raise BadGguf("a GGUF file for big-endian machines")
            raise BadGguf(f"GGUF version {version}; this reader knows 2 and 3")
        n_tensors, n_keys = self._number("Q"), self._number("Q")
        if n_tensors > MAX_TENSORS or n_keys > MAX_KEYS:
            raise BadGguf(f"{n_tensors} tensors and {n_keys} keys; at most {MAX_TENSORS} and {MAX_KEYS} are read")
        values, alignment = self._keys(n_keys)
        end, largest_type = self._tensors(n_tensors, alignment)
        file_type = values.get("general.file_type")
        quant = QUANTS.get(file_type, "-") if isinstance(file_type, int) else "-"
        if quant == "-":  # as llama.cpp does: guessed from the tensors
            quant = largest_type or "-"
        return Head(version, values, quant if quant != "-" else None, n_tensors, end, self._size)

    def _keys(self, n_keys: int) -> tuple[dict[str, Value], int]:
        """The values worth keeping, and the alignment of the tensor data."""
        values: dict[str, Value] = {}
        alignment = DEFAULT_ALIGNMENT
        seen = set()
        for _ in range(n_keys):
            key = self._text(MAX_KEY_BYTES, "a key")
            if key in seen:
                raise BadGguf(f"the key {key[:80]!r} stands in it twice")
            seen.add(key)
            kind = self._number("I")
            value: Value | None = None
            if kind == _STRING:
                value = self._kept_text()
            elif kind == _ARRAY:
                self._skip_array(key)
            elif kind in _PLAIN:
                value = self._number(_PLAIN[kind])
            else:
                raise BadGguf(f"the key {key[:80]!r} has a value of unknown type {kind}")
            if key == "general.alignment":
                if kind != _UINT32 or not isinstance(value, int) or value == 0 or value & (value - 1):
                    raise BadGguf(f"general.alignment is {value}; expected a power of 2")
                alignment = value
            if value is not None and (key.startswith("general.") or key.endswith(".context_length")):
                values[key] = value
        return values, alignment

    def _tensors(self, n_tensors: int, alignment: int) -> tuple[int, str | None]:
        """Where the tensor data ends in the file, and the type that takes the most of it."""
        end = 0
        bytes_by_type: dict[str, int] = {}
        for _ in range(n_tensors):
            name = self._text(MAX_TENSOR_NAME_BYTES - 1, "a tensor's name")
            n_dims = self._number("I")
            if n_dims > MAX_DIMS:
                raise BadGguf(f"tensor {name!r} has {n_dims} dimensions; at most {MAX_DIMS}")
            shape = [self._number("Q") for _ in range(n_dims)]
            kind, offset = self._number("I"), self._number("Q")
            if kind not in TENSOR_TYPES:
                raise BadGguf(f"tensor {name!r} has the unknown type {kind}")
            type_name, block, block_bytes = TENSOR_TYPES[kind]
            n_elements = 1
            for length in shape:
                n_elements *= length
            if n_elements >= 1 << 63:
                raise BadGguf(f"tensor {name!r} has more than 2**63 elements")
            if (shape[0] if shape else 1) % block:
                raise BadGguf(
                    f"tensor {name!r} has rows of {shape[0] if shape else 1} elements, {type_name} has blocks of {block}"
                )
            if offset % alignment:
                raise BadGguf(f"tensor {name!r} begins at {offset}, no multiple of {alignment}")
            n_bytes = n_elements // block * block_bytes
            end = max(end, offset + n_bytes)
            bytes_by_type[type_name] = bytes_by_type.get(type_name, 0) + n_bytes
        begin = -(-self._at // alignment) * alignment if n_tensors else self._at
        largest = max(bytes_by_type, key=lambda name: bytes_by_type[name]) if bytes_by_type else None
        return begin + end, largest

    def _skip_array(self, key: str) -> None:
        kind, n = self._number("I"), self._number("Q")
        if kind in _PLAIN:
            self._skip(n * struct.calcsize("<" + _PLAIN[kind]))
        elif kind == _STRING:
            self._n_texts += n
            if self._n_texts > MAX_TEXTS:
                raise BadGguf(f"the array {key[:80]!r} has {n} texts; at most {MAX_TEXTS} are walked over")
            self._skip_texts(n)
        else:
            raise BadGguf(f"the array {key[:80]!r} has elements of unknown type {kind}")

    def _skip_texts(self, n: int) -> None:
        """Walk over n texts: a vocabulary has 150,000, so this is the one place here where time counts."""
        length_at = struct.Struct("<Q").unpack_from
        chunk, at = b"", 0  # the file stands at the chunk's end
        for _ in range(n):
            if at + 8 > len(chunk):
                chunk, at = chunk[at:] + self._file.read(CHUNK_BYTES), 0
                if len(chunk) < 8:
                    raise self._cut_off()
            at += 8 + length_at(chunk, at)[0]
            if at > len(chunk):
                self._at = self._file.tell()
                self._skip(at - len(chunk))
                chunk, at = b"", 0
        self._file.seek(at - len(chunk), os.SEEK_CUR)
        self._at = self._file.tell()

    def _kept_text(self) -> str | None:
        """A value's text; None for a long one, which is walked over."""
        length = self._number("Q")
        if length > MAX_VALUE_BYTES:
            self._skip(length)
            return None
        return self._take(length).decode("utf-8", "replace")

    def _text(self, max_bytes: int, what: str) -> str:
        length = self._number("Q")
        if length > max_bytes:
            raise BadGguf(f"{what} of {length} bytes at byte {self._at}; at most {max_bytes}")
        return self._take(length).decode("utf-8", "replace")

    def _number(self, code: str) -> int:
        """Also a float or a bool, which callers of those codes know."""
        number: int = struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]
        return number

    def _take(self, n_bytes: int) -> bytes:
        taken = self._file.read(n_bytes)
        self._at += len(taken)
        if len(taken) < n_bytes:
            raise self._cut_off()
        return taken

    def _skip(self, n_bytes: int) -> None:
        if n_bytes > self._size - self._at:
            raise self._cut_off()
        self._file.seek(n_bytes, os.SEEK_CUR)
        self._at += n_bytes

    def _cut_off(self) -> BadGguf:
        return BadGguf(f"cut off: the file ends at byte {self._size}, within its head")
