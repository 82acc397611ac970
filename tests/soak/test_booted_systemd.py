"""The units as they are installed, under a real systemd: what the sandbox leaves works, and what it takes away is gone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.booted_systemd import BootedSystemd, why_not
from tests.daemon import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.soak

CONFIG = """
server: {port: 8080%(server)s}
default_model: demo-stories
models:
  - {id: demo-stories, path: /srv/models/demo-stories.gguf, load_mode: mlock}
  - {id: demo-calc, path: /srv/models/demo-calc.gguf}
  - {id: too-large, path: /srv/models/demo-calc.gguf, n_ctx: 1073741824}
"""
ELSEWHERE = "192.0.2.1:8080"  # an address of the namespace's that is not loopback
KEY = "a-key-of-sufficient-length"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if (why := why_not()) is not None:
        pytest.skip(why)
    path = tmp_path_factory.mktemp("program") / "modeld"
    subprocess.run([sys.executable, str(ROOT / "scripts" / "bundle.py"), str(path)], check=True, cwd=ROOT)
    return path


@contextmanager
def booted(folder: Path, program: Path, *drop_ins: str, server: str = "", more: str = "") -> Iterator[BootedSystemd]:
    """With the units installed and nothing started. `server`: further keys of it; `more`: a drop-in's text."""
    files, empty = folder / "files", folder / "root"
    units = files / "etc" / "systemd" / "system"
    for each in (
        empty,
        units / "modeld.service.d",
        files / "usr" / "local" / "bin",
        files / "srv" / "models",
        files / "etc" / "modeld",
    ):
        each.mkdir(parents=True)
    shutil.copy(program, files / "usr" / "local" / "bin" / "modeld")
    for model in ("demo-stories.gguf", "demo-calc.gguf"):
        shutil.copy(ROOT / "models" / model, files / "srv" / "models")
    (files / "etc" / "modeld" / "models.yaml").write_text(CONFIG % {"server": server})
    (files / "etc" / "modeld" / "keys").write_text(f"ops admin {KEY}\n")
    (files / "etc" / "modeld" / "keys").chmod(0o600)
    for unit in ("modeld.service", "modeld.socket"):
        shutil.copy(ROOT / "deploy" / unit, units)
    for name in drop_ins:
        shutil.copy(ROOT / "deploy" / "systemd" / f"{name}.conf", units / "modeld.service.d")
    # There is no rest of a system to wait for.
    bare = "[Unit]\nDefaultDependencies=no\n"
    (units / "modeld.service.d" / "zz-test.conf").write_text(bare + more)
    (units / "modeld.socket.d").mkdir()
    (units / "modeld.socket.d" / "zz-test.conf").write_text(bare)
    with BootedSystemd(empty, files) as systemd:
        yield systemd


def is_sandboxed(systemd: BootedSystemd) -> None:
    """What the kernel says of the main process."""
    status = systemd.status_of()
    assert (status["NoNewPrivs"], status["Seccomp"], int(status["CapEff"], 16), int(status["CapBnd"], 16)) == ("1", "2", 0, 0)
    assert status["Uid"].split()[0] != "0"


def everything_works(systemd: BootedSystemd, key: str = "") -> None:
    """Threads on cores, a model locked into memory, the memory check, a probe, a switch, an answer, what is remembered."""
    systemd.wait_show("StatusText", "demo-stories answers")
    pid = systemd.show("MainPID")
    cores = systemd.run("bash", "-c", f"cat /proc/{pid}/task/*/status | grep Cpus_allowed_list").split("\n")
    bound = [line for line in cores if line.split()[1].isdecimal()]
    assert len(bound) >= 1, cores
    locked = systemd.status_of()["VmLck"]
    assert int(locked.split()[0]) > 1000, locked
    _, plan = systemd.ask("POST", "/switch?dry_run=true", {"model_id": "too-large"}, key=key)
    status, refused = systemd.ask("POST", "/switch", {"model_id": "too-large"}, key=key)
    assert (status, refused["error"]["code"]) == (507, "insufficient_memory"), (plan, refused)
    assert "MemAvailable" in refused["error"]["message"] or "cgroup" in refused["error"]["message"]
    _, op = systemd.ask("POST", "/switch?wait=60", {"model_id": "demo-calc"}, key=key)
    assert op["state"] == "succeeded", op
    assert op["steps_ms"]["probe"] > 0
    _, answer = systemd.ask("POST", "/v1/completions", {"prompt": "1+1=", "max_tokens": 3, "temperature": 0}, key=key)
    assert answer["choices"][0]["text"] == "2"
    assert systemd.show("StatusText") == "demo-calc answers"
    systemd.run("test", "-s", "/var/lib/modeld/state.json")
    assert "not remembered" not in systemd.journal()
    assert "a process of its own has decoded the file" in systemd.journal()


