"""Which bytes make two parsers in a row disagree about where a request ends? The table of vectors; tests send them.

Each hides a request with the mark `smuggled` where a body, junk or nothing that counts should be. A request with the mark
`second` stands where a second request may stand. 000 becomes the vector's number: it keeps lengths as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

CARRIER = "/tokenize?carrier=000"
HIDDEN = "GET /livez?smuggled=000 HTTP/1.1\r\nHost: h\r\n\r\n"
SECOND = "GET /livez?second=000 HTTP/1.1\r\nHost: h\r\n\r\n"
N = len(HIDDEN)


@dataclass(frozen=True)
class Vector:
    name: str
    raw: str  # latin-1
    answers: tuple[int, ...]  # of our own server, asked directly
    stays: bool  # whether the connection then carries another request

    def numbered(self, number: int) -> bytes:
        return self.raw.replace("=000", f"={number:03}").encode("latin-1")


def refused(name: str, raw: str, status: int = 400) -> Vector:
    """One error, and the connection is closed: what follows is never read as a request."""
    return Vector(name, raw, (status,), stays=False)


def framed(name: str, raw: str, status: int = 400, *, stays: bool = True) -> Vector:
    """The hidden request is body. /tokenize answers it with 400, since it is no JSON, and the connection goes on."""
    return Vector(name, raw, (status,), stays)


def two(name: str, raw: str, *answers: int, stays: bool = True) -> Vector:
    """Legal pipelining."""
    return Vector(name, raw, answers or (200, 200), stays)


def post(*fields: str, body: str = "", target: str = CARRIER, version: str = "1.1") -> str:
    lines = [f"POST {target} HTTP/{version}", "Host: h", "Content-Type: application/json", *fields]
    return "\r\n".join(lines) + "\r\n\r\n" + body


def get(*fields: str, line: str = "GET /livez?carrier=000 HTTP/1.1", host: str = "Host: h\r\n", after: str = HIDDEN) -> str:
    return f"{line}\r\n{host}" + "".join(f"{field}\r\n" for field in fields) + "\r\n" + after


def chunked(body: str) -> str:
    return post("Transfer-Encoding: chunked", body=body)


LAST = "0\r\n\r\n"
LENGTH = f"Content-Length: {N}"
BOTH = f"Content-Length: {len(LAST) + N}"  # of LAST + HIDDEN


def length_beside_coding() -> Iterator[Vector]:
    """CL.TE and TE.CL, the coding written so that one of the two parsers may miss it."""
    te = "Transfer-Encoding: chunked"
    yield refused("length 0, then chunked", post("Content-Length: 0", te, body=LAST + HIDDEN))
    yield refused("length of all, then chunked", post(BOTH, te, body=LAST + HIDDEN))
    yield refused("length that ends in the chunk", post("Content-Length: 4", te, body=f"{N:x}\r\n{HIDDEN}\r\n{LAST}"))
    yield refused("chunked, then length", post(te, "Content-Length: 4", body=f"{N:x}\r\n{HIDDEN}\r\n{LAST}"))
    for name, field in (
        ("in capitals", "TRANSFER-ENCODING: CHUNKED"),
        ("after a tab", "Transfer-Encoding:\tchunked"),
        ("after no blank", "Transfer-Encoding:chunked"),
        ("identity", "Transfer-Encoding: identity"),
        ("gzip, chunked", "Transfer-Encoding: gzip, chunked"),
        ("unknown", "Transfer-Encoding: cow"),
        ("empty", "Transfer-Encoding:"),
        ("with a blank before its colon", "Transfer-Encoding : chunked"),
        ("with a tab before its colon", "Transfer-Encoding\t: chunked"),
        ("after a blank", " Transfer-Encoding: chunked"),
        ("folded", "Transfer-Encoding:\r\n chunked"),
        ("folded by a tab", "Transfer-Encoding:\r\n\tchunked"),
        ("split before its colon", "Transfer-Encoding\r\n: chunked"),
        ("after a vertical tab", "Transfer-Encoding: \x0bchunked"),
        ("after a form feed", "Transfer-Encoding: \x0cchunked"),
        ("after a bare CR", "X: y\rTransfer-Encoding: chunked"),
        ("after a bare LF", "X: y\nTransfer-Encoding: chunked"),
        ("before a bare LF", "Transfer-Encoding: chunked\nX: y"),
        ("with a NUL in its name", "Transfer-Encoding\0: chunked"),
        ("with a NUL before its name", "\0Transfer-Encoding: chunked"),
        ("with a NUL in its value", "Transfer-Encoding: chunked\0"),
        ("with an accent in its name", "Transfer-Encod\xednng: chunked"),
        ("with a semicolon in its name", "Transfer-Encoding;: chunked"),
        ("with two colons", "Transfer-Encoding:: chunked"),
        ("named by Connection", "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked"),
    ):
        yield refused(f"length and coding {name}", post(BOTH, field, body=LAST + HIDDEN))
    yield refused("length and coding on HTTP/1.0", post(BOTH, te, body=LAST + HIDDEN, version="1.0"))
    yield framed("length and a coding with an underscore", post(BOTH, "Transfer_Encoding: chunked", body=LAST + HIDDEN))
    yield framed("length and a coding with an X", post(BOTH, "X-Transfer-Encoding: chunked", body=LAST + HIDDEN))
    yield framed("length and the field TE", post(BOTH, "TE: chunked", body=LAST + HIDDEN))
    yield framed("length that Connection names", post(LENGTH, "Connection: Content-Length", body=HIDDEN))
    yield framed(
        "length that Connection names, to close", post(LENGTH, "Connection: close, Content-Length", body=HIDDEN), stays=False
    )


def codings() -> Iterator[Vector]:
    """TE.TE: codings that one parser takes for chunked and another does not."""
    for value in (
        "xchunked", "chunkedx", "chunked, identity", "chunked;q=1", '"chunked"', "'chunked'", "chunked chunked",
        "chunked, chunked",
        "chunked,", "chunked, ", "", "gzip", "identity", "trailers", "[chunked]", "chunked/1", "chunked\xa0", "\xa0chunked",
        "\x85chunked", "chu\tnked", "chunked\x0b", "chunked\0", "\x01chunked", "chun\rked", "chunked\n", "cHuNkEd2",
        "0x6368756e6b6564",
        "chunked\r\nTransfer-Encoding: identity", "chunked\r\nTransfer-Encoding: chunked", "chunked\r\nTransfer-Encoding:",
    ):  # fmt: skip
        yield refused(f"coding {value!r}", post(f"Transfer-Encoding: {value}", body=LAST + HIDDEN))
    for value in ("identity, chunked", "gzip, chunked", ", chunked", "x\r\nTransfer-Encoding: chunked", "chunked-not, chunked"):
        yield refused(f"coding {value!r}", post(f"Transfer-Encoding: {value}", body=LAST + HIDDEN), 501)
    for value in ("chunked", "CHUNKED", "Chunked  ", "\t chunked\t"):
        yield framed(f"coding {value!r}", post(f"Transfer-Encoding: {value}", body=f"{N:x}\r\n{HIDDEN}\r\n{LAST}"))
    yield refused("chunked on HTTP/1.0", post("Transfer-Encoding: chunked", body=LAST + HIDDEN, version="1.0"))
    keep = ("Connection: keep-alive", "Transfer-Encoding: chunked")
    yield refused("chunked on a kept HTTP/1.0", post(*keep, body=LAST + HIDDEN, version="1.0"))


def lengths() -> Iterator[Vector]:
    for value in (
        f"+{N}", f"-{N}", "-0", "-1", f"0x{N:x}", f"{N},{N}", f"{N}, {N}", f"0, {N}", f"{N} {N}", f"{N}.0", f"{N}e0", "", "\t",
        f"{N};", f'"{N}"', f"{N}_", "1_0", "\xb2", f"{N}\xa0", f"{N}\0", f"\x0b{N}", "99999999999", "18446744073709551616",
        "0" * 11, f"{N}\r", f"{N}\n", f"\r\n {N}", f"{N}\r\nContent-Length: {N}", f"0\r\nContent-Length: {N}",
        f"{N}\r\nContent-Length: 0", f"{N}\r\ncontent-length: {N}", f"{N}\r\nContent-Length:", "NaN", "infinity", "true",
    ):  # fmt: skip
        yield refused(f"length {value!r}", post(f"Content-Length: {value}", body=HIDDEN))
    for name in (
        "Content-Length ",
        "Content-Length\t",
        " Content-Length",
        "\tContent-Length",
        "Content Length",
        "Content-Length\0",
    ):
        yield refused(f"length as {name!r}", post(f"{name}: {N}", body=HIDDEN))
    yield refused("length over the cap", post("Content-Length: 4294967296", body=HIDDEN), 413)
    yield refused("length that wraps at 32 bits", post(f"Content-Length: {(1 << 32) + N}", body=HIDDEN), 413)
    yield framed("length with zeros before it", post(f"Content-Length: 000{N}", body=HIDDEN))
    yield framed("length in odd letters", post(f"cOnTeNt-lEnGtH:{N}", body=HIDDEN))
    yield framed("length of a body that nobody reads", post(LENGTH, body=HIDDEN, target="/none?carrier=000"), 404)
    yield framed(
        "length of a long body that nobody reads", post(f"Content-Length: {N * 2000}",
        body=HIDDEN * 2000, target="/none?carrier=000"),
        404, stays=False,
    )  # fmt: skip
    yield refused("a body that ends too early", post(f"Content-Length: {N + 9}", body=HIDDEN), 408)
    yield two("a body shorter than what follows", post("Content-Length: 2", body="{}" + SECOND), 400, 200)
    yield two("no length", post(body=SECOND), 400, 200)
    yield two("length 0", post("Content-Length: 0", body=SECOND), 400, 200)
    yield two("length with an underscore", post(f"Content_Length: {N}", body=SECOND), 400, 200)
    for method in ("GET", "HEAD", "OPTIONS", "DELETE", "TRACE", "get", "M-SEARCH"):
        status = {"GET": 200, "HEAD": 200, "OPTIONS": 204}.get(method, 405)
        yield framed(f"a body with {method}", get(LENGTH, line=f"{method} /livez?carrier=000 HTTP/1.1"), status)
    yield framed(
        "a chunked body with GET", get("Transfer-Encoding: chunked", after=f"{N:x}\r\n{HIDDEN}\r\n{LAST}"), 200
    )  # fmt: skip


def chunks() -> Iterator[Vector]:
    for size in (
        "0x0", "+0", "-0", "-1", " 0", "0 ", "0\t", "\t0", "", "_0", "0_0", "0,0", "0.0", "0h", "h", "\xb2", "\0", "0\0", "0;\0",
        "0;a=\x7f", "0;a=\xe9", "0;a\nb", "0;a\rb", "0;\n", "0\n", "0\r", "0\n0", "0\x0b", "0\x85", "000000000",
        "FFFFFFFFFFFFFFFF0", "100000000",
        "10000000000000000", "0 0", "0:", "0=;", "0x", "x0", "0\\", "{0}", '"0"',
    ):  # fmt: skip
        yield refused(f"chunk size {size!r}", chunked(f"{size}\r\n\r\n{HIDDEN}"))
    yield refused("chunk size in LF alone", chunked(f"0\n\n{HIDDEN}"))
    yield refused("chunk size before LF alone, then data", chunked(f"{N:x}\n{HIDDEN}\n0\n\n"))
    yield refused("chunk size before CR alone", chunked(f"0\r\r\n{HIDDEN}"))
    yield refused("chunk after a blank line", chunked(f"\r\n{LAST}{HIDDEN}"))
    yield refused("chunk size over the cap", chunked(f"FFFFFFFF\r\n{HIDDEN}"), 413)
    yield refused("chunk size with the sign bit", chunked(f"80000000\r\n{HIDDEN}"), 413)
    yield refused("chunk extension that never ends", chunked(f"0;{'a' * 300}\r\n\r\n{HIDDEN}"), 431)
    yield refused("chunk longer than its size", chunked(f"1\r\nxyz\r\n{LAST}{HIDDEN}"))
    yield refused("chunk shorter than its size", chunked(f"5\r\nxyz\r\n{LAST}{HIDDEN}"))
    for end in ("", "\n", "\r", "\n\n", "\r\r", "XX", "\n\r", " \r\n", "\0\r\n"):
        yield refused(f"chunk that ends in {end!r}", chunked(f"3\r\nxyz{end}{LAST}{HIDDEN}"))
    for end in ("", "\n", "\r", " \r\n", "\0", "X\r\n\r\n", "X\n\r\n"):
        yield refused(f"last chunk, then {end!r}", chunked(f"0\r\n{end}{HIDDEN}"))
    yield refused("chunks without a last one", chunked("3\r\nxyz\r\n"), 408)
    for size in (f"{N:X}", f"00{N:x}", f"{N:x};a", f"{N:x} ;a=b", f'{N:x};a="b;c"', f"{N:x};a=\t"):
        yield framed(f"chunk of size {size!r}", chunked(f"{size}\r\n{HIDDEN}\r\n{LAST}"))
    yield framed("chunks of one byte", chunked("".join(f"1\r\n{byte}\r\n" for byte in HIDDEN) + LAST))
    yield two("chunked, then another", chunked(f"2\r\n{{}}\r\n{LAST}{SECOND}"), 400, 200)
    yield two("last chunk with an open quote", chunked(f'2\r\n{{}}\r\n0;a="\r\n\r\n{SECOND}'), 400, 200)
    yield two("last chunk of many zeros", chunked(f"2\r\n{{}}\r\n00000\r\n\r\n{SECOND}"), 400, 200)


def trailers() -> Iterator[Vector]:
    for field in (
        LENGTH, "Transfer-Encoding: chunked", "transfer-encoding: identity", "Host: evil", "Connection: close", "TE: trailers",
        "Upgrade: h2c", "Expect: 100-continue", "Authorization: Bearer x", "Trailer: X", "X : y", " X: y", "X: y\r\n z",
        ": y",
        "X: \0", "X: y\nZ: w", "X: y\rZ: w", "X\xe9: y", "GET /livez?smuggled=000 HTTP/1.1", *["\r\n".join(["X: y"] * 21)],
    ):  # fmt: skip
        yield refused(f"trailer {field[:40]!r}", chunked(f"0\r\n{field}\r\n\r\n{HIDDEN}"))
    yield refused("trailer that never ends", chunked(f"0\r\nX: {'a' * 300}\r\n\r\n{HIDDEN}"), 431)
    yield two("trailers that are forgotten", chunked(f"2\r\n{{}}\r\n0\r\nX: y\r\nContent-Type: a/b\r\n\r\n{SECOND}"), 400, 200)


def lines_and_fields() -> Iterator[Vector]:
    for name, raw in (
        ("LF after the request line", "GET /livez?carrier=000 HTTP/1.1\nHost: h\r\n\r\n"),
        ("LF after a field", "GET /livez?carrier=000 HTTP/1.1\r\nHost: h\n\r\n"),
        ("LF for the blank line", "GET /livez?carrier=000 HTTP/1.1\r\nHost: h\r\n\n"),
        ("LF everywhere", "GET /livez?carrier=000 HTTP/1.1\nHost: h\n\n"),
        ("CR everywhere", "GET /livez?carrier=000 HTTP/1.1\rHost: h\r\r"),
        ("CR CR LF", "GET /livez?carrier=000 HTTP/1.1\r\r\nHost: h\r\r\n\r\r\n"),
        ("LF CR LF", "GET /livez?carrier=000 HTTP/1.1\r\nHost: h\n\r\n\r\n"),
        ("CR for the blank line", "GET /livez?carrier=000 HTTP/1.1\r\nHost: h\r\n\r"),
    ):
        yield refused(name, raw + HIDDEN)
    for field in (
        "X: a\0b", "X: a\rb", "X: a\nb", "X: a\x0bb", "X: a\x7f", "X: a\x1b", "X", "X y: z", "X y", ": y", " folded", "\tfolded",
        "X: y\r\n folded", "X: y\r\n\tfolded", "X: y\r\n \r\n", "X\xe9: y", "X(: y", 'X": y', "X/: y", "X@: y", "\x80: y",
        "X\r\n: y", "X:y\r\n\x00",
    ):  # fmt: skip
        yield refused(f"field {field!r}", get(field))
    yield refused("a folded first field", "GET /livez?carrier=000 HTTP/1.1\r\n X: y\r\nHost: h\r\n\r\n" + HIDDEN)
    yield refused("a field that is too long", get("X: " + "a" * 9000), 431)
    yield refused("too many fields", get(*["X: y"] * 100), 431)
    yield refused("a head that is too long", get(*[f"X: {'a' * 8000}"] * 3), 431)
    yield two("odd but legal fields", get("X:", "!#$%&'*+-.^_`|~: y", "X: \xe9\t\xff", "x_y: z", after=SECOND))


def request_lines() -> Iterator[Vector]:
    for line in (
        "GET  /livez?carrier=000 HTTP/1.1", " GET /livez?carrier=000 HTTP/1.1", "GET /livez?carrier=000  HTTP/1.1",
        "GET\t/livez?carrier=000\tHTTP/1.1", "GET /livez?carrier=000 HTTP/1.1 ", "GET /livez?carrier=000 HTTP/1.1 HTTP/1.1",
        "GET /livez?carrier=000 x HTTP/1.1", "GET /livez?carrier=000 http/1.1", "GET /livez?carrier=000 HTTP/1.1.1",
        "GET /livez?carrier=000 HTTP/1.1x", "GET /livez?carrier=000 HTTP/01.1", "GET /livez?carrier=000 HTTP/1.01",
        "GET /livez?carrier=000 HTTP /1.1", "GET /livez?carrier=000 HTTP/+1.1", "GET /livez?carrier=000 ICY/1.1",
        "GET /livez?carrier=000", "GET", "", "GET /livez?carrier=000 ", "HTTP/1.1 200 OK", "GET livez?carrier=000 HTTP/1.1",
        "GET * HTTP/1.1", "GET /livez?carrier=000#x HTTP/1.1", "GET /a\\b?carrier=000 HTTP/1.1", "GET /%zz?carrier=000 HTTP/1.1",
        "GET /%0?carrier=000 HTTP/1.1", "GET /\xe9?carrier=000 HTTP/1.1", "GET /\0?carrier=000 HTTP/1.1",
        "GET /\x7f?carrier=000 HTTP/1.1", "GET /\r?carrier=000 HTTP/1.1", "GET /\n?carrier=000 HTTP/1.1",
        "GE\0T /livez?carrier=000 HTTP/1.1", "G{T /livez?carrier=000 HTTP/1.1", "GET: /livez?carrier=000 HTTP/1.1",
        "GET http:///livez?carrier=000 HTTP/1.1", "GET http:/livez?carrier=000 HTTP/1.1",
        "GET http://u@h/livez?carrier=000 HTTP/1.1",
        "GET http://h:x/livez?carrier=000 HTTP/1.1", "GET ftp://h/livez?carrier=000 HTTP/1.1", "GET h:80 HTTP/1.1",
        "CONNECT / HTTP/1.1",
    ):  # fmt: skip
        yield refused(f"line {line!r}", get(line=line))
    for version in ("0.9", "1.2", "1.9", "2.0", "3.0", "9.9"):
        yield refused(f"version {version}", get(line=f"GET /livez?carrier=000 HTTP/{version}"), 505)
    yield refused("a simple request of HTTP/0.9", "GET /livez?carrier=000\r\n\r\n" + HIDDEN)
    yield refused("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HIDDEN, 505)
    yield refused("a line of the PROXY protocol", "PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n\r\n" + HIDDEN)
    yield refused("a TLS hello", "\x16\x03\x01\x02\x00\x01\x00" + HIDDEN)
    yield refused("a target that is too long", get(line=f"GET /{'a' * 9000}?carrier=000 HTTP/1.1"), 431)
    yield refused("CONNECT", get(line="CONNECT h:80 HTTP/1.1", host="Host: h:80\r\n"), 405)
    yield two("a method of odd characters", get(line="!#$%&'*+-.^_`|~ /livez?carrier=000 HTTP/1.1", after=SECOND), 405, 200)
    yield two("slashes and dots", get(line="GET //h/../%2e%2e/livez?carrier=000 HTTP/1.1", after=SECOND), 404, 200)


def hosts() -> Iterator[Vector]:
    for host in (
        "", "Host:\r\n", "Host: h\r\nHost: h\r\n", "Host: h\r\nHost: evil\r\n", "Host: h\r\nhOST: evil\r\n", "Host: h, evil\r\n",
        "Host: h evil\r\n", "Host: h/evil\r\n", "Host: u@h\r\n", "Host: h\r\n evil\r\n", "Host : h\r\n", " Host: h\r\n",
        "Host: h\0evil\r\n",
        "Host: h:port\r\n", "Host: [h]\r\n", "Host: http://h\r\n", "Host: h#evil\r\n", "Host: h?evil\r\n",
        "Host: h\\evil\r\n", "Host: h\xe9\r\n",
    ):  # fmt: skip
        yield refused(f"host {host!r}", get(host=host))
    absolute = "GET http://other/livez?carrier=000 HTTP/1.1"
    yield refused("an absolute target without Host", get(line=absolute, host=""))
    yield refused("an absolute target with two Hosts", get(line=absolute, host="Host: other\r\nHost: h\r\n"))
    yield two("an absolute target beside another Host", get(line=absolute, after=SECOND))
    yield refused("two Hosts on HTTP/1.0", get(line="GET /livez?carrier=000 HTTP/1.0", host="Host: h\r\nHost: h\r\n"))


def connections() -> Iterator[Vector]:
    """Who is kept, what is promised, what is not granted."""
    old = "GET /livez?carrier=000 HTTP/1.0"
    body = f"POST {CARRIER} HTTP/1.0\r\nContent-Type: application/json\r\nConnection: keep-alive\r\n{LENGTH}\r\n\r\n"
    yield Vector("after an HTTP/1.0 request", get(line=old), (200,), stays=False)
    yield Vector("after close", get("Connection: close"), (200,), stays=False)
    yield Vector("after close in a list", get("Connection: x ,\tCLOSE"), (200,), stays=False)
    yield Vector("after close beside keep-alive", get("Connection: keep-alive", "Connection: close"), (200,), stays=False)
    yield two("a kept HTTP/1.0 connection", get("Connection: keep-alive", line=old, after=SECOND))
    yield framed("a body on a kept HTTP/1.0 connection", body + HIDDEN)
    yield two("three in one packet", get(after=get(after=SECOND)), 200, 200, 200)
    yield two("a blank line before", "\r\n" + get(after=SECOND))
    yield two("a blank line between", get(after="\r\n" + SECOND))
    yield refused("two blank lines before", "\r\n\r\n" + get())
    for junk in ("\n", "\r", " \r\n", "\0", "\r\n \r\n", "x\r\n"):
        yield refused(f"{junk!r} before", junk + get())
    yield Vector("two blank lines between", get(after="\r\n\r\n" + HIDDEN), (200, 400), stays=False)
    yield Vector("junk between", get(after="junk\r\n" + HIDDEN), (200, 400), stays=False)
    yield framed("100-continue with its body", post("Expect: 100-continue", LENGTH, body=HIDDEN))
    yield framed("100-continue in odd letters", post("expect:100-Continue", LENGTH, body=HIDDEN))
    yield framed(
        "100-continue for a chunked body",
        post("Expect: 100-continue", "Transfer-Encoding: chunked", body=f"{N:x}\r\n{HIDDEN}\r\n{LAST}"),
    )
    yield framed(
        "100-continue for what is not there",
        post("Expect: 100-continue", LENGTH, body=HIDDEN, target="/none?carrier=000"),
        404,
        stays=False,
    )
    yield refused(
        "100-continue with length and coding",
        post("Expect: 100-continue", BOTH, "Transfer-Encoding: chunked", body=LAST + HIDDEN),
    )
    yield two("100-continue without a body", get("Expect: 100-continue", after=SECOND))
    for value in ("100-continue, tea", "x 100-continue", "100", "100-continue=1", "101-continue"):
        yield refused(f"expectation {value!r}", post(f"Expect: {value}", LENGTH, body=HIDDEN), 417)
    yield two(
        "an upgrade to h2c", get("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk", after=SECOND)
    )
    yield two(
        "an upgrade to websocket",
        get(
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
            after=SECOND,
        ),
    )
    yield framed("an upgrade with a body", post("Connection: Upgrade", "Upgrade: h2c", LENGTH, body=HIDDEN))
    for name in ("Host", "X-Request-Id", "Content-Type", "Expect", "Upgrade", "close-not"):
        yield two(f"Connection names {name}", get(f"Connection: {name}", after=SECOND))
    yield refused("two content types", post("Content-Type: text/plain", LENGTH, body=HIDDEN))
    yield refused("two authorizations", get("Authorization: a", "Authorization: b"))


VECTORS: tuple[Vector, ...] = tuple(
    vector
    for group in (length_beside_coding, codings, lengths, chunks, trailers, lines_and_fields, request_lines, hosts, connections)
    for vector in group()
)
