"""The retry decision: who is tried again, when, and when no more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import InvalidModel, MachineError, ServiceUnavailable
from jobs.retries import ENDLESS, Backoff, GiveUp, RetryAt, RetryPolicy, decide

POLICY = RetryPolicy(max_attempts=4, first_seconds=1.0, max_seconds=3.0)


def test_a_users_error_is_never_retried() -> None:
    assert decide(InvalidModel("no such model"), 1, POLICY) == GiveUp("no such model")


def test_a_machines_error_is_retried_up_to_the_limit_with_more_delay() -> None:
    delays = [decide(MachineError("away"), attempt, POLICY, jitter=1.0) for attempt in (1, 2, 3, 4)]
    assert delays == [RetryAt(1.0), RetryAt(2.0), RetryAt(3.0), GiveUp("away (tried 4 times)")]


@given(attempt=st.integers(1, 3), jitter=st.floats(0.0, 1.0))
def test_jitter_spreads_over_the_upper_half(attempt: int, jitter: float) -> None:
    decision = decide(MachineError(), attempt, POLICY, jitter=jitter)
    longest = min(3.0, 2.0 ** (attempt - 1))
    assert isinstance(decision, RetryAt)
    assert longest / 2 <= decision.delay_seconds <= longest


@pytest.mark.parametrize(("num_failures", "seconds"), [(1, 0.5), (2, 1.0), (4, 4.0), (5, 5.0), (100_000, 5.0)])
def test_delays_double_up_to_the_longest_however_often(num_failures: int, seconds: float) -> None:
    assert Backoff(first_seconds=0.5, longest_seconds=5.0).delay_seconds(num_failures) == seconds


def test_unlimited_retries_still_have_a_delay_after_many_tries() -> None:
    decision = decide(ServiceUnavailable(), 5000, RetryPolicy(ENDLESS, 1.0, 30.0), jitter=1.0)
    assert decision == RetryAt(30.0)
