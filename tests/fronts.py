"""nginx and haproxy in front of a server of ours: started on a socket that is open already, in the foreground, ended by id.

The test opens the listening socket and hands it down, so that no port is guessed and nobody has to ask whether it listens yet.
"""

from __future__ import annotations

import grp
import os
import pwd
import queue
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

DEADLINE_S = 20.0
DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
NAME = "models.example.com"  # in both examples
BACKEND = "127.0.0.1:8080"


def find(tool: str) -> str:
    found = shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"{tool} is not installed: apt-get install {'nginx-light' if tool == 'nginx' else tool}")
    return found


class Front:
    """A proxy on loopback. `make` gets the descriptor and the address of its socket, and gives command and more environment."""

    def __init__(self, make: Callable[[int, str], tuple[list[str], dict[str, str]]]) -> None:
        self.lines: list[str] = []
        self._new: queue.SimpleQueue[None] = queue.SimpleQueue()
        with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
            listener.setblocking(False)  # nginx accepts on it until it would block
            self.address: tuple[str, int] = listener.getsockname()
            command, environment = make(listener.fileno(), f"127.0.0.1:{self.address[1]}")
            self.process = subprocess.Popen(
                command,
                pass_fds=[listener.fileno()],
                env={**os.environ, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="backslashreplace",
            )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            self._new.put(None)
        self._new.put(None)

    def wait_line(self, mark: str) -> None:
        """Until it has printed a line that holds the mark."""
        seen, deadline = 0, time.monotonic() + DEADLINE_S
        while True:
            n_lines = len(self.lines)
            if any(mark in line for line in self.lines[seen:n_lines]):
                return
            seen = n_lines
            try:
                self._new.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no line with {mark!r} within {DEADLINE_S} s: {self.lines[-20:]}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the proxy does not end: {self.lines[-20:]}") from None
        finally:
            self._reader.join()
            assert self.process.stdout is not None
            self.process.stdout.close()


def nginx(folder: Path, http: Callable[[str], str]) -> Front:
    """nginx with what `http` makes of the address it listens on, as the body of its http block."""
    program = find("nginx")

    def make(fd: int, address: str) -> tuple[list[str], dict[str, str]]:
        config = folder / "nginx.conf"
        config.write_text(nginx_config(folder, http(address)))
        return [program, "-p", str(folder), "-e", "stderr", "-c", str(config)], {"NGINX": f"{fd};"}

    return Front(make)


def nginx_config(folder: Path, http: str) -> str:
    """A whole configuration that keeps nginx in the foreground, to its folder and to the user that runs the test."""
    me = pwd.getpwuid(os.getuid())
    user = f"user {me.pw_name} {grp.getgrgid(me.pw_gid).gr_name};\n" if os.getuid() == 0 else ""
    places = "".join(f"  {name}_temp_path {folder / name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    return (
        f"daemon off;\nworker_processes 1;\npid {folder / 'nginx.pid'};\nerror_log stderr notice;\n{user}"
        f"events {{ worker_connections 256; }}\nhttp {{\n{places}{http}\n}}\n"
    )


def haproxy(folder: Path, config: Callable[[str], str]) -> Front:
    """haproxy with what `config` makes of what stands after `bind`."""
    program = find("haproxy")

    def make(fd: int, address: str) -> tuple[list[str], dict[str, str]]:
        path = folder / "haproxy.cfg"
        path.write_text(config(f"fd@{fd}"))
        return [program, "-db", "-f", str(path)], {}

    return Front(make)


# -- the examples in deploy/


def make_certificate(folder: Path, name: str) -> Path:
    """A key and a certificate that it has signed itself, in one file."""
    path = folder / "certificate.pem"
    subprocess.run(
        [
            *(find("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
            *("-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}", "-keyout", str(path), "-out", f"{path}.crt"),
        ],
        capture_output=True,
        timeout=60,
        check=True,
    )
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in text, f"the example has no {old!r} any more"
        text = text.replace(old, new)
    return text


def nginx_example(certificate: Path, listen: str, backend: str) -> str:
    return replaced(
        (DEPLOY / "nginx.conf").read_text(),
        ("listen 443 ssl;", f"listen {listen} ssl;"),
        ("listen [::]:443 ssl;", ""),
        ("/etc/ssl/models.example.com.pem", str(certificate)),
        ("/etc/ssl/private/models.example.com.key", str(certificate)),
        (BACKEND, backend),
    )


def haproxy_example(certificate: Path, bind: str, backend: str) -> str:
    return replaced(
        (DEPLOY / "haproxy.cfg").read_text(),
        ("bind :443", f"bind {bind}"),
        ("/etc/haproxy/models.example.com.pem", str(certificate)),
        (BACKEND, backend),
        ("inter 2s", "inter 100ms"),
    )


EXAMPLES: dict[str, Callable[[Path, Path, str], Front]] = {
    "nginx": lambda folder, certificate, backend: nginx(
        folder, lambda address: "access_log /dev/stdout;" + nginx_example(certificate, address, backend)
    ),
    "haproxy": lambda folder, certificate, backend: haproxy(folder, lambda bind: haproxy_example(certificate, bind, backend)),
}
