"""Read a running stack's database: a job's history, chunks and leases, and whether they are consistent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import func, select
from sqlmodel import col

from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.states import LIVE_LEASE_STATES, ChunkState, JobState, LeaseState
from jobs.db.tables import Chunk, Event, Job, Lease, ResultRecord
from tests.conftest import wait_until
from tests.support.stack import Stack


class Records:
    """A reader of one stack's database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def job(self, job_id: str) -> Job:
        """The job's row."""
        with self.database.read() as session:
            return session.get_one(Job, job_id)

    def chunks(self, job_id: str) -> list[Chunk]:
        """The job's chunks in row order."""
        with self.database.read() as session:
            return list(
                session.scalars(select(Chunk).where(col(Chunk.job_id) == job_id).order_by(col(Chunk.start_row)))
            )

    def num_rows_done(self, job_id: str) -> int:
        """Number of rows of the job's finished chunks."""
        ended = (ChunkState.DONE, ChunkState.FAILED)
        return sum(chunk.stop_row - chunk.start_row for chunk in self.chunks(job_id) if chunk.state in ended)

    def leases(self, job_id: str | None = None) -> list[Lease]:
        """The leases of a job, or of all jobs, oldest first."""
        query = select(Lease).order_by(col(Lease.granted_at), col(Lease.id))
        with self.database.read() as session:
            return list(session.scalars(query if job_id is None else query.where(col(Lease.job_id) == job_id)))

    def live_leases(self, job_id: str | None = None) -> list[Lease]:
        """The live leases of a job, or of all jobs."""
        return [lease for lease in self.leases(job_id) if lease.state in LIVE_LEASE_STATES]

    def active_leases(self, job_id: str) -> list[Lease]:
        """The active leases of a job."""
        return [lease for lease in self.leases(job_id) if lease.state == LeaseState.ACTIVE]

    def events(self, job_id: str, *names: str) -> list[Event]:
        """The job's events, oldest first; only events with these names if any are given."""
        query = select(Event).where(col(Event.job_id) == job_id).order_by(col(Event.id))
        with self.database.read() as session:
            return [event for event in session.scalars(query) if not names or event.name in names]

    def data(self, job_id: str, *names: str) -> list[dict[str, Any]]:
        """The data of these events."""
        return [event.data for event in self.events(job_id, *names)]

    def assert_sound(self, job_id: str) -> None:
        """Check the invariants of a job that has ended, whatever its final state."""
        job = self.job(job_id)
        assert job.state.is_terminal, job.state
        endings = [f"job.{state.value}" for state in JobState if state.is_terminal]
        assert [event.name for event in self.events(job_id, *endings)] == [f"job.{job.state.value}"]
        with self.database.read() as session:
            of_job = col(ResultRecord.job_id) == job_id
            num_results = session.scalar(select(func.count()).where(of_job))
            num_errors = session.scalar(select(func.count()).where(of_job, col(ResultRecord.error).is_not(None)))
        assert job.num_done == self.num_rows_done(job_id)
        if job.spec["output"]["to"] == "database":
            assert (num_results, num_errors) == (job.num_done, job.num_failed)
        if job.state == JobState.COMPLETED:
            assert job.num_done == job.num_rows
        wait_until(lambda: not self.live_leases(job_id), f"the end of the leases of {job_id}")


@contextmanager
def records_of(running: Stack) -> Iterator[Records]:
    """The records of a running stack."""
    url = running.environment.get("STOKER_DATABASE_URL")
    database = Database(url or Settings(data_dir=running.data_dir).resolved_database_url)
    try:
        yield Records(database)
    finally:
        database.close()
