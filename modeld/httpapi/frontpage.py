"""What does somebody get who opens this server in a browser? `GET /`, and the files of the page, which lie in `page/`.

The page is the same for everybody and says nothing about this daemon: whatever it shows it asks for, with the key of who sits in
front of it. So it needs none itself, as a login page would not.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from dataclasses import dataclass
from importlib import resources

from modeld.errors import NotFound
from modeld.httpapi.message import Request, Response
from modeld.httpapi.service import Service

INDEX = "index.html"
TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# Scripts and styles from here and from nowhere else, none of them in the page itself; requests to here alone. A text becomes
# markup or code nowhere: with trusted types required and none allowed, the browser refuses whatever would make it so.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
# For programs that look at `/` first.
ELSEWHERE = {
    "service": "modeld",
    "links": {
        "status": "/status",
        "models": "/models",
        "events": "/events",
        "health": "/readyz",
        "api": "/openapi.json",
        "openai": "/v1",
    },
}


@dataclass(frozen=True, slots=True)
class PageFile:
    content_type: str
    data: bytes
    etag: str


def get_index(request: Request, _: Service) -> Response:
    """The page for browsers, which ask for HTML by its name; JSON for everybody else."""
    wants_html = _wants_html(request.head.field("accept") or "")
    return _answer(request, files()[INDEX] if wants_html else _elsewhere())


def get_file(request: Request, _: Service) -> Response:
    name = request.params["file"]
    return _answer(request, files().get(name) if name != INDEX else None)


@functools.cache
def files() -> dict[str, PageFile]:
    """By name. Read once, from the package or the zip file that it runs from."""
    found = {}
    for entry in resources.files("modeld.httpapi").joinpath("page").iterdir():
        kind = TYPES.get(entry.name.rpartition(".")[2])
        if kind is not None:
            found[entry.name] = _file(kind, entry.read_bytes())
    return found


@functools.cache
def _elsewhere() -> PageFile:
    return _file("application/json", json.dumps(ELSEWHERE).encode())


def _file(content_type: str, data: bytes) -> PageFile:
    return PageFile(content_type, data, f'"{hashlib.sha256(data).hexdigest()[:32]}"')


def _answer(request: Request, file: PageFile | None) -> Response:
    """Kept by browsers, who ask each time whether it is still so: an upgrade shows at once."""
    if_none_match = request.head.field("if-none-match") or ""
    if file is None:
        raise NotFound("the page has no such file")
    fields = {"ETag": file.etag, "Cache-Control": "no-cache", "Content-Security-Policy": POLICY, "Vary": "Accept, Origin"}
    if _has(if_none_match, file.etag):
        return Response(304, b"", fields)
    return Response(200, file.data, fields, file.content_type)


def _wants_html(accept: str) -> bool:
    for part in accept.lower().split(","):
        media_type, *parameters = (piece.strip() for piece in part.split(";"))
        if media_type == "text/html" and not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters):
            return True
    return False


def _has(if_none_match: str, etag: str) -> bool:
    """Compared weakly, as RFC 9110 13.1.2 wants it: a proxy that compresses may have weakened the tag."""
    return if_none_match.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in if_none_match.split(","))
