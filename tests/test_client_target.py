"""Which daemon a client command asks, and with which key: flags, environment, client.yaml, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from modeld.cli import target
from modeld.cli.failures import Failure
from modeld.cli.target import find_target, parse_server
from modeld.errors import ConfigError

KEY = "a-key-of-somebody-0123456789"


@pytest.fixture(autouse=True)
def no_system_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "SYSTEM_FOLDER", tmp_path / "etc")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".config" / "modeld").mkdir(parents=True)
    return tmp_path


def write(home: Path, text: str, mode: int = 0o600) -> Path:
    path = home / ".config" / "modeld" / "client.yaml"
    path.write_text(text)
    path.chmod(mode)
    return path


def key_file(home: Path, text: str = KEY + "\n", mode: int = 0o600) -> Path:
    path = home / "key"
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("HTTP://gpu-1:9000/", "http://gpu-1:9000"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("http://[fe80::1%25eth0]:8080", "http://[fe80::1%eth0]:8080"),
        ("http://gpu-1", "http://gpu-1"),
        ("https://models.example/modeld/", "https://models.example/modeld"),
        ("https://models.example:8443", "https://models.example:8443"),
        ("unix:/run/modeld/modeld.sock", "unix:/run/modeld/modeld.sock"),
        ("unix:///run/modeld/modeld.sock", "unix:/run/modeld/modeld.sock"),
    ],
)
def test_addresses(text: str, shown: str) -> None:
    assert str(parse_server(text, "here")) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost:8080",
        "ftp://host",
        "http://",
        "http://host:0",
        "http://host:70000",
        "http://host:80a",
        "http://ho st",
        "http://host?query",
        "http://host/#part",
        "http://::1:8080",
        "http://[::1",
        "http://host\r\nX: y",
        "http://host/pre\x01fix",
        "http://host/pre\x7ffix",
        "http://h\u00f6st",
        "unix:relative",
        "unix:/with\0nul",
        "http://" + "h" * 3000,
    ],
)
def test_what_is_no_address_is_said_with_where_it_stands(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^here: ") as raised:
        parse_server(text, "here")
    assert "\n" not in raised.value.message
    assert len(raised.value.message) < 400


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    for text in ("http://user:secret-word@host", "user:secret-word@host", "unix:secret-word@x"):
        with pytest.raises(ConfigError) as raised:
            parse_server(text, "MODELD_SERVER")
        assert "secret-word" not in raised.value.message


def test_flag_before_environment_before_file_before_default(home: Path) -> None:
    environ = {"HOME": str(home)}
    assert str(find_target(None, None, environ)) == "http://127.0.0.1:8080"
    write(home, "server: http://file:1\n")
    assert str(find_target(None, None, environ)) == "http://file:1"
    environ["MODELD_SERVER"] = "http://environment:2"
    assert str(find_target(None, None, environ)) == "http://environment:2"
    found = find_target("http://flag:3", None, environ)
    assert (str(found), found.source) == ("http://flag:3", "--server")
    with pytest.raises(Failure) as raised:
        find_target("nonsense", None, environ)
    assert raised.value.status == 2


def test_the_users_file_is_read_and_else_that_of_the_host(home: Path, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "client.yaml").write_text("server: http://host:1\n")
    assert str(find_target(None, None, {"HOME": str(home)})) == "http://host:1"
    assert str(find_target(None, None, {})) == "http://host:1"
    write(home, "server: http://user:2\n")
    assert str(find_target(None, None, {"HOME": str(home)})) == "http://user:2"
    assert str(find_target(None, None, {"HOME": str(home), "XDG_CONFIG_HOME": str(tmp_path / "xdg")})) == "http://host:1"
    assert str(find_target(None, None, {"XDG_CONFIG_HOME": str(home / ".config")})) == "http://user:2"


def test_keys_by_flag_environment_and_file(home: Path) -> None:
    environ = {"HOME": str(home)}
    write(home, "key_file: ../../key\n", 0o644)
    key_file(home, f"# mine\n\n  {KEY}\n")
    assert find_target(None, None, environ).key == KEY
    environ["MODELD_API_KEY"] = "of-the-environment"
    assert find_target(None, None, environ).key == "of-the-environment"
    found = find_target(None, home / "key", environ)
    assert found.key == KEY
    assert KEY not in repr(found)
    assert KEY not in str(found)
    write(home, f"key: {KEY}\n")
    assert find_target(None, None, {"HOME": str(home)}).key == KEY


def test_a_key_of_the_file_goes_to_the_server_of_the_file_only(home: Path) -> None:
    environ = {"HOME": str(home)}
    write(home, f"server: https://mine:8443\nkey: {KEY}\n")
    assert find_target(None, None, environ).key == KEY
    assert find_target("https://mine:8443/", None, environ).key == KEY
    assert find_target("https://MINE:8443", None, environ).key == KEY
    for other in ("https://other:8443", "http://mine:8443", "https://mine", "https://mine:8443/of-others", "unix:/mine"):
        assert find_target(other, None, environ).key is None
    assert find_target(None, None, {**environ, "MODELD_SERVER": "https://other"}).key is None


@pytest.mark.parametrize("path", ["~/key", "~nobody-of-this-name/key"])
def test_a_home_directory_that_is_none_is_said(home: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 4_000_000_000)  # of a container: in no passwd
    write(home, f"server: http://a\nkey_file: {path}\n")
    for flag in (Path(path), None):
        with pytest.raises(ConfigError, match=r"no home directory that ~ stands for"):
            find_target(None, flag, {"HOME": str(home)})


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602])
def test_files_with_a_key_that_others_may_read_are_refused(home: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match=r"chmod 640 or 600"):
        find_target(None, key_file(home, mode=mode), {})
    write(home, f"key: {KEY}\n", mode)
    with pytest.raises(ConfigError, match=r"client.yaml: every user .* chmod 640 or 600") as raised:
        find_target(None, None, {"HOME": str(home)})
    assert KEY not in raised.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found 0 lines"),
        (f"{KEY}\n{KEY}\n", "found 2 lines"),
        (f"alice admin {KEY}\n", "found 3 words; a daemon's key file holds NAME SCOPE KEY"),
        ("kéy-of-somebody\n", "printable ASCII"),
        ("k" * 600, "1..512"),
    ],
)
def test_key_files_that_hold_something_else(home: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        find_target(None, key_file(home, text), {})
    assert KEY not in raised.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "client.yaml: empty; expected a mapping with server, key_file, key"),
        ("- a\n", "client.yaml:1: expected a mapping"),
        ("server: http://a\nserver: http://b\n", "client.yaml:2: server: the key stands here twice"),
        ("sever: http://a\n", "client.yaml:1: sever: no such key; known are server, key_file, key"),
        ("server: 8080\n", "client.yaml:1: server: expected text in quotes"),
        ("server: [a]\n", "client.yaml:1: server: expected text"),
        ("server: nonsense\n", "client.yaml:1: server: expected http://HOST"),
        ("key: abc\nkey_file: x\n", "client.yaml:1: key: key and key_file are both given"),
        ("key_file: gone\n", "gone: cannot be read: No such file"),
        ("server: &a http://a\n", "anchor"),
    ],
)
def test_mistakes_in_the_file_are_told_with_line_and_key(home: Path, text: str, message: str) -> None:
    write(home, text)
    with pytest.raises(ConfigError) as raised:
        find_target(None, None, {"HOME": str(home)})
    assert message in raised.value.message


def test_a_number_for_a_key_is_not_repeated(home: Path) -> None:
    write(home, "key: 1234567890123456\n")
    with pytest.raises(ConfigError) as raised:
        find_target(None, None, {"HOME": str(home)})
    assert "1234567890" not in raised.value.message


def test_an_empty_variable_counts_as_none(home: Path) -> None:
    found = find_target(None, None, {"MODELD_SERVER": "", "MODELD_API_KEY": "", "HOME": str(home)})
    assert (str(found), found.key) == ("http://127.0.0.1:8080", None)


def test_a_key_in_the_environment_that_is_none_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigError, match="MODELD_API_KEY: a key is") as raised:
        find_target(None, None, {"MODELD_API_KEY": "two words"})
    assert "two" not in raised.value.message
