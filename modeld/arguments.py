"""Which commands are there, and what does each take? COMMANDS, and the parser that is made of it.

Nothing is imported that a command needs: usage, `--version` and the pages that are made from this parser (manual, completions)
cost nothing else. A command's module is imported when it is run (app.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modeld import __version__
from modeld.addresses import parse_host
from modeld.cli import flags


@dataclass(frozen=True, slots=True)
class Command:
    name: str
    help: str  # one line, for the list of commands; begins with a small letter, no full stop
    run: str  # module:function, which takes the arguments and returns the exit status
    add: Callable[[argparse.ArgumentParser], None]  # declares what it takes
    description: str = ""  # what its manual page says beyond `help`: whole sentences, exit status included


ENVIRONMENT = (
    "Environment: MODELD_CONFIG, MODELD_HOST, MODELD_PORT, MODELD_LOG_LEVEL, MODELD_LOG_FORMAT, MODELD_API_KEYS. "
    "Order: flag, environment, file, default. Exit status: 0 clean stop, 1 failure, 2 usage, 78 bad configuration."
)

SHELLS = ("bash", "zsh", "fish")

DOCTOR = (
    "One report to carry out of a closed room: versions, the library and whether this processor really runs it, cores, memory, "
    "limits, configuration, model files, state, network, the systemd service, and the speed of a real decode. Each finding is "
    "ok, a note, a warning or a problem, with what to do about it; docs/doctor.md explains each. Nothing is changed, a daemon "
    "that runs is given way to, and neither keys nor contents of files are told. `MODELD_API_KEY` may hold the key for a daemon "
    "that wants one. Exit status: 0 nothing worse than a warning, 1 a problem."
)

COMPLETION = (
    "Prints a script that completes commands, flags, values and files, and the ids of models and ops as the daemon has them that "
    "the line is for. For one session: `source <(modeld completion bash)`, the same in zsh, `modeld completion fish | source`. "
    "For good, as a file: modeld below ~/.local/share/bash-completion/completions, _modeld in a folder of zsh's fpath, "
    "modeld.fish below ~/.config/fish/completions. Exit status: 0."
)

MANUAL = (
    "Shows a page, on a terminal through man. `--output` writes modeld.1, a page for each command and modeld.yaml.5, the same "
    "bytes each time. Exit status: 0, 1 if they cannot be written, 2 if there is no such page."
)


def parser() -> argparse.ArgumentParser:
    """Of the whole program. `parse_args` gives a namespace with `command`, a name in COMMANDS, and what that command takes."""
    made = argparse.ArgumentParser(
        prog="modeld",
        description="Keeps one llama.cpp model loaded, switches it on request, and says at every moment which model answers.",
        epilog=ENVIRONMENT,
    )
    made.add_argument("--version", action=_Version, nargs=0, help="show the versions of modeld and of its llama.cpp, and exit")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(
            commands.add_parser(command.name, help=command.help, description=command.description or None, allow_abbrev=False)
        )
    return made


class _Version(argparse.Action):
    """argparse's own wants the text beforehand, and llama.cpp's part of it is in a module that imports ctypes."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from modeld.llm.libllama import LLAMA_COMMIT

        print(f"modeld {__version__} (llama.cpp {LLAMA_COMMIT})")
        parser.exit()


# -- the host's own: serve, check, verify -------------------------------------------------------------------------------


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the registry (default: configs/models.yaml here, else /etc/modeld/models.yaml)",
    )


def _add_check(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    _add_json(parser)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help='write JSON for programs: {"ok", "findings": [...]} on one line, at the end'
    )


def _add_serve(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument(
        "--host",
        type=_hosts,
        action="append",
        metavar="ADDRESS",
        help="an address to listen on (default: 127.0.0.1); several: with commas, or this flag again",
    )
    parser.add_argument("--port", type=_port, help="port to listen on (default: 8080); 0 takes a free one")


def _add_verify(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument("model_ids", nargs="*", metavar="MODEL_ID", help="the models to look at (default: all)")
    _add_json(parser)


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the report there, and only its result here")
    parser.add_argument("--no-decode", action="store_true", help="compute nothing: no self-test of the library, no speed")
    parser.add_argument(
        "--server",
        type=_server,
        metavar="URL",
        help="the daemon to ask, http://HOST:PORT or unix:/PATH (default: where the configuration has it)",
    )


def _server(text: str) -> object:
    from modeld.doctor.network import parse_server

    try:
        return parse_server(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _add_completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="whose completion")


def _add_manual(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    pages = ("modeld", *(command.name for command in COMMANDS), "modeld.yaml")
    where.add_argument(
        "page", nargs="?", metavar="PAGE", choices=pages, help="modeld, a command, or modeld.yaml (default: modeld)"
    )
    where.add_argument("--output", type=Path, metavar="DIR", help="write all pages into this folder, as man takes them")


def _hosts(text: str) -> str:
    try:
        return ",".join(parse_host(part.strip()) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{port} is not a port; 0..65535 are")
    return port


COMMANDS = (
    Command("serve", "run the daemon in the foreground", "modeld.serving:run", _add_serve),
    Command("check", "check configuration and model files; exit status 0 or 1", "modeld.check:run_check", _add_check),
    Command(
        "verify",
        "compute the models' SHA-256 and compare it with the configuration; exit status 0 or 1",
        "modeld.check:run_verify",
        _add_verify,
    ),
    Command(
        "doctor",
        "look at this host, the configuration and the daemon, and say what to do; exit status 0 or 1",
        "modeld.doctor.doctor:run",
        _add_doctor,
        DOCTOR,
    ),
    Command(
        "status",
        "show which model answers, what is being switched, and how busy the daemon is",
        "modeld.cli.status:run_status",
        flags.add_status,
        flags.STATUS,
    ),
    Command("models", "list the registered models", "modeld.cli.status:run_models", flags.add_models, flags.MODELS),
    Command("switch", "have another model loaded", "modeld.cli.switch:run_switch", flags.add_switch, flags.SWITCH),
    Command("ops", "list switches and unloads; show, watch or cancel one", "modeld.cli.ops:run_ops", flags.add_ops, flags.OPS),
    Command("events", "follow what happens in the daemon", "modeld.cli.events:run_events", flags.add_events, flags.EVENTS),
    Command("unload", "have no model answer any more", "modeld.cli.switch:run_unload", flags.add_unload, flags.UNLOAD),
    Command(
        "reload", "have the daemon read its configuration again", "modeld.cli.switch:run_reload", flags.add_reload, flags.RELOAD
    ),
    Command("chat", "talk to the model", "modeld.cli.chat:run_chat", flags.add_chat, flags.CHAT),
    Command(
        "complete", "have the model go on with a text", "modeld.cli.complete:run_complete", flags.add_complete, flags.COMPLETE
    ),
    Command(
        "completion",
        "print the completion of the command line for a shell",
        "modeld.cli.completion:run",
        _add_completion,
        COMPLETION,
    ),
    Command("manual", "show a manual page, or write all of them", "modeld.cli.manual:run", _add_manual, MANUAL),
)
