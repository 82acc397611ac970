"""What is a GGUF file's head made of? The values that the reader fills and the checks look at; tables of its types."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

# enum gguf_type: the format of the plain ones
PLAIN: Mapping[int, str] = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
UINT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 2, 4, 5, 6, 7, 8, 9
KIND_NAMES = "uint8 int8 uint16 int16 uint32 int32 float32 bool string array uint64 int64 float64".split()  # gguf_type_name

ALIGNMENT_KEY = "general.alignment"
TOKENS_KEY, TYPES_KEY = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
TOKEN_TYPE_BYTE = 6  # LLAMA_TOKEN_TYPE_BYTE

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


class BadGguf(ValueError):
    """Not a GGUF file, or one that llama.cpp would refuse or die of; the text says why."""


@dataclass(frozen=True, slots=True)
class Array:
    """A value that is an array. `items` are those of a short one of numbers, else None."""

    kind: int  # gguf_type of the items
    n: int
    items: tuple[int | float | bool, ...] | None


Value = int | float | bool | str | Array


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's info; `shape` begins with the length of a row, as ggml's ne."""

    shape: tuple[int, ...]
    kind: int  # ggml_type
    offset: int  # from where the tensor data begins

    @property
    def row(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        _, block, block_bytes = TENSOR_TYPES[self.kind]
        return self.n_elements // block * block_bytes

    @property
    def type_name(self) -> str:
        return TENSOR_TYPES[self.kind][0]


@dataclass(frozen=True, slots=True)
class Repeated:
    """Two equal tokens of a vocabulary."""

    text: str  # its beginning
    first: int
    second: int


@dataclass(frozen=True, slots=True)
class Head:
    """What stands before the tensor data of one file."""

    version: int
    values: Mapping[str, Value]  # without texts of more than MAX_VALUE_BYTES
    kinds: Mapping[str, int]  # gguf_type of every key's value
    tensors: Mapping[str, Tensor]
    end_bytes: int  # where the tensor data ends; more than size_bytes: the file was cut off
    size_bytes: int
    repeated: Repeated | None = None  # of the vocabulary, where two tokens are equal
    has_byte_tokens: bool = False  # tokens that stand for single bytes

    @property
    def n_tensors(self) -> int:
        return len(self.tensors)

    @property
    def architecture(self) -> str | None:
        return self.text("general.architecture")

    @property
    def name(self) -> str | None:
        return self.text("general.name")

    @property
    def n_ctx_train(self) -> int | None:
        return self.number(f"{self.architecture}.context_length")

    @property
    def is_cut_off(self) -> bool:
        return self.end_bytes > self.size_bytes

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | None:
        value = self.values.get(key)
        return value if isinstance(value, int) else None


def quant_of(head: Head, tensors: Mapping[str, Tensor]) -> str | None:
    """The name of llama.cpp's file type; where the file does not say, the tensors' type that takes most bytes."""
    file_type = head.number("general.file_type")
    quant = QUANTS.get(file_type, "-") if file_type is not None else "-"
    if quant != "-":
        return quant
    n_bytes: dict[str, int] = {}
    for tensor in tensors.values():
        n_bytes[tensor.type_name] = n_bytes.get(tensor.type_name, 0) + tensor.n_bytes
    return max(n_bytes, key=lambda name: n_bytes[name]) if n_bytes else None


def uint32(head: Head, key: str) -> int | None:
    """A whole number; None: absent. Raises BadGguf for any other type, as libllama does."""
    kind = head.kinds.get(key)
    if kind is None:
        return None
    if kind != UINT32:
        raise BadGguf(f"{key} is of type {KIND_NAMES[kind]}; expected uint32")
    return head.number(key)
