"""How does a GGUF become a model? Model: loads with progress, can be cancelled, says what it is and why it failed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

from modeld.errors import LoadFailed, OpCancelled
from modeld.llm import libllama as C
from modeld.llm.backend import Backend
from modeld.llm.handles import Handle
from modeld.llm.vocab import Vocab
from modeld.types import ModelSpec

_SPLIT_MODES = {"none": C.LLAMA_SPLIT_MODE_NONE, "layer": C.LLAMA_SPLIT_MODE_LAYER, "row": C.LLAMA_SPLIT_MODE_ROW}
_LOAD_MODES = {
    "auto": C.LLAMA_LOAD_MODE_AUTO,
    "mmap": C.LLAMA_LOAD_MODE_MMAP,
    "mlock": C.LLAMA_LOAD_MODE_MMAP_MLOCK,
    "none": C.LLAMA_LOAD_MODE_NONE,
}
_MAX_REASON_LINES = 4


class Model(Handle):
    """The weights and the vocabulary. Loaded by the thread of the load, closed by the one that frees; only read in between."""

    kind = "model"

    def __init__(self, backend: Backend, spec: ModelSpec, on_percent: Callable[[int], bool], *, repack: bool = True) -> None:
        """Load `spec.path`; `on_percent` gets whole rising percents 0..100 and answers False to cancel.

        `repack` lets the backend copy weights into the order that its fastest kernels read; without it they stay mapped.
        Runs on a big stack: libllama parses templates and vocabularies recursively. Raises LoadFailed with the reason
        from libllama's log, or OpCancelled.
        """
        lib = backend.lib
        progress = _Progress(on_percent)
        callback = C.llama_progress_callback(progress)  # referenced until the load returns: C calls it
        params = lib.llama_model_default_params()
        params.n_gpu_layers = spec.n_gpu_layers
        params.main_gpu = spec.main_gpu
        params.split_mode = _SPLIT_MODES[spec.split_mode]
        params.load_mode = _LOAD_MODES[spec.load_mode]
        params.use_extra_bufts = repack
        params.progress_callback = callback
        if spec.tensor_split:
            n_devices = int(lib.llama_max_devices())
            if len(spec.tensor_split) > n_devices:
                raise LoadFailed(f"tensor_split names {len(spec.tensor_split)} devices, this library knows {n_devices}")
            params.tensor_split = (ctypes.c_float * n_devices)(*spec.tensor_split)

        if lib.llama_supports_gpu_offload() or spec.load_mode == "mlock":
            # The memory of the model before is back when the first report returns. On the CPU libllama only maps the file
            # and reads the vocabulary before its own first one; device buffers and locked pages it takes earlier.
            progress(0.0, None)
        backend.ring.clear()
        raw = None if progress.stop else lib.llama_model_load_from_file(str(spec.path).encode("utf-8", "surrogateescape"), params)
        if progress.error is not None:
            if raw:
                lib.llama_model_free(raw)
            raise progress.error
        if not raw:
            if progress.cancelled:
                raise OpCancelled(f"the load of {spec.path} was cancelled at {progress.pct} %")
            raise LoadFailed(f"cannot load {spec.path}: {why(backend)}")
        super().__init__(raw, lib.llama_model_free)
        self._lib = lib
        self.path = Path(spec.path)
        try:
            self._refuse_unsupported()
            self.vocab = Vocab(lib, lib.llama_model_get_vocab(self), self)
        except BaseException:
            self.close()
            raise
        on_percent(100)

    def _refuse_unsupported(self) -> None:
        if not self._lib.llama_model_has_decoder(self) or self._lib.llama_model_has_encoder(self):
            raise LoadFailed(f"{self.path} has an encoder beside a decoder, or one like T5's: modeld does not run them")
        if self._lib.llama_vocab_type(self._lib.llama_model_get_vocab(self)) == C.LLAMA_VOCAB_TYPE_NONE:
            raise LoadFailed(f"{self.path} has no vocabulary: the first text to tokenize would end the process")

    def describe(self) -> str:
        """llama_model_desc, e.g. "llama 0.5B Q4_0"."""
        buffer = ctypes.create_string_buffer(256)
        self._lib.llama_model_desc(self, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    @property
    def n_params(self) -> int:
        return int(self._lib.llama_model_n_params(self))

    @property
    def n_ctx_train(self) -> int:
        return int(self._lib.llama_model_n_ctx_train(self))

    @property
    def n_embd(self) -> int:
        """Numbers of a vector that the model gives (after the last layer)."""
        return int(self._lib.llama_model_n_embd_out(self))

    @property
    def is_recurrent(self) -> bool:
        """Whether a sequence has a state of its own, in some layers at least."""
        return bool(self._lib.llama_model_is_recurrent(self) or self._lib.llama_model_is_hybrid(self))

    @property
    def is_for_embeddings(self) -> bool:
        """Whether the file says so: by a pooling type, or by attention that looks ahead, with which nothing is generated."""
        arch = self._meta("general.architecture")
        return self._meta(f"{arch}.pooling_type") not in (None, "0") or self._meta(f"{arch}.attention.causal") == "false"

    def _meta(self, key: str) -> str | None:
        """A value of the file's metadata as text (llama.h, llama_model_meta_val_str), cut after 127 bytes; None: absent."""
        buffer = ctypes.create_string_buffer(128)
        n_bytes = self._lib.llama_model_meta_val_str(self, key.encode(), buffer, len(buffer))
        return None if n_bytes < 0 else buffer.value.decode("utf-8", "replace")

    @property
    def can_cut(self) -> bool:
        """Whether a sequence's cells can be cut at any position: no recurrent state, no sliding window."""
        return not (self.is_recurrent or self._lib.llama_model_n_swa(self) > 0)

    @property
    def chat_template(self) -> str | None:
        """The template that the GGUF brings (Jinja), or None."""
        template: bytes | None = self._lib.llama_model_chat_template(self, None)
        return None if template is None else template.decode("utf-8", "replace")


def why(backend: Backend) -> str:
    """The reason of the last failure, in libllama's own words."""
    lines = [line.split(": ", 1)[-1] for line in backend.ring.errors()]
    return "; ".join(dict.fromkeys(lines[-_MAX_REASON_LINES:])) or "libllama gave no reason (see the log at level debug)"


class _Progress:
    """libllama's progress callback: floats per tensor in, whole rising percents out. Never raises: the caller is C."""

    def __init__(self, on_percent: Callable[[int], bool]) -> None:
        self._on_percent = on_percent
        self.pct = -1
        self.cancelled = False
        self.error: BaseException | None = None

    @property
    def stop(self) -> bool:
        return self.cancelled or self.error is not None

    def __call__(self, fraction: float, _user_data: object) -> bool:
        try:
            # 100 is said by Model when the load has returned: at 1.0 it can still fail.
            pct = min(99, max(0, int(fraction * 100)))
            if pct > self.pct:
                self.pct = pct
                self.cancelled = not self._on_percent(pct)
        except BaseException as error:  # noqa: BLE001 - carried over the C frames and raised behind them
            self.error = error
            return False
        return not self.cancelled
