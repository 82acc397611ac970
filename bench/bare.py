"""What can the library do alone? A bare loop of llama_decode with the same sampler chains, and a bare load.

The peer of every in-process figure: the same library, context parameters, thread pool and chains, and nothing else of
modeld: no engine, no slots, no text, no streams.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence

from modeld.llm import libllama as C
from modeld.llm.backend import backend
from modeld.llm.context import Context
from modeld.llm.model import Model
from modeld.llm.sampler import SamplerChain
from modeld.types import ModelSpec, SamplingParams


class Bare:
    """A model and its context, driven by hand. One thread."""

    def __init__(self, spec: ModelSpec) -> None:
        self.lib = backend().lib
        self.model = Model(backend(), spec, lambda _pct: True)
        self.context = Context(backend(), self.model, spec)

    def close(self) -> None:
        self.context.close()
        self.model.close()

    def batch(self, n: int) -> tuple[C.llama_batch, list[ctypes.Array[ctypes.c_int32]]]:
        """A batch of n rows and its arrays: token, pos, n_seq_id, seq ids, output (as int8)."""
        token, pos, n_seq_id, seq = ((ctypes.c_int32 * n)() for _ in range(4))
        n_seq_id[:] = [1] * n
        seq_ptr = (ctypes.c_size_t * n)(*[ctypes.addressof(seq) + 4 * i for i in range(n)])
        output = (ctypes.c_int8 * n)()
        batch = C.llama_batch(n_tokens=n)
        batch.token = ctypes.cast(token, ctypes.POINTER(ctypes.c_int32))
        batch.pos = ctypes.cast(pos, ctypes.POINTER(ctypes.c_int32))
        batch.n_seq_id = ctypes.cast(n_seq_id, ctypes.POINTER(ctypes.c_int32))
        batch.seq_id = ctypes.cast(seq_ptr, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32)))
        batch.logits = ctypes.cast(output, ctypes.POINTER(ctypes.c_int8))
        self._keep = (token, pos, n_seq_id, seq, seq_ptr, output)
        return batch, [token, pos, seq, output]  # type: ignore[list-item]

    def decode(self, batch: C.llama_batch) -> None:
        code = self.lib.llama_decode(self.context, batch)
        if code:
            raise RuntimeError(f"llama_decode gave {code}")

    def decode_one(self) -> None:
        """One token, as a warmup does it."""
        batch, (_, _, _, output) = self.batch(1)
        output[0] = 1
        self.decode(batch)

    def generate(self, prompts: Sequence[Sequence[int]], n_tokens: int, params: SamplingParams) -> tuple[float, float]:
        """All prompts in one batch, then n_tokens steps: seconds in all, seconds of the generation phase."""
        lib, n = self.lib, len(prompts)
        chains = [
            SamplerChain(lib, self.model.vocab, params, seed=i, n_ctx_slot=self.context.n_ctx_slot, history=()) for i in range(n)
        ]
        start = time.perf_counter()
        batch, (token, pos, seq, output) = self.batch(sum(map(len, prompts)))
        last_rows, row = [], 0
        for slot, prompt in enumerate(prompts):
            for i, value in enumerate(prompt):
                token[row], pos[row], seq[row], output[row] = value, i, slot, i == len(prompt) - 1
                row += 1
            last_rows.append(row - 1)
        self.decode(batch)
        tokens = [lib.llama_sampler_sample(chain, self.context, row) for chain, row in zip(chains, last_rows, strict=True)]
        prompts_done = time.perf_counter()
        batch, (token, pos, seq, output) = self.batch(n)
        seq[:], output[:] = list(range(n)), [1] * n
        for step in range(n_tokens - 1):
            token[:] = tokens
            pos[:] = [len(prompt) + step for prompt in prompts]
            self.decode(batch)
            tokens = [lib.llama_sampler_sample(chain, self.context, i) for i, chain in enumerate(chains)]
        end = time.perf_counter()
        for slot, chain in enumerate(chains):
            chain.close()
            self.context.forget(slot)
        return end - start, end - prompts_done
