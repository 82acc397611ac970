"""Real shells on a terminal: what a line becomes when completions are asked for."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

DEADLINE_S = 60.0
ALL_MATCHES = "\x18a"  # C-x a, bound below: puts all candidates into the line, in place of the word

BASH = r"""
bind '"\C-xa": insert-completions'
source {script}
"""

ZSH = r"""
setopt no_nomatch
autoload -Uz compinit && compinit -D -u
zle -C all-matches complete-word _generic
bindkey '^Xa' all-matches
zstyle ':completion:all-matches::::' completer _all_matches _complete
zstyle ':completion:all-matches:*' old-matches false
zstyle ':completion:all-matches:*' insert true
source {script}
"""


class Shell:
    """bash or zsh on a pseudo terminal; context manager."""

    def __init__(self, name: str, script: Path, folder: Path, environment: Mapping[str, str]) -> None:
        setup = folder / f"setup.{name}"
        setup.write_text({"bash": BASH, "zsh": ZSH}[name].format(script=script))
        flags = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-f", "-i"]}[name]
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 4000, 0, 0))  # no line is wrapped
        self._process = subprocess.Popen(
            [name, *flags],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=folder,
            env={**environment, "TERM": "xterm", "PS1": "", "INPUTRC": "/dev/null", "HISTFILE": "/dev/null", "LC_ALL": "C.UTF-8"},
            start_new_session=True,
        )
        os.close(slave)
        self._n = 0
        self._seen = ""
        self._type(f"source {setup}; echo RE''ADY\r")
        self._read_to("READY")

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._master)

    def completed(self, line: str) -> list[str]:
        """The words that the line's last one becomes when all candidates are put in its place."""
        self._n += 1
        self._type(f"{line}{ALL_MATCHES}\x01echo LI''NE-{self._n}: \x05 EN''D-{self._n}\r")
        said = self._read_to(f"END-{self._n}").rpartition(f"LINE-{self._n}:")[2].split()
        return said[len(line.split()) - (not line.endswith(" ")) :]

    def _type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def _read_to(self, mark: str) -> str:
        deadline = time.monotonic() + DEADLINE_S
        while (found := self._seen.find(mark)) < 0:
            ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {mark} within {DEADLINE_S} s in {self._seen!r}"
            try:
                got = os.read(self._master, 65536)
            except OSError:  # EIO: nobody holds the other end any more
                got = b""
            assert got, f"the shell ended: {self._seen!r}"
            self._seen += got.decode(errors="replace")
        said, self._seen = self._seen[:found], self._seen[found + len(mark) :]
        return said


class Fish:
    """fish tells what it would offer by itself."""

    def __init__(self, script: Path, folder: Path, environment: Mapping[str, str]) -> None:
        self._script, self._folder = script, folder
        home = str(folder / ".home")
        self._environment = {**environment, "HOME": home, "XDG_CONFIG_HOME": home, "XDG_DATA_HOME": home}

    def __enter__(self) -> Fish:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def completed(self, line: str) -> list[str]:
        said = subprocess.run(
            ["fish", "--no-config", "-c", "source $argv[1]; complete -C $argv[2]", str(self._script), line],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert not said.stderr
        return [re.split(r"\t", offered)[0] for offered in said.stdout.splitlines()]


@contextlib.contextmanager
def shell(name: str, script: Path, folder: Path, environment: Mapping[str, str]) -> Iterator[Shell | Fish]:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed: apt-get install {name}")
    with Fish(script, folder, environment) if name == "fish" else Shell(name, script, folder, environment) as one:
        yield one
