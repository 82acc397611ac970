"""Is this request head one that RFC 9112 allows, and what does it say? Bytes in, RequestHead or a typed error out.

Two parsers in a row that read one message differently are how requests are smuggled, so everything that could be read
in two ways is refused: bare CR or LF, folded lines, a space before the colon, two lengths, a length beside a transfer
coding. After an error the connection must be closed: where the next request begins is not known.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from modeld.errors import (
    ExpectationFailed,
    HeadersTooLarge,
    InvalidRequest,
    NotImplementedByServer,
    VersionNotSupported,
)

END = b"\r\n\r\n"

# RFC 9112 2.2 and 5, RFC 9110 5.5: lines end in CRLF; other controls, NUL among them, have no place in a head. A CR at
# the very end may still get its LF from the next packet.
_FORBIDDEN = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?=[^\n])")

_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110 5.6.2
_REQUEST_LINE = re.compile(rf"({_NAME}) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")  # RFC 9112 3
_FIELD = re.compile(rf"({_NAME}):[ \t]*((?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)[ \t]*")
# RFC 3986 3.3 and 3.4, and what browsers and curl send as it is though it should be escaped (quotes, braces, bars): no parser
# reads that in two ways. Two characters some do, and both stay out: '#', where one cuts and another does not, and a backslash
# in the path, that one takes for a slash.
_PATH = re.compile(r"/(?:[!\"$&-\[\]-~]|%[0-9A-Fa-f]{2})*")
_QUERY = re.compile(r"(?:[!\"$&-~]|%[0-9A-Fa-f]{2})*")
# RFC 3986's reg-name but for the comma: two Host fields that a proxy joined have one. No user before the host (RFC 9110 4.2.4).
_AUTHORITY = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._~!$&'()*+;=-]{1,255})(?::[0-9]{0,5})?")
_LENGTH = re.compile(r"[0-9]{1,10}")
_ABSOLUTE = re.compile(r"https?://([^/?]*)(.*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class RequestHead:
    """`path` and `query` are as sent, still percent-encoded; field names are lower case, values without outer blanks.

    Two targets have no path: `*` of OPTIONS is kept as "*", the host and port of CONNECT as "".
    """

    method: str
    target: str
    path: str
    query: str
    host: str  # of the target where it names one, else of the Host field; "" is possible on HTTP/1.0 only
    minor: int  # of HTTP/1.x
    fields: tuple[tuple[str, str], ...]
    content_length: int | None  # None: no such field
    chunked: bool
    keep_alive: bool
    expects_continue: bool

    def field(self, name: str) -> str | None:
        """The value of the first field of that name (lower case)."""
        return next((value for key, value in self.fields if key == name), None)

    @property
    def has_body(self) -> bool:
        return self.chunked or bool(self.content_length)


def find_end(buffer: bytes | bytearray, checked: int, max_bytes: int) -> int:
    """Where the head at the start of `buffer` ends (just past the blank line); 0 while it has not.

    `checked` bytes were looked at by an earlier call. A head that can only become wrong is refused before its end, so
    that a client that ends lines in LF alone gets its answer now and not at the deadline.
    Raises InvalidRequest, HeadersTooLarge.
    """
    found = buffer.find(END, max(0, checked - len(END) + 1))
    end = found + len(END) if found >= 0 else 0
    # Not beyond the bound: which of the two errors it is must not depend on the packets.
    if wrong := _FORBIDDEN.search(buffer, max(0, checked - 1), min(end or len(buffer), max_bytes)):
        at = wrong.start()
        raise InvalidRequest(f"byte {buffer[at]:#04x} at {at} has no place in a request head (RFC 9112 section 2.2)")
    if (end or len(buffer)) > max_bytes:
        raise HeadersTooLarge(f"the request head is longer than {max_bytes} bytes")
    return end


def parse_head(raw: bytes, max_fields: int = 100, max_line_bytes: int = 8190) -> RequestHead:
    """Parse one head, from its request line to its blank line, as find_end delimited it.

    Raises InvalidRequest, HeadersTooLarge, NotImplementedByServer, VersionNotSupported, ExpectationFailed.
    """
    if not raw.endswith(END) or _FORBIDDEN.search(raw):
        raise InvalidRequest("a request head consists of lines that end in CR LF, the last one empty")
    request_line, *lines = raw[: -len(END)].decode("latin-1").split("\r\n")
    method, target, minor = _parse_request_line(request_line)
    if len(lines) > max_fields:
        raise HeadersTooLarge(f"the request has {len(lines)} header fields, {max_fields} are allowed")
    if any(len(line) > max_line_bytes for line in (request_line, *lines)):
        raise HeadersTooLarge(f"a line of the request head is longer than {max_line_bytes} bytes")
    fields = tuple(_parse_field(line) for line in lines)
    _check_single(fields)
    authority, path, query = _parse_target(method, target)
    host = _host(fields, authority, minor)
    content_length, chunked = _framing(fields, minor)
    connection = _list(fields, "connection")
    return RequestHead(
        method=method,
        target=target,
        path=path,
        query=query,
        host=host,
        minor=minor,
        fields=fields,
        content_length=content_length,
        chunked=chunked,
        # What follows a CONNECT may be meant for the tunnel that it asked for, whatever we answer.
        keep_alive=method != "CONNECT" and "close" not in connection and (minor >= 1 or "keep-alive" in connection),
        expects_continue=_expects_continue(fields, minor),
    )


def _parse_request_line(line: str) -> tuple[str, str, int]:
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise InvalidRequest("the request line must read: method, one space, target, one space, HTTP/1.1 (RFC 9112 section 3)")
    method, target, major, minor = match.groups()
    if major != "1" or minor not in ("0", "1"):
        raise VersionNotSupported(f"HTTP/{major}.{minor} is not spoken here; use HTTP/1.1")
    return method, target, int(minor)


def _parse_field(line: str) -> tuple[str, str]:
    match = _FIELD.fullmatch(line)
    if match is None:
        # Among them lines folded onto the next (RFC 9112 5.2) and a blank before the colon (5.1).
        raise InvalidRequest(f"header line {line[:80]!r} does not read: name, colon, value (RFC 9112 section 5)")
    return match[1].lower(), match[2]


def _check_single(fields: tuple[tuple[str, str], ...]) -> None:
    """Fields that decide whether a request is allowed: given twice, we might judge one and a proxy have judged the other."""
    names = [name for name, _ in fields]
    for name in ("content-type", "authorization", "origin"):
        if names.count(name) > 1:
            raise InvalidRequest(f"the request has {names.count(name)} {name} fields; one is allowed")


def _parse_target(method: str, target: str) -> tuple[str | None, str, str]:
    """RFC 9112 3.2: authority (None where the target names none), path and query."""
    authority = None
    rest = target
    if method == "CONNECT":
        if not _AUTHORITY.fullmatch(target) or target.endswith(":") or ":" not in target.rpartition("]")[2]:
            raise InvalidRequest("the request target of CONNECT is a host and a port (RFC 9112 section 3.2.3)")
        return target, "", ""
    if match := _ABSOLUTE.fullmatch(target):
        authority, rest = match[1], match[2]
        if not _AUTHORITY.fullmatch(authority):
            raise InvalidRequest("the authority of the request target is not a host with an optional port")
        if not rest.startswith("/"):
            rest = "/" + rest
    elif target == "*":
        if method != "OPTIONS":
            raise InvalidRequest("only OPTIONS has the request target '*'")
        return None, "*", ""
    path, _, query = rest.partition("?")
    if not _PATH.fullmatch(path) or not _QUERY.fullmatch(query):
        raise InvalidRequest("the request target is not a path with an optional query (RFC 9112 section 3.2)")
    return authority, path, query


def _host(fields: tuple[tuple[str, str], ...], authority: str | None, minor: int) -> str:
    """RFC 9112 3.2 and 3.2.2: one Host on HTTP/1.1, also where an absolute target overrules it."""
    hosts = [value for name, value in fields if name == "host"]
    if len(hosts) > 1 or (minor >= 1 and not hosts):
        raise InvalidRequest(f"the request has {len(hosts)} Host fields, HTTP/1.1 asks for one (RFC 9112 section 3.2)")
    if hosts and not _AUTHORITY.fullmatch(hosts[0]):
        raise InvalidRequest("the Host field is not a host with an optional port")
    return authority if authority is not None else "".join(hosts)


def _framing(fields: tuple[tuple[str, str], ...], minor: int) -> tuple[int | None, bool]:
    """RFC 9112 6.1 to 6.3: how long the body is. Where both fields claim it, neither is believed."""
    lengths = [value for name, value in fields if name == "content-length"]
    codings = [value for name, value in fields if name == "transfer-encoding"]
    if codings:
        if lengths:
            raise InvalidRequest("the request has both Transfer-Encoding and Content-Length (RFC 9112 section 6.1)")
        if minor < 1:
            raise InvalidRequest("HTTP/1.0 has no Transfer-Encoding (RFC 9112 section 6.1)")
        names = [name.strip(" \t").lower() for value in codings for name in value.split(",")]
        if names[-1] != "chunked" or names.count("chunked") > 1:
            raise InvalidRequest("the last transfer coding, and only that, must be 'chunked' (RFC 9112 section 6.3)")
        if len(names) > 1:
            raise NotImplementedByServer("the only transfer coding understood is one 'chunked'")
        return None, True
    if len(lengths) > 1:
        raise InvalidRequest(f"the request has {len(lengths)} Content-Length fields (RFC 9112 section 6.3)")
    if lengths and not _LENGTH.fullmatch(lengths[0]):
        raise InvalidRequest("Content-Length is not 1 to 10 decimal digits (RFC 9110 section 8.6)")
    return (int(lengths[0]) if lengths else None), False


def _expects_continue(fields: tuple[tuple[str, str], ...], minor: int) -> bool:
    """RFC 9110 10.1.1; an HTTP/1.0 client does not know the interim response."""
    expectations = _list(fields, "expect")
    if expectations - {"100-continue"}:
        raise ExpectationFailed("the only expectation understood is 100-continue")
    return bool(expectations) and minor >= 1


def _list(fields: tuple[tuple[str, str], ...], name: str) -> set[str]:
    """The members of a comma-separated field, all of its lines together, lower case."""
    return {member.strip(" \t").lower() for key, value in fields if key == name for member in value.split(",")} - {""}
