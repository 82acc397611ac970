"""What a client command says where the daemon is not there, is something else, breaks off, or says no; events across breaks."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modeld import exits
from modeld.cli import connection, eventstream, failures
from modeld.cli.connection import Client as Connection
from modeld.cli.eventstream import Patience, follow
from modeld.cli.failures import Failure
from modeld.cli.generation import typed
from modeld.cli.target import parse_server
from modeld.errors import ModeldError
from tests.command_line import Client, client  # noqa: F401 - a fixture
from tests.daemon import DEADLINE_S

TLS = b"\x16"  # what a client's hello begins with

Answer = bytes | Callable[[socket.socket], None]


class Server:
    """Gives one answer after the other, one a connection; the last one again and again. Keeps the requests' heads."""

    def __init__(self, *answers: Answer, context: ssl.SSLContext | None = None) -> None:
        self.heads: list[str] = []
        self._answers = itertools.chain(answers, itertools.repeat(answers[-1]))
        self._context = context
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{self._socket.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(peer, next(self._answers)))
            self._threads.append(thread)
            thread.start()

    def _serve(self, peer: socket.socket, answer: Answer) -> None:
        with contextlib.suppress(OSError), peer:
            peer.settimeout(DEADLINE_S)
            with self._context.wrap_socket(peer, server_side=True) if self._context else peer as wrapped:
                head = b""
                while b"\r\n\r\n" not in head and not head.startswith(TLS) and (data := wrapped.recv(65536)):
                    head += data
                self.heads.append(head.decode(errors="replace"))
                if callable(answer):
                    answer(wrapped)
                else:
                    wrapped.sendall(answer)
                    wrapped.shutdown(socket.SHUT_WR)
                    while wrapped.recv(65536):
                        pass


def http(status: str, body: bytes, kind: str = "application/json", *fields: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def refusal(status: str, code: str, message: str, *fields: str) -> bytes:
    return http(
        status,
        json.dumps({"error": {"message": message, "type": "x", "param": None, "code": code}}).encode(),
        "application/json",
        *fields,
    )


def events(*frames: str, end: bool = True) -> bytes:
    body = "".join(frames).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + f"{len(body):x}\r\n".encode() + body + b"\r\n" + (b"0\r\n\r\n" if end else b"")


def frame(event_id: str, name: str, **data: object) -> str:
    return f"id: {event_id}\nevent: {name}\ndata: {json.dumps(data)}\n\n"


def of(url: str, timeout_s: float = DEADLINE_S) -> Connection:
    return Connection(parse_server(url, "here"), timeout_s)


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address at which nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


def test_nobody_listens(client: Client, nobody: str) -> None:  # noqa: F811
    done = client.at(nobody)("status")
    assert done.status == exits.UNREACHABLE
    assert done.out == ""
    assert f"no daemon can be reached at {nobody} (connection refused; this address is from: MODELD_SERVER)" in done.err
    assert "--server URL" in done.err
    done = client("models", "--json")
    assert done.status == exits.UNREACHABLE
    assert done.json["error"]["code"] == "unreachable"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("unix:/nonexistent/modeld.sock", "no such file or directory"),
        (f"unix:/{'x' * 200}", "too long"),
        ("http://modeld.invalid:8080", "no daemon can be reached"),
    ],
)
def test_addresses_that_lead_nowhere(client: Client, url: str, said: str) -> None:  # noqa: F811
    done = client.at(url)("status")
    assert done.status == exits.UNREACHABLE
    assert said in done.err.lower()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (http("200 OK", b"<html>hello", "text/html"), "not modeld: status 200 with text/html, which begins with '<html>hello'"),
        (
            http("302 Found", b"", "text/html", "Location: http://elsewhere/"),
            "points to http://elsewhere/, which is not followed",
        ),
        (http("200 OK", b"[1]"), "not modeld"),
        (http("200 OK", b"[" * 100_000), "not modeld"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP"),
        (b"", "closed the connection without an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{", "99 bytes before the answer did"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "broke in the middle"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "does not speak HTTP"),
        (http("200 OK", b"\x1b[2J\x1b]0;x\x07", "text/\x1b[2Jx"), "not modeld"),
    ],
    ids=["html", "redirect", "array", "deep", "ssh", "closed", "cut", "chunk", "fields", "hostile"],
)
def test_what_is_not_modeld_is_said(client: Client, answer: bytes, said: str) -> None:  # noqa: F811
    with Server(answer) as server:
        done = client.at(server.url)("status")
    assert done.status == exits.UNREACHABLE
    assert said in done.err
    assert done.err.rstrip("\n").isprintable()


