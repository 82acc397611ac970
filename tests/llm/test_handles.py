"""Handle: one owner, children first, a leak is told."""

from __future__ import annotations

import ctypes
import gc
import logging

import pytest

from modeld.llm.handles import Handle, open_handles


class Thing(Handle):
    kind = "thing"


def raw() -> ctypes.c_void_p:
    return ctypes.c_void_p(0x1000)


def test_close_frees_once() -> None:
    freed: list[int | None] = []
    thing = Thing(raw(), lambda pointer: freed.append(pointer.value))
    assert open_handles() == {"thing": 1}
    thing.close()
    thing.close()
    assert freed == [0x1000]
    assert thing.closed
    assert open_handles() == {}


def test_use_after_close_raises_instead_of_reaching_c() -> None:
    thing = Thing(raw(), lambda pointer: None)
    thing.close()
    with pytest.raises(ctypes.ArgumentError, match="this thing is closed"):
        ctypes.CDLL(None).free(thing)


def test_a_parent_outlives_its_children() -> None:
    order: list[str] = []
    parent = Thing(raw(), lambda pointer: order.append("parent"))
    child = Thing(raw(), lambda pointer: order.append("child"), parent=parent)
    with pytest.raises(RuntimeError, match="1 open children"):
        parent.close()
    child.close()
    parent.close()
    assert order == ["child", "parent"]


def test_a_dropped_handle_is_reported_and_not_freed(caplog: pytest.LogCaptureFixture) -> None:
    freed: list[object] = []
    thing = Thing(raw(), freed.append)
    with caplog.at_level(logging.ERROR, "modeld.llama"):
        del thing
        gc.collect()
    assert "thing at 0x1000 was dropped without close()" in caplog.text
    assert not freed
    from modeld.llm import handles

    handles._count("thing", -1)


def test_a_wrong_handle_is_an_argument_error() -> None:
    from modeld.llm import libllama
    from modeld.llm.backend import backend

    lib = backend().lib
    wrong = ctypes.pointer(libllama.llama_context())
    with pytest.raises(ctypes.ArgumentError):
        lib.llama_model_free(wrong)
