"""Sampling under a grammar on the real libllama, with a model that knows nothing of JSON: the grammar alone makes it so."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

from modeld.engine import constraint
from modeld.engine.constraint import CompiledGrammar, GrammarConstraint
from modeld.engine.grammar import MAX_GRAMMAR_BYTES, gbnf_of
from modeld.llm.adapter import NO_TOKEN, Selection, Span
from modeld.llm.runtime import LlamaRuntime
from modeld.types import JsonSchema, ModelSpec, SamplingParams
from tests.json_schema import follows

STORIES = ModelSpec(
    id="demo-stories", path=Path(__file__).resolve().parents[2] / "models" / "demo-stories.gguf", n_ctx=2048, n_parallel=2
)


@pytest.fixture
def runtime() -> Iterator[LlamaRuntime]:
    runtime = LlamaRuntime(STORIES, lambda step, pct: True)
    yield runtime
    runtime.close()


def generate(
    runtime: LlamaRuntime,
    grammar: str | CompiledGrammar | None,
    *,
    n: int = 500,
    seed: int = 1,
    prompt: str = "One day",
    **params,
) -> tuple[str, bool]:
    """The text, and whether it came to its end by itself."""
    follows_it = None if grammar is None else begin(grammar)
    sampling = SamplingParams(**params)
    tokens = runtime.tokenize(prompt, add_special=True, parse_special=True)
    runtime.prepare(sampling, constrained=grammar is not None)
    chain = runtime.sampler(sampling, seed, tokens, follows_it)
    pieces: list[bytes] = []
    try:
        span = Span(0, 0, tokens, True)
        for _ in range(n):
            runtime.decode([span])
            (token,) = runtime.sample([(chain, 0)])
            piece = runtime.piece_or_eog(token)
            if piece is None:
                return b"".join(pieces).decode(), True
            pieces.append(piece)
            span = Span(0, runtime.n_past(0), [token], True)
        return b"".join(pieces).decode("utf-8", "ignore"), False
    finally:
        chain.close()
        runtime.forget(0)


def begin(grammar: str | CompiledGrammar) -> GrammarConstraint:
    return (CompiledGrammar(grammar, max_bytes=MAX_GRAMMAR_BYTES) if isinstance(grammar, str) else grammar).begin()


def test_one_of_two_words(runtime):
    assert {generate(runtime, 'root ::= "yes" | "no"', temperature=2, seed=seed, min_p=0, top_k=0) for seed in range(20)} == {
        ("yes", True),
        ("no", True),
    }


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 3, "maxLength": 30},
        "age": {"type": "integer"},
        "size": {"type": "number"},
        "tags": {"type": "array", "items": {"enum": ["a", 'b"\\']}, "minItems": 1, "maxItems": 3},
        "next": {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}]},
        "long": {"type": "string", "minLength": 110, "maxLength": 230},
    },
    "required": ["name", "tags", "next", "long"],
}


@pytest.mark.parametrize("seed", range(30))
def test_answers_follow_their_schema_at_any_temperature(runtime, seed):
    grammar = gbnf_of(JsonSchema(SCHEMA, "json_schema"))
    text, ended = generate(runtime, grammar, temperature=1, seed=seed, repeat_penalty=1.1 if seed % 3 == 0 else 1.0)
    assert ended, text
    assert follows(json.loads(text), SCHEMA) is None


def test_any_json_object_is_json_where_it_ends(runtime):
    grammar = gbnf_of(JsonSchema({"type": "object"}, "response_format"))
    texts = [generate(runtime, grammar, temperature=1, seed=seed, n=300) for seed in range(10)]
    assert all(text.startswith("{") for text, _ in texts)
    assert all(isinstance(json.loads(text), dict) for text, ended in texts if ended)


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0},
        {"temperature": 0.8},
        {"temperature": 0.8, "repeat_penalty": 1.2},
        {"temperature": 0, "presence_penalty": 1.0},
    ],
    ids=str,
)
def test_a_grammar_that_allows_everything_changes_nothing(runtime, params):
    assert generate(runtime, "root ::= .*", n=100, **params) == generate(runtime, None, n=100, **params)


def test_penalties_and_a_grammar_go_together(runtime):
    text, ended = generate(runtime, "root ::= [0-9]{8} .{4}", temperature=0, n=40, presence_penalty=0.5, prompt="One day")
    assert ended
    assert text[:8].isdigit()


def test_the_end_of_the_grammar_ends_a_request_that_ignores_eos(runtime):
    assert generate(runtime, 'root ::= "no"', ignore_eos=True) == ("no", True)
    assert generate(runtime, 'root ::= "no"', ignore_eos=True, temperature=0) == ("no", True)


def test_a_grammar_whose_only_token_is_forbidden_ends_the_request(runtime):
    tokens = [token for token in range(runtime.n_vocab) if (runtime.piece_or_eog(token) or b"").startswith(b"Q")]
    bias = tuple((token, float("-inf")) for token in tokens)
    assert generate(runtime, 'root ::= "Q"+', logit_bias=bias) == ("", True)
    assert runtime.piece_or_eog(NO_TOKEN) is None


def test_bytes_of_a_character_follow_the_grammar_too(runtime):
    text, ended = generate(runtime, "root ::= [\U0001f600-\U0001f64f]{3} [日-本]", n=40)
    assert ended
    assert len(text) == 4


def test_seeds_repeat(runtime):
    compiled = CompiledGrammar(gbnf_of(JsonSchema({"type": "object"}, "p")))
    texts = [generate(runtime, compiled, seed=seed, n=80, temperature=1.5) for seed in (1, 2, 1, 2)]
    assert texts[:2] == texts[2:]
    assert texts[0] != texts[1]


def test_a_grammar_goes_with_penalties_bias_and_ignored_eos(runtime):
    """A bias against one of the allowed, penalties on what came, and an end only where nothing else may follow."""
    (a,) = runtime.tokenize("a", add_special=False, parse_special=False)[-1:]
    text, ended = generate(
        runtime,
        "root ::= [a-d]{12}",
        temperature=1,
        n=40,
        ignore_eos=True,
        logit_bias=((a, float("-inf")),),
        presence_penalty=2.0,
        repeat_penalty=1.3,
        top_k=0,
        min_p=0.0,
    )
    assert ended
    assert len(text) == 12
    assert set(text) <= set("abcd")
    assert len(set(text)) > 1


def test_a_grammar_with_too_many_readings_ends_its_answer_with_the_reason(runtime):
    optional = '("o"? ' + '"o"? ' * 9 + "){600}"
    answer = CompiledGrammar('root ::= "N" ' + optional).begin()
    sampling = SamplingParams(temperature=0)
    tokens = runtime.tokenize("One day", add_special=True, parse_special=True)
    runtime.prepare(sampling, constrained=True)
    chain = runtime.sampler(sampling, 1, tokens, answer)
    runtime.decode([Span(0, 0, tokens, True)])
    assert runtime.sample([(chain, 0)]) == [NO_TOKEN]
    assert answer.problem is not None
    chain.close()
    runtime.forget(0)


def test_control_tokens_never_come_under_a_grammar(runtime):
    controls = [token for token in range(runtime.n_vocab) if runtime.piece_or_eog(token) == b""]
    bias = tuple((token, 100.0) for token in controls)
    assert controls
    text, _ = generate(runtime, "root ::= .{20}", n=30, logit_bias=bias, temperature=0)
    assert len(text) == 20


def test_few_and_many_allowed_are_sampled_alike(runtime, monkeypatch):
    """The same answers whether the allowed tokens are given to the chain or the others are ruled out."""
    grammar = "root ::= [a-z ]{30}"
    few = [generate(runtime, grammar, seed=seed, temperature=1, n=40) for seed in range(5)]
    whole = constraint._selection

    def others(spans, pieces):
        selection = whole(spans, pieces)
        tokens = set(pieces.tokens) - set(selection.tokens)
        return Selection(array("i", sorted(tokens)), are_allowed=not selection.are_allowed)

    monkeypatch.setattr(constraint, "_selection", others)
    assert [generate(runtime, grammar, seed=seed, temperature=1, n=40) for seed in range(5)] == few
