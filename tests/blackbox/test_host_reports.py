"""`modeld doctor` on this very host: a whole report with a real decode, and problems that are really there."""

from __future__ import annotations

import http.server
import json
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests import faulty
from tests.daemon import DEADLINE_S, MODELS, ROOT, Daemon, demo_config

CANARY = "Ostrich5f3a91c7"
SECRETS = {"MODELD_API_KEY": f"{CANARY}-{CANARY}", "HF_TOKEN": CANARY}
REAL = ROOT / "build" / "libllama.so"


@dataclass(frozen=True)
class Ran:
    status: int
    report: dict[str, Any]
    text: str

    def levels(self, code: str) -> list[str]:
        return [finding["level"] for finding in self.findings() if finding["code"] == code]

    def one(self, code: str) -> dict[str, Any]:
        found = [finding for finding in self.findings() if finding["code"] == code]
        assert len(found) == 1, (code, self.text)
        return dict(found[0])

    def findings(self) -> list[dict[str, Any]]:
        return [finding for section in self.report["sections"] for finding in section["findings"]]


def doctor(
    config: Path | None,
    *flags: str,
    command: Sequence[str] = (sys.executable, "-m", "modeld"),
    env: Mapping[str, str] | None = None,
    limits: Mapping[int, tuple[int, int]] | None = None,
    wrapper: Sequence[str] = (),
) -> Ran:
    """`modeld doctor --json`, with the environment of a service of that configuration, and `limits` (RLIMIT_*)."""

    def lower() -> None:
        for limit, values in (limits or {}).items():
            resource.setrlimit(limit, values)

    beside = {} if config is None else {"STATE_DIRECTORY": str(config.parent / "state")}
    done = subprocess.run(
        [*wrapper, *command, "doctor", "--json", *(() if config is None else ("--config", str(config))), *flags],
        cwd=ROOT if config is None or command[0] == sys.executable else config.parent,
        env={"PATH": os.environ["PATH"], **beside, **(env or {})},
        preexec_fn=lower,
        capture_output=True,
        text=True,
        timeout=4 * DEADLINE_S,
        check=False,
    )
    assert done.stderr == "", done.stderr
    assert done.returncode in (0, 1)
    return Ran(done.returncode, json.loads(done.stdout), done.stdout)


def quiet(folder: Path, more: str = "", server: str = "port: 0") -> Path:
    """A configuration of which nothing is a problem."""
    path = folder / "models.yaml"
    path.write_text(f"server: {{{server}}}\ndefault_model: null\nmodels:\n- {{id: calc, path: {MODELS}/demo-calc.gguf}}\n{more}")
    return path


# -- a whole report


SECTIONS = (
    "versions, library, processor and cores, memory, limits, configuration, models, state, network, service, decode"
).split(", ")
LEVELS = ["ok", "note", "warning", "problem"]


def test_a_whole_report_decodes_and_keeps_its_shape(tmp_path: Path) -> None:
    config = quiet(tmp_path)
    ran = doctor(config)
    assert (ran.status, ran.report["counts"]["problem"]) == (0, 0), ran.text
    assert list(tmp_path.iterdir()) == [config]  # nothing is written, no state folder is made
    assert set(ran.report) == {"format", "version", "at", "level", "counts", "sections"}
    assert ran.report["format"] == 1
    assert [section["name"] for section in ran.report["sections"]] == SECTIONS
    for finding in ran.findings():
        assert set(finding) == {"code", "level", "about", "found", "advice", "facts"}
        assert finding["level"] in LEVELS
        assert finding["level"] in ("ok", "note") or finding["advice"], finding
    counts = {level: sum(finding["level"] == level for finding in ran.findings()) for level in LEVELS}
    assert ran.report["counts"] == counts
    assert ran.one("library_runs")["level"] == "ok"
    decode = ran.one("decode")
    assert decode["found"].endswith("12+30=42")
    assert decode["facts"]["prompt_tokens_per_s"] > 0
    assert decode["facts"]["generation_tokens_per_s"] > 0
    assert ran.one("model")["about"] == "calc"


def test_the_one_file_decodes_with_what_is_packed_in_it(tmp_path: Path) -> None:
    """It has the reference and the shipped unit inside, and needs neither site-packages nor the checkout."""
    program = Path(shutil.copy(ROOT / "bin" / "modeld", tmp_path))
    ran = doctor(quiet(tmp_path), command=(sys.executable, "-I", "-S", str(program)))
    assert ran.status == 0, ran.text
    assert ran.one("decode")["found"].endswith("12+30=42")
    assert str(program) in ran.one("library")["found"]
    assert ran.levels("jinja_missing") == ["note"]
    shipped = "import sys; sys.path.insert(0, sys.argv[1])\nfrom modeld.doctor.shipped import shipped_unit\nprint(shipped_unit())"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", shipped, program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == (ROOT / "deploy" / "modeld.service").read_text().strip()


