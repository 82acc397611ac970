"""`modeld check` and `modeld verify`: a line for each finding, and an exit status."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from modeld.app import main
from modeld.check import check, verify
from tests.test_gguf import build

SIZE = len(build())
SOUND = f"llama, F32, {SIZE} bytes, 1 tensors, trained on 512 tokens, about 2 MiB when loaded"

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
            f"ok a: {good}: {SOUND}",
            f"ok b: {good}: {SOUND.replace('F32', 'Q9')}, sha256 as configured",
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
        f"ok a: {here}/good.gguf: {SOUND}",
        f"{path}: model b: {here}/cut.gguf: cut off: its tensor data ends at byte {SIZE}, the file at {SIZE - 1}",
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


def test_an_address_that_other_hosts_reach_needs_keys(write: Write) -> None:
    path = write("models: []\nserver: {host: 0.0.0.0}")
    status, lines = checked(path)
    assert status == 1
    assert lines[0].startswith("server.host: 0.0.0.0 can be reached from other hosts, and there are no keys")
    assert verified(path) == (0, [])  # that looks at models alone
    path = write("models: []\nserver: {host: 0.0.0.0, insecure: true}")
    assert checked(path) == (
        0,
        [
            f"insecure {path}: whoever reaches 0.0.0.0 may use and switch models without a key",
            f"ok {path}: 0 models, none is loaded at start",
        ],
    )


# -- verify -----------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def verified(path: Path | None, *ids: str, err: io.StringIO | None = None) -> tuple[int, list[str]]:
    out = io.StringIO()
    status = verify(path, ids, out, err or io.StringIO())
    return status, out.getvalue().splitlines()


GOOD = sha256(build()).hexdigest()


def test_verify_compares_digests_and_offers_missing_ones(write: Write) -> None:
    path = write(f"models: [{{id: a, path: good.gguf}}, {{id: b, path: good.gguf, sha256: {GOOD.upper()}}}]")
    assert verified(path) == (0, [f"new a: sha256: {GOOD}", f"ok b: sha256 {GOOD}"])
    assert verified(path, "b") == (0, [f"ok b: sha256 {GOOD}"])


def test_verify_names_what_is_bad(write: Write) -> None:
    path = write(f"models: [{{id: a, path: good.gguf, sha256: {'ab' * 32}}}, {{id: b, path: none.gguf}}]")
    here = path.parent
    assert verified(path, "a", "b", "c") == (
        1,
        [
            f"bad c: no model of this id is registered in {path}",
            f"bad a: {here}/good.gguf: its SHA-256 is {GOOD}, the configuration says {'ab' * 32}",
            f"bad b: {here}/none.gguf: cannot be read: No such file or directory",
        ],
    )


def test_verify_tells_what_is_wrong_with_the_configuration(write: Write) -> None:
    status, lines = verified(write("models: [{id: a}]"))
    assert (status, lines) == (1, [f"{write('models: [{id: a}]')}:1: models[0].path: missing"])


def test_verify_shows_progress_on_a_terminal_only(write: Write) -> None:
    path = write("models: [{id: big, path: big.gguf}]")
    (path.parent / "big.gguf").write_bytes(bytes(5 << 20))
    silent, terminal = io.StringIO(), Terminal()
    verified(path, err=silent)
    assert silent.getvalue() == ""
    (path.parent / "big.gguf").write_bytes(bytes(6 << 20))
    verified(path, err=terminal)
    shown = terminal.getvalue()
    assert "\rbig: 16 %\rbig: 33 %" in shown
    assert shown.endswith("\r")


def test_verify_is_a_command(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write("models: [{id: a, path: good.gguf}]")
    assert main(["verify", "--config", str(path), "a"]) == 0
    assert capsys.readouterr().out == f"new a: sha256: {GOOD}\n"
    assert main(["verify", "--config", str(path), "nope"]) == 1


def test_findings_as_json_say_what_the_lines_say(write: Write) -> None:
    path = write("models: [{id: a, path: good.gguf}, {id: gone, path: gone.gguf}]")
    out = io.StringIO()
    assert check(path, out, as_json=True) == 1
    said = json.loads(out.getvalue())
    assert out.getvalue().count("\n") == 1
    assert said["ok"] is False
    assert [(found["model_id"], found["result"]) for found in said["findings"]] == [("a", "ok"), ("gone", "bad")]
    out = io.StringIO()
    assert verify(path, ["a", "nobody"], out, io.StringIO(), as_json=True) == 1
    [unknown, known] = json.loads(out.getvalue())["findings"]
    assert (unknown["model_id"], unknown["result"], unknown["sha256"]) == ("nobody", "bad", None)
    assert (known["result"], known["sha256"]) == ("new", sha256(build()).hexdigest())


def test_a_bad_configuration_is_json_too(write: Write) -> None:
    path, out = write("models: 7"), io.StringIO()
    assert check(path, out, as_json=True) == 1
    assert verify(path, [], out, io.StringIO(), as_json=True) == 1
    for line in out.getvalue().splitlines():
        assert "models.yaml:1" in json.loads(line)["findings"][0]["message"]
