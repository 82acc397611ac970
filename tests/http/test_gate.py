"""What is let in, over a real socket: a table of Host, Origin, Sec-Fetch-*, key and route, each with its status and code."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
from fake_service import FakeService
from raw_client import Answer, RawClient

from modeld.httpapi.auth import Gate, Rules
from modeld.httpapi.browser import BrowserRules
from modeld.httpapi.caller import Access, KeyRules
from modeld.httpapi.connection import Connection
from modeld.httpapi.conversation import serve
from modeld.httpapi.exchange import Site
from modeld.httpapi.followers import Followers
from modeld.httpapi.limits import Limits
from modeld.httpapi.load import LoadFeed
from modeld.httpapi.metrics import Meter
from modeld.httpapi.quotas import Quotas
from modeld.httpapi.router import ROUTES, Route
from modeld.httpapi.watch import ClientWatch
from modeld.metrics import Registry
from modeld.types import ApiKey, OpError, State

KEY_OF = {"web": "use-canary-0123456789", "ops": "admin-canary-987654321", "wrong": "wrong-canary-987654321"}
KEYS = tuple(ApiKey(name, name == "ops", hashlib.sha256(KEY_OF[name].encode()).digest()) for name in ("web", "ops"))
BROWSER = BrowserRules(("llm.example", ".lan"), ("https://app.example", "http://localhost:3000"))
OPEN, CLOSED = Rules(BROWSER), Rules(BROWSER, KeyRules(KEYS))

BODIES = {"/switch": b'{"model_id": "other"}', "/v1/completions": b'{"prompt": "x"}'}
LOCAL = "127.0.0.1:8080"
CROSS, SAME_SITE = "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site"
LINK = f"{CROSS}|Sec-Fetch-Mode: navigate|Sec-Fetch-Dest: document"
PREFLIGHT = "Access-Control-Request-Method: POST"


@pytest.fixture
def gate() -> Gate:
    return Gate(OPEN)


@dataclass(frozen=True)
class Case:
    asks: str  # method and target
    host: str | None  # None: HTTP/1.0 without it
    origin: str | None
    more: str  # fields, split at |
    status: int
    code: str | None = None

    def send(self, client: RawClient, key: str | None = None) -> Answer:
        method, target = self.asks.split(" ")
        fields = [] if self.host is None else [f"Host: {self.host}"]
        if self.origin is not None:
            fields.append(f"Origin: {self.origin}")
        if key is not None:
            fields.append(f"Authorization: Bearer {KEY_OF[key]}")
        fields += filter(None, self.more.split("|"))
        body = b""
        if method == "POST":
            body = BODIES.get(target, b"{}")
            fields += [
                *([] if "Content-Type" in self.more else ["Content-Type: application/json"]),
                f"Content-Length: {len(body)}",
            ]
        version = "1.0" if self.host is None else "1.1"
        client.send("\r\n".join([f"{method} {target} HTTP/{version}", *fields, "", ""]).encode() + body)
        return client.answer(method)


# Who may send what, where no keys are configured: what is left is what browsers do.
BROWSERS = [
    # Host: ours, a name that was made to point here, none
    Case("GET /status", LOCAL, None, "", 200),
    Case("GET /status", "[::1]:8080", None, "", 200),
    Case("GET /status", "192.168.1.7", None, "", 200),
    Case("GET /status", "localhost:8080", None, "", 200),
    Case("GET /status", "modeld.localhost", None, "", 200),
    Case("GET /status", "llm.example", None, "", 200),
    Case("GET /status", "a.b.lan:80", None, "", 200),
    Case("GET /status", "evil.example:8080", None, "", 403, "host_not_allowed"),
    Case("GET /status", "sub.llm.example", None, "", 403, "host_not_allowed"),
    Case("GET /status", "localhost.evil.example", None, "", 403, "host_not_allowed"),
    Case("GET http://evil.example/status", LOCAL, None, "", 403, "host_not_allowed"),
    Case("GET http://localhost/status", "evil.example", None, "", 200),  # an absolute target overrules (RFC 9112 3.2.2)
    Case("GET /livez", "evil.example", None, "", 403, "host_not_allowed"),
    Case("GET /readyz", "10.0.0.9:8080", None, "", 200),  # as the kubelet asks
    Case("GET /livez", None, None, "", 200),  # as haproxy does by default
    Case("GET /livez", None, "http://evil.example", "", 403, "host_not_allowed"),
    Case("POST /switch", "evil.example", "http://evil.example", "", 403, "host_not_allowed"),  # DNS rebinding, whole
    Case("GET /events", "evil.example", None, "Sec-Fetch-Site: same-origin", 403, "host_not_allowed"),
    Case("OPTIONS /switch", "evil.example", "http://evil.example", PREFLIGHT, 403, "host_not_allowed"),
    Case("GET /nothing", "evil.example", None, "", 403, "host_not_allowed"),
    # Origin: our own page
    Case("GET /status", LOCAL, f"http://{LOCAL}", "Sec-Fetch-Site: same-origin", 200),
    Case("POST /switch", LOCAL, f"http://{LOCAL}", "Sec-Fetch-Site: same-origin", 202),
    Case("POST /switch", "llm.example", "https://llm.example", "", 202),
    Case("DELETE /ops/op-1", "localhost", "http://localhost:80", "", 202),
    # another site's, listed
    Case("GET /status", LOCAL, "https://app.example", CROSS, 200),
    Case("POST /switch", LOCAL, "https://app.example", CROSS, 202),
    Case("POST /v1/completions", LOCAL, "http://localhost:3000", SAME_SITE, 200),
    Case("DELETE /ops/op-1", "localhost:8080", "http://localhost:3000", SAME_SITE, 202),
    Case("GET /nothing", LOCAL, "https://app.example", CROSS, 404, "not_found"),
    # another site's, not listed
    Case("GET /status", LOCAL, "https://evil.example", CROSS, 403, "origin_not_allowed"),
    Case("HEAD /status", LOCAL, "https://evil.example", CROSS, 403),
    Case("GET /livez", LOCAL, "https://evil.example", "", 403, "origin_not_allowed"),
    Case("GET /events", LOCAL, "https://evil.example", "", 403, "origin_not_allowed"),
    Case("POST /switch", LOCAL, "https://evil.example", "", 403, "origin_not_allowed"),
    Case("POST /switch", LOCAL, "null", "", 403, "origin_not_allowed"),
    Case("GET /status", LOCAL, "null", "", 403, "origin_not_allowed"),
    Case("POST /switch", LOCAL, "http://127.0.0.1:3000", "", 403, "origin_not_allowed"),
    Case("POST /switch", "localhost:8080", "http://127.0.0.1:8080", "", 403, "origin_not_allowed"),
    Case("POST /switch", LOCAL, "http://app.example", "", 403, "origin_not_allowed"),
    Case("POST /switch", LOCAL, "https://app.example:444", "", 403, "origin_not_allowed"),
    Case("DELETE /ops/op-1", LOCAL, "https://evil.example", "", 403, "origin_not_allowed"),
    Case("GET /nothing", LOCAL, "https://evil.example", "", 403, "origin_not_allowed"),
    # Sec-Fetch-Site: what has no Origin
    Case("GET /status", LOCAL, None, "Sec-Fetch-Site: none", 200),
    Case("GET /status", LOCAL, None, "Sec-Fetch-Site: same-origin", 200),
    Case("GET /status", LOCAL, None, SAME_SITE, 200),
    Case("POST /switch", LOCAL, None, SAME_SITE, 403, "origin_not_allowed"),
    Case("DELETE /ops/op-1", LOCAL, None, SAME_SITE, 403, "origin_not_allowed"),
    Case("GET /status", LOCAL, None, CROSS, 403, "origin_not_allowed"),
    Case("GET /events", LOCAL, None, f"{CROSS}|Sec-Fetch-Mode: no-cors|Sec-Fetch-Dest: image", 403, "origin_not_allowed"),
    Case("GET /status", LOCAL, None, f"{CROSS}|Sec-Fetch-Mode: no-cors|Sec-Fetch-Dest: script", 403, "origin_not_allowed"),
    Case("GET /status", LOCAL, None, f"{CROSS}|Sec-Fetch-Mode: navigate|Sec-Fetch-Dest: iframe", 403, "origin_not_allowed"),
    Case("GET /status", LOCAL, None, LINK, 200),
    Case("POST /switch", LOCAL, None, LINK, 403, "origin_not_allowed"),
    # a form of a browser that sends neither
    Case("POST /switch", LOCAL, None, "Content-Type: text/plain", 415, "unsupported_media_type"),
    Case("POST /switch", LOCAL, None, "Content-Type: multipart/form-data; boundary=x", 415, "unsupported_media_type"),
    # preflights
    Case("OPTIONS /switch", LOCAL, "https://app.example", f"{CROSS}|{PREFLIGHT}", 204),
    Case("OPTIONS /nothing", LOCAL, "https://app.example", PREFLIGHT, 204),
    Case("OPTIONS /switch", LOCAL, "https://evil.example", PREFLIGHT, 403, "origin_not_allowed"),
    Case("OPTIONS /switch", LOCAL, "null", PREFLIGHT, 403, "origin_not_allowed"),
    Case("OPTIONS /switch", LOCAL, None, "", 204),
    Case("OPTIONS *", LOCAL, None, "", 204),
    Case("OPTIONS /nothing", LOCAL, None, "", 404, "not_found"),
]

# The same with keys: (key, case).
WITH_KEYS = [
    ("ops", Case("POST /switch", LOCAL, None, "", 202)),
    ("web", Case("POST /switch", LOCAL, None, "", 403, "permission_denied")),
    ("wrong", Case("POST /switch", LOCAL, None, "", 401, "invalid_api_key")),
    (None, Case("POST /switch", LOCAL, None, "", 401, "invalid_api_key")),
    ("ops", Case("POST /v1/completions", LOCAL, None, "", 200)),
    ("web", Case("POST /v1/completions", LOCAL, None, "", 200)),
    (None, Case("POST /v1/completions", LOCAL, None, "", 401, "invalid_api_key")),
    (None, Case("GET /status", LOCAL, None, f"X-Api-Key: {KEY_OF['web']}", 200)),
    ("web", Case("GET /status", LOCAL, None, f"X-Api-Key: {KEY_OF['web']}", 200)),
    ("web", Case("GET /status", LOCAL, None, f"X-Api-Key: {KEY_OF['ops']}", 400, "invalid_request")),
    ("web", Case("GET /status", LOCAL, None, f"Authorization: Bearer {KEY_OF['ops']}", 400, "invalid_request")),
    (None, Case("GET /status", LOCAL, None, f"Authorization: Basic {KEY_OF['ops']}", 401, "invalid_api_key")),
    (None, Case(f"GET /status?api_key={KEY_OF['ops']}", LOCAL, None, "", 401, "invalid_api_key")),
    (None, Case("GET /status", LOCAL, None, f"Cookie: api_key={KEY_OF['ops']}", 401, "invalid_api_key")),
    # nothing is told about paths, bodies and models to who has no key
    (None, Case("GET /nothing", LOCAL, None, "", 401, "invalid_api_key")),
    ("web", Case("GET /nothing", LOCAL, None, "", 404, "not_found")),
    (None, Case("PUT /switch", LOCAL, None, "", 401, "invalid_api_key")),
    ("web", Case("PUT /switch", LOCAL, None, "", 405, "method_not_allowed")),
    (None, Case("POST /livez", LOCAL, None, "", 401, "invalid_api_key")),
    (None, Case("GET /v1/models/other", LOCAL, None, "", 401, "invalid_api_key")),
    (None, Case("POST /switch", LOCAL, None, "Content-Type: text/plain", 401, "invalid_api_key")),
    ("web", Case("POST /switch", LOCAL, None, "Content-Type: text/plain", 403, "permission_denied")),
    ("ops", Case("POST /switch", LOCAL, None, "Content-Type: text/plain", 415, "unsupported_media_type")),
    (None, Case("OPTIONS /switch", LOCAL, None, "", 401, "invalid_api_key")),
    ("web", Case("OPTIONS /switch", LOCAL, None, "", 204)),
    (None, Case("OPTIONS /switch", LOCAL, None, PREFLIGHT, 401, "invalid_api_key")),  # nobody of another site asks
    # a key opens no way for other sites' pages
    ("ops", Case("POST /switch", "evil.example", None, "", 403, "host_not_allowed")),
    ("ops", Case("POST /switch", LOCAL, "https://evil.example", "", 403, "origin_not_allowed")),
    ("ops", Case("GET /status", LOCAL, None, CROSS, 403, "origin_not_allowed")),
    ("ops", Case("POST /switch", LOCAL, "https://app.example", CROSS, 202)),
    ("web", Case("POST /switch", LOCAL, "https://app.example", CROSS, 403, "permission_denied")),
    (None, Case("POST /switch", LOCAL, "https://app.example", CROSS, 401, "invalid_api_key")),
    (None, Case("OPTIONS /switch", LOCAL, "https://app.example", PREFLIGHT, 204)),  # browsers send no key with these
    # probes
    (None, Case("GET /livez", LOCAL, None, "", 200)),
    (None, Case("GET /readyz", "10.0.0.9", None, "", 200)),
    (None, Case("GET /healthz", None, None, "", 200)),
    (None, Case("GET /health", LOCAL, None, "", 200)),
    ("wrong", Case("GET /livez", LOCAL, None, "", 200)),
    ("web", Case("GET /livez", LOCAL, None, f"X-Api-Key: {KEY_OF['ops']}", 200)),
    (None, Case("GET /livez", "evil.example", None, "", 403, "host_not_allowed")),
]
MATRIX = [(OPEN, None, case) for case in BROWSERS] + [(CLOSED, key, case) for key, case in WITH_KEYS]


def test_the_matrix_is_as_large_as_was_promised() -> None:
    assert len(set(MATRIX)) == len(MATRIX) >= 60


@pytest.mark.parametrize(
    ("rules", "key", "case"),
    [pytest.param(*row, id=f"{number}-{row[2].asks.split('?')[0]}-{row[2].status}") for number, row in enumerate(MATRIX)],
)
def test_who_is_let_in(client: RawClient, service: FakeService, gate: Gate, rules: Rules, key: str | None, case: Case) -> None:
    gate.rules = rules
    answer = case.send(client, key)
    assert answer.status == case.status
    if case.code is not None:
        error = answer.json["error"]
        assert (error["code"], error["type"], set(error)) == (
            case.code,
            "invalid_request_error",
            {"message", "type", "param", "code"},
        )
        assert "canary" not in error["message"]
    if case.status >= 400:
        assert (service.calls, service.generations, service.subscriptions) == ([], [], [])
    assert (answer.status == 401) == ("www-authenticate" in answer.fields)
    allowed = case.origin in BROWSER.cors_origins and case.code != "host_not_allowed"
    assert answer.fields.get("access-control-allow-origin") == (case.origin if allowed else None)
    assert answer.fields["x-content-type-options"] == "nosniff"
    assert answer.fields["cross-origin-resource-policy"] == ("cross-origin" if allowed else "same-origin")


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_each_route_asks_for_its_scope(client: RawClient, gate: Gate, route: Route) -> None:
    gate.rules = CLOSED
    target = route.path.replace("{op_id}", "op-1").replace("{file}", "page.css").replace("{model_id}", "other")
    refused = {
        Access.OPEN: {},
        Access.USE: {None: 401, "wrong": 401},
        Access.ADMIN: {None: 401, "wrong": 401, "web": 403},
    }[route.access]
    for key in (None, "wrong", "web", "ops"):
        with contextlib.closing(RawClient(client.sock.getpeername())) as each:
            # The answer to HEAD has the status of GET and ends, whatever /events would send.
            method = "HEAD" if route.method == "GET" else route.method
            status = Case(f"{method} {target}", LOCAL, None, "", 0).send(each, key).status
            assert status == refused.get(key) if key in refused else status not in (401, 403)


def test_every_route_that_changes_something_asks_for_admin_or_generates() -> None:
    generate = {"/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize", "/detokenize", "/apply-template"}
    assert {route.path for route in ROUTES if route.method != "GET" and route.access is not Access.ADMIN} == generate
    probes = {"/livez", "/readyz", "/healthz", "/health"}
    page = {"/", "/page/{file}"}  # the same for everybody, and says nothing of this daemon
    assert {route.path for route in ROUTES if route.access is Access.OPEN} == probes | page


def test_who_has_no_key_is_not_told_why_a_model_failed(client: RawClient, service: FakeService, gate: Gate) -> None:
    service.set_status(
        state=State.ERROR, current_model=None, error=OpError("model_load_failed", "/srv/x.gguf: cut off", "x", "1")
    )
    health = Case("GET /health", LOCAL, None, "", 503)
    for rules, key, said in ((OPEN, None, "/srv/x"), (CLOSED, "web", "/srv/x"), (CLOSED, None, "No model is loaded")):
        gate.rules = rules
        assert said in health.send(client, key).json["error"]["message"]


# -- what answers carry


def test_a_preflight_says_what_a_page_may_send(client: RawClient) -> None:
    answer = Case("OPTIONS /v1/chat/completions", LOCAL, "https://app.example", PREFLIGHT, 204).send(client)
    assert {"GET", "POST", "DELETE"} <= set(answer.fields["access-control-allow-methods"].split(", "))
    named = set(answer.fields["access-control-allow-headers"].lower().split(", "))
    assert {"authorization", "content-type", "last-event-id", "x-request-id", "if-match", "x-api-key"} <= named
    assert int(answer.fields["access-control-max-age"]) > 0
    assert answer.fields["vary"] == "Origin"
    assert not {"access-control-allow-credentials", "content-length", "content-type"} & set(answer.fields)
    assert client.request("GET", "/livez").status == 200  # the connection is kept


def test_options_names_the_methods_of_a_path(client: RawClient) -> None:
    assert client.request("OPTIONS", "/ops/op-1").fields["allow"] == "DELETE, GET, HEAD, OPTIONS"
    assert client.request("OPTIONS", "*").fields["allow"] == "DELETE, GET, HEAD, OPTIONS, POST"


def test_streams_and_refused_heads_carry_the_fields_too(client: RawClient) -> None:
    stream = client.request("POST", "/v1/completions", {"prompt": "x", "stream": True}, "Origin: https://app.example")
    assert stream.fields["access-control-allow-origin"] == "https://app.example"
    assert stream.fields["access-control-expose-headers"] == "*"
    assert stream.fields["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    refused = client.send("GET /status HTTP/1.1\r\nHost: a\r\nHost: b\r\nOrigin: https://app.example\r\n\r\n").answer()
    assert (refused.status, refused.fields["x-frame-options"]) == (400, "DENY")
    assert "access-control-allow-origin" not in refused.fields


def test_no_body_is_asked_for_that_would_be_refused(client: RawClient, gate: Gate) -> None:
    gate.rules = CLOSED
    fields = "Content-Type: application/json\r\nContent-Length: 20\r\nExpect: 100-continue\r\n\r\n"
    answer = client.send(f"POST /switch HTTP/1.1\r\nHost: localhost\r\n{fields}").answer()
    assert (answer.status, answer.fields["connection"]) == (401, "close")
    assert client.is_closed()


# -- rules that change


def test_new_rules_hold_for_the_next_request_of_a_kept_connection(client: RawClient, gate: Gate) -> None:
    status = Case("GET /status", LOCAL, None, "", 200)
    gate.rules = CLOSED
    assert status.send(client, "web").status == 200
    gate.rules = Rules(BROWSER, KeyRules(KEYS[1:]))
    assert status.send(client, "web").code == "invalid_api_key"
    assert status.send(client, "ops").status == 200


def test_events_end_with_the_key_that_asked_for_them_and_go_on_with_any_other(
    client, connect, service: FakeService, gate: Gate
) -> None:
    gate.rules = CLOSED
    other = connect()
    for each, key in ((client, "web"), (other, "ops")):
        each.send(f"GET /events HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {KEY_OF[key]}\r\n\r\n")
        each.until(b"event: snapshot")
    gate.rules = Rules(BROWSER, KeyRules(KEYS[1:]))
    service.publish("model_ready", {"op_id": "told-after-it"})
    assert b"told-after-it" in other.until(b"told-after-it")
    rest = client.until(b"\r\n0\r\n\r\n")
    assert b": invalid_api_key\n\n" in rest
    assert b"told-after-it" not in rest
    assert Case("GET /status", LOCAL, None, "", 401).send(connect(), "web").status == 401
    assert len(service.hub._subscribers) == 1


def test_a_generation_whose_key_is_revoked_comes_to_its_end(client: RawClient, service: FakeService, gate: Gate) -> None:
    gate.rules = CLOSED
    service.script = ["begun"]
    client.post_only("POST", "/v1/completions", {"prompt": "x", "stream": True}, f"X-Api-Key: {KEY_OF['web']}")
    client.until(b"begun")
    gate.rules = Rules(BROWSER, KeyRules(KEYS[1:]))
    service.generation().finish()
    assert b"[DONE]" in client.until(b"\r\n0\r\n\r\n")


# -- Unix sockets


class _Always:
    def enter(self) -> bool:
        return True

    leave = enter


@pytest.fixture
def over_unix(service: FakeService, gate: Gate, quotas: Quotas) -> Iterator[RawClient]:
    """A client at the other end of a Unix socket: its uid is ours."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    watch = ClientWatch()
    watch.start()
    site = Site(
        service,
        watch,
        Followers(Limits(), lambda _: None, LoadFeed(service.figures)),
        lambda: False,
        gate,
        quotas,
        lambda _: nullcontext(),
        Meter(Registry(), service),
    )
    thread = threading.Thread(target=serve, args=(Connection(ours, Limits(linger_s=0.1)), site, _Always()))
    thread.start()
    theirs.settimeout(10)
    client = RawClient(theirs)
    yield client
    client.close()
    thread.join(10)
    assert not thread.is_alive()
    watch.close()


