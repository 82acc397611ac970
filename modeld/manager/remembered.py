"""What outlives the process, and what follows from it? Remembered: its changes, its JSON form, the model that a start loads.

Pure: no file, no clock, no thread. `statefile.py` keeps one on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from modeld.policy import AtStart

VERSION = 1  # of the JSON form; a file of another one is not read
MAX_VOUCHED = 256
MAX_CRASHED = 256  # models with crashes; ids that no registry has any more must not pile up
QUARANTINE_AFTER = 2  # crashes in a row

T = TypeVar("T")

Identity = tuple[int, int, int, int]
"""Of a file: (device, inode, size, mtime_ns), as FileFacts has it."""

IdentityOf = Callable[[str], Identity | None]
"""The identity of a registered model's file as it is now; None: it cannot be looked at."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model and which file stood for it. identity None: the file could not be looked at."""

    model_id: str
    identity: Identity | None


@dataclass(frozen=True, slots=True)
class Crashes:
    """How often in a row the process died while it loaded one file. `since`: seconds since the epoch; None: no quarantine."""

    identity: Identity | None
    n: int
    since: float | None = None


@dataclass(frozen=True, slots=True)
class Quarantine:
    """A model that is not loaded unless somebody insists. `since`: seconds since the epoch."""

    model_id: str
    identity: Identity | None
    crashes: int
    since: float

    def __str__(self) -> str:
        return f"{self.model_id!r} is quarantined: the process died {self.crashes} times in a row while it loaded it"


@dataclass(frozen=True, slots=True)
class StartChoice:
    """What a start loads; None: nothing. `reason` is for people."""

    model_id: str | None
    reason: str
    quarantined: tuple[Quarantine, ...]  # of the registered models


def same_file(one: Identity | None, other: Identity | None) -> bool:
    """Whether nothing tells them apart: an unknown file (None) may be any.

    The device is left out: file systems without one of their own (overlay, btrfs, NFS) get another number at each mount.
    """
    return one is None or other is None or one[1:] == other[1:]


@dataclass(frozen=True, slots=True)
class Remembered:
    """All of it. Each change makes another one; the mappings are never mutated, the latest entry stands last."""

    last_good: ModelFile | None = None  # what was loaded last
    unloaded: bool = False  # and somebody had it unloaded since
    trying: ModelFile | None = None  # is being loaded; found at a start, it is what the process died of
    crashes: Mapping[str, Crashes] = field(default_factory=dict)  # by model id
    vouched: Mapping[str, Identity] = field(default_factory=dict)  # by path: what was loaded well once
    default_model: str | None = None  # what the configuration said when last_good or unloaded was set

    @property
    def wanted(self) -> str | None:
        """What was last asked for and came; None after an unload, too."""
        return self.last_good.model_id if self.last_good is not None and not self.unloaded else None

    def quarantine_of(self, model_id: str, identity: Identity | None) -> Quarantine | None:
        """None as well where the file was replaced since: another file has done nothing yet."""
        crashes = self.crashes.get(model_id)
        if crashes is None or crashes.since is None or not same_file(crashes.identity, identity):
            return None
        return Quarantine(model_id, crashes.identity, crashes.n, crashes.since)

    def is_vouched(self, path: str, identity: Identity | None) -> bool:
        known = self.vouched.get(path)
        return known is not None and identity is not None and same_file(known, identity)

    # -- changes

    def after_trying(self, file: ModelFile) -> Remembered:
        return replace(self, trying=file)

    def after_loaded(self, file: ModelFile, path: str, default_model: str | None) -> Remembered:
        """It has proved itself: its crashes are forgotten, its file is vouched for."""
        good = self.after_lift(file.model_id).after_vouched(path, file.identity)
        return replace(good, last_good=file, unloaded=False, trying=None, default_model=default_model)

    def after_unloaded(self, default_model: str | None) -> Remembered:
        return replace(self, unloaded=True, trying=None, default_model=default_model)

    def after_ended(self) -> Remembered:
        """The load ended without a model, and the process lives."""
        return replace(self, trying=None)

    def after_lift(self, model_id: str) -> Remembered:
        """Crashes and quarantine of that model are forgotten."""
        if model_id not in self.crashes:
            return self
        return replace(self, crashes={key: row for key, row in self.crashes.items() if key != model_id})

    def after_vouched(self, path: str, identity: Identity | None) -> Remembered:
        if identity is None:
            return self
        return replace(self, vouched=_with_last(self.vouched, path, identity, MAX_VOUCHED))

    def after_death(self, now: float) -> Remembered:
        """The process died while it loaded `trying`. What was the last good file is never quarantined: it did load once,
        so that the process was rather ended from outside."""
        if self.trying is None:
            return self
        model_id, identity = self.trying.model_id, self.trying.identity
        before = self.crashes.get(model_id)
        if before is None or not same_file(before.identity, identity):
            before = Crashes(identity, 0)
        n = before.n + 1
        good = self.last_good is not None and self.last_good.model_id == model_id and same_file(self.last_good.identity, identity)
        since = before.since if before.since is not None or n < QUARANTINE_AFTER or good else now
        row = Crashes(identity, n, since)
        return replace(self, trying=None, crashes=_with_last(self.crashes, model_id, row, MAX_CRASHED))

    # -- the start

    def choose(
        self, registry_ids: Collection[str], default_model: str | None, at_start: AtStart, identity_of: IdentityOf
    ) -> StartChoice:
        """Which model a start loads. `identity_of` is asked only about models with crashes."""
        suspects = [model_id for model_id in registry_ids if model_id in self.crashes]
        found = [self.quarantine_of(model_id, identity_of(model_id)) for model_id in suspects]
        quarantined = {row.model_id: row for row in found if row is not None}
        passed_over: list[str] = []
        for model_id, why in self._candidates(default_model, at_start):
            if model_id is None:
                passed_over.append(why)
                break
            if model_id not in registry_ids:
                passed_over.append(f"{model_id!r} is not registered any more ({why})")
            elif model_id in quarantined:
                passed_over.append(str(quarantined[model_id]))
            else:
                return StartChoice(model_id, "; ".join((*dict.fromkeys(passed_over), why)), tuple(quarantined.values()))
        return StartChoice(None, "; ".join(dict.fromkeys(passed_over)), tuple(quarantined.values()))

    def _candidates(self, default_model: str | None, at_start: AtStart) -> list[tuple[str | None, str]]:
        """Best first; None ends the search with no model."""
        default = (default_model, "default_model" if default_model is not None else "default_model is null")
        if at_start is AtStart.DEFAULT or (self.last_good is None and not self.unloaded):
            return [default]
        last: tuple[str | None, str] = (None, "the last model was unloaded on request")
        if not self.unloaded and self.last_good is not None:
            last = (self.last_good.model_id, "answered last")
        if default_model == self.default_model:
            return [last, default]
        # The file was edited after the last switch: the latest word of the operator, whatever answered last.
        return [(default_model, "default_model was changed" if default_model is not None else "default_model is null now"), last]

    # -- the JSON form

    def to_json(self) -> dict[str, object]:
        return {
            "version": VERSION,
            "last_good": _file_json(self.last_good),
            "unloaded": self.unloaded,
            "trying": _file_json(self.trying),
            "crashes": {key: {"identity": row.identity, "n": row.n, "since": row.since} for key, row in self.crashes.items()},
            "vouched": dict(self.vouched),
            "default_model": self.default_model,
        }

    @classmethod
    def from_json(cls, value: object) -> Remembered:
        """Raises ValueError for anything that to_json does not make."""
        table = _table(value)
        if table.get("version") != VERSION:
            raise ValueError(f"its version is {table.get('version')!r:.40}, not {VERSION}")
        if set(table) != {"version", "last_good", "unloaded", "trying", "crashes", "vouched", "default_model"}:
            raise ValueError(f"it has the keys {', '.join(map(repr, table))!s:.200}")
        crashes = {_text(key): _crashes(row) for key, row in _table(table["crashes"], MAX_CRASHED).items()}
        vouched = {_text(key): _known(row) for key, row in _table(table["vouched"], MAX_VOUCHED).items()}
        default_model = None if table["default_model"] is None else _text(table["default_model"])
        if not isinstance(table["unloaded"], bool):
            raise ValueError(f"unloaded is {table['unloaded']!r:.40}")
        return cls(_file(table["last_good"]), table["unloaded"], _file(table["trying"]), crashes, vouched, default_model)


