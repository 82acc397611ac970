"""The keys: where they come from, what is refused and how little that says, and when the daemon may do without."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld import app, daemon
from modeld.config import Config
from modeld.errors import ConfigError
from modeld.keys import CREDENTIAL, VARIABLE, check_exposure, exposed, load_keys
from modeld.privatefile import MAX_BYTES
from modeld.reload import ConfigSource
from modeld.types import ApiKey

KEY_CANARY = "key-canary-in-any-place"
USE, ADMIN = "use-canary-0123456789", "admin-canary-987654321"


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def key_file(folder: Path, text: str | bytes, mode: int = 0o600, name: str = "keys") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return path


def refused(file: Path | None, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as error:
        load_keys(file, environ or {})
    return error.value.message


# -- where they come from


def test_without_a_source_there_are_none(tmp_path: Path) -> None:
    assert load_keys(None, {}) == ()
    assert load_keys(None, {VARIABLE: "", "CREDENTIALS_DIRECTORY": str(tmp_path)}) == ()
    assert load_keys(None, {"CREDENTIALS_DIRECTORY": str(tmp_path / "nowhere")}) == ()


def test_a_file_has_a_key_a_line_and_comments(tmp_path: Path) -> None:
    path = key_file(
        tmp_path,
        f"# of the house\r\n\n  web use {USE}\r\nops\tadmin\t{ADMIN}\n  # done\nci use sha256:{digest('x').hex().upper()}\n",
    )
    assert load_keys(path, {}) == (
        ApiKey("web", admin=False, digest=digest(USE)),
        ApiKey("ops", admin=True, digest=digest(ADMIN)),
        ApiKey("ci", admin=False, digest=digest("x")),
    )


def test_all_sources_count_together(tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    key_file(credentials, f"ops admin {ADMIN}", name=CREDENTIAL)
    environ = {VARIABLE: f"a use {USE}a\nb use {USE}b", "CREDENTIALS_DIRECTORY": str(credentials)}
    found = load_keys(key_file(tmp_path, f"web use {USE}"), environ)
    assert [(key.name, key.admin) for key in found] == [("web", False), ("a", False), ("b", False), ("ops", True)]


def test_a_credential_may_have_any_mode_and_be_named_as_the_file(tmp_path: Path) -> None:
    path = key_file(tmp_path, f"ops admin {ADMIN}", 0o444, CREDENTIAL)
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert len(load_keys(path, environ)) == 1
    assert len(load_keys(None, environ)) == 1
    assert "mode 0444" in refused(path)


def test_a_key_itself_is_neither_kept_nor_shown(tmp_path: Path) -> None:
    (key,) = load_keys(key_file(tmp_path, f"ops admin {ADMIN}"), {})
    assert ADMIN not in repr(key)
    assert digest(ADMIN).hex() not in repr(key)
    assert repr(digest(ADMIN)) not in repr(key)


def test_processes_that_the_daemon_starts_do_not_inherit_the_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, bool, int]] = []

    def serve(source: ConfigSource, config: Config, *_: object) -> bool:
        # What a reload reads is what was there at the start.
        seen.append((len(config.keys), VARIABLE in os.environ, len(source.load().keys)))
        return True

    monkeypatch.setattr(daemon, "serve", serve)
    monkeypatch.setenv(VARIABLE, f"ops admin {ADMIN}")
    (tmp_path / "models.yaml").write_text("models: []")
    assert app.main(["serve", "--config", str(tmp_path / "models.yaml")]) == 0
    assert seen == [(1, False, 1)]


# -- what is refused


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"ops {ADMIN}", "expected three words, NAME SCOPE KEY, found 2"),
        (ADMIN, "expected three words, NAME SCOPE KEY, found 1"),
        (f"ops admin {ADMIN} # mine", "expected three words, NAME SCOPE KEY, found 5"),
        (f"ops root {ADMIN}", "the scope must be one of use, admin"),
        (f"ops {ADMIN} admin", "the scope must be one of use, admin"),
        (f"ops! use {ADMIN}", "the name must be 1..64 characters"),
        (f"{'n' * 65} use {ADMIN}", "the name must be 1..64 characters"),
        (f"anonymous use {ADMIN}", "the name must be 1..64 characters of A-Z a-z 0-9 . _ - and not anonymous"),
        (f"{ADMIN}: admin use", "the name must be 1..64 characters"),
        ("ops use admin-canary-98", "the key must be 16..512 printable ASCII characters"),
        (f"ops use {'admin-canary' * 50}", "the key must be 16..512 printable ASCII characters"),
        (f"ops use {ADMIN}ä", "the key must be 16..512 printable ASCII characters"),
        (f"ops use {ADMIN}\x01", "the key must be 16..512 printable ASCII characters"),
        ("ops use sha256:admin-canary", "after sha256: 64 hexadecimal digits are expected"),
        (f"ops use sha256:{'a' * 63}", "after sha256: 64 hexadecimal digits are expected"),
        ("admin-canary-09876 use web", "the key must be 16..512 printable ASCII characters"),  # the words in another order
        ("admin-canary-09876 web use", "the scope must be one of use, admin"),
        ("", "holds no key"),
        ("# web use admin-canary-key-that-was-revoked", "holds no key"),
    ],
)
def test_a_wrong_line_is_told_by_its_place_and_never_by_its_words(tmp_path: Path, line: str, said: str) -> None:
    path = key_file(tmp_path, f"\n{line}\n")
    message = refused(path)
    assert message.startswith(f"{path}: " if "holds no" in said else f"{path}:2: ")
    assert said in message
    for secret in (ADMIN, "admin-canary"):
        assert secret not in message


def test_all_wrong_lines_are_told_at_once(tmp_path: Path) -> None:
    message = refused(key_file(tmp_path, f"a\nb use {USE}\nc use short\n"), {VARIABLE: "d"})
    assert [line.rsplit(": ", 1)[0].rsplit(":", 1)[-1] for line in message.split("\n")] == ["1", "3", "1"]
    assert f"\n{VARIABLE}:1: " in message


def test_the_number_of_findings_is_bounded(tmp_path: Path) -> None:
    message = refused(key_file(tmp_path, "x\n" * 500))
    assert message.split("\n")[19:] == [
        f"{tmp_path}/keys:20: expected three words, NAME SCOPE KEY, found 1",
        "keys: and 480 more",
    ]


def test_names_and_keys_are_unique_over_all_sources(tmp_path: Path) -> None:
    path = key_file(tmp_path, f"ops admin {ADMIN}\nops use {USE}\n")
    assert refused(path) == f"{path}:2: the name is that of {path}:1"
    assert refused(None, {VARIABLE: f"a use {USE}\nb admin sha256:{digest(USE).hex()}"}) == (
        f"{VARIABLE}:2: the key is that of {VARIABLE}:1; each name needs its own"
    )


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o666])
def test_a_file_that_others_may_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    assert f"(mode {mode:04o}); chmod 640 or 600" in refused(key_file(tmp_path, f"ops admin {ADMIN}", mode))


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440, 0o660])
def test_a_group_may_read_it(tmp_path: Path, mode: int) -> None:
    assert load_keys(key_file(tmp_path, f"ops admin {ADMIN}", mode), {})


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path / "gone") == f"{tmp_path}/gone: cannot be read: No such file or directory"
    assert refused(tmp_path) == f"{tmp_path}: cannot be read: Is a directory"
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "expected a file with keys" in refused(tmp_path / "pipe")
    assert f"more than {MAX_BYTES} bytes" in refused(key_file(tmp_path, b"#" * (MAX_BYTES + 1)))
    assert "the name must be" in refused(key_file(tmp_path, b"\xff\xfe\0 use \xff"))


def test_a_path_that_clears_the_terminal_is_shown_and_not_printed(tmp_path: Path) -> None:
    message = refused(tmp_path / f"{'a' * 200}/{'b' * 200}" / "\x1b[2J\n\u202e")
    assert message.startswith("...")
    assert "b/\\x1b[2J\\n\\u202e: cannot be read" in message
    assert message.isprintable()


WORDS = st.sampled_from(
    ["ops", "web", "use", "admin", "#", "sha256:", KEY_CANARY, f"sha256:{digest(USE).hex()}", "x", "\t", "\n", "\r"]
)


@given(st.lists(WORDS | st.text(max_size=3), max_size=20).map(" ".join))
def test_any_text_is_keys_or_findings_that_quote_nothing(text: str) -> None:
    environ = {VARIABLE: text.replace("\0", "")}
    message = ""
    try:
        keys = load_keys(None, environ)
        assert len({key.name for key in keys}) == len({key.digest for key in keys}) == len(keys)
        assert keys or not text.replace("\0", "")
    except ConfigError as error:
        message = error.message
    assert KEY_CANARY not in message
    assert digest(USE).hex() not in message
    assert all(line.startswith((f"{VARIABLE}:", "keys: and ")) and line.isprintable() for line in message.split("\n") if message)


# -- who may do without


@pytest.mark.parametrize("host", ["127.0.0.1", "127.255.0.9", "::1", "localhost", "LOCALHOST.", "a.localhost"])
def test_loopback_is_open_to_this_host_alone(host: str) -> None:
    assert not exposed(host)
    check_exposure([host], (), insecure=False)


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "192.168.1.2", "fe80::1%eth0", "::ffff:127.0.0.1", "0", "127.1", "llm.example", "localhost.example", ""],
)
def test_any_other_address_needs_keys_or_somebody_who_says_that_it_does_not(host: str) -> None:
    assert exposed(host)
    with pytest.raises(ConfigError, match=re.escape(f"server.host: {host} can be reached")) as error:
        check_exposure(["127.0.0.1", host], (), insecure=False)
    for way_out in ("server.api_key_file", VARIABLE, CREDENTIAL, "127.0.0.1 or ::1", "server.insecure: true"):
        assert way_out in error.value.message
    check_exposure([host], (ApiKey("a", admin=False, digest=b""),), insecure=False)
    check_exposure([host], (), insecure=True)
