"""A gang member's lease: it keeps the slot's device free for the leader's processes until the gang has ended."""

from __future__ import annotations

import logging
import queue
import time
from dataclasses import dataclass, replace

from jobs.config.times import LeaseTimes
from jobs.db.database import Database
from jobs.errors import LostLease, MachineError, ServiceUnavailable
from jobs.ledger.leasing import gangs
from jobs.ledger.leasing.leases import WorkingLease
from worker.keeper.decisions import Ending, EndRecord, Event, RenewalRefused, Renewed, RunnerAction, StopRequested
from worker.keeper.runner_pool import RunnerPool

logger = logging.getLogger(__name__)

_LEADER_MARGIN_SECONDS = 2.0  # beyond the grace: time for the leader to notice the stop and to record its end
_NOTIFY_AGAIN_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Membership:
    """What a member knows about the lease that it holds. Times are in seconds, by its own monotonic clock."""

    lease_seconds: float
    leader_stop_seconds: float
    """How long a member whose worker shuts down waits for the leader to stop in order."""
    held_until: float
    """Time until which the lease certainly belongs to this keeper."""
    is_held: bool = False
    """Whether the leader may use the device."""
    leave_at: float | None = None
    """When the member leaves even if the gang has not ended; None unless its worker shuts down."""

    def due(self) -> float:
        """The next time at which `overdue` may return an ending."""
        return self.held_until if self.leave_at is None else min(self.held_until, self.leave_at)

    def overdue(self, now: float) -> Ending | None:
        """How the lease must end because of the time alone; None if it goes on."""
        if now >= self.held_until:
            away = f"the database did not respond for {self.lease_seconds:g} s"
            return Ending(EndRecord.RELEASE, RunnerAction.KEEP, away, ServiceUnavailable(away))
        if self.leave_at is not None and now >= self.leave_at:
            return Ending(EndRecord.RELEASE, RunnerAction.KEEP, "shutdown: the gang's leader did not stop in time")
        return None

    def on_event(self, what: Event, now: float) -> tuple[Membership, Ending | None]:
        """The state after the event `what` at the time `now`, and how the lease ends, if it does.

        All other events of the job reach its leader too, which ends the gang.
        """
        match what:
            case Renewed(sent_at):
                return replace(self, held_until=max(self.held_until, sent_at + self.lease_seconds)), None
            case RenewalRefused():
                return self, Ending(EndRecord.NOTHING, RunnerAction.KEEP, "the gang has ended")
            case StopRequested(reason) if not self.is_held:
                return self, Ending(EndRecord.RELEASE, RunnerAction.KEEP, f"{reason}: before the gang was complete")
            case StopRequested() if self.leave_at is None:
                return replace(self, leave_at=now + self.leader_stop_seconds), None
            case _:
                return self, None


def hold_place(
    lease: WorkingLease,
    inbox: queue.SimpleQueue[Event],
    sent_at: float,
    *,
    database: Database,
    times: LeaseTimes,
    runner_pool: RunnerPool,
) -> Ending:
    """Follow a member's lease to its end. The slot has no runner meanwhile.

    Args:
        lease: An active lease with a rank above 0.
        inbox: The queue on which renewals, the end of the gang and the worker's stop arrive.
        sent_at: When the activation was sent, in monotonic seconds; the lease's term starts no earlier.
    """
    leader_stop_seconds = times.grace_seconds + _LEADER_MARGIN_SECONDS
    membership = Membership(times.lease_seconds, leader_stop_seconds, sent_at + times.lease_seconds)
    while not inbox.empty():  # the worker may be shutting down already
        membership, ending = membership.on_event(inbox.get(), time.monotonic())
        if ending is not None:
            return ending
    try:
        if not runner_pool.vacate():
            stuck = MachineError("the slot's runner could not be killed, so its device is not free")
            return Ending(EndRecord.RELEASE, RunnerAction.KEEP, stuck.message, stuck)
        try:
            gangs.mark_held(database, lease.lease_id)
        except LostLease as error:
            return Ending(EndRecord.NOTHING, RunnerAction.KEEP, error.message)
        except ServiceUnavailable as error:
            return Ending(EndRecord.RELEASE, RunnerAction.KEEP, error.message, error)
        logger.info("lease %s: this slot is reserved as rank %d of a gang", lease.lease_id, lease.rank)
        membership, ending = _wait(replace(membership, is_held=True), lease, inbox, database)
        return ending
    finally:
        if membership.leave_at is None:  # otherwise the worker is shutting down and needs no runner
            runner_pool.occupy()


def _wait(
    membership: Membership, lease: WorkingLease, inbox: queue.SimpleQueue[Event], database: Database
) -> tuple[Membership, Ending]:
    """Hold the slot until the gang has ended or this member has to leave."""
    is_leader_notified = False
    while (ending := membership.overdue(time.monotonic())) is None:
        pause_seconds = membership.due() - time.monotonic()
        if membership.leave_at is not None and not is_leader_notified:
            is_leader_notified = _notify_leader(database, lease.lease_id)
            pause_seconds = min(pause_seconds, _NOTIFY_AGAIN_SECONDS)
        try:
            what = inbox.get(timeout=max(0.0, pause_seconds))
        except queue.Empty:
            continue
        membership, ending = membership.on_event(what, time.monotonic())
        if ending is not None:
            break
    return membership, ending


def _notify_leader(database: Database, lease_id: str) -> bool:
    """Ask the leader to stop with a checkpoint; False if the database is away and this must be repeated."""
    try:
        gangs.ask_shutdown(database, lease_id)
    except LostLease:
        logger.debug("lease %s: the gang has ended already", lease_id)
    except ServiceUnavailable as error:
        logger.warning("lease %s: the leader could not be notified yet that this slot shuts down: %s", lease_id, error)
        return False
    return True
