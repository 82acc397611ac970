"""Client commands on a terminal: the bar of a switch in tmux and in a pty, conversations, Ctrl-C."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modeld import exits
from tests.command_line import Terminal, environment
from tests.daemon import DEADLINE_S, Daemon, demo_config
from tests.deep_model import deep_model

BAR = re.compile(r"deep  loading \(mmap\) +\[█+░+\]  +(\d+) %  (\d+\.\d) s")


TRIES = 10  # to stop the daemon in the middle of a load, which a busy machine may take for too long


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """With a model whose load takes long enough to be looked at."""
    folder = tmp_path_factory.mktemp("daemon")
    (folder / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    more = f"""\
  - {{id: deep, path: {deep_model(folder)}, n_ctx: 256, n_parallel: 1, n_threads: 1}}
  - {{id: broken, path: {folder}/broken.gguf}}
switching: {{probe: false}}
"""
    with Daemon(demo_config(folder, more, one_thread=True)) as daemon:
        yield daemon


class Tmux:
    """One window of a server of its own."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self._socket = folder / "tmux"
        variables = [f"{name}={value}" for name, value in env.items()]
        self("new-session", "-d", "-x", "80", "-y", "12", "env", "-i", *variables, "PS1=$ ", "TERM=screen", "sh")

    def __call__(self, *args: str) -> str:
        done = subprocess.run(
            ["tmux", "-S", str(self._socket), "-f", "/dev/null", *args],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def __enter__(self) -> Tmux:
        return self

    def __exit__(self, *exc: object) -> None:
        self("kill-server")

    def type(self, command: str) -> None:
        self("send-keys", "-l", command)
        self("send-keys", "Enter")

    def shows(self, pattern: str) -> str:
        """The window, once it matches."""
        deadline = time.monotonic() + DEADLINE_S
        while not re.search(pattern, shown := self("capture-pane", "-p")):
            assert time.monotonic() < deadline, f"{pattern!r} is never shown:\n{shown}"
            time.sleep(0.05)  # tmux tells nobody when its window changes
        return shown


@pytest.fixture
def tmux(daemon: Daemon, tmp_path: Path) -> Iterator[Tmux]:
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    with Tmux(tmp_path, environment(daemon.url, tmp_path, {"LC_ALL": "C.UTF-8"})) as window:
        yield window


def test_a_bar_in_tmux_shows_step_percent_and_a_clock_that_goes_on(daemon: Daemon, tmux: Tmux) -> None:
    for _ in range(TRIES):
        if stopped_in_mid_load(daemon, tmux):
            break
    try:
        [found] = BAR.findall(shown := tmux.shows(BAR.pattern))
        assert 0 < int(found[0]) < 100, shown
        later = tmux.shows(rf" {found[0]} %  (?!{re.escape(found[1])} s)")
        assert later.count("deep  ") == 1, later
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    shown = tmux.shows(r"status \d")
    assert re.search(r"\$ .*--wait; echo status \$\?\s+deep answers in [0-9.]+ s \(op-[0-9a-f]+\)\s+status 0\n", shown), shown
    tmux.type("clear")
    tmux.type(f"{sys.executable} -m modeld switch broken --wait; echo status $?")
    shown = re.sub(r"\n", "", tmux.shows(r"status 1"))
    assert "switch to broken failed: model_load_failed: cannot load " in shown


def stopped_in_mid_load(daemon: Daemon, tmux: Tmux) -> bool:
    """Switches to the deep model in the window and stops the daemon in the middle of it. False: the load was over before."""
    daemon.switched("demo-stories")
    tmux.type("clear")
    with daemon.events() as events:
        next(iter(events))
        tmux.type(f"{sys.executable} -m modeld switch deep --wait; echo status $?")
        events.until(lambda e: e.name == "model_loading_progress" and e.data["step"] == "mmap" and e.data["pct"] >= 20)
    daemon.process.send_signal(signal.SIGSTOP)
    if BAR.search(tmux.shows(rf"{BAR.pattern}|first decode|deep answers")):
        return True
    daemon.process.send_signal(signal.SIGCONT)
    tmux.shows(r"status \d")
    return False


def test_a_bar_is_wiped_away_before_the_outcome(daemon: Daemon, tmp_path: Path) -> None:
    with Terminal(daemon.url, tmp_path, "switch", "demo-calc", "--wait") as terminal:
        assert terminal.ended() == exits.OK
    *_, last = terminal.screen.rstrip("\r\n").split("\r")
    assert last.startswith("\x1b[32mdemo-calc answers\x1b[0m in ")
    assert "mmap" in terminal.screen


def test_without_colour_and_on_a_dumb_terminal(daemon: Daemon, tmp_path: Path) -> None:
    with Terminal(daemon.url, tmp_path, "switch", "demo-calc", "--wait", NO_COLOR="1", LC_ALL="POSIX", PYTHONUTF8="0",
                  PYTHONCOERCECLOCALE="0", columns=60) as terminal:  # fmt: skip
        assert terminal.ended() == exits.OK
    assert "\x1b" not in terminal.screen
    assert terminal.screen.isascii()
    assert all(len(line) < 60 for line in re.split(r"[\r\n]+", terminal.screen)[:-2])
    with Terminal(daemon.url, tmp_path, "switch", "demo-stories", "--wait", TERM="dumb") as terminal:
        assert terminal.ended() == exits.OK
    lines = terminal.screen.splitlines()
    assert lines[0].endswith("demo-stories: started (replace)")
    assert "\x1b" not in terminal.screen


def test_ctrl_c_leaves_the_switch_running_and_says_how_to_go_on(daemon: Daemon, tmp_path: Path) -> None:
    for _ in range(TRIES):
        daemon.switched("demo-stories")
        with Terminal(daemon.url, tmp_path, "switch", "deep", "--wait") as terminal:
            terminal.until("deep")
            daemon.process.send_signal(signal.SIGSTOP)
            try:
                terminal.interrupt()
                status = terminal.ended()
            finally:
                daemon.process.send_signal(signal.SIGCONT)
        if status != exits.OK:  # else it was over before
            break
    assert status == exits.INTERRUPTED
    found = re.search(
        r"modeld: interrupted; (op-[0-9a-f]+) goes on\. `modeld ops \1 --wait` watches it, `modeld ops \1 --cancel`",
        terminal.screen,
    )
    assert found, terminal.screen
    assert daemon.wait_op(found[1])["state"] == "succeeded"


# -- conversations


def test_a_conversation_is_kept_and_begun_anew(daemon: Daemon, tmp_path: Path) -> None:
    with Terminal(
        daemon.url, tmp_path, "chat", "--temperature", "0", "--max-tokens", "8", "--stats", "--system", "Be kind."
    ) as terminal:
        terminal.until("demo-stories answers at ")
        terminal.until("> ")
        first = say(terminal, "Tell me a story.", "8 made in")
        prompt = n_prompt(first)
        again = say(terminal, "Tell me a story.", "8 made in")
        assert n_prompt(again) > prompt
        say(terminal, "/reset", "a new conversation")
        assert n_prompt(say(terminal, "Tell me a story.", "8 made in")) == prompt
        say(terminal, "/system", "without a system message")
        assert n_prompt(say(terminal, "Tell me a story.", "8 made in")) < prompt
        assert "Ctrl-D" in say(terminal, "/help", "goes on in the next one.")
        assert "there is no '/nonsense'" in say(terminal, "/nonsense", "goes on in the next one.")
        say(terminal, "Two\\", "... ", "")
        say(terminal, "lines.", "8 made in")
        daemon.switched("demo-calc")
        say(terminal, "1+2=", "demo-calc answers now")
        terminal.type("\x04")
        assert terminal.ended() == exits.OK


def say(terminal: Terminal, text: str, until: str, prompt: str = "> ") -> str:
    """Types a line; gives what the terminal shows from then on to the prompt that follows `until`."""
    since = len(terminal.screen)
    terminal.type(text + "\r")
    terminal.until(until, since)
    terminal.until(prompt, terminal.screen.index(until, since))
    return terminal.screen[since:]


def n_prompt(shown: str) -> int:
    [found] = re.findall(r"(\d+) tokens of prompt", shown)
    return int(found)


def test_ctrl_c_ends_an_answer_and_keeps_the_conversation(daemon: Daemon, tmp_path: Path) -> None:
    with Terminal(daemon.url, tmp_path, "chat", "--set", "ignore_eos=true") as terminal:
        terminal.until("> ")
        since = len(terminal.screen)
        terminal.type("Tell me a story.\r")
        terminal.until("a", since + len("Tell me a story.\r\n"))
        terminal.interrupt()
        terminal.until("(interrupted)", since)
        daemon.wait_status(lambda status: status["slots"]["busy"] == 0)
        terminal.until("> ", since + terminal.screen[since:].index("(interrupted)"))
        since = len(terminal.screen)
        terminal.type("never sent")
        terminal.until("never sent", since)
        since = len(terminal.screen)
        terminal.interrupt()
        terminal.until("> ", since)
        terminal.type("/exit\r")
        assert terminal.ended() == exits.OK
    assert "Traceback" not in terminal.screen


def test_an_answer_that_a_switch_cuts_is_told_and_can_be_asked_again(daemon: Daemon, tmp_path: Path) -> None:
    with Terminal(daemon.url, tmp_path, "chat", "--set", "ignore_eos=true", "--max-tokens", "400") as terminal:
        terminal.until("> ")
        since = len(terminal.screen)
        terminal.type("Tell me a story.\r")
        terminal.until("a", since + len("Tell me a story.\r\n"))
        assert daemon.switched("demo-calc")["state"] == "succeeded"
        terminal.until("the answer above is cut: the model was switched from 'demo-stories' to 'demo-calc'", since)
        terminal.type("\x04")
        assert terminal.ended() == exits.OK


def test_a_conversation_is_no_json(daemon: Daemon, tmp_path: Path) -> None:
    with Terminal(daemon.url, tmp_path, "chat", "--json") as terminal:
        assert terminal.ended() == exits.USAGE
    with Terminal(daemon.url, tmp_path, "complete") as terminal:
        assert terminal.ended() == exits.USAGE
    assert "TEXT is missing" in terminal.screen
