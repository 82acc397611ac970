"""One target under atheris, in a process of its own: `python -m fuzz.instrumented NAME COMMAND ARGUMENTS...`.

The arguments go to libFuzzer, which starts COMMAND anew where it wants processes of its own (-merge).
"""

from __future__ import annotations

import sys

import atheris


def main() -> None:
    name, command, *arguments = sys.argv[1:]
    with atheris.instrument_imports(include=["modeld"]):
        from fuzz import target

        tested = target.named(name)

    def one(data: bytes) -> None:
        target.run(tested, data)

    atheris.Setup([command, *arguments], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
