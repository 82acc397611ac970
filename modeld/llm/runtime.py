"""How does libllama fulfil what the engine asks for? LlamaRuntime: adapter.Runtime out of model, context and chains."""

from __future__ import annotations

import logging
import os
import time
from array import array
from collections.abc import Sequence

from modeld.llm.adapter import NO_TOKEN, Constraint, LoadProgress, Sampler, Scored, Span
from modeld.llm.backend import Backend, backend
from modeld.llm.candidates import Candidates
from modeld.llm.chat import ChatTemplate
from modeld.llm.context import Context
from modeld.llm.likelihoods import Likelihoods
from modeld.llm.model import Model
from modeld.llm.pool import check_threads
from modeld.llm.sampler import SamplerChain
from modeld.llm.toolprobe import markers_of
from modeld.types import ChatMessage, LoadedModel, ModelSpec, SamplingParams, Step, TokenLogprob, Tool

log = logging.getLogger("modeld.engine")

_ROW_BLOCK = 4  # the activations' block in ggml-cpu's repacked gemm (repack.cpp, ggml_quantize_mat_q8_0_4x8 and its like)


class LlamaRuntime:
    """One loaded model with its context. Loaded on the load's thread; see adapter.Runtime for who may call what."""

    def __init__(self, spec: ModelSpec, on_progress: LoadProgress) -> None:
        """Load the model and make its context, on a big stack. Raises LoadFailed, OpCancelled, LibraryMismatch."""
        self._backend: Backend = backend()
        lib = self._backend.lib
        self._lib = lib
        check_threads(len(os.sched_getaffinity(0)))  # as many as the C++ side may take to load
        self._model = Model(self._backend, spec, lambda pct: on_progress(Step.MMAP, pct))
        try:
            self._context = Context(self._backend, self._model, spec)
        except BaseException:
            self._model.close()
            raise
        try:
            self._describe(spec)
        except BaseException:
            self.close()
            raise

    def _describe(self, spec: ModelSpec) -> None:
        """What the model is and what its context came to be."""
        self._vocab = self._model.vocab
        self.n_slots = self._context.n_slots
        self.n_ctx_slot = self._context.n_ctx_slot
        self.n_batch = self._context.n_batch
        self.n_vocab = self._vocab.n_tokens
        self.n_outputs = self._context.n_outputs
        self._candidates: Candidates | None = None  # made for the first grammar or logprob
        self._likelihoods: Likelihoods | None = None
        self.can_cut = self._model.can_cut
        self.row_block = _ROW_BLOCK if self.can_cut else 1  # rows that only fill a step are cut off again
        self.pooling = self._context.pooling
        template = spec.chat_template or self._model.chat_template
        bos, eos = self._special_piece(self._vocab.bos), self._special_piece(self._vocab.eos)
        adds_bos = self._vocab.tokenize("", add_special=True, parse_special=False)[:1] == [self._vocab.bos]
        self._chat = ChatTemplate(self._lib, template, spec.id, bos=bos, eos=eos, adds_bos=adds_bos)
        self._markers = self._vocab.control_tokens(markers_of(self._chat.tools.format))
        if self._context.n_ctx != (spec.n_ctx or self._model.n_ctx_train):
            log.warning(
                "n_ctx: %d asked, %d KV cells made: libllama rounds each slot up to a multiple of 256",
                spec.n_ctx,
                self._context.n_ctx,
                extra={"model_id": spec.id},
            )
        if template is not None and self._chat.engine is None:
            log.warning(
                "the chat template cannot be used, /v1/chat/completions will answer 400: %s",
                self._chat.problem,
                extra={"model_id": spec.id},
            )
        self._described = LoadedModel(
            id=spec.id,
            name=spec.name or spec.id,
            path=str(spec.path),
            description=self._model.describe(),
            n_params=self._model.n_params,
            n_vocab=self.n_vocab,
            n_ctx=self._context.n_ctx,
            n_ctx_slot=self.n_ctx_slot,
            n_ctx_train=self._model.n_ctx_train,
            n_slots=self.n_slots,
            n_batch=self.n_batch,
            n_threads=self._context.n_threads,
            chat_template=template,
            bos_piece=bos,
            eos_piece=eos,
            loaded_at=time.time(),
            chat_template_engine=self._chat.engine,
            n_embd=self._context.n_embd,
            pooling=self.pooling,
            shows_tools=self._chat.tools.shows_tools,
            shows_tool_calls=self._chat.tools.call_form is not None,
            tool_call_format=self._chat.tools.format,
        )

    def _special_piece(self, token: int) -> str:
        return "" if token < 0 else self._vocab.piece(token, special=True).decode("utf-8", "replace")

    def describe(self) -> LoadedModel:
        return self._described

    # -- the engine thread

    def decode(self, spans: Sequence[Span]) -> None:
        self._context.decode(spans)

    @property
    def waited_s(self) -> float:
        return self._context.waited_s

    def sampler(self, params: SamplingParams, seed: int, history: Sequence[int], constraint: Constraint | None = None) -> Sampler:
        return SamplerChain(
            self._lib,
            self._vocab,
            params,
            seed=seed,
            n_ctx_slot=self.n_ctx_slot,
            history=history,
            constraint=constraint,
            candidates=self._all_candidates,
        )

    def _all_candidates(self) -> Candidates:
        if self._candidates is None:
            self._candidates = Candidates(self._lib, self.n_vocab)
        return self._candidates

    def sample(self, wanted: Sequence[tuple[Sampler, int]]) -> list[int]:
        context, row = self._context, self._context.row
        tokens = []
        for chain, span in wanted:
            assert isinstance(chain, SamplerChain)
            token = chain.sample(context, row(span))
            tokens.append(NO_TOKEN if token is None else token)
        return tokens

    def logprobs(self, wanted: Sequence[Scored]) -> list[TokenLogprob]:
        if self._likelihoods is None:
            self._likelihoods = Likelihoods(self._lib, self._all_candidates())
        piece, row = self.piece, self._context.row
        found = []
        for scored in wanted:
            logprob, top = self._likelihoods.of(self._context, row(scored.span, scored.row), scored.token, scored.n_top)
            found.append(TokenLogprob(piece(scored.token), logprob, tuple((piece(token), value) for token, value in top)))
        return found

    def vectors(self, slots: Sequence[int]) -> list[array[float]]:
        return [self._context.vector(slot) for slot in slots]

    def forget(self, slot: int) -> None:
        self._context.forget(slot)

    def truncate(self, slot: int, n_tokens: int) -> bool:
        return self._context.truncate(slot, n_tokens)

    def copy(self, source: int, target: int) -> None:
        self._context.copy(source, target)

    def is_copying(self, slot: int) -> bool:
        return self._context.is_copying(slot)

    def restore(self, slot: int, state: bytearray) -> bool:
        return self._context.restore(slot, state)

    def saved_bytes(self, slot: int) -> int:
        return self._context.saved_bytes(slot)

    def save(self, slot: int) -> bytearray:
        return self._context.save(slot)

    def n_past(self, slot: int) -> int:
        return self._context.n_past(slot)

    def piece_or_eog(self, token: int, *, markers: bool = False) -> bytes | None:
        if markers and token in self._markers:
            return self._markers[token]
        return None if token == NO_TOKEN else self._vocab.piece_or_eog(token)

    def piece(self, token: int) -> bytes:
        return self._vocab.piece(token, special=True)

    def close(self) -> None:
        if self._likelihoods is not None:
            self._likelihoods.close()
        self._context.close()
        self._model.close()
        self._backend.ring.hush(self, False)

    # -- any thread

    def set_abort(self, on: bool) -> None:
        self._backend.ring.hush(self, on)
        self._context.set_abort(on)

    # -- the tokenize threads

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return self._vocab.tokenize(text, add_special=add_special, parse_special=parse_special)

    def longest_piece(self) -> int:
        return self._vocab.longest_piece()

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        return self._vocab.detokenize(tokens)

    def render_chat(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> str:
        return self._chat.render(messages, tools)

    def prepare(self, params: SamplingParams, *, constrained: bool = False) -> None:
        """Check what the request names in the vocabulary, and look up what its chain will need."""
        self._vocab.check([token for token, _ in params.logit_bias], "logit_bias")
        if params.ignore_eos:
            self._vocab.eog_tokens()
        if constrained:
            self._vocab.sorted_pieces()
            self._vocab.eog_tokens()

    def check_tokens(self, tokens: Sequence[int]) -> None:
        self._vocab.check(tokens, "prompt")
