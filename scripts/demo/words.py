"""Which words does the story language have? Tables of things that can stand in a sentence, each with the forms it takes.

A table's row is one thing; its columns are forms of it ("a fox", "fox"). Templates name a variable and a form, and both the
generator and the recogniser read them here and nowhere else.
"""

from collections.abc import Mapping

Row = Mapping[str, str]
Table = tuple[Row, ...]


def a(phrase: str) -> str:
    """With the indefinite article."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _nouns(words: str) -> Table:
    return tuple({"noun": word, "a": a(word)} for word in words.split(", "))


def _names(gender: str, words: str) -> Table:
    he, his, him = {"m": ("he", "his", "him"), "f": ("she", "her", "her")}[gender]
    return tuple(
        {"name": name, "he": he, "He": he.capitalize(), "his": his, "His": his.capitalize(), "him": him} for name in words.split()
    )


NAMES: Table = _names("m", "Tom Ben Max Sam Leo Finn Otto Hugo Jack Theo Oscar Paul") + _names(
    "f", "Mia Lily Anna Ella Rosa Nora Ida Emma Lucy Clara Olga Ruth"
)

KINDS = _nouns("fox, rabbit, bear, mouse, owl, cat, dog, frog, duck, hedgehog, squirrel, turtle, sheep, pig, pony, goose")

TRAITS = tuple(
    {"word": word, "a": a(word)}
    for word in "little, small, young, brave, clever, shy, kind, curious, quiet, merry, old".split(", ")
)

HOMES = tuple(
    {"in": f"in {a(home)}"}
    for home in "small house, cosy cave, old barn, green hut, tall tower, warm nest, wooden cabin".split(", ")
)

PLACES: Table = tuple(
    {"the": f"the {noun}", "at": f"{preposition} the {noun}", "to": f"to the {noun}"}
    for preposition, nouns in {
        "in": "forest, meadow, garden, valley",
        "at": "lake, river, market, farm, mill",
        "on": "hill, beach, island",
    }.items()
    for noun in nouns.split(", ")
)

# A day's weather, and a sentence about it that fits.
WEATHERS: Table = tuple(
    {"a": a(word), "scene": scene}
    for word, scene in {
        "sunny": "The sun was shining and the sky was blue",
        "rainy": "The rain was falling and the paths were wet",
        "windy": "The wind was blowing and the leaves were dancing",
        "snowy": "The snow was falling and the fields were white",
        "warm": "The air was warm and the bees were humming",
        "cold": "The air was cold and the ponds were frozen",
        "foggy": "The fog was thick and the hills were hidden",
    }.items()
)

TIMES: Table = tuple({"noun": noun} for noun in ("morning", "afternoon", "evening", "day"))

COLOURS = tuple({"word": word, "a": a(word)} for word in "red, blue, green, yellow, orange, white, brown, golden".split(", "))

# Things that can be owned, lost and mended.
THINGS = _nouns("ball, hat, kite, book, drum, key, bell, lamp, scarf, boat, cup, basket, umbrella, flute, wagon, mirror")

FOODS: Table = tuple(
    {"some": some, "the": "the " + some.split(" ", 1)[1]}
    for some in (
        "an apple", "a pear", "a cake", "some bread", "some soup", "some cheese", "a carrot", "some honey", "some berries",
        "a pancake",
    )
)  # fmt: skip

SPOTS: Table = tuple(
    {"at": at}
    for at in (
        "under a bush", "behind a stone", "under the bridge", "in the tall grass", "behind the fence", "in a hollow tree",
        "under a bench", "near the well",
    )
)  # fmt: skip

TRAPS: Table = tuple(
    {"in": where, "out": out}
    for where, out in {
        "in a deep hole": "out of the hole",
        "in the mud": "out of the mud",
        "in a net": "out of the net",
        "on a high rock": "down from the rock",
        "in a tall tree": "down from the tree",
        "on the thin ice": "off the ice",
    }.items()
)

NOISES: Table = tuple({"a": a(f"{how} noise")} for how in ("strange", "loud", "soft", "odd", "scary"))

GAMES: Table = tuple({"word": word} for word in ("hide and seek", "tag", "cards", "chess", "with the leaves", "in the water"))

SAD: Table = tuple({"word": word} for word in ("sad", "worried", "upset", "unhappy"))
GLAD: Table = tuple({"word": word} for word in ("happy", "glad", "proud", "cheerful"))

# The variables of a story. Variables that share a table (hero and friend, kind and fkind) never take the same row.
VARIABLES: Mapping[str, Table] = {
    "hero": NAMES, "friend": NAMES, "kind": KINDS, "fkind": KINDS, "trait": TRAITS, "ftrait": TRAITS, "home": HOMES,
    "place": PLACES, "weather": WEATHERS, "time": TIMES, "colour": COLOURS, "thing": THINGS, "food": FOODS, "spot": SPOTS,
    "spot2": SPOTS, "trap": TRAPS, "noise": NOISES, "game": GAMES, "sad": SAD, "glad": GLAD,
}  # fmt: skip
