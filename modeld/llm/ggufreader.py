"""What stands in the head of one GGUF file? A reader bounded in time and memory: pure Python, nothing is loaded.

The layout is that of ggml/include/gguf.h: magic, version, counts, key-value pairs, tensor infos, padding, tensor data.
Numbers in the file are never believed before they are compared with the file's size, and what is read of one model, all
its shards together, is paid for out of one Budget. The rules are those of ggml/src/gguf.cpp, gguf_init_from_reader.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from array import array
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from modeld.llm.ggufvalues import (
    ALIGNMENT_KEY,
    ARRAY,
    INT32,
    KIND_NAMES,
    PLAIN,
    STRING,
    TENSOR_TYPES,
    TOKEN_TYPE_BYTE,
    TOKENS_KEY,
    TYPES_KEY,
    UINT32,
    Array,
    BadGguf,
    Head,
    Repeated,
    Tensor,
    Value,
)

MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16  # of all shards
MAX_KEY_BYTES = 1 << 16  # 65535 in the specification
MAX_VALUE_BYTES = 1 << 12  # of a text that is kept
MAX_ITEMS = 1 << 10  # of an array of numbers that is kept: one a layer, of which there are 512 at most
MAX_KEPT_BYTES = 1 << 22  # of keys, texts and kept arrays: real models have some thousands
MAX_TEXTS = 1 << 21  # in arrays, of all shards: each is walked over in Python, a million a second or two
MAX_TOKENS = 1 << 20  # of a vocabulary, whose tokens are compared with each other
MAX_TOKEN_BYTES = 1 << 15
CHUNK_BYTES = 1 << 16
MAX_TENSOR_NAME_BYTES = 64  # GGML_MAX_NAME
MAX_DIMS = 4  # GGML_MAX_DIMS
DEFAULT_ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT

Identity = tuple[int, int, int, int]


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
    return identity_of(os.fstat(file.fileno()))


def identity_of(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class Budget:
    """What reading one model may cost, all its files together; spending more than there is raises BadGguf."""

    def __init__(self) -> None:
        self._left = {"tensors": MAX_TENSORS, "texts in arrays": MAX_TEXTS, "bytes of keys and values": MAX_KEPT_BYTES}

    def tensors(self, n: int) -> None:
        self._spend("tensors", n, MAX_TENSORS)

    def texts(self, n: int) -> None:
        self._spend("texts in arrays", n, MAX_TEXTS)

    def kept(self, n_bytes: int) -> None:
        self._spend("bytes of keys and values", n_bytes, MAX_KEPT_BYTES)

    def _spend(self, what: str, n: int, limit: int) -> None:
        self._left[what] -= n
        if self._left[what] < 0:
            raise BadGguf(f"more than {limit} {what}, which is all that is read of a model")


def read_head(file: BinaryIO, budget: Budget | None = None) -> Head:
    """Read from the file's beginning to the end of its tensor infos. Raises BadGguf, OSError."""
    size = os.fstat(file.fileno()).st_size
    return Reader(file, size, budget or Budget()).head()


