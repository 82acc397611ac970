"""Our machine against libllama's own grammar sampler, token by token, over the vocabularies of the demo models.

modeld does not call that sampler: its functions are bound here alone. It differs from ours where it is wrong, and there
the comparison looks away: bytes that are not UTF-8, control tokens (it reads their names as text), and beginnings of
characters under a negated class (it refuses all that share their bytes with a character of the class).
"""

from __future__ import annotations

import codecs
import ctypes
import math
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from modeld.engine.constraint import CompiledGrammar, GrammarConstraint
from modeld.engine.grammar import MAX_GRAMMAR_BYTES, gbnf_of
from modeld.llm import libllama as C
from modeld.llm.backend import backend
from modeld.llm.bundle import library_path
from modeld.llm.model import Model
from modeld.llm.vocab import Vocab
from modeld.types import JsonSchema, ModelSpec
from tests.random_gbnf import random_grammar

MODELS = Path(__file__).resolve().parents[2] / "models"


class Theirs:
    """llama_sampler_init_grammar, with what it allows."""

    def __init__(self, vocab: Vocab, grammar: str) -> None:
        lib = ctypes.CDLL(str(library_path()[0]))
        lib.llama_sampler_init_grammar.restype = ctypes.c_void_p
        lib.llama_sampler_init_grammar.argtypes = (C.vocab_p, ctypes.c_char_p, ctypes.c_char_p)
        lib.llama_sampler_apply.argtypes = (ctypes.c_void_p, ctypes.POINTER(C.llama_token_data_array))
        lib.llama_sampler_apply.restype = None
        lib.llama_sampler_accept.argtypes = (ctypes.c_void_p, ctypes.c_int32)
        lib.llama_sampler_accept.restype = None
        lib.llama_sampler_free.argtypes = (ctypes.c_void_p,)
        lib.llama_sampler_free.restype = None
        self._lib = lib
        self._n_vocab = vocab.n_tokens
        self.raw = lib.llama_sampler_init_grammar(vocab, grammar.encode(), b"root")

    def allowed(self) -> set[int]:
        data = (C.llama_token_data * self._n_vocab)(*[C.llama_token_data(token, 0.0, 0.0) for token in range(self._n_vocab)])
        self._lib.llama_sampler_apply(self.raw, C.llama_token_data_array(data, self._n_vocab, -1, False))
        return {item.id for item in data if item.logit != -math.inf}

    def accept(self, token: int) -> None:
        self._lib.llama_sampler_accept(self.raw, token)

    def close(self) -> None:
        if self.raw:
            self._lib.llama_sampler_free(self.raw)


@pytest.fixture(params=["demo-stories", "demo-calc"])
def vocab(request: pytest.FixtureRequest) -> Iterator[Vocab]:
    model = Model(backend(), ModelSpec(id="x", path=MODELS / f"{request.param}.gguf"), lambda pct: True)
    yield model.vocab
    model.close()


def allowed(vocab: Vocab, constraint: GrammarConstraint) -> set[int]:
    pieces = vocab.sorted_pieces()
    selection = constraint.selection(pieces)
    assert constraint.problem is None
    tokens = set(selection.tokens) if selection.are_allowed else set(pieces.tokens) - set(selection.tokens)
    return tokens | set(vocab.eog_tokens()) if constraint.may_end else tokens


