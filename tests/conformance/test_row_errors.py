"""A job fails for its rows in the transaction that records them: exactly at its limit, in any course of events."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col

from jobs.config.settings import Settings
from jobs.data.rows import Result, RowError
from jobs.db.database import Database
from jobs.db.states import JobState
from jobs.db.tables import Job
from jobs.errors import LostLease
from jobs.ledger import chunks, overdue
from jobs.ledger import jobs as job_ledger
from jobs.ledger.leasing import leases
from jobs.ledger.records import history
from tests.support.leased_job import LeasedJob

NO_TEXT = RowError("null_value", "the row has no text")


def job_of(database: Database, settings: Settings, folder: Path, num_rows: int, **spec: Any) -> LeasedJob:
    """A job in chunks of two rows."""
    records = [{"id": f"r{row}", "text": "a"} for row in range(num_rows)]
    return LeasedJob(database, settings, folder, records, chunk_rows=2, **spec)


def commit(job: LeasedJob, lease_id: str, start_row: int, bad: Sequence[int]) -> None:
    """Record a chunk of two rows, some of them without an output."""
    rows = (start_row, start_row + 1)
    results = [Result(row, f"r{row}", error=NO_TEXT) if row in bad else Result(row, f"r{row}", 1) for row in rows]
    sink = job.sink()
    record = chunks.ChunkResults(start_row, start_row + 2, results)
    chunks.commit(job.database, lease_id, [record], lambda session: sink.record(session, job.job_id, results))


def claim_all(job: LeasedJob, lease_id: str) -> list[int]:
    return [claim.start_row for claim in chunks.claim(job.database, lease_id, limit=100)]


def test_a_job_without_one_good_row_fails_with_its_error(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    job = job_of(database, settings, tmp_path, 4)
    first, second = job.lease("s0"), job.lease("s1")
    assert [claim.start_row for claim in chunks.claim(database, second.lease_id, limit=1)] == [0]
    assert claim_all(job, first.lease_id) == [2]
    commit(job, first.lease_id, 2, bad=(2, 3))
    assert job.job().state == JobState.RUNNING
    commit(job, second.lease_id, 0, bad=(0, 1))
    failed = job.job()
    assert (failed.state, failed.error_code, failed.num_done, failed.num_failed) == (
        JobState.FAILED, "too_many_row_errors", 4, 4,
    )  # fmt: skip
    assert failed.error_message is not None
    assert failed.error_message.startswith(
        "all 4 rows failed with the same error; row 0: null_value: the row has no text"
    )
    assert [result.error for result in job.results()] == [NO_TEXT] * 4
    with database.read() as session:
        names = [event.name for event in history.events(session, job.job_id)]
    assert names.count("job.failed") == 1
    assert "job.finalizing" not in names


def test_a_limit_fails_the_job_at_the_commit_that_passes_it(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    job = job_of(database, settings, tmp_path, 8, max_row_errors="25%")
    first, second = job.lease("s0"), job.lease("s1")
    assert [claim.start_row for claim in chunks.claim(database, second.lease_id, limit=1)] == [0]
    assert claim_all(job, first.lease_id) == [2, 4, 6]
    commit(job, first.lease_id, 4, bad=(4, 5))
    commit(job, first.lease_id, 2, bad=())
    assert job.job().state == JobState.RUNNING
    commit(job, first.lease_id, 6, bad=(7,))
    failed = job.job()
    assert (failed.state, failed.num_done, failed.num_failed) == (JobState.FAILED, 6, 3)
    assert failed.error_message is not None
    assert failed.error_message.startswith("3 of 8 rows failed, but max_row_errors is 25%; row 4: null_value")
    with pytest.raises(LostLease):
        commit(job, second.lease_id, 0, bad=())
    assert [result.row_index for result in job.results()] == list(range(2, 8)), "what was recorded stays readable"
    assert claim_all(job, second.lease_id) == []


def test_a_lost_lease_counts_no_row_errors(database: Database, settings: Settings, tmp_path: Path) -> None:
    job = job_of(database, settings, tmp_path, 4, max_row_errors=1)
    zombie = job.lease("s0")
    assert claim_all(job, zombie.lease_id) == [0, 2]
    with database.write() as session:
        session.execute(update(leases.Lease).where(col(leases.Lease.id) == zombie.lease_id).values(expires_at=0.0))
    leases.expire_dead(database, settings)
    overdue.requeue_idle(database)
    for _ in range(2):
        with pytest.raises(LostLease):
            commit(job, zombie.lease_id, 0, bad=(0, 1))
    heir = job.lease("s1")
    assert claim_all(job, heir.lease_id) == [0, 2]
    commit(job, heir.lease_id, 0, bad=(1,))
    commit(job, heir.lease_id, 2, bad=())
    finished = job.job()
    assert (finished.state, finished.num_failed) == (JobState.FINALIZING, 1)


@pytest.mark.parametrize("limit", ["100%", 4])
def test_a_limit_that_all_rows_fit_lets_the_job_complete(
    limit: str | int, sqlite_database: Database, settings: Settings, tmp_path: Path
) -> None:
    job = job_of(sqlite_database, settings, tmp_path, 4, max_row_errors=limit)
    lease = job.lease()
    for start_row in claim_all(job, lease.lease_id):
        commit(job, lease.lease_id, start_row, bad=range(4))
    assert job.job().state == JobState.FINALIZING


def test_a_batch_job_has_an_error_for_each_line(sqlite_database: Database, settings: Settings, tmp_path: Path) -> None:
    job = job_of(sqlite_database, settings, tmp_path, 4)
    with sqlite_database.write() as session:
        session.execute(update(Job).where(col(Job.id) == job.job_id).values(batch_id="batch_1"))
    lease = job.lease()
    for start_row in claim_all(job, lease.lease_id):
        commit(job, lease.lease_id, start_row, bad=range(4))
    assert job.job().state == JobState.FINALIZING


def test_a_job_that_is_being_cancelled_is_cancelled(
    sqlite_database: Database, settings: Settings, tmp_path: Path
) -> None:
    job = job_of(sqlite_database, settings, tmp_path, 4)
    lease = job.lease()
    starts = claim_all(job, lease.lease_id)
    job_ledger.cancel(sqlite_database, job.job_id)
    for start_row in starts:
        commit(job, lease.lease_id, start_row, bad=range(4))
    leases.release(sqlite_database, lease.lease_id, "stopped")
    assert job.job().state == JobState.CANCELLED
