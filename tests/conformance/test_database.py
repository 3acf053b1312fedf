"""A database's connections and transactions, on SQLite and PostgreSQL."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import delete, event, exists, select, text, update
from sqlmodel import col

from jobs.db.database import Database
from jobs.db.tables import Event, LeaderLock
from jobs.specs.bounds import LONGEST_ENTRY_CHARACTERS


@pytest.mark.parametrize("is_late", [False, True], ids=["before", "after"])
def test_a_connection_in_use_is_closed_as_soon_as_it_comes_back(database_url: str, is_late: bool) -> None:
    database = Database(database_url)
    opened: list[Any] = []
    closed: list[Any] = []
    event.listen(database.engine, "connect", lambda connection, _: opened.append(connection))
    event.listen(database.engine, "close", lambda connection, _: closed.append(connection))
    if is_late:
        database.close()
    with database.read() as session:
        session.execute(text("SELECT 1"))
        database.close()
        assert len(opened) == 1
        assert closed == []
    assert closed == opened


def test_an_event_stands_only_with_its_change(database: Database) -> None:
    def fail() -> None:
        with database.write() as tx:
            tx.record("job_1", "job.queued")
            raise RuntimeError("the change failed")

    with pytest.raises(RuntimeError):
        fail()
    with database.write() as tx:
        tx.record("job_1", "job.failed", reason="x" * (LONGEST_ENTRY_CHARACTERS + 1), rows=3)
    with database.read() as tx:
        [event] = tx.scalars(select(Event)).all()
        assert abs(event.at - tx.time()) < 60.0
    assert event.name == "job.failed"
    assert event.data == {"reason": "x" * LONGEST_ENTRY_CHARACTERS, "rows": 3}


def test_an_event_is_written_after_the_changes_before_it(database: Database) -> None:
    with database.write() as tx:
        tx.add(LeaderLock(name="a", owner="me", expires_at=0.0))
        tx.record("job_1", "job.queued")
        with tx.no_autoflush:
            assert tx.execute(text("SELECT count(*) FROM leader")).scalar_one() == 1


def test_changed_counts_the_rows_whatever_the_condition(database: Database) -> None:
    with database.write() as tx:
        tx.add_all([LeaderLock(name=name, owner="me", expires_at=0.0) for name in "abc"])
        tx.record("job_1", "job.queued")
        mine = update(LeaderLock).where(col(LeaderLock.owner) == "me").values(expires_at=1.0)
        queued = exists().where(col(Event.job_id) == "job_1")
        assert tx.changed(mine) == 3
        assert tx.changed(mine.where(queued)) == 3
        assert tx.changed(mine.where(~queued)) == 0
        some = select(col(LeaderLock.name)).where(col(LeaderLock.name) != "b")
        assert tx.changed(update(LeaderLock).where(col(LeaderLock.name).in_(some)).values(owner="you")) == 2
        assert tx.changed(delete(LeaderLock).where(col(LeaderLock.owner) == "you")) == 2
