"""What may come next over a whole vocabulary: the walk finds what one look at each piece finds, and ends in time."""

from __future__ import annotations

import random
from array import array

import pytest

from modeld.engine import constraint as constraint_module
from modeld.engine.constraint import CompiledGrammar, GrammarConstraint
from modeld.engine.grammar import gbnf_of
from modeld.errors import InvalidRequest
from modeld.llm.pieces import SortedPieces
from modeld.types import JsonSchema
from tests.random_gbnf import random_grammar, walk

BITS = [
    "a",
    "b",
    "ab",
    " ",
    "the",
    "é",
    "日本",
    "\n",
    '"',
    "\\",
    "\\u",
    "{",
    "}",
    '":',
    ", ",
    "0",
    "12",
    "x" * 40,
    "\x00",
    "\U0001f600",
]


def vocabulary(chance: random.Random, n: int) -> SortedPieces:
    """Pieces as vocabularies have them: all bytes, words, cut characters, some twice, some empty."""
    texts = [bytes([byte]) for byte in range(256)]
    while len(texts) < n:
        text = "".join(chance.choices(BITS, k=chance.randint(1, 5))).encode()
        texts.append(text[: chance.randint(1, len(text))] if chance.random() < 0.1 else text)
    texts += [b"", b"", texts[300]]
    chance.shuffle(texts)
    return SortedPieces((text, token) for token, text in enumerate(texts))


def allowed(constraint: GrammarConstraint, pieces: SortedPieces) -> set[int]:
    selection = constraint.selection(pieces)
    assert list(selection.tokens) == sorted(selection.tokens)
    return set(selection.tokens) if selection.are_allowed else set(pieces.tokens) - set(selection.tokens)


def one_by_one(constraint: GrammarConstraint, pieces: SortedPieces) -> set[int]:
    return {token for text, token in zip(pieces.texts, pieces.tokens, strict=True) if constraint.allows(text)}


@pytest.mark.parametrize("seed", range(40))
def test_the_walk_finds_what_one_look_at_each_piece_finds(seed):
    chance = random.Random(seed)
    pieces = vocabulary(chance, 2000)
    schema: object = {"type": "object"} if seed % 4 else {"properties": {"a": {"maxLength": 12}}, "required": ["a"]}
    grammar = random_grammar(chance) if seed % 2 else gbnf_of(JsonSchema(schema, "p"))
    compiled = CompiledGrammar(grammar)
    for _ in range(6):
        document = walk(grammar, chance, deep=5).encode()
        constraint = compiled.begin()
        constraint.accept(document[: chance.randint(0, len(document))])  # also within a character
        assert allowed(constraint, pieces) == one_by_one(constraint, pieces), (grammar, document)


@pytest.mark.parametrize(
    "grammar", ["root ::= .*", "root ::= [^\\n]{3,30}", 'root ::= "\\"" ([^"\\\\] | "\\\\" .)* "\\""', "root ::= [a-z]{1,5}"]
)
def test_the_walk_over_loops_and_counted_characters(grammar):
    pieces = vocabulary(random.Random(7), 6000)
    constraint = CompiledGrammar(grammar).begin()
    for piece in (b"", b'"', b"ab", "é".encode()[:1], "é".encode()[1:], b"aaaa"):
        if constraint.allows(piece):
            constraint.accept(piece)
        assert allowed(constraint, pieces) == one_by_one(constraint, pieces)


def test_nothing_empty_is_ever_allowed():
    pieces = vocabulary(random.Random(7), 400)
    constraint = CompiledGrammar("root ::= .*").begin()
    assert not constraint.allows(b"")
    assert allowed(constraint, pieces).isdisjoint(pieces.others)
    assert len(pieces.others) == 2


def test_answers_in_one_grammar_do_not_meet():
    compiled = CompiledGrammar('root ::= "a" "b" | "c"')
    one, other = compiled.begin(), compiled.begin()
    one.accept(b"a")
    assert one.allows(b"b")
    assert not other.allows(b"b")
    other.accept(b"c")
    assert (one.may_end, other.may_end) == (False, True)


def test_a_choice_is_found_once_for_a_state():
    pieces = vocabulary(random.Random(7), 400)
    compiled = CompiledGrammar("root ::= [a-z]*")
    one, other = compiled.begin(), compiled.begin()
    one.accept(b"abc")
    other.accept(b"x")
    assert one.selection(pieces) is other.selection(pieces)
    counted = CompiledGrammar("root ::= [a-z]{100}")
    for n in range(100):
        constraint = counted.begin()
        constraint.accept(b"a" * n)
        constraint.selection(pieces)
    assert len(counted._selections) == constraint_module.N_SELECTIONS_KEPT


def test_what_takes_too_long_ends_one_answer_with_its_reason(monkeypatch):
    pieces = vocabulary(random.Random(7), 3000)
    compiled = CompiledGrammar("root ::= [a-z]* | [b-y]*")
    other = compiled.begin()
    other.accept(b"a")
    monkeypatch.setattr(constraint_module, "MAX_STEP_S", -1.0)
    constraint = compiled.begin()
    assert constraint.selection(pieces).tokens == array("i")
    assert isinstance(constraint.problem, InvalidRequest)
    assert constraint.problem.message == "the answer cannot go on: the grammar takes too long for one token"
    assert constraint.problem.param == "grammar"
    assert not constraint.may_end
    assert not constraint.allows(b"a")
    assert other.problem is None


def test_too_many_readings_end_one_answer_or_refuse_the_grammar():
    optional = 'root ::= "x" (' + '"x"? ' * 10 + "){600}"
    constraint = CompiledGrammar('root ::= "y" | ' + optional.partition("::= ")[2]).begin()
    assert not constraint.allows(b"x")
    assert constraint.problem is not None
    assert "more than 4000 ways at once" in constraint.problem.message
    with pytest.raises(InvalidRequest, match="more than 4000 ways at once") as caught:
        CompiledGrammar("root ::= (" + '"x"? ' * 10 + "){600}", param="response_format")
    assert caught.value.param == "response_format"