def test_an_answer_without_an_end_is_given_up(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(connection, "MAX_ANSWER_BYTES", 1000)

    def endless(peer: socket.socket) -> None:
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        while True:
            peer.sendall(b" " * 1000)

    with Server(endless) as server:
        done = client.at(server.url)("status")
    assert done.status == exits.UNREACHABLE
    assert "more than 1000 bytes" in done.err


def test_a_silent_server_is_given_up_after_the_timeout(client: Client) -> None:  # noqa: F811
    with Server(silence) as server:
        done = client.at(server.url)("status", "--timeout", "0.2")
    assert done.status == exits.UNREACHABLE
    assert "has not answered within 0.2 s; --timeout S waits longer" in done.err


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (
            refusal("401 Unauthorized", "invalid_api_key", "a key is needed"),
            exits.DENIED,
            "No key was sent; a key of scope use comes from --key-file",
        ),
        (
            refusal("503 Service Unavailable", "model_loading", "it loads", "Retry-After: 7"),
            exits.NOT_NOW,
            "it loads; try again in 7 s",
        ),
        (refusal("507 x", "insufficient_memory", "needs 9 GB"), exits.FAILED, "needs 9 GB"),
        (refusal("503 x", "from_the_future", "later"), exits.NOT_NOW, "later"),
        (refusal("404 Not Found", "not_found", "there is no /status here"), exits.FAILED, "a modeld of this version"),
        (refusal("500 x", "internal_error", "line one\nline two\x1b[2J"), exits.FAILED, "line one\nline two\\x1b[2J"),
        (http("404 Not Found", b'{"detail": "Not Found"}'), exits.FAILED, "answers with status 404 and no message"),
        (
            refusal("503 x", "model_loading", "it loads", "Retry-After: \u0663".encode().decode("latin-1")),
            exits.NOT_NOW,
            "it loads",
        ),
    ],
)
def test_what_the_daemon_refuses_is_told_in_its_words(client: Client, answer: bytes, status: int, said: str) -> None:  # noqa: F811
    with Server(answer) as server:
        done = client.at(server.url)("status")
        assert done.status == status
        assert said in done.err
        done = client("status", "--json")
    assert done.status == status
    assert done.json["error"]["message"]


def test_every_error_of_the_daemon_has_an_exit_status() -> None:
    kinds = [ModeldError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    found = {kind.code: failures.exit_status(kind.code, kind.status) for kind in kinds}
    assert found["model_loading"] == found["queue_full"] == found["model_cooldown"] == found["switch_rejected"] == exits.NOT_NOW
    assert found["shutting_down"] == found["no_model"] == exits.NOT_NOW
    assert found["model_switched"] == found["op_cancelled"] == exits.CUT
    assert found["invalid_api_key"] == found["permission_denied"] == found["host_not_allowed"] == exits.DENIED
    assert found["config_error"] == exits.CONFIG
    assert found["model_quarantined"] == found["generation_mismatch"] == found["model_not_found"] == exits.FAILED
    assert failures.exit_status("shutting_down", 0) == exits.CUT


def test_the_key_is_sent_and_never_shown(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    key = "a-key-of-somebody-0123456789"
    monkeypatch.setenv("MODELD_API_KEY", key)
    with Server(refusal("401 x", "invalid_api_key", "unknown key")) as server:
        for args in (("status",), ("status", "--json"), ("switch", "x"), ("complete", "x"), ("events",)):
            done = client.at(server.url)(*args)
            assert done.status == exits.DENIED
            assert "The key came from MODELD_API_KEY" in done.err
            assert key not in done.err + done.out
    assert all(f"Authorization: Bearer {key}\r\n" in head for head in server.heads)


def test_a_prefix_goes_before_each_path(client: Client) -> None:  # noqa: F811
    with Server(http("200 OK", b"{}")) as server:
        client.at(server.url + "/gpu-1/")("status")
    assert server.heads[0].startswith("GET /gpu-1/status HTTP/1.1\r\n")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of 127.0.0.1, signed by itself; the key stands in the same file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    path = tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=modeld test", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", path, "-out", tmp_path / "only.pem"],
        check=True, capture_output=True, timeout=DEADLINE_S,
    )  # fmt: skip
    path.write_bytes(path.read_bytes() + (tmp_path / "only.pem").read_bytes())
    return path


