"""Which texts does demo-stories learn? Stories of the language, plain and as answers to requests in a chat."""

import random
from collections.abc import Iterator
from functools import cache

from .chat import Document, Segment, Turn, chat_document
from .chatter import SMALL_TALK, SYSTEM_MESSAGES, WORDS, noise, system_message
from .language import Story, all_forms, write_story
from .tokenizer import Vocabulary, build_vocabulary, learn_pieces
from .words import VARIABLES

SUBJECTS = ("hero", "kind", "thing", "colour", "trait", "sad")

PIECES = 667  # with 5 specials, 256 bytes and 96 characters: 1,024

# {x} is what the story should be about.
REQUESTS = (
    "Tell me a story about {x}.", "Tell me a story about {x}.", "tell me a story about {x}", "Write a story about {x}.",
    "Write a short story about {x}", "Please tell me a story about {x}.", "Can you tell me a story about {x}?",
    "A story about {x}, please.", "I want to hear a story about {x}.", "Tell us about {x}.", "Story about {x}", "{x}",
    "{x}, please", "Write about {x}", "Tell me another story about {x}.", "Do you know a story about {x}?",
    "Hi! Tell me a story about {x}.", "Write a little story with {x}.", "Make up a story about {x}!", "Now one about {x}.",
    "What about {x}?",
)  # fmt: skip
OPEN_REQUESTS = (
    "Tell me a story.", "Tell me a story", "tell me a story", "Write a story.", "A story, please.",
    "Please tell me a short story.", "Can you tell me a story?", "Another one, please.", "Another one!", "One more.",
    "Tell me something.", "Tell me a bedtime story.", "Once upon a time", "Hello! Tell me a story.",
    "Write something for children.", "I am bored.", "What happened next?", "Story!",
)  # fmt: skip
STRANGERS = (
    "a dragon", "a princess", "a robot", "a wizard", "a pirate", "a ship", "a train", "the moon", "the sea", "space",
    "a king", "a lion", "an elephant", "a tiger", "a unicorn", "a knight", "a ghost", "school", "love", "friendship",
    "a dinosaur", "a car", "Peter", "Alice", "John", "Sarah", "Harry", "my mother", "Christmas", "a computer", "a castle",
    "the sun", "winter", "summer",
)  # fmt: skip


def documents(seed: int) -> Iterator[Document]:
    """Endless training documents, each new story once: plain stories and conversations."""
    rng = random.Random(seed)
    while True:
        kind = rng.random()
        if kind < 0.35:
            yield (Segment(write_story(rng).text + "</s>", learn=True),)
        elif kind < 0.45:
            yield _continued(rng, write_story(rng).text)
        else:
            yield _conversation(rng)


def stories_of(document: Document) -> list[str]:
    """The story texts that a training document contains: what a sample must not be a copy of."""
    if len(document) == 2 and not document[1].text.endswith("<|im_end|>"):
        return [(document[0].text + document[1].text).removesuffix("</s>")]
    return [part.text.removesuffix("</s>").removesuffix("<|im_end|>") for part in document if part.learn]


@cache
def vocabulary() -> Vocabulary:
    """Pieces learnt from stories, requests and small talk; 1,024 with the rest."""
    rng = random.Random("story pieces")
    texts = [write_story(rng).text for _ in range(3000)]
    texts += [
        text.format(x="") for text in (*REQUESTS, *OPEN_REQUESTS, *STRANGERS, *SMALL_TALK, *SYSTEM_MESSAGES) for _ in range(10)
    ]
    texts += [f" {form}" for form in sorted(all_forms()) for _ in range(100)]
    texts += ["user assistant system"] * 1000 + [" " + word for word in WORDS]
    return build_vocabulary(learn_pieces(texts, PIECES))


def subject_tokens() -> frozenset[int]:
    """Ids of the words that name characters and things: what a story has to keep the same from sentence to sentence."""
    words = [
        form
        for variable in SUBJECTS
        for row in VARIABLES[variable]
        for form in (row.get("noun"), row.get("name"), row.get("word"))
    ]
    return frozenset(i for word in words if word for i in vocabulary().encode(" " + word))


def _continued(rng: random.Random, text: str) -> Document:
    """A story whose beginning is a prompt, cut anywhere: the tokens at the cut are those that a user's prompt ends with."""
    cut = rng.randrange(1, len(text) * 2 // 3)
    if rng.random() < 0.7 and " " in text[cut:]:
        cut = text.index(" ", cut)
    return Segment(text[:cut], learn=False), Segment(text[cut:] + "</s>", learn=True)


def _conversation(rng: random.Random) -> Document:
    earlier = rng.choice([0, 0, 0, 0, 0, 0, 1, 1, 2, rng.randint(3, 6)])
    return chat_document([_turn(rng) for _ in range(earlier + 1)], system_message(rng))


def _turn(rng: random.Random) -> Turn:
    story = write_story(rng)
    kind = rng.random()
    if kind < 0.75:
        question = rng.choice(REQUESTS).format(x=_subject(rng, story))
    elif kind < 0.85:
        question = rng.choice(OPEN_REQUESTS)
    elif kind < 0.93:
        question = rng.choice(REQUESTS).format(x=rng.choice(STRANGERS) if rng.random() < 0.7 else rng.choice(WORDS))
    else:
        question = noise(rng)
    return Turn(question.lower() if rng.random() < 0.1 else question, story.text)


def _subject(rng: random.Random, story: Story) -> str:
    """Something that the story mentions, as a person would name it: "a fox", "a brave fox named Mia", "a bear and a red ball"."""
    said = {variable: VARIABLES[variable][row] for variable, row in story.about.items()}
    # Every story mentions its hero and the hero's kind.
    hero, kind = said["hero"]["name"], said["kind"]
    subjects = [kind["a"]] * 3 + ["the " + kind["noun"], kind["noun"], hero]
    subjects += [f"{kind['a']} named {hero}", f"{hero} the {kind['noun']}"]
    if "trait" in said:
        subjects += [f"{said['trait']['a']} {kind['noun']}"] * 2
    others = []
    if "fkind" in said:
        others += [said["fkind"]["a"]] * 2
    if "friend" in said:
        others.append(said["friend"]["name"])
    if "thing" in said:
        others += [said["thing"]["a"]] * 2
        if "colour" in said:
            others.append(f"{said['colour']['a']} {said['thing']['noun']}")
    if "food" in said:
        others.append(said["food"]["some"])
    if "place" in said:
        others.append(said["place"]["the"])
    if others and rng.random() < 0.3:
        return f"{rng.choice(subjects)} and {rng.choice(others)}"
    return rng.choice(subjects if not others or rng.random() < 0.6 else others)
