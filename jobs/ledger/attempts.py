"""Records the attempts of training jobs, fenced by their leases: begin, advance, keep checkpoints, finish."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, func, select, update
from sqlmodel import Session, col

from jobs.data.drafts import StoredObject
from jobs.db.database import Database
from jobs.db.moves import moving
from jobs.db.states import AttemptEnd, JobState
from jobs.db.tables import Artifact, Attempt, Checkpoint, Job, Lease, Metric
from jobs.db.transaction import Transaction
from jobs.errors import LostLease
from jobs.ledger import early_stopping
from jobs.ledger.leasing import lost_work
from jobs.ledger.leasing.leases import fenced
from jobs.specs.training_options.training_metrics import Mode, is_better

_POINTS_AT_ONCE = 1000  # rows of one SQL statement
_NEWEST_POINTS = 300  # limits the cost of a query for long trainings

Point = tuple[int, str, float]
"""(step, name, value) of one metric."""


@dataclass(frozen=True, slots=True)
class NewCheckpoint:
    """A checkpoint that is complete in the store."""

    step: int
    prefix: str
    files: Sequence[StoredObject]
    metric: float | None = None


@dataclass(frozen=True, slots=True)
class KeepRule:
    """Which checkpoints of a job are kept."""

    newest: int
    best: str | None = None
    """Name of the metric by which the best checkpoint is kept as well."""
    mode: Mode = "min"
    """Whether the least or the largest value of `best` is the best."""


def begin(db: Database, lease_id: str, *, resumed_step: int, num_halvings: int = 0) -> Attempt:
    """Record an attempt before its first step.

    Raises:
        LostLease: The lease is no longer active.
    """
    with fenced(db, lease_id) as (tx, lease):
        attempt = Attempt(
            job_id=lease.job_id,
            number=lease.attempt,
            lease_id=lease.id,
            slot_id=lease.slot_id,
            started_at=tx.time(),
            resumed_step=resumed_step,
            last_step=resumed_step,
            num_halvings=num_halvings,
        )
        tx.add(attempt)
        tx.record(
            lease.job_id, "attempt.began", lease=lease.id, slot=lease.slot_id, attempt=lease.attempt,
            resumed_step=resumed_step, num_halvings=num_halvings,
        )  # fmt: skip
        return attempt


def advance(db: Database, lease_id: str, *, step: int, total_steps: int, points: Sequence[Point]) -> bool:
    """Record completed steps and their metrics. Metrics of a step that an earlier attempt recorded are replaced.

    Returns:
        Whether the training is to end after its current step, because its sweep ends it early.

    Raises:
        LostLease: The lease is no longer active, or the job has ended; nothing was recorded.
    """
    with fenced(db, lease_id) as (tx, lease):
        records = [
            {
                "job_id": lease.job_id,
                "step": at,
                "name": name,
                "value": value if math.isfinite(value) else None,
                "attempt": lease.attempt,
            }
            for (at, name), value in {(at, name): value for at, name, value in points}.items()
        ]
        for first in range(0, len(records), _POINTS_AT_ONCE):
            insert = tx.insert(Metric).values(records[first : first + _POINTS_AT_ONCE])
            changed = {"value": insert.excluded.value, "attempt": insert.excluded.attempt}
            tx.execute(insert.on_conflict_do_update(index_elements=["job_id", "step", "name"], set_=changed))
        at_step = update(Attempt).where(col(Attempt.job_id) == lease.job_id, col(Attempt.number) == lease.attempt)
        begun_at = func.coalesce(Attempt.begun_at, tx.now())
        tx.execute(at_step.values(last_step=step, begun_at=begun_at, advanced_at=tx.now()))
        return _count_steps(tx, lease, step, total_steps, points)


def keep_checkpoint(db: Database, lease_id: str, new: NewCheckpoint, rule: KeepRule) -> list[str]:
    """Record a checkpoint as the newest of its job.

    Returns:
        Prefixes of the checkpoints that are no longer kept; the caller deletes their objects.

    Raises:
        LostLease: The lease is no longer active; the checkpoint was not recorded.
    """
    with fenced(db, lease_id) as (tx, lease):
        tx.flush()
        is_progress = all(one.step < new.step for one in checkpoints(tx, lease.job_id))
        before = tx.get(Checkpoint, (lease.job_id, new.step))
        dropped = [] if before is None else [before.prefix]
        if before is not None:
            tx.delete(before)
            tx.flush()
        tx.add(
            Checkpoint(
                job_id=lease.job_id,
                step=new.step,
                attempt=lease.attempt,
                prefix=new.prefix,
                files=[
                    {"name": file.key.removeprefix(new.prefix), "num_bytes": file.num_bytes, "sha256": file.sha256}
                    for file in new.files
                ],
                metric=new.metric,
                created_at=tx.time(),
            )
        )
        if is_progress:  # earlier crashes no longer count
            tx.execute(update(Job).where(col(Job.id) == lease.job_id).values(crashes=0))
        tx.record(
            lease.job_id, "checkpoint.kept", lease=lease.id, step=new.step, metric=new.metric,
            bytes=sum(file.num_bytes for file in new.files),
        )  # fmt: skip
        for old in _superseded(checkpoints(tx, lease.job_id), rule):
            dropped.append(old.prefix)
            tx.delete(old)
        return dropped


def forget_checkpoint(db: Database, lease_id: str, step: int, reason: str) -> None:
    """Delete the record of a damaged checkpoint, so that an older one is used.

    Raises:
        LostLease: The lease is no longer active.
    """
    with fenced(db, lease_id) as (tx, lease):
        gone = delete(Checkpoint).where(col(Checkpoint.job_id) == lease.job_id, col(Checkpoint.step) == step)
        tx.execute(gone)
        tx.record(lease.job_id, "checkpoint.damaged", lease=lease.id, step=step, reason=reason)


def finish(db: Database, lease_id: str, made: Sequence[Artifact], *, step: int) -> None:
    """Record the artifacts of a training, end its attempt, and move its job to `finalizing`.

    Raises:
        LostLease: The lease is no longer active, or the job is not running; nothing was recorded.
    """
    with fenced(db, lease_id) as (tx, lease):
        finished = (
            moving(Job, JobState.RUNNING, JobState.FINALIZING)
            .where(col(Job.id) == lease.job_id)
            .values(own_done=step, num_rows=step, crashes=0)
        )
        if not tx.changed(finished):
            raise LostLease("the job has ended")
        for artifact in made:
            tx.merge(artifact)
        lost_work.end_attempt(tx, lease, AttemptEnd.COMPLETED, "the training is done")
        tx.record(lease.job_id, "job.finalizing")


# -- queries -------------------------------------------------------------------------------------------------------


def checkpoints(session: Session, job_id: str) -> list[Checkpoint]:
    """Return a job's checkpoints, newest first."""
    return list(
        session.scalars(
            select(Checkpoint).where(col(Checkpoint.job_id) == job_id).order_by(col(Checkpoint.step).desc())
        )
    )


