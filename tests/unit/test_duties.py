"""Lanes of duties: each has a thread that runs its duties when they are due or woken."""

from __future__ import annotations

import threading

import pytest

from jobs.errors import ServiceUnavailable
from scheduler.control import duties
from scheduler.control.duties import Duty, Lane


def lane_of(*run: Duty) -> Lane:
    return Lane("test", run, first_pause_seconds=0.01, is_wanted=lambda: True)


def test_a_wake_up_runs_only_the_duties_that_react_to_it() -> None:
    woken, quiet = threading.Semaphore(0), threading.Semaphore(0)
    lane = lane_of(
        Duty("woken", woken.release, every_seconds=3600.0, on_wake=True),
        Duty("quiet", quiet.release, every_seconds=3600.0, on_wake=False),
    )
    lane.start()
    assert woken.acquire(timeout=60)
    for _ in range(3):
        lane.wake()
        assert woken.acquire(timeout=60)
    lane.stop()
    assert quiet.acquire(blocking=False)
    assert not quiet.acquire(blocking=False)


class LateRing(threading.Event):
    """An event that is set just after its first wait has timed out."""

    has_waited = False

    def wait(self, timeout: float | None = None) -> bool:
        if self.has_waited:
            return super().wait(timeout)
        self.has_waited = True
        self.set()
        return False


def test_a_wake_up_that_comes_with_a_round_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    woken = threading.Semaphore(0)
    lane = lane_of(Duty("woken", woken.release, every_seconds=3600.0, on_wake=True))
    monkeypatch.setattr(lane, "_rung", LateRing())
    lane.start()
    assert woken.acquire(timeout=60)
    assert woken.acquire(timeout=60)
    lane.stop()


def test_the_gap_between_two_rounds_ends_with_the_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duties, "_GAP_SECONDS", 3600.0)
    rounds = threading.Semaphore(0)
    lane = lane_of(Duty("counted", rounds.release, every_seconds=3600.0, on_wake=True))
    lane.start()
    assert rounds.acquire(timeout=60)
    lane.wake()
    lane.stop()
    assert not rounds.acquire(blocking=False)


def test_a_duty_that_fails_is_tried_again_and_delays_no_other() -> None:
    tries, others = threading.Semaphore(0), threading.Semaphore(0)

    def fail() -> None:
        tries.release()
        raise ServiceUnavailable("the database cannot be reached")

    lane = lane_of(
        Duty("failing", fail, every_seconds=0.01, on_wake=False),
        Duty("other", others.release, every_seconds=3600.0, on_wake=True),
    )
    lane.start()
    assert all(tries.acquire(timeout=60) for _ in range(3))
    assert others.acquire(timeout=60)
    lane.stop()
