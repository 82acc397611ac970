"""How do messages become a prompt? llama.cpp's built-in list of chat templates, asked once at load and then per request."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from modeld.errors import InvalidRequest
from modeld.llm import libllama as C
from modeld.llm.libllama import Library
from modeld.types import ChatMessage


class ChatTemplate:
    """A template that llama.cpp recognises, by its text or by its name. Tokenize threads only."""

    def __init__(self, lib: Library, template: str | None, model_id: str) -> None:
        self._lib = lib
        self._template = None if template is None else template.encode()
        self._model_id = model_id
        # Asked at load, so that /props and the log can say it before a request fails.
        self.supported = self._template is not None and self._apply([ChatMessage("user", "x")], 256)[0] >= 0

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """The prompt, ending where the assistant begins. Raises InvalidRequest when the template is not known."""
        if self._template is None:
            raise InvalidRequest(
                f"model '{self._model_id}' brings no chat template; set chat_template in its registry entry, "
                "or use /v1/completions",
                param="messages",
            )
        n_room = 256 + 2 * sum(len(m.role) + len(m.content.encode()) + 64 for m in messages)
        for _ in range(2):
            n_bytes, text = self._apply(messages, n_room)
            if n_bytes < 0:
                raise InvalidRequest(
                    f"the chat template of model '{self._model_id}' is not in llama.cpp's list; set chat_template in its "
                    "registry entry to a name from that list (e.g. chatml), or use /v1/completions",
                    param="messages",
                )
            if n_bytes <= n_room:
                return text[:n_bytes].decode("utf-8", "replace")
            n_room = n_bytes
        raise InvalidRequest(f"the chat template of model '{self._model_id}' gave no end", param="messages")

    def _apply(self, messages: Sequence[ChatMessage], n_room: int) -> tuple[int, bytes]:
        """llama_chat_apply_template: its result and buffer (not terminated when cut, so the length decides)."""
        array = (C.llama_chat_message * len(messages))(
            *[C.llama_chat_message(message.role.encode(), message.content.encode()) for message in messages]
        )
        buffer = ctypes.create_string_buffer(n_room)
        n_bytes = int(self._lib.llama_chat_apply_template(self._template, array, len(messages), True, buffer, n_room))
        return n_bytes, buffer.raw
