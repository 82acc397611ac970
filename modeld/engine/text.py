"""How do pieces become text that may be shown? TextAssembler: whole characters only, never a stop string's beginning."""

from __future__ import annotations

import codecs


class TextAssembler:
    """Bytes of pieces in, text out. Holds back what may still become a character or a stop string. One thread."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        """`stop`: non-empty strings."""
        self._stop = stop
        self._longest = max(map(len, stop), default=0)
        # A piece may end inside a character; bytes that can never become one show as U+FFFD.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    @property
    def n_held(self) -> int:
        """Characters that were decoded and may not be shown yet."""
        return len(self._held)

    def feed(self, piece: bytes) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop string was met (then nothing may follow)."""
        text = self._decoder.decode(piece)
        if not self._stop:
            return text, False
        if not text:
            return "", False
        text = self._held + text
        at = min((i for i in map(text.find, self._stop) if i >= 0), default=-1)
        if at >= 0:
            self._held = ""
            return text[:at], True
        keep = self._n_possible_stop(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """What was held back, when the sequence ends without a stop string."""
        text, self._held = self._held + self._decoder.decode(b"", final=True), ""
        # What the last bytes became may complete a stop string that has U+FFFD in it.
        return text[: min((i for i in map(text.find, self._stop) if i >= 0), default=len(text))]

    def _n_possible_stop(self, text: str) -> int:
        """The length of the longest end of `text` with which a stop string begins."""
        for n in range(min(self._longest - 1, len(text)), 0, -1):
            tail = text[-n:]
            if any(stop.startswith(tail) for stop in self._stop):
                return n
        return 0
