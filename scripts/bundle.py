#!/usr/bin/env python3
"""How does bin/modeld come about? One executable zip file: the package, PyYAML's Python files, libllama.so and its stamp.

    python scripts/bundle.py bin/modeld
    python scripts/bundle.py dist/modeld --libraries build/release

The second packs a set instead, a library for each kind of CPU (modeld/llm/variants.py), of which a start unpacks one. It runs
with any Python >= 3.11 and nothing else. Names are sorted and times fixed: the same inputs give the same bytes.
"""

from __future__ import annotations

import argparse
import io
import marshal
import os
import stat
import struct
import sys
import zipfile
from collections.abc import Iterator
from importlib.util import MAGIC_NUMBER, source_hash
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # it is run as a file

from scripts.licenses import licenses  # noqa: E402

SHEBANG = b"#!/usr/bin/env python3\n"
REFERENCE = (ROOT / "models" / "selftest.json", ROOT / "models" / "demo-calc.gguf")  # what a library is tried with
UNIT = ROOT / "deploy" / "modeld.service"  # which `modeld doctor` compares with what is installed
TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file can say

# Syntax that any Python 3 reads: an old one must reach the message.
MAIN = """\
import sys

if sys.version_info < (3, 11):
    found = "%d.%d (%s)" % (sys.version_info[0], sys.version_info[1], sys.executable)
    sys.exit("modeld needs Python 3.11 or newer; this is Python " + found)

from modeld.app import main

sys.exit(main())
"""


def members(libraries: dict[str, Path]) -> Iterator[tuple[str, bytes]]:
    """Names in the zip file and what they hold; `libraries` by the folder that each is to have in it."""
    yield "__main__.py", MAIN.encode()
    kinds = (".py", ".json", ".html", ".css", ".js", ".svg")  # the last four: the page that browsers get
    sources = [path for path in (ROOT / "modeld").rglob("*") if path.suffix in kinds]
    for path in sources:
        yield path.relative_to(ROOT).as_posix(), path.read_bytes()
    for folder in {path.parent for path in sources if path.suffix == ".py"}:
        if not (folder / "__init__.py").exists():  # zipimport knows no namespace packages
            yield (folder / "__init__.py").relative_to(ROOT).as_posix(), b""
    yaml_folder = Path(yaml.__file__).parent
    for path in yaml_folder.glob("*.py"):  # without the C extension, which fits one Python only
        yield f"yaml/{path.name}", path.read_bytes()
    for place, library in libraries.items():
        yield f"{place}libllama.so", library.read_bytes()
        yield f"{place}libllama.stamp.json", library.with_suffix(".stamp.json").read_bytes()
    for path in REFERENCE:
        yield f"modeld/llm/reference/{path.name}", path.read_bytes()
    yield f"modeld/deploy/{UNIT.name}", UNIT.read_bytes()
    for name, text in licenses().items():
        yield f"licenses/{name}.txt", text


def with_bytecode(files: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """The files, and beside each module what the building Python compiles it to, which halves the time to start.

    Another version of Python finds a magic number that is not its own and compiles the source, as it would without
    (zipimport). Unchecked: the two lie in one file and cannot drift apart.
    """
    for name, data in files:
        yield name, data
        if name.endswith(".py") and name != "__main__.py":
            code = compile(data, name, "exec", dont_inherit=True, optimize=0)
            flags = 0b01  # PEP 552: based on the source's hash, and not checked
            yield f"{name}c", MAGIC_NUMBER + struct.pack("<I", flags) + source_hash(data) + marshal.dumps(code)


def bundle(libraries: dict[str, Path], target: Path) -> None:
    """Writes the file and renames it into place: a daemon that runs from the old one keeps the old one."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        # Sorted before compiling, too: what marshal writes may depend on what the process has compiled before.
        for name, data in sorted(with_bytecode(iter(sorted(members(libraries))))):
            info = zipfile.ZipInfo(name, TIME)
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            # 3.1 instead of 8.5 MB, for 0.025 s more at the start (measured).
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data, compresslevel=9)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    part.write_bytes(SHEBANG + buffer.getvalue())
    part.chmod(0o755)
    part.replace(target)


def main() -> int:
    parser = argparse.ArgumentParser(description="Put modeld, PyYAML and libllama.so into one executable file.")
    parser.add_argument("target", type=Path)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--library", type=Path, default=ROOT / "build" / "libllama.so")
    which.add_argument("--libraries", type=Path, metavar="SET", help="a folder of `make release`: SET/<variant>/libllama.so")
    args = parser.parse_args()
    libraries = {"": args.library}
    if args.libraries is not None:
        libraries = {f"libraries/{path.parent.name}/": path for path in args.libraries.glob("*/libllama.so")}
        if not libraries:
            raise SystemExit(f"there is no <variant>/libllama.so in {args.libraries}; run `make release`")
    bundle(libraries, args.target)
    print(f"{os.fspath(args.target)}: {args.target.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
