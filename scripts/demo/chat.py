"""What does a training document look like? Text in pieces, some of which the model learns to write; raw and ChatML forms."""

from collections.abc import Sequence
from dataclasses import dataclass

# The usual ChatML template; llama.cpp's built-in list recognises it by "<|im_start|>" (src/llama-chat.cpp).
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a document. learn: whether the loss counts its tokens. Special tokens stand in text by name."""

    text: str
    learn: bool


Document = tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """A question of the user's and the answer to it."""

    question: str
    answer: str


def raw_document(prompt: str, answer: str) -> Document:
    """What /v1/completions sees: prompt, then answer and the end-of-text token."""
    return Segment(prompt, learn=False), Segment(answer + "</s>", learn=True)


def chat_document(turns: Sequence[Turn], system: str | None = None) -> Document:
    """A conversation in ChatML; every answer is learnt, with the <|im_end|> that ends it."""
    segments: list[Segment] = []
    head = f"<|im_start|>system\n{system}<|im_end|>\n" if system is not None else ""
    for turn in turns:
        segments.append(Segment(f"{head}<|im_start|>user\n{turn.question}<|im_end|>\n<|im_start|>assistant\n", learn=False))
        segments.append(Segment(f"{turn.answer}<|im_end|>", learn=True))
        head = "\n"
    return tuple(segments)
