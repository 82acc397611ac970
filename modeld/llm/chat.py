"""How do messages become a prompt? By the model's own Jinja template, or by llama.cpp's built-in list of templates.

The choice is made once, at load: Jinja where the extra modeld[chat] is installed and the template compiles and shows
what it is given; else llama.cpp's list, if it recognises the template; else nothing, and a request is told why.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from modeld.errors import InvalidRequest
from modeld.llm import libllama as C
from modeld.llm.libllama import Library
from modeld.types import ChatMessage

log = logging.getLogger("modeld.engine")

_PROBE = "modeld-probe"


class ChatTemplate:
    """A model's chat template. Made by the switch thread, called by the tokenize threads."""

    def __init__(self, lib: Library, template: str | None, model_id: str, *, bos: str, eos: str, adds_bos: bool) -> None:
        """`template`: Jinja, or a name from llama.cpp's list; None: the model brings none. `adds_bos`: the tokenizer does."""
        self._lib = lib
        self._template = None if template is None else template.encode()
        self._model_id = model_id
        self._bos = bos if adds_bos else ""
        self._tokens: Mapping[str, str] = {"bos_token": bos, "eos_token": eos}
        self._jinja: tuple[ModuleType, Any] | None = None  # modeld.llm.jinja and the compiled template
        self._in_parts = False  # this template takes a message's content as parts, never as a string
        self.engine: str | None = None  # jinja | builtin; None: nothing can render it
        self.problem = ""  # why nothing can
        if template is None:
            self.problem = "the file brings none"
            return
        why_not_jinja = self._try_jinja(template)
        if why_not_jinja is None:
            self.engine = "jinja"
        elif self._apply([ChatMessage("user", "x")], 256)[0] >= 0:
            self.engine = "builtin"
        else:
            self.problem = f"it is not in llama.cpp's list, and {why_not_jinja}"

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """The prompt, ending where the assistant begins, for a tokenizer that adds BOS by the model's rule.

        Raises InvalidRequest when the template cannot render the messages.
        """
        if self.engine == "jinja":
            text = self._by_jinja(messages)
        elif self.engine == "builtin":
            text = self._by_list(messages)
        else:
            raise self._unsupported()
        return text.removeprefix(self._bos)  # many templates write BOS themselves; it must not come twice

    def _unsupported(self) -> InvalidRequest:
        return InvalidRequest(
            f"model '{self._model_id}' has no chat template that can be used: {self.problem}; set chat_template in "
            "its registry entry to a name from llama.cpp's list (e.g. chatml), or use /v1/completions",
            param="messages",
        )

    # -- Jinja

    def _try_jinja(self, template: str) -> str | None:
        """Compile and try it; None, or why it is not for Jinja."""
        if "{{" not in template and "{%" not in template:
            return f"{template[:40]!r} is no Jinja template"
        try:
            # Here and not above: jinja2 takes longer to import than a small model to load, and not every model needs it.
            from modeld.llm import jinja
        except ImportError as error:
            log.debug("no jinja2: %s", error)
            return "jinja2 is not installed (the extra modeld[chat])"
        try:
            self._jinja = jinja, jinja.compile_template(template)
            if _PROBE not in self._run_jinja([ChatMessage("user", _PROBE)]):
                self._in_parts = True
                if _PROBE not in self._run_jinja([ChatMessage("user", _PROBE)]):
                    return "rendered by Jinja it does not show what the user says"
        except jinja.TemplateProblem as error:
            return f"Jinja cannot use it: {error}"
        except InvalidRequest as error:
            log.debug("the chat template does not take a lone user message: %s", error)
        return None

    def _by_jinja(self, messages: Sequence[ChatMessage]) -> str:
        assert self._jinja is not None
        try:
            return self._run_jinja(messages)
        except self._jinja[0].TemplateProblem as error:
            raise InvalidRequest(f"the chat template of model '{self._model_id}' failed: {error}", param="messages") from error

    def _run_jinja(self, messages: Sequence[ChatMessage]) -> str:
        """Raises InvalidRequest for what the template objects to, TemplateProblem for what fails in it."""
        assert self._jinja is not None
        jinja, template = self._jinja
        variables = {
            "messages": [self._message(message) for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
            **self._tokens,
        }
        return str(jinja.render(template, variables))

    def _message(self, message: ChatMessage) -> dict[str, object]:
        content = [{"type": "text", "text": message.content}] if self._in_parts else message.content
        return {"role": message.role, "content": content}

    # -- llama.cpp's list

    def _by_list(self, messages: Sequence[ChatMessage]) -> str:
        if any("\0" in message.content for message in messages):
            raise InvalidRequest("a message has a NUL character, at which llama.cpp would cut it", param="messages")
        n_room = 256 + 2 * sum(len(m.role) + len(m.content.encode()) + 64 for m in messages)
        for _ in range(2):
            n_bytes, text = self._apply(messages, n_room)
            if 0 <= n_bytes <= n_room:
                return text[:n_bytes].decode("utf-8", "replace")
            n_room = n_bytes
        raise InvalidRequest(f"the chat template of model '{self._model_id}' cannot render these messages", param="messages")

    def _apply(self, messages: Sequence[ChatMessage], n_room: int) -> tuple[int, bytes]:
        """llama_chat_apply_template: its result and buffer (not terminated when cut, so the length decides)."""
        array = (C.llama_chat_message * len(messages))(
            *[C.llama_chat_message(message.role.encode(), message.content.encode()) for message in messages]
        )
        buffer = ctypes.create_string_buffer(n_room)
        n_bytes = int(self._lib.llama_chat_apply_template(self._template, array, len(messages), True, buffer, n_room))
        return n_bytes, buffer.raw
