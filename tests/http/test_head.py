"""Which request heads are read, which are refused, and as what. Pure."""

from __future__ import annotations

import pytest

from modeld.errors import (
    ExpectationFailed,
    HeadersTooLarge,
    InvalidRequest,
    NotImplementedByServer,
    VersionNotSupported,
)
from modeld.httpapi.head import find_end, parse_head


def head(*lines: str) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def byte_by_byte(raw: bytes) -> None:
    for n in range(1, len(raw) + 1):
        find_end(raw[:n], n - 1, 1000)


def test_a_plain_request_is_read():
    parsed = parse_head(head("POST /a%20b?x=1&y HTTP/1.1", "Host: h:80", "X-A:  two words \t", "content-length: 12"))
    assert (parsed.method, parsed.path, parsed.query, parsed.host) == ("POST", "/a%20b", "x=1&y", "h:80")
    assert parsed.field("x-a") == "two words"
    assert (parsed.content_length, parsed.chunked, parsed.keep_alive) == (12, False, True)
    assert parsed.has_body


@pytest.mark.parametrize("host", ["h", "127.0.0.1:8080", "a=b", "sub!$&'()*+;=delims:1", "[::1]:8080", "[::1]", "a-b.example:"])
def test_hosts_that_are_valid(host):
    assert parse_head(head("GET / HTTP/1.1", f"Host: {host}")).host == host


@pytest.mark.parametrize(
    ("target", "host", "path", "query"),
    [
        ("http://other:99/x?y", "other:99", "/x", "y"),
        ("HTTP://other", "other", "/", ""),
        ("https://other?q", "other", "/", "q"),
    ],
)
def test_the_authority_of_an_absolute_target_is_the_host(target, host, path, query):
    parsed = parse_head(head(f"GET {target} HTTP/1.1", "Host: ignored"))
    assert (parsed.host, parsed.path, parsed.query) == (host, path, query)


@pytest.mark.parametrize(
    ("version", "connection", "keep"),
    [
        ("1.1", None, True),
        ("1.1", "Close", False),
        ("1.1", "upgrade, CLOSE", False),
        ("1.0", None, False),
        ("1.0", "Keep-Alive", True),
        ("1.0", "keep-alive, close", False),
    ],
)
def test_connection_is_a_list_of_words_in_any_case(version, connection, keep):
    fields = ["Host: h"] + ([f"Connection: {connection}"] if connection else [])
    assert parse_head(head(f"GET / HTTP/{version}", *fields)).keep_alive is keep


@pytest.mark.parametrize("target", ['/"a|b"?{x}^`y`', "/<[a]>", "/a?b\\c", "/!$&'()*+,;=:@-._~%7E?/?"])
def test_characters_that_nobody_reads_in_two_ways_need_no_escape(target):
    parsed = parse_head(head(f"GET {target} HTTP/1.1", "Host: h"))
    assert f"{parsed.path}?{parsed.query}".rstrip("?") == target.rstrip("?")


@pytest.mark.parametrize("target", ["h.example:443", "[::1]:80"])
def test_connect_names_a_host_and_is_the_last_request_of_its_connection(target):
    parsed = parse_head(head(f"CONNECT {target} HTTP/1.1", "Host: h"))
    assert (parsed.host, parsed.path, parsed.keep_alive) == (target, "", False)


def test_http_1_0_needs_no_host():
    assert parse_head(head("GET / HTTP/1.0")).host == ""


def test_options_may_ask_about_the_server():
    assert parse_head(head("OPTIONS * HTTP/1.1", "Host: h")).path == "*"


def test_expect_100_continue_is_seen():
    assert parse_head(head("POST / HTTP/1.1", "Host: h", "Content-Length: 1", "Expect: 100-Continue")).expects_continue
    assert not parse_head(head("POST / HTTP/1.0", "Content-Length: 1", "Expect: 100-continue")).expects_continue


@pytest.mark.parametrize(
    "line",
    [
        "GET /",  # HTTP/0.9
        "GET  / HTTP/1.1",
        "GET / HTTP/1.1 ",
        " GET / HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET / http/1.1",
        "GET / HTTP/1.10",
        "GET / HTTP/01.1",
        "G(T / HTTP/1.1",
        "GET HTTP/1.1",
        "",
        "GET /é HTTP/1.1",
        "GET /a#b HTTP/1.1",
        "GET /%zz HTTP/1.1",
        "GET /%4 HTTP/1.1",
        "GET /a\\b HTTP/1.1",
        "GET /a? b HTTP/1.1",
        "GET status HTTP/1.1",
        "GET * HTTP/1.1",
        "GET ftp://h/ HTTP/1.1",
        "GET http:// HTTP/1.1",
        "GET http://user@h/ HTTP/1.1",
        "GET h:80 HTTP/1.1",
        "CONNECT / HTTP/1.1",
        "CONNECT h HTTP/1.1",
        "CONNECT h: HTTP/1.1",
        "CONNECT [::1] HTTP/1.1",
        "CONNECT http://h:80 HTTP/1.1",
    ],
)
def test_request_lines_that_are_refused(line):
    with pytest.raises(InvalidRequest):
        parse_head(head(line, "Host: h"))


