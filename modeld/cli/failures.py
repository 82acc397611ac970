"""How does a client command end that could not do what was asked? Failure: words, a code for programs, an exit status."""

from __future__ import annotations

from collections.abc import Mapping

from modeld import exits

UNREACHABLE = "unreachable"
NOT_MODELD = "not_modeld"
CONNECTION_LOST = "connection_lost"
WAIT_OVER = "wait_over"

# What the daemon cannot do now and may later, by its codes. What it says of itself comes with Retry-After mostly.
_NOT_NOW = {
    "model_loading",
    "no_model",
    "model_cooldown",
    "queue_full",
    "too_many_requests",
    "rate_limit_exceeded",
    "too_many_connections",
    "switch_rejected",
}
_DENIED = {"invalid_api_key", "permission_denied", "host_not_allowed", "origin_not_allowed"}
_CUT = {"model_switched", "op_cancelled", "shutting_down"}

_UNAUTHORIZED, _FORBIDDEN, _TOO_MANY, _UNAVAILABLE = 401, 403, 429, 503


class Failure(Exception):
    """`code`: one of the daemon's, or one of those above. `param`: of the request, where the daemon names one."""

    def __init__(self, message: str, *, code: str, status: int, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.status = status  # an exit status
        self.param = param

    def body(self) -> Mapping[str, object]:
        """In the shape of the daemon's errors."""
        return {"error": {"message": self.message, "type": "client_error", "param": self.param, "code": self.code}}


def usage(message: str) -> Failure:
    return Failure(message, code="usage", status=exits.USAGE)


def lost(message: str) -> Failure:
    return Failure(message, code=CONNECTION_LOST, status=exits.UNREACHABLE)


def exit_status(code: str, http_status: int) -> int:
    """Of an error of the daemon's; `http_status` (0: it came in a stream) decides where the code is none that is known here."""
    if code in _DENIED or http_status in (_UNAUTHORIZED, _FORBIDDEN):
        return exits.DENIED
    if code in _CUT and not (code == "shutting_down" and http_status == _UNAVAILABLE):  # else it was never let in
        return exits.CUT
    if code == "config_error":
        return exits.CONFIG
    if code == "model_quarantined":
        return exits.FAILED  # waiting does not lift it
    if code in _NOT_NOW or http_status in (_TOO_MANY, _UNAVAILABLE):
        return exits.NOT_NOW
    return exits.FAILED
