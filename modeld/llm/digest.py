"""Is this the file that the configuration means? SHA-256 of a model file, computed once for each state of the file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from modeld.errors import LoadFailed
from modeld.llm.ggufreader import Identity, identify, open_regular

CHUNK_BYTES = 1 << 20  # hashlib releases the GIL for each
MAX_REMEMBERED = 1 << 10

_digests: dict[Identity, str] = {}
# By what the file is, not by its name: two entries that name the same file, or a file that moved, cost nothing again. The
# oldest goes when it is full. No lock: two threads that miss at once compute the same.


def verify_sha256(path: Path, expected: str, on_progress: Callable[[int], bool]) -> None:
    """Compare the file's digest with `expected` (64 hexadecimal digits).

    `on_progress` gets rising whole percents, ending with 100; False ends the check.
    Raises LoadFailed: another digest, an unreadable file, one that changes meanwhile, or a check that was ended.
    """
    digest = sha256_of(path, on_progress)
    if digest != expected.lower():
        raise LoadFailed(f"{path}: its SHA-256 is {digest}, the configuration says {expected.lower()}")
    on_progress(100)


def sha256_of(path: Path, on_progress: Callable[[int], bool]) -> str:
    """The file's digest, 64 hexadecimal digits; of a model in shards that of the file which is named, the first.

    `on_progress` gets rising whole percents up to 99; False ends it. Raises LoadFailed as verify_sha256 does.
    """
    try:
        return _digest(path, on_progress)
    except (OSError, ValueError) as error:
        raise LoadFailed(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _digest(path: Path, on_progress: Callable[[int], bool]) -> str:
    with open_regular(path) as file:
        identity = identify(file)
        known = _digests.get(identity)
        if known is not None:
            return known
        size = identity[2]
        hashed = hashlib.sha256()
        done, pct = 0, -1
        while chunk := file.read(CHUNK_BYTES):
            hashed.update(chunk)
            done += len(chunk)
            if (now := min(done * 100 // max(size, 1), 99)) > pct:
                pct = now
                if not on_progress(pct):
                    raise LoadFailed(f"{path}: checking it was ended at {pct} %")
        if identify(file) != identity:
            raise LoadFailed(f"{path}: changed while it was checked")
    for oldest in list(_digests)[: max(0, len(_digests) - MAX_REMEMBERED + 1)]:
        _digests.pop(oldest, None)
    _digests[identity] = digest = hashed.hexdigest()
    return digest
