"""The image is built from this tree and run: another user, a read-only root, no capability, no network.

    python -m pytest -m soak -s tests/soak/test_container.py

As root, with podman and runc. The base is the image that MODELD_BASE_IMAGE names, else a tree that debootstrap makes from the
Debian mirror. MODELD_VARIANTS are the CPUs to build for (x86-64-v3). Where a build reaches the package index by a
certificate of the house, PIP_CERT names it, as for pip. MODELD_IMAGE is a file of `podman save`, which is run instead.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import MODELS

pytestmark = pytest.mark.soak

ROOT = Path(__file__).resolve().parent.parent.parent
DEADLINE_S = 120.0
KEY = "0123456789abcdef0123456789abcdef"
UID = 10001
IMAGE = "localhost/modeld"
CONFIG = """
server: {{host: 0.0.0.0, port: {port}, api_key_file: keys, stop_timeout_s: 10}}
models:
  - {{id: demo-stories, path: /models/demo-stories.gguf}}
  - {{id: demo-calc, path: /models/demo-calc.gguf}}
"""
# As in deploy/kubernetes. The limits of descriptors and processes are named because podman's own are beyond those of some hosts.
CONFINED = (
    "--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges",
    "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024",
)  # fmt: skip


class Podman:
    """podman with a storage of its own, and what it ran."""

    def __init__(self, folder: Path) -> None:
        for tool in ("podman", "runc"):
            if shutil.which(tool) is None:
                pytest.skip(f"{tool} is not installed: apt-get install podman runc")
        if os.geteuid() != 0:
            pytest.skip("the container is run by root, which makes the base and owns the volumes")
        self._command = ["podman", "--root", str(folder / "root"), "--runroot", str(folder / "run"), "--storage-driver", "vfs",
                         "--runtime", "runc", "--cgroup-manager", "cgroupfs"]  # fmt: skip

    def __call__(self, *args: str, timeout_s: float = DEADLINE_S, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([*self._command, *args], capture_output=True, text=True, timeout=timeout_s, check=False)
        assert not check or done.returncode == 0, (
            f"podman {' '.join(args)}: {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
        return done

    def follow(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen([*self._command, *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    folder = tmp_path_factory.mktemp("podman")
    podman = Podman(folder)
    yield podman
    podman("rm", "--all", "--force", "--time", "20", check=False)
    podman("rmi", "--all", "--force", check=False)


def context(folder: Path) -> Path:
    """What git knows of this tree, and llama.cpp, which may lie elsewhere behind a link."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if not (ROOT / name).exists():
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
    shutil.copytree(
        (ROOT / "third_party" / "llama.cpp").resolve(), folder / "third_party" / "llama.cpp", symlinks=True,
        ignore=shutil.ignore_patterns(".git"),
    )  # fmt: skip
    return folder


def base(podman: Podman, folder: Path) -> str:
    if named := os.environ.get("MODELD_BASE_IMAGE"):
        return named
    if shutil.which("debootstrap") is None:
        pytest.skip("debootstrap is not installed, and MODELD_BASE_IMAGE names no image: apt-get install debootstrap")
    tree, tar = folder / "base", folder / "base.tar"
    subprocess.run(
        ["debootstrap", "--variant=minbase", "bookworm", str(tree)], stdout=subprocess.DEVNULL, timeout=900, check=True
    )
    subprocess.run(["tar", "-C", str(tree), "-cf", str(tar), "."], timeout=300, check=True)
    podman("import", str(tar), "localhost/modeld-test-base", timeout_s=600)
    return "localhost/modeld-test-base"


