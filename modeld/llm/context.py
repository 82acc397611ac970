"""How does one decode run? Context: KV cache, batch arrays, thread pool, abort flag; return codes become exceptions."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from typing import Any

from modeld.errors import LoadFailed
from modeld.llm import embedding
from modeld.llm import libllama as C
from modeld.llm.adapter import DecodeAborted, DecodeFatal, DecodeInvalid, NoKvRoom, Span, StateNotSaved
from modeld.llm.backend import Backend
from modeld.llm.cores import compute_plan
from modeld.llm.handles import Handle
from modeld.llm.memory import give_back_freed_memory, large_blocks_mapped
from modeld.llm.model import Model, why
from modeld.llm.pool import PoolShare
from modeld.types import ModelSpec

_CACHE_TYPES = {
    "f32": C.GGML_TYPE_F32,
    "f16": C.GGML_TYPE_F16,
    "bf16": C.GGML_TYPE_BF16,
    "q8_0": C.GGML_TYPE_Q8_0,
    "q4_0": C.GGML_TYPE_Q4_0,
    "q4_1": C.GGML_TYPE_Q4_1,
    "iq4_nl": C.GGML_TYPE_IQ4_NL,
    "q5_0": C.GGML_TYPE_Q5_0,
    "q5_1": C.GGML_TYPE_Q5_1,
}
_FLASH_ATTN = {
    "auto": C.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": C.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": C.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
_SCORED_ROWS = 32  # of a prompt whose logprobs are wanted, in one decode


class AbortFlag:
    """Ends a running decode between two graph nodes, from any thread, without the GIL on the computing side.

    libllama calls strlen() on two bytes of ours: a first byte of 1 makes it 1, which is true. A Python callback would be
    called for every node of the graph. CUDA and Vulkan do not look at it.
    """

    def __init__(self) -> None:
        self._bytes = ctypes.create_string_buffer(2)
        self.function = ctypes.cast(ctypes.CDLL(None).strlen, ctypes.c_void_p)
        self.data = ctypes.addressof(self._bytes)

    def set(self, on: bool) -> None:
        self._bytes[0] = b"\x01" if on else b"\x00"

    def is_set(self) -> bool:
        return self._bytes[0] == b"\x01"


class Context(Handle):
    """The KV cache and the arrays of one batch. Made by the switch thread, then the engine thread's alone."""

    kind = "context"

    def __init__(self, backend: Backend, model: Model, spec: ModelSpec) -> None:
        """Raises LoadFailed with libllama's reason (memory, an unknown combination of cache types, ...)."""
        lib = backend.lib
        n_seq_limit = int(lib.llama_max_parallel_sequences())
        if spec.n_parallel > n_seq_limit:
            raise LoadFailed(f"n_parallel: {spec.n_parallel} slots asked, this library allows {n_seq_limit}")
        plan = compute_plan(spec.n_threads, spec.cpu_pinning)
        params = lib.llama_context_default_params()
        params.n_ctx = spec.n_ctx
        params.n_batch = max(spec.n_batch, spec.n_parallel)  # one row of generation for each slot must fit
        params.n_ubatch = spec.n_ubatch
        params.n_seq_max = spec.n_parallel
        # One row of logits a slot, or some more when a prompt's are wanted; the default reserves n_batch rows of the vocabulary.
        self.n_outputs = max(spec.n_parallel, min(_SCORED_ROWS, params.n_batch))
        params.n_outputs_max = self.n_outputs
        params.n_threads = params.n_threads_batch = plan.n_threads
        params.type_k = _CACHE_TYPES[spec.cache_type_k]
        params.type_v = _CACHE_TYPES[spec.cache_type_v]
        params.flash_attn_type = _FLASH_ATTN[spec.flash_attn]
        params.swa_full = False  # as llama-server has it
        self._embeds = embedding.wanted(spec, model)  # then every row is an output; libllama warns where one is not marked
        if self._embeds:
            embedding.shape(params, spec, model, n_seq_limit)
        backend.ring.clear()
        give_back_freed_memory()  # what the model before left and this one's weights did not take
        with large_blocks_mapped():
            raw = lib.llama_init_from_model(model, params)
        if not raw:
            raise LoadFailed(
                f"cannot make a context of n_ctx {spec.n_ctx} with {spec.n_parallel} slots for {model.path}: {why(backend)}"
            )
        super().__init__(raw, lib.llama_free, parent=model)
        self._lib = lib
        self.abort = AbortFlag()
        self._share: PoolShare | None = None
        self._memory: Any = lib.llama_get_memory(self)  # NULL for encoders
        try:
            if not self._memory and not self._embeds:
                raise LoadFailed(f"{model.path} is an encoder, which generates nothing: leave `embeddings` out or set it to `on`")
            self.pooling = embedding.pooling_of(lib, self, model) if self._embeds else None
            self._share = PoolShare(backend, plan, self.abort.is_set)
            lib.llama_attach_threadpool(self, self._share.pool, self._share.pool)
        except BaseException:
            self.close()
            raise
        self.n_threads = plan.n_threads
        self.n_ctx = int(lib.llama_n_ctx(self))
        self.n_ctx_slot = int(lib.llama_n_ctx_seq(self))
        self.n_slots = int(params.n_seq_max)
        self.n_batch = int(lib.llama_n_batch(self))
        self.n_embd = model.n_embd
        if self.pooling is not None:
            n_cells = self.n_ctx if self._memory else None
            self.n_batch, self.n_ctx_slot = embedding.bounds(lib, self, model, self.pooling, self.n_batch, n_cells)
            self.n_outputs = self.n_batch
        lib.llama_set_abort_callback(self, self.abort.function, self.abort.data)
        self._allocate_batch()

    def _allocate_batch(self) -> None:
        """The arrays of llama_batch, once; decode() only fills them in."""
        n = self.n_batch
        self._token = (ctypes.c_int32 * n)()
        self._pos = (ctypes.c_int32 * n)()
        self._n_seq_id = (ctypes.c_int32 * n)(*[1] * n)
        self._slot_ids = (ctypes.c_int32 * self.n_slots)(*range(self.n_slots))
        base = ctypes.addressof(self._slot_ids)
        self._slot_addresses = [base + 4 * slot for slot in range(self.n_slots)]
        # Addresses as integers: an array of ctypes pointers cannot be filled by slices.
        self._seq_id = (ctypes.c_size_t * n)()
        self._output = (ctypes.c_int8 * n)()
        batch = C.llama_batch()
        batch.token = ctypes.cast(self._token, ctypes.POINTER(ctypes.c_int32))
        batch.pos = ctypes.cast(self._pos, ctypes.POINTER(ctypes.c_int32))
        batch.n_seq_id = ctypes.cast(self._n_seq_id, ctypes.POINTER(ctypes.c_int32))
        batch.seq_id = ctypes.cast(self._seq_id, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32)))
        batch.logits = ctypes.cast(self._output, ctypes.POINTER(ctypes.c_int8))
        self._batch = batch
        self._copies: list[tuple[int, int]] = []  # sources and targets that the next decode copies before it computes
        self._ends: list[int] = [0]  # rows before each span of the last decode, and before its end

    def decode(self, spans: Sequence[Span]) -> None:
        """Run one llama_decode over the rows of `spans` (1..n_batch in all), in its turn. Engine thread only; releases the GIL.

        Afterwards `row(i)` is the batch row whose logits span i asked for. Raises NoKvRoom (memory unchanged),
        DecodeAborted (finished ubatches stay), DecodeInvalid (memory unchanged), DecodeFatal (close the context).
        Source: llama.h, llama_decode.
        """
        end = 0
        ends = [0]
        for span in spans:
            start, end = end, end + len(span.tokens)
            if end > self.n_batch:  # libllama would abort the process
                raise DecodeInvalid(f"{end} or more rows in a batch of at most {self.n_batch}")
            if end - start == 1:
                self._token[start] = span.tokens[0]
                self._pos[start] = span.pos
                self._seq_id[start] = self._slot_addresses[span.slot]
                self._output[start] = span.output or self._embeds
            else:
                n = end - start
                self._token[start:end] = list(span.tokens)
                self._pos[start:end] = list(range(span.pos, span.pos + n))
                self._seq_id[start:end] = [self._slot_addresses[span.slot]] * n
                self._output[start:end] = [span.every_output or self._embeds] * n
                self._output[end - 1] = span.output or self._embeds
            ends.append(end)
        self._ends = ends
        self._batch.n_tokens = end
        assert self._share is not None
        if not self._share.begin():
            raise DecodeAborted(f"the decode of {end} rows was aborted before its turn")
        try:
            code = int(self._lib.llama_decode(self, self._batch))
        finally:
            self._share.end()
        if self._copies and code != -1:  # a batch that is refused as invalid is refused before them (llama-context.cpp, decode)
            self._copies = []
        if code:
            raise _decode_error(code, end)

    @property
    def waited_s(self) -> float:
        """How long the last decode waited for its turn."""
        assert self._share is not None
        return self._share.waited_s

    def set_abort(self, on: bool) -> None:
        """End the running decode, or the wait for its turn, and let none begin; or arm it again. Any thread."""
        self.abort.set(on)
        if on and self._share is not None:
            self._share.give_up()

    def row(self, span_index: int, row: int = -1) -> int:
        """Where the last decode had a row of its span `span_index`: by its place in the span, -1 for the last one."""
        return self._ends[span_index] + row if row >= 0 else self._ends[span_index + 1] + row

    def vector(self, slot: int) -> array[float]:
        """What the last decode made of the slot's input: n_embd float32. Raises DecodeInvalid where there is none."""
        vector = self._lib.llama_get_embeddings_seq(self, slot)  # NULL for the pooling `none`
        if not vector:
            raise DecodeInvalid(f"the last decode left no vector for slot {slot}")
        return array("f", ctypes.string_at(vector, 4 * self.n_embd))

    def forget(self, slot: int) -> None:
        """Drop a whole sequence from the KV cache; always possible, for recurrent models too."""
        self._lib.llama_memory_seq_rm(self._memory, slot, -1, -1)

    def truncate(self, slot: int, n_tokens: int) -> bool:
        """Keep positions 0..n_tokens-1. False on recurrent memories, and where a sliding window has lost the beginning."""
        if n_tokens and self._lib.llama_memory_seq_pos_min(self._memory, slot) > 0:
            return False
        return bool(self._lib.llama_memory_seq_rm(self._memory, slot, n_tokens, -1))

    def copy(self, source: int, target: int) -> None:
        """Copy a whole sequence to another stream; a part of one asserts (facts). Done with the next decode."""
        self._lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        self._copies.append((source, target))

    def is_copying(self, slot: int) -> bool:
        """Whether the next decode copies from or to the slot."""
        return any(slot in copy for copy in self._copies)

    def saved_bytes(self, slot: int) -> int:
        """What save() takes. 0: the slot is empty, or has metadata alone, its cells being copied with the next decode."""
        if any(slot == target for _, target in self._copies) or not self.n_past(slot):
            return 0
        return int(self._lib.llama_state_seq_get_size(self, slot))

    def save(self, slot: int) -> bytearray:
        """The slot's cells with their positions; saved_bytes(slot) of them, which are not 0. Raises StateNotSaved."""
        n_bytes = self.saved_bytes(slot)
        assert n_bytes, f"slot {slot} has nothing to save"
        try:
            with large_blocks_mapped():  # it may live for hours, and would pin the heap below what the next model takes
                state = bytearray(n_bytes)
        except MemoryError as error:
            raise StateNotSaved(f"no memory for the {n_bytes} bytes of slot {slot}") from error
        n_written = self._lib.llama_state_seq_get_data(self, _address(state), n_bytes, slot)
        if n_written != n_bytes:
            raise StateNotSaved(f"llama_state_seq_get_data wrote {n_written} of {n_bytes} bytes of slot {slot}")
        return state

    def restore(self, slot: int, state: bytearray) -> bool:
        """Give the slot what save() gave. False: refused (other types, more cells than fit, copies to come), and empty."""
        # set_data writes at once: a copy from the slot would take these cells, one to it would overwrite them.
        if not self.is_copying(slot) and self._lib.llama_state_seq_set_data(self, _address(state), len(state), slot) == len(
            state
        ):
            return True
        self.forget(slot)
        return False

    def n_past(self, slot: int) -> int:
        """Positions that the KV cache holds of the slot's sequence."""
        return int(self._lib.llama_memory_seq_pos_max(self._memory, slot)) + 1

    def close(self) -> None:
        """Free the context, then the threads that computed for it, if it was the last one there. Idempotent."""
        super().close()
        if self._share is not None:
            self._share.close()
            self._share = None


def _address(state: bytearray) -> Any:
    """Of its first byte, as an argument; it keeps the bytes where they are for as long as it lives."""
    return ctypes.byref(ctypes.c_uint8.from_buffer(state))


def _decode_error(code: int, n_rows: int) -> Exception:
    """llama_decode's return codes, in one place (llama.h, llama_decode)."""
    if code == 1:
        return NoKvRoom(f"no room in the KV cache for a batch of {n_rows} rows")
    if code == 2:
        return DecodeAborted(f"the decode of {n_rows} rows was aborted")
    if code == -1:
        return DecodeInvalid(f"libllama refused a batch of {n_rows} rows as invalid")
    reason = {-2: "memory could not be allocated", -3: "the computation failed"}.get(code, "no known code of llama_decode")
    return DecodeFatal(f"llama_decode gave {code} for {n_rows} rows: {reason}")