def _with_last(table: Mapping[str, T], key: str, row: T, n_max: int) -> dict[str, T]:
    """With that entry as the latest one; the earliest go where there are too many."""
    kept = [(other, value) for other, value in table.items() if other != key][1 - n_max :]
    return {**dict(kept), key: row}


def _file_json(file: ModelFile | None) -> dict[str, object] | None:
    return None if file is None else {"model_id": file.model_id, "identity": file.identity}


def _file(value: object) -> ModelFile | None:
    if value is None:
        return None
    table = _table(value)
    if set(table) != {"model_id", "identity"}:
        raise ValueError(f"a model has the keys {', '.join(map(repr, table))!s:.200}")
    return ModelFile(_text(table["model_id"]), _identity(table["identity"]))


def _crashes(value: object) -> Crashes:
    table = _table(value)
    if set(table) != {"identity", "n", "since"}:
        raise ValueError(f"crashes have the keys {', '.join(map(repr, table))!s:.200}")
    since = table["since"]
    if since is not None:
        if isinstance(since, bool) or not isinstance(since, int | float) or not 0 <= since < 1e12:
            raise ValueError(f"since is {since!r:.40}")
        since = float(since)
    n = _whole(table["n"])
    if n < 1:
        raise ValueError(f"{n} crashes")
    return Crashes(_identity(table["identity"]), n, since)


def _table(value: object, n_max: int = MAX_VOUCHED) -> dict[str, object]:
    if not isinstance(value, dict) or len(value) > n_max:
        raise ValueError(f"expected a table of at most {n_max} entries, found {value!r:.40}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 4096:
        raise ValueError(f"expected text, found {value!r:.40}")
    return value


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -(1 << 63) <= value < 1 << 64:
        raise ValueError(f"expected a whole number, found {value!r:.40}")
    return value


def _identity(value: object) -> Identity | None:
    return None if value is None else _known(value)


def _known(value: object) -> Identity:
    if not isinstance(value, list) or len(value) != 4:
        raise ValueError(f"expected four numbers that tell a file from others, found {value!r:.40}")
    device, inode, size, mtime_ns = (_whole(number) for number in value)
    return device, inode, size, mtime_ns
