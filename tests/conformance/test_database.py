"""A database's connections and transactions, on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, event, exists, select, text, update
from sqlmodel import col

from jobs.db.database import Database
from jobs.db.tables import Event, LeaderLock
from jobs.specs.bounds import LONGEST_ENTRY_CHARACTERS
from tests.conftest import wait_until


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


def test_a_writer_on_sqlite_waits_in_the_kernels_queue(sqlite_database: Database) -> None:
    """SQLite's own wait sleeps longer and longer, so that one busy slot would keep another without work."""
    has_written = threading.Event()

    def write() -> None:
        with sqlite_database.write() as tx:
            tx.record("job_1", "job.queued")
        has_written.set()

    with sqlite_database.write():
        turn = Path(f"{sqlite_database.url.database}-turn")
        writer = threading.Thread(target=write)
        writer.start()
        wait_until(lambda: is_waited_for(turn), "the second writer is queued")
        assert not has_written.is_set()
    writer.join()
    assert has_written.is_set()


def test_the_clock_is_that_of_the_database(database: Database) -> None:
    """A time that a decision reads may be compared with one that a statement wrote in the same millisecond."""
    for _ in range(500):
        with database.read() as tx:
            before, written, after = tx.time(), tx.scalar(select(tx.now())), tx.time()
        assert written is not None
        assert before <= written <= after


def is_waited_for(lock: Path) -> bool:
    """Whether the kernel has a waiter for a file's lock (`man 5 proc_locks`: lines with an arrow wait)."""
    waiting = [line for line in Path("/proc/locks").read_text().splitlines() if "->" in line]
    return any(line.split()[6].endswith(f":{lock.stat().st_ino}") for line in waiting)


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


def test_changed_counts_the_rows_of_any_condition(database: Database) -> None:
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