def is_comparable(text: bytes, *, cut: bool) -> bool:
    """Whether it is UTF-8, up to a character that is cut off, if it may be."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(text, final=not cut)
    except UnicodeDecodeError:
        return False
    return b"\0" not in text


def compare(vocab: Vocab, grammar: str, chance: random.Random, n_steps: int) -> int:
    """Walk by tokens that both allow. How many steps were compared."""
    theirs = Theirs(vocab, grammar)
    try:
        if not theirs.raw:
            return 0  # it takes fewer grammars: no repetition of what may be empty
        ours = CompiledGrammar(grammar, max_bytes=MAX_GRAMMAR_BYTES).begin()
        text = b""
        others = set(vocab.sorted_pieces().others)
        for step in range(n_steps):
            left, right = allowed(vocab, ours), theirs.allowed()
            for token in left ^ right:
                piece = vocab.piece_or_eog(token)
                comparable = piece is not None and is_comparable(text + piece, cut="[^" not in grammar)
                assert token in others or not (piece is None or comparable), (grammar, text, piece, token in left)
            both = sorted(token for token in left & right if vocab.piece_or_eog(token) is not None)
            if not both:
                return step + 1
            token = chance.choice(both)
            piece = vocab.piece_or_eog(token)
            assert piece is not None
            text += piece
            ours.accept(piece)
            theirs.accept(token)
        return n_steps
    finally:
        theirs.close()


@pytest.mark.parametrize("part", range(5))
def test_random_grammars(vocab: Vocab, part: int):
    n_steps = 0
    for seed in range(30 * part, 30 * part + 30):
        chance = random.Random(seed)
        n_steps += compare(vocab, random_grammar(chance), chance, 8)
    assert n_steps > 60


ARITHMETIC = r"""
root  ::= (expr "=" space number "\n")+
expr  ::= term ([-+*/] space term)*
term  ::= number | "(" space expr ")" space
number ::= [0-9]+ ("." [0-9]+)? space
space ::= " "*
"""
LIST = r"""
root ::= item+
# of a to-do list
item ::= "- " [^\r\n\x0b\x0c\x85\u2028\u2029]+ "\n"
"""
MOVES = r"""
root ::= turn{1,3}
turn ::= [1-9] [0-9]? ". " move " " move "\n"
move ::= (pawn | piece | "O-O" "-O"?) [+#]?
piece ::= [NBKQR] [a-h]? [1-8]? "x"? [a-h] [1-8]
pawn ::= ([a-h] "x")? [a-h] [1-8] ("=" [NBQR])?
"""
PROGRAM = r"""
root ::= (declaration)*
declaration ::= type name "(" (type name ("," ws type name)*)? ")" "{" statement* "}"
type ::= ("int" | "float" | "char") " "
name ::= [a-zA-Z_] [a-zA-Z_0-9]*
statement ::= (type name ws "=" ws sum ";") | (name ws "=" ws sum ";") | ("return" ws sum ";") |
  ("while" "(" sum [<>] sum ")" "{" statement* "}") | ("//" [^\n]* "\n")
sum ::= factor (ws [-+] ws factor)*
factor ::= unary (ws [*/] ws unary)*
unary ::= "-"? (name | [0-9]+ | "(" sum ")")
ws ::= ([ \t\n] ws)?
"""
JAPANESE = r"""
root ::= word+ ([ \t\n] word+)*
word ::= hiragana | katakana | [、-〾] | [一-鿿]
hiragana ::= [ぁ-ゟ]
katakana ::= [ァ-ヿ]
"""
ANSWER = 'root ::= ("yes" | "no" | "perhaps" " not"?) ("," " because " [^.]{3,60})? "."'


GRAMMARS = {"sums": ARITHMETIC, "list": LIST, "moves": MOVES, "program": PROGRAM, "japanese": JAPANESE, "answer": ANSWER}


@pytest.mark.parametrize("name", GRAMMARS)
def test_grammars_as_people_write_them(vocab: Vocab, name: str):
    for seed in range(6):
        assert compare(vocab, GRAMMARS[name], random.Random(seed), 30) > 1


@pytest.mark.parametrize("schema", [{"type": "object"}, {"type": "array", "maxItems": 4}, {"maxLength": 20}], ids=str)
def test_grammars_of_schemas(vocab: Vocab, schema: object):
    for seed in range(6):
        assert compare(vocab, gbnf_of(JsonSchema(schema, "p")), random.Random(seed), 40) > 1
