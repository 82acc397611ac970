"""The program: start, signals, exit status, log lines, command line."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from modeld import __version__
from tests.daemon import MODELS, ROOT, Daemon, demo_config, has_ipv6, kept_beside

PYTHON = sys.executable


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    if "--config" in arguments:
        env |= kept_beside(Path(arguments[arguments.index("--config") + 1]))
    return subprocess.run(
        [PYTHON, "-m", "modeld", *arguments], cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=60
    )


def test_livez_answers_while_the_first_model_loads(tmp_path: Path) -> None:
    with Daemon(demo_config(tmp_path)) as daemon:
        status, _, _ = daemon.request("GET", "/livez")
        assert status == 200
        daemon.wait_ready()
        assert daemon.get("/status")["current_model"] == "demo-stories"


def test_a_generation_that_takes_too_long_is_ended_and_its_slot_is_free(tmp_path: Path) -> None:
    config = tmp_path / "models.yaml"
    config.write_text(
        f"""
server: {{port: 0, generation_timeout_s: 1}}
models: [{{id: long, path: {MODELS}/demo-stories.gguf, n_ctx: 262144, n_parallel: 1}}]
"""
    )
    endless = {"prompt": "One day", "ignore_eos": True, "max_tokens": 200_000}
    with Daemon(config) as daemon:
        daemon.wait_ready()
        with daemon.stream("/v1/completions", endless) as stream:
            list(stream)
        assert stream.text
        assert stream.frames[-1]["error"]["code"] == "generation_timeout"
        assert not stream.done
        status, _, body = daemon.request("POST", "/v1/completions", endless)
        assert (status, body["error"]["code"]) == (504, "generation_timeout")
        daemon.wait_status(lambda status: status["slots"]["busy"] == 0)


def test_a_second_signal_leaves_at_once(tmp_path: Path) -> None:
    daemon = Daemon(demo_config(tmp_path))
    daemon.wait_ready()
    with socket.create_connection((daemon.host, daemon.port)) as unfinished:
        unfinished.sendall(b"POST /switch HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n")
        # a request whose body is still to come holds up a clean stop until the deadline
        daemon.wait_line(lambda line: line["msg"] == "model ready")
        daemon.get("/status")
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_line(lambda line: line["msg"] == "stopping")
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.wait() == 128 + signal.SIGTERM


def test_sigint_exits_with_0_too(tmp_path: Path) -> None:
    daemon = Daemon(demo_config(tmp_path))
    daemon.wait_ready()
    assert daemon.stop(signal.SIGINT) == 0


def test_log_lines_are_json_when_nobody_reads_them_at_a_terminal(tmp_path: Path) -> None:
    with Daemon(demo_config(tmp_path)) as daemon:
        daemon.wait_ready()
        daemon.request("GET", "/status")
    assert all("raw" not in line for line in daemon.lines), daemon.lines
    ready = next(line for line in daemon.lines if line["msg"] == "model ready")
    assert ready["model_id"] == "demo-stories"
    assert ready["op_id"]
    assert ready["ms"] > 0


def test_no_prompt_and_no_answer_is_logged(tmp_path: Path) -> None:
    with Daemon(demo_config(tmp_path)) as daemon:
        daemon.wait_ready()
        answer = daemon.request("POST", "/v1/completions", {"prompt": "xyzzy-canary", "max_tokens": 20})[2]
    assert answer["choices"][0]["text"]
    assert "xyzzy" not in json.dumps(daemon.lines)


def test_a_port_in_use_is_said_and_is_status_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("serve", "--config", str(demo_config(tmp_path)), "--port", str(port))
    assert result.returncode == 1
    assert f"port {port}" in result.stderr


def test_bad_configuration_is_status_78_and_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("models:\n  - {id: a, path: x.gguf, n_ctx: many}\n")
    result = run("serve", "--config", str(path))
    assert result.returncode == 78
    assert "bad.yaml:2: models[0].n_ctx: expected" in result.stderr
    assert run("serve", "--config", str(tmp_path / "none.yaml")).returncode == 78
    assert run("serve", "--config", str(demo_config(tmp_path)), MODELD_PORT="many").returncode == 78


def test_a_name_for_a_host_is_refused_from_wherever_it_comes(tmp_path: Path) -> None:
    config = demo_config(tmp_path)
    assert "names are not looked up" in run("serve", "--config", str(config), "--host", "modeld.example").stderr
    assert run("serve", "--config", str(config), MODELD_HOST="modeld.example").returncode == 78
    config.write_text(config.read_text().replace("host: 127.0.0.1", "host: modeld.example"))
    result = run("serve", "--config", str(config))
    assert result.returncode == 78
    assert "models.yaml:2: server.host: expected an IPv4 or IPv6 address or localhost, found 'modeld.example'" in result.stderr


def test_all_addresses_are_told_and_served_and_the_unix_socket_is_gone_at_the_end(tmp_path: Path) -> None:
    config = demo_config(tmp_path)
    hosts = ["127.0.0.1", "127.0.0.3", *(["::1"] if has_ipv6() else [])]
    listen = f"host: {hosts}, unix_socket: modeld.sock"
    config.write_text(config.read_text().replace("host: 127.0.0.1", listen))
    with Daemon(config) as daemon:
        daemon.wait_ready()
        daemon.wait_line(lambda line: line["msg"] == "model ready")
        urls = [line["url"] for line in daemon.lines if "url" in line]
        port = daemon.port
        assert urls == [
            *(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}" for host in hosts),
            f"unix:{tmp_path.resolve()}/modeld.sock",
        ]
        for host in hosts:
            with socket.create_connection((host, port)) as client:
                assert b" 200 OK" in ask_livez(client)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "modeld.sock"))
            assert b" 200 OK" in ask_livez(client)
    assert not (tmp_path / "modeld.sock").exists()


def ask_livez(client: socket.socket) -> bytes:
    client.settimeout(10)
    client.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return client.recv(4096)


@pytest.mark.parametrize("flags", [["--host", "127.0.0.4,127.0.0.5"], ["--host", "127.0.0.4", "--host", "127.0.0.5"]])
def test_the_flag_takes_several_addresses(tmp_path: Path, flags: list[str]) -> None:
    with Daemon(demo_config(tmp_path), flags=flags) as daemon:
        daemon.wait_line(lambda line: line.get("url") == f"http://127.0.0.5:{daemon.port}")
        assert daemon.host == "127.0.0.4"


@pytest.mark.parametrize(
    "arguments", [(), ("nonsense",), ("serve", "--nonsense"), ("serve", "--port", "x"), ("serve", "--host", "modeld.example")]
)
def test_wrong_usage_is_status_2(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert "usage: modeld" in result.stderr


def test_version_and_help() -> None:
    assert __version__ in run("--version").stdout
    assert "serve" in run("--help").stdout
    assert "--config" in run("serve", "--help").stdout


def test_check_tells_one_line_a_finding(tmp_path: Path) -> None:
    good = run("check", "--config", str(demo_config(tmp_path)))
    assert good.returncode == 0, good.stdout
    bad = run("check", "--config", str(demo_config(tmp_path, f"  - {{id: gone, path: {tmp_path}/gone.gguf}}\n")))
    assert bad.returncode == 1
    assert "gone.gguf" in bad.stdout


def test_a_library_that_was_not_tested_is_refused(tmp_path: Path) -> None:
    library = tmp_path / "libllama.so"
    library.write_bytes((ROOT / "build" / "libllama.so").read_bytes())
    result = run("serve", "--config", str(demo_config(tmp_path)), MODELD_LIBRARY=str(library))
    assert result.returncode == 1
    assert "libllama.stamp.json" in result.stderr
