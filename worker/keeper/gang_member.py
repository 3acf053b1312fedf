"""A gang member's lease: its slot's device is kept free for the leader's processes until the gang has ended."""

from __future__ import annotations

import logging
import queue
import time
from dataclasses import dataclass, replace

from jobs.config.times import LeaseTimes
from jobs.db.database import Database
from jobs.errors import LostLease, MachineError, ServiceUnavailable
from jobs.ledger import gangs
from jobs.ledger.leases import WorkingLease
from worker.keeper.decisions import Ending, EndRecord, Event, RenewalRefused, Renewed, RunnerAction, StopAsked
from worker.keeper.runner_pool import RunnerPool

logger = logging.getLogger(__name__)

_LEADER_MARGIN_SECONDS = 2.0  # beyond the grace: the leader hears of the stop, and records its end, that much later
_ASK_AGAIN_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Membership:
    """What a member knows of the lease it holds. Times are on its own monotonic clock, in seconds."""

    lease_seconds: float
    patience_seconds: float
    """How long a member that has to leave waits for the leader to stop in order."""
    held_until: float
    """The lease is surely ours until then."""
    is_held: bool = False
    """Whether the leader may use the device."""
    leave_at: float | None = None
    """When it leaves though the gang has not ended, once its worker goes down."""

    def due(self) -> float:
        """The next time at which `overdue` may have something to say."""
        return self.held_until if self.leave_at is None else min(self.held_until, self.leave_at)

    def overdue(self, now: float) -> Ending | None:
        """What to do because of the time alone."""
        if now >= self.held_until:
            away = f"the database did not answer for {self.lease_seconds:g} s"
            return Ending(EndRecord.RELEASE, RunnerAction.KEEP, away, ServiceUnavailable(away))
        if self.leave_at is not None and now >= self.leave_at:
            return Ending(EndRecord.RELEASE, RunnerAction.KEEP, "shutdown: the gang's leader did not stop in time")
        return None

    def on_event(self, what: Event, now: float) -> tuple[Membership, Ending | None]:
        """What is known after `what` happened at `now`, and whether the lease ends.

        Whatever else the database wants of the job, its leader hears too, and ends the gang.
        """
        match what:
            case Renewed(asked_at):
                return replace(self, held_until=max(self.held_until, asked_at + self.lease_seconds)), None
            case RenewalRefused():
                return self, Ending(EndRecord.NOTHING, RunnerAction.KEEP, "its gang has ended")
            case StopAsked(reason) if not self.is_held:
                return self, Ending(EndRecord.RELEASE, RunnerAction.KEEP, f"{reason}: before the gang was whole")
            case StopAsked() if self.leave_at is None:
                return replace(self, leave_at=now + self.patience_seconds), None
            case _:
                return self, None


def hold_place(
    lease: WorkingLease,
    inbox: queue.SimpleQueue[Event],
    asked_at: float,
    *,
    database: Database,
    times: LeaseTimes,
    runner_pool: RunnerPool,
) -> Ending:
    """Follow a member's lease to its end: the slot has no runner meanwhile.

    Args:
        lease: active, of a rank above 0.
        inbox: where heartbeats' answers, the gang's end and the worker's stop arrive.
        asked_at: monotonic seconds from which the lease lasts.
    """
    patience_seconds = times.grace_seconds + _LEADER_MARGIN_SECONDS
    membership = Membership(times.lease_seconds, patience_seconds, asked_at + times.lease_seconds)
    while not inbox.empty():  # the worker may be going down already
        membership, ending = membership.on_event(inbox.get(), time.monotonic())
        if ending is not None:
            return ending
    try:
        if not runner_pool.vacate():
            stuck = MachineError("the slot's runner does not die, so its device is not free")
            return Ending(EndRecord.RELEASE, RunnerAction.KEEP, stuck.message, stuck)
        try:
            gangs.hold_place(database, lease.lease_id)
        except LostLease as error:
            return Ending(EndRecord.NOTHING, RunnerAction.KEEP, error.message)
        except ServiceUnavailable as error:
            return Ending(EndRecord.RELEASE, RunnerAction.KEEP, error.message, error)
        logger.info("lease %s: this slot is held as number %d of a gang", lease.lease_id, lease.rank)
        membership, ending = _wait(replace(membership, is_held=True), lease, inbox, database)
        return ending
    finally:
        if membership.leave_at is None:  # else the worker is going down, and needs no runner any more
            runner_pool.occupy()


def _wait(
    membership: Membership, lease: WorkingLease, inbox: queue.SimpleQueue[Event], database: Database
) -> tuple[Membership, Ending]:
    """Hold the slot until the gang has ended, or this member has to leave it."""
    is_leader_asked = False
    while (ending := membership.overdue(time.monotonic())) is None:
        pause_seconds = membership.due() - time.monotonic()
        if membership.leave_at is not None and not is_leader_asked:
            is_leader_asked = _ask_leader(database, lease.lease_id)
            pause_seconds = min(pause_seconds, _ASK_AGAIN_SECONDS)
        try:
            what = inbox.get(timeout=max(0.0, pause_seconds))
        except queue.Empty:
            continue
        membership, ending = membership.on_event(what, time.monotonic())
        if ending is not None:
            break
    return membership, ending


def _ask_leader(database: Database, lease_id: str) -> bool:
    """Have the leader stop with a checkpoint; False where the database is away and it has to be asked again."""
    try:
        gangs.ask_shutdown(database, lease_id)
    except LostLease:
        logger.debug("lease %s: the gang has ended already", lease_id)
    except ServiceUnavailable as error:
        logger.warning("lease %s: its leader does not hear yet that this slot goes down: %s", lease_id, error)
        return False
    return True
