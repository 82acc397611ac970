"""Keys of every source on a real daemon: the official client, reloads, an address that needs them, a log that never has one."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.daemon import DEADLINE_S, ROOT, Daemon, demo_config, kept_beside

OPS, WEB, CI, GONE = (f"{name}-canary-0123456789abcdef" for name in ("ops", "web", "ci", "gone"))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def code(answer: tuple[int, Mapping[str, str], Any]) -> tuple[int, str | None]:
    status, _, body = answer
    return status, body["error"]["code"] if status >= 400 else None


def write_keys(folder: Path, *lines: str) -> None:
    (folder / "keys").touch(0o600)
    (folder / "keys").write_text("\n".join(lines))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """ops of the file may everything, web of the variable and ci of the credential may use. No line of its log has a key."""
    config = demo_config(tmp_path)
    config.write_text(config.read_text().replace("port: 0}", "port: 0, api_key_file: keys, cors_origins: ['https://a.example']}"))
    write_keys(tmp_path, f"ops admin {OPS}", f"gone use {GONE}")
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "modeld-keys").write_text(f"ci use sha256:{hashlib.sha256(CI.encode()).hexdigest()}")
    env = {**os.environ, **kept_beside(config), "PYTHONPATH": str(ROOT), "PYTHONDEVMODE": ""}
    with Daemon(
        config, env={**env, "MODELD_API_KEYS": f"web use {WEB}", "CREDENTIALS_DIRECTORY": str(tmp_path / "credentials")}
    ) as daemon:
        daemon.wait_line(lambda line: line["msg"] == "model ready")
        yield daemon
    log = json.dumps(daemon.lines)
    assert '"names": "ops, gone, web, ci"' in log
    assert "canary" not in log
    assert hashlib.sha256(OPS.encode()).hexdigest() not in log


def test_scopes_are_what_the_official_client_makes_of_them(daemon: Daemon) -> None:
    def client(key: str) -> OpenAI:
        return OpenAI(base_url=f"{daemon.url}/v1", api_key=key, max_retries=0, timeout=DEADLINE_S)

    messages: Any = [{"role": "user", "content": "Tell me a story."}]
    for key in (OPS, WEB, CI):
        with client(key) as allowed:
            assert allowed.models.list().data[0].id == "demo-stories"
            assert allowed.chat.completions.create(model="demo-stories", messages=messages, max_tokens=3).choices
            chunks = allowed.chat.completions.create(model="demo-stories", messages=messages, max_tokens=3, stream=True)
            assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "length"
    with client("wrong-canary-0123456789") as stranger:
        for stream in (False, True):
            with pytest.raises(openai.AuthenticationError) as unknown:
                stranger.chat.completions.create(model="demo-stories", messages=messages, stream=stream)
            assert unknown.value.code == "invalid_api_key"
            assert unknown.value.response.headers["www-authenticate"].startswith("Bearer")
    with OpenAI(base_url=daemon.url, api_key=WEB, max_retries=0) as web:
        with pytest.raises(openai.PermissionDeniedError) as denied:
            web.post("/switch", body={"model_id": "demo-calc"}, cast_to=object)
        assert denied.value.code == "permission_denied"
        assert "web has the scope use" in str(denied.value)
    accepted = daemon.request("POST", "/switch?wait=60", {"model_id": "demo-calc"}, {"X-Api-Key": OPS})
    assert (accepted[0], accepted[2]["state"]) == (200, "succeeded")


def test_probes_need_no_key_and_all_else_does(daemon: Daemon) -> None:
    for path in ("/livez", "/readyz", "/healthz", "/health"):
        assert daemon.request("GET", path)[0] == 200
    for path in ("/status", "/events", "/models", "/nothing", "/v1/models"):
        assert code(daemon.request("GET", path)) == (401, "invalid_api_key")
    assert code(daemon.request("GET", "/status", fields={**bearer(OPS), "Origin": "https://evil.example"}))[0] == 403
    assert daemon.request("GET", "/status", fields={**bearer(OPS), "Origin": "https://a.example"})[0] == 200
    assert code(daemon.request("GET", "/status", fields={**bearer(OPS), "Host": "evil.example"})) == (403, "host_not_allowed")


def test_a_revoked_key_is_refused_on_a_kept_connection_and_a_broken_file_keeps_the_old_ones(
    daemon: Daemon, tmp_path: Path
) -> None:
    kept = http.client.HTTPConnection(daemon.host, daemon.port, timeout=DEADLINE_S)

    def status_of(key: str) -> int:
        kept.request("GET", "/status", headers=bearer(key))
        answer = kept.getresponse()
        answer.read()
        return answer.status

    assert status_of(GONE) == 200
    write_keys(tmp_path, f"ops admin {OPS}", f"gone {GONE}")
    refused = daemon.request("POST", "/reload", {}, bearer(OPS))
    assert code(refused) == (422, "config_error")
    assert refused[2]["error"]["message"].endswith("/keys:2: expected three words, NAME SCOPE KEY, found 2")
    assert status_of(GONE) == 200
    write_keys(tmp_path, f"ops admin {OPS}")
    daemon.wait_line(lambda line: line["msg"] == "keys")
    n_before = sum(line["msg"] == "keys" for line in daemon.lines)
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_line(lambda line: line["msg"] == "keys" and line["names"] == "ops, web, ci")
    assert n_before == 1
    assert status_of(GONE) == 401
    assert status_of(OPS) == 200
    kept.close()
    write_keys(tmp_path, f"ops admin {OPS}", f"gone use {GONE}")
    assert daemon.request("POST", "/reload", {}, bearer(OPS))[2]["changed"] is True
    assert daemon.request("GET", "/status", fields=bearer(GONE))[0] == 200


def test_an_address_that_other_hosts_reach_needs_keys(tmp_path: Path) -> None:
    config = demo_config(tmp_path)
    command = [sys.executable, "-m", "modeld", "serve", "--config", str(config), "--host", "0.0.0.0", "--port", "0"]
    env = {**os.environ, **kept_beside(config)}
    refused = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert refused.returncode == 78
    for way_out in ("server.api_key_file", "MODELD_API_KEYS", "modeld-keys", "127.0.0.1 or ::1", "server.insecure: true"):
        assert way_out in refused.stderr
    config.write_text(config.read_text().replace("host: 127.0.0.1, port: 0", "host: 0.0.0.0, port: 0, insecure: true"))
    with Daemon(config) as daemon:
        warned = daemon.wait_line(lambda line: line.get("level") == "warning")
        assert warned["msg"].startswith("insecure: whoever reaches 0.0.0.0 may use")
        assert daemon.request("GET", "/status")[0] == 200
