"""Every answer that /openapi.json documents is given once, and is as it says. From tables that the document is compared with.

Errors are injected: by bytes that the parser refuses, or by what the service raises. The other answers are listed one by one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from fake_service import LOADED, OP, STATUS, FakeService
from raw_client import Answer, RawClient

from modeld import errors
from modeld.clientlimits import ClientLimits, LimitPolicy
from modeld.errors import EngineFailed, MethodNotAllowed, ModeldError, PermissionDenied
from modeld.httpapi import exchange, router
from modeld.httpapi.auth import Gate, Rules
from modeld.httpapi.caller import Access, Caller, KeyRules, Peer
from modeld.httpapi.description import document
from modeld.httpapi.head import RequestHead
from modeld.httpapi.limits import Limits
from modeld.httpapi.message import Request, Response
from modeld.httpapi.quotas import Quotas
from modeld.httpapi.router import ROUTES, Route
from modeld.httpapi.server import HttpServer
from modeld.httpapi.service import Service
from modeld.types import ApiKey, Chunk, Failed, Finished, OpError, OpKind, OpState, State, TokenLogprob, ToolCallFormat, Usage
from tests.described import Described

DESCRIBED = Described(document(STATUS.version))
OPERATIONS = {(method, path): operation for method, path, operation in DESCRIBED.operations()}
Key = tuple[str, str, int]


def target(path: str) -> str:
    return (
        path.replace("{op_id}", "op-1")
        .replace("{file}", "page.css")
        .replace("{model_id}", "other" if "quarantine" in path else LOADED.id)
    )


def body_of(method: str, path: str) -> Any:
    """What the document gives as an example, for the fake's models."""
    if method != "POST":
        return None
    media = OPERATIONS[method, path]["requestBody"]["content"]["application/json"]
    return {**media.get("example", {}), **({"model_id": "other"} if path == "/switch" else {})}