class Reader:
    """One pass over one file's head."""

    def __init__(self, file: BinaryIO, size: int, budget: Budget) -> None:
        self._file = file
        self._size = size
        self._budget = budget
        self._at = 0
        self._repeated: Repeated | None = None
        self._has_byte_tokens = False

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
        self._budget.tensors(n_tensors)
        values, kinds = self._keys(n_keys)
        alignment = _alignment(values, kinds)
        tensors = self._tensors(n_tensors, alignment)
        begin = -(-self._at // alignment) * alignment if n_tensors else self._at
        end = max((tensor.offset + tensor.n_bytes for tensor in tensors.values()), default=0)
        return Head(version, values, kinds, tensors, begin + end, self._size, self._repeated, self._has_byte_tokens)

    def _keys(self, n_keys: int) -> tuple[dict[str, Value], dict[str, int]]:
        """The values worth keeping, and the gguf_type of each key's."""
        values: dict[str, Value] = {}
        kinds: dict[str, int] = {}
        for _ in range(n_keys):
            key = self._text(MAX_KEY_BYTES, "a key")
            self._budget.kept(len(key) + 64)
            if not key:
                raise BadGguf(f"a key without a name at byte {self._at}")
            if key in kinds:
                raise BadGguf(f"the key {key[:80]!r} stands in it twice")
            kind = kinds[key] = self._number("I")
            if kind == STRING:
                text = self._kept_text()
                if text is not None:
                    values[key] = text
            elif kind == ARRAY:
                values[key] = self._array(key)
            elif kind in PLAIN:
                values[key] = self._number(PLAIN[kind])
            else:
                raise BadGguf(f"the key {key[:80]!r} has a value of unknown type {kind}")
        return values, kinds

    def _tensors(self, n_tensors: int, alignment: int) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        expected = 0
        for _ in range(n_tensors):
            name = self._text(MAX_TENSOR_NAME_BYTES - 1, "a tensor's name")
            if name in tensors:
                raise BadGguf(f"the tensor {name!r} stands in it twice")
            n_dims = self._number("I")
            if n_dims > MAX_DIMS:
                raise BadGguf(f"tensor {name!r} has {n_dims} dimensions; at most {MAX_DIMS}")
            shape = tuple(self._number("Q") for _ in range(n_dims))
            kind, offset = self._number("I"), self._number("Q")
            if kind not in TENSOR_TYPES:
                raise BadGguf(f"tensor {name!r} has the unknown type {kind}")
            tensor = Tensor(shape, kind, offset)
            type_name, block, _ = TENSOR_TYPES[kind]
            if any(length >= 1 << 63 for length in shape) or tensor.n_elements >= 1 << 63 or tensor.n_bytes >= 1 << 63:
                raise BadGguf(f"tensor {name!r} has more than 2**63 elements")
            if tensor.row % block:
                raise BadGguf(f"tensor {name!r} has rows of {tensor.row} elements, {type_name} has blocks of {block}")
            if offset % alignment:
                raise BadGguf(f"tensor {name!r} begins at {offset}, no multiple of {alignment}")
            if offset != expected:
                raise BadGguf(f"tensor {name!r} begins at {offset}, expected {expected}, where the tensor before it ends")
            expected = -(-(offset + tensor.n_bytes) // alignment) * alignment
            tensors[name] = tensor
        return tensors

    def _array(self, key: str) -> Array:
        kind, n = self._number("I"), self._number("Q")
        if kind in PLAIN:
            n_bytes = n * struct.calcsize("<" + PLAIN[kind])
            if key == TYPES_KEY and kind == INT32 and n <= MAX_TOKENS:
                types = array("i", self._take(n_bytes))
                if sys.byteorder == "big":
                    types.byteswap()
                self._has_byte_tokens = TOKEN_TYPE_BYTE in types
                return Array(kind, n, None)
            if n > MAX_ITEMS:
                self._skip(n_bytes)
                return Array(kind, n, None)
            self._budget.kept(8 * n)
            return Array(kind, n, struct.unpack(f"<{n}{PLAIN[kind]}", self._take(n_bytes)))
        if kind != STRING:
            raise BadGguf(f"the array {key[:80]!r} has elements of unknown type {kind}")
        if n > MAX_TEXTS:
            raise BadGguf(f"the array {key[:80]!r} has {n} texts; at most {MAX_TEXTS} are walked over")
        self._budget.texts(n)
        if key == TOKENS_KEY:
            self._compare_tokens(n)
        else:
            self._skip_texts(n)
        return Array(kind, n, None)

    def _skip_texts(self, n: int) -> None:
        """Walk over n texts: merges are some 300,000, so this and the next are the places where time counts."""
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

    def _compare_tokens(self, n: int) -> None:
        """Walk over the vocabulary and look for two equal tokens: libllama asserts that there are none."""
        if n > MAX_TOKENS:
            raise BadGguf(f"{TOKENS_KEY} has {n} texts; at most {MAX_TOKENS} are compared")
        begin = self._at
        hashes = array("q", (hash(token) for token in self._token_texts(n)))
        end = self._at
        suspects: set[int] = set()
        for negative in (False, True):  # half at a time: as numbers of Python they take five times the bytes
            in_order = sorted(number for number in hashes if (number < 0) is negative)
            suspects.update(one for one, other in pairwise(in_order) if one == other)
        if not suspects:
            return
        self._file.seek(begin)  # a hash proves nothing: the tokens themselves are compared
        self._at = begin
        first: dict[bytes, int] = {}
        for index, token in enumerate(self._token_texts(n)):
            if hash(token) in suspects and (other := first.setdefault(token, index)) != index:
                self._repeated = Repeated(token[:40].decode("utf-8", "replace"), other, index)
                break
        self._file.seek(end)
        self._at = end

    def _token_texts(self, n: int) -> Iterator[bytes]:
        """The tokens as libllama sees them: ended by a NUL, and an empty one named by its index (llama_vocab::impl::load)."""
        length_at = struct.Struct("<Q").unpack_from
        chunk, at = b"", 0
        for index in range(n):
            if len(chunk) - at < MAX_TOKEN_BYTES + 8:
                chunk, at = chunk[at:] + self._file.read(CHUNK_BYTES), 0
                if len(chunk) < 8:
                    raise self._cut_off()
            length = length_at(chunk, at)[0]
            if length > MAX_TOKEN_BYTES:
                raise BadGguf(f"token {index} has {length} bytes; at most {MAX_TOKEN_BYTES}")
            at += 8 + length
            if at > len(chunk):
                raise self._cut_off()
            token = chunk[at - length : at]
            if 0 in token:
                token = token[: token.index(0)]
            yield token or b"[EMPTY_%d]" % index
        self._file.seek(at - len(chunk), os.SEEK_CUR)
        self._at = self._file.tell()

    def _kept_text(self) -> str | None:
        """A value's text as libllama sees it, up to a NUL; None for a long one, which is walked over."""
        length = self._number("Q")
        if length > MAX_VALUE_BYTES:
            self._skip(length)
            return None
        self._budget.kept(length)
        return self._take(length).partition(b"\0")[0].decode("utf-8", "replace")

    def _text(self, max_bytes: int, what: str) -> str:
        length = self._number("Q")
        if length > max_bytes:
            raise BadGguf(f"{what} of {length} bytes at byte {self._at}; at most {max_bytes}")
        taken = self._take(length)
        if 0 in taken:  # libllama keeps all of it and compares up to the NUL: it would find a key that is not seen here
            raise BadGguf(f"{what} with a NUL in it at byte {self._at - length + taken.index(0)}")
        return taken.decode("utf-8", "replace")

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


def _alignment(values: Mapping[str, Value], kinds: Mapping[str, int]) -> int:
    if ALIGNMENT_KEY not in kinds:
        return DEFAULT_ALIGNMENT
    value = values.get(ALIGNMENT_KEY)
    if (kind := kinds[ALIGNMENT_KEY]) != UINT32:
        raise BadGguf(f"{ALIGNMENT_KEY} is of type {KIND_NAMES[kind]}; expected uint32")
    if not isinstance(value, int) or value == 0 or value & (value - 1):
        raise BadGguf(f"{ALIGNMENT_KEY} is {value}; expected a power of 2")
    return value
