"""Whose terms come with what is handed over? licenses(): each name and its text, from the sources themselves."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
LLAMA = ROOT / "third_party" / "llama.cpp"

GCC_RUNTIME = """\
The libraries libllama.so hold the parts of GCC's run time that they use, libstdc++ and libgcc, Copyright (C) Free Software
Foundation, Inc.: GNU General Public License, version 3 or later, with the GCC Runtime Library Exception, version 3.1. The
exception gives permission to hand over the result of compiling under terms of one's own choice. Sources: gcc.gnu.org.
"""


def licenses() -> dict[str, bytes]:
    """Of everything that is in bin/modeld, the wheels, the package and the bundle, by name."""
    return {
        "modeld": (ROOT / "LICENSE").read_bytes(),
        "llama.cpp": (LLAMA / "LICENSE").read_bytes(),
        "llamafile": _notice_of_llamafile().encode(),
        "YaRN": _notice_of_yarn().encode(),
        "gcc-runtime": GCC_RUNTIME.encode(),
        "PyYAML": pyyaml_license(Path(yaml.__file__).parent),
    }


def pyyaml_license(yaml_folder: Path) -> bytes:
    found = sorted(yaml_folder.parent.glob("[Pp]y[Yy][Aa][Mm][Ll]-*.dist-info/**/LICENSE*"))
    if not found:
        raise SystemExit(f"PyYAML's licence is not beside {yaml_folder}; install it with pip into the environment that runs this")
    return found[0].read_bytes()


def _notice_of_llamafile() -> str:
    """The comment that ggml-cpu/llamafile/sgemm.cpp begins with."""
    lines = (LLAMA / "ggml" / "src" / "ggml-cpu" / "llamafile" / "sgemm.cpp").read_text(encoding="utf-8").splitlines()
    head = lines[: next(index for index, line in enumerate(lines) if not line.startswith("//"))]
    assert "Permission is hereby granted" in " ".join(head), "sgemm.cpp does not begin with its notice"
    return "".join(f"{line.removeprefix('//').removeprefix(' ')}\n" for line in head)


def _notice_of_yarn() -> str:
    """A line of ggml-cpu/ops.cpp, and the text that it stands for."""
    source = (LLAMA / "ggml" / "src" / "ggml-cpu" / "ops.cpp").read_text(encoding="utf-8")
    found = re.search(r"^// MIT licensed\. (Copyright .*)$", source, re.MULTILINE)
    assert found, "ops.cpp has no notice of YaRN"
    terms = (LLAMA / "LICENSE").read_text(encoding="utf-8")
    return re.sub(r"^Copyright .*$", found[1], terms, count=1, flags=re.MULTILINE)
