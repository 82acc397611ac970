"""May a web page have sent this request? Host, Origin and Sec-Fetch-Site; what CORS and browsers are told in answers. Pure.

A page of any site can make a browser send requests to a daemon on localhost. Three things keep it out: a name that it lets
point to 127.0.0.1 (DNS rebinding) is no name of ours; its Origin, which browsers add and no page can change, is not on the
list; and what it may send without asking first (RFC 9110's GET, and POST as a form sends it) changes nothing here: changes are
POST with JSON, or DELETE, for both of which a browser asks by a preflight first.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass

from modeld.errors import HostNotAllowed, OriginNotAllowed
from modeld.httpapi.head import RequestHead

_AUTHORITY = re.compile(r"(\[[^\]]*\]|[^:]*)(?::([0-9]*))?")
_WEB_ORIGIN = re.compile(r"(https?)://([^/]+)")
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_READS = ("GET", "HEAD", "OPTIONS")

# Every answer has these. A page that we serve ourselves brings its own Content-Security-Policy, which goes before this one.
_SECURITY: tuple[tuple[str, str], ...] = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Referrer-Policy", "no-referrer"),
)
_SAME_ORIGIN_ONLY = ("Cross-Origin-Resource-Policy", "same-origin")
# Credentials are never allowed: keys come in a field that the page sets itself, and cookies are not used.
_FOR_ALLOWED_ORIGINS: tuple[tuple[str, str], ...] = (
    ("Cross-Origin-Resource-Policy", "cross-origin"),
    ("Access-Control-Expose-Headers", "*"),
    ("Vary", "Origin"),
)

PREFLIGHT: Mapping[str, str] = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST, DELETE",
    # The asterisk stands for all but Authorization (OpenAI's client sends a dozen fields of its own); browsers before 2022
    # do not know it.
    "Access-Control-Allow-Headers": "Authorization, Content-Type, If-Match, Last-Event-ID, X-Api-Key, X-Request-Id, *",
    "Access-Control-Max-Age": "600",
}


@dataclass(frozen=True, slots=True)
class BrowserRules:
    """As the configuration has them, in lower case."""

    allowed_hosts: tuple[str, ...] = ()  # names; ".example.com": all below it; "*": any
    cors_origins: tuple[str, ...] = ()  # scheme://host[:port]

    def admit(self, head: RequestHead, *, on_unix: bool) -> str | None:
        """The origin of another site that may read the answer; None: nobody asks, or our own page does.

        `on_unix`: no browser opens a Unix socket, so Host may be anything there; a proxy in front still passes Origin on, and a
        page is our own only under one of our names.
        Raises HostNotAllowed, OriginNotAllowed.
        """
        origin = head.field("origin")
        if not on_unix:
            self._check_host(head.host, origin)
        if origin is None:
            _check_fetch_site(head)
            return None
        if origin.lower() in self.cors_origins:
            return origin
        if _is_own(origin, head.host):
            self._check_host(head.host, origin)  # on a Unix socket, too: the proxy in front may pass any name on
            return None
        raise OriginNotAllowed(f"pages of {origin[:200]!a} may not use this server; server.cors_origins lists the ones that may")

    def _check_host(self, host: str, origin: str | None) -> None:
        if not host and origin is None:
            return  # HTTP/1.0, as some probes send it; no browser does
        name, _ = _split(host)
        name = name.removesuffix(".")
        if _is_address(name) or name == "localhost" or name.endswith(".localhost"):
            return
        if any(allowed in ("*", name) or (allowed.startswith(".") and name.endswith(allowed)) for allowed in self.allowed_hosts):
            return
        raise HostNotAllowed(
            f"the Host {host[:200]!a} is none of this server's names; an address and localhost are, others are listed in "
            "server.allowed_hosts"
        )


def constant_fields(origin: str | None, own: Mapping[str, str]) -> bytes:
    """Header lines for an answer that `origin` may read (None: no other one), without those that `own` brings itself."""
    brought = {name.lower() for name in own}
    if origin is not None:
        fields = (*_SECURITY, *_FOR_ALLOWED_ORIGINS, ("Access-Control-Allow-Origin", origin))
    elif brought.isdisjoint(_PLAIN_NAMES):
        return _PLAIN
    else:
        fields = _PLAIN_FIELDS
    return _lines(tuple(field for field in fields if field[0].lower() not in brought))


def _lines(fields: tuple[tuple[str, str], ...]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in fields).encode("ascii")


_PLAIN_FIELDS = (*_SECURITY, _SAME_ORIGIN_ONLY)
_PLAIN_NAMES = frozenset(name.lower() for name, _ in _PLAIN_FIELDS)
_PLAIN = _lines(_PLAIN_FIELDS)  # encoded once, for nearly all answers


def is_preflight(head: RequestHead) -> bool:
    """Whether a browser asks what the page of another origin may send (Fetch, "CORS-preflight request")."""
    return head.method == "OPTIONS" and head.field("access-control-request-method") is not None


def _check_fetch_site(head: RequestHead) -> None:
    """Sec-Fetch-Site, which browsers send to localhost and over TLS: it tells of images, scripts and frames, that have no Origin.

    A link that somebody follows shows them an answer and tells the page with the link nothing.
    """
    site = head.field("sec-fetch-site")
    if site in (None, "same-origin", "none") or (site == "same-site" and head.method in _READS):
        return
    is_link = head.field("sec-fetch-mode") == "navigate" and head.field("sec-fetch-dest") == "document"
    if not (is_link and head.method == "GET"):
        raise OriginNotAllowed("a page of another site made the browser send this (Sec-Fetch-Site); it may not use this server")


def _is_own(origin: str, host: str) -> bool:
    """Whether the page came from where its request goes to; over https, where a proxy in front ends TLS."""
    match = _WEB_ORIGIN.fullmatch(origin.lower())
    if match is None or not host:
        return False
    default = _DEFAULT_PORTS[match[1]]
    (name, port), (own_name, own_port) = _split(match[2]), _split(host)
    return (name, port or default) == (own_name, own_port or default)


def _split(authority: str) -> tuple[str, str]:
    """Name, in lower case, and port ("" where there is none); a name that holds neither is as it is."""
    match = _AUTHORITY.fullmatch(authority.lower())
    return (match[1], match[2] or "") if match is not None else (authority.lower(), "")


def _is_address(name: str) -> bool:
    """Nobody can make an address point somewhere else."""
    try:
        ipaddress.ip_address(name[1:-1] if name.startswith("[") else name)
    except ValueError:
        return False
    return True
