"""What do the client commands take, and what do their manual pages say? Rows for arguments.py; nothing else is imported.

Figures that the daemon checks (ranges of a drain's time, of a sampler) are not checked here: its message is as good, and newer.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping
from pathlib import Path

SERVER = (
    "The server is http://127.0.0.1:8080 unless --server, MODELD_SERVER or the file client.yaml says otherwise; the key comes "
    "from --key-file, MODELD_API_KEY or client.yaml. "
)
_MEANINGS = {
    2: "usage",
    3: "no daemon answers",
    4: "the daemon cannot do it now, and may later",
    5: "a key is missing, unknown or not enough",
    78: "client.yaml or a key file has errors",
    130: "interrupted",
}


def _statuses(ok: str, more: Mapping[int, str] | None = None) -> str:
    """The last sentence of a description. `more`: beside, or instead of, what all commands have."""
    meanings = {0: ok, **_MEANINGS, **(more or {})}
    return "Exit status: " + ", ".join(f"{status} {meanings[status]}" for status in sorted(meanings)) + "."


_OP_ENDS = {
    1: "it failed, or was refused",
    6: "it was cancelled or superseded",
    7: "the time to wait is over, and it goes on",
}
_ANSWER_ENDS = {1: "it was refused, or failed", 6: "a switch or the stop of the daemon cut it"}

STATUS = (
    "Shows which model answers, what is being switched, and how busy the daemon is: the body of GET /status. "
    + SERVER
    + _statuses("the daemon answered, whatever it says", {4: "with --check: no model answers"})
)
MODELS = "Lists the registered models and which of them is loaded: GET /models. " + SERVER + _statuses("they are listed")
SWITCH = (
    "Asks the daemon to load another model: POST /switch. Without --wait it ends when the switch is accepted. With --wait it "
    "shows the progress, as a bar on a terminal and as lines elsewhere, and ends with the switch. An interrupt (Ctrl-C) ends the "
    "command and not the switch. What is not said is as the daemon's configuration has it. "
    + SERVER
    + _statuses("it is accepted; with --wait: the model answers", _OP_ENDS)
)
UNLOAD = (
    "Asks the daemon to unload its model, so that none answers: POST /unload. "
    + SERVER
    + _statuses("it is accepted; with --wait: it is unloaded", _OP_ENDS)
)
OPS = (
    "Lists switches and unloads, the newest first; shows one, waits for its end, or cancels it. An op that is cancelled after "
    "the old model has gone brings that back. "
    + SERVER
    + _statuses(
        "it is shown; with --wait: it succeeded, or with --cancel: it was cancelled",
        {**_OP_ENDS, 1: "there is no such op, or with --wait: it failed, or with --cancel: it has ended already"},
    )
)
EVENTS = (
    "Follows GET /events until it is interrupted: switches, their progress, reloads, the stop of the daemon. A connection that "
    "breaks is made again, and what was missed comes after. "
    + SERVER
    + _statuses("the reader of its output has gone, or with --until-ready: a model answers")
)
RELOAD = (
    "Has the daemon read its configuration file again: POST /reload. "
    + SERVER
    + _statuses(
        "it is taken over, or nothing has changed",
        {78: "the configuration has errors, and the old one goes on; or client.yaml or a key file has some"},
    )
)
COMPLETE = (
    "Has the loaded model go on with a text: POST /v1/completions. The text comes from the arguments (joined by spaces) or from "
    "standard input, and the answer is shown as it is made. A line feed is added at its end where it has none. "
    + SERVER
    + _statuses("the answer is whole", _ANSWER_ENDS)
)
CHAT = (
    "Talks to the loaded model: POST /v1/chat/completions. On a terminal without MESSAGE it is a conversation, which is kept: "
    "/help lists what else can be said, Ctrl-C ends an answer, Ctrl-D the conversation. With MESSAGE, or with a pipe for "
    "standard input, it asks once. " + SERVER + _statuses("the answer is whole", _ANSWER_ENDS)
)

_EVENT_ID = re.compile(r"[!-~]{0,128}")
_OP_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def _add_client(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the daemon that is asked")
    group.add_argument("--server", metavar="URL", help="its address: http://HOST[:PORT], https://HOST[:PORT] or unix:/PATH")
    group.add_argument("--key-file", type=Path, metavar="FILE", help="a file with the key on one line; nobody else may read it")
    group.add_argument("--key", nargs="?", action=_KeyForEverybody, help=argparse.SUPPRESS)
    group.add_argument(
        "--timeout",
        type=_seconds,
        metavar="S",
        help="seconds to wait for a connection and for an answer (default: 10; for generated text: no limit)",
    )
    group.add_argument("--json", action="store_true", help="write JSON for programs: one object on one line; errors, too")


class _KeyForEverybody(argparse.Action):
    """There only to be refused: argparse would repeat what it does not know, and so the key."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.error(
            "a key on the command line can be read by every user of this host; give it with --key-file FILE or MODELD_API_KEY"
        )


