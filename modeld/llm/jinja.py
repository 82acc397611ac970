"""How is a model's own chat template rendered? Jinja in a sandbox with caps; the only module that imports jinja2.

Imported by chat.py when a model brings a template, and fails there with ImportError where the extra modeld[chat] is
missing. The environment is the one that Hugging Face's apply_chat_template gives templates.

A template is code from a file that nobody vouched for. The sandbox keeps it away from Python's internals and from changing
what it is given. Bounded are its size, the turns of all loops and calls together, the text it makes (also what it throws
away again), and the time, looked at with each turn. Whatever makes much out of little in one step (repetition, powers,
padding, formats) is bounded by operand or missing. Not bounded: a single step over values that the template has nested
into each other, such as comparing them; Python offers no way to end it, and the tokenize thread stays busy.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any, NoReturn

from jinja2 import Template, nodes, pass_context, pass_environment
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from modeld.errors import InvalidRequest, ModeldError

MAX_TEMPLATE_CHARS = 65536
MAX_TEXT_CHARS = 32 * 1024 * 1024  # of all text (and items of lists) that one rendering makes; a body holds 1 MiB
MAX_STEPS = 500_000
MAX_RENDER_S = 5.0
MAX_RANGE = 10_000
MAX_ITEMS = 100_000  # of a list or string that `*` or `+` makes
MAX_INT_BITS = 4096
MAX_INDENT = 64


class TemplateProblem(Exception):
    """A template that cannot be used; the message says why, without naming the model."""


@lru_cache(maxsize=8)
def compile_template(source: str) -> Template:
    """Remembered: a switch back and forth compiles once. Raises TemplateProblem."""
    if len(source) > MAX_TEMPLATE_CHARS:
        raise TemplateProblem(f"it has {len(source)} characters, {MAX_TEMPLATE_CHARS} are allowed")
    try:
        return _environment().from_string(source)
    except Exception as error:  # whatever a stranger's text makes of Jinja's or Python's compiler
        raise TemplateProblem(f"it does not compile: {_said(error)}") from error


def render(template: Template, variables: Mapping[str, object]) -> str:
    """The text. Any thread; the budget is the call's own.

    Raises TemplateProblem, or InvalidRequest with what the template itself objects to (raise_exception).
    """
    token = _BUDGET.set(_Budget())
    try:
        return template.render(variables)
    except ModeldError:
        raise
    except Exception as error:  # a stranger's code may raise anything
        raise TemplateProblem(_said(error)) from error
    finally:
        _BUDGET.reset(token)


def _said(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    return text if len(text) <= 300 else text[:300] + "..."


# -- bounds


class _TooMuch(Exception):
    """One of the caps was reached."""


class _Budget:
    """What one rendering has used."""

    __slots__ = ("_deadline", "_n_chars", "_n_steps")

    def __init__(self) -> None:
        self._deadline = time.monotonic() + MAX_RENDER_S
        self._n_chars = 0
        self._n_steps = 0

    def step(self, n_chars: int = 0) -> None:
        """Count one turn of a loop or one call, and the text it makes."""
        self._n_steps += 1
        self._n_chars += n_chars
        if self._n_steps > MAX_STEPS:
            raise _TooMuch(f"more than {MAX_STEPS} steps")
        if self._n_chars > MAX_TEXT_CHARS:
            raise _TooMuch(f"more than {MAX_TEXT_CHARS} characters of text")
        if time.monotonic() > self._deadline:
            raise _TooMuch(f"it runs for more than {MAX_RENDER_S:g} s")


_BUDGET: ContextVar[_Budget] = ContextVar("_BUDGET")


def _text(value: object) -> str:
    """str(value), counted before it is made."""
    budget = _BUDGET.get()
    if isinstance(value, str):
        budget.step(len(value))
        return value
    todo = [value]
    while todo:  # a list that holds one list twice, and so on, is short in memory and endless as text
        item = todo.pop()
        budget.step(len(item) if isinstance(item, str) else 8)
        if isinstance(item, Mapping):
            todo += (*item.keys(), *item.values())
        elif isinstance(item, (list, tuple, set, frozenset)):
            todo += item
    return str(value)


def _made(value: Any) -> Any:
    """The value of a step, its size counted: many middling strings and lists are as bad as a large one."""
    if isinstance(value, (str, list, tuple)):
        _BUDGET.get().step(len(value))
    return value


class _BoundedCode(NodeTransformer):
    """Puts the counting into a parsed template: a step into each loop and macro, and `~` by a counted function."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        return self._count(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._count(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        return self._count(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        concat = nodes.EnvironmentAttribute("joined")
        return nodes.Call(concat, node.nodes, [], None, None, lineno=node.lineno)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        return nodes.Call(nodes.EnvironmentAttribute("made"), [node], [], None, None, lineno=node.lineno)

    def _count(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        # Text that stands in the template, which finalize does not see; an inner loop's is counted twice, which is enough.
        n_chars = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        count = nodes.Call(nodes.EnvironmentAttribute("count"), [nodes.Const(n_chars)], [], None, None, lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(count, lineno=node.lineno))
        return node


class _Generation(Extension):
    """{% generation %}: marks the assistant's words for training; their text is what counts here."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        _BoundedCode().visit(template)
        template.set_environment(self)
        return template

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in _GROWING_STR_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"access to attribute {attribute!r} of {type(obj).__name__!r} is not allowed")

    def wrap_str_format(self, value: Any) -> None:
        """No way round is_safe_attribute, which refuses str.format: a width makes much text out of little."""

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - jinja2's own names
        _BUDGET.get().step()
        text = getattr(__obj, "__self__", None)
        if isinstance(text, str):
            name = getattr(__obj, "__name__", "")
            for ours in ("_loop_vars", "_block_vars"):  # Context.call takes them out again; within loops there are some
                kwargs.pop(ours, None)
            if name == "replace":
                return _replace(text, *args, **kwargs)
            if name == "join":
                return _joined(text, *args)
        return _made(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _BUDGET.get().step()
        _BINOP_CHECKS[operator](left, right)
        return _made(super().call_binop(context, operator, left, right))

    # -- called from compiled templates

    def count(self, n_chars: int) -> None:
        _BUDGET.get().step(n_chars)

    def made(self, value: object) -> object:
        return value  # counted by call

    def joined(self, *values: object) -> str:
        return _joined("", values)


def _check_plus(left: object, right: object) -> None:
    if isinstance(left, str) or isinstance(right, str):
        return  # at most doubled, and counted when it is made
    if isinstance(left, Sequence) and isinstance(right, Sequence) and len(left) + len(right) > MAX_ITEMS:
        raise _TooMuch(f"a list of more than {MAX_ITEMS} items")


def _check_times(left: object, right: object) -> None:
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > MAX_INT_BITS:
            raise _TooMuch(f"a number of more than {MAX_INT_BITS} bits")
        return
    for items, n in ((left, right), (right, left)):
        if isinstance(items, Sequence) and isinstance(n, int) and len(items) * n > MAX_ITEMS:
            raise _TooMuch(f"a repetition of more than {MAX_ITEMS} items")


def _check_power(left: object, right: object) -> None:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > MAX_INT_BITS:
        raise _TooMuch(f"a number of more than {MAX_INT_BITS} bits")


def _check_percent(left: object, _right: object) -> None:
    if isinstance(left, str):
        raise SecurityError("formatting by % is not allowed in chat templates")


_BINOP_CHECKS: Mapping[str, Callable[[object, object], None]] = {
    "+": _check_plus,
    "*": _check_times,
    "**": _check_power,
    "%": _check_percent,
}
_GROWING_STR_METHODS = frozenset("format format_map center ljust rjust zfill expandtabs translate maketrans encode".split())


# -- what templates may call


@lru_cache(maxsize=1)
def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[loopcontrols, _Generation],
        finalize=_finalize,
        optimized=False,  # nothing is computed while a template is compiled: there is no budget yet
    )
    environment.filters = {name: _counted(environment.filters[name]) for name in _FILTERS} | {
        "indent": _indent,
        "join": _join,
        "replace": _replace_filter,
        "string": _text,
        "tojson": _tojson,
    }
    environment.globals = {name: environment.globals[name] for name in ("dict", "namespace", "cycler", "joiner")} | {
        "range": _range,
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
    }
    return environment


def _counted(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)  # with the marks by which Jinja knows what to pass
    def counted(*args: Any, **kwargs: Any) -> Any:
        return _made(function(*args, **kwargs))

    return counted


# Those of Jinja's that make at most what they are given.
_FILTERS = (
    "abs capitalize count d default dictsort e escape first float groupby int items last length list lower map max min "
    "reject rejectattr reverse round safe select selectattr sort title trim unique upper".split()
)


@pass_context  # what needs the context is not called at compile time
def _finalize(_context: Context, value: object) -> str:
    return _text(value)


def _range(*bounds: int) -> range:
    numbers = range(*bounds)
    if len(numbers) > MAX_RANGE:
        raise _TooMuch(f"a range of {len(numbers)} numbers, {MAX_RANGE} are allowed")
    return numbers


def _raise_exception(message: object) -> NoReturn:
    raise InvalidRequest(f"the model's chat template refuses these messages: {_text(message)[:1000]}", param="messages")


def _strftime_now(form: str) -> str:
    if len(form) > 100:
        raise _TooMuch("a time format of more than 100 characters")
    return datetime.now().strftime(form)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As Hugging Face: what JSON needs is escaped, what HTML needs is not."""
    _check_indent(indent)
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return _joined("", encoder.iterencode(value))


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    _check_indent(width if isinstance(width, int) else len(width))
    margin = width if isinstance(width, str) else " " * width
    lines = _text(text).split("\n")
    indented = [margin + line if line or blank else line for line in lines]
    if not first:
        indented[0] = lines[0]
    return _joined("\n", indented)


def _check_indent(width: int | None) -> None:
    if width is not None and width > MAX_INDENT:
        raise _TooMuch(f"an indent of {width}, {MAX_INDENT} are allowed")


@pass_environment
def _join(environment: _Environment, values: Iterable[object], d: object = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        values = map(make_attrgetter(environment, attribute), values)
    return _joined(_text(d), values)


def _joined(separator: str, values: Iterable[object]) -> str:
    budget = _BUDGET.get()
    parts = []
    for value in values:
        budget.step(len(separator))
        parts.append(_text(value))
    return str.join(separator, parts)


def _replace_filter(text: object, old: str, new: str, count: int | None = None) -> str:
    return _replace(_text(text), old, new, -1 if count is None else count)


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    old, new = _text(old), _text(new)
    n_found = text.count(old)
    _BUDGET.get().step(len(text) + len(new) * (n_found if count < 0 else min(count, n_found)))
    return str.replace(text, old, new, count)
