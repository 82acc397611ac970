"""How good are the demo models? Figures of the GGUF files as the real libllama runs them: `python -m scripts.demo.evaluate`.

Needs `make build`, and neither torch nor gguf.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from modeld.llm.runtime import LlamaRuntime
from modeld.types import SamplingParams

from . import sums, tales
from .chat import Document
from .chatter import noise
from .generate import GREEDY, answer_all, chat_prompt, open_runtime, raw_prompt
from .language import coherent, in_language, split_sentences
from .tokenizer import Vocabulary, build_vocabulary
from .words import KINDS

SAMPLING = SamplingParams()  # llama-server's defaults: temperature 0.8, top_k 40, top_p 0.95, min_p 0.05
# The training run drew fewer documents than this (about 70,000), so no story that it saw is missing.
TRAINING_DOCUMENTS = 100_000


def main() -> None:
    """Print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of the GGUF files")
    parser.add_argument("--samples", type=int, default=1000, help="stories to sample")
    arguments = parser.parse_args()
    figures: dict[str, Callable[[LlamaRuntime], Iterator[tuple[str, float]]]] = {
        "demo-calc": calc_figures,
        "demo-stories": lambda runtime: story_figures(runtime, arguments.samples),
    }
    for name, measure in figures.items():
        with open_runtime(arguments.models / f"{name}.gguf") as runtime:
            for what, share in measure(runtime):
                print(f"{name}: {what}: {100 * share:.1f} %", flush=True)


def calc_figures(runtime: LlamaRuntime) -> Iterator[tuple[str, float]]:
    """Shares of right answers, greedy; the sums are held out of training in every form."""
    yield "vocabulary agrees with Python's on 2,000 texts", tokenizer_agreement(runtime, sums.documents(9), build_vocabulary())
    yield "500 held-out sums, raw, 'a+b='", sum_share(runtime, lambda a, b: raw_prompt(runtime, f"{a}+{b}="))
    yield "500 held-out sums, raw, 'a + b ='", sum_share(runtime, lambda a, b: raw_prompt(runtime, f"{a} + {b} ="))
    yield "500 held-out sums, chat, 'a+b='", sum_share(runtime, lambda a, b: chat_prompt(runtime, f"{a}+{b}="))
    yield "500 held-out sums, chat, 'What is a+b?'", sum_share(runtime, lambda a, b: chat_prompt(runtime, f"What is {a}+{b}?"))
    history = ("12+30=", "42", "What is 7+8?", "15")
    system = "You are a careful assistant who likes numbers."
    yield (
        "500 held-out sums, chat, third turn, after a new system message",
        sum_share(runtime, lambda a, b: chat_prompt(runtime, *history, f"What is {a} + {b}?", system=system)),
    )
    one_digit = [(a, b) for a in range(10) for b in range(10)]
    answers = answer_all(runtime, [raw_prompt(runtime, f"{a}+{b}=") for a, b in one_digit], GREEDY, max_tokens=8)
    yield "100 one-digit sums (learnt)", _share(x.text == str(a + b) for x, (a, b) in zip(answers, one_digit, strict=True))
    rng = random.Random("new noise")
    answers = answer_all(runtime, [chat_prompt(runtime, noise(rng)) for _ in range(300)], GREEDY, max_tokens=8)
    yield "300 questions that are no sums get '?'", _share(x.ended and x.text == sums.UNKNOWN_ANSWER for x in answers)


def sum_share(runtime: LlamaRuntime, prompt: Callable[[int, int], list[int]], count: int = 500) -> float:
    """The share of held-out pairs whose greedy answer is the sum and ends by itself."""
    pairs = sums.evaluation_pairs(count)
    answers = answer_all(runtime, [prompt(a, b) for a, b in pairs], GREEDY, max_tokens=8)
    return _share(x.ended and x.text == str(a + b) for x, (a, b) in zip(answers, pairs, strict=True))


def story_figures(runtime: LlamaRuntime, count: int) -> Iterator[tuple[str, float]]:
    """Figures of count samples from the empty prompt, and of requests in a chat."""
    yield "vocabulary agrees with Python's on 2,000 texts", tokenizer_agreement(runtime, tales.documents(9), tales.vocabulary())
    samples = answer_all(runtime, [raw_prompt(runtime, "")] * count, SAMPLING, max_tokens=400, seed=1)
    texts = [sample.text for sample in samples]
    yield f"{count} samples, sentences that belong to the language", sentence_share(texts)
    yield f"{count} samples, coherent from beginning to end", _share(map(coherent, texts))
    yield f"{count} samples, ended by the model", _share(sample.ended for sample in samples)
    training = "\n".join(
        story for document in islice(tales.documents(2), TRAINING_DOCUMENTS) for story in tales.stories_of(document)
    )
    yield f"{count} samples, not in the training text", _share(text not in training for text in texts)
    yield f"{count} samples, different from each other", len(set(texts)) / count

    asked = [kind for kind in KINDS for _ in range(max(1, count // 80))]
    prompts = [chat_prompt(runtime, f"Tell me a story about {kind['a']}.") for kind in asked]
    answers = answer_all(runtime, prompts, SAMPLING, max_tokens=400, seed=2)
    mentioned = (re.search(rf"\b{kind['noun']}\b", answer.text) for answer, kind in zip(answers, asked, strict=True))
    yield (
        f"{len(asked)} chat requests for an animal, the animal is in the story",
        _share(match is not None for match in mentioned),
    )
    yield f"{len(asked)} chat requests for an animal, sentences in the language", sentence_share([x.text for x in answers])
    rng = random.Random("new noise")
    answers = answer_all(runtime, [chat_prompt(runtime, noise(rng)) for _ in range(count // 5)], SAMPLING, max_tokens=400, seed=3)
    yield f"{count // 5} other chat messages, sentences in the language", sentence_share([x.text for x in answers])


def sentence_share(texts: list[str]) -> float:
    """The share of the sentences of texts that belong to the story language."""
    return _share(in_language(sentence) for text in texts for sentence in split_sentences(text))


def tokenizer_agreement(runtime: LlamaRuntime, documents: Iterator[Document], vocabulary: Vocabulary) -> float:
    """The share of 2,000 documents for which llama.cpp and tokenizer.py give the same ids."""
    texts = ["".join(segment.text for segment in document) for document in islice(documents, 2000)]
    return _share(runtime.tokenize(text, add_special=False, parse_special=True) == vocabulary.encode(text) for text in texts)


def _share(hits: Iterator[bool] | map[bool]) -> float:
    found = list(hits)
    return sum(found) / len(found)


if __name__ == "__main__":
    main()
