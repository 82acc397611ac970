"""A real daemon's answers and events are as /openapi.json says, with nothing beyond it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests import tool_templates
from tests.daemon import DEADLINE_S, MODELS, Daemon, demo_config
from tests.described import Described

ENTRIES = """
  - {id: vectors, path: %(models)s/demo-stories.gguf, n_ctx: 512, n_threads: 1, pooling: mean}
  - {id: tools, path: %(models)s/demo-stories.gguf, n_ctx: 1024, n_threads: 1, chat_template: %(template)s}
  - {id: missing, path: nowhere.gguf}
"""
PROMPT = {"prompt": "One day", "max_tokens": 5}
CHAT = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 5}
TOOLS = {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    entries = ENTRIES % {"models": MODELS, "template": json.dumps(tool_templates.HERMES)}
    with Daemon(demo_config(tmp_path_factory.mktemp("daemon"), entries, one_thread=True)) as daemon:
        yield daemon


class Asking:
    """Asks, and compares each answer with the document that the daemon serves."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.described = Described(daemon.get("/openapi.json"))

    def __call__(self, status: int, method: str, path: str, body: object = None, *, target: str | None = None) -> Any:
        """The body, as text. `target`: with a query, or a parameter of the path in its place."""
        connection = http.client.HTTPConnection(self.daemon.host, self.daemon.port, timeout=DEADLINE_S)
        try:
            headers = {} if body is None else {"Content-Type": "application/json"}
            connection.request(method, target or path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        assert response.status == status, data
        fields = {name.lower(): value for name, value in response.getheaders()}
        self.described.check(method, path, status, fields, data)
        return json.loads(data) if fields["content-type"] == "application/json" else data.decode()


@pytest.fixture
def ask(daemon: Daemon) -> Asking:
    return Asking(daemon)


def test_what_is_read(ask: Asking) -> None:
    for path in (
        "/models",
        "/ops",
        "/status",
        "/openapi.json",
        "/livez",
        "/readyz",
        "/healthz",
        "/health",
        "/props",
        "/v1/models",
    ):
        ask(200, "GET", path)
    ask(200, "GET", "/v1/models/{model_id}", target="/v1/models/demo-stories")
    ask(404, "GET", "/v1/models/{model_id}", target="/v1/models/demo-calc")
    ask(404, "GET", "/ops/{op_id}", target="/ops/none")
    ask(404, "DELETE", "/quarantine/{model_id}", target="/quarantine/missing")
    ask(400, "GET", "/ops", target="/ops?limit=0")


def test_what_is_generated(ask: Asking) -> None:
    for more in ({}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}, {"n": 2, "logprobs": 3}):
        ask(200, "POST", "/v1/completions", {**PROMPT, **more})
        ask(200, "POST", "/v1/completions", {**PROMPT, **more, "echo": True, "logprobs": 2})
    for more in ({}, {"stream": True}, {"logprobs": True, "top_logprobs": 2}, {"logprobs": True, "stream": True}):
        ask(200, "POST", "/v1/chat/completions", {**CHAT, **more})
    for pieces in (False, True):
        ask(200, "POST", "/tokenize", {"content": "Ä day", "with_pieces": pieces, "add_special": True})
    ask(200, "POST", "/detokenize", {"tokens": [5, 6, 7]})
    ask(200, "POST", "/apply-template", {"messages": CHAT["messages"]})
    ask(400, "POST", "/v1/completions", {**PROMPT, "temperature": 3})
    ask(400, "POST", "/v1/completions", {"prompt": "One day " * 1000})
    ask(404, "POST", "/v1/completions", {**PROMPT, "model": "nobody"})
    ask(409, "POST", "/v1/completions", {**PROMPT, "model": "demo-calc"})
    ask(400, "POST", "/v1/embeddings", {"input": "One day"})


def test_what_is_switched_and_the_events_of_it(ask: Asking) -> None:
    daemon, described = ask.daemon, ask.described
    event = described.answer("GET", "/events", 200)["content"]["text/event-stream"]["schema"]
    with daemon.events() as events:
        ask(200, "POST", "/switch", {"model_id": "vectors", "dry_run": True})
        ask(200, "POST", "/switch", {"model_id": "tools", "strategy": "overlap"}, target="/switch?wait=60")
        for more in ({}, {"stream": True}):
            ask(200, "POST", "/v1/chat/completions", {**CHAT, **TOOLS, "max_tokens": 200, **more})
        ask(200, "POST", "/switch", {"model_id": "vectors", "on_inflight": "drain"}, target="/switch?wait=60")
        for encoding in ("float", "base64"):
            ask(200, "POST", "/v1/embeddings", {"input": ["One day", [5, 6]], "encoding_format": encoding})
        ask(400, "POST", "/v1/completions", PROMPT)
        failed = ask(500, "POST", "/switch", {"model_id": "missing"}, target="/switch?wait=60")
        ask(200, "GET", "/ops/{op_id}", target=f"/ops/{failed['op_id']}")
        ask(409, "DELETE", "/ops/{op_id}", target=f"/ops/{failed['op_id']}")
        ask(404, "POST", "/switch", {"model_id": "nobody"})
        ask(200, "POST", "/unload", {}, target="/unload?wait=60")
        for path in ("/readyz", "/healthz", "/health", "/props"):
            ask(503, "GET", path)
        for path, body in (("/v1/completions", PROMPT), ("/v1/chat/completions", CHAT), ("/tokenize", {"content": "a"})):
            ask(503, "POST", path, body)
        ask(200, "POST", "/reload", {})
        ask(202, "POST", "/switch", {"model_id": "demo-stories"})
        seen = events.until(lambda one: one.name == "model_ready" and one.data["current_model_id"] == "demo-stories")
    for one in seen:
        described.check_event("GET /events", event, {"id": one.id, "event": one.name, "data": json.dumps(one.data)})
    names = {one.name for one in seen}
    assert {"snapshot", "model_switch_started", "model_loading_progress", "model_ready", "model_error", "model_unloaded"} <= names
