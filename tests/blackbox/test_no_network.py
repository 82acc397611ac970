"""No connection goes out and no name is looked up by the daemon, ever: strace over a whole life of it, children included."""

from __future__ import annotations

import re
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.daemon import Daemon, demo_config

# Files that the C library's resolver and its name services read.
RESOLVER_FILES = re.compile(
    r"\"/(etc/(resolv\.conf|hosts|host\.conf|nsswitch\.conf|services|protocols|gai\.conf)|run/(nscd|systemd/resolve)|var/run/nscd)"
    r"|libnss_|libresolv"
)
CALL = re.compile(r"^\d+ +(?P<name>\w+)\((?P<rest>.*)$")
# Peers of the listening sockets come by accept; getpeername and getsockname tell of them.
OUTGOING = ("connect", "sendto", "sendmsg", "sendmmsg")
DATAGRAM = re.compile(r"AF_INET6?, SOCK_(DGRAM|RAW)|AF_NETLINK|AF_PACKET")


def faults(lines: Sequence[str]) -> list[str]:
    """The lines of a trace that speak to a network or ask for a name."""
    found = []
    for line in lines:
        call = CALL.match(line)
        if call is None:
            continue
        name, rest = call["name"], call["rest"]
        if (
            (name in OUTGOING and ("AF_INET" in rest or "AF_NETLINK" in rest))
            or (name == "socket" and DATAGRAM.search(rest))
            or (name.startswith("open") and RESOLVER_FILES.search(rest))
        ):
            found.append(line)
    return found


def traced(trace: Path) -> tuple[str, ...]:
    # -D: the daemon is our child, and strace its grandchild, which ends with it.
    calls = "execve,socket,connect,sendto,sendmsg,sendmmsg,bind,listen,open,openat,openat2"
    return (
        "strace",
        "-D",
        "-f",
        "-qq",
        "-e",
        f"trace={calls}",
        "-e",
        "signal=none",
        "-o",
        str(trace),
        sys.executable,
        "-m",
        "modeld",
    )


def test_a_whole_life_of_the_daemon_asks_nobody(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    trace = tmp_path / "trace"
    config = demo_config(tmp_path)
    more = "host: [localhost, 127.0.0.2], unix_socket: modeld.sock, unix_socket_owner: 'root:root'"
    config.write_text(config.read_text().replace("host: 127.0.0.1", more))
    with Daemon(config, command=traced(trace)) as daemon:
        daemon.wait_ready()
        with daemon.events() as events:
            next(iter(events))
            assert daemon.switched("demo-calc")["state"] == "succeeded"
            assert daemon.complete("12+3=", max_tokens=3)["choices"]
            with daemon.stream(
                "/v1/chat/completions", {"messages": [{"role": "user", "content": "q"}], "max_tokens": 3}
            ) as stream:
                list(stream)
            assert daemon.switched("demo-stories", strategy="overlap")["state"] == "succeeded"
            assert daemon.request("POST", "/switch", {"model_id": "nobody.example"})[0] == 404
            assert daemon.request("GET", "http://nobody.example/status")[0] == 403  # a Host that is not let in
            config.write_text(config.read_text() + "  - {id: gone, path: nowhere.gguf}\n")
            assert daemon.request("POST", "/reload", {})[0] == 200
            assert daemon.switched("gone")["error"]
            daemon.process.send_signal(signal.SIGHUP)
            assert daemon.unloaded()["state"] == "succeeded"
    lines = trace.read_text().splitlines()
    assert sum("listen(" in line for line in lines) == 3
    assert sum("AF_INET, sin_port" in line and " bind(" in line for line in lines) == 2
    assert sum(" execve(" in line for line in lines) >= 2  # the process that tries models is in the trace
    assert faults(lines) == []


@pytest.mark.parametrize(
    "line",
    [
        '1 connect(3, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("10.0.0.1")}, 16) = 0',
        "1 connect(3, {sa_family=AF_INET6, sin6_port=htons(80), ...}, 28) = -1 EINPROGRESS",
        "1 sendto(3, ..., 33, 0, {sa_family=AF_INET, sin_port=htons(53)}, 16) = 33",
        "1 socket(AF_INET, SOCK_DGRAM|SOCK_CLOEXEC, IPPROTO_IP) = 3",
        "1 socket(AF_NETLINK, SOCK_RAW|SOCK_CLOEXEC, NETLINK_ROUTE) = 3",
        '1 openat(AT_FDCWD, "/etc/resolv.conf", O_RDONLY|O_CLOEXEC) = 3',
        '1 openat(AT_FDCWD, "/etc/nsswitch.conf", O_RDONLY|O_CLOEXEC) = 3',
        '1 openat(AT_FDCWD, "/lib/x86_64-linux-gnu/libnss_dns.so.2", O_RDONLY|O_CLOEXEC) = -1 ENOENT',
    ],
)
def test_the_rules_catch(line: str) -> None:
    assert faults([line]) == [line]


def test_unix_sockets_and_listening_are_no_faults() -> None:
    assert not faults(
        [
            '1 connect(3, {sa_family=AF_UNIX, sun_path="/run/systemd/notify"}, 22) = 0',
            '1 bind(3, {sa_family=AF_INET, sin_port=htons(8080), sin_addr=inet_addr("127.0.0.1")}, 16) = 0',
            "1 socket(AF_INET, SOCK_STREAM|SOCK_CLOEXEC, IPPROTO_IP) = 3",
            '1 openat(AT_FDCWD, "/etc/passwd", O_RDONLY|O_CLOEXEC) = 3',
        ]
    )
