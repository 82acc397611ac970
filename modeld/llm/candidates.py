"""How does the whole vocabulary go to a sampler? Candidates: one llama_token_data_array, filled with a row of logits."""

from __future__ import annotations

import array
import ctypes
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
        self._logits = memoryview(self._data).cast("B").cast("f")[1::_STRIDE]
        self._logits_array = ctypes.c_float * n_vocab

    def fill(self, context: Any, row: int) -> C.llama_token_data_array:
        """All tokens with their logits, in the vocabulary's order. Valid until the next fill."""
        logits = self._lib.llama_get_logits_ith(context, row)
        ctypes.memmove(self._data, self._fresh, ctypes.sizeof(self._fresh))
        self._logits[:] = memoryview(ctypes.cast(logits, ctypes.POINTER(self._logits_array)).contents).cast("B").cast("f")
        return C.llama_token_data_array(ctypes.cast(self._data, ctypes.POINTER(C.llama_token_data)), self._n_vocab, -1, False)
