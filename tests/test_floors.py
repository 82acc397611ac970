"""The house's floors: who may import whom, and which standard modules stay in which room (design: house.md, "Floors")."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "modeld"

# What each room may import of modeld, besides itself. The longest name that fits counts; a trailing dot is a package.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    # 0
    "modeld.errors": (),
    "modeld.types": ("modeld.policy",),
    "modeld.heartbeat": (),
    "modeld.threads": ("modeld.heartbeat",),
    "modeld.addresses": (),
    "modeld.printable": (),
    "modeld.descriptors": (),
    "modeld.notify": ("modeld.types",),
    "modeld.watchdog": ("modeld.heartbeat", "modeld.threads"),
    "modeld.activation": ("modeld.errors",),
    "modeld.policy": (),
    "modeld.clientlimits": (),
    # 1
    "modeld.events": ("modeld.errors", "modeld.types"),
    "modeld.privatefile": ("modeld.errors", "modeld.printable"),
    "modeld.yamltree": ("modeld.errors", "modeld.printable"),
    "modeld.settings": ("modeld.addresses", "modeld.policy", "modeld.yamltree"),
    "modeld.keys": ("modeld.errors", "modeld.types", "modeld.privatefile"),
    "modeld.config": (
        "modeld.errors",
        "modeld.types",
        "modeld.policy",
        "modeld.clientlimits",
        "modeld.printable",
        "modeld.yamltree",
        "modeld.settings",
        "modeld.keys",
    ),
    "modeld.llm.adapter": ("modeld.errors", "modeld.types"),
    "modeld.metrics": ("modeld.types",),
    "modeld.process": ("modeld.metrics",),
    "modeld.logwriter": ("modeld.threads",),
    "modeld.logs": ("modeld.logwriter",),
    # 2
    "modeld.llm.": ("modeld.errors", "modeld.types", "modeld.llm."),
    "modeld.engine.": (
        "modeld.errors",
        "modeld.types",
        "modeld.heartbeat",
        "modeld.threads",
        "modeld.metrics",
        "modeld.llm.adapter",
        "modeld.engine.",
    ),
    # 3
    "modeld.manager.": (
        "modeld.errors",
        "modeld.types",
        "modeld.policy",
        "modeld.heartbeat",
        "modeld.threads",
        "modeld.metrics",
        "modeld.events",
        "modeld.manager.",
    ),
    # 4
    "modeld.httpapi.": (
        "modeld.errors",
        "modeld.types",
        "modeld.policy",
        "modeld.clientlimits",
        "modeld.heartbeat",
        "modeld.threads",
        "modeld.metrics",
        "modeld.events",
        "modeld.httpapi.",
    ),
    # 5
    "modeld.app": ("modeld.exits", "modeld.outputs", "modeld.arguments"),
    "modeld.cli.page": (),
    "modeld.cli.commandtree": (),
    "modeld.cli.manual": (
        "modeld.arguments",
        "modeld.exits",
        "modeld.outputs",
        "modeld.config",
        "modeld.settings",
        "modeld.cli.page",
        "modeld.cli.commandtree",
    ),
    "modeld.cli.completion": ("modeld.arguments", "modeld.exits", "modeld.outputs", "modeld.cli.commandtree"),
    "modeld.arguments": ("modeld.addresses", "modeld.cli.flags", "modeld.doctor.network", "modeld.llm.libllama"),
    # The client commands: another process than the daemon, mostly on another host. They know its HTTP and nothing of its inside.
    "modeld.cli.": (
        "modeld.errors",
        "modeld.exits",
        "modeld.outputs",
        "modeld.printable",
        "modeld.privatefile",
        "modeld.yamltree",
        "modeld.cli.",
    ),
    "modeld.cli.flags": (),
    "modeld.exits": (),
    "modeld.outputs": ("modeld.exits",),
    "modeld.serving": ("modeld.",),
    "modeld.daemon": ("modeld.",),
    "modeld.signals": ("modeld.threads",),
    "modeld.hosting": ("modeld.",),
    "modeld.reloader": ("modeld.",),
    "modeld.check": ("modeld.",),
    "modeld.doctor.": ("modeld.",),
    "modeld.reload": (
        "modeld.config",
        "modeld.keys",
        "modeld.errors",
        "modeld.types",
        "modeld.policy",
        "modeld.clientlimits",
        "modeld.heartbeat",
        "modeld.threads",
    ),
    "modeld.__main__": ("modeld.app",),
    "modeld": (),
}

# Modules that stay in one place, with the rooms that may import them.
STAYS_IN: dict[str, tuple[str, ...]] = {
    "ctypes": ("modeld.llm.",),
    "http.server": ("modeld.httpapi.",),
    # activation: what systemd hands over; the doctor asks a daemon, and whether an address is free;
    # cli.connection: http.client alone cannot connect to a Unix socket.
    "socket": ("modeld.httpapi.", "modeld.notify", "modeld.activation", "modeld.doctor.network", "modeld.cli.connection"),
    "socketserver": ("modeld.httpapi.",),
    "yaml": ("modeld.yamltree",),
    "jinja2": ("modeld.llm.jinja",),
}

WITHOUT_THREADS = (
    "modeld.engine.scheduler",
    "modeld.engine.sequence",
    "modeld.httpapi.schema",
    "modeld.httpapi.sse",
    "modeld.httpapi.router",
)

# In llm/ only where C calls back or objects are freed from any thread, where two threads fill one cache, and where the engines
# of two models take turns to compute.
LLM_WITH_LOCKS = ("modeld.llm.backend", "modeld.llm.handles", "modeld.llm.pool", "modeld.llm.vocab")

FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = ("modeld", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def exists(module: str) -> bool:
    path = PACKAGE.parent.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def imports(source: str) -> Iterator[str]:
    """Every module that is imported, wherever the statement stands. `from a import b` is a.b where that is a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = exists(inner) if node.module.startswith("modeld") else inner in STAYS_IN
                yield inner if is_module else node.module


