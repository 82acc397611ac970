"""What runs here? Versions of modeld and of what it stands on; whether this is a container."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata, util

from modeld import __version__
from modeld.doctor import procfs
from modeld.doctor.procfs import Roots
from modeld.doctor.report import Finding, note, ok, problem
from modeld.llm import interpreter
from modeld.llm.bundle import zip_file
from modeld.llm.libllama import LLAMA_COMMIT

CONTAINERS = {".dockerenv": "docker", "run/.containerenv": "podman"}


def versions(roots: Roots) -> Iterator[Finding]:
    where = zip_file()
    yield ok(
        "versions",
        f"modeld {__version__} for llama.cpp {LLAMA_COMMIT}, "
        f"{f'one file, {where}' if where else 'an installed package or a checkout'}; "
        f"Python {platform.python_version()} ({interpreter.python()})",
        modeld=__version__,
        llama_commit=LLAMA_COMMIT,
        python=platform.python_version(),
        executable=interpreter.python(),
        file=str(where) if where else None,
    )
    system = procfs.fields_of_shell(roots.root / "etc" / "os-release") or procfs.fields_of_shell(
        roots.root / "usr" / "lib" / "os-release"
    )
    kernel = procfs.text(roots.proc / "sys" / "kernel" / "osrelease") or platform.release()
    distribution = system.get("PRETTY_NAME") or "an unknown distribution"
    libc = c_library()
    yield ok(
        "system",
        f"{distribution}, Linux {kernel}, {libc or 'no glibc'}, {platform.machine()}",
        distribution=distribution,
        kernel=kernel,
        libc=libc,
        machine=platform.machine(),
    )
    yaml = version_of("yaml", "PyYAML")
    if yaml is None:
        yield problem(
            "yaml_missing",
            "Python finds no PyYAML, without which no configuration can be read",
            "install it (apt-get install python3-yaml, or pip install PyYAML), or run bin/modeld, which holds it",
        )
    else:
        yield ok("yaml", f"PyYAML {yaml}", version=yaml)
    jinja = version_of("jinja2", "Jinja2")
    if jinja is None:
        yield note(
            "jinja_missing",
            "no jinja2: models' own chat templates are not rendered, llama.cpp's list of known templates serves",
            "where a model's template is none of these, install jinja2 >= 3.1.6 for this Python (modeld[chat])",
        )
    else:
        yield ok("jinja", f"jinja2 {jinja}: models' own chat templates are rendered", version=jinja)
    if (container := container_of(roots, os.environ)) is not None:
        yield note(
            "container",
            f"this is a container ({container}): what is said of memory, cores and files holds for its inside",
            container=container,
        )


def version_of(module: str, distribution: str) -> str | None:
    """Of a package that can be imported; `unknown` where it does not say. It is not imported."""
    if module in sys.modules:
        return str(getattr(sys.modules[module], "__version__", "unknown"))
    if util.find_spec(module) is None:
        return None
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # inside bin/modeld nothing but the modules is packed
        return "unknown" if module != "yaml" else str(getattr(__import__(module), "__version__", "unknown"))


def c_library() -> str | None:
    """`glibc 2.36`; None: another one."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, OSError, ValueError):
        return None


def container_of(roots: Roots, environ: Mapping[str, str]) -> str | None:
    for file, kind in CONTAINERS.items():
        if (roots.root / file).exists():
            return kind
    if "KUBERNETES_SERVICE_HOST" in environ:
        return "kubernetes"
    for word in (procfs.text(roots.proc / "1" / "environ") or "").split("\0"):
        if word.startswith("container="):
            return word.removeprefix("container=")[:40] or "unknown"
    return None
