"""Cron entries: add, list and remove them, and fire each scheduled time once.

A firing is one transaction: it submits the job and moves `next_at` on, under the entry's lock. So two schedulers make
one job, and so does a scheduler that is killed at any point and its successor.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col

from jobs.access.pins import Pins
from jobs.db.database import Database
from jobs.db.ids import new_id
from jobs.db.tables import Cron, Job
from jobs.db.transaction import Transaction
from jobs.errors import Conflict, NotFound
from jobs.ledger import jobs
from jobs.ledger.accounts import usage
from jobs.ledger.accounts.usage import RowsWanted
from jobs.ledger.records import pages
from jobs.specs.inference import JobSpec
from jobs.specs.schedule import Schedule, parse_schedule

_MOST_ENTRIES = 1000  # per project, since the scheduler looks at all of them


def add(db: Database, name: str, schedule: Schedule, spec: JobSpec, *, project: str) -> Cron:
    """Add an entry, which fires at the next time of its schedule.

    Args:
        name: Its name within the project.
        schedule: When it fires.
        spec: The spec to submit, already checked.

    Raises:
        Conflict: The project has an entry of this name, or the largest allowed number of entries.
    """
    try:
        with db.write() as tx:
            others = tx.scalar(select(func.count()).where(col(Cron.project) == project)) or 0
            if others >= _MOST_ENTRIES:
                raise Conflict(f"project '{project}' has {others} cron entries already; remove one first")
            now = tx.time()
            entry = Cron(
                id=new_id("cron"),
                project=project,
                name=name,
                schedule=schedule.expression,
                timezone=schedule.zone.key,
                spec=spec.model_dump(mode="json"),
                next_at=schedule.next_after(now),
                created_at=now,
            )
            tx.add(entry)
    except IntegrityError as error:
        raise Conflict(
            f"name: project '{project}' has a cron entry '{name}' already; remove it first", param="name"
        ) from error
    return entry


def get(session: Session, cron_id: str) -> Cron:
    """Return the entry with this id; raises NotFound."""
    return pages.find(session, Cron, cron_id)


def list_crons(
    session: Session, *, project: str | None, after: str | None = None, limit: int = 20
) -> tuple[list[Cron], bool]:
    """Return a page of entries and whether more follow; see `pages.owned_page`."""
    return pages.owned_page(session, Cron, project=project, after=after, limit=limit)


def remove(db: Database, cron_id: str) -> None:
    """Remove an entry. Jobs that it submitted are not changed.

    Raises:
        NotFound: There is no such entry.
    """
    with db.write() as tx:
        if not tx.changed(delete(Cron).where(col(Cron.id) == cron_id)):
            raise NotFound(f"there is no cron '{cron_id}'")


# -- fire ----------------------------------------------------------------------------------------------------------


def due(session: Transaction) -> list[str]:
    """Return the ids of the entries whose time has come, the one that is most overdue first."""
    is_due = select(col(Cron.id)).where(col(Cron.next_at) <= session.now())
    return list(session.scalars(is_due.order_by(col(Cron.next_at), col(Cron.id))))


def fire(
    db: Database, entry: Cron, spec: JobSpec, *, pins: Pins | None = None, wanted: RowsWanted | None = None
) -> str | None:
    """Submit the job of an entry that is due, for the latest of its scheduled times; earlier ones were missed.

    No job is submitted while the last one has not ended.

    Args:
        entry: The entry as it was read; nothing happens if it has fired since, or was removed.
        spec: The spec of the entry, checked and with the catalogue's values.
        pins: See `jobs.submit`.
        wanted: See `jobs.submit`.

    Returns:
        The id of the job; None if none was submitted.

    Raises:
        QueueFull: See `jobs.submit`.
        TooManyRows: See `jobs.submit`.
    """
    with db.write() as tx:
        locked = _lock(tx, entry)
        if locked is None:
            return None
        last = None if locked.last_job_id is None else tx.get(Job, locked.last_job_id)
        if last is not None and not last.state.is_terminal:
            _move_on(tx, locked, error=f"skipped: its last job, {last.id}, is {last.state}")
            return None
        num_rows = 0
        if wanted is not None:
            usage.reserve_rows(tx, locked.project, wanted)
            num_rows = wanted.num_rows or 0
        at = _move_on(tx, locked, error=None)
        key = f"{locked.id}/{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"
        job = jobs.add(tx, spec, project=locked.project, idempotency_key=key, num_rows=num_rows, pins=pins)
        locked.last_job_id = job.id
        return job.id


def skip(db: Database, entry: Cron, error: str) -> None:
    """Let a scheduled time pass without a job, and keep the reason. Nothing happens if the entry has fired since."""
    with db.write() as tx:
        locked = _lock(tx, entry)
        if locked is not None:
            _move_on(tx, locked, error=error)


def _lock(tx: Transaction, entry: Cron) -> Cron | None:
    """Lock an entry that has not fired since it was read; None if it has, or was removed."""
    same = select(Cron).where(col(Cron.id) == entry.id, col(Cron.next_at) == entry.next_at)
    return tx.scalar(same.with_for_update())


def _move_on(tx: Transaction, entry: Cron, *, error: str | None) -> float:
    """Set the next time of an entry. Returns the scheduled time that is dealt with now."""
    schedule, now = parse_schedule(entry.schedule, entry.timezone), tx.time()
    entry.last_at, entry.last_error = max(entry.next_at, schedule.latest(now)), error
    entry.next_at = schedule.next_after(max(now, entry.last_at))
    return entry.last_at