class Serving:
    """A server with the fake behind it, and a client for each request."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.service = FakeService()
        self.monkeypatch = monkeypatch
        self._servers: list[HttpServer] = []
        self._clients: list[RawClient] = []

    def client(self, gate: Gate | None = None, quotas: Quotas | None = None, **limits: Any) -> RawClient:
        """All of these are of a server of its own."""
        if gate or quotas or limits or not self._servers:
            self._servers.append(HttpServer(self.service, "127.0.0.1", 0, Limits(**limits), gate=gate, quotas=quotas))
            self._servers[-1].start()
        self._clients.append(RawClient(self._servers[-1].address))
        return self._clients[-1]

    def ask(self, method: str, path: str, body: Any = None, *fields: str) -> Answer:
        return self.client().request(method, path, body, *fields)

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.service.hub.close()
        for server in self._servers:
            server.close(5.0)


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    serving = Serving(monkeypatch)
    yield serving
    serving.close()


# -- errors


@dataclass(frozen=True)
class Refused:
    """An error that a route may answer, as the document has it."""

    method: str
    path: str
    status: int
    code: str

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.status} {self.code}"


def refusals() -> Iterator[Refused]:
    for (method, path), operation in OPERATIONS.items():
        for status, answer in operation["responses"].items():
            for code in DESCRIBED.resolved(answer)["content"].get("application/json", {}).get("examples", ()):
                yield Refused(method, path, int(status), code)


def head(refused: Refused, *fields: str, version: str = "1.1") -> str:
    content_type = ("Content-Type: application/json",) if refused.method == "POST" else ()
    lines = (f"{refused.method} {target(refused.path)} HTTP/{version}", "Host: localhost", *content_type, *fields)
    return "\r\n".join(lines) + "\r\n"


KEY = "a-key-of-this-test"
USER = ApiKey("user", admin=False, digest=hashlib.sha256(KEY.encode()).digest())


class NobodyMay(KeyRules):
    def admit(self, head: RequestHead, access: Access, peer: Peer) -> Caller:
        raise PermissionDenied(f"uid 1000 at {peer.address} is not listed")


def slow(serving: Serving, refused: Refused) -> Answer:
    return serving.client(head_s=0.1).send(head(refused)).answer()


def crowded(serving: Serving, refused: Refused) -> Answer:
    """The only connection has a request that runs: there is none to be closed for another."""
    serving.service.script = None
    serving.client(connections=1).post_only("POST", "/v1/completions", {"prompt": "x"})
    serving.service.generation()
    return serving.client().send(head(refused) + "\r\n").answer()


def faulty(serving: Serving, refused: Refused) -> Answer:
    """Whatever the route: its handler has a fault."""

    def fault(_request: Request, _service: Service) -> Response:
        raise ZeroDivisionError

    def match(method: str, path: str) -> tuple[Route, Any]:
        route, params = router.match(method, path)
        return replace(route, handler=fault), params

    serving.monkeypatch.setattr(exchange, "match", match)
    return serving.ask(refused.method, target(refused.path), body_of(refused.method, refused.path))


def with_keys(serving: Serving, refused: Refused) -> Answer:
    return serving.client(Gate(Rules(keys=KeyRules((USER,))))).send(head(refused) + "\r\n").answer()


def denied(serving: Serving, refused: Refused) -> Answer:
    """Whoever may generate may not switch; may somebody not even that, it is by the uid at the other end of a Unix socket."""
    route = next(route for route in ROUTES if (route.method, route.path) == (refused.method, refused.path))
    rules = KeyRules((USER,)) if route.access is Access.ADMIN else NobodyMay()
    return serving.client(Gate(Rules(keys=rules))).send(head(refused, f"X-Api-Key: {KEY}") + "\r\n").answer()


def too_soon(serving: Serving, refused: Refused) -> Answer:
    """The second one of a minute; the first one, too, tells how many there are."""
    client = serving.client(quotas=Quotas(LimitPolicy(ClientLimits(requests_per_minute=1, tokens_per_minute=100))))
    first = client.request(refused.method, target(refused.path), body_of(refused.method, refused.path))
    DESCRIBED.check(refused.method, refused.path, first.status, first.fields, first.body)
    second = client.request(refused.method, target(refused.path), body_of(refused.method, refused.path))
    for answer in (first, second):
        assert (answer.fields["x-ratelimit-limit-requests"], answer.fields["x-ratelimit-remaining-requests"]) == ("1", "0")
    assert int(second.fields["retry-after-ms"]) > 0
    return second


def unknown(serving: Serving, refused: Refused) -> Answer:
    return serving.ask(refused.method, re.sub(r"\{\w+\}", "nothing", refused.path))


def without_model(state: State) -> Callable[[Serving, Refused], Answer]:
    def ask(serving: Serving, refused: Refused) -> Answer:
        serving.service.set_status(state=state, current_model=None)
        return serving.ask(refused.method, target(refused.path))

    return ask


# By status and code: what the exchange refuses by itself, before or after any handler.
BY_THE_EXCHANGE: dict[tuple[int, str], Callable[[Serving, Refused], Answer]] = {
    (400, "invalid_request"): lambda s, r: s.client().send(head(r, "Host: twice") + "\r\n").answer(),
    (401, "invalid_api_key"): with_keys,
    (403, "permission_denied"): denied,
    (403, "host_not_allowed"): lambda s, r: s.client().send(head(r).replace("localhost", "evil.example") + "\r\n").answer(),
    (403, "origin_not_allowed"): lambda s, r: s.client().send(head(r, "Origin: https://evil.example") + "\r\n").answer(),
    (408, "request_timeout"): slow,
    (413, "payload_too_large"): lambda s, r: s.client().send(head(r, "Content-Length: 9999999") + "\r\n").answer(),
    (415, "unsupported_media_type"): lambda s, r: (
        s.client().send(head(replace(r, method="POST")).replace("json", "xml") + "\r\n").answer()
    ),
    (417, "invalid_request"): lambda s, r: s.client().send(head(r, "Expect: miracles") + "\r\n").answer(),
    (429, "rate_limit_exceeded"): too_soon,
    (431, "headers_too_large"): lambda s, r: s.client().send(head(r, f"X-Long: {'x' * 9000}") + "\r\n").answer(),
    (500, "internal_error"): faulty,
    (501, "invalid_request"): lambda s, r: s.client().send(head(r, "Transfer-Encoding: gzip, chunked") + "\r\n").answer(),
    (503, "too_many_connections"): crowded,
    (505, "invalid_request"): lambda s, r: s.client().send(head(r, version="2.0") + "\r\n").answer(),
}
# By path and code: where the service is not asked in a way that could fail.
BY_THE_ROUTE: dict[tuple[str, str], Callable[[Serving, Refused], Answer]] = {
    ("/v1/models/{model_id}", "model_not_found"): unknown,
    ("/ops/{op_id}", "not_found"): unknown,
    ("/page/{file}", "not_found"): unknown,
    ("/quarantine/{model_id}", "not_found"): unknown,
    ("/props", "model_loading"): without_model(State.LOADING),
    ("/props", "no_model"): without_model(State.ERROR),
}


def raised(refused: Refused) -> ModeldError:
    """The error with that status and code, as the service raises it."""
    todo, found = [ModeldError], []
    while todo:
        kind = todo.pop()
        todo += kind.__subclasses__()
        if (kind.status, kind.code) == (refused.status, refused.code) and kind.__module__ == errors.__name__:
            found.append(kind)
    assert found, f"no error has status {refused.status} and code {refused.code}"
    return found[-1]("because")


@pytest.mark.parametrize("refused", [*refusals()], ids=str)
def test_every_documented_error_is_answered_as_documented(serving: Serving, refused: Refused):
    ask = BY_THE_EXCHANGE.get((refused.status, refused.code)) or BY_THE_ROUTE.get((refused.path, refused.code))
    if ask is not None:
        answer = ask(serving, refused)
    else:
        serving.service.raises = raised(refused)
        answer = serving.ask(refused.method, target(refused.path), body_of(refused.method, refused.path))
    assert (answer.status, answer.code) == (refused.status, refused.code)
    DESCRIBED.check(refused.method, refused.path, answer.status, answer.fields, answer.body)


def test_every_other_method_is_405_as_documented(serving: Serving):
    shape = DESCRIBED.resolved({"$ref": "#/components/responses/MethodNotAllowed"})
    for path in {route.path for route in ROUTES}:
        allowed = {route.method for route in ROUTES if route.path == path}
        for method in {"GET", "POST", "DELETE", "PUT", "PATCH", "TRACE"} - allowed:
            answer = serving.ask(method, target(path))
            assert (answer.status, answer.code) == (405, MethodNotAllowed.code)
            assert {*answer.fields["allow"].split(", ")} - {"HEAD", "OPTIONS"} == allowed
            assert not DESCRIBED.problems(shape["content"]["application/json"]["schema"], answer.json)


# -- answers with shapes of their own

WHOLE = ("Hello", " world", Finished("stop", Usage(3, 2)))
ENDED = replace(OP, ended_at=12.5, state=OpState.SUCCEEDED)
CALL = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "f"}}]
LOGPROBS = (TokenLogprob(b"a", -0.5, ((b"a", -0.5), (b"\xff", -1.5)), 0), TokenLogprob(b"b", None, (), 1))
EVENTS: dict[str, dict[str, object]] = {
    "model_switch_started": {"op_id": "o", "target_model_id": "m", "steps": ["mmap"], "strategy": "replace", "elapsed_ms": 0.5},
    "model_switch_phase": {"op_id": "o", "target_model_id": "m", "phase": "drain", "pct": 0, "n_running": 1},
    "model_loading_progress": {"op_id": "o", "target_model_id": "m", "step": "mmap", "pct": 4, "bytes": 4, "bytes_total": 100},
    "model_ready": {"op_id": "o", "target_model_id": "m", "current_model_id": "m", "generation": 2, "ms": 3.5},
    "model_error": {"op_id": "o", "target_model_id": "m", "code": "op_cancelled", "message": "by you", "rolled_back_to": "n"},
    "model_unloaded": {"op_id": "o", "target_model_id": None, "model_id": None},
    "shutdown": {"reason": "SIGTERM", "deadline_s": 20.0},
    "config_reloaded": {"models": 2, "added": [], "removed": ["a"], "altered": []},
    "config_error": {"message": "models.yaml:3: unknown key"},
}


def waited(path: str, **op: Any) -> Callable[[Serving], Answer]:
    """What a request that waits for its op is answered when that has ended so."""

    def ask(serving: Serving) -> Answer:
        serving.service.ended = replace(ENDED, **op)
        return serving.ask("POST", f"{path}?wait=5", body_of("POST", path))

    return ask


def failed(code: str) -> dict[str, Any]:
    return {"state": OpState.FAILED, "error": OpError(code, "no", "other", "op-1"), "rolled_back_to": LOADED.id}


CANCELLED = {"state": OpState.CANCELLED, "error": OpError("op_cancelled", "by you", "other", "op-1")}


def plain(method: str, path: str, body: Any = None) -> Callable[[Serving], Answer]:
    return lambda serving: serving.ask(method, path, body)


def with_status(path: str, **changes: Any) -> Callable[[Serving], Answer]:
    def ask(serving: Serving) -> Answer:
        serving.service.set_status(**changes)
        return serving.ask("GET", path)

    return ask


def generated(path: str, script: tuple[Any, ...], **members: Any) -> Callable[[Serving], Answer]:
    def ask(serving: Serving) -> Answer:
        serving.service.script = script
        serving.service.tool_call_format = ToolCallFormat.HERMES
        return serving.ask("POST", path, {**body_of("POST", path), **members})

    return ask


def ended_by_this(serving: Serving) -> Answer:
    serving.monkeypatch.setattr(serving.service, "cancel", lambda op_id: replace(ENDED, op_id=op_id, **CANCELLED))
    return serving.ask("DELETE", "/ops/op-1")


def all_events(*fields: str, query: str = "") -> Callable[[Serving], Answer]:
    def ask(serving: Serving) -> Answer:
        client = serving.client().post_only("GET", f"/events{query}", None, *fields)
        with serving.service._cond:
            assert serving.service._cond.wait_for(lambda: serving.service.subscriptions, 10)
        if query:
            client.buffer = client.until(b"event: figures") + client.buffer
        for name, data in EVENTS.items():
            serving.service.publish(name, data)
        serving.service.hub.close()
        answer = client.answer()
        assert {*EVENTS, "snapshot"} <= {*re.findall(r"^event: (\w+)$", answer.body.decode(), re.MULTILINE)}
        return answer

    return ask


ANSWERS: dict[Key, list[Callable[[Serving], Answer]]] = {
    ("GET", "/", 200): [plain("GET", "/"), lambda s: s.ask("GET", "/", None, "Accept: text/html")],
    ("GET", "/page/{file}", 200): [plain("GET", f"/page/{name}") for name in ("page.css", "page.js", "icon.svg")],
    ("GET", "/models", 200): [plain("GET", "/models")],
    ("POST", "/switch", 200): [
        plain("POST", "/switch", {"model_id": "other", "dry_run": True}),
        waited("/switch"),
    ],
    ("POST", "/switch", 202): [plain("POST", "/switch", {"model_id": "other"}), waited("/switch", state=OpState.RUNNING)],
    ("POST", "/switch", 409): [waited("/switch", **CANCELLED)],
    ("POST", "/switch", 500): [waited("/switch", **failed("model_load_failed")), waited("/switch", **failed("probe_failed"))],
    ("POST", "/switch", 503): [waited("/switch", **failed("model_quarantined"))],
    ("POST", "/switch", 507): [waited("/switch", **failed("insufficient_memory"))],
    ("POST", "/unload", 200): [waited("/unload", kind=OpKind.UNLOAD, target_model_id=None)],
    ("POST", "/unload", 202): [plain("POST", "/unload", b""), waited("/unload", state=OpState.RUNNING)],
    ("POST", "/unload", 409): [waited("/unload", **CANCELLED)],
    ("POST", "/unload", 500): [waited("/unload", **failed("internal_error"))],
    ("GET", "/ops", 200): [plain("GET", "/ops"), plain("GET", "/ops?limit=1")],
    ("GET", "/ops/{op_id}", 200): [plain("GET", "/ops/op-1")],
    ("DELETE", "/ops/{op_id}", 200): [ended_by_this],
    ("DELETE", "/ops/{op_id}", 202): [plain("DELETE", "/ops/op-1")],
    ("POST", "/reload", 200): [plain("POST", "/reload", b""), plain("POST", "/reload", {})],
    ("DELETE", "/quarantine/{model_id}", 200): [plain("DELETE", "/quarantine/other")],
    ("GET", "/status", 200): [
        plain("GET", "/status"),
        with_status("/status", op=OP, last_op=replace(ENDED, **failed("load_stalled")), error=OpError("no_model", "none")),
    ],
    ("GET", "/events", 200): [all_events(), all_events("Last-Event-ID: of-another-life"), all_events(query="?figures")],
    ("GET", "/openapi.json", 200): [plain("GET", "/openapi.json")],
    ("GET", "/metrics", 200): [
        plain("GET", "/metrics"),
        lambda s: s.ask("GET", "/metrics", None, "Accept: application/openmetrics-text"),
    ],
    ("GET", "/livez", 200): [plain("GET", "/livez"), plain("GET", "/livez?verbose")],
    ("GET", "/readyz", 200): [plain("GET", "/readyz"), plain("GET", "/readyz?verbose&exclude=model&exclude=nothing")],
    ("GET", "/readyz", 503): [
        with_status("/readyz", state=State.LOADING, current_model=None),
        with_status("/readyz", diverting=True),
        with_status("/readyz", stopping=True),
        with_status("/readyz?verbose", state=State.ERROR, current_model=None),
    ],
    ("GET", "/healthz", 200): [plain("GET", "/healthz"), plain("GET", "/healthz?verbose")],
    ("GET", "/healthz", 503): [with_status(f"/healthz{query}", state=State.ERROR) for query in ("", "?verbose")],
    ("GET", "/health", 200): [plain("GET", "/health")],
    ("GET", "/health", 503): [with_status("/health", state=state, current_model=None) for state in (State.LOADING, State.ERROR)],
    ("GET", "/props", 200): [plain("GET", "/props")],
    ("GET", "/v1/models", 200): [plain("GET", "/v1/models"), with_status("/v1/models", auto_switch=True)],
    ("GET", "/v1/models/{model_id}", 200): [
        plain("GET", f"/v1/models/{LOADED.id}"),
        with_status("/v1/models/other", auto_switch=True),
    ],
    ("POST", "/v1/completions", 200): [
        generated("/v1/completions", WHOLE),
        generated("/v1/completions", WHOLE, stream=True),
        generated("/v1/completions", WHOLE, stream=True, stream_options={"include_usage": True}),
        generated("/v1/completions", ("Hel", Failed(EngineFailed("no"))), stream=True),
        generated("/v1/completions", (Chunk("ab", logprobs=LOGPROBS), WHOLE[-1]), logprobs=2),
        generated("/v1/completions", (Chunk("ab", logprobs=LOGPROBS), WHOLE[-1]), logprobs=2, stream=True),
    ],
    ("POST", "/v1/chat/completions", 200): [
        generated("/v1/chat/completions", WHOLE),
        generated("/v1/chat/completions", WHOLE, stream=True),
        generated("/v1/chat/completions", WHOLE, stream=True, stream_options={"include_usage": True}),
        generated("/v1/chat/completions", ("Hel", Failed(EngineFailed("no"))), stream=True),
        generated("/v1/chat/completions", (Chunk("ab", logprobs=LOGPROBS), WHOLE[-1]), logprobs=True),
        generated("/v1/chat/completions", (Chunk("ab", logprobs=LOGPROBS), WHOLE[-1]), logprobs=True, stream=True),
        generated("/v1/chat/completions", (CALL, WHOLE[-1]), tools=TOOLS),
        generated("/v1/chat/completions", (*CALL, WHOLE[-1]), tools=TOOLS, stream=True),
    ],
    ("POST", "/v1/embeddings", 200): [
        plain("POST", "/v1/embeddings", {"input": ["a", [1]], "encoding_format": encoding}) for encoding in ("float", "base64")
    ],
    ("POST", "/tokenize", 200): [plain("POST", "/tokenize", {"content": "é", "with_pieces": pieces}) for pieces in (False, True)],
    ("POST", "/detokenize", 200): [plain("POST", "/detokenize", {"tokens": [97]})],
    ("POST", "/apply-template", 200): [plain("POST", "/apply-template", body_of("POST", "/apply-template"))],
}


def test_every_documented_answer_that_is_no_error_is_in_the_table():
    error = {"$ref": "#/components/schemas/Error"}
    documented = {
        (method, path, int(status))
        for (method, path), operation in OPERATIONS.items()
        for status, answer in operation["responses"].items()
        if any(media["schema"] != error for media in DESCRIBED.resolved(answer)["content"].values())
    }
    assert documented == {*ANSWERS}


@pytest.mark.parametrize(
    ("key", "ask"),
    [pytest.param(key, ask, id=f"{key[0]} {key[1]} {key[2]} {i}") for key, asks in ANSWERS.items() for i, ask in enumerate(asks)],
)
def test_every_other_answer_is_as_documented(serving: Serving, key: Key, ask: Callable[[Serving], Answer]):
    method, path, status = key
    answer = ask(serving)
    assert answer.status == status, answer.body
    DESCRIBED.check(method, path, status, answer.fields, answer.body)


@pytest.mark.parametrize(
    "key", [key for key in ANSWERS if len(DESCRIBED.answer(*key)["content"]) > 1], ids=lambda key: f"{key[0]} {key[1]} {key[2]}"
)
def test_an_answer_that_has_several_forms_is_given_in_each(key: Key, monkeypatch: pytest.MonkeyPatch):
    forms = set()
    for ask in ANSWERS[key]:
        serving = Serving(monkeypatch)
        try:
            forms.add(ask(serving).fields["content-type"].partition(";")[0])
        finally:
            serving.close()
    assert forms == {*DESCRIBED.answer(*key)["content"]}
