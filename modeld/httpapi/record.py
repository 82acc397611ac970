"""What is told of a request when it has ended? Record: filled while it is answered, for the log, the metrics and the quotas."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from modeld.types import Usage

CLIENT_GONE = 499  # nginx's word for a client that left before it had its answer; only in the log and the metrics


@dataclass(slots=True)
class Record:
    """The connection thread's. Times are points of `time.monotonic()`; nothing here quotes a body, a key or a text."""

    request_id: str
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    method: str = "-"
    target: str = ""  # as sent: hostile
    route: str | None = None  # the path of the table's row, e.g. "/ops/{op_id}"; None: no row
    caller: str | None = None
    status: int = 0
    n_bytes: int = 0  # sent
    code: str | None = None  # of the error that answered it, or ended its stream
    # -- of a generation
    model_id: str | None = None
    stream: bool = False
    first_text_at: float | None = None
    last_text_at: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    finish: str | None = None  # the last choice's reason

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    def text_came(self) -> None:
        """Text of the answer is there, whether it is sent now or laid by."""
        self.last_text_at = time.monotonic()
        if self.first_text_at is None:
            self.first_text_at = self.last_text_at

    @property
    def end(self) -> str:
        """How it came out, in one word of a bounded set: a finish reason, the code of an error, client_gone, or ok."""
        if self.status == CLIENT_GONE:
            return "client_gone"
        return self.code or self.finish or "ok"

    def ended_choice(self, usage: Usage, *, counts_prompt: bool) -> None:
        """A choice has ended, by itself or not; the prompt of several choices counts once."""
        self.completion_tokens += usage.completion_tokens
        if counts_prompt:
            self.prompt_tokens += usage.prompt_tokens
            self.cached_tokens += usage.cached_tokens
