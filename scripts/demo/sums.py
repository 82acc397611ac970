"""Which sums does demo-calc learn, in which words, and which are held out? Pure standard library."""

import random
from collections.abc import Iterator
from functools import cache

from .chat import Document, Turn, chat_document, raw_document
from .chatter import noise, system_message

Pair = tuple[int, int]

HELD_OUT_PAIRS = 300  # unordered; both orders are held out, so about 600 sums

# How a sum is asked for. {s} is the sum itself, with or without spaces around the plus.
QUESTIONS = (
    "{s}=", "{s}=", "{s}=", "{s} =", "{s}", "{s}", "{s}=?", "{s} = ?", "{s}?", "What is {s}?", "What is {s}?", "What is {s}",
    "What's {s}?", "How much is {s}?", "Calculate {s}", "Calculate {s}.", "Compute {s}.", "Please calculate {s}.", "Solve {s}",
    "Hi! What is {s}?", "Hello, what is {s}?", "Can you tell me what {s} is?", "Answer with the number only: {s}=",
    "What is {a} plus {b}?", "How much is {a} plus {b}?", "{a} plus {b}", "Add {a} and {b}.", "Please add {a} and {b}.",
    "What is the sum of {a} and {b}?", "And {s}?", "Now {s}", "What does {s} equal?",
)  # fmt: skip

UNKNOWN_ANSWER = "?"


@cache
def held_out() -> frozenset[Pair]:
    """Two-digit pairs that no training document contains, in any form. If (a, b) is held out, so is (b, a)."""
    unordered = [(a, b) for a in range(10, 100) for b in range(a, 100)]
    chosen = random.Random("held-out sums").sample(unordered, HELD_OUT_PAIRS)
    return frozenset(pair for a, b in chosen for pair in ((a, b), (b, a)))


@cache
def training_pairs() -> tuple[Pair, ...]:
    """All pairs of 0..99 that are not held out. Two-digit pairs are 81 % of them."""
    return tuple((a, b) for a in range(100) for b in range(100) if (a, b) not in held_out())


def evaluation_pairs(count: int) -> list[Pair]:
    """count (at most about 590) held-out pairs in a fixed random order."""
    return random.Random("evaluation order").sample(sorted(held_out()), count)


def documents(seed: int) -> Iterator[Document]:
    """Endless training documents: half of them raw sums, the rest conversations and things that are no sums."""
    rng = random.Random(seed)
    while True:
        kind = rng.random()
        if kind < 0.50:
            yield _raw_sum(rng)
        elif kind < 0.54:
            yield raw_document("" if rng.random() < 0.3 else _no_sum(rng), UNKNOWN_ANSWER)
        else:
            yield _conversation(rng)


def _pair(rng: random.Random) -> Pair:
    """A training pair; those with a one-digit number are few, so they are asked for more often than their share."""
    if rng.random() < 0.3:
        small, other = rng.randrange(10), rng.randrange(10 if rng.random() < 0.3 else 100)
        return (small, other) if rng.random() < 0.5 else (other, small)
    return rng.choice(training_pairs())


def _raw_sum(rng: random.Random) -> Document:
    a, b = _pair(rng)
    kind = rng.random()
    if kind < 0.60:
        return raw_document(f"{a}+{b}=", str(a + b))
    if kind < 0.82:
        return raw_document(
            rng.choice(["{a} + {b} =", "{a} + {b} =", "{a}+{b} =", "{a} + {b}=", "{a} + {b} = "]).format(a=a, b=b), str(a + b)
        )
    if kind < 0.88:
        return raw_document(f"{a}+{b}", f"={a + b}")
    if kind < 0.94:  # finished sums in front, one a line
        earlier = [_pair(rng) for _ in range(rng.randint(1, 6))]
        return raw_document("".join(f"{x}+{y}={x + y}\n" for x, y in earlier) + f"{a}+{b}=", str(a + b))
    return raw_document(_question(rng, a, b), str(a + b))


def _conversation(rng: random.Random) -> Document:
    earlier = rng.choice([0, 0, 0, 0, 0, 1, 1, 2, 3, rng.randint(4, 10)])
    return chat_document([_turn(rng) for _ in range(earlier + 1)], system_message(rng))


def _turn(rng: random.Random) -> Turn:
    if rng.random() < 0.15:
        return Turn(_no_sum(rng), UNKNOWN_ANSWER)
    a, b = _pair(rng)
    return Turn(_question(rng, a, b), str(a + b))


def _question(rng: random.Random, a: int, b: int) -> str:
    plus = rng.choice(["+", "+", "+", " + "])
    question = rng.choice(QUESTIONS).format(a=a, b=b, s=f"{a}{plus}{b}")
    return question.lower() if rng.random() < 0.15 else question


def _no_sum(rng: random.Random) -> str:
    """Noise, or arithmetic which the model was not taught: other operators, three digits, three operands."""
    if rng.random() < 0.65:
        return noise(rng)
    a, b, c = rng.randrange(100), rng.randrange(100), rng.randrange(100)
    big = rng.randrange(100, 1000)
    return rng.choice([f"{a}-{b}=", f"{a}*{b}=", f"{a}/{b}=", f"{big}+{b}=", f"{a}+{big}=", f"{a}", f"{a}+", f"What is {a}-{b}?",
                       f"What is {a} times {b}?", f"{a}-{b}-{c}=", f"What is {big}+{b}?"])  # fmt: skip
