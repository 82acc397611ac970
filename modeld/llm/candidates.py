"""How does the vocabulary, or a part of it, go to a sampler? Candidates: one llama_token_data_array with a row of logits."""

from __future__ import annotations

import array
import ctypes
import math
from collections.abc import Collection
from typing import Any

from modeld.llm import libllama as C
from modeld.llm.libllama import Library

_FLOAT_BYTES = ctypes.sizeof(ctypes.c_float)
_STRIDE = ctypes.sizeof(C.llama_token_data) // _FLOAT_BYTES


class Candidates:
    """One llama_token_data_array of the whole vocabulary, used again and again. Engine thread only."""

    def __init__(self, lib: Library, n_vocab: int) -> None:
        self._lib = lib
        self._n_vocab = n_vocab
        self._fresh = (C.llama_token_data * n_vocab)()  # ids alone; a copy of it puts back what the samplers sorted
        memoryview(self._fresh).cast("B").cast("i")[0::_STRIDE] = memoryview(array.array("i", range(n_vocab)))
        self._data = (C.llama_token_data * n_vocab)()
        self._ids = memoryview(self._data).cast("B").cast("i")[0::_STRIDE]
        self._logits = memoryview(self._data).cast("B").cast("f")[1::_STRIDE]
        self._logits_array = ctypes.c_float * n_vocab

    def fill(self, context: Any, row: int, *, without: Collection[int] = ()) -> C.llama_token_data_array:
        """All tokens with their logits, in the vocabulary's order; -inf for those `without`. Valid until the next fill."""
        ctypes.memmove(self._data, self._fresh, ctypes.sizeof(self._fresh))
        self._logits[:] = self._of_row(context, row)
        logits = self._logits
        for token in without:
            logits[token] = -math.inf
        return self._array(self._n_vocab)

    def fill_only(self, context: Any, row: int, tokens: array.array[int]) -> C.llama_token_data_array:
        """These tokens with their logits, at least one. Valid until the next fill."""
        n = len(tokens)
        self._ids[:n] = memoryview(tokens)
        self._logits[:n] = memoryview(array.array("f", map(self._of_row(context, row).__getitem__, tokens)))
        return self._array(n)

    def _of_row(self, context: Any, row: int) -> memoryview[float]:
        logits = self._lib.llama_get_logits_ith(context, row)
        return memoryview(ctypes.cast(logits, ctypes.POINTER(self._logits_array)).contents).cast("B").cast("f")

    def _array(self, n: int) -> C.llama_token_data_array:
        return C.llama_token_data_array(ctypes.cast(self._data, ctypes.POINTER(C.llama_token_data)), n, -1, False)
