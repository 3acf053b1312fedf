"""Decide whether and when failed work is tried again. Pure functions: the caller carries the decision out."""

from __future__ import annotations

import random
from dataclasses import dataclass

from jobs.errors import StokerError

ENDLESS = 2**31
"""Number of tries for work that is retried without limit."""


_MOST_DOUBLINGS = 60
"""Limit of the exponent, so that the power of two cannot overflow. The delay has reached its maximum long before."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays that double with each failure in a row, up to a maximum."""

    first_seconds: float
    longest_seconds: float

    def delay_seconds(self, num_failures: int) -> float:
        """The delay after `num_failures` failures in a row; at least 1."""
        return min(self.longest_seconds, self.first_seconds * 2.0 ** min(num_failures - 1, _MOST_DOUBLINGS))


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often to try again, and after which delays."""

    max_attempts: int
    """Total number of tries, including the first."""
    first_seconds: float
    """Delay before the second try; it doubles with each further try."""
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
    """Decide whether to retry an attempt that ended in `error`.

    Args:
        error: The error that ended the attempt; an error of the user is never retried.
        attempt: The attempt number, from 1.
        policy: The limits.
        jitter: A number from 0 to 1, random if None. It spreads the delays over their upper half, so that work that
            failed together is not retried together (exponential backoff with "equal jitter", Brooker 2015).
    """
    if not error.retryable:
        return GiveUp(error.message)
    if attempt >= policy.max_attempts:
        return GiveUp(f"{error.message} (tried {attempt} times)")
    delay = Backoff(policy.first_seconds, policy.max_seconds).delay_seconds(attempt)
    share = random.random() if jitter is None else jitter
    return RetryAt(delay * (0.5 + 0.5 * share))
