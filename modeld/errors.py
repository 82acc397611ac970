"""What can go wrong, as types: each carries the code and the HTTP status that a client sees for it.

The message is written for the person who reads it: what happened, with the numbers, and what to do.
"""

from __future__ import annotations

from typing import ClassVar


class ModeldError(Exception):
    """Base of everything that modeld raises on purpose.

    `param` names the request parameter at fault; `retry_after_s` is set where waiting helps (seconds, >= 1).
    `type` is one of OpenAI's error types.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


# -- what a client got wrong ---------------------------------------------------------------------------------------


class ClientError(ModeldError):
    code = "invalid_request"
    status = 400
    type = "invalid_request_error"


class InvalidRequest(ClientError):
    """A request that is malformed or has a parameter of the wrong type or range."""


class ContextLengthExceeded(ClientError):
    code = "context_length_exceeded"


class InvalidApiKey(ClientError):
    """No key, or none of ours, where one is needed."""

    code = "invalid_api_key"
    status = 401


class PermissionDenied(ClientError):
    """The key, or the user at the other end of the Unix socket, is known, but this is not for them."""

    code = "permission_denied"
    status = 403


class HostNotAllowed(ClientError):
    """The request was sent to a name that is none of ours: somebody lets it point here (DNS rebinding)."""

    code = "host_not_allowed"
    status = 403


class OriginNotAllowed(ClientError):
    """A page of another site had a browser send it."""

    code = "origin_not_allowed"
    status = 403


class ModelNotFound(ClientError):
    code = "model_not_found"
    status = 404


class NotFound(ClientError):
    code = "not_found"
    status = 404


class MethodNotAllowed(ClientError):
    """`allow` lists the methods of that path, for the Allow header."""

    code = "method_not_allowed"
    status = 405

    def __init__(self, message: str, *, allow: tuple[str, ...]) -> None:
        super().__init__(message)
        self.allow = allow


class RequestTimeout(ClientError):
    """Head or body did not arrive before its deadline."""

    code = "request_timeout"
    status = 408


class ModelNotLoaded(ClientError):
    """A registered model that is not the loaded one."""

    code = "model_not_loaded"
    status = 409


class SwitchRejected(ClientError):
    """Other switches run or wait, and this one asked not to wait with them."""

    code = "switch_rejected"
    status = 409


class OpEnded(ClientError):
    """The op that was to be cancelled has ended already."""

    code = "op_ended"
    status = 409


class GenerationMismatch(ClientError):
    """If-Match named another generation than the one that is loaded: somebody else has switched meanwhile."""

    code = "generation_mismatch"
    status = 412


class PayloadTooLarge(ClientError):
    code = "payload_too_large"
    status = 413


class UnsupportedMediaType(ClientError):
    code = "unsupported_media_type"
    status = 415


class ExpectationFailed(ClientError):
    """An Expect field that asks for something other than 100-continue."""

    status = 417


class QueueFull(ClientError):
    code = "queue_full"
    status = 429
    type = "rate_limit_error"


class TooManyRequests(ClientError):
    """A client has as many requests or streams open as one may have."""

    code = "too_many_requests"
    status = 429
    type = "rate_limit_error"


class RateLimitExceeded(ClientError):
    """A client has taken all of what one may have a minute. Retry-After is in whole seconds; `retry_after_ms` is not."""

    code = "rate_limit_exceeded"
    status = 429

    def __init__(self, message: str, *, retry_after_ms: int) -> None:
        super().__init__(message, retry_after_s=max(1, -(-retry_after_ms // 1000)))
        self.retry_after_ms = retry_after_ms


class RequestRateExceeded(RateLimitExceeded):
    type = "requests"


class TokenRateExceeded(RateLimitExceeded):
    type = "tokens"


class HeadersTooLarge(ClientError):
    code = "headers_too_large"
    status = 431


class NotImplementedByServer(ClientError):
    """An HTTP method or a transfer coding that modeld does not know."""

    status = 501


class VersionNotSupported(ClientError):
    status = 505


# -- what the server cannot do now -----------------------------------------------------------------------------------


class Unavailable(ModeldError):
    status = 503


class NoModel(Unavailable):
    """No model is loaded and none is being loaded."""

    code = "no_model"


class ModelLoading(Unavailable):
    code = "model_loading"


class ModelSwitched(Unavailable):
    """A running request was cancelled because the model left."""

    code = "model_switched"


class ModelCooldown(Unavailable):
    """The model failed to load again and again; it is tried again after retry_after_s, or with force."""

    code = "model_cooldown"


class ModelQuarantined(Unavailable):
    """The process died while it loaded this model, twice in a row; an operator lifts it, or force tries again."""

    code = "model_quarantined"


class ShuttingDown(Unavailable):
    """The daemon stops: nothing is let in any more, or its time to end is over."""

    code = "shutting_down"

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after_s=5)  # by which whoever restarts it has mostly done so


class TooManyConnections(Unavailable):
    code = "too_many_connections"


class GenerationTimeout(ModeldError):
    """A request that took longer than the operator allows; it was cancelled."""

    code = "generation_timeout"
    status = 504


class EngineFailed(ModeldError):
    """The engine died, or a decode failed for good, while the request was in it."""

    code = "engine_failed"


class InternalError(ModeldError):
    """A fault of modeld's own; the message carries no detail beyond a request id."""


class RequestCancelled(ModeldError):
    """The client of the request left; nobody reads this."""

    code = "request_cancelled"
    status = 499


# -- what ends an op ------------------------------------------------------------------------------------------------


class LoadFailed(ModeldError):
    """A model could not be loaded; the message carries the reason from libllama's log."""

    code = "model_load_failed"


class LoadStalled(LoadFailed):
    """A load that made no progress for longer than load_stall_timeout_s."""

    code = "load_stalled"


class ProbeFailed(LoadFailed):
    """The file ended, or failed in, the separate process that tried it first."""

    code = "probe_failed"


class InsufficientMemory(ModeldError):
    """What the model needs is more than there is; the message has the numbers."""

    code = "insufficient_memory"
    status = 507


class OpCancelled(ModeldError):
    """An op that ended before it could succeed, because somebody cancelled it or the daemon stopped."""

    code = "op_cancelled"


# -- what keeps the daemon from starting -----------------------------------------------------------------------------


class ConfigError(ModeldError):
    """Bad configuration; the message names file, line and key path. The program ends with status 78."""

    code = "bad_configuration"


class ConfigRefused(ClientError):
    """The configuration file was read again and has errors; the old configuration goes on. The message is ConfigError's."""

    code = "config_error"
    status = 422


class LibraryMismatch(ModeldError):
    """libllama.so is missing, untested, or not the one that the binding was written for; both sides are named."""

    code = "library_mismatch"
