"""What must a sound library compute? Reference: a small model, tokens, and the logits after the last of them.

It comes with every modeld: in models/ of the checkout; in the package, where a wheel or bin/modeld was built from that.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeld.errors import LibraryMismatch
from modeld.llm import bundle

FILE = "selftest.json"
FOLDER = "modeld/llm/reference"  # in a wheel and in the zip file; filled when they are built


@dataclass(frozen=True, slots=True)
class Reference:
    name: str  # of the model's file
    model: Path
    tokens: list[int]
    logits: list[float]  # after the last token, one for each entry of the vocabulary
    max_abs_diff: float

    @classmethod
    def read(cls, path: Path) -> Reference:
        """Of a JSON file with the model beside it."""
        return _parsed(path.read_bytes(), path.parent)


@contextmanager
def stored() -> Iterator[Reference]:
    """The one that comes with this modeld. `model` can be opened by this process, and only within the `with`.

    From the zip file the model becomes a file without a name (1.7 MB: 12 ms). Raises LibraryMismatch where there is none.
    """
    archive = bundle.zip_file()
    if archive is None:
        folders = (bundle.PACKAGE / "llm" / "reference", bundle.PACKAGE.parent / "models")
        folder = next((folder for folder in folders if (folder / FILE).is_file()), None)
        if folder is None:
            raise LibraryMismatch(f"there is no {FILE} in {folders[0]} or {folders[1]}, so no library can be tried; install anew")
        yield Reference.read(folder / FILE)
        return
    with zipfile.ZipFile(archive) as file:
        try:
            text = file.read(f"{FOLDER}/{FILE}")
            name = _parsed(text, Path()).name
            with file.open(f"{FOLDER}/{name}") as source:
                descriptor, _ = bundle.copy_to_nameless_file(source)
        except KeyError as error:
            raise LibraryMismatch(f"{archive} is incomplete: {error.args[0]}; build it anew") from None
    try:
        read = _parsed(text, Path())
        yield Reference(name, Path(f"/proc/self/fd/{descriptor}"), read.tokens, read.logits, read.max_abs_diff)
    finally:
        os.close(descriptor)


def _parsed(text: bytes, folder: Path) -> Reference:
    values: dict[str, Any] = json.loads(text)
    model = folder / values["model"]
    return Reference(model.name, model, values["tokens"], values["logits"], values["max_abs_diff"])
