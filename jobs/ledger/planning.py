"""Write the chunks of a validated job and queue it, or queue a job that has no chunks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, Protocol

from sqlalchemy import delete, insert, select
from sqlmodel import Session, col

from jobs.access.pins import Pins
from jobs.db.database import Database
from jobs.db.ids import new_id
from jobs.db.moves import move
from jobs.db.states import ChunkState, JobState
from jobs.db.tables import Chunk, Job
from jobs.errors import Conflict
from jobs.specs.needs import NO_NEEDS, Needs

_PLAN_BATCH = 2000  # chunks written in one transaction, so that planning never holds the write lock for long


class PlannedChunk(Protocol):
    """A chunk as the planner computes it."""

    @property
    def start_row(self) -> int:
        """Index of the first row."""

    @property
    def stop_row(self) -> int:
        """Index of the row after the last one."""

    @property
    def locator(self) -> dict[str, Any]:
        """Position in the source from which the chunk can be read."""


def plan(
    db: Database,
    job_id: str,
    chunks: Iterable[PlannedChunk],
    *,
    pins: Pins | None = None,
    needs: Needs = NO_NEEDS,
) -> int:
    """Write a validating job's chunks and queue it, replacing the chunks of an interrupted earlier call.

    Args:
        chunks: Contiguous row ranges from row 0 on, read lazily and written in transactions of `_PLAN_BATCH` chunks.
        pins: Versions of the model files and code that the job uses; None keeps those stored at its submission.
        needs: What the job's slots must have.

    Returns:
        The number of rows.

    Raises:
        Conflict: The job is no longer validating (it was cancelled, for example), or another scheduler plans it.
    """
    num_rows = num_chunks = 0
    token = new_id("plan")
    remaining = iter(chunks)
    batch = list(itertools.islice(remaining, _PLAN_BATCH))
    while True:
        records = []
        for chunk in batch:
            if chunk.start_row != num_rows or chunk.stop_row <= chunk.start_row:
                raise ValueError(f"chunk [{chunk.start_row}, {chunk.stop_row}) does not follow row {num_rows}")
            num_rows = chunk.stop_row
            records.append(_chunk_record(job_id, chunk))
        following = list(itertools.islice(remaining, _PLAN_BATCH))
        with db.write() as tx:
            job = _lock_validating(tx, job_id)
            if num_chunks == 0:  # also invalidates the token of an interrupted or concurrent planning
                tx.execute(delete(Chunk).where(col(Chunk.job_id) == job_id))
                job.plan_token = token
            elif job.plan_token != token:
                raise Conflict(f"job {job_id} is also being planned by another scheduler")
            if records:
                tx.execute(insert(Chunk), records)
            num_chunks += len(records)
            if not following:  # in the same transaction as the last chunks, so a small plan needs only one
                _queue(job, pins, needs)
                job.num_rows = num_rows
                tx.record(job_id, "job.queued", rows=num_rows, chunks=num_chunks)
        if not following:
            return num_rows
        batch = following


def enqueue(db: Database, job_id: str, *, pins: Pins | None = None, needs: Needs = NO_NEEDS, num_rows: int = 0) -> None:
    """Queue a validating job that has no chunks, such as a training.

    Args:
        num_rows: For an array, the number of its children.
        pins: See `plan`.
        needs: See `plan`.

    Raises:
        Conflict: The job is no longer validating.
    """
    with db.write() as tx:
        job = _lock_validating(tx, job_id)
        _queue(job, pins, needs)
        job.num_rows = num_rows
        tx.record(job_id, "job.queued")


def _lock_validating(session: Session, job_id: str) -> Job:
    """Lock the job's row, so that no other transaction cancels it or ends its planning meanwhile."""
    job = session.scalar(select(Job).where(col(Job.id) == job_id).with_for_update(key_share=True))
    if job is None or job.state != JobState.VALIDATING:
        raise Conflict(f"job {job_id} is no longer being planned")
    return job


def _queue(job: Job, pins: Pins | None, needs: Needs) -> None:
    move(job, JobState.QUEUED)
    job.needs = needs.stored()
    if pins is not None:
        job.pins = pins.stored()


def _chunk_record(job_id: str, chunk: PlannedChunk) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "start_row": chunk.start_row,
        "stop_row": chunk.stop_row,
        "locator": chunk.locator,
        "state": ChunkState.PENDING,
        "attempt": 1,
        "crashes": 0,
        "errors": 0,
        "not_before": 0.0,
    }
