"""What does the manager hold while a model is loaded? EngineRunner: runtime, engine and tokenize threads as one thing."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from modeld.engine.callgrammar import gbnf_of_calls
from modeld.engine.constraint import CompiledGrammar
from modeld.engine.embedding import EmbeddingEngine
from modeld.engine.engine import Engine
from modeld.engine.gbnf import MAX_BYTES
from modeld.engine.grammar import MAX_GRAMMAR_BYTES, gbnf_of
from modeld.engine.inputs import check_embeddable, input_tokens, tokenized
from modeld.engine.kept import KeptCells
from modeld.engine.sequence import Sequence as TokenSequence
from modeld.engine.stream import TokenStream
from modeld.engine.vectors import EmbeddingJob
from modeld.engine.workers import TokenizePool
from modeld.errors import ContextLengthExceeded, InvalidRequest, ModeldError, OpCancelled
from modeld.heartbeat import Pulse
from modeld.llm.adapter import LoadProgress, Runtime
from modeld.types import (
    ChatMessage,
    EmbedRequest,
    EngineFigures,
    GenerateRequest,
    Load,
    LoadedModel,
    ModelSpec,
    Prompt,
    Step,
    Tool,
    ToolCallFormat,
    ToolUse,
)

T = TypeVar("T")
N_GRAMMARS_KEPT = 8


class EngineRunner:
    """A loaded, warmed model that answers. Opened on the load's thread, closed by the switch thread; submit and the like
    from handlers."""

    def __init__(
        self,
        spec: ModelSpec,
        load_runtime: Callable[[ModelSpec, LoadProgress], Runtime],
        on_progress: LoadProgress,
        on_death: Callable[[Exception], None],
        *,
        queue_size: int,
        kept: KeptCells | None = None,
    ) -> None:
        """Load and warm up. Raises LoadFailed or OpCancelled with everything freed again. `kept`: what was computed before it
        was loaded, and where keep_cells() is to leave what is computed now."""
        self.spec = spec
        self._grammars_lock = threading.Lock()
        # Guards _grammars, which the tokenize threads share. Not held while one is made.
        self._grammars: OrderedDict[tuple[str, str], CompiledGrammar] = OrderedDict()  # by text and parameter
        self._runtime = load_runtime(spec, on_progress)
        try:
            if not on_progress(Step.WARMUP, 0):
                raise OpCancelled(f"the load of model '{spec.id}' was cancelled before its warmup")
            self._n_cells = self._runtime.describe().n_ctx
            self._pool = TokenizePool()
            try:
                self._engine: Engine | EmbeddingEngine
                if self._runtime.pooling is None:
                    max_step_s = spec.max_step_ms / 1000
                    self._engine = Engine(
                        self._runtime, spec.id, queue_size=queue_size, max_step_s=max_step_s, on_death=on_death, kept=kept
                    )
                else:
                    self._engine = EmbeddingEngine(self._runtime, spec.id, queue_size=queue_size, on_death=on_death)
                self._engine.start()
            except BaseException:
                self._pool.close(InvalidRequest("the model did not start"))
                raise
        except BaseException:
            self._runtime.close()
            raise
        on_progress(Step.WARMUP, 100)

    # -- the switch thread

    def on_idle(self, callback: Callable[[], None]) -> None:
        """Have `callback` called each time the last open request has ended, or was refused after it had its place: load()
        then says 0 busy and 0 queued, unless the next one has come meanwhile. Once, before the first request.

        It is called on the thread that ended it, the engine's or a handler's, with no lock held; it must not raise, wait for
        a request or close the runner. Also when close() ended the last one.
        """
        self._engine.on_idle(callback)

    def close(self, reason: ModeldError) -> None:
        """End every request with `reason` and join the threads: none that could call the runtime lives then. Idempotent."""
        self._engine.close(reason)
        self._pool.close(reason)

    def keep_cells(self) -> None:
        """After close, before free: leave the cells of conversations in `kept`. Once, from any one thread.

        Those that ran when the model was closed and those that had ended and still held their slots, but for requests with
        cache_prompt off. Where the memory cannot be cut (recurrent, sliding windows) nothing is kept, since what is kept is
        hardly ever wanted whole; nor for embeddings, which leave no cells. 7.4 MB (600 tokens of a 0.5B model) take 3 to 8 ms.
        """
        if isinstance(self._engine, Engine):
            self._engine.keep_cells()

    def free(self) -> None:
        """After close: free context and model. Once, from any one thread."""
        self._runtime.close()

    # -- handlers

    def describe(self) -> LoadedModel:
        return self._runtime.describe()

    def load(self) -> Load:
        return self._engine.load()

    def pulses(self) -> Sequence[Pulse]:
        """Of its threads."""
        return (*self._engine.pulses(), *self._pool.pulses)

    def figures(self) -> EngineFigures:
        """What was done so far. Never waits, like the next one."""
        return self._engine.counts.figures()

    def n_cells(self) -> tuple[int, int]:
        """KV cells that hold something, and all there are."""
        return self._engine.n_cells(), self._n_cells

    def submit(self, request: GenerateRequest) -> TokenStream:
        """Queue all choices of one request; waits for its tokenizing.

        Raises QueueFull, ContextLengthExceeded, InvalidRequest, or why the runner is closed.
        """
        engine = self._engine
        if not isinstance(engine, Engine):
            raise InvalidRequest(
                f"model '{self.spec.id}' is loaded for embeddings and generates nothing; for a model that can, `embeddings: off` "
                f"in its entry changes that",
                param="model",
            )
        n_choices = request.n_choices
        engine.reserve(n_choices, request.share)
        try:
            return engine.submit(self._pool.run(lambda: self._sequences(request)))
        except BaseException:
            engine.release(n_choices, request.share.client)
            raise

    def embed(self, request: EmbedRequest) -> EmbeddingJob:
        """Queue one request for embeddings; waits for its tokenizing. Raises as submit does."""
        engine = self._engine
        if not isinstance(engine, EmbeddingEngine):
            raise InvalidRequest(
                f"model '{self.spec.id}' is loaded to generate; `embeddings: on` and a `pooling` in its entry, or in a second "
                f"one for the same file, load it for embeddings",
                param="model",
            )
        check_embeddable(self._runtime, request)
        client = request.share.client
        engine.reserve(request.share)
        try:
            # A job for each: between two of them others get their turn, and a switch its end.
            values = enumerate(request.inputs)
            return engine.submit([self._pool.run(partial(input_tokens, self._runtime, i, value)) for i, value in values], client)
        except BaseException:
            engine.release(client)
            raise

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return self._pool.run(lambda: self._runtime.tokenize(text, add_special=add_special, parse_special=parse_special))

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        return self._pool.run(lambda: self._runtime.detokenize(tokens))

    def render_chat(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> str:
        return self._pool.run(lambda: self._runtime.render_chat(messages, tools))

    # -- a tokenize thread

    def _sequences(self, request: GenerateRequest) -> list[TokenSequence]:
        """All choices, in their order."""
        sampling = request.sampling
        grammar = self._grammar(request)
        self._runtime.prepare(sampling, constrained=grammar is not None)
        seed = sampling.seed if sampling.seed is not None else self.spec.seed
        if seed is None:
            seed = secrets.randbits(32)
        sequences = []
        for prompt in request.prompts:
            tokens = self._tokens(prompt, request.tools.tools if request.tools is not None else ())
            limit = self._limit(request, prompt, len(tokens))
            siblings = object()
            echo = None
            if request.echo:
                echo = prompt if isinstance(prompt, str) else self._runtime.detokenize(tokens).decode("utf-8", "replace")
            sequences += [
                TokenSequence(
                    tokens,
                    limit=limit,
                    sampling=sampling,
                    stop=request.stop,
                    # LLAMA_DEFAULT_SEED means "random" to libllama; nobody could say then which one it was.
                    seed=(seed + i) % 0xFFFFFFFF,
                    cache_prompt=request.cache_prompt,
                    echo=echo,
                    n_top_logprobs=request.n_top_logprobs,
                    siblings=siblings,
                    constraint=None if grammar is None else grammar.begin(),
                    shows_markers=request.tools is not None,
                    client=request.share.client,
                )
                for i in range(request.n)
            ]
        return sequences

    def _grammar(self, request: GenerateRequest) -> CompiledGrammar | None:
        """What the answers are to follow."""
        if request.tools is not None:
            return self._call_grammar(request.tools)
        if request.json_schema is not None:
            return self._compiled(gbnf_of(request.json_schema), request.json_schema.param, MAX_GRAMMAR_BYTES)
        if request.sampling.grammar is not None:
            return self._compiled(request.sampling.grammar, "grammar", MAX_BYTES)
        return None

    def _compiled(self, text: str, param: str, max_bytes: int) -> CompiledGrammar:
        with self._grammars_lock:
            grammar = self._grammars.pop((text, param), None)
        if grammar is None:
            grammar = CompiledGrammar(text, max_bytes=max_bytes, param=param)
        with self._grammars_lock:
            self._grammars[text, param] = grammar
            if len(self._grammars) > N_GRAMMARS_KEPT:
                self._grammars.popitem(last=False)
        return grammar

    def _call_grammar(self, use: ToolUse) -> CompiledGrammar | None:
        model = self._runtime.describe()
        if model.tool_call_format is not None:
            if not use.required:
                return None
            return self._compiled(gbnf_of_calls(use, model.tool_call_format), "tools", MAX_GRAMMAR_BYTES)
        if model.shows_tools:
            raise InvalidRequest(
                f"the chat template of model '{self.spec.id}' shows tools, but calls them in no format that is known here "
                f"({', '.join(ToolCallFormat)}): its calls would come as text",
                param="tools",
            )
        return None  # rendering will say that they are not shown

    def _tokens(self, prompt: Prompt, tools: Sequence[Tool]) -> list[int]:
        """The prompt's tokens, at least one."""
        if isinstance(prompt, str):
            tokens = self._tokenized(prompt, "prompt")
        elif prompt and isinstance(prompt[0], ChatMessage):
            messages = [message for message in prompt if isinstance(message, ChatMessage)]
            tokens = self._tokenized(self._runtime.render_chat(messages, tools), "messages")
        else:
            tokens = [token for token in prompt if isinstance(token, int)]
            self._runtime.check_tokens(tokens)
        if not tokens:
            raise InvalidRequest("the prompt has no tokens, and this model adds no BOS token to it", param="prompt")
        return tokens

    def _limit(self, request: GenerateRequest, prompt: Prompt, n_tokens: int) -> int:
        """How many tokens an answer to this prompt may have."""
        n_ctx_slot = self._runtime.n_ctx_slot
        n_left = n_ctx_slot - n_tokens
        if n_left < 1:
            raise ContextLengthExceeded(
                f"the prompt has {n_tokens} tokens; a slot of model '{self.spec.id}' holds {n_ctx_slot} "
                f"(n_ctx / n_parallel), and at least one is needed for the answer",
                param="messages" if prompt and isinstance(prompt[0], ChatMessage) else "prompt",
            )
        return n_left if request.max_tokens is None else min(n_left, request.max_tokens)

    def _tokenized(self, text: str, param: str) -> list[int]:
        return tokenized(self._runtime, text, what="the prompt", param=param)
