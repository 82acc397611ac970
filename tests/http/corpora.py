"""What do gunicorn's test requests say, and what does gunicorn read in them? The files that scripts/fetch_corpora.py brings.

A `.http` file holds a request with its line ends spelled out; the `.py` file beside it says what is expected, as Python
source. That is read as a syntax tree and never run.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.fetch_corpora import LOCK, folder_of
from scripts.sdist import Pin

FOLDER = folder_of(Pin.read(LOCK))

_REQUEST_LINE = re.compile(rb"[!-~]+ [!-~]+ HTTP/1\.([01])\r\n")
_HOST = b"Host: corpus.test\r\n"


@dataclass(frozen=True)
class Case:
    name: str
    raw: bytes
    options: dict[str, Any]  # settings of gunicorn's that the case is made for
    expected: Any  # of a valid case: one request or a list of them; of an invalid one: the name of the error

    @property
    def requests(self) -> list[dict[str, Any]]:
        return self.expected if isinstance(self.expected, list) else [self.expected]


def load(kind: str) -> list[Case]:
    """All cases of "valid" or "invalid"."""
    return [_case(path) for path in sorted((FOLDER / kind).glob("*.http"))]


def _case(path: Path) -> Case:
    options: dict[str, Any] = {}
    names: dict[str, Any] = {}
    for statement in ast.parse(path.with_suffix(".py").read_text()).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            names[statement.targets[0].id] = _value(statement.value, names)
        elif isinstance(statement, ast.Expr) and isinstance(call := statement.value, ast.Call):
            key, value = call.args  # cfg.set(key, value)
            options[ast.literal_eval(key)] = ast.literal_eval(value)
    return Case(path.stem, _unescaped(path.read_bytes()), options, names["request"])


def _value(node: ast.expr, names: dict[str, Any]) -> Any:
    """The value of an expression as the files have them; a name that nothing is assigned to (an error class) is its own value."""
    match node:
        case ast.Name(id=name):
            return names.get(name, name)
        case ast.Call(func=ast.Name(id="uri"), args=[target]):
            return ast.literal_eval(target)
        case ast.Call(func=ast.Attribute(value=inner, attr="decode")):
            return _value(inner, names).decode()
        case ast.Call(func=ast.Attribute(value=inner, attr="encode")):
            return _value(inner, names).encode()
        case ast.Call(func=ast.Attribute(value=inner, attr="replace"), args=[old, new]):
            return _value(inner, names).replace(ast.literal_eval(old), ast.literal_eval(new))
        case ast.Call():
            return None  # Config()
        case ast.List(elts=elements):
            return [_value(element, names) for element in elements]
        case ast.Tuple(elts=elements):
            return tuple(_value(element, names) for element in elements)
        case ast.Dict(keys=keys, values=values):
            return {ast.literal_eval(key): _value(value, names) for key, value in zip(keys, values, strict=True) if key}
        case _:
            return ast.literal_eval(node)


def _unescaped(text: bytes) -> bytes:
    """Line breaks of the file mean nothing; \\r\\n, \\0, \\n, \\t and \\xHH stand for the bytes of a request."""
    raw = text.replace(b"\n", b"").replace(b"\\r\\n", b"\r\n")
    raw = raw.replace(b"\\0", b"\0").replace(b"\\n", b"\n").replace(b"\\t", b"\t")
    raw = re.sub(rb"\\x([0-9A-Fa-f]{2})", lambda match: bytes.fromhex(match[1].decode()), raw)
    assert b"\\" not in raw, "an escape that is not known"
    return raw


# -- what has nothing to do with what a case is about


def with_hosts(raw: bytes, n_requests: int) -> bytes:
    """Its first requests with a Host each where HTTP/1.1 needs one: gunicorn takes requests without, RFC 9112 3.2 does not."""
    at = 0
    for _ in range(n_requests):
        if (line := _REQUEST_LINE.search(raw, at)) is None:
            break
        at = line.end()
        head = raw[at - 2 : raw.find(b"\r\n\r\n", at - 2) + 2]
        if line[1] == b"1" and not re.search(rb"\r\nhost[ \t]*:", head, re.IGNORECASE):
            raw = raw[:at] + _HOST + raw[at:]
    return raw


def without_preamble(raw: bytes) -> bytes:
    """Without the PROXY protocol's line or block, which is no HTTP and which modeld does not ask its proxies for."""
    if raw.startswith(b"PROXY "):
        return raw.partition(b"\r\n")[2]
    if raw.startswith(b"\r\n\r\n\0\r\nQUIT\n"):
        return raw[16 + int.from_bytes(raw[14:16], "big") :]
    return raw


def with_its_length(raw: bytes) -> bytes:
    """One request with the Content-Length of the body that is there."""
    head, _, body = raw.partition(b"\r\n\r\n")
    return re.sub(rb"Content-Length: [0-9]+", b"Content-Length: %d" % len(body), head) + b"\r\n\r\n" + body
