"""`modeld manual`: what do the manual pages say? They are made of the parser and of the tables of keys, and shown or written."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from modeld import __date__, __version__, exits, outputs
from modeld.arguments import parser
from modeld.cli.commandtree import Flag, Node, Place, Value, tree
from modeld.cli.page import Block, Code, Entry, Heading, Page, Section, Text, to_roff, to_text
from modeld.config import DEFAULT_PATHS, ENVIRONMENT
from modeld.settings import LIMIT_KEYS, MODEL_KEYS, SERVER_KEYS, SWITCHING_KEYS, Key

CONFIGURATION = "modeld.yaml"
MANUALS = {1: "User Commands", 5: "File Formats"}

VARIABLES = {
    "MODELD_CONFIG": "Stands for `--config`.",
    **{name: f"Stands for `{key}` of `server` in the configuration." for name, key in ENVIRONMENT.items()},
    "MODELD_API_KEYS": "`modeld serve`: lines of keys, beside those of `server.api_key_file`.",
    "MODELD_SERVER": "The daemon that the client commands ask: http://HOST[:PORT], https://HOST[:PORT] or unix:/PATH.",
    "MODELD_API_KEY": "The key for a daemon that wants one: of the client commands and of `modeld doctor`.",
    "MODELD_LIBRARY": "The libllama.so to use in place of modeld's own. It needs its stamp beside it.",
    "MODELD_CPU_VARIANT": "Which library of a release build is used, by its name (x86-64-v3). Else the best that computes is "
    "found by trying.",
    "STATE_DIRECTORY": "The folder of what is remembered; systemd sets it. Else one below `XDG_STATE_HOME` or ~/.local/state.",
}

STATUSES = {
    exits.OK: "It is as wanted; `modeld serve` was stopped cleanly.",
    exits.FAILED: "A failure, or a finding; what was asked of the daemon failed or was refused.",
    exits.USAGE: "The command line is wrong.",
    exits.UNREACHABLE: "No daemon answered a client command.",
    exits.NOT_NOW: "The daemon cannot do it now, and may later: no model answers, its queue is full.",
    exits.DENIED: "A key is missing, unknown, or its scope is not enough.",
    exits.CUT: "Somebody else ended it: an op was cancelled or superseded, an answer cut by a switch.",
    exits.RUNS_ON: "The time to wait is over, and the op goes on.",
    exits.CONFIG: "The configuration is wrong (`modeld serve`, `modeld reload`), or client.yaml is.",
    exits.INTERRUPTED: "Interrupted from the terminal.",
}

EXAMPLE = """\
server:
  host: 127.0.0.1
  port: 8080
default_model: small           # loaded at the first start; null: none
models:
  - id: small
    path: /srv/models/small-q8_0.gguf
  - id: large
    path: /srv/models/large-q4_k_m.gguf
    n_ctx: 32768
    n_parallel: 8
