"""What projects have used of the slots: counted in the transaction that ends a lease, and with live leases when read.

Use decays: after `HALF_LIFE_SECONDS`, a slot-second counts half. It is kept as a number of slots (slot-seconds times
ln 2, divided by the half-life), so that it can be added to the slots that a project holds. A lease that was held from
`granted_at` to `ended_at` then counts 1 - 2 ** (-seconds / half-life) at its end.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import func, select
from sqlmodel import Session, col

from jobs.db.tables import IS_LIVE, Job, Lease, ProjectDay, ProjectUse
from jobs.db.transaction import Transaction

HALF_LIFE_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Use:
    """What one project holds and has used."""

    num_held: int = 0
    """Live leases."""
    num_slots: float = 0.0
    """Slots that it has used on average lately, with live leases."""
    month_seconds: float = 0.0
    """Slot-seconds of leases that ended this month (UTC) or are live."""


def charge(tx: Transaction, ended: Sequence[Lease]) -> None:
    """Count leases that end in this transaction.

    The rows of projects are locked last, just before the commit and in one order: then no transaction that waits for
    them holds up one that it waits for.
    """
    charged: list[Lease] | None = tx.info.get("charged")
    if charged is None:
        charged = tx.info["charged"] = []
        tx.before_commit(lambda: _charge(tx, tx.info.pop("charged")))
    charged.extend(ended)


def _charge(tx: Transaction, ended: Sequence[Lease]) -> None:
    now = tx.time()
    job_ids = {lease.job_id for lease in ended}
    rows = tx.execute(select(col(Job.id), col(Job.project)).where(col(Job.id).in_(job_ids)))
    project_of = {row.id: row.project for row in rows}
    held: dict[str, list[float]] = {}
    """Project -> seconds for which each of its leases was held."""
    for lease in ended:
        held.setdefault(project_of[lease.job_id], []).append(max(0.0, now - lease.granted_at))
    for project, seconds in sorted(held.items()):
        new = tx.insert(ProjectUse).values(project=project, num_slots=0.0, at=now)
        tx.execute(new.on_conflict_do_nothing())
        use = tx.scalars(select(ProjectUse).where(col(ProjectUse.project) == project).with_for_update()).one()
        use.num_slots, use.at = _decayed(use, now) + sum(map(_counted, seconds)), now
        day = tx.insert(ProjectDay).values(project=project, day=_day(now), slot_seconds=sum(seconds))
        more = {"slot_seconds": ProjectDay.slot_seconds + day.excluded.slot_seconds}
        tx.execute(day.on_conflict_do_update(index_elements=["project", "day"], set_=more))
    tx.flush()


def uses(session: Session, now: float) -> dict[str, Use]:
    """The use of each project that has used slots or holds some, by its name."""
    live = session.execute(
        select(col(Job.project), col(Lease.granted_at)).join(Job, col(Job.id) == col(Lease.job_id)).where(IS_LIVE)
    ).all()
    num_held = Counter(row.project for row in live)
    num_slots = {use.project: _decayed(use, now) for use in session.scalars(select(ProjectUse))}
    month = select(col(ProjectDay.project), func.sum(ProjectDay.slot_seconds).label("seconds")).where(
        col(ProjectDay.day) >= f"{_day(now)[:7]}-01"
    )
    rows = session.execute(month.group_by(col(ProjectDay.project)))
    month_seconds: dict[str, float] = {row.project: row.seconds for row in rows}
    for row in live:
        held = max(0.0, now - row.granted_at)
        num_slots[row.project] = num_slots.get(row.project, 0.0) + _counted(held)
        month_seconds[row.project] = month_seconds.get(row.project, 0.0) + held
    return {
        project: Use(num_held[project], num_slots.get(project, 0.0), month_seconds.get(project, 0.0))
        for project in sorted(num_slots.keys() | month_seconds.keys() | num_held.keys())
    }


def is_exhausted(use: Use | None, gpu_hours: float | None) -> bool:
    """Whether a project has used its GPU hours of this month."""
    return gpu_hours is not None and use is not None and use.month_seconds >= gpu_hours * 3600


def _counted(seconds: float) -> float:
    """What a lease counts at its end, in slots, if it was held for so long."""
    return 1.0 - math.exp2(-seconds / HALF_LIFE_SECONDS)


def _decayed(use: ProjectUse, now: float) -> float:
    return use.num_slots * math.exp2(-max(0.0, now - use.at) / HALF_LIFE_SECONDS)


def _day(now: float) -> str:
    return f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d}"
