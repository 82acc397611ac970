"""What does a YAML file say, and on which line? A bounded, safe reader: text -> Node, with every fault a ConfigError.

Only what a configuration needs: one document of mappings, lists and plain values. Anchors, aliases, tags, duplicate keys
and keys that are not text are refused, since each of them makes a file say something else than it seems to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from modeld.errors import ConfigError
from modeld.printable import printable

MAX_BYTES = 1 << 20
MAX_DEPTH = 16
MAX_NODES = 50_000  # PyYAML reads some 50,000 a second

_TAG = "tag:yaml.org,2002:"
_SURROGATE = re.compile("[\ud800-\udfff]")  # "\ud800" is taken by PyYAML; such text cannot be written anywhere


@dataclass(frozen=True, slots=True)
class Node:
    """A value and the line it stands on (from 1).

    `value`: None, bool, int, float, str, a tuple of nodes or a mapping of nodes. `text`: a scalar as it is written, since
    YAML reads an unquoted `on` as true.
    """

    line: int
    value: bool | int | float | str | tuple[Node, ...] | Mapping[str, Node] | None
    text: str | None = None

    def __str__(self) -> str:
        """What was found, for a message."""
        if self.value is None:
            return "nothing"
        if isinstance(self.value, Mapping):
            return "a mapping"
        if isinstance(self.value, tuple):
            return "a list"
        shown = repr(self.value) if isinstance(self.value, str) else self.text or repr(self.value)
        return shown if len(shown) <= 80 else shown[:77] + "..."


def read(path: Path, expected: str = "a mapping with the key models") -> Node:
    """The file's one document. Raises ConfigError, naming the file and, where there is one, the line.

    `expected`: what the message says of a file that holds nothing.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the path
        raise ConfigError(f"{str(path)!r}: cannot be read: {error}") from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: more than {MAX_BYTES} bytes; expected a configuration in YAML")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: byte 0x{raw[error.start]:02x} is not UTF-8; expected YAML text") from None
    try:
        return _document(path, yaml.SafeLoader(text), expected)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = error.character if isinstance(error.character, int) else ord(error.character)
        raise ConfigError(f"{path}:{line}: the character U+{character:04X} is not allowed in YAML") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        said = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{where}: not valid YAML: {printable(said)}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None


def _document(path: Path, loader: yaml.SafeLoader, expected: str) -> Node:
    reader = _Reader(path, loader)
    reader.next()  # StreamStart
    if isinstance(first := reader.next(), yaml.StreamEndEvent):
        raise ConfigError(f"{path}: empty; expected {expected}")
    assert isinstance(first, yaml.DocumentStartEvent)
    node = reader.node(reader.next(), "", depth=0)
    reader.next()  # DocumentEnd
    if not isinstance(event := reader.next(), yaml.StreamEndEvent):
        raise reader.error(event, "", "a second document begins; expected one")
    return node


class _Reader:
    """One pass over the parser's events. They, not nodes, so that what is refused is refused before it is built."""

    def __init__(self, path: Path, loader: yaml.SafeLoader) -> None:
        self._path = path
        self._loader = loader
        self._n_nodes = 0

    def next(self) -> yaml.Event:
        return self._loader.get_event()  # type: ignore[no-untyped-call, no-any-return]

    def error(self, at: yaml.Event | Node, where: str, what: str) -> ConfigError:
        line = at.line if isinstance(at, Node) else _line(at)
        return ConfigError(f"{self._path}:{line}: {printable(where[:200])}{': ' if where else ''}{printable(what)}")

    def node(self, event: yaml.Event, where: str, *, depth: int) -> Node:
        """The node that begins with `event`; `where` is its key path."""
        if isinstance(event, yaml.AliasEvent):
            raise self.error(event, where, f"alias *{str(event.anchor)[:80]}: aliases are not supported; write the value out")
        assert isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent)
        if event.anchor is not None:
            raise self.error(event, where, f"anchor &{event.anchor[:80]}: anchors are not supported")
        if event.tag is not None:
            raise self.error(event, where, f"tag {str(event.tag)[:80]}: tags are not supported")
        self._n_nodes += 1
        if self._n_nodes > MAX_NODES:
            raise self.error(event, where, f"more than {MAX_NODES} values")
        if depth > MAX_DEPTH:
            raise self.error(event, where, f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, yaml.ScalarEvent):
            if _SURROGATE.search(event.value):
                raise self.error(event, where, "half of a surrogate pair, which is no character")
            return self.scalar(event)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Node] = []
            while not isinstance(item := self.next(), yaml.SequenceEndEvent):
                items.append(self.node(item, f"{where}[{len(items)}]", depth=depth + 1))
            return Node(_line(event), tuple(items))
        entries: dict[str, Node] = {}
        while not isinstance(item := self.next(), yaml.MappingEndEvent):
            key = self.node(item, where, depth=depth + 1)
            if not isinstance(key.value, str):
                raise self.error(key, where, f"a key must be text, found {key}")
            at = f"{where}.{key.value}" if where else key.value
            if key.value in entries:
                raise self.error(key, at, f"the key stands here twice, first on line {entries[key.value].line}")
            value = self.node(self.next(), at, depth=depth + 1)
            entries[key.value] = Node(key.line, value.value, value.text)  # a key's line is where a reader looks
        return Node(_line(event), entries)

    def scalar(self, event: yaml.ScalarEvent) -> Node:
        text = event.value
        tag = self._loader.resolve(yaml.ScalarNode, text, event.implicit)  # type: ignore[no-untyped-call]
        scalar = yaml.ScalarNode(tag, text)
        value: bool | int | float | str | None = text  # dates, `=` and `<<` are text here
        try:
            if tag == _TAG + "null":
                value = None
            elif tag == _TAG + "bool":
                value = bool(self._loader.construct_yaml_bool(scalar))
            elif tag == _TAG + "int" and ":" not in text:  # 8:30 is text, and not YAML 1.1's 510
                value = int(self._loader.construct_yaml_int(scalar))
            elif tag == _TAG + "float" and ":" not in text:
                value = float(self._loader.construct_yaml_float(scalar))
        except ValueError:
            value = text  # looks like a number and is none (0x_), or has more digits than Python converts
        return Node(_line(event), value, text)


def _line(event: yaml.Event) -> int:
    mark = event.start_mark
    return mark.line + 1 if mark is not None else 1
