"""Whether and when something that failed is tried again. Pure: a decision comes out, its effects are the caller's."""

from __future__ import annotations

import random
from dataclasses import dataclass

from jobs.errors import StokerError

ENDLESS = 2**31
"""Tries of what is never given up."""


_MOST_DOUBLINGS = 60
"""Beyond these every delay is the longest, and a power of two would overflow."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays that double with each failure in a row, up to a longest one."""

    first_seconds: float
    longest_seconds: float

    def delay_seconds(self, num_failures: int) -> float:
        """The delay after so many failures in a row, from 1."""
        return min(self.longest_seconds, self.first_seconds * 2.0 ** min(num_failures - 1, _MOST_DOUBLINGS))


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently to try again."""

    max_attempts: int
    """Tries in all, the first one counted."""
    first_seconds: float
    """Delay before the second try; doubles with each further one."""
    max_seconds: float
    """Longest delay."""


@dataclass(frozen=True, slots=True)
class RetryAt:
    """Try again after a delay."""

    delay_seconds: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not try again."""

    reason: str


def decide(error: StokerError, attempt: int, policy: RetryPolicy, *, jitter: float | None = None) -> RetryAt | GiveUp:
    """Decide about an attempt that ended in `error`.

    Args:
        error: what ended it; a user's error is never retried.
        attempt: its number, counted from 1.
        policy: the limits.
        jitter: 0 to 1, drawn at random when absent; spreads the delays over their upper half, so that what failed
            together does not come back together (exponential backoff with "equal jitter", Brooker 2015).
    """
    if not error.retryable:
        return GiveUp(error.message)
    if attempt >= policy.max_attempts:
        return GiveUp(f"{error.message} (tried {attempt} times)")
    delay = Backoff(policy.first_seconds, policy.max_seconds).delay_seconds(attempt)
    share = random.random() if jitter is None else jitter
    return RetryAt(delay * (0.5 + 0.5 * share))
