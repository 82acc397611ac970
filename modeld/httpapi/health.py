"""What do the probes answer? /livez /readyz /healthz in Kubernetes' format, /health in llama-server's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from modeld.httpapi import schema
from modeld.httpapi.caller import Access
from modeld.httpapi.message import Request, Response, json_response
from modeld.httpapi.service import Service
from modeld.types import State, Status

_LOADING_RETRY_S = 1
_ERROR_RETRY_S = 10  # somebody has to switch first
_RESTART_RETRY_S = 5
_ENGINE = "modeld-engine"  # whose hanging means that the model does not answer


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    ok: bool


def get_livez(request: Request, service: Service) -> Response:
    """200 in any case: the process serves. Without ?verbose it asks nobody, so that nothing that is stuck can hold it up."""
    if not request.has_query("verbose"):
        return json_response(200, {"status": "ok"})
    threads = [Check(beat.thread.removeprefix("modeld-"), beat.ok) for beat in service.heartbeats()]
    return _verbose(200, "livez", _without(request, [Check("ping", ok=True), *threads]), request)


def get_readyz(request: Request, service: Service) -> Response:
    status = _status(service)
    checks = _without(request, _ready_checks(service, status))
    is_ready = all(check.ok for check in checks)
    fields = {} if is_ready else {"Retry-After": str(_retry_s(status))}
    if request.has_query("verbose"):
        return _verbose(200 if is_ready else 503, request.head.path.strip("/"), checks, request, fields)
    body: schema.Json = {"state": status.state.value, "current_model": status.current_model}
    if status.diverting:
        body["diverting"] = True
    if status.stopping:
        body["stopping"] = True
    return json_response(200 if is_ready else 503, body, fields)


def get_health(request: Request, service: Service) -> Response:
    """llama-server's bodies, which its users' scripts compare. Why a load failed (paths) is for who may use the daemon."""
    status = _status(service)
    if all(check.ok for check in _ready_checks(service, status)):
        return json_response(200, {"status": "ok"})
    if status.stopping:
        message = "The server is stopping"
    elif status.diverting:
        message = "The model is about to be switched"
    elif status.state is State.LOADING:
        message = "Loading model"
    elif status.state is State.ERROR:
        may_know = Access.USE in request.caller.may
        message = status.error.message if status.error and may_know else "No model is loaded"
    else:
        message = "The model does not answer"
    error = {"code": 503, "message": message, "type": "unavailable_error"}
    return json_response(503, {"error": error}, {"Retry-After": str(_retry_s(status))})


# -- the checks


def _status(service: Service) -> Status:
    """Without the look at a file that `service.status` has where a model is suspected: a probe must not wait for a disk."""
    return service.figures().status


def _ready_checks(service: Service, status: Status) -> list[Check]:
    """`model`: one answers; or, with auto_switch, the next request brings one. `divert`: no op is about to take it away."""
    answers = status.state is State.READY and (status.current_model is not None or status.auto_switch)
    engines = [Check("engine", beat.ok) for beat in service.heartbeats() if beat.thread == _ENGINE]
    return [
        Check("ping", ok=True),
        Check("model", answers),
        Check("divert", not status.diverting),
        Check("shutdown", not status.stopping),
        *engines,
    ]


def _without(request: Request, checks: Sequence[Check]) -> list[Check]:
    """Those that ?exclude= names have not failed, whatever they are."""
    excluded = set(request.queries("exclude"))
    return [Check(check.name, ok=check.ok or check.name in excluded) for check in checks]


def _verbose(status: int, name: str, checks: Sequence[Check], request: Request, fields: dict[str, str] | None = None) -> Response:
    """As the Kubernetes API server writes it (its healthz package), but for the status. Reasons are in the log and /metrics:
    probes need no key."""
    excluded = dict.fromkeys(request.queries("exclude"))
    lines = []
    for check in checks:
        if check.name in excluded:
            del excluded[check.name]
            lines.append(f"[+]{check.name} excluded: ok")
        else:
            lines.append(f"[+]{check.name} ok" if check.ok else f"[-]{check.name} failed: reason withheld")
    if excluded:
        unknown = ",".join(json.dumps(each[:64]) for each in excluded)
        lines.append(f"warn: some health checks cannot be excluded: no matches for {unknown}")
    lines.append(f"{name} check {'passed' if all(check.ok for check in checks) else 'failed'}")
    body = "\n".join(lines) + "\n"
    return Response(status, body.encode(), fields or {}, "text/plain; charset=utf-8")


def _retry_s(status: Status) -> int:
    if status.stopping:
        return _RESTART_RETRY_S
    return _LOADING_RETRY_S if status.diverting or status.state is State.LOADING else _ERROR_RETRY_S
