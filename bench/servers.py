"""How are the servers run that are compared? llama-server and modeld on loopback, with the same settings said to both."""

from __future__ import annotations

import http.client
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from bench import peers

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 120.0
REST_S = 0.6

REGISTRY = """\
server: {host: 127.0.0.1, port: %(port)d, log_level: warning}
%(switching)smodels:
%(models)s"""

ENTRY = """\
  - {id: %(id)s, path: %(path)s, n_ctx: %(n_ctx)d, n_parallel: %(n_parallel)d, n_threads: %(n_threads)d,
     n_batch: 2048, n_ubatch: 512, cache_type_k: f16, cache_type_v: f16, flash_attn: %(flash_attn)s, max_step_ms: %(max_step_ms)d}
"""


@dataclass(frozen=True, slots=True)
class Settings:
    model: Path
    n_ctx: int
    n_parallel: int
    max_step_ms: int = 250  # modeld's alone
    second: Path | None = None  # another model to switch to; a peer becomes a router that keeps one of the two loaded
    flash_attn: str = "auto"
    switching: str = ""  # modeld's alone: that section of its configuration, "{...}"; empty: the defaults

    @property
    def models(self) -> tuple[Path, ...]:
        return (self.model,) if self.second is None else (self.model, self.second)


def command_of(name: str, settings: Settings, port: int, folder: Path) -> list[str]:
    """`name` is modeld or a peer; modeld's registry is written into `folder`."""
    n_threads = len(os.sched_getaffinity(0))
    if name == "modeld":
        registry = folder / f"{settings.model.stem}-{settings.n_ctx}-{settings.n_parallel}-{settings.max_step_ms}.yaml"
        entries = [
            ENTRY
            % {
                "id": model.stem,
                "path": model,
                "n_ctx": settings.n_ctx,
                "n_parallel": settings.n_parallel,
                "n_threads": n_threads,
                "max_step_ms": settings.max_step_ms,
                "flash_attn": settings.flash_attn,
            }
            for model in settings.models
        ]
        switching = f"switching: {settings.switching}\n" if settings.switching else ""
        registry.write_text(REGISTRY % {"port": port, "switching": switching, "models": "".join(entries)})
        return [sys.executable, "-m", "modeld", "serve", "--config", os.fspath(registry)]
    which = f"-m {settings.model}"
    if settings.second is not None:
        models = folder / f"models-{name}"
        models.mkdir()
        for model in settings.models:
            (models / model.name).symlink_to(model)
        which = f"--models-dir {models} --models-max 1"
    text = (
        f"{which} --host 127.0.0.1 --port {port} -t {n_threads} -np {settings.n_parallel} -c {settings.n_ctx} "
        f"-b 2048 -ub 512 -ctk f16 -ctv f16 -fa {settings.flash_attn} --no-webui"
    )
    return [os.fspath(peers.program(name, "llama-server")), *text.split()]


def said(command: list[str]) -> str:
    """The command line for people: our paths relative, modeld's registry with its entry."""
    text = shlex.join(command).replace(f"{ROOT}/", "")
    if "--models-dir" in command:  # in a folder for this run
        models = command[command.index("--models-dir") + 1]
        text = text.replace(models, Path(models).name)
    if command[-1].endswith(".yaml"):  # in a folder for this run; its content says more than its path
        text = text.replace(f"{Path(command[-1]).parent}/", "")
        text += "  # " + " ".join(Path(command[-1]).read_text().replace(f"{ROOT}/", "").split())
    return text


class Server:
    """One server process. Context manager: ready inside, ended after; paused whenever it is not its turn."""

    def __init__(self, name: str, settings: Settings, folder: Path) -> None:
        self.name = name
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self.command = command_of(name, settings, port, folder)
        self._log_path = (
            folder / f"{name}-{settings.model.stem}-{settings.n_ctx}-{settings.n_parallel}-{settings.max_step_ms}.log"
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def __enter__(self) -> Server:
        self._log = self._log_path.open("wb")
        print(f"{self.name}: {said(self.command)}", file=sys.stderr, flush=True)
        # Nothing that an earlier run loaded decides what this one loads, and nothing is left in the home directory.
        env = {**os.environ, "STATE_DIRECTORY": os.fspath(self._log_path.with_suffix(".state"))}
        # A group of its own, so that a router's models are stopped with it; not a session, which would have its own autogroup.
        self._process = subprocess.Popen(
            self.command, cwd=ROOT, env=env, stdout=self._log, stderr=subprocess.STDOUT, process_group=0
        )
        try:
            self._wait_ready()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _wait_ready(self) -> None:
        """Both answer 503 at /health while they load, then 200."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            assert self._process is not None
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.name} ended with {self._process.returncode}:\n{self._log_path.read_text()[-3000:]}")
            connection = http.client.HTTPConnection(self.address, timeout=5)
            try:
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            finally:
                connection.close()
            time.sleep(0.05)
        raise RuntimeError(f"{self.name} is not ready after {DEADLINE_S:g} s:\n{self._log_path.read_text()[-3000:]}")

    def rest(self) -> None:
        """Let what a server does after an answer come to its end: memory is given back, threads go to sleep."""
        time.sleep(REST_S)

    def pause(self) -> None:
        os.killpg(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self.pid, signal.SIGCONT)

    def memory_mb(self) -> dict[str, float]:
        """Resident memory in MB (10^6): in all, and without what is mapped from files."""
        fields = dict(
            line.split(":", 1)
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines()
            if line.startswith("Vm") or "Rss" in line
        )
        kib = {name: int(value.split()[0]) for name, value in fields.items()}
        return {"rss_mb": kib["VmRSS"] * 1.024e-3, "anonymous_mb": kib["RssAnon"] * 1.024e-3}

    def _end(self) -> None:
        """Only what was started here."""
        if self._process is not None and self._process.poll() is None:
            self.resume()
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.pid, signal.SIGKILL)
                self._process.wait()
        if self._log is not None:
            self._log.close()