def test_the_report_goes_into_a_file_and_its_result_here(tmp_path: Path) -> None:
    config = quiet(tmp_path)
    command = [sys.executable, "-m", "modeld", "doctor", "--config", str(config), "--no-decode"]
    env = {"PATH": os.environ["PATH"], "STATE_DIRECTORY": str(tmp_path / "state")}
    target = tmp_path / "report.txt"
    done = subprocess.run([*command, "--output", str(target)], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{target}: 0 problems, ")
    text = target.read_text()
    assert text.startswith("modeld doctor, modeld ")
    assert "\nconfiguration\n  ok       " in text
    done = subprocess.run([*command, "--output", str(tmp_path)], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"modeld: the report cannot be written: {tmp_path}: Is a directory\n"


# -- problems that are made


@dataclass
class Made:
    """What a problem needs: a configuration, flags, variables, limits."""

    config: Path | None
    flags: Sequence[str] = ("--no-decode",)
    env: dict[str, str] = field(default_factory=dict)
    limits: dict[int, tuple[int, int]] = field(default_factory=dict)
    wrapper: Sequence[str] = ()


def a_model(folder: Path, data: bytes | None, mode: int = 0o644) -> str:
    path = folder / "other.gguf"
    if data is not None:
        path.write_bytes(data)
        path.chmod(mode)
    return f"- {{id: other, path: {path}}}\n"


def truncated(folder: Path) -> Made:
    return Made(quiet(folder, a_model(folder, (MODELS / "demo-calc.gguf").read_bytes()[:-4096])))


def missing(folder: Path) -> Made:
    return Made(quiet(folder, a_model(folder, None)))


def no_model(folder: Path) -> Made:
    return Made(quiet(folder, a_model(folder, b"hello")))


def other_digest(folder: Path) -> Made:
    """A library that is not the one of its stamp."""
    library = Path(shutil.copy(REAL, folder))
    shutil.copy(REAL.with_suffix(".stamp.json"), folder)
    with library.open("ab") as file:
        file.write(b"\0")
    return Made(quiet(folder), env={"MODELD_LIBRARY": str(library)})


def no_stamp(folder: Path) -> Made:
    library = folder / "libllama.so"
    library.symlink_to(REAL)
    return Made(quiet(folder), env={"MODELD_LIBRARY": str(library)})


def no_library(folder: Path) -> Made:
    return Made(quiet(folder), env={"MODELD_LIBRARY": str(folder / "none.so")})


def illegal(folder: Path) -> Made:
    return Made(quiet(folder), flags=(), env={"MODELD_LIBRARY": str(faulty.put(folder, "native", "illegal"))})


def wrong(folder: Path) -> Made:
    return Made(quiet(folder), flags=(), env={"MODELD_LIBRARY": str(faulty.put(folder, "native", "wrong"))})


def few_descriptors(folder: Path) -> Made:
    return Made(quiet(folder), limits={resource.RLIMIT_NOFILE: (200, 200)})


def little_to_lock(folder: Path) -> Made:
    lock = f"- {{id: locked, path: {MODELS}/demo-calc.gguf, load_mode: mlock}}\n"
    # Root may lock what it likes, unless that right is taken away.
    wrapper = ("setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock", "--") if os.geteuid() == 0 else ()
    return Made(quiet(folder, lock), limits={resource.RLIMIT_MEMLOCK: (65536, 65536)}, wrapper=wrapper)


def bad_configuration(folder: Path) -> Made:
    return Made(quiet(folder, server=f"port: {CANARY}"))


def no_configuration(folder: Path) -> Made:
    return Made(folder / "none.yaml")


def open_keys(folder: Path) -> Made:
    keys = folder / "keys"
    keys.write_text(f"ci admin {CANARY}{CANARY}\n")
    keys.chmod(0o644)
    return Made(quiet(folder, server="port: 0, api_key_file: keys"))


def exposed(folder: Path) -> Made:
    return Made(quiet(folder, server="port: 0, host: 0.0.0.0"))


def file_for_state(folder: Path) -> Made:
    (folder / "state").write_text("")
    return Made(quiet(folder))


def foreign_address(folder: Path) -> Made:
    return Made(quiet(folder, server="port: 9, host: 192.0.2.1, insecure: true"))


def file_for_socket(folder: Path) -> Made:
    (folder / "socket").write_text("")
    return Made(quiet(folder, server="port: 0, unix_socket: socket"))


def nobody_at_the_address(folder: Path) -> Made:
    return Made(quiet(folder), flags=("--no-decode", "--server", f"unix:{folder}/none.sock"))


TABLE: dict[Callable[[Path], Made], str] = {
    truncated: "model_bad",
    missing: "model_missing",
    no_model: "model_bad",
    other_digest: "library_refused",
    no_stamp: "library_refused",
    no_library: "library_refused",
    few_descriptors: "descriptors_few",
    little_to_lock: "mlock_limit",
    bad_configuration: "config_invalid",
    no_configuration: "config_missing",
    open_keys: "keys_invalid",
    exposed: "exposed",
    file_for_state: "state_unwritable",
    foreign_address: "address_missing",
    file_for_socket: "socket_taken",
    nobody_at_the_address: "unreachable",
}


IS_X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the code that is written into the library is x86-64's")
if platform.machine() == "x86_64":
    TABLE |= {illegal: "library_died", wrong: "library_wrong"}


@pytest.mark.parametrize(("make", "code"), TABLE.items(), ids=[make.__name__ for make in TABLE])
def test_what_is_really_wrong_is_a_problem_and_the_rest_is_told(make: Callable[[Path], Made], code: str, tmp_path: Path) -> None:
    made = make(tmp_path)
    ran = doctor(made.config, *made.flags, env=SECRETS | made.env, limits=made.limits, wrapper=made.wrapper)
    assert ran.status == 1
    assert ran.report["level"] == "problem"
    assert "problem" in ran.levels(code), ran.text
    problems = {finding["code"] for finding in ran.findings() if finding["level"] == "problem"}
    assert problems - {code} <= {"library_none"}, ran.text
    assert {"versions", "cores", "memory", "descriptors", "descriptors_few"} & {finding["code"] for finding in ran.findings()}
    assert CANARY not in ran.text


@IS_X86
def test_of_a_set_each_library_is_tried_and_the_one_that_a_start_takes_is_named(tmp_path: Path) -> None:
    faulty.put(tmp_path / "set", "x86-64-amx", "illegal")
    faulty.put(tmp_path / "set", "x86-64-v3")
    program = tmp_path / "modeld"
    with zipfile.ZipFile(ROOT / "bin" / "modeld") as plain, zipfile.ZipFile(program, "w") as release:
        for name in plain.namelist():
            if not name.startswith("libllama."):
                release.writestr(name, plain.read(name))
        for path in (tmp_path / "set").glob("*/*"):
            release.write(path, f"libraries/{path.parent.name}/{path.name}")
    ran = doctor(quiet(tmp_path), command=(sys.executable, "-I", "-S", str(program)))
    assert ran.status == 0, ran.text
    died, runs = ran.one("library_died"), ran.one("library_runs")
    assert (died["about"], died["level"], "SIGILL" in died["found"]) == ("x86-64-amx", "warning", True)
    assert runs["about"] == ran.one("library_chosen")["facts"]["variant"] == "x86-64-v3"
    assert ran.one("decode")["found"].endswith("12+30=42")


# -- who is at the address


class Other(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def other_program() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield int(server.server_address[1])
        server.shutdown()
        thread.join()


def test_a_port_of_another_program_is_told_with_its_process(tmp_path: Path, other_program: int) -> None:
    ran = doctor(quiet(tmp_path, server=f"port: {other_program}"), "--no-decode")
    taken = ran.one("port_taken")
    assert (ran.status, taken["level"]) == (1, "problem")
    assert "not modeld" in taken["found"]
    assert taken["facts"]["pid"] == os.getpid()


def test_what_answers_no_http_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def greet() -> None:
            client, _ = listener.accept()
            with client:
                client.sendall(b"SSH-2.0-made-up\r\n")
                client.recv(1000)

        thread = threading.Thread(target=greet)
        thread.start()
        ran = doctor(quiet(tmp_path, server=f"port: {port}"), "--no-decode")
        thread.join()
        assert "not HTTP" in ran.one("port_taken")["found"]


def test_beside_a_daemon_it_tells_its_state_and_gives_way(tmp_path: Path) -> None:
    config = demo_config(tmp_path, one_thread=True)
    with Daemon(config) as daemon:
        daemon.wait_ready()
        generation = daemon.get("/status")["generation"]
        fixed = config.read_text().replace("port: 0", f"port: {daemon.port}")
        config.write_text(fixed)
        ran = doctor(config)
        found = ran.one("daemon")
        assert (found["facts"]["state"], found["facts"]["current_model"]) == ("ready", "demo-stories")
        assert found["facts"]["pid"] == daemon.process.pid
        assert found["facts"]["library"] == "native"
        assert ran.one("decode")["facts"]["gave_way"] is True
        assert ran.one("state")["facts"]["holder"] == daemon.process.pid
        assert f"the daemon (pid {daemon.process.pid})" in ran.one("descriptors")["found"]
        assert ran.levels("port_taken") == []
        assert daemon.get("/status")["generation"] == generation
        daemon.unloaded()
        asked = doctor(quiet(tmp_path / "..", server="port: 0"), "--no-decode", "--server", daemon.url)
        assert asked.one("daemon_error")["facts"]["code"] == "no_model"


def test_keys_open_more_and_are_never_told(tmp_path: Path) -> None:
    key = f"{CANARY}-{CANARY}"
    keys = tmp_path / "keys"
    keys.write_text(f"ci use {key}\n")
    keys.chmod(0o600)
    config = quiet(tmp_path, server="port: 0, api_key_file: keys")
    with Daemon(config) as daemon:
        locked = doctor(config, "--no-decode", "--server", daemon.url)
        assert "wants a key" in locked.one("daemon_locked")["found"]
        opened = doctor(config, "--no-decode", "--server", daemon.url, env={"MODELD_API_KEY": key})
        assert opened.one("daemon")["facts"]["state"] == "error"  # no_model
        assert CANARY not in locked.text + opened.text


# -- places where little is there


def test_without_pyyaml_it_still_reports(tmp_path: Path) -> None:
    program = "import sys; sys.path.insert(0, sys.argv.pop(1))\nfrom modeld.app import main\nsys.exit(main())"
    ran = doctor(quiet(tmp_path), "--no-decode", command=(sys.executable, "-I", "-S", "-c", program, str(ROOT)))
    assert ran.levels("yaml_missing") == ["problem"]
    assert ran.levels("config_unread") == ["problem"]
    assert ran.levels("library") == ["ok"]


def test_in_an_empty_environment_without_a_home(tmp_path: Path) -> None:
    config = quiet(tmp_path)
    command = [sys.executable, "-m", "modeld", "doctor", "--json", "--no-decode", "--config", str(config)]
    done = subprocess.run(command, cwd=ROOT, env={}, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    ran = Ran(0, json.loads(done.stdout), done.stdout)
    assert ran.levels("state_none") == ["warning"]


def test_where_processes_run_out_it_says_so(tmp_path: Path) -> None:
    """Root is not held to that limit: it is another user's then, who can read this."""
    if os.geteuid() == 0:
        folder = Path(tempfile.mkdtemp(prefix="modeld-test-"))
        folder.chmod(0o755)
    else:
        folder = tmp_path
    try:
        program = shutil.copy(ROOT / "bin" / "modeld", folder)
        config = quiet(folder)
        user = ("setpriv", "--reuid=65533", "--regid=65533", "--clear-groups", "--") if os.geteuid() == 0 else ()
        few = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NPROC, (1, 1)); os.execv(sys.argv[1], sys.argv[1:])"
        python = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
        ran = doctor(config, wrapper=(*user, python, "-c", few), command=(python, str(program)))
        assert ran.status == 1
        assert ran.levels("threads_few") == ["problem"]
        assert "Resource temporarily unavailable" in ran.one("config_unread")["found"]
        assert ran.levels("versions") == ["ok"]
    finally:
        if folder != tmp_path:
            shutil.rmtree(folder)


def test_from_a_folder_that_is_gone(tmp_path: Path) -> None:
    config = quiet(tmp_path)
    gone = tmp_path / "gone"
    gone.mkdir()
    leave = "import os, sys; os.rmdir(os.getcwd()); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", leave, sys.executable, str(ROOT / "bin" / "modeld"), "doctor", "--no-decode", "--json"]
    env = {"STATE_DIRECTORY": str(tmp_path / "state")}
    for more, status in (["--config", str(config)], 0), ([], 1):
        done = subprocess.run(
            [*command, *more], cwd=gone, env=env, capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
        assert (done.returncode, done.stderr) == (status, "")
        assert json.loads(done.stdout)["counts"]["ok"] > 10
        gone.mkdir()


def test_a_reader_that_does_not_take_all_of_it_is_no_fault(tmp_path: Path) -> None:
    line = f"{sys.executable} -m modeld doctor --no-decode --config {quiet(tmp_path)} | head -n 1"
    done = subprocess.run(["/bin/sh", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.stderr == ""
    assert done.stdout.startswith("modeld doctor, ")


def test_a_wrong_address_is_a_mistake_in_usage(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "modeld", "doctor", "--server", "localhost"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 2
    assert "expected http://HOST:PORT" in done.stderr
