"""Commands whose output nobody reads, or that have no output, no input or no room: no traceback, and a true exit status."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from modeld import exits
from tests.command_line import COMMAND, Done, environment
from tests.daemon import DEADLINE_S
from tests.test_client_connection import ACCEPTED, ERROR, SNAPSHOT, Answer, Server, events, http

STATUS = http("200 OK", json.dumps({"state": "ready", "current_model": "a"}).encode())
NOT_READY = http("503 Service Unavailable", b'{"ready": false}')
FAILED_OP = http(
    "200 OK",
    json.dumps(
        {"op_id": "op-1", "target_model_id": "b", "state": "failed", "ended_at": 2.0, "error": {"code": "x", "message": "no"}}
    ).encode(),
)
PLAN = http("200 OK", json.dumps({"ok": False, "error": {"code": "model_not_found", "message": "none"}}).encode())


def through(shell: str, url: str, home: Path, *args: str, **env: str) -> Done:
    """`shell` says where the streams of "$@" lead."""
    done = subprocess.run(
        ["bash", "-c", shell, "bash", *COMMAND, *args],
        env=environment(url, home, env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def unread(url: str, home: Path, *args: str, errors_too: bool = False) -> tuple[int, str]:
    """Into a pipe whose reader has gone before anything is written: the exit status, and what went to standard error."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [*COMMAND, *args],
            env=environment(url, home),
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=writer if errors_too else subprocess.PIPE,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
    finally:
        os.close(writer)
    return done.returncode, done.stderr or ""


@pytest.mark.parametrize("errors_too", [False, True], ids=["out", "both"])
@pytest.mark.parametrize("more", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.parametrize(
    ("answers", "args", "status"),
    [
        ((events(SNAPSHOT, end=False), ACCEPTED, events(ERROR), FAILED_OP), ("switch", "b", "--wait"), exits.FAILED),
        ((PLAN,), ("switch", "b", "--dry-run"), exits.FAILED),
        ((STATUS, NOT_READY), ("status", "--check"), exits.NOT_NOW),
        ((b"",), ("models",), exits.UNREACHABLE),
        ((STATUS,), ("status",), exits.OK),
    ],
    ids=["switch", "plan", "check", "unreachable", "good"],
)
def test_a_reader_that_has_gone_makes_no_failure_good(
    answers: tuple[Answer, ...], args: tuple[str, ...], status: int, more: tuple[str, ...], errors_too: bool, tmp_path: Path
) -> None:
    with Server(*answers) as server:
        ended, said = unread(server.url, tmp_path, *args, *more, errors_too=errors_too)
    assert ended == status
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (("check", "--config", "none.yaml"), exits.FAILED),
        (("check", "--config", "none.yaml", "--json"), exits.FAILED),
        (("verify", "--config", "none.yaml", "--json"), exits.FAILED),
        (("completion", "bash"), exits.OK),
        (("manual", "switch"), exits.OK),
        (("--help",), exits.OK),
    ],
)
def test_what_asks_no_daemon_does_not_stumble_over_it_either(args: tuple[str, ...], status: int, tmp_path: Path) -> None:
    assert unread("", tmp_path, *args) == (status, "")


def test_an_answer_that_nobody_reads_is_given_up(tmp_path: Path) -> None:
    """The daemon computes it for nobody: the connection is closed while the answer goes on."""
    piece = b'data: {"choices": [{"text": "word "}]}\n\n'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

    def endless(peer: object) -> None:
        peer.sendall(head)  # type: ignore[attr-defined]
        while True:
            peer.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))  # type: ignore[attr-defined]

    with Server(endless) as server:
        assert unread(server.url, tmp_path, "complete", "x") == (exits.OK, "")


@pytest.mark.parametrize("args", [("status",), ("status", "--json"), ("completion", "zsh"), ("check", "--config", "none.yaml")])
def test_a_full_disk_is_said_and_is_a_failure(args: tuple[str, ...], tmp_path: Path) -> None:
    with Server(STATUS) as server:
        done = through('"$@" > /dev/full', server.url, tmp_path, *args)
    assert (done.status, done.err) == (exits.FAILED, "modeld: standard output cannot be written: No space left on device\n")


@pytest.mark.parametrize("closed", ["0<&-", ">&-", "2>&-", "0<&- >&- 2>&-"])
@pytest.mark.parametrize(("command", "status"), [("status", exits.OK), ("complete", exits.FAILED), ("chat", exits.FAILED)])
def test_closed_streams_are_no_fault(closed: str, command: str, status: int, tmp_path: Path) -> None:
    """complete and chat read nothing then, and the daemon says what it makes of that."""
    refusal = http("400 Bad Request", b'{"error": {"code": "invalid_request", "message": "empty"}}')
    with Server(STATUS if command == "status" else refusal) as server:
        done = through(f'"$@" {closed}', server.url, tmp_path, command)
    assert done.status == status
    assert "Traceback" not in done.err


def test_a_closed_descriptor_is_not_given_to_what_is_opened_next(tmp_path: Path) -> None:
    """What a library writes to standard error would go into a socket."""
    program = "from modeld import outputs; outputs.open_closed(); import os; print(os.open('/dev/null', os.O_RDONLY) > 2)"
    seen = subprocess.run(
        ["bash", "-c", f'"$0" -c "{program}" <&- 2>&-', COMMAND[0]],
        env=environment("", tmp_path),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert seen.stdout == "True\n"


def test_a_path_that_the_locale_cannot_write_is_escaped(tmp_path: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    done = through('"$@"', "", tmp_path, "check", "--config", f"{tmp_path}/gr\u00fcn.yaml", **plain)
    assert done.status == exits.FAILED
    assert "gr\\xfcn.yaml" in done.out + done.err or "gr\\udcc3\\udcbcn.yaml" in done.out + done.err, done
