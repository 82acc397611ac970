"""Reading the configuration again: what changes, what has to wait for a restart, and when the file counts as changed."""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import fields
from pathlib import Path

import pytest

from modeld import reload
from modeld.config import ServerConfig
from modeld.errors import ConfigError
from modeld.reload import LIVE_SERVER_KEYS, ConfigSource, ConfigWatch, stamp_of

DEADLINE_S = 20.0

TEXT = """
server: {port: 8080, log_level: info}
switching: {probe: true}
default_model: a
models:
  - {id: a, path: a.gguf}
  - {id: b, path: b.gguf}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "models.yaml"
    file.write_text(TEXT)
    return file


@pytest.fixture
def source(path: Path) -> ConfigSource:
    return ConfigSource(config=path, environ={})


# -- what a change is


def test_the_same_file_changes_nothing(source: ConfigSource) -> None:
    config = source.load()
    change = source.read(config)
    assert (change.config, change.live, change.restart) == (config, (), ())
    assert (change.added, change.removed, change.changed) == ((), (), ())


def test_a_pipe_is_not_waited_for(source: ConfigSource, path: Path) -> None:
    config = source.load()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="it is no regular file"):
        source.read(config)


def test_models_that_come_go_and_change_are_named(source: ConfigSource, path: Path) -> None:
    config = source.load()
    path.write_text("default_model: c\nmodels: [{id: c, path: c.gguf}, {id: b, path: b.gguf, n_ctx: 64}]")
    change = source.read(config)
    assert (change.added, change.removed, change.changed) == (("c",), ("a",), ("b",))
    assert change.live == ("default_model", "models")
    assert [spec.id for spec in change.config.models] == ["c", "b"]


def test_another_order_of_the_models_takes_effect_though_none_changed(source: ConfigSource, path: Path) -> None:
    config = source.load()
    path.write_text(TEXT.replace("  - {id: a, path: a.gguf}\n", "").replace("b.gguf}", "b.gguf}\n  - {id: a, path: a.gguf}"))
    change = source.read(config)
    assert change.live == ("models",)
    assert (change.added, change.removed, change.changed) == ((), (), ())


def test_what_waits_for_a_restart_is_not_in_force_and_is_named_until_then(source: ConfigSource, path: Path) -> None:
    config = source.load()
    path.write_text(TEXT.replace("port: 8080, log_level: info", "port: 9090, queue_size: 3, log_level: debug"))
    change = source.read(config)
    assert change.live == ("server.log_level",)
    assert change.restart == ("server.port", "server.queue_size")
    assert (change.config.server.port, change.config.server.queue_size, change.config.server.log_level) == (8080, 128, "debug")
    again = source.read(change.config)
    assert (again.live, again.restart) == ((), change.restart)


def test_every_key_of_switching_is_live(source: ConfigSource, path: Path) -> None:
    config = source.load()
    path.write_text(TEXT.replace("{probe: true}", "{probe: false, on_busy: reject, idle_unload_s: 9}"))
    change = source.read(config)
    assert change.live == ("switching.on_busy", "switching.probe", "switching.idle_unload_s")
    assert change.config.switching.idle_unload_s == 9


def test_every_key_of_limits_is_live(source: ConfigSource, path: Path) -> None:
    config = source.load()
    path.write_text(TEXT + "limits: {max_streams: 2, tokens_per_minute: 3, per_key: {a: {max_streams: 4}}}\n")
    change = source.read(config)
    assert change.live == ("limits.tokens_per_minute", "limits.max_streams", "limits.per_key")
    assert change.restart == ()
    assert (change.config.limits.of("a").max_streams, change.config.limits.of("b").max_streams) == (4, 2)


def test_the_live_keys_of_server_are_keys_of_server() -> None:
    assert {item.name for item in fields(ServerConfig)} >= LIVE_SERVER_KEYS


def test_flags_and_variables_go_before_the_file_at_a_reload_too(path: Path) -> None:
    environ = {"MODELD_LOG_LEVEL": "error"}
    source = ConfigSource(config=path, port=0, environ=environ)
    environ.clear()  # those of the start hold
    config = source.load()
    assert (config.server.port, config.server.log_level) == (0, "error")
    path.write_text(TEXT.replace("8080", "9090").replace("info", "debug"))
    change = source.read(config)
    assert (change.live, change.restart) == ((), ())


def test_a_file_with_an_error_changes_nothing_and_says_where(source: ConfigSource, path: Path) -> None:
    config = source.load()
    path.write_text(TEXT.replace("8080", "many"))
    with pytest.raises(ConfigError, match=r"models\.yaml:2: server\.port"):
        source.read(config)
    path.unlink()
    with pytest.raises(ConfigError):
        source.read(config)


def test_the_file_of_the_start_is_the_one_that_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the system's one, when the one beside the working directory is away for a moment."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    here = tmp_path / "configs" / "models.yaml"
    here.write_text(TEXT)
    source = ConfigSource(environ={})
    config = source.load()
    here.unlink()
    with pytest.raises(ConfigError, match=r"configs/models\.yaml"):
        source.read(config)


# -- keys


KEY, OTHER_KEY = "0123456789-canary-a", "0123456789-canary-b"


@pytest.fixture
def key_file(path: Path) -> Path:
    """Named by the configuration."""
    path.write_text(TEXT.replace("port: 8080", "port: 8080, api_key_file: keys"))
    file = path.parent / "keys"
    file.write_text(f"ops admin {KEY}\n")
    file.chmod(0o600)
    return file


def test_keys_that_changed_alone_take_effect(source: ConfigSource, key_file: Path) -> None:
    config = source.load()
    assert source.read(config).live == ()
    key_file.write_text(f"ops use {KEY}\nweb use {OTHER_KEY}\n")
    change = source.read(config)
    assert (change.live, change.restart) == (("keys",), ())
    assert [(key.name, key.admin) for key in change.config.keys] == [("ops", False), ("web", False)]


def test_a_key_file_with_an_error_changes_nothing_and_shows_no_key(source: ConfigSource, key_file: Path) -> None:
    config = source.load()
    for text in (f"ops admin {KEY}\n{OTHER_KEY}\n", ""):
        key_file.write_text(text)
        with pytest.raises(ConfigError, match=r"keys:2: expected three words|holds no key") as error:
            source.read(config)
        assert "canary" not in error.value.message


def test_who_may_come_in_is_live(source: ConfigSource, path: Path) -> None:
    config = source.load()
    text = "allowed_hosts: [a], cors_origins: ['http://b'], unix_admin_uids: [], unix_use_uids: [1], insecure: true, port"
    path.write_text(TEXT.replace("port", text))
    change = source.read(config)
    assert change.restart == ()
    assert set(change.live) == {f"server.{key}" for key in LIVE_SERVER_KEYS - {"log_level", "api_key_file"}}


def test_keys_cannot_be_taken_away_from_an_address_that_needs_them(source: ConfigSource, path: Path, key_file: Path) -> None:
    """The new file would do for a new start, on loopback; but the old address is listened to until then."""
    with_keys = path.read_text().replace("port: 8080", "host: 0.0.0.0, port: 8080")
    path.write_text(with_keys)
    config = source.load()
    path.write_text(TEXT)
    with pytest.raises(ConfigError, match=r"server\.host: 0\.0\.0\.0 can be reached from other hosts"):
        source.read(config)
    path.write_text(TEXT.replace("port", "insecure: true, port"))
    assert source.read(config).config.keys == ()
    assert key_file.exists()


# -- when the file counts as changed


def watch(path: Path) -> ConfigWatch:
    return ConfigWatch(path, lambda: None, since=stamp_of(path))


def write_another(path: Path, text: str) -> None:
    """In place, and by a time stamp that differs whatever the clock's resolution."""
    before = path.stat()
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def test_a_change_is_told_once_when_it_has_settled(path: Path) -> None:
    watched = watch(path)
    assert not watched.look()
    write_another(path, TEXT + "# one")
    assert not watched.look()  # it may still be written
    write_another(path, TEXT + "# one, two")
    assert not watched.look()
    assert watched.look()
    assert not watched.look()