@pytest.mark.parametrize(
    "field",
    [
        "X : 1",
        " X: 1",
        "X",
        ": 1",
        "X(: 1",
        "\tfolded",
        "X\xe9: 1",
        "Host: h",  # a second one
        "Content-Length: +1",
        "Content-Length: -1",
        "Content-Length: 1_0",
        "Content-Length: 0x1",
        "Content-Length: 1, 1",
        "Content-Length: \xb2",
        "Content-Length: 12345678901",
        "Content-Length:",
    ],
)
def test_fields_that_are_refused(field):
    with pytest.raises(InvalidRequest):
        parse_head(head("POST / HTTP/1.1", "Host: h", field))


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        (["Content-Length: 1", "Content-Length: 1"], InvalidRequest),
        (["Content-Length: 1", "Content-Length: 2"], InvalidRequest),
        (["Content-Length: 1", "Transfer-Encoding: chunked"], InvalidRequest),
        (["Transfer-Encoding: gzip, chunked"], NotImplementedByServer),
        (["Transfer-Encoding: gzip", "Transfer-Encoding: chunked"], NotImplementedByServer),
        (["Transfer-Encoding: , chunked"], NotImplementedByServer),
        # Where the body ends cannot be known (RFC 9112 6.3).
        (["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], InvalidRequest),
        (["Transfer-Encoding: chunked, chunked"], InvalidRequest),
        (["Transfer-Encoding: chunked, identity"], InvalidRequest),
        (["Transfer-Encoding: chunked,"], InvalidRequest),
        (["Transfer-Encoding: chunked;q=1"], InvalidRequest),
        (['Transfer-Encoding: "chunked"'], InvalidRequest),
        (["Transfer-Encoding: gzip"], InvalidRequest),
        (["Transfer-Encoding: identity"], InvalidRequest),
        (["Transfer-Encoding: xchunked"], InvalidRequest),
        (["Transfer-Encoding:"], InvalidRequest),
        (["Expect: 100-continue, magic"], ExpectationFailed),
    ],
)
def test_framings_that_are_refused(fields, error):
    with pytest.raises(error):
        parse_head(head("POST / HTTP/1.1", "Host: h", *fields))


def test_chunked_is_not_for_http_1_0():
    with pytest.raises(InvalidRequest):
        parse_head(head("POST / HTTP/1.0", "Transfer-Encoding: chunked"))


def test_chunked_is_read_in_any_case():
    assert parse_head(head("POST / HTTP/1.1", "Host: h", "Transfer-Encoding: Chunked")).chunked


@pytest.mark.parametrize("hosts", [[], ["Host:"], ["Host: a b"], ["Host: a/b"], ["Host: a,b"], ["Host: u@h"], ["Host: h:123456"]])
def test_http_1_1_needs_one_valid_host(hosts):
    with pytest.raises(InvalidRequest):
        parse_head(head("GET / HTTP/1.1", *hosts))


@pytest.mark.parametrize("version", ["2.0", "1.2", "0.9", "3.0"])
def test_other_versions_are_505(version):
    with pytest.raises(VersionNotSupported):
        parse_head(head(f"PRI * HTTP/{version}", "Host: h"))


@pytest.mark.parametrize("name", ["Content-Type", "Authorization", "Origin"])
def test_a_field_that_decides_what_is_allowed_is_given_once(name):
    with pytest.raises(InvalidRequest):
        parse_head(head("POST / HTTP/1.1", "Host: h", f"{name}: a", f"{name.lower()}: b"))


@pytest.mark.parametrize("lines", [["GET /" + "a" * 8190 + " HTTP/1.1"], ["GET / HTTP/1.1", "X: " + "a" * 8190]])
def test_a_line_over_its_bound_is_431(lines):
    with pytest.raises(HeadersTooLarge):
        parse_head(head(*lines, "Host: h"))


def test_the_bound_of_a_line_can_be_set():
    parse_head(head("GET / HTTP/1.1", "Host: h", "X: " + "a" * 97), max_line_bytes=100)
    with pytest.raises(HeadersTooLarge, match="longer than 100 bytes"):
        parse_head(head("GET / HTTP/1.1", "Host: h", "X: " + "a" * 98), max_line_bytes=100)


def test_too_many_fields_are_431():
    with pytest.raises(HeadersTooLarge):
        parse_head(head("GET / HTTP/1.1", "Host: h", *["X: 1"] * 100), max_fields=100)


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\nHost: h\n\n",
        b"GET / HTTP/1.1\r\nHost: h\n",
        b"GET / HTTP/1.1\r\nX: a\rb",
        b"GET / HTTP/1.1\r\nX: a\x00b",
        b"GET / HTTP/1.1\r\nX: a\x7f",
        b"\x16\x03\x01\x02\x00\x01",  # a TLS hello
    ],
)
def test_a_head_that_can_only_be_wrong_is_refused_before_its_end(raw):
    with pytest.raises(InvalidRequest):
        find_end(raw, 0, 1000)
    with pytest.raises(InvalidRequest):
        byte_by_byte(raw)


def test_the_end_of_a_head_is_found_however_it_arrives():
    raw = head("GET / HTTP/1.1", "Host: h") + b"body\x00\n"
    end = raw.index(b"body")
    assert find_end(raw, 0, 1000) == end
    checked = 0
    for n in range(1, end):
        assert find_end(raw[:n], checked, 1000) == 0
        checked = n
    assert find_end(raw[:end], checked, 1000) == end


@pytest.mark.parametrize("rest", [b"", b"\0", b"\r\n\r\n"])
def test_a_head_longer_than_its_bound_is_431_whatever_comes_later(rest):
    assert find_end(b"GET /" + b"a" * 95, 0, 100) == 0
    with pytest.raises(HeadersTooLarge):
        find_end(b"GET /" + b"a" * 96 + rest, 0, 100)
