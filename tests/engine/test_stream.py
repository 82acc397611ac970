"""TokenStream and Delivery: text goes through the handler's sink while it waits, ends come to the handler itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from modeld.engine.delivery import Delivery
from modeld.engine.stream import TokenStream
from modeld.types import Chunk, Finished, Usage

END = Finished("stop", Usage(1, 1))
WAIT_S = 10


def new_stream(n_choices: int = 1, on_cancel: Callable[[], None] = lambda: None) -> TokenStream:
    return TokenStream("m", n_choices, on_cancel)


class Handler:
    """Takes once, on a thread of its own, as a connection's thread does."""

    def __init__(self, stream: TokenStream, sink: Callable[[list[Chunk]], bool] | None, timeout_s: float | None = WAIT_S) -> None:
        self.got: list[Chunk] | None = None
        self._thread = threading.Thread(target=self._run, args=(stream, sink, timeout_s))
        self._thread.start()

    def _run(self, stream: TokenStream, sink: Callable[[list[Chunk]], bool] | None, timeout_s: float | None) -> None:
        self.got = stream.take(timeout_s, sink)

    def result(self) -> list[Chunk] | None:
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), "take did not come back"
        return self.got

    @property
    def waits(self) -> bool:
        return self._thread.is_alive()


def test_what_is_pending_comes_in_one_chunk_a_choice() -> None:
    stream = new_stream(2)
    for chunk in (Chunk("a"), Chunk("x", index=1), Chunk("b"), Chunk("c", END), Chunk("y", index=1)):
        stream.put(chunk)
    assert stream.take(0) == [Chunk("abc", END), Chunk("xy", index=1)]
    assert stream.take(0) is None


def test_a_choice_ends_once() -> None:
    stream = new_stream(2)
    stream.put(Chunk("", END))
    stream.put(Chunk("more", index=1))
    with pytest.raises(RuntimeError, match=r"choice 0 .* ended"):
        stream.put(Chunk("more"))


def test_text_goes_through_the_sink_and_the_end_to_the_handler() -> None:
    stream, sunk, arrived = new_stream(), [], threading.Event()

    def sink(chunks: list[Chunk]) -> bool:
        sunk.append(chunks)
        arrived.set()
        return True

    handler = Handler(stream, sink)
    while not arrived.wait(0.01):  # until the handler waits, nothing can be delivered through its sink
        assert handler.waits
        with stream._cond:
            waiting = stream._sink is not None
        if waiting:
            stream.put(Chunk("a"))
            stream.put(Chunk("b"))
            stream.deliver()
    assert sunk == [[Chunk("ab")]]
    assert handler.waits
    stream.put(Chunk("c", END))
    stream.deliver()
    assert handler.result() == [Chunk("c", END)]
    assert sunk == [[Chunk("ab")]], "an end is not for the sink"


def test_an_end_that_comes_while_text_is_delivered_is_not_lost() -> None:
    """The engine puts without the lock: at any moment, so also while the delivery looks at what is pending."""
    stream, sunk, asked = new_stream(), list[Chunk](), threading.Event()

    class Watched(Chunk):
        """Is looked at: and at that moment the engine puts the end."""

        def __getattribute__(self, name: str) -> object:
            if name == "end" and not stream._ended[0]:
                stream.put(Chunk("", END))
            return super().__getattribute__(name)

    def sink(chunks: list[Chunk]) -> bool:
        sunk.extend(chunks)
        return True

    handler = Handler(stream, sink)
    while handler.waits and not asked.wait(0.01):
        with stream._cond:
            waiting = stream._sink is not None
        if waiting:
            stream._pending.append(Watched("a"))
            asked.set()
            stream.deliver()
            stream.deliver()  # of the end
    assert [(chunk.text, chunk.end) for chunk in sunk] == [("a", None)]
    assert handler.result() == [Chunk("", END)]


@pytest.mark.parametrize("fault", [False, True])
def test_a_sink_that_cannot_take_all_wakes_the_handler(fault: bool) -> None:
    stream, asked = new_stream(), threading.Event()

    def sink(chunks: list[Chunk]) -> bool:
        asked.set()
        if fault:
            raise ValueError("a fault in the sink")
        return False

    handler = Handler(stream, sink)
    while not asked.wait(0.01):
        with stream._cond:
            waiting = stream._sink is not None
        if waiting:
            stream.put(Chunk("a"))
            stream.deliver()
    # After False the sink's owner has the rest; after a fault nobody has, and the handler gets it.
    assert handler.result() == ([Chunk("a")] if fault else [])


def test_a_sink_that_gave_up_gets_nothing_more_before_its_handler_woke() -> None:
    stream = new_stream()
    sunk: list[list[Chunk]] = []

    def sink(chunks: list[Chunk]) -> bool:
        sunk.append(chunks)
        return False

    handler = Handler(stream, sink)
    while not sunk:
        with stream._cond:  # which keeps the handler from waking between the two
            if stream._sink is not None:
                for text in "ab":
                    stream.put(Chunk(text))
                    stream.deliver()
    assert handler.result() == [Chunk("b")]
    assert sunk == [[Chunk("a")]], "the sink's owner has not sent the rest of a yet"


def test_text_that_flows_through_the_sink_keeps_the_time_from_running_out() -> None:
    stream, sunk = new_stream(), threading.Semaphore(0)

    def sink(chunks: list[Chunk]) -> bool:
        sunk.release()
        return True

    handler = Handler(stream, sink, timeout_s=0.3)
    for _ in range(8):
        stream.put(Chunk("a"))
        stream.deliver()
        sunk.acquire(timeout=0.1)
    stream.put(Chunk("", END))
    stream.deliver()
    got = handler.result()
    assert got is not None, "0.3 s without text never passed"


def test_nothing_for_the_whole_time_is_none() -> None:
    assert new_stream().take(0.01, lambda chunks: True) is None


def test_cancelling_tells_the_owner_once() -> None:
    told: list[int] = []
    stream = new_stream(on_cancel=lambda: told.append(1))
    stream.cancel()
    stream.cancel()
    assert told == [1]


def test_the_delivery_thread_wakes_the_handlers_of_a_step_and_ends_after_the_last() -> None:
    streams = [new_stream() for _ in range(3)]
    delivery = Delivery()
    handlers = [Handler(stream, None) for stream in streams]
    for stream in streams:
        stream.put(Chunk("a", END))
    delivery.step(streams)
    delivery.close()
    assert [handler.result() for handler in handlers] == [[Chunk("a", END)]] * 3


def test_the_last_moment_comes_also_while_text_flows() -> None:
    stream, done = new_stream(), threading.Event()
    handler: list[list[Chunk] | None] = []

    def take() -> None:
        handler.append(stream.take(WAIT_S, lambda chunks: True, until=time.monotonic() + 0.2))
        done.set()

    thread = threading.Thread(target=take)
    thread.start()
    while not done.wait(0.01):
        stream.put(Chunk("a"))
        stream.deliver()
    thread.join()
    assert handler[-1] is None or handler[-1] == [Chunk("a")], "text that came in the very last moment is not lost"
