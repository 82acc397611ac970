"""How are many prompts answered by a real GGUF file? Through modeld's own binding, all slots of a LlamaRuntime at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from modeld.llm.adapter import Sampler, Span
from modeld.llm.runtime import LlamaRuntime
from modeld.types import ChatMessage, ModelSpec, SamplingParams

GREEDY = SamplingParams(temperature=0)
N_SLOTS = 8
N_CTX_SLOT = 512  # what demo-calc was trained for, and more than a request and a story need


@dataclass(frozen=True, slots=True)
class Answer:
    """Generated text, and whether the model ended it by itself (False: max_tokens did)."""

    text: str
    ended: bool


@dataclass(slots=True)
class _Active:
    """A prompt that occupies a slot."""

    index: int
    chain: Sampler
    pending: list[int]  # tokens that the next decode takes
    n_past: int = 0
    pieces: list[bytes] = field(default_factory=list)


@contextmanager
def open_runtime(path: Path) -> Iterator[LlamaRuntime]:
    """The model of a GGUF file with N_SLOTS slots of N_CTX_SLOT positions."""
    spec = ModelSpec(id=path.stem, path=path, n_ctx=N_SLOTS * N_CTX_SLOT, n_parallel=N_SLOTS)
    runtime = LlamaRuntime(spec, lambda _step, _pct: True)
    try:
        yield runtime
    finally:
        runtime.close()


def raw_prompt(runtime: LlamaRuntime, text: str) -> list[int]:
    """Token ids of text as /v1/completions makes them."""
    return runtime.tokenize(text, add_special=True, parse_special=True)


def chat_prompt(runtime: LlamaRuntime, *contents: str, system: str | None = None) -> list[int]:
    """Token ids of a conversation (user, assistant, user, ...) as /v1/chat/completions makes them."""
    messages = [ChatMessage("system", system)] if system is not None else []
    messages += [ChatMessage(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)]
    return raw_prompt(runtime, runtime.render_chat(messages))


def answer_all(
    runtime: LlamaRuntime, prompts: Sequence[Sequence[int]], params: SamplingParams, *, max_tokens: int, seed: int = 0
) -> list[Answer]:
    """An answer for each prompt, in order. Prompt i samples with seed + i, so a sample does not depend on its neighbours."""
    answers: dict[int, Answer] = {}
    waiting = list(enumerate(prompts))[::-1]
    slots: dict[int, _Active] = {}
    while waiting or slots:
        for slot in range(runtime.n_slots):
            if slot not in slots and waiting:
                index, prompt = waiting.pop()
                slots[slot] = _Active(index, runtime.sampler(params, seed + index, prompt), list(prompt))
        # Rising slots: llama.cpp splits a batch into runs of rising sequence ids.
        order = sorted(slots)
        runtime.decode([Span(slot, slots[slot].n_past, slots[slot].pending, output=True) for slot in order])
        tokens = runtime.sample([(slots[slot].chain, row) for row, slot in enumerate(order)])
        for slot, token in zip(order, tokens, strict=True):
            active = slots[slot]
            active.n_past += len(active.pending)
            active.pending = [token]
            piece = runtime.piece_or_eog(token)
            if piece is not None:
                active.pieces.append(piece)
            if piece is None or len(active.pieces) >= max_tokens:
                answers[active.index] = Answer(b"".join(active.pieces).decode(errors="replace"), ended=piece is None)
                active.chain.close()
                runtime.forget(slot)
                del slots[slot]
    return [answers[index] for index in range(len(prompts))]
