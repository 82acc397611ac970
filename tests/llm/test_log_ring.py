"""libllama's lines in our log: errors are errors, but for those of a decode that is aborted on purpose."""

from __future__ import annotations

import logging

import pytest

from modeld.llm import libllama as C
from modeld.llm.backend import LogRing


def test_an_abort_of_one_model_hushes_until_the_last_is_over(caplog: pytest.LogCaptureFixture) -> None:
    ring = LogRing()
    caplog.set_level(logging.DEBUG, "modeld.llama")

    def level() -> int:
        ring._on_line(C.GGML_LOG_LEVEL_ERROR, b"compute failed\n", None)
        return caplog.records[-1].levelno

    assert level() == logging.ERROR
    ring.hush("a", True)
    ring.hush("b", True)
    ring.hush("a", False)
    assert level() == logging.DEBUG, "b is still aborted"
    ring.hush("b", False)
    ring.hush("b", False)
    assert level() == logging.ERROR
    assert ring.errors() == ["compute failed"] * 3
