"""Which entries of an append-only table a stream has sent already."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar


class Numbered(Protocol):
    """An entry of an append-only table."""

    @property
    def id(self) -> int:
        """Increases with each entry."""


Entry = TypeVar("Entry", bound=Numbered)


class Tail:
    """Picks the entries that a stream has not sent, each exactly once.

    PostgreSQL assigns ids at insert but shows rows at commit, so a smaller id may appear after a larger one. Ids of the
    last seconds are therefore read again.
    """

    def __init__(self, *, after: int, settle_seconds: float) -> None:
        """
        Args:
            after: Only entries with a larger id are sent.
            settle_seconds: How late an entry may appear; 0 if ids appear in order (SQLite).
        """
        self._floor = after
        self._settle_seconds = settle_seconds
        self._seen: dict[int, float] = {}

    def floor(self, now: float) -> int:
        """The id after which entries must be read.

        Args:
            now: Time of a monotonic clock in seconds.
        """
        settled = [entry_id for entry_id, seen_at in self._seen.items() if seen_at + self._settle_seconds <= now]
        if settled:
            self._floor = max(settled)
            self._seen = {entry_id: at for entry_id, at in self._seen.items() if entry_id > self._floor}
        return self._floor

    @property
    def num_seen(self) -> int:
        """Number of entries above the floor that were sent already."""
        return len(self._seen)

    def is_new(self, entry_id: int) -> bool:
        """Whether an entry above the floor was not sent yet."""
        return entry_id not in self._seen

    def take(self, entries: Iterable[Entry], now: float) -> list[Entry]:
        """Return those of the entries above the floor that were not sent yet; they count as sent from now on."""
        fresh = [entry for entry in entries if self.is_new(entry.id)]
        self._seen.update(dict.fromkeys((entry.id for entry in fresh), now))
        return fresh
