"""Migrations make exactly the tables that the code describes and keep an older version's rows, on both databases."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import MetaData, Table, text
from sqlmodel import SQLModel

from jobs.data.rows import Result, RowError
from jobs.db import migrations
from jobs.db.database import Database
from jobs.db.states import ChunkState, JobState, LeaseState
from jobs.db.tables import Chunk, Job, Lease, LeaseCounts, Slot
from jobs.errors import StokerError
from jobs.ledger import chunks
from jobs.ledger import jobs as job_ledger
from jobs.ledger.accounts import totals, usage
from jobs.ledger.chunks import ChunkResults
from jobs.ledger.leasing import leases
from jobs.ledger.records import notices
from tests.conftest import run_sql, url_of
from tests.support.ledger import COUNTERS
from tests.support.statements import explained


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database of each kind without any tables."""
    if request.param == "sqlite":
        db = Database(f"sqlite:///{tmp_path / 'empty.db'}")
        yield db
        db.close()
        return
    server, name = request.getfixturevalue("postgres_server"), f"test_{secrets.token_hex(6)}"
    run_sql(server, f"CREATE DATABASE {name}")
    db = Database(url_of(server, name))
    yield db
    db.close()
    run_sql(server, f"DROP DATABASE {name} WITH (FORCE)")


def insert_as_it_was(db: Database, *rows: SQLModel) -> None:
    """Insert rows into tables that lack the newer columns."""
    with db.engine.connect() as connection, connection.begin():
        for row in rows:
            table = Table(str(row.__tablename__), MetaData(), autoload_with=connection)
            values = {name: getattr(row, COUNTERS.get(name, name), None) for name in table.columns.keys()}  # noqa: SIM118 - iterating gives columns
            connection.execute(table.insert().values({name: plain(value) for name, value in values.items()}))


def test_a_job_that_waits_for_a_model_waits_after_the_upgrade(empty_database: Database) -> None:
    db = empty_database
    migrations.upgrade(db, "0007")
    common = {"kind": "training", "spec": {}, "created_at": 5.0}
    ended = {"job_live": JobState.RUNNING, "job_done": JobState.COMPLETED}
    insert_as_it_was(db, *(Job(id=job_id, state=state, **common) for job_id, state in ended.items()))
    waiting = {f"of_{job_id}": job_id for job_id in ended}
    insert_as_it_was(db, *(Job(id=job_id, state=JobState.VALIDATING, **common) for job_id in waiting))
    for job_id, parent_id in waiting.items():
        with db.write() as tx:
            tx.execute(text(f"UPDATE jobs SET waits_for = '{parent_id}' WHERE id = '{job_id}'"))
    migrations.upgrade(db)
    assert job_ledger.fail(db, "job_live", StokerError("it broke"))
    with db.read() as session:
        assert session.get_one(Job, "of_job_live").state == JobState.CANCELLED
        assert session.get_one(Job, "of_job_done").ready_at == 5.0


def plain(value: object) -> object:
    """A state as the text that the database holds."""
    return value.value if isinstance(value, StrEnum) else value


def test_totals_are_counted_again_by_project(empty_database: Database) -> None:
    db = empty_database
    migrations.upgrade(db, "0019")
    rows = {"kind": "inference", "spec": {}, "created_at": 5.0, "started_at": 5.0, "num_rows": 10, "own_done": 1}
    states = (JobState.QUEUED, JobState.RUNNING, JobState.COMPLETED)
    jobs = [Job(id=f"job_{name}_{state}", project=name, state=state, **rows) for name in "ab" for state in states]
    insert_as_it_was(db, *jobs, Job(id="job_c", project="a", state=JobState.QUEUED, **rows))
    with db.write() as tx:
        tx.add_all([LeaseCounts(lease_id=one.id, job_id=one.id, num_done=4) for one in jobs])
    migrations.upgrade(db)
    with db.read() as session:
        assert usage.queue_of(session, "a").num_rows == 5 + 5 + 9
        assert usage.queue_of(session, "b").num_rows == 5 + 5
        found = totals.read(session)
    assert found["inference", JobState.QUEUED] == {
        "num_jobs": 3, "num_rows": 30, "num_done": 11, "num_failed": 0, "num_tokens": 0,
    }  # fmt: skip
    assert found["inference", JobState.COMPLETED]["num_done"] == 10


def test_the_revision_is_read_at_once_and_an_empty_database_has_none(empty_database: Database) -> None:
    assert migrations.current(empty_database) is None
    migrations.upgrade(empty_database, "0003")
    with explained(empty_database) as plans:
        assert migrations.current(empty_database) == "0003"
    assert list(plans.found) == ["SELECT version_num FROM alembic_version"]


def test_the_migrated_schema_is_the_one_of_the_tables(database: Database) -> None:
    """A column that only the code knows fails at its first use, at a user's."""
    assert migrations.current(database) == migrations.head()
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, SQLModel.metadata) == []


def test_a_live_job_goes_on_after_the_upgrade_from_0003(empty_database: Database) -> None:
    db = empty_database
    assert migrations.upgrade(db, "0003") == "0003"
    now = time.time()
    half = {"job_id": "job_old", "locator": {}}
    insert_as_it_was(
        db,
        Job(id="job_old", kind="inference", state=JobState.RUNNING, spec={}, num_rows=4, own_done=2, created_at=now,
            started_at=now),
        Slot(id="slot_old", host="here", device="cpu", name="CPU", registered_at=now, heartbeat_at=now),
        Lease(
            id="lease_old", job_id="job_old", slot_id="slot_old", state=LeaseState.ACTIVE, granted_at=now, rung_at=now,
            activated_at=now, expires_at=now + 600,
        ),
        Chunk(start_row=0, stop_row=2, state=ChunkState.DONE, lease_id="lease_old", **half),
        Chunk(start_row=2, stop_row=4, state=ChunkState.LEASED, lease_id="lease_old", **half),
    )  # fmt: skip

    assert migrations.upgrade(db) == migrations.head()
    with db.read() as session:
        job, lease = session.get_one(Job, "job_old"), session.get_one(Lease, "lease_old")
        assert (job.pins, job.max_row_errors, job.row_error) == (None, None, None)
        assert (job.num_first, job.is_mixed) == (0, False)
        assert job.ready_at == job.created_at == now
        assert (lease.state, lease.activity, lease.activity_at) == (LeaseState.ACTIVE, None, None)
        assert notices.of_jobs(session, ["job_old"]) == {}

    leases.renew(db, "lease_old", lease_seconds=600.0, doing=leases.RunnerActivity("computing rows", seconds=0.0))
    failed = [Result(row, None, error=RowError("empty_row", "the text has no tokens")) for row in (2, 3)]
    chunks.commit(db, "lease_old", [ChunkResults(2, 4, failed)])
    with db.read() as session:
        job = session.get_one(Job, "job_old")
        # Whether the rows that the older version recorded failed for one cause is unknown, so the job continues.
        assert (job.state, job.num_done, job.num_failed) == (JobState.FINALIZING, 4, 2)
        assert session.get_one(LeaseCounts, "lease_old").num_first == 2
