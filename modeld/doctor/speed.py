"""How fast does it compute here? A real decode of the small reference model: prompt and generation, in tokens a second."""

from __future__ import annotations

import logging
import os
import time
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from modeld.doctor.apart import Answer
from modeld.doctor.report import Fact, Finding, ok, problem, size, warning
from modeld.types import ModelSpec

if TYPE_CHECKING:
    from modeld.llm.context import Context
    from modeld.llm.model import Model

QUESTION, RIGHT = "12+30=", "42"  # which models/README.md's demo-calc knows
N_CTX = 512
N_PROMPT = 448  # rows of one decode of the prompt phase
N_SHORT = 32  # tried first: on a host that is busy elsewhere, 448 rows took half a minute (2 cores, load 10)
MEASURE_S = 0.7  # of each figure
SLOWED = 0.7  # of what one thread does: with all of them it should be more
GIVING_WAY = 19  # the niceness beside a daemon


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second; `said` is what the model answers to QUESTION."""

    model: str
    size_bytes: int
    n_threads: int
    prompt: float
    generation: float
    prompt_alone: float  # the prompt phase on one thread, which waits for no other
    first_ms: float  # from the file to the first token
    said: str


def measure(variant: str, n_threads: int, pinning: str, *, give_way: bool) -> Speed:
    """In a process that ends with it: its main thread is bound to a core afterwards. `variant`: of the library, which was tried.

    `give_way`: beside a daemon, take the cores only where that leaves them, and be the first to go when memory is short.
    """
    from modeld.llm.backend import open_backend
    from modeld.llm.context import Context
    from modeld.llm.model import Model
    from modeld.llm.reference import stored
    from modeld.llm.trial import settle
    from modeld.llm.variants import trusted

    if give_way:
        settle(os.getppid(), None)
        os.nice(GIVING_WAY)  # at most 19 in all
    logging.disable(logging.WARNING)
    backend = open_backend(trusted(variant))
    with stored() as reference:
        begin = time.monotonic()
        spec = ModelSpec(
            id="reference",
            path=reference.model,
            n_ctx=N_CTX,
            n_parallel=1,
            n_batch=N_CTX,
            n_ubatch=N_CTX,
            n_threads=n_threads,
            cpu_pinning=pinning,
            n_gpu_layers=0,
        )
        model = Model(backend, spec, lambda _pct: True)
        load_s = time.monotonic() - begin
        rows = (model.vocab.tokenize(QUESTION, add_special=True, parse_special=False) * N_PROMPT)[:N_PROMPT]
        # First, since threads that are bound to cores bind the one that calls, too.
        with closing(Context(backend, model, replace(spec, n_threads=1, cpu_pinning="off"))) as alone:
            reading_alone = _reading(alone, rows)
        begin = time.monotonic() - load_s
        context = Context(backend, model, spec)
        prompt = model.vocab.tokenize(QUESTION, add_special=True, parse_special=False)
        answer = [_likeliest(model, context, prompt, 0)]
        first_ms = (time.monotonic() - begin) * 1000
        while answer[-1] not in model.vocab.eog_tokens() and len(answer) < 8:
            answer.append(_likeliest(model, context, answer[-1:], len(prompt) + len(answer) - 1))
        said = model.vocab.detokenize([token for token in answer if token not in model.vocab.eog_tokens()])
        reading, generating = _reading(context, rows), _generating(context, rows)
        n_bytes = os.stat(reference.model).st_size  # noqa: PTH116 - /proc/self/fd/N, which is looked through
        found = Speed(
            reference.name,
            n_bytes,
            context.n_threads,
            reading,
            generating,
            reading_alone,
            first_ms,
            said.decode("utf-8", "replace"),
        )
        context.close()
        model.close()
    return found


def _likeliest(model: Model, context: Context, tokens: list[int], pos: int) -> int:
    from modeld.llm.adapter import Span
    from modeld.llm.backend import backend

    context.decode([Span(0, pos, tuple(tokens), output=True)])
    logits = backend().lib.llama_get_logits_ith(context, context.row(0))[: model.vocab.n_tokens]
    return max(range(len(logits)), key=logits.__getitem__)


def _reading(context: Context, rows: list[int]) -> float:
    """Prompts of N_PROMPT tokens, one decode each; of N_SHORT where these take long."""
    from modeld.llm.adapter import Span

    n, size, begin = 0, N_SHORT, time.monotonic()
    while (took := time.monotonic() - begin) < MEASURE_S or not n:
        context.forget(0)
        context.decode([Span(0, 0, tuple(rows[:size]), output=True)])
        n += size
        if size < N_PROMPT and time.monotonic() - begin < MEASURE_S / 10:
            n, size, begin = 0, N_PROMPT, time.monotonic()
    return n / took


def _generating(context: Context, rows: list[int]) -> float:
    """One token a decode, behind a short beginning; which token it is makes no difference to the time."""
    from modeld.llm.adapter import Span

    n, pos, begin = 0, N_CTX, time.monotonic()
    while (took := time.monotonic() - begin) < MEASURE_S or not n:
        if pos >= N_CTX:
            context.forget(0)
            pos = 0
        context.decode([Span(0, pos, (rows[pos % len(rows)],), output=True)])
        n, pos = n + 1, pos + 1
    return n / took


def measured(answer: Answer[Speed], *, give_way: bool) -> list[Finding]:
    """What became of measure(). Pure."""
    speed = answer.value
    if speed is None:
        said = f" ({answer.said})" if answer.said else ""
        advice = "see what is said of the library above; where it only took too long, other programs compute on all cores"
        found = f"a decode of the small reference model {answer.failure}{said}"
        return [problem("decode_failed", found, advice, signal=answer.signal, hung=answer.hung)]
    text = (
        f"{speed.model} ({size(speed.size_bytes)}) with {speed.n_threads} threads: {speed.prompt:.0f} tokens/s of prompt, "
        f"{speed.generation:.0f} of generation for one request; first token {speed.first_ms:.0f} ms after the file was opened; "
        f"{QUESTION}{speed.said}"
    )
    facts: dict[str, Fact] = {
        "model": speed.model,
        "n_threads": speed.n_threads,
        "prompt_tokens_per_s": round(speed.prompt, 1),
        "generation_tokens_per_s": round(speed.generation, 1),
        "prompt_tokens_per_s_one_thread": round(speed.prompt_alone, 1),
        "first_token_ms": round(speed.first_ms, 1),
        "gave_way": give_way,
    }
    if speed.said != RIGHT:
        advice = "the library computes wrong here: build it anew (docs/building.md)"
        return [problem("decode_wrong", f"{text}, which is not {RIGHT}", advice, more=facts)]
    findings = [ok("decode", text + (", at the lowest priority, since a daemon runs" if give_way else ""), more=facts)]
    if speed.n_threads > 1 and speed.prompt < SLOWED * speed.prompt_alone and not give_way:
        findings.append(
            warning(
                "decode_contended",
                f"one thread alone reads {speed.prompt_alone:.0f} tokens/s, {speed.n_threads} threads {speed.prompt:.0f}: "
                "they wait for each other because something else computes on the same cores",
                "give the daemon cores of its own (AllowedCPUs=, --cpuset-cpus), or set n_threads to what the others leave",
            )
        )
    return findings
