"""Which handler answers this method and path? The ROUTES table, 404 and 405."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from modeld.errors import InvalidRequest, MethodNotAllowed, NotFound
from modeld.httpapi import control, description, embeddings, frontpage, health, metrics, openai, ops
from modeld.httpapi.caller import Access
from modeld.httpapi.message import EventsResponse, Request, Response, StreamResponse
from modeld.httpapi.quotas import Counts
from modeld.httpapi.service import Service

Handler = Callable[[Request, Service], Response | StreamResponse | EventsResponse]


@dataclass(frozen=True, slots=True)
class Route:
    """`path` has segments in braces that take any one segment; docs/http.md describes each route (a test checks)."""

    method: str  # GET, POST or DELETE
    path: str
    handler: Handler
    access: Access = Access.USE
    counts: Counts = Counts.NOTHING


ROUTES: tuple[Route, ...] = (
    Route("GET", "/", frontpage.get_index, Access.OPEN),
    Route("GET", "/page/{file}", frontpage.get_file, Access.OPEN),
    Route("GET", "/models", control.get_models),
    Route("POST", "/switch", ops.post_switch, Access.ADMIN),
    Route("POST", "/unload", ops.post_unload, Access.ADMIN),
    Route("GET", "/ops", ops.get_ops),
    Route("GET", "/ops/{op_id}", ops.get_op),
    Route("DELETE", "/ops/{op_id}", ops.delete_op, Access.ADMIN),
    Route("POST", "/reload", ops.post_reload, Access.ADMIN),
    Route("DELETE", "/quarantine/{model_id}", ops.delete_quarantine, Access.ADMIN),
    Route("GET", "/status", control.get_status),
    Route("GET", "/events", control.get_events),
    # Not open: it tells the version, which no probe does, and who has no key has no use for it.
    Route("GET", "/openapi.json", description.get_openapi),
    Route("GET", "/metrics", metrics.get_metrics),
    Route("GET", "/livez", health.get_livez, Access.OPEN),
    Route("GET", "/readyz", health.get_readyz, Access.OPEN),
    Route("GET", "/healthz", health.get_readyz, Access.OPEN),
    Route("GET", "/health", health.get_health, Access.OPEN),
    Route("GET", "/props", openai.get_props),
    Route("GET", "/v1/models", openai.get_models),
    Route("GET", "/v1/models/{model_id}", openai.get_model),
    Route("POST", "/v1/completions", openai.post_completions, counts=Counts.GENERATION),
    Route("POST", "/v1/chat/completions", openai.post_chat_completions, counts=Counts.GENERATION),
    Route("POST", "/v1/embeddings", embeddings.post_embeddings, counts=Counts.GENERATION),
    Route("POST", "/tokenize", openai.post_tokenize, counts=Counts.REQUEST),
    Route("POST", "/detokenize", openai.post_detokenize, counts=Counts.REQUEST),
    Route("POST", "/apply-template", openai.post_apply_template, counts=Counts.REQUEST),
)


def match(method: str, path: str, routes: tuple[Route, ...] = ROUTES) -> tuple[Route, Mapping[str, str]]:
    """The route and its parameters, decoded. HEAD is answered as GET (the body is left out when it is sent).

    Raises NotFound, MethodNotAllowed, InvalidRequest for a path that does not decode to UTF-8.
    """
    if method == "CONNECT":  # names a host, and no path
        raise MethodNotAllowed("CONNECT is not allowed: this is no proxy", allow=())
    found = _find(path, routes)
    wanted = "GET" if method == "HEAD" else method
    for route, params in found:
        if route.method == wanted:
            return route, params
    allow = _allowed(found)
    raise MethodNotAllowed(f"{method[:32]} is not allowed for {path[:128]}; allowed: {', '.join(allow)}", allow=allow)


def options(path: str, routes: tuple[Route, ...] = ROUTES) -> tuple[str, ...]:
    """The methods of a path; `*`: of any. Raises as match."""
    return _allowed([(route, {}) for route in routes] if path == "*" else _find(path, routes))


def _find(path: str, routes: tuple[Route, ...]) -> list[tuple[Route, Mapping[str, str]]]:
    """The routes of that path, at least one."""
    segments = _segments(path)
    found: list[tuple[Route, Mapping[str, str]]] = [
        (route, params) for route in routes if (params := _fits(route.path.split("/"), segments)) is not None
    ]
    if not found:
        raise NotFound(f"there is no {path[:128]} here")
    return found


def _allowed(found: list[tuple[Route, Mapping[str, str]]]) -> tuple[str, ...]:
    return tuple(sorted({"OPTIONS"}.union(*(_methods(route) for route, _ in found))))


def known_path(path: str) -> str | None:
    """Of the table's row that has it, whatever the method; the first one."""
    try:
        segments = _segments(path)
    except InvalidRequest:
        return None
    return next((route.path for route in ROUTES if _fits(route.path.split("/"), segments) is not None), None)


def _methods(route: Route) -> tuple[str, ...]:
    return ("GET", "HEAD") if route.method == "GET" else (route.method,)


def _segments(path: str) -> list[str]:
    try:
        return [urllib.parse.unquote(segment, errors="strict") for segment in path.split("/")]
    except UnicodeDecodeError:
        raise InvalidRequest("the path does not decode to UTF-8") from None


def _fits(pattern: list[str], segments: list[str]) -> dict[str, str] | None:
    if len(pattern) != len(segments):
        return None
    params: dict[str, str] = {}
    for expected, segment in zip(pattern, segments, strict=True):
        if expected.startswith("{"):
            if not segment:
                return None
            params[expected[1:-1]] = segment
        elif expected != segment:
            return None
    return params
