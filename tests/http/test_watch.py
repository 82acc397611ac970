"""Who left: FIN, half close and reset are told once; what is removed is not told."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from modeld.httpapi.watch import ClientWatch


@pytest.fixture
def watch() -> Iterator[ClientWatch]:
    watch = ClientWatch()
    watch.start()
    yield watch
    watch.close()
    watch.close()


def test_bytes_do_not_count_as_leaving_but_the_end_behind_them_does(watch: ClientWatch):
    here, there = socket.socketpair()
    with here, there:
        gone = threading.Event()
        watch.add(here.fileno(), gone.set)
        there.send(b"pipelined")
        assert not gone.wait(0.1)
        there.shutdown(socket.SHUT_WR)
        assert gone.wait(5)
        watch.remove(here.fileno())


def test_what_the_kernel_does_not_watch_need_not_be_removed(watch: ClientWatch):
    closed = 1 << 20
    with pytest.raises(OSError, match="Bad file descriptor"):
        watch.add(closed, lambda: None)
    watch.remove(closed)


def test_who_left_before_it_was_watched_is_told(watch: ClientWatch):
    here, there = socket.socketpair()
    there.close()
    gone = threading.Event()
    with here:
        watch.add(here.fileno(), gone.set)
        assert gone.wait(5)


def test_what_is_removed_is_not_told(watch: ClientWatch):
    here, there = socket.socketpair()
    with here:
        gone = threading.Event()
        watch.add(here.fileno(), gone.set)
        watch.remove(here.fileno())
        watch.remove(here.fileno())
        there.close()
        assert not gone.wait(0.1)


def test_a_call_back_that_fails_does_not_end_the_watch(watch: ClientWatch, caplog):
    def fail() -> None:
        raise KeyError("x")

    first, first_peer = socket.socketpair()
    second, second_peer = socket.socketpair()
    gone = threading.Event()
    with first, second:
        watch.add(first.fileno(), fail)
        watch.add(second.fileno(), gone.set)
        first_peer.close()
        second_peer.close()
        assert gone.wait(5)


def test_a_woken_watch_asks_again_before_it_tells():
    """The number of a closed socket may belong to another connection by the time the thread wakes."""
    watch = ClientWatch()
    here, there = socket.socketpair()
    with here, there:
        watch.add(here.fileno(), lambda: pytest.fail("still there"))
        assert watch._take_gone(here.fileno()) is None
        watch.remove(here.fileno())
        assert watch._take_gone(here.fileno()) is None
    watch.close()
