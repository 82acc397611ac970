"""Client commands as a user runs them: in this process, in one of its own, and on a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest

from modeld.app import main
from tests.daemon import DEADLINE_S, ROOT

COMMAND = (sys.executable, "-m", "modeld")


@dataclass(frozen=True, slots=True)
class Done:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What stands on standard output, one object on one line."""
        [line] = self.out.splitlines()
        return json.loads(line)


class Client:
    """Runs commands in this process, with an environment in which nothing but the given server is configured."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: Path) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys
        self.home = home
        for name in ("MODELD_SERVER", "MODELD_API_KEY", "XDG_CONFIG_HOME", "NO_COLOR", "COLUMNS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.setattr("modeld.cli.target.SYSTEM_FOLDER", home / "etc")

    def at(self, url: str) -> Client:
        self._monkeypatch.setenv("MODELD_SERVER", url)
        return self

    def __call__(self, *args: str) -> Done:
        self._capsys.readouterr()
        try:
            status = main(list(args))
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        out, err = self._capsys.readouterr()
        return Done(status, out, err)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Client:
    return Client(monkeypatch, capsys, tmp_path)


def environment(url: str, home: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Of a process of its own."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
    return {**kept, "PYTHONPATH": str(ROOT), "HOME": str(home), "MODELD_SERVER": url, **(more or {})}


def run(url: str, home: Path, *args: str, text: str | None = None, **env: str) -> Done:
    """In a process of its own. `text`: its standard input, else there is none."""
    done = subprocess.run(
        [*COMMAND, *args],
        env=environment(url, home, env),
        input=text,
        stdin=subprocess.DEVNULL if text is None else None,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


class Terminal:
    """A command in a terminal of so many columns; `screen` is all that it has written. Context manager: ends it."""

    def __init__(self, url: str, home: Path, *args: str, columns: int = 80, **env: str) -> None:
        self.screen = ""
        self._master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.process = subprocess.Popen(
            [*COMMAND, *args],
            env=environment(url, home, {"TERM": "xterm", "LC_ALL": "C.UTF-8", **env}),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_own_terminal,
        )
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C, as the terminal sends it."""
        self.type("\x03")

    def until(self, text: str, since: int = 0) -> str:
        """All that was written from `since` on, once it holds `text`."""
        deadline = time.monotonic() + DEADLINE_S
        while text not in self.screen[since:]:
            assert self._read(deadline), f"{text!r} never came; the terminal shows {self.screen[since:]!r}"
        return self.screen[since:]

    def ended(self) -> int:
        """Its exit status, once it has ended and all it wrote is in `screen`."""
        deadline = time.monotonic() + DEADLINE_S
        while self._read(deadline):
            pass
        return self.process.wait(DEADLINE_S)

    def _read(self, deadline: float) -> bool:
        """False at the end: no process has the terminal any more."""
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"nothing was written within {DEADLINE_S} s; the terminal shows {self.screen!r}"
        try:
            data = os.read(self._master, 65536)
        except OSError:  # EIO: what Linux says when the other side is closed
            return False
        self.screen += data.decode(errors="replace")
        return bool(data)


def _own_terminal() -> None:
    """The slave becomes the controlling terminal of the new session, so that ^C is a signal."""
    ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
