"""What do a person and the model say to each other? `modeld chat`: a conversation on a terminal, one question elsewhere."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time

from modeld import exits
from modeld.cli import failures, session
from modeld.cli.complete import answer_once, given_text
from modeld.cli.connection import Client
from modeld.cli.failures import Failure
from modeld.cli.generation import CHAT, Answer, generate, parameters, tell_stats, typed
from modeld.cli.terminal import Screen

PROMPT = "> "
HELP = """\
/help            this
/reset           begin a new conversation; the system message stays
/system TEXT     another system message, and a new conversation; without TEXT: none
/exit, Ctrl-D    end
Ctrl-C           end the answer that is being made; what there is of it stays in the conversation
A line that ends with \\ goes on in the next one."""

Message = dict[str, object]


def run_chat(args: argparse.Namespace) -> int:
    return session.run(_chat, args)


def _chat(args: argparse.Namespace, client: Client, screen: Screen) -> int:
    system = _system(None if args.system is None else typed(args.system, "--system"))
    if args.message or not sys.stdin.isatty():
        messages = [*system, {"role": "user", "content": given_text(args.message, "MESSAGE")}]
        return answer_once(args, client, screen, CHAT, {**parameters(args), "messages": messages})
    if screen.as_json:
        raise failures.usage("--json needs a MESSAGE, or one through a pipe; a conversation on a terminal is no JSON")
    return Conversation(args, system, client, screen).hold()


class Conversation:
    """What was said so far. Main thread only."""

    def __init__(self, args: argparse.Namespace, system: list[Message], client: Client, screen: Screen) -> None:
        self._args = args
        self._client = client
        self._screen = screen
        self._parameters = parameters(args)
        self._system = system
        self._said: list[Message] = []
        self._model = ""  # which answered last

    def hold(self) -> int:
        """Until /exit or the end of the input."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - input() edits lines with it, where this Python has it
        self._greet()
        while (text := self._ask()) is not None:
            if text.startswith("/"):
                if not self._command(text):
                    break
            elif text:
                self._answer(text)
        return exits.OK

    def _greet(self) -> None:
        self._model = self._client.get("/status").body.text("current_model")
        who = f"{self._model} answers" if self._model else "no model answers now (`modeld switch ID` loads one)"
        self._screen.line(
            self._screen.style(f"{who} at {self._client.target}. /help lists what else can be said; Ctrl-D ends.", "faint")
        )

    def _ask(self) -> str | None:
        """What the person says next; None: nothing more."""
        lines: list[str] = []
        while True:
            try:
                line = input("... " if lines else PROMPT)
            except EOFError:
                self._screen.line()
                return None
            except KeyboardInterrupt:  # as in a shell: what was typed goes
                self._screen.line()
                return ""
            # What the terminal sent may be no UTF-8, which the daemon refuses.
            lines.append(line.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
            if not line.endswith("\\"):
                return "\n".join(lines).strip()
            lines[-1] = lines[-1].removesuffix("\\")

    def _command(self, text: str) -> bool:
        """Whether the conversation goes on."""
        name, _, rest = text.partition(" ")
        if name in ("/exit", "/quit"):
            return False
        if name == "/reset":
            self._said = []
            self._screen.line("a new conversation")
        elif name == "/system":
            self._system, self._said = _system(rest.strip() or None), []
            self._screen.line(
                "a new conversation, with that system message" if self._system else "a new conversation, without a system message"
            )
        else:
            if name != "/help":
                self._screen.line(f"there is no {name[:40]!r}")
            self._screen.line(HELP)
        return True

    def _answer(self, text: str) -> None:
        self._said.append({"role": "user", "content": text})
        made: list[str] = []

        def show(piece: str) -> None:
            made.append(piece)
            self._screen.generated(piece)

        began = time.monotonic()
        body = {**self._parameters, "messages": [*self._system, *self._said]}
        try:
            answer = generate(self._client, CHAT, body, show, self._args)
        except Failure as failure:
            self._end_line(made)
            self._said.pop()  # as if it had not been said: it can be said again
            hint = "; /reset begins anew" if failure.code == "context_length_exceeded" else ""
            self._screen.say(f"{'the answer above is cut: ' if made else ''}{failure.message}{hint}")
            return
        except KeyboardInterrupt:
            answer = Answer("".join(made), "interrupted", self._model)
        self._end_line(made)
        self._said.append({"role": "assistant", "content": answer.text})
        self._tell_end(answer)
        if self._args.stats and answer.finish_reason != "interrupted":
            tell_stats(self._screen, answer, began)

    def _tell_end(self, answer: Answer) -> None:
        notes = []
        if answer.finish_reason == "length":
            notes.append("ended at the limit of tokens")
        if answer.finish_reason == "interrupted":
            notes.append("interrupted")
        if answer.model and answer.model != self._model:
            notes.append(f"{answer.model} answers now")
            self._model = answer.model
        if notes:
            self._screen.line(self._screen.style(f"({'; '.join(notes)})", "faint"))

    def _end_line(self, made: list[str]) -> None:
        if not (made and made[-1].endswith("\n")):
            self._screen.line()


def _system(text: str | None) -> list[Message]:
    return [] if text is None else [{"role": "system", "content": text}]
