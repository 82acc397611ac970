#!/usr/bin/env python3
"""How does a variant's library get into a release? It is tested, stamped, and only then put where the release is packed from.

    python -m scripts.variant build/variants/x86-64-v3 build/release/x86-64-v3 --llama-h ... --layout-check ...

A library that the building host's CPU cannot run is not released in silence: that is an error, unless --untested says that
it may. Its stamp then says so. No host uses it untested all the same: the choice at start is made by the same decode.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from modeld.llm import selftest, stamp
from modeld.llm.bundle import LIBRARY, STAMP


def release(built: Path, target: Path, *, llama_h: Path, layout_check: Path, untested: bool) -> str:
    """The line to print. Raises SelfTestError."""
    lines = (built / "libllama.flags").read_text(encoding="utf-8").splitlines()
    flags = dict(line.split("=", 1) for line in lines if line)
    lacking = sorted(set(flags["needs"].split()) - set(stamp.cpu_flags()))
    if lacking and not untested:
        raise selftest.SelfTestError(
            f"{built / LIBRARY} was built, but this host cannot test it: its CPU lacks {', '.join(lacking)}. Release on a host"
            ' that has them, leave the variant out (make release VARIANTS="x86-64-v3 x86-64-v2"), or let the stamp say that it'
            " was not tested (make release UNTESTED=1)"
        )
    said = f"{target / LIBRARY}: not tested, this host lacks {', '.join(lacking)}"
    if not lacking:
        said = selftest.check_apart(built / LIBRARY, selftest.REFERENCE)
    flags["self_test"] = "not run" if lacking else "passed"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as made:
        library = Path(shutil.copy(built / LIBRARY, made))
        stamp.write(library, llama_h=llama_h, layout_check=layout_check, flags=flags)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for name in (LIBRARY, STAMP):
            (Path(made) / name).rename(target / name)
    return f"{said}; stamped"


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts.variant", description="Test, stamp and release a variant's library.")
    parser.add_argument("built", type=Path, help="where CMake left libllama.so and libllama.flags")
    parser.add_argument("target", type=Path, help="the variant's folder in the set")
    parser.add_argument("--llama-h", type=Path, required=True)
    parser.add_argument("--layout-check", type=Path, required=True)
    parser.add_argument("--untested", action="store_true", help="a library that this host cannot run is released as well")
    args = parser.parse_args()
    try:
        print(
            release(args.built, args.target, llama_h=args.llama_h, layout_check=args.layout_check, untested=args.untested),
            flush=True,
        )
    except selftest.SelfTestError as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
