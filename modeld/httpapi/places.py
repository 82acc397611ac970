"""Who is served when more come than there are places, and who has to go for it? Pure: no clock, no socket, no lock.

Whoever has sent a whole request, and takes its answer, stays. When all places are taken, the one that has been at the beginning
of a request for the longest time goes (also one that idles between two requests), so that 1,000 clients that send slow heads
take places from each other and from nobody else; where there is none, the oldest whose body is still coming, or that does not
take an answer which is no stream. A bound for each address, where it is set, is kept the same way among the connections of that
address.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

from modeld.httpapi.caller import UNIX, counted_as

W = TypeVar("W", bound=Hashable)


class Verdict(enum.Enum):
    SERVE = "serve"
    REFUSE = "refuse"  # with a word: 503
    DROP = "drop"  # without: too many are being refused


class Places(Generic[W]):
    """Of whatever is hashable; the lock of the caller."""

    def __init__(self, n_places: int, n_extra: int, n_per_address: int) -> None:
        """`n_extra`: who is being refused or was told to go, and is not gone yet. `n_per_address` 0: no such bound."""
        self._n_places = n_places
        self._n_extra = n_extra
        self._n_per_address = n_per_address
        self._addresses: dict[W, str] = {}  # of all who are here, in whatever way
        self._heads: dict[W, None] = {}  # the longest-waiting first
        self._dependent: dict[W, None] = {}  # the same: a body is still to come, or an answer to be taken
        self._extra: set[W] = set()
        self._of_address: Counter[str] = Counter()  # who is served

    def __len__(self) -> int:
        """All who are here."""
        return len(self._addresses)

    def __iter__(self) -> Iterator[W]:
        return iter(self._addresses)

    @property
    def n_answered(self) -> int:
        """Whose requests have begun: a whole head is there."""
        return len(self._addresses) - len(self._extra) - len(self._heads)

    @property
    def is_crowded(self) -> bool:
        """So many are on their way out that nobody else can be sent."""
        return len(self._extra) >= self._n_extra

    @property
    def is_settling(self) -> bool:
        """Somebody could go for one more who comes, were there not so many on their way out."""
        return self.is_crowded and self._is_full and self._oldest(None) is not None

    @property
    def _is_full(self) -> bool:
        return len(self._addresses) - len(self._extra) >= self._n_places

    def admit(self, who: W, address: str) -> tuple[Verdict, W | None]:
        """What becomes of one who comes, and who has to go for it; both are told by the caller."""
        group = counted_as(address) if self._n_per_address and address != UNIX else ""  # its clients cannot be told apart
        leaver = None
        full_address = bool(group) and self._of_address[group] >= self._n_per_address
        if full_address or self._is_full:
            leaver = None if self.is_crowded else self._oldest(group if full_address else None)
            if leaver is None:
                if self.is_crowded:
                    return Verdict.DROP, None
                self._addresses[who] = group
                self._extra.add(who)
                return Verdict.REFUSE, None
            self.send_away(leaver)
        self._addresses[who] = group
        self._of_address[group] += 1
        self._heads[who] = None
        return Verdict.SERVE, leaver

    def send_oldest_away(self) -> W | None:
        """The one who has to go when something else than places has run out; None: there is none."""
        leaver = None if self.is_crowded else self._oldest(None)
        if leaver is not None:
            self.send_away(leaver)
        return leaver

    def send_away(self, who: W) -> None:
        self._heads.pop(who, None)
        self._dependent.pop(who, None)
        if who not in self._extra:
            self._extra.add(who)
            self._count_down(who)

    def begin(self, who: W) -> bool:
        """Its head is there; False: it was sent away meanwhile."""
        self._heads.pop(who, None)
        return who not in self._extra

    def depend(self, who: W) -> None:
        """It waits for its client."""
        if who not in self._extra:
            self._dependent[who] = None

    def stay(self, who: W) -> None:
        """It waits no longer."""
        self._dependent.pop(who, None)

    def wait(self, who: W) -> bool:
        """It was answered, and its next head may come; False: it was sent away meanwhile."""
        if who in self._extra:
            return False
        self._heads[who] = None
        return True

    def leave(self, who: W) -> None:
        """It is gone."""
        if who in self._extra:
            self._extra.remove(who)
        else:
            self._count_down(who)
        self._heads.pop(who, None)
        self._dependent.pop(who, None)
        del self._addresses[who]

    def _oldest(self, group: str | None) -> W | None:
        """Of all, or of an address."""
        for waiting in (self._heads, self._dependent):
            for who in waiting:
                if group is None or self._addresses[who] == group:
                    return who
        return None

    def _count_down(self, who: W) -> None:
        group = self._addresses[who]
        self._of_address[group] -= 1
        if not self._of_address[group]:
            del self._of_address[group]