def within(module: str, rooms: tuple[str, ...]) -> bool:
    return any(module == room or (room.endswith(".") and f"{module}.".startswith(room)) for room in rooms)


def allowed(module: str) -> tuple[str, ...]:
    fitting = [room for room in MAY_IMPORT if within(module, (room,))]
    assert fitting, f"{module} stands on no floor: name it in MAY_IMPORT"
    return MAY_IMPORT[max(fitting, key=len)]


def faults(module: str, source: str) -> list[str]:
    found = []
    for name in imports(source):
        top = name.partition(".")[0]
        if top == "modeld":
            if name not in (module, "modeld") and not within(name, allowed(module)):
                found.append(f"{module} imports {name}")
        elif top not in ("yaml", "jinja2") and top not in sys.stdlib_module_names:
            found.append(f"{module} imports {name}, which is neither the standard library, PyYAML nor jinja2")
        for kept, rooms in STAYS_IN.items():
            if within(name, (kept, f"{kept}.")) and not within(module, rooms):
                found.append(f"{module} imports {name}, which stays in {', '.join(rooms)}")
        if name == "threading":
            if module in WITHOUT_THREADS:
                found.append(f"{module} imports threading")
            if within(module, ("modeld.llm.",)) and module not in LLM_WITH_LOCKS:
                found.append(f"{module} imports threading; llm/ knows no threads")
    return found


@pytest.mark.parametrize("path", FILES, ids=[module_of(path) for path in FILES])
def test_imports_respect_the_floors(path: Path) -> None:
    assert faults(module_of(path), path.read_text()) == []


@pytest.mark.parametrize("path", FILES, ids=[module_of(path) for path in FILES])
def test_every_module_says_what_it_answers(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, f"{path} has no docstring"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("modeld.types", "import modeld.errors"),
        ("modeld.events", "from modeld.manager import state"),
        ("modeld.engine.engine", "from modeld.llm.runtime import LlamaRuntime"),
        ("modeld.engine.engine", "from modeld.llm import runtime"),
        ("modeld.llm.model", "from modeld.engine.stream import TokenStream"),
        ("modeld.llm.adapter", "import modeld.llm.handles"),
        ("modeld.manager.manager", "from modeld.llm.adapter import LoadProgress"),
        ("modeld.manager.manager", "def f():\n    from modeld import config"),
        ("modeld.httpapi.control", "from modeld.manager.manager import Manager"),
        ("modeld.engine.engine", "import ctypes"),
        ("modeld.engine.engine", "from ctypes import util"),
        ("modeld.manager.manager", "import socket"),
        ("modeld.app", "from http import server"),
        ("modeld.cli.status", "import socket"),
        ("modeld.cli.status", "from modeld.httpapi import schema"),
        ("modeld.cli.target", "from modeld.config import load_config"),
        ("modeld.cli.flags", "import modeld.cli.connection"),
        ("modeld.config", "import yaml"),
        ("modeld.httpapi.sse", "import threading"),
        ("modeld.llm.sampler", "from threading import Lock"),
        ("modeld.llm.sampler", "import numpy"),
        ("modeld.llm.chat", "from jinja2 import Environment"),
    ],
)
def test_the_rules_catch(module: str, source: str) -> None:
    assert faults(module, source)
