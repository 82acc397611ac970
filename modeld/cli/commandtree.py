"""What does the command line take? The parser of arguments.py as plain values, for manual pages and completions. Pure.

argparse keeps what it was told in attributes with an underscore and nowhere else; they are read here and only here.
"""

from __future__ import annotations

import argparse
import enum
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


class Takes(enum.Enum):
    """What a value is, as far as a shell can offer some."""

    TEXT = "text"
    CHOICE = "choice"
    FILE = "file"
    FOLDER = "folder"
    MODEL = "models"
    OP = "ops"


# By the name that a value has in the usage, of which the last word counts: CONFIG_FILE is a file.
BY_NAME = {
    "FILE": Takes.FILE,
    "PATH": Takes.FILE,
    "DIR": Takes.FOLDER,
    "FOLDER": Takes.FOLDER,
}
# By the name that it has in the namespace.
BY_DEST = {
    "model": Takes.MODEL,
    "model_id": Takes.MODEL,
    "model_ids": Takes.MODEL,
    "op_id": Takes.OP,
}


@dataclass(frozen=True, slots=True)
class Value:
    name: str  # as the usage shows it
    takes: Takes
    choices: tuple[str, ...] = ()
    is_named: bool = True  # False: the choices stand in for a name


@dataclass(frozen=True, slots=True)
class Flag:
    names: tuple[str, ...]  # short ones before long ones
    value: Value | None
    optional: bool  # the value may be left out
    required: bool
    repeats: bool
    help: str
    title: str  # of the group that it was declared in


@dataclass(frozen=True, slots=True)
class Place:
    """A positional argument."""

    value: Value
    least: int
    most: int | None  # None: any number
    help: str


@dataclass(frozen=True, slots=True)
class Node:
    """The program, a command, or a command of a command."""

    words: tuple[str, ...]  # ("modeld", "switch")
    help: str  # one line
    description: str
    epilog: str
    flags: tuple[Flag, ...]
    places: tuple[Place, ...]
    exclusive: tuple[tuple[Flag, ...], ...]  # of each of these at most one
    nodes: tuple[Node, ...]

    @property
    def name(self) -> str:
        return self.words[-1]

    @property
    def path(self) -> str:
        return " ".join(self.words)

    def walk(self) -> Iterator[Node]:
        yield self
        for node in self.nodes:
            yield from node.walk()


def tree(parser: argparse.ArgumentParser, words: tuple[str, ...] = (), summary: str = "") -> Node:
    """What `parser` takes, its commands included; without what is declared with SUPPRESS as its help."""
    words = words or (parser.prog,)
    flags: dict[int, Flag] = {}
    places: list[Place] = []
    nodes: list[Node] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            told = {choice.dest: choice.help or "" for choice in action._choices_actions}
            nodes += [tree(inner, (*words, name), told[name]) for name, inner in action.choices.items() if name in told]
        elif action.help != argparse.SUPPRESS:
            if action.option_strings:
                flags[id(action)] = _flag(parser, action)
            else:
                places.append(_place(parser, action))
    exclusive = []
    for group in parser._mutually_exclusive_groups:
        members = tuple(flags[id(action)] for action in group._group_actions if id(action) in flags)
        if len(members) > 1:
            exclusive.append(members)
    return Node(
        words=words,
        help=summary,
        description=parser.description or "",
        epilog=parser.epilog or "",
        flags=tuple(flags.values()),
        places=tuple(places),
        exclusive=tuple(exclusive),
        nodes=tuple(nodes),
    )


def _flag(parser: argparse.ArgumentParser, action: argparse.Action) -> Flag:
    titles = [group.title or "" for group in parser._action_groups if action in group._group_actions]
    return Flag(
        names=tuple(sorted(action.option_strings, key=lambda name: name.startswith("--"))),
        value=None if action.nargs == 0 else _value(action),
        optional=action.nargs in (argparse.OPTIONAL, argparse.ZERO_OR_MORE),
        required=action.required,
        repeats=isinstance(action, argparse._AppendAction | argparse._CountAction),
        help=_help(parser, action),
        title=titles[0] if titles else "",
    )


def _place(parser: argparse.ArgumentParser, action: argparse.Action) -> Place:
    bounds: dict[int | str | None, tuple[int, int | None]] = {None: (1, 1), "?": (0, 1), "*": (0, None), "+": (1, None)}
    least, most = (action.nargs, action.nargs) if isinstance(action.nargs, int) else bounds[action.nargs]
    return Place(_value(action), least, most, _help(parser, action))


def _value(action: argparse.Action) -> Value:
    metavar = action.metavar[0] if isinstance(action.metavar, tuple) else action.metavar
    if action.choices is not None:
        choices = tuple(str(choice) for choice in action.choices)
        return Value(metavar or "|".join(choices), Takes.CHOICE, choices, is_named=metavar is not None)
    name = metavar or action.dest.upper()
    takes = BY_DEST.get(action.dest) or BY_NAME.get(name.rpartition("_")[2])
    return Value(name, takes or (Takes.FILE if action.type is Path else Takes.TEXT))


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """With %(default)s and the like put in."""
    return parser._get_formatter()._expand_help(action) if action.help else ""
