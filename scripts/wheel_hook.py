"""What does a wheel of modeld hold besides Python? The set of `make release`, or the one library of `make build`; the reference.

Such a wheel is for one kind of machine and any Python. Without a library it is a plain one, whose user sets MODELD_LIBRARY.
MODELD_LIBRARIES in the environment names another set than build/release; empty: the one library. MODELD_WHEEL_PLATFORM says for
which hosts a set is (manylinux_2_36_x86_64), of which the building host's platform knows nothing.
"""

from __future__ import annotations

import os
import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class LibraryHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling's signature
        models = Path(self.root) / "models"
        for name in ("selftest.json", "demo-calc.gguf"):  # what a library is tried with
            if (models / name).is_file():
                build_data["force_include"][str(models / name)] = f"modeld/llm/reference/{name}"
        if (
            unit := Path(self.root) / "deploy" / "modeld.service"
        ).is_file():  # which `modeld doctor` compares with what is installed
            build_data["force_include"][str(unit)] = f"modeld/deploy/{unit.name}"
        if not (libraries := self._libraries(Path(self.root))):
            return
        build_data["force_include"] |= libraries | self._licenses(Path(self.root))
        build_data["pure_python"] = False
        platform = os.environ.get("MODELD_WHEEL_PLATFORM") or sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"

    def _licenses(self, root: Path) -> dict[str, str]:
        """A library brings the terms of those who wrote it. Written to files, since hatchling takes nothing else."""
        folder = root / "build" / "licenses"
        folder.mkdir(parents=True, exist_ok=True)
        found = {}
        for name, text in runpy.run_path(str(root / "scripts" / "licenses.py"))["licenses"]().items():
            path = folder / f"{name}.txt"
            path.write_bytes(text)
            found[str(path)] = f"modeld/licenses/{path.name}"
        return found

    def _libraries(self, root: Path) -> dict[str, str]:
        """Files of the tree, and their places in the wheel."""
        names = ("libllama.so", "libllama.stamp.json")
        given = os.environ.get("MODELD_LIBRARIES", "build/release")
        folders = (
            {path.parent: f"modeld/libraries/{path.parent.name}" for path in (root / given).glob(f"*/{names[0]}")}
            if given
            else {}
        )
        if not folders:
            folders = {root / "build": "modeld"}
        return {
            str(folder / name): f"{place}/{name}"
            for folder, place in folders.items()
            if all((folder / name).is_file() for name in names)
            for name in names
        }
