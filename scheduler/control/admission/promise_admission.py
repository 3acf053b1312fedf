"""Whether a job can be promised to be done by a time, beside what was promised before."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import select
from sqlmodel import Session, col

from jobs.config.limits import Limits
from jobs.config.times import LeaseTimes
from jobs.db.states import LIVE_LEASE_STATES
from jobs.db.tables import Job, Lease
from jobs.db.transaction import Transaction
from jobs.errors import PromiseRefused
from jobs.ledger.timing.promised_work import busy_projects, promised_work
from jobs.specs.fields import parse_time
from jobs.specs.inference import TRAINING, InferenceSpec
from scheduler.control.admission.submission import Submission
from scheduler.control.dispatch.project_shares import project_facts
from scheduler.control.dispatch.slot_facts import read_slots
from scheduler.forecast.promise_capacity import Due, earliest_promise
from scheduler.policy.promises import project_shares
from scheduler.policy.types import SlotFacts

_MINUTE_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Assessment:
    """What can be promised about a job."""

    slot_seconds: float | None
    """Upper bound of its work; None if that is unknown."""
    earliest: float | None
    """The earliest time by which it can be promised to be done, Unix seconds; None if nothing can be promised."""
    reason: str
    """Why nothing can be promised."""


def admit(tx: Transaction, submission: Submission, times: LeaseTimes, limits: Limits) -> float | None:
    """Admit the promise of a job that is created in the same transaction.

    Promises are admitted one after the other, so that two of them never use the same slots.

    Returns:
        The slot-seconds that are promised; None if the spec has no promise.

    Raises:
        PromiseRefused: The promise cannot be kept.
    """
    promise = submission.spec.promise
    if promise is None:
        return None
    tx.take_turn("promises")
    now = tx.time()
    return check_promise(promise, assess(tx, submission, read_slots(tx, times, now), limits), now)


def check_promise(promise: str, found: Assessment, now: float) -> float:
    """Check that a promise can be kept.

    Returns:
        The slot-seconds that are promised.

    Raises:
        PromiseRefused: It cannot be kept.
    """
    at = parse_time(promise)
    if at <= now:
        raise PromiseRefused("promise: this time has passed", param="promise")
    if found.earliest is None or found.slot_seconds is None:
        raise PromiseRefused(f"promise: {found.reason}", param="promise")
    if at < found.earliest:
        rounded = math.ceil(found.earliest / _MINUTE_SECONDS) * _MINUTE_SECONDS
        text = datetime.fromtimestamp(rounded, UTC).strftime("%Y-%m-%dT%H:%MZ")
        raise PromiseRefused(
            f"promise: cannot be kept beside all other promised work; the earliest time that would be taken is {text}",
            param="promise",
        )
    return found.slot_seconds


def assess(session: Transaction, submission: Submission, slots: Sequence[SlotFacts], limits: Limits) -> Assessment:
    """Find the earliest time by which a job can be promised to be done.

    All promised work must fit into all slots, and that of the project into its part of them by weight. Slots that
    trainings without a promise hold do not count, since they are not asked back.

    Args:
        slots: All online slots.
        limits: The projects' limits.
    """
    now = session.time()
    suitable = [slot for slot in slots if submission.needs.met_by(slot)]
    pools = Counter((slot.host, slot.kind) for slot in suitable)
    if max(pools.values(), default=0) < submission.gang_size:
        return Assessment(None, None, "no slots that can run this job are online")
    if submission.comes_later(session):
        return Assessment(None, None, "nothing can be promised about a job that begins later or comes after other jobs")
    speeds = submission.estimates(session, suitable)
    if submission.size.num_rows is None or not speeds:
        what = "its rows or steps cannot be counted now" if speeds else "equal work has never been measured here"
        return Assessment(None, None, f"nothing can be promised, because {what}; submit it without a promise")
    held = _held_by_trainings(session)
    num_slots = sum(slot.id not in held for slot in suitable)
    if num_slots < submission.gang_size:
        return Assessment(None, None, "trainings without a promise hold all slots, and their ends are not certain")
    seconds = submission.size.num_rows / min(one.slow for one in speeds.values())
    work = promised_work(session)
    busy = project_facts(session, busy_projects(session) | {submission.project}, limits, now)
    most = project_shares(num_slots, busy)[submission.project]
    if most == 0:
        why = "has used its GPU hours" if busy[submission.project].is_exhausted else "has weight 0 beside others"
        return Assessment(None, None, f"nothing can be promised, because the project {why}")
    mine = [Due(one.at, one.slot_seconds) for one in work if one.project == submission.project]
    everyone = [Due(one.at, one.slot_seconds) for one in work]
    share = max(submission.gang_size, most)
    at_once = submission.gang_size
    if isinstance(submission.spec, InferenceSpec):
        at_once = min(share, submission.max_slots or share, submission.size.num_chunks or share)
    slot_seconds = seconds * submission.gang_size
    earliest = max(
        earliest_promise(dues, slot_seconds, num_slots=number, least_seconds=slot_seconds / at_once, now=now)
        for dues, number in ((mine, share), (everyone, num_slots))
    )
    return Assessment(slot_seconds, earliest, "")


def _held_by_trainings(session: Session) -> set[str]:
    """Ids of the slots that are held by trainings without a promise."""
    query = (
        select(col(Lease.slot_id))
        .join(Job, col(Job.id) == col(Lease.job_id))
        .where(col(Lease.state).in_(LIVE_LEASE_STATES), col(Job.kind) == TRAINING, col(Job.promise_at).is_(None))
    )
    return set(session.scalars(query))
