"""Which bytes are the body of this request? By length or strictly chunked (RFC 9112 section 7.1), capped, under one deadline."""

from __future__ import annotations

import re
from typing import Protocol

from modeld.errors import InvalidRequest, PayloadTooLarge, RequestTimeout
from modeld.httpapi.head import RequestHead

_MAX_LINE_BYTES = 256  # a chunk's size with its extensions; a trailer field
_MAX_TRAILERS = 20
# Extensions mean nothing to us and are skipped (RFC 9112 7.1.1), but their characters are checked: a bare CR or LF in
# them is how one parser's extension becomes another's request.
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*;[\t\x20-\x7e]*)?")
_TRAILER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[\t\x20-\x7e\x80-\xff]*")
# RFC 9110 6.5.1: what frames, routes or permits a message has no place behind it. Others are read and forgotten.
_NO_TRAILERS = frozenset(
    {b"content-length", b"transfer-encoding", b"host", b"trailer", b"connection", b"te", b"upgrade", b"expect", b"authorization"}
)


class Source(Protocol):
    """What a Connection offers; tests read from bytes."""

    def read_line(self, max_bytes: int, deadline: float) -> bytes: ...

    def read_exactly(self, n_bytes: int, deadline: float) -> bytes: ...


def check_length(head: RequestHead, max_bytes: int) -> None:
    """Before anything is read or `100 Continue` is sent. Raises PayloadTooLarge."""
    if head.content_length is not None and head.content_length > max_bytes:
        raise PayloadTooLarge(f"the body has {head.content_length} bytes, {max_bytes} are allowed")


def read_body(source: Source, head: RequestHead, max_bytes: int, deadline: float) -> bytes:
    """The whole body, b"" where there is none. Raises InvalidRequest, PayloadTooLarge, RequestTimeout.

    After an error the connection must be closed.
    """
    check_length(head, max_bytes)
    try:
        if head.chunked:
            return _read_chunked(source, max_bytes, deadline)
        return source.read_exactly(head.content_length or 0, deadline)
    except RequestTimeout:
        raise RequestTimeout("the request body did not arrive in time") from None


def _read_chunked(source: Source, max_bytes: int, deadline: float) -> bytes:
    body = bytearray()
    framing_bytes = 0  # one-byte chunks with long extensions would be work without a body
    while True:
        line = source.read_line(_MAX_LINE_BYTES, deadline)
        match = _CHUNK_LINE.fullmatch(line)
        if match is None:
            raise InvalidRequest("a chunk must begin with its size in 1 to 8 hexadecimal digits (RFC 9112 section 7.1)")
        size = int(match[1], 16)
        framing_bytes += len(line) + 4
        if len(body) + size > max_bytes or framing_bytes > max_bytes:
            raise PayloadTooLarge(f"the chunked body has more than {max_bytes} bytes")
        if size == 0:
            break
        body += source.read_exactly(size, deadline)
        if source.read_exactly(2, deadline) != b"\r\n":
            raise InvalidRequest("a chunk is not followed by CR LF (RFC 9112 section 7.1)")
    for _ in range(_MAX_TRAILERS + 1):
        line = source.read_line(_MAX_LINE_BYTES, deadline)
        if not line:
            return bytes(body)
        match = _TRAILER.fullmatch(line)
        if match is None:
            raise InvalidRequest("a trailer line does not read: name, colon, value (RFC 9112 section 7.1.2)")
        if match[1].lower() in _NO_TRAILERS:
            raise InvalidRequest(f"{match[1].decode()} is not allowed as a trailer (RFC 9110 section 6.5.1)")
    raise InvalidRequest(f"the body has more than {_MAX_TRAILERS} trailer fields")