def add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="exit status 4 where no model answers (GET /readyz)")
    _add_client(parser)


def add_models(parser: argparse.ArgumentParser) -> None:
    _add_client(parser)


def add_switch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model_id", metavar="ID", help="the model to load; `modeld models` lists them")
    _add_wait(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="say what it would come to, and do nothing; exit status 1 if it would fail"
    )
    group = _add_leaving(parser)
    group.add_argument(
        "--on-failure", choices=("rollback", "error"), help="after a failed load: the model before comes back, or none answers"
    )
    group.add_argument(
        "--strategy",
        choices=("replace", "overlap", "auto"),
        help="unload the old model first, load the new one beside it, or that where both fit into memory",
    )
    group.add_argument("--force", action="store_true", help="whatever cooldown, quarantine and the estimate of memory say")
    _add_client(parser)


def add_unload(parser: argparse.ArgumentParser) -> None:
    _add_wait(parser)
    _add_leaving(parser)
    _add_client(parser)


def add_ops(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("op_id", nargs="?", type=_op_id, metavar="ID", help="show this one (default: list them)")
    parser.add_argument("--cancel", action="store_true", help="cancel the op ID")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="how many to list, 1..256 (default: 20)")
    _add_wait(parser)
    _add_client(parser)


def add_events(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--last-event-id",
        type=_event_id,
        default="",
        metavar="ID",
        help="begin with what came after this event, as far as it is held",
    )
    parser.add_argument("--until-ready", action="store_true", help="end when a model answers")
    _add_client(parser)


def add_reload(parser: argparse.ArgumentParser) -> None:
    _add_client(parser)


def add_complete(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="*", metavar="TEXT", help="the beginning of the text (default, or -: standard input)")
    _add_sampling(parser)
    _add_client(parser)


def add_chat(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("message", nargs="*", metavar="MESSAGE", help="ask this, and end (-: standard input)")
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    _add_sampling(parser)
    _add_client(parser)


# -- what several have


def _add_wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--wait", action="store_true", help="wait for its end, show the progress, and let the exit status tell the outcome"
    )
    parser.add_argument("--wait-timeout", type=_seconds, metavar="S", help="wait no longer than S seconds; then exit status 7")
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="show no progress and no result; errors and the exit status tell"
    )


def _add_leaving(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("how it is done (default: as the daemon's configuration has it)")
    group.add_argument("--on-inflight", choices=("cancel", "drain"), help="running requests are cut, or may end by themselves")
    group.add_argument("--drain-timeout", type=_number, metavar="S", help="seconds that they have for it")
    group.add_argument(
        "--ready-delay",
        type=_number,
        metavar="S",
        help="seconds from /readyz at 503 to the first refusal: balancers look away",
    )
    group.add_argument(
        "--on-busy",
        choices=("queue", "reject", "supersede"),
        help="where others run or wait: come after them, give up, or cancel them",
    )
    group.add_argument(
        "--if-generation",
        type=int,
        metavar="N",
        help="only if the generation of `modeld status` is N still: nobody has switched since",
    )
    return group


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how the text is made (default: as the daemon has it)")
    group.add_argument("--model", metavar="ID", help="only from this model; an error where another one is loaded")
    group.add_argument("--max-tokens", type=int, metavar="N", help="at most so many tokens")
    group.add_argument("--temperature", type=_number, metavar="T", help="0 is greedy")
    group.add_argument("--top-k", type=int, metavar="K", help="only the K likeliest tokens")
    group.add_argument("--top-p", type=_number, metavar="P", help="only the likeliest tokens that make up P together")
    group.add_argument("--min-p", type=_number, metavar="P", help="only tokens that are P times as likely as the likeliest")
    group.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")
    group.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; may be given again")
    group.add_argument("--grammar-file", type=Path, metavar="FILE", help="a GBNF grammar that the text follows")
    group.add_argument("--json-schema-file", type=Path, metavar="FILE", help="a JSON schema that the text follows")
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other parameter of the API; VALUE as JSON, else a text",
    )
    group.add_argument("--no-stream", action="store_true", help="show the text when it is whole")
    group.add_argument("--stats", action="store_true", help="tell on standard error how many tokens there were, and how fast")


def _seconds(text: str) -> float:
    value = _number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is no time; seconds above 0 are")
    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number")
    return value


def _event_id(text: str) -> str:
    """It becomes a header field."""
    if _EVENT_ID.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no id of an event; `modeld events --json` tells them")
    return text


def _op_id(text: str) -> str:
    if _OP_ID.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no id of an op; `modeld ops` lists them")
    return text