def test_the_service_lives_as_its_unit_says(tmp_path: Path, program: Path) -> None:
    """Start, load, switch, reload, a process that hangs, stop; and packets of this host only."""
    with booted(
        tmp_path, program, server=", host: [127.0.0.1, 192.0.2.1], insecure: true", more="[Service]\nWatchdogSec=4\n"
    ) as systemd:
        systemd.systemctl("start", "modeld")
        is_sandboxed(systemd)
        everything_works(systemd)
        assert systemd.ask("GET", "/livez", place=ELSEWHERE, timeout=2)[0] == 0
        systemd.systemctl("reload", "modeld")
        systemd.wait_show("ActiveState", "active")
        pid = systemd.show("MainPID")
        systemd.run("kill", "-STOP", pid)  # no thread of it runs any more
        systemd.wait_show("NRestarts", "1")
        systemd.wait_show("StatusText", "demo-calc answers")  # remembered
        assert systemd.show("MainPID") != pid
        journal = systemd.journal()
        assert "Watchdog timeout" in journal
        assert "Fatal Python error: Aborted" in journal  # and the stacks
        systemd.systemctl("stop", "modeld")
        assert (systemd.show("ActiveState"), systemd.show("Result"), systemd.show("ExecMainStatus")) == (
            "inactive",
            "success",
            "0",
        )


def test_a_stop_takes_the_time_that_it_needs_unless_it_hangs(tmp_path: Path, program: Path) -> None:
    """stop_delay_s is longer than TimeoutStopSec= here."""
    unit = "[Service]\nWatchdogSec=2\nTimeoutStopSec=1\nRestart=no\n"
    with booted(tmp_path, program, server=", stop_delay_s: 5", more=unit) as systemd:
        systemd.systemctl("start", "modeld")
        systemd.systemctl("stop", "modeld")
        assert (systemd.show("Result"), systemd.show("ExecMainStatus")) == ("success", "0"), systemd.journal()
        systemd.systemctl("start", "modeld")
        pid = systemd.show("MainPID")
        systemd.systemctl("stop", "--no-block", "modeld")
        systemd.wait_show("StatusText", "stopping")
        systemd.run("kill", "-STOP", pid)
        systemd.wait_show("ActiveState", "failed")
        assert systemd.show("Result") in ("timeout", "watchdog"), systemd.journal()


def test_other_hosts_are_let_in_with_keys(tmp_path: Path, program: Path) -> None:
    """open-address.conf, and the keys as a credential."""
    with booted(tmp_path, program, "open-address", server=', host: "0.0.0.0"') as systemd:
        systemd.systemctl("start", "modeld")
        is_sandboxed(systemd)
        everything_works(systemd, KEY)
        assert systemd.ask("GET", "/status", place=ELSEWHERE)[0] == 401
        assert systemd.ask("GET", "/status", place=ELSEWHERE, key=KEY)[0] == 200
        systemd.systemctl("stop", "modeld")
        assert systemd.show("Result") == "success"


def test_the_socket_starts_it_and_a_restart_loses_nobody(tmp_path: Path, program: Path) -> None:
    """socket-activated.conf: without a network of its own it does all the same."""
    with booted(tmp_path, program, "socket-activated", server=', host: "0.0.0.0"') as systemd:
        systemd.systemctl("start", "modeld.socket")
        assert systemd.show("ActiveState") == "inactive"
        assert systemd.ask("GET", "/livez")[0] == 200  # which has started it
        is_sandboxed(systemd)
        everything_works(systemd)
        pid = systemd.show("MainPID")
        namespaces = {systemd.run("readlink", f"/proc/{each}/ns/net") for each in ("1", pid)}
        assert len(namespaces) == 2
        with ThreadPoolExecutor(4) as pool:
            for _ in range(2):
                restart = pool.submit(systemd.systemctl, "restart", "modeld.service")
                answers = []
                while not restart.done():
                    answers += [pool.submit(systemd.ask, "GET", "/livez") for _ in range(3)]
                    answers[-1].result()
                assert {answer.result()[0] for answer in answers} == {200}
        assert systemd.show("MainPID") != pid
        systemd.systemctl("stop", "modeld.socket", "modeld.service")
        assert systemd.show("Result") == "success"
        assert systemd.ask("GET", "/livez", timeout=2)[0] == 0


def test_users_of_the_unix_socket_are_told_apart(tmp_path: Path, program: Path) -> None:
    """unix-socket.conf; without it modeld says that it knows nobody but root and itself."""
    server = ", host: [], unix_socket: /run/modeld/modeld.sock, unix_socket_mode: '0666', unix_use_uids: [1234]"
    for number, drop_ins in enumerate(((), ("unix-socket",))):
        (folder := tmp_path / str(number)).mkdir()
        with booted(folder, program, *drop_ins, server=server) as systemd:
            systemd.systemctl("start", "modeld")
            systemd.wait_show("StatusText", "demo-stories answers")
            as_user = ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups"]
            client = "import socket; s = socket.socket(1); s.connect('/run/modeld/modeld.sock'); "
            client += "s.sendall(b'GET /status HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n'); print(s.recv(99).split()[1].decode())"
            status = systemd.run(*as_user, "/usr/bin/python3", "-c", client)
            assert status == ("200" if drop_ins else "403"), systemd.journal()
            assert ("nobody is known as 1234 here" in systemd.journal()) is not bool(drop_ins)
            assert systemd.ask("GET", "/status", place="/run/modeld/modeld.sock")[0] == 200  # root
            systemd.systemctl("stop", "modeld")
