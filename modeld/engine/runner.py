"""What does the manager hold while a model is loaded? EngineRunner: runtime, engine and tokenize threads as one thing."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Sequence
from typing import TypeVar

from modeld.engine.engine import Engine
from modeld.engine.gbnf import check_gbnf
from modeld.engine.grammar import gbnf_of
from modeld.engine.sequence import Sequence as TokenSequence
from modeld.engine.stream import TokenStream
from modeld.engine.workers import TokenizePool
from modeld.errors import ContextLengthExceeded, InvalidRequest, ModeldError, OpCancelled
from modeld.llm.adapter import LoadProgress, Runtime
from modeld.types import ChatMessage, GenerateRequest, Load, LoadedModel, ModelSpec, Step

T = TypeVar("T")
LONG_TEXT_BYTES_PER_TOKEN = 16  # only texts longer than this are worth looking at the whole vocabulary, once a model


class EngineRunner:
    """A loaded, warmed model that answers. Opened and closed by the switch thread; submit and the like from handlers."""

    def __init__(
        self,
        spec: ModelSpec,
        load_runtime: Callable[[ModelSpec, LoadProgress], Runtime],
        on_progress: LoadProgress,
        on_death: Callable[[Exception], None],
        *,
        queue_size: int,
    ) -> None:
        """Load and warm up. Raises LoadFailed or OpCancelled with everything freed again."""
        self.spec = spec
        self._runtime = load_runtime(spec, on_progress)
        try:
            if not on_progress(Step.WARMUP, 0):
                raise OpCancelled(f"the load of model '{spec.id}' was cancelled before its warmup")
            self._pool = TokenizePool()
            try:
                self._engine = Engine(
                    self._runtime, spec.id, queue_size=queue_size, max_step_s=spec.max_step_ms / 1000, on_death=on_death
                )
                self._engine.start()
            except BaseException:
                self._pool.close(InvalidRequest("the model did not start"))
                raise
        except BaseException:
            self._runtime.close()
            raise
        on_progress(Step.WARMUP, 100)

    # -- the switch thread

    def close(self, reason: ModeldError) -> None:
        """End every request with `reason` and join the threads: none that could call the runtime lives then. Idempotent."""
        self._engine.close(reason)
        self._pool.close(reason)

    def free(self) -> None:
        """After close: free context and model. Once, from any one thread."""
        self._runtime.close()

    # -- handlers

    def describe(self) -> LoadedModel:
        return self._runtime.describe()

    def load(self) -> Load:
        return self._engine.load()

    def submit(self, request: GenerateRequest) -> TokenStream:
        """Queue one request; waits for its tokenizing.

        Raises QueueFull, ContextLengthExceeded, InvalidRequest, or why the runner is closed.
        """
        self._engine.reserve()
        try:
            request, tokens = self._pool.run(lambda: self._prepared(request))
            return self._engine.submit(self._sequence(request, tokens))
        except BaseException:
            self._engine.release()
            raise

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return self._pool.run(lambda: self._runtime.tokenize(text, add_special=add_special, parse_special=parse_special))

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        return self._pool.run(lambda: self._runtime.detokenize(tokens))

    def render_chat(self, messages: Sequence[ChatMessage]) -> str:
        return self._pool.run(lambda: self._runtime.render_chat(messages))

    def _prepared(self, request: GenerateRequest) -> tuple[GenerateRequest, list[int]]:
        """The request with its schema as a grammar, and the prompt's tokens. On a tokenize thread."""
        if request.json_schema is not None:
            sampling = dataclasses.replace(request.sampling, grammar=gbnf_of(request.json_schema))
            request = dataclasses.replace(request, sampling=sampling)
        elif request.sampling.grammar is not None:
            check_gbnf(request.sampling.grammar)
        return request, self._tokens(request)

    def _tokens(self, request: GenerateRequest) -> list[int]:
        """The prompt's tokens."""
        prompt = request.prompt
        if isinstance(prompt, str):
            tokens = self._tokenized(prompt, "prompt")
            given = None
        elif prompt and isinstance(prompt[0], ChatMessage):
            messages = [message for message in prompt if isinstance(message, ChatMessage)]
            text = self._runtime.render_chat(messages)
            tokens = self._tokenized(text, "messages")
            given = None
        else:
            tokens = [token for token in prompt if isinstance(token, int)]
            given = tokens
        self._runtime.prepare(request.sampling, given)
        return tokens

    def _tokenized(self, text: str, param: str) -> list[int]:
        """The text's tokens, unless it cannot fit whatever they are.

        Some tokenizers need more than linear time: 1 MB took 80 s, during which no switch could end.
        """
        n_bytes, n_ctx_slot = len(text.encode()), self._runtime.n_ctx_slot
        if n_bytes > LONG_TEXT_BYTES_PER_TOKEN * n_ctx_slot and n_bytes > self._runtime.longest_piece() * n_ctx_slot:
            raise ContextLengthExceeded(
                f"the prompt has {n_bytes} bytes, which are more than {n_ctx_slot} tokens of model '{self.spec.id}' can hold: "
                f"the longest has {self._runtime.longest_piece()}",
                param=param,
            )
        return self._runtime.tokenize(text, add_special=True, parse_special=True)

    def _sequence(self, request: GenerateRequest, tokens: list[int]) -> TokenSequence:
        n_ctx_slot = self._runtime.n_ctx_slot
        if not tokens:
            raise InvalidRequest("the prompt has no tokens, and this model adds no BOS token to it", param="prompt")
        n_left = n_ctx_slot - len(tokens)
        if n_left < 1:
            raise ContextLengthExceeded(
                f"the prompt has {len(tokens)} tokens; a slot of model '{self.spec.id}' holds {n_ctx_slot} "
                f"(n_ctx / n_parallel), and at least one is needed for the answer",
                param="messages" if request.prompt and isinstance(request.prompt[0], ChatMessage) else "prompt",
            )
        seed = request.sampling.seed if request.sampling.seed is not None else self.spec.seed
        return TokenSequence(
            tokens,
            limit=min(n_left, request.max_tokens or n_left),
            sampling=request.sampling,
            stop=request.stop,
            cache_prompt=request.cache_prompt,
            # LLAMA_DEFAULT_SEED means "random" to libllama; nobody could say then which one it was.
            seed=(secrets.randbits(32) if seed is None else seed) % 0xFFFFFFFF,
        )
