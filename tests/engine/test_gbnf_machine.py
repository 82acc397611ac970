"""Which texts a grammar takes, byte by byte, and what bounds the way there."""

from __future__ import annotations

import itertools
import json
import random
import re
import time

import pytest

from modeld.engine import gbnf_machine
from modeld.engine.gbnf import parse_gbnf
from modeld.engine.gbnf_machine import GrammarTooCostly, Machine, State
from modeld.engine.grammar import gbnf_of
from modeld.types import JsonSchema
from tests.random_gbnf import random_grammar, walk


def machine_of(grammar: str) -> Machine:
    return Machine(parse_gbnf(grammar, max_bytes=10**6))


def behind(machine: Machine, text: str | bytes) -> State:
    state = machine.start
    for byte in text.encode() if isinstance(text, str) else text:
        state = state[machine.columns[byte]]
    return state


def takes(machine: Machine, text: str | bytes) -> bool:
    return behind(machine, text).may_end


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        ('root ::= "ab" | "a" "c"*', "ab|ac*"),
        ("root ::= [a-b]{2,3} [^a]", "[ab]{2,3}[^a]"),
        ('root ::= ("a"? "b"?){2}', "(a?b?){2}"),
        ('root ::= ("a"? "b"?)*', "(a?b?)*"),
        ('root ::= ("a"* "b"*)* "c"', "(a*b*)*c"),
        ('root ::= e a e\ne ::= ""\na ::= "a" a | "b" e', "a*b"),
        ('root ::= a "c" | b "a"\na ::= "a" | "ab"\nb ::= "a" "b"?', "(a|ab)c|ab?a"),
        ('root ::= "a"+ "b"{0} "c"?', "a+c?"),
        ("root ::= ws*\nws ::= | [a]", "a*"),
        ('root ::= ("a" | "b" ("c" | ""))+', "(a|bc?)+"),
        ('root ::= list\nlist ::= [ab] ("c" list)?', "[ab](c[ab])*"),
        ('root ::= x{2,4}\nx ::= "a" | "b" "c"', "(a|bc){2,4}"),
        ("root ::= [] [^]", ""),
        ('root ::= "a" [^\\x00-\\U0010FFFF] | "b"', "b"),
        ('root ::= "\\U00110000" | "b"', "b"),
    ],
)
def test_texts_are_taken_as_by_a_regular_expression(grammar, pattern):
    machine, expression = machine_of(grammar), re.compile(pattern)
    for n in range(7):
        for letters in itertools.product("abc", repeat=n):
            text = "".join(letters)
            assert takes(machine, text) == bool(expression.fullmatch(text)), text


def test_rules_within_each_other():
    machine = machine_of('root ::= "(" root ")" | "[" root* "]" | "x"')
    for text in ("x", "((x))", "[]", "[xx(x)[[]]]", "(" * 300 + "x" + ")" * 300):
        assert takes(machine, text)
        assert not takes(machine, text + "x")
        assert not takes(machine, text[:-1]) or text == ""
    assert behind(machine, "[)") is machine.dead


@pytest.mark.parametrize("seed", range(150))
def test_every_document_of_a_random_grammar_is_taken(seed):
    chance = random.Random(seed)
    grammar = random_grammar(chance)
    machine = machine_of(grammar)
    for _ in range(20):
        document = walk(grammar, chance, deep=5)
        assert takes(machine, document), (grammar, document)


def test_json_is_taken_and_what_is_not_json_is_not():
    machine = machine_of(gbnf_of(JsonSchema({}, "p")))
    chance = random.Random(1)
    for text in ('{"a": [1, -2.5e3, true, null, "\\u00e4\\n😀"], "b": {}}', "[]", '"\\\\"', "0"):
        assert takes(machine, text), text
        for _ in range(200):
            i = chance.randrange(len(text))
            broken = text[:i] + chance.choice('"{}[],:01e\\ n') + text[i + chance.randint(0, 1) :]
            if takes(machine, broken):
                json.loads(broken)


def test_characters_may_be_cut_anywhere():
    machine = machine_of("root ::= [à-ü]+ [^日a] [😀-🙏]")
    whole = "àé月😀".encode()
    assert takes(machine, whole)
    for i in range(1, len(whole)):
        assert behind(machine, whole[:i]) is not machine.dead
        assert not takes(machine, whole[:i])
    assert behind(machine, "à日".encode()) is machine.dead
    assert behind(machine, "à".encode() + "日".encode()[:2]) is not machine.dead  # it may still become another
    for broken in (b"\xc3\xc3", b"\x80", b"\xff", b"\xc3\xa0\xed\xa0"):  # the last one begins a surrogate
        assert behind(machine, broken) is machine.dead


