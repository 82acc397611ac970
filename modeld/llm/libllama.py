"""Which parts of llama.h does modeld call? Structs, enums and one table of functions, in header order; load_library().

Written for one commit of llama.cpp. The build compiles every size, offset, enum value and prototype below against the
real headers (modeld.llm.abi), and the loader refuses a library built from another llama.h (modeld.llm.stamp): a missing
field would shift all later ones without an error.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_bool,
    c_char_p,
    c_float,
    c_int,
    c_int8,
    c_int32,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)
from dataclasses import dataclass
from typing import Any

from modeld.errors import LibraryMismatch

LLAMA_COMMIT = "0c1e570"  # upstream's commit that llama-cpp-python 0.3.36 carries
LLAMA_H_SHA256 = "d5cf9203bea63b575e76cba4881f29cfd1b611451578b01582b75b72ecbb04bc"

# -- enums (C name -> value) and limits -------------------------------------------------------------------------------

LLAMA_LOAD_MODE_AUTO = -1
LLAMA_LOAD_MODE_NONE = 0
LLAMA_LOAD_MODE_MMAP = 1
LLAMA_LOAD_MODE_MLOCK = 2
LLAMA_LOAD_MODE_MMAP_MLOCK = 3
LLAMA_VOCAB_TYPE_NONE = 0
LLAMA_POOLING_TYPE_NONE = 0
LLAMA_POOLING_TYPE_MEAN = 1
LLAMA_POOLING_TYPE_CLS = 2
LLAMA_POOLING_TYPE_LAST = 3
LLAMA_POOLING_TYPE_RANK = 4
LLAMA_SPLIT_MODE_NONE = 0
LLAMA_SPLIT_MODE_LAYER = 1
LLAMA_SPLIT_MODE_ROW = 2
LLAMA_FLASH_ATTN_TYPE_AUTO = -1
LLAMA_FLASH_ATTN_TYPE_DISABLED = 0
LLAMA_FLASH_ATTN_TYPE_ENABLED = 1
GGML_TYPE_F32 = 0
GGML_TYPE_F16 = 1
GGML_TYPE_Q4_0 = 2
GGML_TYPE_Q4_1 = 3
GGML_TYPE_Q5_0 = 6
GGML_TYPE_Q5_1 = 7
GGML_TYPE_Q8_0 = 8
GGML_TYPE_IQ4_NL = 20
GGML_TYPE_BF16 = 30
GGML_LOG_LEVEL_DEBUG = 1
GGML_LOG_LEVEL_INFO = 2
GGML_LOG_LEVEL_WARN = 3
GGML_LOG_LEVEL_ERROR = 4
GGML_LOG_LEVEL_CONT = 5  # goes on with the line before
GGML_MAX_N_THREADS = 512
GGML_BACKEND_DEVICE_TYPE_CPU = 0
GGML_BACKEND_DEVICE_TYPE_GPU = 1
GGML_BACKEND_DEVICE_TYPE_IGPU = 2

ENUMS: dict[str, int] = {
    name: value for name, value in list(globals().items()) if name.startswith(("LLAMA_", "GGML_")) and isinstance(value, int)
}

# -- opaque types and callbacks ---------------------------------------------------------------------------------------
# POINTER types, not c_void_p: ctypes then refuses a model where a context belongs.


class llama_model(Structure): ...  # noqa: N801


class llama_context(Structure): ...  # noqa: N801


class llama_vocab(Structure): ...  # noqa: N801


class llama_memory_i(Structure): ...  # noqa: N801


class llama_sampler(Structure): ...  # noqa: N801


class ggml_threadpool(Structure): ...  # noqa: N801


class ggml_backend_device(Structure): ...  # noqa: N801


model_p = POINTER(llama_model)
context_p = POINTER(llama_context)
vocab_p = POINTER(llama_vocab)
memory_p = POINTER(llama_memory_i)
sampler_p = POINTER(llama_sampler)
threadpool_p = POINTER(ggml_threadpool)
device_p = POINTER(ggml_backend_device)

ggml_log_callback = CFUNCTYPE(None, c_int, c_char_p, c_void_p)
llama_progress_callback = CFUNCTYPE(c_bool, c_float, c_void_p)

# -- structs, passed by value in and out --------------------------------------------------------------------------------


class llama_token_data(Structure):  # noqa: N801
    _fields_ = (("id", c_int32), ("logit", c_float), ("p", c_float))


class llama_token_data_array(Structure):  # noqa: N801
    _fields_ = (("data", POINTER(llama_token_data)), ("size", c_size_t), ("selected", c_int64), ("sorted", c_bool))


class llama_model_params(Structure):  # noqa: N801
    _fields_ = (
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int),
        ("load_mode", c_int),
        ("lazy_mode", c_int),
        ("main_gpu", c_int32),
        ("tensor_split", POINTER(c_float)),
        ("progress_callback", llama_progress_callback),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
    )


class llama_context_params(Structure):  # noqa: N801
    _fields_ = (
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int),
        ("rope_scaling_type", c_int),
        ("pooling_type", c_int),
        ("attention_type", c_int),
        ("flash_attn_type", c_int),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int),
        ("type_v", c_int),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    )


class llama_batch(Structure):  # noqa: N801
    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    )


class llama_sampler_chain_params(Structure):  # noqa: N801
    _fields_ = (("no_perf", c_bool),)


class llama_logit_bias(Structure):  # noqa: N801
    _fields_ = (("token", c_int32), ("bias", c_float))


class llama_chat_message(Structure):  # noqa: N801
    _fields_ = (("role", c_char_p), ("content", c_char_p))


class ggml_threadpool_params(Structure):  # noqa: N801
    _fields_ = (
        ("cpumask", c_bool * GGML_MAX_N_THREADS),
        ("n_threads", c_int),
        ("prio", c_int),
        ("poll", c_uint32),
        ("strict_cpu", c_bool),
        ("paused", c_bool),
    )


STRUCTS: tuple[type[Structure], ...] = (
    llama_token_data,
    llama_token_data_array,
    llama_model_params,
    llama_context_params,
    llama_batch,
    llama_sampler_chain_params,
    llama_logit_bias,
    llama_chat_message,
    ggml_threadpool_params,
)

# -- functions ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Function:
    """One row of the table: the C prototype as the header has it, and its ctypes reading beside it."""

    prototype: str
    restype: Any
    argtypes: tuple[Any, ...]

    @property
    def name(self) -> str:
        return self.prototype.split("(", 1)[0].split()[-1].lstrip("*")


SIGNATURES: tuple[Function, ...] = (
    # ggml.h, ggml-cpu.h
    Function("void ggml_threadpool_params_init(struct ggml_threadpool_params * p, int n_threads)", None, (POINTER(ggml_threadpool_params), c_int)),
    Function("struct ggml_threadpool * ggml_threadpool_new(struct ggml_threadpool_params * params)", threadpool_p, (POINTER(ggml_threadpool_params),)),
    Function("void ggml_threadpool_free(struct ggml_threadpool * threadpool)", None, (threadpool_p,)),
    Function("void ggml_threadpool_pause(struct ggml_threadpool * threadpool)", None, (threadpool_p,)),
    # ggml-backend.h
    Function("const char * ggml_backend_dev_name(ggml_backend_dev_t device)", c_char_p, (device_p,)),
    Function("void ggml_backend_dev_memory(ggml_backend_dev_t device, size_t * free, size_t * total)", None, (device_p, POINTER(c_size_t), POINTER(c_size_t))),
    Function("enum ggml_backend_dev_type ggml_backend_dev_type(ggml_backend_dev_t device)", c_int, (device_p,)),
    Function("size_t ggml_backend_dev_count(void)", c_size_t, ()),
    Function("ggml_backend_dev_t ggml_backend_dev_get(size_t index)", device_p, (c_size_t,)),
    # llama.h: parameters, start
    Function("struct llama_model_params llama_model_default_params(void)", llama_model_params, ()),
    Function("struct llama_context_params llama_context_default_params(void)", llama_context_params, ()),
    Function("struct llama_sampler_chain_params llama_sampler_chain_default_params(void)", llama_sampler_chain_params, ()),
    Function("void llama_backend_init(void)", None, ()),
    Function("void llama_attach_threadpool(struct llama_context * ctx, struct ggml_threadpool * threadpool, struct ggml_threadpool * threadpool_batch)", None, (context_p, threadpool_p, threadpool_p)),
    Function("bool llama_supports_gpu_offload(void)", c_bool, ()),
    # model and context
    Function("struct llama_model * llama_model_load_from_file(const char * path_model, struct llama_model_params params)", model_p, (c_char_p, llama_model_params)),
    Function("void llama_model_free(struct llama_model * model)", None, (model_p,)),
    Function("struct llama_context * llama_init_from_model(struct llama_model * model, struct llama_context_params params)", context_p, (model_p, llama_context_params)),
    Function("void llama_free(struct llama_context * ctx)", None, (context_p,)),
    Function("size_t llama_max_devices(void)", c_size_t, ()),
    Function("size_t llama_max_parallel_sequences(void)", c_size_t, ()),
    Function("uint32_t llama_n_ctx(const struct llama_context * ctx)", c_uint32, (context_p,)),
    Function("uint32_t llama_n_ctx_seq(const struct llama_context * ctx)", c_uint32, (context_p,)),
    Function("uint32_t llama_n_batch(const struct llama_context * ctx)", c_uint32, (context_p,)),
    Function("llama_memory_t llama_get_memory(const struct llama_context * ctx)", memory_p, (context_p,)),
    Function("enum llama_pooling_type llama_pooling_type(const struct llama_context * ctx)", c_int, (context_p,)),
    Function("const struct llama_vocab * llama_model_get_vocab(const struct llama_model * model)", vocab_p, (model_p,)),
    Function("int32_t llama_model_n_ctx_train(const struct llama_model * model)", c_int32, (model_p,)),
    Function("int32_t llama_model_n_embd_out(const struct llama_model * model)", c_int32, (model_p,)),
    Function("int32_t llama_model_n_swa(const struct llama_model * model)", c_int32, (model_p,)),
    Function("enum llama_vocab_type llama_vocab_type(const struct llama_vocab * vocab)", c_int, (vocab_p,)),
    Function("int32_t llama_vocab_n_tokens(const struct llama_vocab * vocab)", c_int32, (vocab_p,)),
    Function("int32_t llama_model_meta_val_str(const struct llama_model * model, const char * key, char * buf, size_t buf_size)", c_int32, (model_p, c_char_p, c_char_p, c_size_t)),
    Function("int32_t llama_model_desc(const struct llama_model * model, char * buf, size_t buf_size)", c_int32, (model_p, c_char_p, c_size_t)),
    Function("const char * llama_model_chat_template(const struct llama_model * model, const char * name)", c_char_p, (model_p, c_char_p)),
    Function("uint64_t llama_model_n_params(const struct llama_model * model)", c_uint64, (model_p,)),
    Function("bool llama_model_has_encoder(const struct llama_model * model)", c_bool, (model_p,)),
    Function("bool llama_model_has_decoder(const struct llama_model * model)", c_bool, (model_p,)),
    Function("bool llama_model_is_recurrent(const struct llama_model * model)", c_bool, (model_p,)),
    Function("bool llama_model_is_hybrid(const struct llama_model * model)", c_bool, (model_p,)),
    # KV cache
    Function("bool llama_memory_seq_rm(llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1)", c_bool, (memory_p, c_int32, c_int32, c_int32)),
    Function("void llama_memory_seq_cp(llama_memory_t mem, llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1)", None, (memory_p, c_int32, c_int32, c_int32, c_int32)),
    Function("llama_pos llama_memory_seq_pos_min(llama_memory_t mem, llama_seq_id seq_id)", c_int32, (memory_p, c_int32)),
    Function("llama_pos llama_memory_seq_pos_max(llama_memory_t mem, llama_seq_id seq_id)", c_int32, (memory_p, c_int32)),
    # the state of one sequence
    Function("size_t llama_state_seq_get_size(struct llama_context * ctx, llama_seq_id seq_id)", c_size_t, (context_p, c_int32)),
    Function("size_t llama_state_seq_get_data(struct llama_context * ctx, uint8_t * dst, size_t size, llama_seq_id seq_id)", c_size_t, (context_p, POINTER(c_uint8), c_size_t, c_int32)),
    Function("size_t llama_state_seq_set_data(struct llama_context * ctx, const uint8_t * src, size_t size, llama_seq_id dest_seq_id)", c_size_t, (context_p, POINTER(c_uint8), c_size_t, c_int32)),
    # decode
    Function("int32_t llama_decode(struct llama_context * ctx, struct llama_batch batch)", c_int32, (context_p, llama_batch)),
    Function("bool llama_get_causal_attn(const struct llama_context * ctx)", c_bool, (context_p,)),
    Function("void llama_set_abort_callback(struct llama_context * ctx, ggml_abort_callback abort_callback, void * abort_callback_data)", None, (context_p, c_void_p, c_void_p)),
    Function("float * llama_get_logits_ith(struct llama_context * ctx, int32_t i)", POINTER(c_float), (context_p, c_int32)),
    Function("float * llama_get_embeddings_seq(struct llama_context * ctx, llama_seq_id seq_id)", POINTER(c_float), (context_p, c_int32)),
    # vocabulary
    Function("bool llama_vocab_is_eog(const struct llama_vocab * vocab, llama_token token)", c_bool, (vocab_p, c_int32)),
    Function("llama_token llama_vocab_bos(const struct llama_vocab * vocab)", c_int32, (vocab_p,)),
    Function("llama_token llama_vocab_eos(const struct llama_vocab * vocab)", c_int32, (vocab_p,)),
    Function("int32_t llama_tokenize(const struct llama_vocab * vocab, const char * text, int32_t text_len, llama_token * tokens, int32_t n_tokens_max, bool add_special, bool parse_special)", c_int32, (vocab_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool)),
    Function("int32_t llama_token_to_piece(const struct llama_vocab * vocab, llama_token token, char * buf, int32_t length, int32_t lstrip, bool special)", c_int32, (vocab_p, c_int32, c_char_p, c_int32, c_int32, c_bool)),
    Function("int32_t llama_detokenize(const struct llama_vocab * vocab, const llama_token * tokens, int32_t n_tokens, char * text, int32_t text_len_max, bool remove_special, bool unparse_special)", c_int32, (vocab_p, POINTER(c_int32), c_int32, c_char_p, c_int32, c_bool, c_bool)),
    Function("int32_t llama_chat_apply_template(const char * tmpl, const struct llama_chat_message * chat, size_t n_msg, bool add_ass, char * buf, int32_t length)", c_int32, (c_char_p, POINTER(llama_chat_message), c_size_t, c_bool, c_char_p, c_int32)),
    # samplers
    Function("void llama_sampler_accept(struct llama_sampler * smpl, llama_token token)", None, (sampler_p, c_int32)),
    Function("void llama_sampler_apply(struct llama_sampler * smpl, llama_token_data_array * cur_p)", None, (sampler_p, POINTER(llama_token_data_array))),
    Function("void llama_sampler_free(struct llama_sampler * smpl)", None, (sampler_p,)),
    Function("struct llama_sampler * llama_sampler_chain_init(struct llama_sampler_chain_params params)", sampler_p, (llama_sampler_chain_params,)),
    Function("void llama_sampler_chain_add(struct llama_sampler * chain, struct llama_sampler * smpl)", None, (sampler_p, sampler_p)),
    Function("struct llama_sampler * llama_sampler_init_greedy(void)", sampler_p, ()),
    Function("struct llama_sampler * llama_sampler_init_dist(uint32_t seed)", sampler_p, (c_uint32,)),
    Function("struct llama_sampler * llama_sampler_init_top_k(int32_t k)", sampler_p, (c_int32,)),
    Function("struct llama_sampler * llama_sampler_init_top_p(float p, size_t min_keep)", sampler_p, (c_float, c_size_t)),
    Function("struct llama_sampler * llama_sampler_init_min_p(float p, size_t min_keep)", sampler_p, (c_float, c_size_t)),
    Function("struct llama_sampler * llama_sampler_init_typical(float p, size_t min_keep)", sampler_p, (c_float, c_size_t)),
    Function("struct llama_sampler * llama_sampler_init_temp(float t)", sampler_p, (c_float,)),
    Function("struct llama_sampler * llama_sampler_init_penalties(int32_t n_vocab, int32_t penalty_last_n, float penalty_repeat, float penalty_freq, float penalty_present)", sampler_p, (c_int32, c_int32, c_float, c_float, c_float)),
    Function("struct llama_sampler * llama_sampler_init_logit_bias(int32_t n_vocab, int32_t n_logit_bias, const llama_logit_bias * logit_bias)", sampler_p, (c_int32, c_int32, POINTER(llama_logit_bias))),
    Function("llama_token llama_sampler_sample(struct llama_sampler * smpl, struct llama_context * ctx, int32_t idx)", c_int32, (sampler_p, context_p, c_int32)),
    # log
    Function("void llama_log_set(ggml_log_callback log_callback, void * user_data)", None, (ggml_log_callback, c_void_p)),
)  # fmt: skip


class Library:
    """The opened library: one attribute for each row of SIGNATURES, already typed. Each call releases the GIL."""

    def __init__(self, cdll: ctypes.CDLL, signatures: Sequence[Function]) -> None:
        missing = []
        for row in signatures:
            try:
                function = getattr(cdll, row.name)
            except AttributeError:
                missing.append(row.name)
                continue
            function.restype = row.restype
            function.argtypes = row.argtypes
            setattr(self, row.name, function)
        if missing:
            raise LibraryMismatch(
                f"libllama.so lacks {len(missing)} of {len(signatures)} functions that modeld calls ({', '.join(missing[:8])}"
                f"{', ...' if len(missing) > 8 else ''}); it was not built by this project: run `make build`"
            )

    def __getattr__(self, name: str) -> Any:  # reached only for what the table does not name
        raise AttributeError(f"{name} is not in modeld.llm.libllama.SIGNATURES")


def load_library(path: str | os.PathLike[str]) -> Library:
    """Open the library and type every function of the table. The caller has compared its stamp.

    Raises LibraryMismatch when it cannot be opened or lacks a function.
    """
    # Without it ggml forks a debugger at an abort; it is read when the library is opened (facts/llama.md).
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    try:
        cdll = ctypes.CDLL(os.fspath(path))
    except OSError as error:
        raise LibraryMismatch(f"cannot open {os.fspath(path)}: {error}; run `make build` to make it anew") from error
    return Library(cdll, SIGNATURES)