@pytest.fixture(scope="module")
def image(podman: Podman, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of the image. Some minutes."""
    if archive := os.environ.get("MODELD_IMAGE"):
        podman("load", "--input", archive, timeout_s=600)
        return IMAGE
    folder = tmp_path_factory.mktemp("image")
    mounts: list[str] = []
    if certificate := os.environ.get("PIP_CERT"):
        (folder / "pip.conf").write_text("[global]\ncert = /run/house.crt\n")
        mounts = ["--volume", f"{certificate}:/run/house.crt:ro", "--volume", f"{folder / 'pip.conf'}:/etc/pip.conf:ro"]
    variants = os.environ.get("MODELD_VARIANTS", "x86-64-v3")
    podman(
        "build", "--isolation", "chroot", "--format", "docker", *mounts, "--build-arg", f"BASE={base(podman, folder)}",
        "--build-arg", f"VARIANTS={variants}", "--build-arg", "VERSION=test", "-f", "deploy/Containerfile", "-t", IMAGE,
        str(context(folder / "tree")),
        timeout_s=3600,
    )  # fmt: skip
    return IMAGE


class Container:
    """One that runs; `network` none: asked from inside only."""

    def __init__(self, podman: Podman, image: str, folder: Path, *, network: str) -> None:
        self.podman, self.folder = podman, folder
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = int(probe.getsockname()[1])
        etc, state = folder / "etc", folder / "state"
        if not etc.exists():
            etc.mkdir()
            state.mkdir(mode=0o700)
            os.chown(state, UID, UID)
            (etc / "keys").write_text(f"somebody admin {KEY}\n")
            os.chown(etc / "keys", 0, UID)
            (etc / "keys").chmod(0o440)
        (etc / "models.yaml").write_text(CONFIG.format(port=self.port))
        volumes = (f"{etc}:/etc/modeld:ro", f"{MODELS}:/models:ro", f"{state}:/var/lib/modeld")
        mounts = [word for volume in volumes for word in ("--volume", volume)]
        environment = ("--env", f"MODELD_PORT={self.port}")
        run = ("run", "--detach", *CONFINED, "--network", network, *mounts, *environment, image)
        self.id = podman(*run).stdout.strip()

    def log(self) -> list[dict[str, Any]]:
        done = self.podman("logs", self.id)
        return [json.loads(line) for line in (done.stdout + done.stderr).splitlines() if line.startswith("{")]

    def wait_line(self, mark: str) -> None:
        """Until the log has a line with that message, or the container ends."""
        with self.podman.follow("logs", "--follow", self.id) as following:
            end = threading.Timer(DEADLINE_S, following.terminate)
            end.start()
            try:
                assert following.stdout is not None
                seen: list[str] = []
                for line in following.stdout:
                    seen.append(line)
                    if mark in line:
                        return
            finally:
                end.cancel()
                following.terminate()
        raise AssertionError(f"no line with {mark!r}: {seen[-20:]}")

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        with contextlib.closing(client):
            fields = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
            client.request(method, path, None if body is None else json.dumps(body), fields)
            response = client.getresponse()
            return response.status, json.loads(response.read())

    def python(self, code: str) -> subprocess.CompletedProcess[str]:
        return self.podman("exec", self.id, "python3", "-c", code, check=False)

    def stop(self) -> int:
        self.podman("stop", "--time", "60", self.id)
        return int(self.podman("inspect", "--format", "{{.State.ExitCode}}", self.id).stdout)


def test_the_image_says_how_it_is_run(podman: Podman, image: str) -> None:
    [facts] = json.loads(podman("image", "inspect", image).stdout)
    config = facts["Config"]
    assert (config["User"], config["StopSignal"]) == (f"{UID}:{UID}", "SIGTERM")
    assert config["Entrypoint"] == ["/usr/local/bin/modeld"]
    assert config["Cmd"] == ["serve"]
    assert "8080/tcp" in config["ExposedPorts"]
    assert list(config["Volumes"]) == ["/var/lib/modeld"]
    assert config["Labels"]["org.opencontainers.image.version"] == "test"
    assert facts["HealthCheck" if "HealthCheck" in facts else "Healthcheck"]["Test"][0] == "CMD"
    print(f"\n{facts['Size'] / 1e6:.0f} MB")


def test_it_serves_switches_and_remembers_confined(podman: Podman, image: str, tmp_path: Path) -> None:
    container = Container(podman, image, tmp_path, network="host")
    container.wait_line("model ready")
    assert container.ask("GET", "/readyz")[0] == 200
    status, body = container.ask("POST", "/v1/completions", {"prompt": "One day", "max_tokens": 8, "temperature": 0})
    assert (status, body["model"]) == (200, "demo-stories")
    how = {"model_id": "demo-calc", "on_inflight": "drain", "ready_delay_s": 0.1}
    status, op = container.ask("POST", "/switch?wait=60", how)
    assert (status, op["state"]) == (200, "succeeded")
    done = container.python("import os; print(os.getuid(), os.getgid()); open('/usr/x', 'w')")
    assert done.stdout == f"{UID} {UID}\n"
    assert "Read-only file system" in done.stderr
    capabilities = container.python(
        "print([l for l in open('/proc/1/status') if l.startswith(('CapEff', 'CapBnd', 'NoNewPrivs'))])"
    ).stdout
    assert capabilities.count("0000000000000000") == 2
    assert "NoNewPrivs:\\t1" in capabilities
    assert podman("healthcheck", "run", container.id, check=False).returncode == 0
    assert container.stop() == 0
    again = Container(podman, image, tmp_path, network="host")
    again.wait_line("model ready")
    assert again.ask("GET", "/status")[1]["current_model"] == "demo-calc"  # of the state volume
    assert again.stop() == 0


def test_it_needs_no_network(podman: Podman, image: str, tmp_path: Path) -> None:
    container = Container(podman, image, tmp_path, network="none")
    container.wait_line("model ready")
    assert podman("healthcheck", "run", container.id, check=False).returncode == 0
    done = container.python(
        "import json, urllib.request as r\n"
        "body = json.dumps({'prompt': 'One', 'max_tokens': 4}).encode()\n"
        f"fields = {{'Content-Type': 'application/json', 'Authorization': 'Bearer {KEY}'}}\n"
        f"q = r.Request('http://localhost:{container.port}/v1/completions', body, fields)\n"
        "print(json.load(r.urlopen(q))['usage']['completion_tokens'])"
    )
    assert done.stdout == "4\n", done.stderr
    assert container.stop() == 0


def test_without_keys_it_says_what_is_missing(podman: Podman, image: str, tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "models.yaml").write_text("server: {host: 0.0.0.0}\nmodels: []\n")
    run = ("run", "--rm", *CONFINED, "--network", "none", "--volume", f"{etc}:/etc/modeld:ro", image)
    done = podman(*run, check=False)
    assert done.returncode == 78
    assert "there are no keys" in done.stdout + done.stderr
