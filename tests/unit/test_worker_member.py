"""What a gang's member decides, with the time in the test's hands: it stays as long as the gang does, and no longer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.db.states import StopReason
from jobs.errors import ServiceUnavailable
from worker.keeper.decisions import Ending, EndRecord, Event, RenewalRefused, Renewed, RunnerAction, StopRequested
from worker.keeper.gang_member import Membership
from worker.keeper.runner_process import Exited

FRESH = Membership(lease_seconds=16.0, leader_stop_seconds=12.0, held_until=16.0)
HELD = replace(FRESH, is_held=True)


def ending(what: Event, membership: Membership = HELD, now: float = 1.0) -> Ending:
    _, made = membership.on_event(what, now)
    assert made is not None
    return made


def test_the_end_of_the_gang_is_the_leaders_to_record() -> None:
    made = ending(RenewalRefused())
    assert (made.record, made.runner_action, made.reason) == (
        EndRecord.NOTHING,
        RunnerAction.KEEP,
        "the gang has ended",
    )


@pytest.mark.parametrize("stop", StopReason)
def test_a_stop_of_the_training_is_the_leaders_to_carry_out(stop: StopReason) -> None:
    membership, made = HELD.on_event(Renewed(sent_at=4.0, stop=stop), 5.0)
    assert made is None
    assert (membership.held_until, membership.leave_at) == (20.0, None)


def test_a_member_that_goes_down_waits_for_the_leader_and_then_leaves() -> None:
    membership, made = HELD.on_event(StopRequested(StopReason.SHUTDOWN), 3.0)
    assert made is None
    assert membership.leave_at == membership.due() == 15.0
    again, _ = membership.on_event(StopRequested(StopReason.SHUTDOWN), 9.0)
    assert again == membership, "a second signal must not prolong the wait"
    assert membership.overdue(14.9) is None
    late = membership.overdue(15.0)
    assert late is not None
    assert (late.record, late.reason) == (EndRecord.RELEASE, "shutdown: the gang's leader did not stop in time")


def test_a_member_that_goes_down_before_the_gang_is_whole_leaves_at_once() -> None:
    made = ending(StopRequested(StopReason.SHUTDOWN), FRESH)
    assert (made.record, made.reason) == (EndRecord.RELEASE, "shutdown: before the gang was complete")


def test_a_lease_that_is_not_renewed_in_time_is_not_held_on_to() -> None:
    assert HELD.due() == 16.0
    assert HELD.overdue(15.9) is None
    made = HELD.overdue(16.0)
    assert made is not None
    assert made.record is EndRecord.RELEASE
    assert isinstance(made.error, ServiceUnavailable)


def test_a_late_answer_never_shortens_a_lease() -> None:
    membership, _ = HELD.on_event(Renewed(8.0, None), 9.0)
    membership, _ = membership.on_event(Renewed(4.0, None), 9.0)
    assert membership.held_until == 24.0


def test_the_runner_that_it_ended_itself_is_no_news() -> None:
    assert HELD.on_event(Exited("was killed by its keeper"), 1.0) == (HELD, None)
