"""Which stories are there? Each plot is a list of stages; a stage is a choice of sentences, and some stages may be left out.

A slot is written {variable.form} with the variables and forms of words.py. Direct speech holds one sentence only, so that a
story can be cut into sentences without knowing it.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stage:
    """One sentence of a story, chosen from templates. optional: the story also works without it."""

    templates: tuple[str, ...]
    optional: bool = False


def _must(*templates: str) -> Stage:
    return Stage(templates)


def _may(*templates: str) -> Stage:
    return Stage(templates, optional=True)


_OPENING = _must(
    "Once upon a time there was {trait.a} {kind.noun} named {hero.name}.",
    "Once there lived {trait.a} {kind.noun} called {hero.name}.",
    "{hero.name} was {trait.a} {kind.noun}.",
    "There was once {kind.a} whose name was {hero.name}.",
    "{hero.name} the {kind.noun} was {trait.word} and liked to play {game.word}.",
)
_HOME = _may(
    "{hero.He} lived {home.in} {place.at}.",
    "{hero.His} home was {home.in}.",
    "{hero.He} loved to play {game.word}.",
    "All the animals liked {hero.him}.",
)
_DAY = _must(
    "One {time.noun} {hero.name} went {place.to}.",
    "One {time.noun} {hero.name} was walking {place.to}.",
    "It was {weather.a} {time.noun}, and {hero.name} went {place.to}.",
    "On {weather.a} {time.noun} {hero.he} wanted to go {place.to}.",
)
_SCENE = _may("{weather.scene}.", "{hero.He} sang a song on the way.", "The {kind.noun} was all alone.")
_OWNED = _must(
    "{hero.He} had {colour.a} {thing.noun} and took it everywhere.",
    "{hero.He} had {colour.a} {thing.noun}.",
    "{hero.His} favourite toy was {colour.a} {thing.noun}.",
    "{hero.He} owned {colour.a} {thing.noun} and liked it very much.",
)
_SAD = _may(
    "The {kind.noun} was very {sad.word}.", "{hero.He} began to cry.", "{hero.name} felt {sad.word} and did not know what to do."
)
_MEETING = _must(
    "Then {fkind.a} named {friend.name} came along.",
    "There {hero.he} met {ftrait.a} {fkind.noun} called {friend.name}.",
    "Just then {hero.name} met {friend.name} the {fkind.noun}.",
    "{friend.name} the {fkind.noun} saw {hero.him} and came closer.",
)
_ASKING = _may(
    '"Why are you so {sad.word}?" asked {friend.name}.',
    '"Can I help you?" asked {friend.name}.',
    '"What has happened?" {friend.he} asked.',
)
_OFFER = _may(
    '"I will help you," said {friend.name}.', '{friend.name} said, "Do not worry."', "{friend.He} wanted to help {hero.name}."
)
_ENDING = _must(
    "{hero.name} was {glad.word} and thanked {friend.name}.",
    "The {kind.noun} was {glad.word} and thanked the {fkind.noun}.",
    "From that day on {hero.name} and {friend.name} were good friends.",
    "In the end the {kind.noun} and the {fkind.noun} went home together.",
    '"Thank you, {friend.name}," said {hero.name}, and both were {glad.word}.',
    "{hero.name} gave {friend.him} {food.some} and they laughed.",
)
_FED_ENDING = _must(*(template for template in _ENDING.templates if "food" not in template))
_CLOSING = _may(
    "That night the {kind.noun} slept very well.",
    "The two friends played {game.word} for a long time.",
    "{hero.He} never forgot that {time.noun}.",
    "They were {glad.word} for the rest of the {time.noun}.",
)

PLOTS: dict[str, tuple[Stage, ...]] = {
    "lost thing": (
        _OPENING,
        _OWNED,
        _DAY,
        _must(
            "Suddenly the {thing.noun} was gone.",
            "But {hero.he} lost {hero.his} {thing.noun} on the way.",
            "There {hero.he} could not find the {thing.noun} any more.",
        ),
        _SAD,
        _MEETING,
        _may('"I have lost my {colour.word} {thing.noun}," said {hero.name}.', '"My {thing.noun} is gone," said {hero.name}.'),
        _OFFER,
        _must(
            "Together they found the {thing.noun} {spot.at}.",
            "They looked {spot2.at} and found the {thing.noun} {spot.at}.",
            "{friend.name} looked {spot.at}, and there was the {colour.word} {thing.noun}.",
        ),
        _ENDING,
        _CLOSING,
    ),
    "broken thing": (
        _OPENING,
        _OWNED,
        _DAY,
        _SCENE,
        _must(
            "{hero.He} fell over a root, and the {thing.noun} broke.",
            "On the way {hero.he} dropped the {thing.noun}, and it broke.",
        ),
        _SAD,
        _MEETING,
        _may('"My {thing.noun} is broken," said {hero.name}.', '"Can you mend my {thing.noun}?" asked {hero.name}.'),
        _must(
            "{friend.name} took some string and mended the {thing.noun}.",
            "{friend.He} mended the {colour.word} {thing.noun} with some glue.",
        ),
        _may("Now the {thing.noun} was as good as new.", "The {thing.noun} was even better than before."),
        _ENDING,
        _CLOSING,
    ),
    "hunger": (
        _OPENING,
        _HOME,
        _DAY,
        _SCENE,
        _must(
            "After a while {hero.he} was hungry, but {hero.he} had nothing to eat.",
            "{hero.He} had forgotten {hero.his} lunch and was very hungry.",
        ),
        _MEETING,
        _may('"I am so hungry," said {hero.name}.', '"Do you have something to eat?" asked {hero.name}.'),
        _must(
            "{friend.name} shared {food.some} with {hero.him}.",
            "{friend.He} gave {hero.name} half of {food.the}.",
            '"I have {food.some} for you," said {friend.name}.',
        ),
        _may("They sat down {spot.at} and ate.", "{hero.name} ate {food.the} and felt much better."),
        _FED_ENDING,
        _CLOSING,
    ),
    "trapped": (
        _OPENING,
        _HOME,
        _DAY,
        _SCENE,
        _must("There {hero.he} heard a cry for help.", "Suddenly somebody called for help."),
        _must(
            "{friend.name} the {fkind.noun} was stuck {trap.in}.",
            "There was {ftrait.a} {fkind.noun} named {friend.name}, stuck {trap.in}.",
        ),
        _may('"Please help me," cried {friend.name}.', "{friend.He} was very {sad.word}.", "{friend.He} could not move."),
        _must(
            "{hero.name} found a rope and pulled {friend.him} {trap.out}.",
            "{hero.He} took a long stick and helped {friend.him} {trap.out}.",
        ),
        _may('"You are very brave," said {friend.name}.', '{friend.name} said, "Thank you, {hero.name}."'),
        _must(
            "{friend.name} was {glad.word} and gave {hero.him} {food.some}.",
            "From that day on {hero.name} and {friend.name} were good friends.",
            "In the end {hero.name} and {friend.name} went home together.",
        ),
        _CLOSING,
    ),
    "lost way": (
        _OPENING,
        _HOME,
        _DAY,
        _must(
            "On the way back {hero.he} could not find {hero.his} home.",
            "It grew dark, and {hero.he} did not know the way home.",
        ),
        _SAD,
        _MEETING,
        _ASKING,
        _may('"I have lost my way," said {hero.name}.', '"I want to go home," said {hero.name}.'),
        _must(
            "{friend.name} knew the way and walked home with {hero.him}.",
            "{friend.He} had a lamp and showed {hero.name} the way.",
            "{friend.name} took {hero.him} by the hand, and they went past the bridge.",
        ),
        _ENDING,
        _CLOSING,
    ),
    "noise": (
        _OPENING,
        _HOME,
        _must(
            "One {time.noun} {hero.name} heard {noise.a} {spot.at}.",
            "It was {weather.a} {time.noun}, and {hero.he} heard {noise.a}.",
        ),
        _must("{hero.He} was afraid and hid {spot2.at}.", "At first {hero.he} did not dare to look.", "{hero.name} was afraid."),
        _may('"Who is there?" asked {hero.name}.', "Then {hero.he} heard it again."),
        _must(
            "But it was only {friend.name} the {fkind.noun}.",
            "It was only {fkind.a} named {friend.name}.",
            "Then {hero.he} saw {ftrait.a} {fkind.noun} called {friend.name}.",
        ),
        _must(
            "{friend.name} was looking for {friend.his} {thing.noun}.",
            '"I only wanted to play {game.word}," said {friend.name}.',
            "{friend.He} was playing {game.word}.",
        ),
        _may("{hero.name} laughed and was not afraid any more.", "Now {hero.he} was brave again."),
        _must(
            "They played {game.word} for a long time.",
            "From that day on {hero.name} and {friend.name} were good friends.",
            "{hero.name} gave {friend.him} {food.some} and they laughed.",
        ),
        _CLOSING,
    ),
}

SHORTEST, LONGEST = 4, 9  # sentences of a story
