"""The binding on the real libllama with a real model: load, progress, cancel, codes, samplers, text."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modeld.errors import InvalidRequest, LoadFailed, OpCancelled
from modeld.llm.adapter import DecodeAborted, DecodeInvalid, Span
from modeld.llm.handles import open_handles
from modeld.llm.runtime import LlamaRuntime
from modeld.threads import BIG_STACK_BYTES, start_thread
from modeld.types import ChatMessage, ModelSpec, SamplingParams, Step

MODELS = Path(__file__).resolve().parents[2] / "models"
CALC = ModelSpec(id="demo-calc", path=MODELS / "demo-calc.gguf", n_ctx=1024, n_parallel=4, n_batch=256)
GREEDY = SamplingParams(temperature=0)


@pytest.fixture
def runtime() -> Iterator[LlamaRuntime]:
    runtime = LlamaRuntime(CALC, lambda step, pct: True)
    yield runtime
    runtime.close()


def test_characters_that_the_vocabulary_lacks_cost_no_more_the_more_of_them_there_are(runtime: LlamaRuntime):
    """Upstream copies all tokens for each of them (cmake/TokenizerMend.cmake): 4 times the text took 39 times the time."""
    took_s = []
    for n in (62_500, 250_000):
        began = time.perf_counter()
        tokens = runtime.tokenize("\U0001f600" * n, add_special=False, parse_special=False)
        took_s.append(time.perf_counter() - began)
        assert runtime.detokenize(tokens).decode().strip() == "\U0001f600" * n
    assert took_s[1] < 12 * took_s[0] + 1


def generate(
    runtime: LlamaRuntime, prompt: str, n: int, params: SamplingParams = GREEDY, *, slot: int = 0, seed: int = 1
) -> list[int]:
    """`n` tokens of one sequence alone."""
    tokens = runtime.tokenize(prompt, add_special=True, parse_special=True)
    chain = runtime.sampler(params, seed, tokens)
    try:
        span, generated = Span(slot, 0, tokens, True), list[int]()
        for _ in range(n):
            runtime.decode([span])
            generated += runtime.sample([(chain, 0)])
            span = Span(slot, runtime.n_past(slot), generated[-1:], True)
        return generated
    finally:
        chain.close()
        runtime.forget(slot)


def text(runtime: LlamaRuntime, tokens: list[int]) -> str:
    return b"".join(piece for token in tokens if (piece := runtime.piece_or_eog(token)) is not None).decode()


def test_load_reports_whole_rising_percents_that_end_with_100() -> None:
    told: list[tuple[Step, int]] = []
    LlamaRuntime(CALC, lambda step, pct: told.append((step, pct)) or True).close()  # type: ignore[func-returns-value]
    assert {step for step, _ in told} == {Step.MMAP}
    percents = [pct for _, pct in told]
    assert percents == sorted(set(percents))
    assert percents[-1] == 100
    assert not open_handles()


def test_a_load_is_cancelled_from_its_progress() -> None:
    with pytest.raises(OpCancelled, match="cancelled at"):
        LlamaRuntime(CALC, lambda step, pct: False)
    assert not open_handles()


def test_an_exception_in_the_progress_comes_out_of_the_load() -> None:
    def boom(step: Step, pct: int) -> bool:
        raise ZeroDivisionError("in the callback")

    with pytest.raises(ZeroDivisionError, match="in the callback"):
        LlamaRuntime(CALC, boom)
    assert not open_handles()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"", "magic|gguf|file"),
        (b"hello, I am a text file\n" * 100, "magic"),
        ((MODELS / "demo-calc.gguf").read_bytes()[:100_000], "."),
        ((MODELS / "demo-calc.gguf").read_bytes()[:-1000], "not within the file bounds|bounds|truncated|incomplete"),
    ],
    ids=["missing", "empty", "text", "cut in the head", "cut in the weights"],
)
def test_a_bad_file_is_refused_in_libllamas_words(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "bad.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LoadFailed, match=reason) as caught:
        LlamaRuntime(ModelSpec(id="bad", path=path), lambda step, pct: True)
    assert str(path) in str(caught.value)
    assert not open_handles()


def test_what_the_library_says_about_the_model(runtime: LlamaRuntime) -> None:
    about = runtime.describe()
    assert (about.n_ctx, about.n_ctx_slot, about.n_slots, about.n_batch) == (1024, 256, 4, 256)
    assert about.n_vocab > 256
    assert 1_000_000 < about.n_params < 4_000_000
    assert about.n_ctx_train >= 256
    assert about.chat_template is not None


def test_too_many_slots_are_refused() -> None:
    with pytest.raises(LoadFailed, match="100000 slots"):
        LlamaRuntime(ModelSpec(id="x", path=CALC.path, n_parallel=100_000), lambda step, pct: True)


def test_greedy_tokens_of_one_sequence_alone_equal_those_inside_a_full_batch(runtime: LlamaRuntime) -> None:
    prompts = ["12+30=", "99+99=", "7+5=", "40+2="]
    alone = [generate(runtime, prompt, 4, slot=slot) for slot, prompt in enumerate(prompts)]

    tokens = [runtime.tokenize(prompt, add_special=True, parse_special=True) for prompt in prompts]
    chains = [runtime.sampler(GREEDY, 0, prompt) for prompt in tokens]
    together: list[list[int]] = [[] for _ in prompts]
    spans = [Span(slot, 0, prompt, True) for slot, prompt in enumerate(tokens)]
    for _ in range(4):
        runtime.decode(spans)
        for slot, token in enumerate(runtime.sample([(chain, i) for i, chain in enumerate(chains)])):
            together[slot].append(token)
        spans = [Span(slot, runtime.n_past(slot), generated[-1:], True) for slot, generated in enumerate(together)]
    for chain in chains:
        chain.close()
    assert together == alone
    assert text(runtime, alone[0][:3]) == "42"


def test_a_prompt_in_pieces_gives_what_it_gives_in_one(runtime: LlamaRuntime) -> None:
    prompt = runtime.tokenize("1+2= " * 20, add_special=True, parse_special=True)
    results = []
    for pieces in ([prompt], [prompt[:33], prompt[33:34], prompt[34:]]):
        chain = runtime.sampler(GREEDY, 0, prompt)
        for i, piece in enumerate(pieces):
            runtime.decode([Span(1, runtime.n_past(1), piece, i == len(pieces) - 1)])
        results.append(runtime.sample([(chain, 0)]))
        chain.close()
        runtime.forget(1)
        assert runtime.n_past(1) == 0
    assert results[0] == results[1]


def test_too_many_rows_are_refused_before_libllama_aborts(runtime: LlamaRuntime) -> None:
    with pytest.raises(DecodeInvalid, match="257 or more rows"):
        runtime.decode([Span(0, 0, [1] * 257, True)])
    assert generate(runtime, "1+1=", 1)


def test_an_invalid_batch_raises_and_leaves_the_cache_as_it_was(runtime: LlamaRuntime) -> None:
    runtime.decode([Span(0, 0, [1, 2, 3], True)])
    with pytest.raises(DecodeInvalid):
        runtime.decode([Span(0, 9, [1], True)])  # a hole in the positions
    with pytest.raises(DecodeInvalid):
        runtime.decode([Span(0, 3, [10**6], True)])  # a token outside the vocabulary
    assert runtime.n_past(0) == 3
    runtime.forget(0)


def test_the_abort_flag_ends_a_decode_and_can_be_armed_again(runtime: LlamaRuntime) -> None:
    runtime.set_abort(True)
    with pytest.raises(DecodeAborted):
        runtime.decode([Span(0, 0, [1] * 200, True)])
    runtime.forget(0)
    runtime.set_abort(False)
    assert text(runtime, generate(runtime, "20+22=", 2)) == "42"


def test_seeds_repeat_and_differ(runtime: LlamaRuntime) -> None:
    hot = SamplingParams(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, ignore_eos=True)
    first, again, other = (generate(runtime, "1", 24, hot, seed=seed) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_ignore_eos_never_ends(runtime: LlamaRuntime) -> None:
    tokens = generate(runtime, "12+30=", 30, SamplingParams(temperature=0, ignore_eos=True))
    assert all(runtime.piece_or_eog(token) is not None for token in tokens)


def test_logit_bias_forbids_and_forces(runtime: LlamaRuntime) -> None:
    (four,) = runtime.tokenize("4", add_special=False, parse_special=False)
    (nine,) = runtime.tokenize("9", add_special=False, parse_special=False)
    assert generate(runtime, "12+30=", 1) == [four]
    assert generate(runtime, "12+30=", 1, SamplingParams(temperature=0, logit_bias=((four, -100.0),))) != [four]
    assert generate(runtime, "12+30=", 1, SamplingParams(temperature=0, logit_bias=((nine, 100.0),))) == [nine]


def test_penalties_look_back_on_the_prompt(runtime: LlamaRuntime) -> None:
    (four,) = runtime.tokenize("4", add_special=False, parse_special=False)
    harsh = SamplingParams(temperature=0, presence_penalty=100.0)
    assert generate(runtime, "14+28=", 1) == [four]
    assert generate(runtime, "14+28=", 1, harsh) != [four]
    assert generate(runtime, "14+28=", 1, SamplingParams(temperature=0, presence_penalty=100.0, repeat_last_n=3)) == [four]


@pytest.mark.parametrize(
    "params", [SamplingParams(temperature=1, top_k=1), SamplingParams(temperature=1, top_p=0.0), SamplingParams(min_p=1.0)]
)
def test_narrow_samplers_are_greedy(runtime: LlamaRuntime, params: SamplingParams) -> None:
    assert text(runtime, generate(runtime, "12+30=", 2, params, seed=3)) == "42"


def test_the_longest_piece_bounds_every_token(runtime: LlamaRuntime) -> None:
    longest = runtime.longest_piece()
    assert 1 <= longest < 100
    assert max(len(runtime.detokenize([token])) for token in range(runtime.n_vocab)) == longest


def test_text_survives_tokens(runtime: LlamaRuntime) -> None:
    for sample in ("12+30=", "héllo wörld €5", "\n\t x", "日本", "a\U0001f600b"):
        tokens = runtime.tokenize(sample, add_special=False, parse_special=False)
        assert runtime.detokenize(tokens).decode() == sample
        assert b"".join(runtime.piece_or_eog(token) or b"" for token in tokens).decode() == sample


def test_ids_outside_the_vocabulary_are_refused(runtime: LlamaRuntime) -> None:
    for bad in (-1, runtime.n_vocab, 2**31 - 1):
        with pytest.raises(InvalidRequest, match="outside the vocabulary"):
            runtime.detokenize([bad])
        with pytest.raises(InvalidRequest, match="outside the vocabulary"):
            runtime.prepare(SamplingParams(logit_bias=((bad, 1.0),)))
        with pytest.raises(InvalidRequest, match="outside the vocabulary"):
            runtime.check_tokens([1, bad])


def test_messages_become_a_prompt_that_ends_where_the_assistant_begins(runtime: LlamaRuntime) -> None:
    prompt = runtime.render_chat([ChatMessage("system", "Be brief."), ChatMessage("user", "12+30=" * 500)])
    assert prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_an_unknown_template_is_a_clear_error() -> None:
    runtime = LlamaRuntime(ModelSpec(id="odd", path=CALC.path, chat_template="{{ nothing known }}"), lambda step, pct: True)
    try:
        with pytest.raises(InvalidRequest, match=r"not in llama\.cpp's list"):
            runtime.render_chat([ChatMessage("user", "x")])
    finally:
        runtime.close()


def test_a_long_run_of_one_letter_is_tokenized_on_a_big_stack(runtime: LlamaRuntime) -> None:
    lengths: list[int] = []
    thread = start_thread(
        "modeld-tokenize-test",
        lambda: lengths.append(len(runtime.tokenize("a" * 1_000_000, add_special=True, parse_special=True))),
        stack_bytes=BIG_STACK_BYTES,
    )
    thread.join()
    assert lengths
    assert lengths[0] > 1000


def test_handlers_keep_all_cores(runtime: LlamaRuntime) -> None:
    """The compute threads are bound; the thread that loaded the model, and what it starts, is not."""
    before = os.sched_getaffinity(0)
    seen: list[set[int]] = []

    def engine() -> None:
        generate(runtime, "1+1=", 1)
        seen.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=engine)
    thread.start()
    thread.join()
    assert os.sched_getaffinity(0) == before
    assert len(seen[0]) == 1, "the thread that decodes has a core of its own"
