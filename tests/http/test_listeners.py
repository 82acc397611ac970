"""Where the server listens: several addresses, IPv6, a Unix socket with mode and owner, and what cannot be had."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_service import FakeService
from raw_client import RawClient

from modeld.httpapi.limits import Limits
from modeld.httpapi.listeners import Acceptor, Listener, ListenError, listen
from modeld.httpapi.server import HttpServer
from modeld.httpapi.unixsocket import UnixSocket, hidden_uids
from tests.daemon import has_ipv6

Serve = Callable[..., HttpServer]
NOBODY = 65534


@pytest.fixture
def serve(service: FakeService) -> Iterator[Serve]:
    servers: list[HttpServer] = []

    def serve(hosts: tuple[str, ...], port: int = 0, limits: Limits | None = None, unix: UnixSocket | None = None) -> HttpServer:
        servers.append(HttpServer(service, hosts, port, limits, unix))
        servers[-1].start()
        return servers[-1]

    yield serve
    for server in servers:
        server.close(5)


def unix_client(path: Path) -> RawClient:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(10)
    sock.connect(str(path))
    return RawClient(sock)


def answers(client: RawClient) -> bool:
    try:
        return bool(client.request("GET", "/livez").status == 200)
    finally:
        client.close()


def at(path: Path, mode: int = 0o660, owner: str | None = None) -> UnixSocket:
    return UnixSocket(path, mode, owner)


def test_all_addresses_are_listened_to_on_one_port(serve: Serve, tmp_path: Path) -> None:
    hosts = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
    server = serve(hosts, unix=at(tmp_path / "m.sock"))
    port = server.address[1]
    assert server.urls == [*(f"http://{host}:{port}" for host in hosts), f"unix:{tmp_path}/m.sock"]
    for host in hosts:
        assert answers(RawClient((host, port)))
    assert answers(unix_client(tmp_path / "m.sock"))
    assert [thread.name for thread in threading.enumerate()].count("modeld-accept") == 1


def test_an_ipv6_address_takes_no_ipv4_clients(serve: Serve) -> None:
    if not has_ipv6():
        pytest.skip("this host has no IPv6 loopback")
    server = serve(("::",))
    assert server.url == f"http://[::]:{server.address[1]}"
    with pytest.raises(ConnectionRefusedError):
        RawClient(("127.0.0.1", server.address[1]))
    assert answers(RawClient(("::1", server.address[1])))


def test_an_address_that_cannot_be_had_is_named_and_the_others_are_closed(service: FakeService, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=rf"cannot listen on 127\.0\.0\.2 port {port}: Address already in use"):
            HttpServer(service, ("127.0.0.1", "127.0.0.2"), port, None, at(tmp_path / "m.sock"))
        with socket.create_server(("127.0.0.1", port)):
            pass
    assert not (tmp_path / "m.sock").exists()
    with pytest.raises(ListenError, match=r"cannot listen on 203\.0\.113\.9 port 0"):
        listen(["203.0.113.9"], 0)
    with pytest.raises(ListenError, match="there is no interface nowhere"):
        listen(["fe80::1%nowhere"], 0)


def test_a_burst_larger_than_accept_can_keep_up_with_waits_in_the_queue() -> None:
    (listener,) = listen(["127.0.0.1"], 0)  # nobody accepts
    with contextlib.ExitStack() as stack:
        stack.callback(listener.server_close)
        for _ in range(400):
            stack.enter_context(socket.create_connection(("127.0.0.1", listener.server_port), timeout=0.5))


def test_nobody_is_asked_what_a_name_means(monkeypatch: pytest.MonkeyPatch, service: FakeService, tmp_path: Path) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("a resolver was asked")

    for name in ("getaddrinfo", "getnameinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr", "getfqdn", "gethostname"):
        monkeypatch.setattr(socket, name, asked)
    HttpServer(service, ("127.0.0.1", "127.0.0.2"), 0, None, at(tmp_path / "m.sock", owner="root:root")).close(1)


# -- the Unix socket


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_the_socket_has_its_mode_whatever_the_umask(serve: Serve, tmp_path: Path, mode: int) -> None:
    before = os.umask(0o077)
    try:
        serve((), unix=at(tmp_path / "m.sock", mode))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "m.sock").stat().st_mode) == mode


def test_at_no_moment_may_others_connect(monkeypatch: pytest.MonkeyPatch, serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    seen: list[int] = []
    chmod, chown = Path.chmod, os.chown

    def looked(self: Path, mode: int) -> None:
        seen.append(stat.S_IMODE(path.stat().st_mode))
        chmod(self, mode)

    def chowned(*arguments: object, **named: object) -> None:
        seen.append(stat.S_IMODE(path.stat().st_mode))
        chown(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "chmod", looked)
    monkeypatch.setattr(os, "chown", chowned)
    before = os.umask(0)
    try:
        serve((), unix=at(path, 0o660, f"{os.getuid()}:{os.getgid()}"))
    finally:
        os.umask(before)
    assert seen == [0o600, 0o600]


@pytest.mark.parametrize(
    ("owner", "uid", "gid"),
    [("nobody", NOBODY, 0), (f":{NOBODY}", 0, NOBODY), (f"{NOBODY}:{NOBODY}", NOBODY, NOBODY), ("root:root", 0, 0)],
)
def test_the_socket_has_its_owner(serve: Serve, tmp_path: Path, owner: str, uid: int, gid: int) -> None:
    if os.getuid() != 0:
        pytest.skip("only root gives files away")
    serve((), unix=at(tmp_path / "m.sock", owner=owner))
    found = (tmp_path / "m.sock").stat()
    assert (found.st_uid, found.st_gid) == (uid, gid)


def test_an_owner_that_does_not_exist_is_named_and_nothing_is_left(service: FakeService, tmp_path: Path) -> None:
    with pytest.raises(ListenError, match=r"m\.sock: 'no-such-user' is not in /etc/passwd"):
        HttpServer(service, (), 0, None, at(tmp_path / "m.sock", owner="no-such-user"))
    assert not list(tmp_path.iterdir())


def test_a_dead_socket_is_replaced_and_a_live_one_is_not(serve: Serve, service: FakeService, tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    dead.bind(str(path))
    dead.listen()
    dead.close()
    serve((), unix=at(path))
    with pytest.raises(ListenError, match=r"the Unix socket .*m\.sock: Address already in use"):
        HttpServer(service, (), 0, None, at(path))
    assert answers(unix_client(path))


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, lambda path: path.symlink_to("elsewhere")])
def test_what_is_no_socket_is_left_alone(service: FakeService, tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "m.sock")
    with pytest.raises(ListenError, match="is there already, and is no socket"):
        HttpServer(service, (), 0, None, at(tmp_path / "m.sock"))
    assert (tmp_path / "m.sock").lstat()


def test_at_the_end_our_socket_is_removed_but_not_one_that_took_its_place(service: FakeService, tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    server = HttpServer(service, (), 0, None, at(path))
    server.close(1)
    assert not path.exists()
    server = HttpServer(service, (), 0, None, at(path))
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
        server.close(1)
        assert path.exists()


def test_uids_that_the_user_namespace_does_not_know_are_found(tmp_path: Path) -> None:
    uid_map = tmp_path / "uid_map"
    uid_map.write_text("         0          0          1\n     63057      63057          1\n")  # as PrivateUsers=yes makes it
    assert hidden_uids((0, 1000, 63057, 65534), uid_map) == [1000, 65534]
    uid_map.write_text("         0          0 4294967295\n")
    assert hidden_uids((0, 1000), uid_map) == []
    assert hidden_uids((0, 1000), tmp_path / "none") == []


def test_a_client_that_resets_before_accept_does_not_hold_the_thread() -> None:
    (listener,) = listen(["127.0.0.1"], 0)
    assert listener.accept_one() is None  # nobody is there at all: it comes back
    listener.server_close()


def test_a_listener_that_was_never_accepted_from_closes() -> None:
    (listener,) = listen(["127.0.0.1"], 0)
    assert isinstance(listener, Listener)
    Acceptor([listener], lambda sock: sock.close(), lambda: None).close()
    assert listener.fileno() == -1
