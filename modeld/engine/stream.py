"""How does text get from the engine to a handler? TokenStream: ends with exactly one Finished or Failed."""

from __future__ import annotations

import threading
from collections.abc import Callable

from modeld.types import Chunk, Failed, Finished


class TokenStream:
    """One request's text on its way. `put` is the engine's, `take` the handler's, `cancel` anybody's."""

    def __init__(self, model_id: str, prompt_tokens: int, on_cancel: Callable[[], None]) -> None:
        """`on_cancel` sends the owner a message; it is called outside the lock, at most once."""
        self.model_id = model_id
        self.prompt_tokens = prompt_tokens
        self._on_cancel = on_cancel
        self._cond = threading.Condition()
        # Guards all below. Notified when text arrives and when the end comes; one handler waits.
        self._text: list[str] = []
        self._n_tokens = 0
        self._end: Finished | Failed | None = None
        self._cancelled = False

    # -- the engine thread (and, for requests that never reached it, whoever closes the engine)

    def put(self, text: str, n_tokens: int, end: Finished | Failed | None = None) -> None:
        """Add text made from `n_tokens` tokens, and the end when it has come. Raises RuntimeError after the end."""
        with self._cond:
            if self._end is not None:
                raise RuntimeError(f"this stream has ended already ({self._end})")
            if text:
                self._text.append(text)
            self._n_tokens += n_tokens
            self._end = end
            if text or end is not None:
                self._cond.notify()

    # -- the handler

    def take(self, timeout_s: float | None) -> Chunk | None:
        """All pending text, as soon as there is any or the end has come; None when the time is over.

        After the end has been taken, the same end comes again with no text.
        """
        with self._cond:
            if not self._cond.wait_for(lambda: self._text or self._end is not None, timeout_s):
                return None
            chunk = Chunk("".join(self._text), self._n_tokens, self._end)
            self._text.clear()
            self._n_tokens = 0
            return chunk

    # -- any thread

    def cancel(self) -> None:
        """Ask the engine to end the request; its slot is free within one decode step. Idempotent."""
        with self._cond:
            if self._cancelled or self._end is not None:
                return
            self._cancelled = True
        self._on_cancel()