def test_tls_trusts_what_the_system_trusts(client: Client, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Server(http("200 OK", b"{}"), context=context) as server:
        done = client.at(server.url)("status")
        assert done.status == exits.UNREACHABLE
        assert "its certificate is not trusted: self-signed certificate" in done.err.replace("self signed", "self-signed")
        assert "SSL_CERT_FILE" in done.err
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert client("status").status == exits.OK


def test_tls_where_there_is_none_is_said(client: Client) -> None:  # noqa: F811
    with Server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as server:
        done = client.at(server.url.replace("http:", "https:"))("status")
    assert done.status == exits.UNREACHABLE
    assert "Does it speak TLS at all?" in done.err


# -- events


def silence(peer: socket.socket) -> None:
    """Until the client has had enough."""
    peer.recv(1)


def seen(server: Server, patience: Patience, n: int) -> list[str]:
    return [event.name for event in itertools.islice(follow(of(server.url), "", patience), n)]


def test_a_stream_that_breaks_goes_on_behind_its_last_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventstream, "FIRST_DELAY_S", 0.01)
    lost: list[str] = []
    first = events(frame("1", "snapshot"), frame("2", "a"), "id: 3\nevent: cut\nda", end=False)
    with Server(first, refusal("503 x", "too_many_connections", "full"), events(": comment\n\n", frame("3", "b"))) as server:
        assert seen(server, Patience(on_lost=lambda reason, _: lost.append(reason)), 3) == ["snapshot", "a", "b"]
    assert [head.partition("Last-Event-ID: ")[2].partition("\r\n")[0] for head in server.heads[:3]] == ["", "2", "2"]
    assert lost[1] == "full"


def test_the_first_connection_must_succeed() -> None:
    with Server(refusal("503 x", "too_many_connections", "full")) as server, pytest.raises(Failure, match="full"):
        seen(server, Patience(), 1)


def test_a_no_for_good_ends_the_following(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventstream, "FIRST_DELAY_S", 0.01)
    answers = events(frame("1", "snapshot")), refusal("401 x", "invalid_api_key", "revoked")
    with Server(*answers) as server, pytest.raises(Failure, match="revoked"):
        seen(server, Patience(), 2)


def test_a_daemon_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventstream, "FIRST_DELAY_S", 0.01)
    with Server(events(frame("1", "snapshot")), b"") as server, pytest.raises(Failure, match="without an answer"):
        seen(server, Patience(give_up_s=0.05), 2)