"""


def run(args: argparse.Namespace) -> int:
    if args.output is not None:
        return _write(args.output, pages())
    names = (args.page, f"modeld-{args.page}") if args.page is not None else ("modeld",)
    return _show(next(page for page in pages() if page.name in names))


def _write(folder: Path, made: Iterable[Page]) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for page in made:
            (folder / page.file_name).write_text(roff(page))
    except OSError as error:
        print(f"modeld manual: cannot write to {folder}: {error.strerror}", file=sys.stderr)
        return exits.FAILED
    return exits.OK


def _show(page: Page) -> int:
    """Through man, which knows the terminal and its pager; as plain text where there is none, or it does not work."""
    if sys.stdout.isatty() and (man := shutil.which("man")) is not None:
        with tempfile.TemporaryDirectory(prefix="modeld-") as folder:
            path = Path(folder, page.file_name)
            path.write_text(roff(page))
            if subprocess.run([man, "-l", str(path)], check=False).returncode == 0:
                return exits.OK
    return outputs.write(sys.stdout, to_text(page, version=f"modeld {__version__}", manual=MANUALS[page.number])) or exits.OK


def roff(page: Page) -> str:
    return to_roff(page, date=__date__, version=f"modeld {__version__}", manual=MANUALS[page.number])


# -- what is on the pages -------------------------------------------------------------------------------------------------


def pages() -> list[Page]:
    """modeld(1), one for each command, modeld.yaml(5)."""
    program = tree(parser())
    return [_program(program), *(_command(node) for node in program.walk() if node is not program), _configuration()]


def _program(program: Node) -> Page:
    commands = [Entry(f"`{node.path}`", (_sentence(node.help),)) for node in program.nodes]
    return Page(
        program.name,
        1,
        (
            Section("NAME", (Text(f"{program.name} - keeps one llama.cpp model loaded and switches it on request"),)),
            Section("SYNOPSIS", (Text(_usage(program)),)),
            Section("DESCRIPTION", _texts(program.description)),
            Section(
                "COMMANDS",
                (
                    *commands,
                    Text("Each has a page of its own: " + ", ".join(f"`{_page(node)}`(1)" for node in program.nodes) + "."),
                ),
            ),
            Section("OPTIONS", tuple(_flag(flag) for flag in program.flags)),
            Section("ENVIRONMENT", tuple(Entry(f"`{name}`", (text,)) for name, text in VARIABLES.items())),
            Section(
                "FILES",
                (
                    Entry(" or ".join(f"`{path}`" for path in DEFAULT_PATHS), (f"The configuration, `{CONFIGURATION}`(5).",)),
                    Entry(
                        "`client.yaml` in `$XDG_CONFIG_HOME/modeld` or `~/.config/modeld`, else in `/etc/modeld`",
                        ("The daemon that is asked, and the key: `server`, `key_file`, `key`.",),
                    ),
                    Entry(
                        "`/var/lib/modeld`",
                        ("What the service remembers: which model answered last, quarantines, its switches.",),
                    ),
                ),
            ),
            Section("EXIT STATUS", tuple(Entry(f"`{status}`", (text,)) for status, text in STATUSES.items())),
            Section(
                "SEE ALSO", (Text(", ".join([*(f"`{_page(node)}`(1)" for node in program.nodes), f"`{CONFIGURATION}`(5)"])),)
            ),
        ),
    )


def _command(node: Node) -> Page:
    description, statuses = _description(node)
    sections = [
        Section("NAME", (Text(f"{_page(node)} - {node.help}"),)),
        Section("SYNOPSIS", (Text(_usage(node)),)),
        Section("DESCRIPTION", _texts(description) or (Text(_sentence(node.help)),)),
    ]
    if node.nodes:
        commands = [Entry(f"`{inner.path}`", (_sentence(inner.help),)) for inner in node.nodes]
        sections.append(Section("COMMANDS", tuple(commands)))
    if node.places:
        sections.append(
            Section("ARGUMENTS", tuple(Entry(_place(place), _meaning(place.help, place.value)) for place in node.places))
        )
    sections.append(Section("OPTIONS", tuple(_options(node))))
    if node.epilog:
        sections.append(Section("NOTES", _texts(node.epilog)))
    if statuses:
        sections.append(Section("EXIT STATUS", statuses))
    around = ["`modeld`(1)", *(f"`{_page(inner)}`(1)" for inner in node.nodes), f"`{CONFIGURATION}`(5)"]
    sections.append(Section("SEE ALSO", (Text(", ".join(around)),)))
    return Page(_page(node), 1, tuple(sections))


def _options(node: Node) -> Iterable[Block]:
    """Those of groups with a title of their own come under it."""
    plain = ("options", "")
    titles = list(dict.fromkeys(flag.title for flag in node.flags if flag.title not in plain))
    yield from (_flag(flag) for flag in node.flags if flag.title in plain)
    for title in titles:
        yield Heading(title[:1].upper() + title[1:])
        yield from (_flag(flag) for flag in node.flags if flag.title == title)


def _configuration() -> Page:
    grouped: tuple[tuple[str, str, tuple[Key, ...]], ...] = (
        ("server", "How it listens, whom it lets in, and what a connection may take.", SERVER_KEYS),
        ("switching", "How careful a switch is. What `POST /switch` says itself goes first.", SWITCHING_KEYS),
        (
            "limits",
            "What one client may take; 0 is no limit. `per_key` maps names of keys to other values of the same keys.",
            LIMIT_KEYS,
        ),
        (
            "models[]",
            "An entry for each model. Most keys have the names of llama-server's long flags, with underscores.",
            MODEL_KEYS,
        ),
    )
    keys: list[Block] = []
    for name, text, table in grouped:
        keys += [Heading(name), Text(text), *(_key(key) for key in table)]
    return Page(
        CONFIGURATION,
        5,
        (
            Section(
                "NAME",
                (
                    Text(
                        f"{CONFIGURATION}, models.yaml - configuration of modeld: which models there are, and how they are served"
                    ),
                ),
            ),
            Section(
                "DESCRIPTION",
                (
                    Text(
                        "One YAML file of at most 1 MiB of UTF-8 lists the models that `modeld`(1) may load and says where "
                        "it listens. It is the file that `--config` names, else `MODELD_CONFIG`, else "
                        + ", else ".join(f"`{path}`" for path in DEFAULT_PATHS)
                        + ". For single values: flag, then environment, then file, then default."
                    ),
                    Text(
                        "Anchors, aliases, tags, keys that are given twice and unknown keys are errors; each finding names "
                        "file, line and key. `modeld check` tells them all, and looks at the model files too."
                    ),
                ),
            ),
            Section(
                "KEYS",
                (
                    Entry("`models`", ("Required: a list of the models, which may be empty.",)),
                    Entry(
                        "`default_model`",
                        ("The id of the model that is loaded at the first start. Absent: the first of the list. null: none.",),
                    ),
                    Entry("`server`, `switching`, `limits`", ("Optional: mappings of the keys below.",)),
                    *keys,
                ),
            ),
            Section("EXAMPLES", (Code(EXAMPLE),)),
            Section("SEE ALSO", (Text("`modeld`(1), `modeld-serve`(1), `modeld-check`(1)"),)),
        ),
    )


def _key(key: Key) -> Entry:
    is_plain = key.default == "required" or " " in key.default
    default = key.default if is_plain else f"`{key.default}`"
    needed = "Required." if key.default == "required" else f"Default: {default}."
    return Entry(f"`{key.name}`", (_sentence(key.doc), f"Takes {key.kind.expected}. {needed}"))


# -- parts of pages -------------------------------------------------------------------------------------------------------


def _page(node: Node) -> str:
    return "-".join(node.words)


def _description(node: Node) -> tuple[str, tuple[Entry, ...]]:
    """Without its last sentence, `Exit status: 0 it is well, 1 it is not.`, which becomes a section."""
    text, _, said = node.description.partition("Exit status: ")
    entries = []
    for one in re.split(r"[,;] (?=\d)", said.rstrip(". ")) if said else ():
        status, meaning = re.fullmatch(r"(\d+)[,;]? ?(.*)", one, re.DOTALL).groups()  # type: ignore[union-attr]
        entries.append(Entry(f"`{status}`", (_sentence(meaning or "success"),)))
    return text, tuple(entries)


def _texts(text: str) -> tuple[Text, ...]:
    return tuple(Text(part) for part in text.split("\n\n") if part.strip())


def _sentence(text: str) -> str:
    """Names of files and of the program keep their small letters."""
    is_name = re.match(r"modeld\b|[a-z_-]+\.[a-z]", text) is not None
    return (text[:1] if is_name else text[:1].upper()) + text[1:].rstrip(".") + "."


def _usage(node: Node) -> str:
    """`--help` is left out: it is on every page below OPTIONS."""
    parts = [f"`{node.path}`"]
    told: set[Flag] = set()
    for flag in node.flags:
        if flag in told or "--help" in flag.names:
            continue
        together = next((group for group in node.exclusive if flag in group), (flag,))
        told.update(together)
        shown = " | ".join(_call(one, one.names[-1]) for one in together)
        more = " ..." if flag.repeats else ""
        parts.append(f"{shown}{more}" if flag.required and len(together) == 1 else f"[{shown}]{more}")
    parts += [_place(place) for place in node.places]
    if node.nodes:
        parts.append("<COMMAND> ...")
    return " ".join(parts)


def _call(flag: Flag, name: str) -> str:
    if flag.value is None:
        return f"`{name}`"
    value = _value(flag.value)
    return f"`{name}` [{value}]" if flag.optional else f"`{name}` {value}"


def _value(value: Value) -> str:
    return f"<{value.name}>" if value.is_named else "|".join(f"`{choice}`" for choice in value.choices)


def _place(place: Place) -> str:
    shown = _value(place.value)
    if place.most is None:
        return f"{shown} ..." if place.least else f"[{shown} ...]"
    return f"[{shown}]" if not place.least else " ".join([shown] * place.least)


def _flag(flag: Flag) -> Entry:
    return Entry(", ".join(_call(flag, name) for name in flag.names), _meaning(flag.help, flag.value))


def _meaning(text: str, value: Value | None) -> tuple[str, ...]:
    if value is None or not value.choices or not value.is_named:
        return (_sentence(text),)
    return (_sentence(text), "One of " + ", ".join(f"`{choice}`" for choice in value.choices) + ".")