def test_a_file_that_was_replaced_by_another_of_the_same_size_and_time_has_changed(path: Path) -> None:
    watched = watch(path)
    facts = path.stat()
    new = path.with_suffix(".new")
    new.write_text(TEXT.replace("8080", "9090"))
    os.utime(new, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    new.replace(path)
    assert not watched.look()
    assert watched.look()


def test_a_link_that_is_pointed_elsewhere_is_a_change(path: Path) -> None:
    link = path.with_name("link.yaml")
    link.symlink_to(path)
    watched = watch(link)
    other = path.with_name("other.yaml")
    other.write_text(TEXT)
    link.unlink()
    link.symlink_to(other)
    assert not watched.look()
    assert watched.look()


def test_a_file_that_is_missing_for_a_while_is_no_change_until_it_is_back(path: Path) -> None:
    watched = watch(path)
    away = path.with_suffix(".away")
    path.rename(away)
    assert not watched.look()
    assert not watched.look()
    away.rename(path)
    assert not watched.look()
    assert not watched.look()


def test_a_change_before_the_watch_began_is_not_missed(source: ConfigSource, path: Path) -> None:
    source.load()
    write_another(path, TEXT + "# edited while the library was loaded")
    watched = ConfigWatch(path, lambda: None, since=source.stamp)
    assert [watched.look(), watched.look()] == [False, True]


def test_the_thread_tells_and_lives_on_when_its_listener_fails(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    came = threading.Semaphore(0)

    def on_change() -> None:
        told.append(path.read_text())
        came.release()
        if len(told) == 1:
            raise ZeroDivisionError("of the listener")

    watched = ConfigWatch(path, on_change, interval_s=0.005, since=stamp_of(path))
    watched.start()
    try:
        for text in (TEXT + "# 1", TEXT + "# 22"):
            new = path.with_suffix(".new")
            new.write_text(text)
            new.replace(path)  # so that no look finds half of it
            assert came.acquire(timeout=DEADLINE_S)
            assert told[-1] == text
    finally:
        watched.close()
    assert [record.exc_info is not None for record in caplog.records if record.levelno >= logging.ERROR] == [True]


def test_close_does_not_wait_for_the_next_look(path: Path) -> None:
    watched = ConfigWatch(path, lambda: None, interval_s=1e6, since=stamp_of(path))
    watched.start()
    watched.close()
    watched.close()
    ConfigWatch(path, lambda: None, since=None).close()  # never started


def test_a_disk_that_has_gone_is_no_thread_that_hangs_and_does_not_hold_up_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reload, "CLOSE_S", 0.1)
    reached, go_on = threading.Event(), threading.Event()

    def hangs() -> None:
        reached.set()
        assert go_on.wait(DEADLINE_S)

    watched = ConfigWatch(path, hangs, interval_s=0.005, since=None)
    watched.start()
    try:
        assert reached.wait(DEADLINE_S)
        beat = watched.pulse.beat(0.0, now=time.monotonic() + 1e6)
        assert (beat.ok, beat.doing) == (True, "reading the configuration")
        watched.close()
        assert "is left behind" in caplog.text
    finally:
        go_on.set()
        monkeypatch.undo()
        watched.close()
    assert watched._thread is not None
    assert not watched._thread.is_alive()