@pytest.mark.parametrize("broken", [events(), events("data: x", end=False)], ids=["ended", "cut"])
@pytest.mark.parametrize("before", [(), (events(frame("1", "snapshot")),)], ids=["first", "later"])
def test_streams_that_bring_nothing_are_given_up(
    before: tuple[bytes, ...], broken: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that cannot stream answers each request, and ends it."""
    monkeypatch.setattr(eventstream, "FIRST_DELAY_S", 0.01)
    with Server(*before, broken) as server, pytest.raises(Failure, match="the stream of events") as raised:
        seen(server, Patience(give_up_s=0.05), 2)
    assert raised.value.status == exits.UNREACHABLE


@pytest.mark.parametrize(
    "stream",
    ["data: " + "x" * 2000, "data: x\n" * 200, "data: x\n:\n" * 200],
    ids=["line", "lines", "with-comments"],
)
def test_an_event_without_an_end_is_dropped(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventstream, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(eventstream, "MAX_LINE", 1000)
    lost: list[str] = []
    with Server(events(stream), events(frame("1", "snapshot"))) as server:
        assert seen(server, Patience(on_lost=lambda reason, _: lost.append(reason)), 1) == ["snapshot"]
    assert "bytes" in lost[0]


def test_what_the_standard_allows_is_read() -> None:
    frames = ':c\n\nid:7\r\nevent:n\r\ndata:{\r\ndata: "a":1}\r\n\r\ndata\n\nretry: 5\nunknown: x\ndata: y\n\n'
    with Server(events(frames)) as server, of(server.url).open("GET", "/events") as stream:
        found = [event for event in eventstream.read(stream, lambda: DEADLINE_S) if event.name or event.data]
    assert (found[0].id, found[0].name, found[0].record.raw) == ("7", "n", {"a": 1})
    assert [event.data for event in found[1:]] == ["y"]


# -- a switch that is waited for, across breaks

SNAPSHOT = frame("a-1", "snapshot", state="ready", current_model="a", op=None)
ACCEPTED = http("202 Accepted", json.dumps({"op_id": "op-1", "target_model_id": "b", "state": "queued"}).encode())
ENDED = {"op_id": "op-1", "kind": "switch", "target_model_id": "b", "started_at": 1.0, "ended_at": 2.5, "error": None}
SUCCEEDED = http("200 OK", json.dumps({**ENDED, "state": "succeeded"}).encode())
RUNS = http("200 OK", json.dumps({**ENDED, "state": "running", "ended_at": None}).encode())
READY = frame("a-2", "model_ready", op_id="op-1", target_model_id="b", current_model_id="b")
ERROR = frame("a-2", "model_error", op_id="op-1", target_model_id="b", code="model_load_failed", message="no", rolled_back_to="a")
GAP = frame("b-9", "resync", reason="x")


@pytest.mark.parametrize(
    ("answers", "status", "said"),
    [
        ([events(READY), SUCCEEDED], exits.OK, "b answers in 1.50 s (op-1)"),
        ([events(GAP, end=False), SUCCEEDED], exits.OK, "b answers in 1.50 s (op-1)"),
        ([events(GAP, end=False), RUNS, events(READY), SUCCEEDED], exits.OK, "b answers in 1.50 s (op-1)"),
        ([events(GAP, end=False), refusal("429 x", "rate_limit_exceeded", "slower"), b"", SUCCEEDED], exits.OK, "b answers in"),
        ([b"", refusal("503 x", "too_many_connections", "full"), events(READY), SUCCEEDED], exits.OK, "b answers"),
        ([events(READY), b""], exits.OK, "b answers (op-1)"),
        ([events(ERROR), b""], exits.FAILED, "op-1 switch to b failed: model_load_failed: no; a was brought back and answers"),
        (
            [events(GAP), refusal("404 x", "not_found", "no op")],
            exits.FAILED,
            "the daemon has restarted and knows nothing of op-1",
        ),
        ([refusal("401 x", "invalid_api_key", "revoked")], exits.DENIED, "revoked"),
    ],
    ids=[
        "replayed",
        "gap",
        "gap-and-on",
        "gap-and-busy",
        "full",
        "gone-at-the-end",
        "gone-after-an-error",
        "restarted",
        "revoked",
    ],
)
def test_the_outcome_is_learned_across_breaks(
    client: Client,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    answers: list[bytes],
    status: int,
    said: str,
) -> None:
    monkeypatch.setattr(eventstream, "FIRST_DELAY_S", 0.01)
    with Server(events(SNAPSHOT, end=False), ACCEPTED, *answers) as server:
        done = client.at(server.url)("switch", "b", "--wait")
    assert (done.status, said in done.out + done.err) == (status, True), done
    assert [head.split()[1] for head in server.heads[:3]] == ["/events", "/switch", "/events"]
    assert "Last-Event-ID: a-1\r\n" in server.heads[2]


def test_nothing_is_asked_for_where_its_end_could_not_be_seen(client: Client) -> None:  # noqa: F811
    with Server(refusal("503 x", "too_many_connections", "256 readers of /events", "Retry-After: 1")) as server:
        done = client.at(server.url)("switch", "b", "--wait")
    assert done.status == exits.NOT_NOW
    assert len(server.heads) == 1


@pytest.mark.parametrize(
    ("frames", "status", "said"),
    [
        ('data: {"choices": [{"text": "One"}]}\n\ndata: [DONE]\n\n', exits.OK, ""),
        ('data: {"choices": [{"text": "One"}]}\n\n', exits.UNREACHABLE, "the answer above is cut: the answer is not whole"),
        (
            'data: {"choices": [{"text": "One"}]}\n\ndata: {"error": {"code": "engine_failed", "message": "it died"}}\n\n',
            exits.FAILED,
            "it died",
        ),
        (
            'data: {"choices": [{"text": "One"}]}\n\ndata: {"error": {"code": "shutting_down", "message": "it stops"}}\n\n',
            exits.CUT,
            "it stops",
        ),
        (
            ': keep-alive\n\ndata: nonsense\n\ndata: {"choices": 7}\n\ndata: {"choices": [{"text": "One"}]}\n\ndata: [DONE]\n\n',
            exits.OK,
            "",
        ),
    ],
    ids=["whole", "cut", "died", "stopped", "nonsense"],
)
def test_how_an_answer_ends(client: Client, frames: str, status: int, said: str) -> None:  # noqa: F811
    with Server(events(frames)) as server:
        done = client.at(server.url)("complete", "x")
    assert (done.status, done.out) == (status, "One\n")
    assert said in done.err


# -- before anything is asked


def test_no_time_to_drain_is_a_time(client: Client) -> None:  # noqa: F811
    with Server(ACCEPTED) as server:
        assert client.at(server.url)("switch", "b", "--drain-timeout", "0").status == exits.OK


@pytest.mark.parametrize("event_id", ["a\r\nX: y", "a b", "\u00e9", "x" * 200])
def test_what_is_no_id_of_an_event_is_told_as_such(client: Client, nobody: str, event_id: str) -> None:  # noqa: F811
    done = client.at(nobody)("events", "--last-event-id", event_id)
    assert done.status == exits.USAGE
    assert "is no id of an event" in done.err


@pytest.mark.parametrize(
    "args",
    [("complete", "\udcff"), ("chat", "\udcff"), ("chat", "x", "--system", "\udcff"), ("complete", "x", "--stop", "\udcff")],
)
def test_arguments_that_are_no_utf_8_are_told_as_such(client: Client, nobody: str, args: tuple[str, ...]) -> None:  # noqa: F811
    done = client.at(nobody)(*args)
    assert (done.status, "no UTF-8" in done.err) == (exits.USAGE, True)


def test_an_argument_that_the_locale_cannot_read_is_utf_8() -> None:
    """As Python has it in the locale C, where it is told to leave that as it is."""
    assert typed("gr\udcc3\udcbcn", "TEXT") == "gr\u00fcn"


def test_how_an_answer_comes_is_no_parameter(client: Client, nobody: str) -> None:  # noqa: F811
    for more in ((), ("--json",), ("--no-stream",)):
        done = client.at(nobody)("complete", "x", "--set", "stream=true", *more)
        assert (done.status, "--no-stream and --json" in done.err) == (exits.USAGE, True)


def test_a_wait_ends_in_its_time_where_the_daemon_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also at the first question and after a break: the time for an answer is never longer than what is left."""
    asked: list[float | None] = []

    def open_(*_: object, timeout_s: float | None = None, **__: object) -> None:
        asked.append(timeout_s)
        raise failures.lost("silent")

    monkeypatch.setattr(Connection, "open", open_)
    with pytest.raises(Failure, match="silent"):
        next(follow(of("http://127.0.0.1:1"), "", Patience(time.monotonic() + 2)))
    assert asked[0] is not None
    assert 0 < asked[0] <= 2
