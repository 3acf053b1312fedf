"""The leader lock: one scheduler acts at a time, and a dead or frozen one is followed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import delete, update

from jobs.db.database import Database
from jobs.db.tables import LeaderLock
from scheduler.control.leader import Leader
from tests.conftest import wait_until


@pytest.fixture
def pair(database: Database) -> Iterator[tuple[Leader, Leader]]:
    leaders = Leader(database, leader_seconds=30.0), Leader(database, leader_seconds=30.0)
    yield leaders
    for leader in leaders:
        leader.resign()


def expire_lock(database: Database) -> None:
    """As if the lock's life had passed without a renewal."""
    with database.write() as session:
        session.execute(update(LeaderLock).values(expires_at=0.0))


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
    wait_until(lambda: expire_lock(database) or second.acquire() == 0.0, "the second takes over")
    wait_until(lambda: not first.held, "the first steps down")
    assert second.held
    first.resign()
    assert first.acquire() > 0.0, "what the first gave back was not its own any more"
    second.resign()


def test_a_lock_is_renewed_beyond_its_life(database: Database) -> None:
    first, second = Leader(database, leader_seconds=1.5), Leader(database, leader_seconds=1.5)
    first.acquire()
    with database.read() as session:
        begun = session.time()

    def two_lives_have_passed() -> bool:
        assert second.acquire() > 0.0
        with database.read() as session:
            return session.time() > begun + 3.0

    wait_until(two_lives_have_passed, "two lives of the lock pass")
    assert first.held
    first.resign()


def test_a_lock_that_vanished_is_not_held(database: Database) -> None:
    leader = Leader(database, leader_seconds=0.3)
    leader.acquire()
    with database.write() as session:
        session.execute(delete(LeaderLock))
    wait_until(lambda: not leader.held, "the leader notices")
    assert leader.acquire() == 0.0
    leader.resign()