# -- bounds


DOUBLES = 'root ::= a\na ::= "x" a "y" | "x" a "z" | "x"'


def test_readings_that_double_cost_one_step_more_each():
    machine = machine_of(DOUBLES)
    start = time.thread_time()
    assert takes(machine, "x" * 2000 + "yz" * 999 + "y")
    assert not takes(machine, "x" * 2000 + "yz" * 1000)
    assert time.thread_time() - start < 2
    assert len(behind(machine, "x" * 300).readings) == 5  # x in three ways, y, z


@pytest.mark.parametrize(
    "grammar",
    [
        DOUBLES,
        'root ::= a\na ::= "x" a a | "x" | ""',
        'root ::= a\na ::= "x" a "x" | "x" "x" a | "x"',
        "root ::= a*\na ::= b b b\nb ::= [a-z]* [a-z]*",
        "root ::= (((([x]*)*)*)*)*",
        'root ::= (("x"? "x"?){30} "x"?){30}',
        "root ::= " + "(" * 99 + "[x]*" + ")*" * 99,
        'root ::= s s s s s\ns ::= t t t t t | "x"\nt ::= "x" s "x" | "x" root | "x"',
        'root ::= ("x"?){1900} "x"{1900}',
        "\n".join(f"r{i} ::= r{i + 1} [a] | r{i + 1} [b]" for i in range(900)) + "\nr900 ::= [x]+\nroot ::= r0",
        "root ::= c{2000}\nc ::= [" + "".join(chr(i) for i in range(0x3000, 0xA000, 2)) + "x]",
        "root ::= " + " | ".join(f'"x{i}"' for i in range(1999)),
        'root ::= "x" root "y" e | "x"\ne ::= "" | "z"',
    ],
    ids=lambda grammar: grammar[:40],
)
def test_hostile_grammars_end_soon(grammar):
    start = time.thread_time()
    why = ""
    try:
        machine = machine_of(grammar)
        compiled = time.thread_time()
        machine.deadline = compiled + 0.5
        state = machine.start
        for _ in range(3000):
            state = state[machine.columns[ord("x")]]
            for other in b"yz0a":
                state[machine.columns[other]]
    except GrammarTooCostly as error:
        why = str(error)
    assert re.search("^$|more than 4000 ways at once|too long for one token|more than 200000 steps|deeper than", why)
    assert time.thread_time() - start < 4


def test_what_is_remembered_is_bounded_and_changes_nothing(monkeypatch):
    grammar = gbnf_of(JsonSchema({}, "p"))
    chance = random.Random(3)
    documents = [walk(grammar, chance) for _ in range(30)]
    monkeypatch.setattr(gbnf_machine, "MAX_MEMO", 200)
    machine = machine_of(grammar)
    for document in documents:
        assert takes(machine, document)
        assert not takes(machine, document + "}")
        assert machine._n_memo < 1000
        assert len(machine._states) <= 200


def test_what_was_forgotten_is_not_held_by_where_all_texts_begin(monkeypatch):
    monkeypatch.setattr(gbnf_machine, "MAX_MEMO", 2000)
    machine = machine_of('root ::= ("a" root "A" | "b" root "B" | "c" root "C")?')
    chance = random.Random(4)
    for _ in range(300):
        behind(machine, "".join(chance.choices("abc", k=50)))
    held, todo = {machine.start}, [machine.start]
    while todo:
        new = set(todo.pop().values()) - held
        held |= new
        todo += new
    assert len(held) <= len(machine._states) + 1  # the dead one
    assert machine.start in machine._states.values()


def test_a_text_may_not_nest_without_end():
    machine = machine_of('root ::= "(" root ")" | "x"')
    assert takes(machine, "(" * 15_000 + "x" + ")" * 15_000)
    with pytest.raises(GrammarTooCostly, match="nests deeper than 20000"):
        behind(machine, "(" * 25_000)


def test_states_recur():
    machine = machine_of("root ::= [a-z]* ([0-9] [a-z]*)*")
    assert behind(machine, "abc") is behind(machine, "x")
    assert behind(machine, "abc1") is behind(machine, "x7y8")
