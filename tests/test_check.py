"""`modeld check`: a line for each finding, and an exit status."""

from __future__ import annotations

import io
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from modeld.check import check
from tests.test_gguf import build

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    for variable in ("CONFIG", "HOST", "PORT", "LOG_LEVEL", "LOG_FORMAT"):
        monkeypatch.delenv(f"MODELD_{variable}", raising=False)
    (tmp_path / "good.gguf").write_bytes(build())
    (tmp_path / "cut.gguf").write_bytes(build()[:-1])

    def make(text: str) -> Path:
        path = tmp_path / "models.yaml"
        path.write_text(text)
        return path

    return make


def checked(path: Path | None) -> tuple[int, list[str]]:
    out = io.StringIO()
    status = check(path, out)
    return status, out.getvalue().splitlines()


def test_all_well(write: Write) -> None:
    digest = sha256(build()).hexdigest()
    path = write(f"models: [{{id: a, path: good.gguf}}, {{id: b, path: good.gguf, quant: Q9, sha256: {digest}}}]")
    good = path.parent / "good.gguf"
    assert checked(path) == (
        0,
        [
            f"ok a: {good}: llama, F32, 256 bytes, 1 tensors",
            f"ok b: {good}: llama, Q9, 256 bytes, 1 tensors, sha256 as configured",
            f"ok {path}: 2 models, a is loaded at start",
        ],
    )


def test_bad_files_have_a_line_each(write: Write) -> None:
    path = write(
        f"models: [{{id: a, path: good.gguf}}, {{id: b, path: cut.gguf}}, {{id: c, path: none.gguf}},"
        f" {{id: d, path: good.gguf, sha256: {'ab' * 32}}}]"
    )
    here = path.parent
    status, lines = checked(path)
    assert status == 1
    assert lines == [
        f"ok a: {here}/good.gguf: llama, F32, 256 bytes, 1 tensors",
        f"{path}: model b: {here}/cut.gguf: cut off: its tensor data ends at byte 256, the file at 255",
        f"{path}: model c: {here}/none.gguf: No such file or directory",
        f"{path}: model d: {here}/good.gguf: its SHA-256 is {sha256(build()).hexdigest()}, the configuration says {'ab' * 32}",
    ]


def test_a_bad_configuration_has_a_line_for_each_finding(write: Write) -> None:
    path = write("models: [{id: a}]\nserver: {port: x}")
    assert checked(path) == (
        1,
        [f"{path}:1: models[0].path: missing", f"{path}:2: server.port: expected a whole number 0..65535, found 'x'"],
    )


def test_the_file_and_the_environment_are_those_of_serve(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("models: []")
    monkeypatch.setenv("MODELD_CONFIG", str(path))
    assert checked(None) == (0, [f"ok {path}: 0 models, none is loaded at start"])
    monkeypatch.setenv("MODELD_PORT", "x")
    assert checked(None) == (1, ["MODELD_PORT: expected a whole number 0..65535, found 'x'"])