def test_the_uid_at_the_other_end_of_a_unix_socket_stands_for_a_key(over_unix: RawClient, gate: Gate) -> None:
    us = frozenset({os.geteuid()})
    switch, status = Case("POST /switch", "any.name", None, "", 202), Case("GET /status", "any.name", None, "", 200)
    gate.rules = Rules(BROWSER, KeyRules(KEYS, admin_uids=us))
    assert switch.send(over_unix).status == 202
    gate.rules = Rules(BROWSER, KeyRules(KEYS, use_uids=us))
    denied = switch.send(over_unix)
    assert (denied.status, denied.code) == (403, "permission_denied")
    assert f"uid:{os.geteuid()}" in denied.json["error"]["message"]
    assert status.send(over_unix).status == 200
    gate.rules = CLOSED
    assert status.send(over_unix).code == "invalid_api_key"
    assert status.send(over_unix, "web").status == 200
    gate.rules = Rules(BROWSER, KeyRules(uids_are_listed=True))
    assert status.send(over_unix).code == "permission_denied"


def test_origin_counts_on_a_unix_socket_too_since_a_proxy_may_be_behind_it(over_unix: RawClient) -> None:
    assert Case("GET /status", "any.name", "https://evil.example", "", 403).send(over_unix).code == "origin_not_allowed"
    assert Case("GET /status", "any.name", "https://any.name", "", 403).send(over_unix).code == "host_not_allowed"
    assert Case("GET /status", "llm.example", "https://llm.example", "", 200).send(over_unix).status == 200