def attempts(session: Session, job_id: str) -> list[Attempt]:
    """Return a job's attempts, oldest first."""
    return list(session.scalars(select(Attempt).where(col(Attempt.job_id) == job_id).order_by(col(Attempt.number))))


def slots_by_leader(session: Session, job_id: str) -> dict[str, list[str]]:
    """Return the slots of each attempt in the order of ranks, by the id of the leader's lease."""
    found = session.scalars(select(Lease).where(col(Lease.job_id) == job_id).order_by(col(Lease.rank))).all()
    by_gang: dict[str, list[str]] = {}
    for lease in found:
        by_gang.setdefault(lease.gang_id or lease.id, []).append(lease.slot_id)
    return {lease.id: by_gang[lease.gang_id or lease.id] for lease in found if lease.rank == 0}


def metrics(
    session: Session, job_id: str, *, name: str | None = None, after_step: int = -1, limit: int | None = None
) -> list[Metric]:
    """Return a job's metrics, ordered by step and name.

    Args:
        session: A session of the database.
        job_id: The job.
        name: Return only the metric of this name.
        after_step: Return only metrics of later steps.
        limit: Return at most this number of values.
    """
    query = select(Metric).where(col(Metric.job_id) == job_id, col(Metric.step) > after_step)
    if name is not None:
        query = query.where(col(Metric.name) == name)
    return list(session.scalars(query.order_by(col(Metric.step), col(Metric.name)).limit(limit)))


def latest_metrics(session: Session, job_id: str) -> dict[str, float]:
    """Return the latest finite value of each metric among a job's newest entries."""
    newest = select(Metric).where(col(Metric.job_id) == job_id).order_by(col(Metric.step).desc()).limit(_NEWEST_POINTS)
    latest: dict[str, float] = {}
    for one in session.scalars(newest):
        if one.value is not None:
            latest.setdefault(one.name, one.value)
    return dict(sorted(latest.items()))


def num_memory_failures(session: Session, job_id: str) -> int:
    """Return how many attempts of a job ended because a device ran out of memory."""
    counted = select(func.count()).where(col(Attempt.job_id) == job_id, col(Attempt.end) == AttemptEnd.OUT_OF_MEMORY)
    return session.scalar(counted) or 0


def _superseded(found: Sequence[Checkpoint], rule: KeepRule) -> list[Checkpoint]:
    """Return the checkpoints that the rule does not keep.

    Args:
        found: A job's checkpoints, newest first.
        rule: Which checkpoints are kept.
    """
    best: Checkpoint | None = None
    for one in found:
        if rule.best is None or one.metric is None:
            continue
        if best is None or best.metric is None or is_better(one.metric, best.metric, rule.mode):
            best = one
    return [one for place, one in enumerate(found) if place >= rule.newest and one is not best]


def _count_steps(tx: Transaction, lease: Lease, step: int, total_steps: int, points: Sequence[Point]) -> bool:
    """Count completed steps; returns whether the training is a trial that ends early."""
    counted = (
        update(Job)
        .where(
            col(Job.id) == lease.job_id,
            # A job that is being stopped still reaches its last step and checkpoints it.
            col(Job.state).in_((JobState.RUNNING, JobState.CANCELLING, JobState.EXPIRED)),
        )
        .values(own_done=step, num_rows=total_steps)
        .returning(col(Job.parent_id), col(Job.trial_values), col(Job.pruned_step))
    )
    job = tx.execute(counted).one_or_none()
    if job is None:
        raise LostLease("the job has ended")
    if job.trial_values is None or job.pruned_step is not None:
        return job.pruned_step is not None
    return early_stopping.prune(tx, lease, job.parent_id, points, total_steps=total_steps)
