"""A runner's output in the database: no line within the limit is lost, and no secret gets there."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.ledger.leasing.leases import WorkingLease
from jobs.ledger.logs import lines_of
from tests.conftest import wait_until
from tests.support.leased_job import LeasedJob
from worker.keeper.joblog import JobLog


@pytest.fixture
def lease(sqlite_database: Database, settings: Settings, tmp_path: Path) -> WorkingLease:
    return LeasedJob(sqlite_database, settings, tmp_path, [{"id": "r0", "text": "x"}]).lease()


def _lines(database: Database, lease: WorkingLease) -> list[str]:
    with database.read() as session:
        return [line.line for line in lines_of(session, lease.job_id, limit=100_000)]


def test_lines_are_kept_in_order_while_the_lease_runs(
    sqlite_database: Database, settings: Settings, lease: WorkingLease
) -> None:
    log = JobLog(sqlite_database, settings, max_lines=settings.log_lines)
    log.line(1.0, "before any lease")
    log.open(lease)
    for index in range(250):
        log.line(2.0, f"line {index}")
    wait_until(lambda: len(_lines(sqlite_database, lease)) == 250, "a running job's log can be followed")
    log.close()
    log.line(3.0, "after it")
    log.end()
    assert _lines(sqlite_database, lease) == [f"line {index}" for index in range(250)]


def test_what_does_not_fit_is_counted(sqlite_database: Database, settings: Settings, lease: WorkingLease) -> None:
    log = JobLog(sqlite_database, settings, max_lines=3)
    log.open(lease)
    for index in range(10):
        log.line(1.0, f"line {index}")
    log.end()
    *kept, note = _lines(sqlite_database, lease)
    assert kept == ["line 0", "line 1", "line 2"]
    assert note == "[7 more lines were not kept; log_lines is 3]"


def test_secrets_are_blotted_out(sqlite_database: Database, settings: Settings, lease: WorkingLease) -> None:
    secret = settings.model_copy(
        update={
            "api_key": SecretStr("sk-very-secret"),
            "redis_url": "redis://:hunter2@example.com",
            "database_url": "postgresql://stoker:p%40ss@example.com/stoker",
        }
    )
    log = JobLog(sqlite_database, secret, max_lines=100)
    log.open(lease)
    log.line(1.0, "could not connect to redis://:hunter2@example.com with sk-very-secret and p@ss nor p%40ss")
    log.end()
    assert _lines(sqlite_database, lease) == ["could not connect to redis://:***@example.com with *** and *** nor ***"]


def test_a_database_that_is_away_blocks_no_log_line(
    settings: Settings, lease: WorkingLease, caplog: pytest.LogCaptureFixture
) -> None:
    away = Database("sqlite:////nowhere/at/all.db")
    log = JobLog(away, settings, max_lines=settings.log_lines)
    log.open(lease)
    for index in range(20_000):
        log.line(1.0, f"line {index}")
    log.end()
    assert sum("are dropped" in message for message in caplog.messages) == 1
    away.close()
