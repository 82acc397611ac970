"""The values that pass between floors: what a model is, what a request asks, what an op and the daemon are doing.

Run modeld as `python -m modeld`: a script started inside this directory would find this file under the name of the
standard module `types`.
"""

from __future__ import annotations

import enum
from array import array
from dataclasses import dataclass, field
from pathlib import Path

from modeld.policy import Strategy, SwitchOptions


class State(enum.StrEnum):
    """What the daemon is, as `/status` says it."""

    READY = "ready"
    LOADING = "loading"
    ERROR = "error"


class OpState(enum.StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (OpState.SUCCEEDED, OpState.FAILED, OpState.CANCELLED)


class OpKind(enum.StrEnum):
    SWITCH = "switch"
    UNLOAD = "unload"


class OpReason(enum.StrEnum):
    """Who wanted an op."""

    REQUEST = "request"  # somebody asked
    START = "start"  # the daemon started
    DEATH = "death"  # the engine of the model died
    RESTORE = "restore"  # a switch was taken back after the model before had gone
    AUTO = "auto"  # a request named another model
    IDLE = "idle"  # nobody used the model


class Phase(enum.StrEnum):
    """What else takes time in a switch, besides its steps."""

    CHECK = "check"  # the file's sha256
    PROBE = "probe"  # a process of its own decodes the file once
    PREFETCH = "prefetch"  # the file is read into the page cache
    DIVERT = "divert"  # the old model answers, and /readyz says that it soon will not
    DRAIN = "drain"  # running requests may end
    ROLLBACK = "rollback"  # the model before is loaded again


class Step(enum.StrEnum):
    """The steps of a switch that report percents, in their order."""

    UNLOAD = "unload"
    MMAP = "mmap"
    WARMUP = "warmup"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One entry of the registry. Names and defaults follow llama-server's long flags."""

    id: str
    path: Path
    name: str = ""  # absent: the id
    quant: str | None = None  # None: read from the GGUF
    family: str | None = None  # None: general.architecture of the GGUF
    n_ctx: int = 4096  # KV cells in total, shared by the slots; 0: the model's own
    n_parallel: int = 4  # slots
    n_batch: int = 2048  # rows of one decode, at most
    n_ubatch: int = 512
    n_threads: int = 0  # 0: the usable cores
    cpu_pinning: str = "auto"  # auto | on | off: each compute thread bound to a core of its own
    max_step_ms: int = 250  # what a step may take while streams run and a prompt is read
    n_gpu_layers: int = -1
    main_gpu: int = 0
    split_mode: str = "layer"  # none | layer | row
    tensor_split: tuple[float, ...] = ()
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    flash_attn: str = "auto"  # auto | on | off
    load_mode: str = "auto"  # auto | mmap | mlock | none
    chat_template: str | None = None  # Jinja, or a name from llama.cpp's list; None: the model's own
    embeddings: str = "auto"  # auto | on | off; a model gives embeddings or generates, never both
    pooling: str | None = None  # none | mean | cls | last; None: the model's own
    seed: int | None = None  # of requests that bring none; None: a fresh one for each
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class LayerCell:
    """What one layer keeps in one cell of the KV cache: numbers of its keys and of its values."""

    n_keys: int
    n_values: int
    slides: bool = False  # its attention looks back over a window only, and its cache is as short


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The measures of a model by which its memory is estimated (llm/footprint.py)."""

    weights_bytes: int
    tied_bytes: int  # of those: the table of embeddings, where it gives the logits, too
    n_embd: int
    n_ff: int  # of the widest layer, all experts that one token uses, or a recurrent layer's channels
    n_vocab: int
    n_heads: int  # of the layer that has most
    n_ctx_train: int
    cells: tuple[LayerCell, ...]  # of each layer that has a KV cache
    n_window: int = 0  # tokens that sliding attention looks back over
    state_bytes: int = 0  # of a slot's recurrent layers, all together
    for_embeddings: bool = False  # it says so by a pooling type, or by attention that looks ahead


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a model's files say about it, read without loading it. None: they do not say, or one is missing.

    `identity` is (device, inode, size, mtime_ns), for a model in shards one that stands for all of them: equal ones are the
    same bytes as far as the file system tells. Sizes and counts are those of all shards together.
    `problem`: why the model cannot be loaded, in words; None when nothing is known against it.
    """

    identity: tuple[int, int, int, int] | None = None
    size_bytes: int | None = None
    quant: str | None = None
    family: str | None = None
    name: str | None = None
    n_ctx_train: int | None = None
    n_tensors: int | None = None
    problem: str | None = None
    n_params: int | None = None  # numbers in all tensors
    n_layers: int | None = None
    learned_positions: bool = False  # it has vectors for n_ctx_train positions, and none beyond
    shape: ModelShape | None = None  # None: bad, or of an architecture whose memory is not known


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A registry entry as `/models` shows it."""

    id: str
    name: str
    path: str
    quant: str | None
    family: str | None
    state: str  # ready | loading | unloaded
    size_bytes: int | None  # None: the file is missing
    n_ctx: int
    n_parallel: int
    chat_template: str | None = None  # of the loaded one: jinja | builtin | unsupported
    n_params: int | None = None
    n_ctx_train: int | None = None  # tokens that it was trained on


class ToolCallFormat(enum.StrEnum):
    """How a model writes the calls of tools; its chat template tells (`/props`)."""

    HERMES = "hermes"  # <tool_call>{"name": ..., "arguments": {...}}</tool_call>, several; Hermes, Qwen
    LLAMA3 = "llama3"  # {"name": ..., "parameters": {...}} alone; Llama 3
    MISTRAL = "mistral"  # [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]
    MISTRAL_ARGS = "mistral-args"  # [TOOL_CALLS]name[ARGS]{...}, several; newer ones of Mistral


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """The model that answers, as the library describes it (`/props`, `/v1/models`)."""

    id: str
    name: str
    path: str
    description: str  # llama_model_desc: "llama 0.5B Q4_0"
    n_params: int
    n_vocab: int
    n_ctx: int  # KV cells in total
    n_ctx_slot: int  # positions that one sequence may take
    n_ctx_train: int
    n_slots: int
    n_batch: int
    n_threads: int
    chat_template: str | None
    bos_piece: str
    eos_piece: str
    loaded_at: float  # seconds since the epoch
    chat_template_engine: str | None = None  # what renders it: jinja | builtin; None: nothing can
    n_embd: int = 0  # numbers of a vector
    pooling: str | None = None  # none | mean | cls | last: it gives embeddings, made so; None: it generates
    shows_tools: bool = False  # the template puts a request's tools into the prompt
    shows_tool_calls: bool = False  # it renders earlier calls and their results
    tool_call_format: ToolCallFormat | None = None  # None: none of these


@dataclass(frozen=True, slots=True)
class OpError:
    """Why an op failed, or why the daemon is in state `error`."""

    code: str
    message: str
    model_id: str | None = None
    op_id: str | None = None


@dataclass(frozen=True, slots=True)
class SwitchOp:
    """One switch or unload, from the moment it was accepted. Times are seconds since the epoch."""

    op_id: str
    target_model_id: str | None  # None: an unload
    state: OpState
    queued_at: float
    kind: OpKind = OpKind.SWITCH
    reason: OpReason = OpReason.REQUEST
    options: SwitchOptions = field(default_factory=SwitchOptions)
    strategy: Strategy | None = None  # the one that was taken, once that is known
    phase: Phase | None = None  # what it is doing, between and beside the steps
    step: Step | None = None
    pct: int | None = None  # of the phase or step
    last_progress_at: float | None = None
    cancelling: bool = False  # it was told to end, and has not ended yet
    error: OpError | None = None
    rolled_back_to: str | None = None  # the model that came back after it failed
    started_at: float | None = None
    ended_at: float | None = None
    steps_ms: dict[str, float] = field(default_factory=dict)  # per finished step and phase, milliseconds; never mutated


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a runner is at one moment."""

    slots_total: int
    slots_busy: int
    queued: int

    @property
    def n_open(self) -> int:
        """Requests that were admitted and have not ended."""
        return self.slots_busy + self.queued


@dataclass(frozen=True, slots=True)
class Status:
    """What `/status` says."""

    state: State
    current_model: str | None
    error: OpError | None
    op: SwitchOp | None  # the one that runs
    last_op: SwitchOp | None  # the one that ended last
    queued_ops: int
    load: Load
    generation: int  # successful loads so far
    version: str
    uptime_s: float
    auto_switch: bool = False  # a request that names another model loads it: without a model the daemon is ready, too
    retiring_model: str | None = None  # was replaced in an overlap, and its last requests still run
    waiting: int = 0  # requests that wait for a switch (auto_switch)
    config_stale: bool = False  # the entry of current_model was changed since it was loaded
    config_error: str | None = None  # why the configuration file was not taken over
    quarantined: tuple[str, ...] = ()  # models that ended the process again and again
    diverting: bool = False  # the running op is about to take the model away, which answers still (ready_delay_s)
    stopping: bool = False  # the daemon ends: nothing is let in any more, or soon


@dataclass(frozen=True, slots=True)
class SwitchPlan:
    """What a switch would come to, had it been asked for in earnest (`dry_run`)."""

    target_model_id: str
    action: str  # keep: it is loaded already | load
    strategy: Strategy
    leaves: str | None  # the model that goes
    error: OpError | None  # why it would fail, as far as that can be known before


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """What became of the configuration file that was read again."""

    changed: bool
    models: int
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    altered: tuple[str, ...] = ()
    restart_needed: tuple[str, ...] = ()  # keys that changed and hold from the next start on


@dataclass(frozen=True, slots=True)
class ApiKey:
    """Who may come in, as the operator named them. The key itself is not kept."""

    name: str
    admin: bool  # scope admin; else use
    digest: bytes = field(repr=False)  # SHA-256 of the key


# -- figures -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Distribution:
    """`counts[i]`: observations up to `bounds[i]` and above the bound before; the last one has no upper end."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    @property
    def n(self) -> int:
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """What engines have done since the daemon started, those of models that have left included: nothing here goes back."""

    n_decodes: int  # that ended, whole
    n_aborted: int  # decodes that were ended early
    n_rows_prompt: int  # rows of whole decodes, by what they were for
    n_rows_generation: int
    n_rows_filling: int  # nobody's; they made a step cheaper
    decode_s: float  # inside decodes, aborted ones included
    busy_s: float  # of the engine threads, whatever they did but wait for work
    n_placed: int  # sequences that got a slot
    n_reused_slots: int  # prompt tokens that were not computed, since a slot held their cells
    n_reused_kept: int  # since their cells were kept from an earlier load
    token_s: Distribution  # between two tokens of one answer
    queue_s: Distribution  # from a sequence's submission to its slot


@dataclass(frozen=True, slots=True)
class CellFigures:
    """KV cells at one moment, of all models that are in memory, and bytes of those kept for models that are not."""

    n_used: int
    n_total: int
    kept_bytes: int


@dataclass(frozen=True, slots=True)
class Figures:
    """What `/metrics` asks of the daemon; read without waiting for anything that computes or loads."""

    status: Status  # without what has to look at files: config_stale, quarantined
    models: tuple[str, ...]  # registered ids
    ops: dict[tuple[str, str, str], int]  # ended ones, by kind, reason and state
    steps_s: dict[str, Distribution]  # of ops, by step and phase, and "total"
    event_clients: int
    engine: EngineFigures
    cells: CellFigures


# -- generation ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """llama-server's samplers with its defaults; ranges are checked where JSON becomes a request."""

    temperature: float = 0.8  # 0: greedy
    top_k: int = 40  # <= 0: off
    top_p: float = 0.95  # 1: off
    min_p: float = 0.05  # 0: off
    typical_p: float = 1.0  # 1: off
    repeat_penalty: float = 1.0  # 1: off
    repeat_last_n: int = 64  # 0: off; -1: the slot's whole context
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None  # 0..2**32-1; None: the model's, or a fresh one
    ignore_eos: bool = False
    grammar: str | None = None  # GBNF whose rule `root` the answer follows


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """A JSON schema that an answer is to follow; `param` is where the request has it."""

    value: object
    param: str


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. `parameters` is a JSON schema."""

    name: str
    description: str
    parameters: dict[str, object]


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a request lets the model call, and what it has to."""

    tools: tuple[Tool, ...]  # at least one, each name once
    required: bool = False  # the answer is a call or several, and nothing else
    named: str | None = None  # of this tool, and one; with `required` only
    parallel: bool = True  # else one call at most


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call in an assistant's earlier message."""

    id: str
    name: str
    arguments: dict[str, object] | str  # str: what the model made is no JSON object


@dataclass(frozen=True, slots=True)
class ChatMessage:
    role: str  # system | user | assistant | tool
    content: str | None  # None only beside tool_calls
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None  # of role tool: which call this is the result of
    name: str | None = None


Prompt = str | tuple[int, ...] | tuple[ChatMessage, ...]
"""Text (tokenized with the model's BOS rule), token ids taken as they are, or messages for the chat template."""


@dataclass(frozen=True, slots=True)
class Share:
    """Whose turn a request takes where requests wait for a slot: clients take turns, the requests of one follow each other."""

    client: str = ""  # opaque; requests that do not say are one client's
    max_queued: int = 0  # how many of the client's may wait; 0: as many as the queue takes


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """What one request asks of the loaded model: `n` answers to each of its prompts.

    Answer i to prompt p is choice `p * n + i`. The answers to one prompt differ by their seeds alone: `sampling.seed + i`.
    """

    request_id: str
    prompts: tuple[Prompt, ...]  # at least one
    model_id: str | None = None  # None: whichever is loaded
    n: int = 1
    max_tokens: int | None = None  # None: what is left of the slot's context; 0 only with echo
    stop: tuple[str, ...] = ()
    sampling: SamplingParams = SamplingParams()
    json_schema: JsonSchema | None = None  # instead of sampling.grammar
    tools: ToolUse | None = None  # for prompts of messages; those that are required constrain the answer
    cache_prompt: bool = True  # take over cells of others with the same beginning, and leave one's own
    echo: bool = False  # the prompt comes before the answer, with its logprobs when those are asked for
    n_top_logprobs: int | None = None  # the likeliest tokens beside each sampled one; None: no logprobs at all
    share: Share = Share()

    @property
    def n_choices(self) -> int:
        return len(self.prompts) * self.n


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # of the prompt, found in the KV cache

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """What the model thought of one token: natural logarithms of a softmax over all logits, before any sampler."""

    piece: bytes  # of special tokens, too
    logprob: float | None  # None: the first token of an echoed prompt, which nothing foretells
    top: tuple[tuple[bytes, float], ...] = ()  # the likeliest tokens, likeliest first
    offset: int = 0  # characters of the choice's text before this token


@dataclass(frozen=True, slots=True)
class Finished:
    """A choice that ended by itself. `reason`: stop (EOG or a stop string) or length."""

    reason: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class Failed:
    """A choice that was ended; the error says why. `usage`: what it had come to; None: nothing was computed for it."""

    error: Exception
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a choice has come to since its last chunk: text (valid UTF-8, may be empty), and the end if it has come."""

    text: str
    end: Finished | Failed | None = None
    index: int = 0  # of the choice
    logprobs: tuple[TokenLogprob, ...] = ()  # of the tokens whose text is shown now


# -- embeddings ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """What one request for embeddings asks: texts (tokenized with the model's own rule) or token ids, each for a vector."""

    request_id: str
    inputs: tuple[str | tuple[int, ...], ...]  # at least one
    model_id: str | None = None  # None: whichever is loaded
    dimensions: int | None = None  # numbers wanted of each vector, from its beginning; None: all
    share: Share = Share()


@dataclass(frozen=True, slots=True)
class Embedded:
    """A vector for each input, in their order, as the model made it: float32, not normalised, n_embd numbers."""

    vectors: tuple[array[float], ...]
    prompt_tokens: int
