"""How do messages become a prompt? By the model's own Jinja template, or by llama.cpp's built-in list of templates.

The choice is made once, at load: Jinja where the extra modeld[chat] is installed and the template compiles and shows
what it is given; else llama.cpp's list, if it recognises the template; else nothing, and a request is told why.
"""

from __future__ import annotations

import ctypes
import json
import logging
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from modeld.errors import InvalidRequest
from modeld.llm import libllama as C
from modeld.llm.libllama import Library
from modeld.llm.toolprobe import CallForm, ToolSupport, probe_tools
from modeld.types import ChatMessage, Tool, ToolCall

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
        self._no_tools: list[object] | None = None  # what it gets where there are none
        self.tools = ToolSupport()  # llama.cpp's list knows none
        self.engine: str | None = None  # jinja | builtin; None: nothing can render it
        self.problem = ""  # why nothing can
        if template is None:
            self.problem = "the file brings none"
            return
        why_not_jinja = self._try_jinja(template)
        if why_not_jinja is None:
            self.engine = "jinja"
            self.tools = probe_tools(template, self._tried)
        elif self._apply([ChatMessage("user", "x")], 256)[0] >= 0:
            self.engine = "builtin"
        else:
            self.problem = f"it is not in llama.cpp's list, and {why_not_jinja}"

    def render(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> str:
        """The prompt, ending where the assistant begins, for a tokenizer that adds BOS by the model's rule.

        Raises InvalidRequest when the template cannot render the messages, or does not show the tools.
        """
        if self.engine is None:
            raise self._unsupported()
        self._check_tools(messages, tools)
        text = self._by_jinja(messages, tools) if self.engine == "jinja" else self._by_list(messages)
        return text.removeprefix(self._bos)  # many templates write BOS themselves; it must not come twice

    def _check_tools(self, messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> None:
        """A prompt without what the client gave would be a wrong one."""
        whose = f"the chat template of model '{self._model_id}'"
        if self.engine == "builtin":
            whose += ", which llama.cpp's built-in list renders,"
        if tools and not self.tools.shows_tools:
            raise InvalidRequest(f"{whose} does not show tools to the model", param="tools")
        if self.tools.call_form is None:
            for i, message in enumerate(messages):
                if message.tool_calls or message.role == "tool":
                    param = f"messages[{i}]" + (".tool_calls" if message.tool_calls else "")
                    raise InvalidRequest(f"{param}: {whose} does not show calls of tools and their results", param=param)

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
        except OSError as error:  # the zip file that this runs from was moved or removed
            return f"what renders Jinja cannot be read any more ({error}); restart modeld"
        try:
            self._jinja = jinja, jinja.compile_template(template)
        except jinja.TemplateProblem as error:
            return f"Jinja cannot use it: {error}"
        problem = self._try_user()
        if problem is not None and "tools" in template:
            self._no_tools = []  # Hermes' goes through the tools before it asks whether there are any
            problem = problem if self._try_user() else None
        return problem

    def _try_user(self) -> str | None:
        """Render what a user says; None, or why that does not do."""
        assert self._jinja is not None
        user = [ChatMessage("user", _PROBE)]
        try:
            for in_parts in (False, True):
                self._in_parts = in_parts
                if _PROBE in self._run_jinja(user, (), CallForm()):
                    return None
        except self._jinja[0].TemplateProblem as error:
            return f"Jinja cannot use it: {error}"
        except InvalidRequest as error:
            log.debug("the chat template does not take a lone user message: %s", error)
            return None
        return "rendered by Jinja it does not show what the user says"

    def _tried(self, messages: Sequence[ChatMessage], tools: Sequence[Tool], form: CallForm) -> str:
        """For the probe: nothing, where the template does not take them."""
        assert self._jinja is not None
        try:
            return self._run_jinja(messages, tools, form)
        except (self._jinja[0].TemplateProblem, InvalidRequest) as error:
            log.debug("the chat template does not take the tools that it was tried with: %s", error)
            return ""

    def _by_jinja(self, messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> str:
        assert self._jinja is not None
        try:
            return self._run_jinja(messages, tools, self.tools.call_form or CallForm())
        except self._jinja[0].TemplateProblem as error:
            raise InvalidRequest(f"the chat template of model '{self._model_id}' failed: {error}", param="messages") from error

    def _run_jinja(self, messages: Sequence[ChatMessage], tools: Sequence[Tool], form: CallForm) -> str:
        """Raises InvalidRequest for what the template objects to, TemplateProblem for what fails in it."""
        assert self._jinja is not None
        jinja, template = self._jinja
        variables = {
            "messages": [self._message(message, form) for message in messages],
            "tools": [_tool(tool) for tool in tools] or self._no_tools,
            "documents": None,
            "add_generation_prompt": True,
            **self._tokens,
        }
        return str(jinja.render(template, variables))

    def _message(self, message: ChatMessage, form: CallForm) -> dict[str, object]:
        """As Hugging Face gives it: what a message does not have is not there, for templates ask whether it is."""
        content: object = message.content
        if message.content is None:
            content = None if form.null_content else ""
        elif self._in_parts:
            content = [{"type": "text", "text": message.content}]
        members: dict[str, object] = {"role": message.role, "content": content}
        if message.tool_calls:
            members["tool_calls"] = [_call(call, form) for call in message.tool_calls]
        if message.tool_call_id is not None:
            members["tool_call_id"] = message.tool_call_id
        if message.name is not None:
            members["name"] = message.name
        return members

    # -- llama.cpp's list

    def _by_list(self, messages: Sequence[ChatMessage]) -> str:
        if any("\0" in str(message.content) for message in messages):
            raise InvalidRequest("a message has a NUL character, at which llama.cpp would cut it", param="messages")
        n_room = 256 + 2 * sum(len(m.role) + len(_text(m)) + 64 for m in messages)
        for _ in range(2):
            n_bytes, text = self._apply(messages, n_room)
            if 0 <= n_bytes <= n_room:
                return text[:n_bytes].decode("utf-8", "replace")
            n_room = n_bytes
        raise InvalidRequest(f"the chat template of model '{self._model_id}' cannot render these messages", param="messages")

    def _apply(self, messages: Sequence[ChatMessage], n_room: int) -> tuple[int, bytes]:
        """llama_chat_apply_template: its result and buffer (not terminated when cut, so the length decides)."""
        array = (C.llama_chat_message * len(messages))(
            *[C.llama_chat_message(message.role.encode(), _text(message)) for message in messages]
        )
        buffer = ctypes.create_string_buffer(n_room)
        n_bytes = int(self._lib.llama_chat_apply_template(self._template, array, len(messages), True, buffer, n_room))
        return n_bytes, buffer.raw


def _text(message: ChatMessage) -> bytes:
    return (message.content or "").encode()


def _tool(tool: Tool) -> dict[str, object]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def _call(call: ToolCall, form: CallForm) -> dict[str, object]:
    arguments: object = call.arguments
    if isinstance(arguments, dict) and not form.object_arguments:
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}
