"""What is a story, and does a text belong to the story language? Generator and recogniser over the same templates and tables.

The recogniser is strict: a sentence belongs to the language only if it is a template with slots filled from the tables such
that all forms of a variable come from one row ("Mia lost his ball" and "a owl" are out). A text is coherent if its
sentences also agree with each other: one hero, one friend, one thing, from the first sentence to the last.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from .plots import LONGEST, PLOTS, SHORTEST, Stage
from .words import VARIABLES

_SLOT = re.compile(r"\{(\w+)\.(\w+)\}")

# Which rows a variable can still be, for the variables that a text mentions.
Reading = Mapping[str, frozenset[int]]


@dataclass(frozen=True, slots=True)
class Story:
    """A story and what it is about: the rows of the variables that its text mentions."""

    text: str
    about: Mapping[str, int]


def write_story(rng: random.Random) -> Story:
    """A random story of SHORTEST to LONGEST sentences."""
    choice: dict[str, int] = {}
    for variable, table in VARIABLES.items():
        taken = {row for other, row in choice.items() if VARIABLES[other] is table}
        choice[variable] = rng.choice([row for row in range(len(table)) if row not in taken])
    templates = [rng.choice(stage.templates) for stage in _pick_stages(rng, rng.choice(list(PLOTS.values())))]
    mentioned = {variable for template in templates for variable, _ in _SLOT.findall(template)}
    text = " ".join(_fill(template, choice) for template in templates)
    return Story(text, {variable: row for variable, row in choice.items() if variable in mentioned})


def split_sentences(text: str) -> list[str]:
    """The sentences of text, direct speech staying with its speaker. What follows the last full stop is one more."""
    return re.split(r'(?<=[.!?]) (?=[A-Z"])|(?<=[.!?]") (?=[A-Z"])', text)


@cache
def in_language(sentence: str) -> bool:
    """Whether sentence is one that the generator could have written."""
    return bool(readings(sentence))


@cache
def readings(sentence: str) -> tuple[Reading, ...]:
    """The ways to read sentence, one for each template it fits. Empty: it does not belong to the language."""
    found: list[Reading] = []
    for pattern, slots in _patterns():
        match = pattern.fullmatch(sentence)
        if match is None:
            continue
        reading = _agree(
            {}, [(variable, _rows(variable, form, text)) for (variable, form), text in zip(slots, match.groups(), strict=True)]
        )
        if reading is not None:
            found.append(reading)
    return tuple(found)


def coherent(text: str) -> bool:
    """Whether all sentences of text belong to the language and can be about the same characters and things."""
    so_far: list[Reading] = [{}]
    for sentence in split_sentences(text):
        so_far = [
            merged
            for before in so_far
            for reading in readings(sentence)
            if (merged := _agree(before, list(reading.items()))) is not None
        ]
    return bool(so_far)


def all_forms() -> set[str]:
    """Every word form and every template's words: what a vocabulary for the language has to spell."""
    forms = {form for table in VARIABLES.values() for row in table for form in row.values()}
    return forms | {_SLOT.sub("", template) for template in _templates()}


def _pick_stages(rng: random.Random, plot: tuple[Stage, ...]) -> list[Stage]:
    """All stages that a plot needs and some of the optional ones, in order."""
    needed = sum(not stage.optional for stage in plot)
    optional = [i for i, stage in enumerate(plot) if stage.optional]
    extra = rng.randint(max(0, SHORTEST - needed), min(len(optional), LONGEST - needed))
    kept = set(rng.sample(optional, extra))
    return [stage for i, stage in enumerate(plot) if not stage.optional or i in kept]


def _fill(template: str, choice: Mapping[str, int]) -> str:
    return _SLOT.sub(lambda slot: VARIABLES[slot[1]][choice[slot[1]]][slot[2]], template)


@cache
def _templates() -> tuple[str, ...]:
    return tuple(sorted({template for plot in PLOTS.values() for stage in plot for template in stage.templates}))


@cache
def _patterns() -> tuple[tuple[re.Pattern[str], tuple[tuple[str, str], ...]], ...]:
    """Each template as a pattern whose groups are its slots, in order."""
    compiled = []
    for template in _templates():
        slots = tuple(_SLOT.findall(template))
        literals = [re.escape(part) for part in _SLOT.sub("\0", template).split("\0")]
        source = literals[0]
        for (variable, form), literal in zip(slots, literals[1:], strict=True):
            forms = sorted({row[form] for row in VARIABLES[variable]}, key=len, reverse=True)
            source += "(" + "|".join(map(re.escape, forms)) + ")" + literal
        compiled.append((re.compile(source), slots))
    return tuple(compiled)


@cache
def _rows(variable: str, form: str, text: str) -> frozenset[int]:
    return frozenset(i for i, row in enumerate(VARIABLES[variable]) if row[form] == text)


def _agree(before: Reading, more: list[tuple[str, frozenset[int]]]) -> Reading | None:
    """before narrowed by more; None if a variable has no row left or two of one table are forced onto the same row."""
    merged = dict(before)
    for variable, rows in more:
        merged[variable] = merged.get(variable, rows) & rows
        if not merged[variable]:
            return None
    certain = [(id(VARIABLES[variable]), next(iter(rows))) for variable, rows in merged.items() if len(rows) == 1]
    return merged if len(certain) == len(set(certain)) else None
