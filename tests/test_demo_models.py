"""Is what the demo models are taught what their card says, and do the committed files answer as they should?"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from modeld.types import SamplingParams
from scripts.demo import sums, tales
from scripts.demo.chat import Document
from scripts.demo.evaluate import sentence_share, sum_share, tokenizer_agreement
from scripts.demo.generate import answer_all, chat_prompt, open_runtime, raw_prompt
from scripts.demo.language import coherent, in_language, split_sentences, write_story
from scripts.demo.plots import LONGEST, PLOTS, SHORTEST
from scripts.demo.tokenizer import SPECIAL_NAMES, PieceType, Vocabulary, build_vocabulary
from scripts.demo.words import VARIABLES

MODELS = Path(__file__).resolve().parent.parent / "models"


def stories(count: int) -> list[str]:
    rng = random.Random("test stories")
    return [write_story(rng).text for _ in range(count)]


# -- the story language


def test_recogniser_accepts_what_the_generator_writes() -> None:
    for text in stories(500):
        sentences = split_sentences(text)
        assert SHORTEST <= len(sentences) <= LONGEST, text
        assert all(map(in_language, sentences)), text
        assert coherent(text), text


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("But she lost her hat on the way.", "But she lost his hat on the way."),
        ("Once upon a time there was an old owl named Mia.", "Once upon a time there was a old owl named Mia."),
        ("There was once an owl whose name was Mia.", "There was once a owl whose name was Mia."),
        ("Mia was a little fox.", "Mia was a little fox"),
        ("Then a fox named Ben came along.", "Then a fox named ben came along."),
        ("Tom gave her an apple and they laughed.", "Tom gave her apple and they laughed."),
        ("One day Tom went to the lake.", "One day Tom went at the lake."),
        ("One day Tom went to the lake.", "One day Tom to the went lake."),
        ("The sun was shining and the sky was blue.", "The sun was shining and the sky was white."),
        ("After a while he was hungry, but he had nothing to eat.", "After a while he was hungry, but she had nothing to eat."),
        ("Tom found a rope and pulled her out of the mud.", "Tom found a rope and pulled her out of the rock."),
        ('"I will help you," said Ben.', '"I will help you, said Ben.'),
    ],
)
def test_recogniser_rejects_broken_sentences(right: str, wrong: str) -> None:
    assert in_language(right)
    assert not in_language(wrong)


def test_recogniser_rejects_jumbled_words() -> None:
    rng = random.Random("jumble")
    sentences = [sentence for text in stories(100) for sentence in split_sentences(text)]
    jumbled = [" ".join(rng.sample(words, len(words))) for sentence in sentences if len(words := sentence.split()) > 3]
    assert sum(map(in_language, jumbled)) < len(jumbled) / 50


def test_a_story_whose_hero_changes_is_not_coherent() -> None:
    text = "Once upon a time there was a little fox named Mia. One day Mia went to the lake."
    assert coherent(text)
    assert not coherent(text.replace("day Mia", "day Tom"))
    assert not coherent(text + " But he lost his way.")
    assert not coherent(text + " Then a bear named Mia came along.")


def test_every_slot_of_every_template_is_in_the_tables() -> None:
    # write_story fills a template only when it picks it; a misspelt slot must not wait for that.
    rng = random.Random(0)
    choice = {variable: rng.randrange(len(table)) for variable, table in VARIABLES.items()}
    for plot in PLOTS.values():
        for stage in plot:
            for template in stage.templates:
                filled = template
                for variable, row in choice.items():
                    for form, text in VARIABLES[variable][row].items():
                        filled = filled.replace(f"{{{variable}.{form}}}", text)
                assert "{" not in filled, template


# -- the sums


def test_held_out_sums_never_stand_in_training_documents() -> None:
    held_out = sums.held_out()
    assert len(held_out) >= 500
    assert all(10 <= a <= 99 and 10 <= b <= 99 and (b, a) in held_out for a, b in held_out)
    assert not held_out & set(sums.training_pairs())
    texts = (segment.text for document in islice(sums.documents(1), 20_000) for segment in document)
    seen = "\n".join(texts).replace(" ", "").lower()
    asked = [f"{a}{plus}{b}" for a, b in held_out for plus in ("+", "plus", "and")]
    # A digit on either side makes it another sum ("112+30").
    for question in asked:
        at = seen.find(question)
        while at >= 0:
            assert seen[at - 1].isdigit() or seen[at + len(question)].isdigit(), seen[at - 20 : at + 20]
            at = seen.find(question, at + 1)


def test_evaluation_pairs_are_500_different_held_out_ones() -> None:
    pairs = sums.evaluation_pairs(500)
    assert len(set(pairs)) == 500
    assert set(pairs) <= sums.held_out()


# -- the vocabularies


@pytest.mark.parametrize("vocabulary", [build_vocabulary(), tales.vocabulary()], ids=["demo-calc", "demo-stories"])
def test_vocabulary_is_well_formed(vocabulary: Vocabulary) -> None:
    assert vocabulary.unreachable() == []
    assert len(set(vocabulary.pieces)) == len(vocabulary.pieces)  # llama.cpp aborts on equal ones
    assert len(vocabulary.pieces) % 32 == 0
    assert vocabulary.types.count(PieceType.BYTE) == 256
    assert vocabulary.pieces[: len(SPECIAL_NAMES)] == SPECIAL_NAMES
    for text in ("Tell me a story.", "12+30=", "na\u00efve \u4f60\u597d\n\U0001f600", "<|im_start|>user\nHi<|im_end|>\n"):
        assert vocabulary.decode(vocabulary.encode(text)) == text


def test_documents_are_the_same_for_the_same_seed() -> None:
    def first(documents: Iterator[Document]) -> list[Document]:
        return list(islice(documents, 50))

    assert first(sums.documents(3)) == first(sums.documents(3)) != first(sums.documents(4))
    assert first(tales.documents(3)) == first(tales.documents(3)) != first(tales.documents(4))


# -- the committed files


@pytest.mark.parametrize("name", ["demo-calc.gguf", "demo-stories.gguf"])
def test_model_files_are_small(name: str) -> None:
    path = MODELS / name
    assert path.read_bytes()[:4] == b"GGUF"
    assert path.stat().st_size <= 4_000_000


def test_selftest_reference_fits_the_model() -> None:
    reference = json.loads((MODELS / "selftest.json").read_text())
    assert (MODELS / reference["model"]).is_file()
    assert 8 <= len(reference["tokens"]) <= 64
    assert len(reference["logits"]) == len(build_vocabulary().pieces)
    # 48+37=85, and the reference is sure of it by far more than the tolerance.
    ranked = sorted(reference["logits"], reverse=True)
    assert build_vocabulary().pieces[reference["logits"].index(ranked[0])] == "8"
    assert ranked[0] - ranked[1] > 4 * reference["max_abs_diff"]


# -- the committed files on the real libllama; scripts/demo/evaluate.py takes the figures of the model card


def test_demo_calc_adds_numbers_it_never_saw() -> None:
    with open_runtime(MODELS / "demo-calc.gguf") as runtime:
        assert sum_share(runtime, lambda a, b: raw_prompt(runtime, f"{a}+{b}="), 500) >= 0.95
        assert sum_share(runtime, lambda a, b: chat_prompt(runtime, f"What is {a}+{b}?"), 100) >= 0.95


def test_demo_stories_writes_its_language() -> None:
    with open_runtime(MODELS / "demo-stories.gguf") as runtime:
        samples = answer_all(runtime, [raw_prompt(runtime, "")] * 100, SamplingParams(), max_tokens=400)
        asked = [chat_prompt(runtime, "Tell me a story about a fox.")] * 20
        answers = answer_all(runtime, asked, SamplingParams(), max_tokens=400)
    assert sentence_share([sample.text for sample in samples]) >= 0.95
    assert len({sample.text for sample in samples}) >= 90
    assert all(sample.ended for sample in samples)
    assert sum("fox" in answer.text for answer in answers) >= 18


@pytest.mark.parametrize(
    ("name", "documents", "vocabulary"),
    [("demo-calc", sums.documents(5), build_vocabulary()), ("demo-stories", tales.documents(5), tales.vocabulary())],
    ids=["demo-calc", "demo-stories"],
)
def test_llama_cpp_tokenizes_as_the_training_did(name: str, documents: Iterator[Document], vocabulary: Vocabulary) -> None:
    rng = random.Random("hostile texts")
    parts = [
        *"abcxyz <>|_/\n\t0149",
        " the",
        " fox",
        " umbrella",
        "<s>",
        "<|im_end|>",
        "<0x41>",
        "\u00e9",
        "\u4f60",
        "\U0001f600",
    ]
    texts = ["".join(rng.choices(parts, k=rng.randint(0, 30))) for _ in range(1000)]
    with open_runtime(MODELS / f"{name}.gguf") as runtime:
        assert tokenizer_agreement(runtime, documents, vocabulary) == 1.0
        for text in texts:
            for special in (True, False):
                ids = runtime.tokenize(text, add_special=False, parse_special=special)
                assert ids == vocabulary.encode(text, special=special), text
