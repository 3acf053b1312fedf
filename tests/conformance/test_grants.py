"""Grants of a pass on SQLite and PostgreSQL: few transactions, each grant whole or absent, no slot granted twice."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.states import LIVE_LEASE_STATES, JobState, SlotState
from jobs.db.tables import Job, Lease, Slot
from jobs.ledger import jobs as job_ledger
from jobs.ledger import slots
from jobs.ledger.leasing import grants
from jobs.ledger.leasing.grants import Grant, Granted
from jobs.ledger.records import history
from tests.support.ledger import LEASE_SECONDS, hold, job_state, make_job, make_slots
from tests.support.statements import count_commits


def write(db: Database, decided: Sequence[Grant]) -> list[Granted]:
    return list(grants.grant_all(db, decided, lease_seconds=LEASE_SECONDS))


def register(db: Database, num_slots: int) -> list[str]:
    """Online slots without workers."""
    names = [f"s{number:03}" for number in range(num_slots)]
    slots.register(db, [slots.SlotInfo(name, "host", "cpu", None, "CPU", 0, 1) for name in names])
    with db.write() as session:
        session.execute(update(Slot).values(state=SlotState.ONLINE))
    return names


def live(db: Database) -> dict[str, Lease]:
    """Slot -> its live lease."""
    with db.read() as session:
        found = session.scalars(select(Lease).where(col(Lease.state).in_(LIVE_LEASE_STATES))).all()
    assert len({lease.slot_id for lease in found}) == len(found)
    return {lease.slot_id: lease for lease in found}


def assert_whole(db: Database, decided: Sequence[Grant]) -> None:
    """Each grant has all of its leases, of one gang and one attempt, or none of them."""
    holders = live(db)
    for one in decided:
        of_grant = [holders[slot] for slot in one.slot_ids if slot in holders and holders[slot].job_id == one.job_id]
        assert len(of_grant) in (0, len(one.slot_ids))
        assert len({(lease.gang_id, lease.attempt) for lease in of_grant}) <= 1
        assert [lease.rank for lease in of_grant] == list(range(len(of_grant)))


def test_a_pass_of_1000_grants_is_written_in_few_transactions(database: Database) -> None:
    names = register(database, 1000)
    jobs = [make_job(database, num_chunks=1) for _ in range(10)]
    decided = [Grant(jobs[number % 10], (name,)) for number, name in enumerate(names)]
    with count_commits(database) as commits:
        written = write(database, decided)
    assert commits.number == len(written) <= 5
    rings = [ring for one in written for ring in one.rings]
    assert [ring.slot_id for ring in rings] == names
    assert {ring.slot_id: ring.lease_id for ring in rings} == {slot: lease.id for slot, lease in live(database).items()}
    for job_id in jobs:
        attempts = sorted(lease.attempt for lease in live(database).values() if lease.job_id == job_id)
        assert attempts == list(range(1, 101))
        with database.read() as session:
            job = job_ledger.get(session, job_id)
            events = Counter(event.name for event in history.events(session, job_id))
        assert (job.state, job.attempt, events["lease.granted"]) == (JobState.RUNNING, 100, 100)
        assert job.started_at is not None


def test_a_grant_that_comes_too_late_fails_alone(database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0", "s1", "s2", "s3", "s4", "s5", "s6")
    held, cancelled, waiting, gang, fine = (make_job(database) for _ in range(5))
    hold(database, held, "s0")
    job_ledger.cancel(database, cancelled)
    slots.retire(database, ["s3"])
    decided = [
        Grant(waiting, ("s0",)), Grant(cancelled, ("s1",)), Grant(gang, ("s2", "s3")), Grant(fine, ("s4",)),
        Grant(fine, ("s5", "s6")),
    ]  # fmt: skip
    (granted,) = write(database, decided)
    assert [str(conflict.message) for conflict in granted.conflicts] == [
        "one of the slots s0 already has a live lease",
        f"job {cancelled} is not waiting for slots",
        "one of the slots s2, s3 is not online",
    ]
    assert [ring.slot_id for ring in granted.rings] == ["s4", "s5", "s6"]
    assert {slot: lease.job_id for slot, lease in live(database).items()} == {
        "s0": held, "s4": fine, "s5": fine, "s6": fine,
    }  # fmt: skip
    assert [job_state(database, job_id) for job_id in (waiting, gang)] == [JobState.QUEUED] * 2
    assert_whole(database, decided[2:])


def test_a_slot_that_is_taken_in_the_last_moment_withdraws_its_whole_gang(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_slots(database, settings, "s0", "s1", "s2", "s3")
    held, gang, fine = (make_job(database) for _ in range(3))
    hold(database, held, "s2")
    names = {"s0", "s1", "s2", "s3"}
    monkeypatch.setattr(grants, "_slot_states", lambda *_: (names, set()))  # as it was a moment ago
    decided = [Grant(gang, ("s0", "s1", "s2")), Grant(fine, ("s3",))]
    (granted,) = write(database, decided)
    assert [ring.slot_id for ring in granted.rings] == ["s3"]
    assert set(live(database)) == {"s2", "s3"}
    assert job_state(database, gang) == JobState.QUEUED
    with database.read() as session:
        assert session.get_one(Job, gang).started_at is None
        assert "lease.granted" not in [event.name for event in history.events(session, gang)]


def test_two_leaders_that_write_the_same_pass_grant_each_slot_once(database: Database) -> None:
    names = register(database, 120)
    jobs = [make_job(database) for _ in range(12)]
    gangs = [Grant(jobs[number], tuple(names[8 * number : 8 * number + 8])) for number in range(10)]
    singles = [Grant(jobs[10 + number % 2], (name,)) for number, name in enumerate(names[80:])]
    decided = [*gangs, *singles]
    barrier = threading.Barrier(4)

    def lead(order: Sequence[Grant]) -> list[Granted]:
        barrier.wait()
        return write(database, order)

    with ThreadPoolExecutor(4) as leaders:
        passes = [order for order in (decided, decided[::-1]) for _ in range(2)]
        written = [one for each in leaders.map(lead, passes) for one in each]
    assert sorted(ring.slot_id for one in written for ring in one.rings) == names
    assert set(live(database)) == set(names)
    assert_whole(database, decided)
