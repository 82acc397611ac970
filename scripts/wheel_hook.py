"""What does a wheel of modeld hold besides Python? build/libllama.so and its stamp, where `make build` has made them.

Such a wheel is for one kind of machine and any Python. Without a library it is a plain one, whose user sets MODELD_LIBRARY.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class LibraryHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling's signature
        built = Path(self.root) / "build"
        names = ("libllama.so", "libllama.stamp.json")
        if not all((built / name).is_file() for name in names):
            return
        build_data["force_include"] |= {str(built / name): f"modeld/{name}" for name in names}
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
