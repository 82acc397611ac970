"""The log of a real daemon: its level moves while it runs, and nobody has to read it."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.daemon import DEADLINE_S, ROOT, Daemon, demo_config, kept_beside
from tests.scrapes import scrape


def test_one_line_tells_what_a_generation_came_to(daemon: Daemon) -> None:
    daemon.request(
        "POST", "/v1/completions", {"prompt": "One day", "max_tokens": 5, "temperature": 0}, {"X-Request-Id": "generated-1"}
    )
    line = daemon.wait_line(lambda line: line.get("request_id") == "generated-1")
    assert {name: line[name] for name in ("level", "logger", "msg", "method", "route", "status", "caller")} == {
        "level": "info", "logger": "modeld.http", "msg": "request", "method": "POST", "route": "/v1/completions", "status": 200,
        "caller": "anonymous",
    }  # fmt: skip
    assert (line["model_id"], line["stream"], line["prompt_tokens"], line["completion_tokens"]) == ("demo-stories", False, 4, 5)
    assert line["end"] == "length"
    assert 0 < line["ttft_ms"] <= line["last_token_ms"] <= line["ms"]
    assert line["bytes"] > 100


def test_a_client_that_leaves_has_its_tokens_told(daemon: Daemon) -> None:
    body = {"prompt": "One day", "max_tokens": 500, "ignore_eos": True, "stream": True}
    connection = http.client.HTTPConnection(daemon.host, daemon.port, timeout=DEADLINE_S)
    connection.request(
        "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json", "X-Request-Id": "left-1"}
    )
    response = connection.getresponse()
    assert response.read(1)
    connection.close()
    response.close()
    line = daemon.wait_line(lambda line: line.get("request_id") == "left-1")
    assert (line["status"], line["end"], line["stream"], line["prompt_tokens"]) == (499, "client_gone", True, 4)
    assert 0 < line["completion_tokens"] <= 500


def test_no_thread_but_the_main_one_takes_the_signals(daemon: Daemon) -> None:
    blocked = {}
    for task in Path(f"/proc/{daemon.process.pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a connection's thread that has just ended
            [mask] = re.findall(r"^SigBlk:\s*([0-9a-f]+)$", (task / "status").read_text(), re.MULTILINE)
            blocked[int(task.name)] = int(mask, 16)
    del blocked[daemon.process.pid]  # which waits for them
    wanted = sum(1 << number - 1 for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    assert len(blocked) > 5
    assert all(mask & wanted == wanted for mask in blocked.values())


def test_a_switch_says_how_long_each_step_took(daemon: Daemon) -> None:
    op_id = daemon.switch("demo-calc")
    daemon.wait_line(lambda line: (line["msg"], line.get("op_id")) == ("model ready", op_id))
    daemon.wait_line(lambda line: (line["msg"], line.get("op_id")) == ("switch queued", op_id))  # by another thread
    lines = [line for line in daemon.lines if line.get("op_id") == op_id and line["msg"] != "switch queued"]
    assert lines[0]["msg"] == "switch started"
    for step in ("unload", "mmap", "warmup"):
        [line] = [line for line in lines if line["msg"] == f"{step} done"]
        assert line["ms"] >= 0
    assert lines[-1]["msg"] == "model ready"
    assert lines[-1]["ms"] > 0


def test_a_hangup_moves_the_level(tmp_path: Path) -> None:
    config = demo_config(tmp_path, one_thread=True)
    text = config.read_text().replace("port: 0", "port: 0, log_level: warning")
    config.write_text(text.replace("models:", "switching: {watch_config: false}\nmodels:", 1))
    with Daemon(config) as daemon:
        daemon.wait_ready()
        with daemon.events() as events:
            for level, n_ctx in (("info", 1024), ("error", 512)):  # a model changes, too, which is an event
                config.write_text(text.replace("log_level: warning", f"log_level: {level}").replace("2048", str(n_ctx)))
                events.seen.clear()
                os.kill(daemon.process.pid, signal.SIGHUP)
                events.until(lambda event: event.name == "config_reloaded")
                daemon.request("GET", "/livez", None, {"X-Request-Id": f"at-{level}"})
                if level == "info":
                    daemon.wait_line(lambda line: line.get("request_id") == "at-info")
    assert not [line for line in daemon.lines if line.get("request_id") == "at-error"]


def test_a_daemon_whose_log_nobody_reads_goes_on_answering_and_ends(tmp_path: Path) -> None:
    config = demo_config(tmp_path, one_thread=True)
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    process = subprocess.Popen(
        [sys.executable, "-m", "modeld", "serve", "--config", str(config), "--port", "0"],
        cwd=ROOT,
        env={**os.environ, **kept_beside(config)},
        stderr=writer,
    )
    os.close(writer)
    try:
        said = b""
        while b'"url"' not in said or not said.endswith(b"\n"):
            said += os.read(reader, 1)  # and not a byte more: the pipe is to fill up
        port = int(str(next(json.loads(line)["url"] for line in said.splitlines() if b'"url"' in line)).rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
        for _ in range(300):  # of 200 bytes and more each: fifteen times what the pipe holds
            connection.request("GET", "/status")
            response = connection.getresponse()
            assert response.status == 200
            response.read()
        connection.close()
        assert scrape("127.0.0.1", port)["modeld_log_lines_dropped_total"] == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(reader)
