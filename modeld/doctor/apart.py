"""What if a look at the host hangs, raises or ends its process? Each is done in a process of its own, under a deadline.

A file on a server that does not answer holds whoever asks for it, sometimes beyond SIGKILL; a library may end the process. So the
doctor forks for each question, takes the answer through a pipe, and leaves behind a child that cannot be killed. It has one
thread, so a fork is a copy of all it knows, also where it runs out of one zip file.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import pickle
import selectors
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")

AT_ONCE = 8
REAP_S = 1.0  # a killed process is gone in milliseconds, unless it hangs in the kernel
MAX_ANSWER_BYTES = 16 << 20
MAX_SAID_BYTES = 1 << 14  # of what it writes to stderr, the end is kept
_STATUS_RAISED = 3


@dataclass(frozen=True, slots=True)
class Job(Generic[T]):
    look: Callable[[], T]  # its answer can be pickled
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """`value` where `failure` is empty. `hung`: it was ended by its deadline. `signal`: the name of what ended it, or empty."""

    value: T | None
    failure: str = ""
    hung: bool = False
    signal: str = ""
    said: str = ""  # the last lines that it wrote to stderr
    started: bool = True  # False: no process or pipe could be had


def ask(jobs: Sequence[Job[T]], *, at_once: int = AT_ONCE) -> list[Answer[T]]:
    """The answers in the order of the jobs. Call with one thread alive."""
    waiting = list(enumerate(jobs))[::-1]
    answers: dict[int, Answer[T]] = {}
    running: dict[int, _Child] = {}
    try:
        with selectors.PollSelector() as selector:
            while waiting or running:
                while waiting and len(running) < at_once:
                    index, job = waiting.pop()
                    try:
                        child = _Child(job)
                    except OSError as error:
                        answers[index] = Answer(None, f"could not be started: {error.strerror}", started=False)
                        continue
                    running[index] = child
                    for pipe, kept in ((child.answer, child.said_from), (child.words, child.said)):
                        selector.register(pipe, selectors.EVENT_READ, (index, kept))
                if not running:
                    break
                first = min(child.deadline for child in running.values())
                for key, _ in selector.select(max(0.0, first - time.monotonic())):
                    chunk = os.read(key.fd, 1 << 16)
                    index, kept = key.data
                    if chunk:
                        kept.extend(chunk)
                        if kept is running[index].said:
                            del kept[:-MAX_SAID_BYTES]
                    else:
                        selector.unregister(key.fd)
                        running[index].n_open -= 1
                now = time.monotonic()
                for index, child in list(running.items()):
                    too_much = len(child.said_from) > MAX_ANSWER_BYTES
                    if child.n_open and now < child.deadline and not too_much:
                        continue
                    for pipe in (child.answer, child.words):
                        with contextlib.suppress(KeyError):
                            selector.unregister(pipe)
                    answers[index] = child.end(hung=bool(child.n_open))
                    del running[index]
    finally:
        for child in running.values():
            child.end(hung=True)
    return [answers[index] for index in range(len(jobs))]


@dataclass(slots=True)
class _Child:
    """A forked process that does one job. Made, read and ended by the one thread of the parent."""

    job: Job[Any]
    answer: int = -1
    words: int = -1
    pid: int = 0
    deadline: float = 0.0
    n_open: int = 2
    said_from: bytearray = field(default_factory=bytearray)  # the pickled answer
    said: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.deadline = time.monotonic() + self.job.deadline_s
        pipes: list[int] = []
        try:
            pipes += os.pipe()
            pipes += os.pipe()
            self.pid = os.fork()
        except OSError:
            for end in pipes:
                os.close(end)
            raise
        self.answer, answer_end, self.words, words_end = pipes
        if not self.pid:
            _work(self.job, answer_end, words_end)
        os.close(answer_end)
        os.close(words_end)

    def end(self, *, hung: bool) -> Answer[Any]:
        """Kill it where it has not ended, reap it if that can be had, close the pipes."""
        os.close(self.answer)
        os.close(self.words)
        if hung:
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    kill(self.pid, signal.SIGKILL)
        status = _reaped(self.pid, REAP_S)
        said = _last_lines(bytes(self.said))
        if hung:
            left = "" if status is not None else ", and could not be ended: it hangs in the kernel"
            return Answer(None, f"did not end within {self.job.deadline_s:g} s{left}", hung=True, said=said)
        if status is None:
            return Answer(None, "closed its outputs and did not end", hung=True, said=said)
        if os.WIFSIGNALED(status):
            name = _signal_name(os.WTERMSIG(status))
            return Answer(None, f"was ended by {name}", signal=name, said=said)
        try:
            value, failure = pickle.loads(bytes(self.said_from))  # noqa: S301 - from our own child
        except Exception:  # noqa: BLE001 - whatever half an answer gives
            return Answer(None, f"ended with status {os.WEXITSTATUS(status)} and no answer", said=said)
        return Answer(value, failure, said=said)


def _work(job: Job[Any], answer: int, words: int) -> None:
    """In the child; never returns."""
    status = _STATUS_RAISED
    try:
        faulthandler.disable()  # it would write to what stderr was
        os.setpgid(0, 0)  # with what it starts it can be ended as one
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)  # whatever a library prints must not be taken for the report
        os.dup2(words, 2)
        try:
            found: tuple[Any, str] = (job.look(), "")
        except Exception as error:  # noqa: BLE001 - it costs this answer and nothing else
            found = (None, failure_of(error))
        data = memoryview(pickle.dumps(found))
        while data:
            data = data[os.write(answer, data) :]
        status = 0
    finally:
        os._exit(status)


def failure_of(error: BaseException) -> str:
    """What was raised, and where in modeld. Without its text, which may quote a file, unless the system says it."""
    what = type(error).__name__
    if isinstance(error, OSError) and error.errno is not None and error.errno in errno.errorcode:
        what += f": {os.strerror(error.errno)}"
    elif isinstance(error, ImportError) and error.name:
        what += f": {error.name}"
    place, trace = "", error.__traceback__
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        if "modeld" in path.parts:
            place = f" ({path.name}:{trace.tb_lineno})"
        trace = trace.tb_next
    return f"raised {what}{place}"


def _reaped(pid: int, seconds: float) -> int | None:
    """Its wait status; None: it has not ended in that time."""
    deadline = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.005)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _last_lines(said: bytes, n: int = 3) -> str:
    lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
    return "; ".join(line[:200] for line in lines[-n:])
