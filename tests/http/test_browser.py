"""Which requests of browsers are let in, and what answers tell browsers. Pure."""

from __future__ import annotations

import pytest

from modeld.errors import HostNotAllowed, OriginNotAllowed
from modeld.httpapi.browser import BrowserRules, constant_fields, is_preflight
from modeld.httpapi.head import parse_head

RULES = BrowserRules(("llm.example", ".lan"), ("https://app.example", "http://localhost:3000", "tauri://localhost"))
CROSS = ("Sec-Fetch-Site: cross-site",)


def admit(host: str | None, *fields: str, method: str = "GET", version: str = "1.1", on_unix: bool = False) -> str | None:
    lines = [f"{method} / HTTP/{version}", *([] if host is None else [f"Host: {host}"]), *fields]
    return RULES.admit(parse_head("\r\n".join([*lines, "", ""]).encode("latin-1")), on_unix=on_unix)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.0.0.1:8080", "127.0.0.1.", "10.1.2.3", "[::1]:8080", "[fe80::1]", "localhost", "LocalHost:1",
        "localhost.", "a.b.localhost", "llm.example", "LLM.example.:443", "a.lan", "a.b.lan:80",
    ],
)  # fmt: skip
def test_these_are_names_of_ours(host: str) -> None:
    assert admit(host) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8080", "x.llm.example", "llm.example.evil.example", "lan", "alan", "127.0.0.1.evil.example",
        "localhost.evil.example", "2130706433", "0x7f.1", "999.0.0.1", "_", "..", ".", ".localhost.x",
    ],
)  # fmt: skip
def test_a_name_that_somebody_lets_point_here_is_refused_and_the_key_named(host: str) -> None:
    with pytest.raises(HostNotAllowed, match=r"server\.allowed_hosts"):
        admit(host)
    assert admit(host, on_unix=True) is None
    with pytest.raises((HostNotAllowed, OriginNotAllowed)):  # its page, through a proxy that passes on any name
        admit(host, f"Origin: http://{host}", on_unix=True)


def test_no_origin_is_that_of_a_request_without_host() -> None:
    for origin in ("http://:80", "http://", "null"):
        with pytest.raises(OriginNotAllowed):
            admit(None, f"Origin: {origin}", version="1.0", on_unix=True)


def test_an_asterisk_allows_any_name() -> None:
    head = parse_head(b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n")
    assert BrowserRules(("*",)).admit(head, on_unix=False) is None


def test_no_host_is_allowed_where_no_browser_sent_it() -> None:
    assert admit(None, version="1.0") is None
    with pytest.raises(HostNotAllowed):
        admit(None, "Origin: http://localhost:3000", version="1.0")


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1:8080"),
        ("http://localhost", "localhost"),
        ("http://localhost", "localhost:80"),
        ("https://llm.example", "llm.example"),  # TLS ended at a proxy
        ("https://llm.example", "llm.example:443"),
        ("https://127.0.0.1:8080", "127.0.0.1:8080"),
        ("HTTPS://LLM.example:443", "llm.EXAMPLE"),
        ("http://[::1]:8080", "[::1]:8080"),
    ],
)
def test_our_own_pages_may(origin: str, host: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        assert admit(host, f"Origin: {origin}", method=method) is None


@pytest.mark.parametrize("origin", ["https://app.example", "http://localhost:3000", "tauri://localhost"])
def test_pages_of_listed_sites_may_and_are_told_so(origin: str) -> None:
    assert admit("127.0.0.1:8080", f"Origin: {origin}", *CROSS, method="POST") == origin


@pytest.mark.parametrize(
    "origin",
    [
        "null", "", "http://app.example", "https://app.example:8443", "https://app.example.evil.example", "https://x.app.example",
        "https://app.example/", "http://localhost:8080", "http://localhost:30000", "http://127.0.0.1", "https://127.0.0.1",
        "file://", "chrome-extension://abc", "*", "http://127.0.0.1:80", "\xe4",
    ],
)  # fmt: skip
def test_pages_of_all_others_may_not(origin: str) -> None:
    for method in ("GET", "HEAD", "POST", "OPTIONS"):
        with pytest.raises(OriginNotAllowed):
            admit("127.0.0.1:8080", f"Origin: {origin}", "Sec-Fetch-Site: same-origin", method=method)
    with pytest.raises(OriginNotAllowed):
        admit("127.0.0.1:8080", f"Origin: {origin}", on_unix=True)


@pytest.mark.parametrize(
    ("fields", "method", "allowed"),
    [
        (("Sec-Fetch-Site: none",), "GET", True),  # typed by somebody
        (("Sec-Fetch-Site: same-origin",), "POST", True),
        (("Sec-Fetch-Site: same-site",), "GET", True),
        (("Sec-Fetch-Site: same-site",), "POST", False),
        (("Sec-Fetch-Site: same-site",), "DELETE", False),
        (CROSS, "GET", False),
        (CROSS, "HEAD", False),
        (CROSS, "POST", False),
        (("Sec-Fetch-Site: whatever-comes",), "GET", False),
        (("Sec-Fetch-Site: ",), "GET", False),
        ((*CROSS, "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"), "GET", True),  # a link that was followed
        ((*CROSS, "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"), "POST", False),  # a form
        ((*CROSS, "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: iframe"), "GET", False),
        ((*CROSS, "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image"), "GET", False),
        ((*CROSS, "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: document"), "GET", False),
    ],
)
def test_what_a_page_of_another_site_embeds_is_refused(fields: tuple[str, ...], method: str, allowed: bool) -> None:
    if allowed:
        assert admit("localhost", *fields, method=method) is None
    else:
        with pytest.raises(OriginNotAllowed):
            admit("localhost", *fields, method=method)


def test_a_preflight_is_told_from_other_options() -> None:
    asks = b"OPTIONS / HTTP/1.1\r\nHost: h\r\nAccess-Control-Request-Method: POST\r\n\r\n"
    assert is_preflight(parse_head(asks))
    assert not is_preflight(parse_head(asks.replace(b"OPTIONS", b"GET")))
    assert not is_preflight(parse_head(b"OPTIONS / HTTP/1.1\r\nHost: h\r\n\r\n"))


def parsed(lines: bytes) -> dict[str, str]:
    pairs = [line.split(": ", 1) for line in lines.decode().split("\r\n")[:-1]]
    assert len({name.lower() for name, _ in pairs}) == len(pairs)
    return {name.lower(): value for name, value in pairs}


def test_the_constant_fields_are_encoded_once() -> None:
    assert constant_fields(None, {}) is constant_fields(None, {"ETag": '"1"'})
    assert parsed(constant_fields(None, {})) == {
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
        "referrer-policy": "no-referrer",
        "cross-origin-resource-policy": "same-origin",
    }


def test_a_page_of_ours_overrules_them() -> None:
    own = {"content-security-policy": "default-src 'self'", "Referrer-Policy": "same-origin"}
    for origin in (None, "https://app.example"):
        names = set(parsed(constant_fields(origin, own)))
        assert {"x-content-type-options", "x-frame-options"} <= names
        assert not {"content-security-policy", "referrer-policy"} & names


def test_an_allowed_origin_is_named_and_never_with_credentials() -> None:
    fields = parsed(constant_fields("https://app.example", {}))
    assert fields["access-control-allow-origin"] == "https://app.example"
    assert fields["vary"] == "Origin"
    assert fields["cross-origin-resource-policy"] == "cross-origin"
    assert "access-control-allow-credentials" not in fields
