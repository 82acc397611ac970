"""Sockets that are handed over: what is taken, what is refused, and that nobody else takes them."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modeld import activation
from modeld.activation import take
from modeld.config import resolve
from modeld.errors import ConfigError
from modeld.httpapi.listeners import listen
from modeld.reload import ConfigSource
from tests.daemon import demo_config, has_ipv6

FIRST = 200  # no descriptors of pytest's are so high


@pytest.fixture(autouse=True)
def first(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(activation, "FIRST", FIRST)
    yield
    for descriptor in range(FIRST, FIRST + 10):
        with contextlib.suppress(OSError):
            os.close(descriptor)


def hand(*sockets: socket.socket, **variables: str) -> dict[str, str]:
    """Put them where the next process would have them; the environment that says so."""
    for index, sock in enumerate(sockets):
        os.dup2(sock.fileno(), FIRST + index)
        sock.close()
    return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(sockets)), "PATH": "/bin", **variables}


def tcp(host: str = "127.0.0.1", family: int = socket.AF_INET, *, listens: bool = True) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.bind((host, 0))
    if listens:
        sock.listen(8)
    return sock


def unix(path: Path | str, kind: int = socket.SOCK_STREAM) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind(str(path))
    if kind != socket.SOCK_DGRAM:
        sock.listen(8)
    return sock


def test_listening_stream_sockets_are_taken_and_closed_on_exec(tmp_path: Path) -> None:
    sockets = [tcp(), unix(tmp_path / "m.sock"), unix("\0modeld-test-" + str(os.getpid()))]
    ports = [sockets[0].getsockname()[1]]
    if has_ipv6():
        sockets.append(tcp("::1", socket.AF_INET6))
        ports.append(sockets[-1].getsockname()[1])
    names = ":".join(["modeld.socket", *["x"] * (len(sockets) - 1)])
    environ = hand(*sockets, LISTEN_FDNAMES=names)
    handed = take(environ)
    assert environ == {"PATH": "/bin"}  # a child must not take them for its own
    assert [each.name for each in handed] == names.split(":")
    assert [each.host for each in handed] == ["127.0.0.1", None, None, "::1"][: len(sockets)]
    assert not any(os.get_inheritable(each.socket.fileno()) for each in handed)
    listeners = listen(("127.0.0.9",), 1, None, [each.socket for each in handed])
    assert [listener.url for listener in listeners] == [
        f"http://127.0.0.1:{ports[0]}",
        f"unix:{tmp_path}/m.sock",
        f"unix:@modeld-test-{os.getpid()}",
        f"http://[::1]:{ports[-1]}",
    ][: len(sockets)]
    for listener in listeners:
        listener.server_close()
    assert (tmp_path / "m.sock").is_socket()  # it is not ours to remove


@pytest.mark.parametrize("variables", [{}, {"LISTEN_PID": ""}, {"LISTEN_PID": "1"}, {"LISTEN_FDS": ""}, {"LISTEN_FDS": "0"}])
def test_what_was_not_handed_to_this_process_is_left_alone(variables: dict[str, str]) -> None:
    environ = hand(tcp(), **variables) if variables else {"PATH": "/bin"}
    if variables in ({"LISTEN_PID": ""}, {"LISTEN_FDS": ""}):
        with pytest.raises(ConfigError):
            take(environ)
    else:
        assert take(environ) == ()
    assert environ == {"PATH": "/bin"}


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"LISTEN_PID": "12a"}, "LISTEN_PID is '12a', which is no process id"),
        ({"LISTEN_PID": "-1"}, "LISTEN_PID is '-1', which is no process id"),
        ({"LISTEN_FDS": "one"}, "LISTEN_FDS is 'one'; expected how many sockets are handed over, 0..64"),
        ({"LISTEN_FDS": "-1"}, "LISTEN_FDS is '-1'"),
        ({"LISTEN_FDS": "65"}, "LISTEN_FDS is '65'"),
        ({"LISTEN_FDS": "9" * 5000}, "LISTEN_FDS is '9999"),
        ({"LISTEN_FDS": "\u0661"}, "LISTEN_FDS is '\u0661'"),
        ({"LISTEN_FDS": "2"}, f"descriptor {FIRST + 1}, which was handed over to listen on, is not there: Bad file descriptor"),
        ({"LISTEN_FDNAMES": "a:b"}, "LISTEN_FDNAMES has 2 names for 1 sockets"),
    ],
)
def test_variables_that_make_no_sense_are_named(variables: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match="^" + says.replace("(", r"\(")) as raised:
        take(hand(tcp(), **variables))
    assert len(raised.value.message) < 300


def datagram() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


def connected() -> socket.socket:
    """What Accept=yes hands over."""
    one, other = socket.socketpair()
    other.close()
    return one


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda _: datagram(), "family 2, type 2, protocol 17; modeld serves TCP over IPv4"),
        (lambda folder: unix(folder / "d", socket.SOCK_DGRAM), "family 1, type 2"),
        (lambda folder: unix(folder / "s", socket.SOCK_SEQPACKET), "family 1, type 5"),
        (lambda _: tcp(listens=False), "does not listen; a socket unit needs Accept=no"),
        (lambda _: connected(), "does not listen"),
    ],
)
def test_what_cannot_be_served_is_refused(make: Callable[[Path], socket.socket], says: str, tmp_path: Path) -> None:
    environ = hand(make(tmp_path), LISTEN_FDNAMES="a\x1b[31m")
    with pytest.raises(ConfigError) as raised:
        take(environ)
    assert says in raised.value.message
    assert raised.value.message.startswith(f"descriptor {FIRST} ('a\\x1b[31m'), which was handed over to listen on, ")
    assert environ == {"PATH": "/bin"}


def test_a_file_is_no_socket(tmp_path: Path) -> None:
    environ = hand(tcp())
    with (tmp_path / "file").open("w") as file:
        os.dup2(file.fileno(), FIRST)
    with pytest.raises(ConfigError, match="is no socket"):
        take(environ)


def test_an_address_that_others_reach_wants_keys_when_it_is_handed_over_too(tmp_path: Path) -> None:
    """And `server.host` does not matter then."""
    config = demo_config(tmp_path)
    with pytest.raises(ConfigError, match=r"^the sockets that were handed over \(ListenStream=\): 0\.0\.0\.0, :: can be reached"):
        resolve(config=config, environ={}, handed_hosts=["127.0.0.1", "0.0.0.0", "::"])
    for hosts in ([], ["127.0.0.1", "::1"]):
        assert resolve(config=config, host="0.0.0.0", environ={}, handed_hosts=hosts).keys == ()
    keys = {"MODELD_API_KEYS": "ops admin a-key-of-sufficient-length"}
    assert len(resolve(config=config, environ=keys, handed_hosts=["0.0.0.0"]).keys) == 1


def test_a_reload_that_takes_the_keys_away_is_refused_for_them_too(tmp_path: Path) -> None:
    config, keys = demo_config(tmp_path), tmp_path / "keys"
    keys.write_text("ops admin a-key-of-sufficient-length\n")
    keys.chmod(0o600)
    plain = config.read_text()
    config.write_text(plain.replace("port: 0", f"port: 0, api_key_file: {keys}"))
    source = ConfigSource(config=config, environ={}, handed_hosts=["0.0.0.0"])
    current = source.load()
    config.write_text(plain)
    with pytest.raises(ConfigError, match="handed over"):
        source.read(current)
