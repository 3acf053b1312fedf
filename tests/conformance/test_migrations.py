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
from sqlalchemy import MetaData, Table
from sqlmodel import SQLModel

from jobs.data.rows import Result, RowError
from jobs.db import migrations
from jobs.db.database import Database
from jobs.db.states import ChunkState, JobState, LeaseState
from jobs.db.tables import Chunk, Job, Lease, Slot
from jobs.ledger import chunks, leases, notices
from jobs.ledger.chunks import ChunkResults
from tests.conftest import run_sql, url_of


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
            values = {name: getattr(row, name) for name in table.columns.keys()}  # noqa: SIM118 - iterating gives columns
            connection.execute(table.insert().values({name: plain(value) for name, value in values.items()}))


def plain(value: object) -> object:
    """A state as the text that the database holds."""
    return value.value if isinstance(value, StrEnum) else value


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
        Job(id="job_old", kind="inference", state=JobState.RUNNING, spec={}, num_rows=4, num_done=2, created_at=now),
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
        assert (lease.state, lease.activity, lease.activity_at) == (LeaseState.ACTIVE, None, None)
        assert notices.of_jobs(session, ["job_old"]) == {}

    leases.renew(db, "lease_old", lease_seconds=600.0, doing=leases.RunnerActivity("computing rows", seconds=0.0))
    failed = [Result(row, None, error=RowError("empty_row", "the text has no tokens")) for row in (2, 3)]
    chunks.commit(db, "lease_old", [ChunkResults(2, 4, failed)])
    with db.read() as session:
        job = session.get_one(Job, "job_old")
        # Of the rows that the older version recorded nobody knows whether they failed alike, so the job goes on.
        assert (job.state, job.num_done, job.num_failed, job.num_first) == (JobState.FINALIZING, 4, 2, 2)
        assert job.row_error is not None
        assert job.row_error["row"] == 2
