"""The leader lock: one scheduler acts at a time, and a dead or frozen one is followed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import delete, select
from sqlmodel import col

from jobs.db.database import Database
from jobs.db.tables import LeaderLock
from scheduler.control import leader
from scheduler.control.leader import Leader
from tests.conftest import wait_until
from tests.support.clock import Clock
from tests.support.ledger import expire_leader_lock


@pytest.fixture
def pair(database: Database) -> Iterator[tuple[Leader, Leader]]:
    leaders = Leader(database, leader_seconds=30.0), Leader(database, leader_seconds=30.0)
    yield leaders
    for each in leaders:
        each.resign()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def clocked(database_url: str, clock: Clock) -> Iterator[Database]:
    """A database that takes its time from the clock."""
    db = Database(database_url, clock=clock)
    yield db
    db.close()


def expires_at(database: Database) -> float:
    with database.read() as session:
        return session.scalars(select(col(LeaderLock.expires_at))).one()


def test_one_leads_and_the_other_learns_how_long_to_wait(pair: tuple[Leader, Leader]) -> None:
    first, second = pair
    assert first.acquire() == 0.0
    assert 0.0 < second.acquire() <= 30.0
    assert (first.held, second.held) == (True, False)


def test_a_leader_that_resigns_is_followed_at_once(pair: tuple[Leader, Leader]) -> None:
    first, second = pair
    first.acquire()
    first.resign()
    assert second.acquire() == 0.0
    assert (first.held, second.held) == (False, True)


def test_a_lock_that_ran_out_is_taken_and_its_old_holder_steps_down(database: Database) -> None:
    first = Leader(database, leader_seconds=0.3)
    second = Leader(database, leader_seconds=30.0)
    first.acquire()
    wait_until(lambda: expire_leader_lock(database) or second.acquire() == 0.0, "the second takes over")
    wait_until(lambda: not first.held, "the first steps down")
    assert second.held
    first.resign()
    assert first.acquire() > 0.0, "what the first gave back was not its own any more"
    second.resign()


def test_a_lock_is_renewed_beyond_its_life(clocked: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader, "_RENEWALS_PER_LIFE", 6000)  # one every 0.1 s
    first, second = Leader(clocked, leader_seconds=600.0), Leader(clocked, leader_seconds=600.0)
    assert first.acquire() == 0.0
    try:
        for _ in range(4):  # two lives and more
            clock.time += 400.0
            wait_until(lambda: expires_at(clocked) == clock.time + 600.0, "the lock is renewed")
            assert second.acquire() == 600.0
        assert first.held
    finally:
        first.resign()


def test_a_lock_that_vanished_is_not_held(database: Database) -> None:
    holder = Leader(database, leader_seconds=0.3)
    holder.acquire()
    with database.write() as session:
        session.execute(delete(LeaderLock))
    wait_until(lambda: not holder.held, "the leader notices")
    assert holder.acquire() == 0.0
    holder.resign()
