"""A clock that a test sets, for the time of its database."""

from __future__ import annotations


class Clock:
    """Time in Unix seconds, which passes only when the test says so."""

    def __init__(self, time: float = 1_000_000.0) -> None:
        self.time = time

    def __call__(self) -> float:
        return self.time
