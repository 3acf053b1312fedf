"""Gangs on SQLite and PostgreSQL: granted together, held by their members, and ended together for any reason."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from jobs.config.settings import Settings
from jobs.db.database import Database
from jobs.db.states import LIVE_LEASE_STATES, AttemptEnd, JobState, LeaseState, SlotState
from jobs.db.tables import Attempt, Job, Lease, Slot
from jobs.errors import Conflict, LostLease, RunnerDied
from jobs.ledger import attempts, overdue, planning, slots
from jobs.ledger import jobs as job_ledger
from jobs.ledger.leasing import gangs, grants, leases
from jobs.ledger.leasing.grants import Grant
from jobs.ledger.records import history
from jobs.specs.inference import parse_spec

LEASE_SECONDS = 30.0
SLOTS = ("s0", "s1", "s2")
SPEC = parse_spec(
    {"kind": "training", "task": "text-classification", "model": "m", "data": {"train": "rows.jsonl"}, "slots": 3}
)


def make_slots(db: Database, settings: Settings) -> None:
    """Three online slots of one host, each owned by the incarnation `<slot>-1`."""
    infos = [slots.SlotInfo(slot_id, "host", "cuda", f"GPU-{slot_id}", "card", 0, 2) for slot_id in SLOTS]
    slots.register(db, infos)
    for slot_id in SLOTS:
        slots.enter(db, slot_id, f"{slot_id}-1", settings)


def make_job(db: Database) -> str:
    """A queued training of three slots."""
    job = job_ledger.submit(db, SPEC)
    planning.enqueue(db, job.id)
    return job.id


def granted(db: Database, job_id: str) -> list[str]:
    """The leases of a gang that are not active yet, the leader's first."""
    return grants.grant(db, Grant(job_id, SLOTS), lease_seconds=LEASE_SECONDS)


def gathered(db: Database, job_id: str) -> list[str]:
    """A gang all of whose members hold their slots, and whose leader has begun."""
    lease_ids = granted(db, job_id)
    for lease_id, slot_id in zip(lease_ids, SLOTS, strict=True):
        assert leases.activate(db, lease_id, f"{slot_id}-1", lease_seconds=LEASE_SECONDS) is not None
    for lease_id in lease_ids[1:]:
        gangs.mark_held(db, lease_id)
    attempts.begin(db, lease_ids[0], resumed_step=0)
    return lease_ids


def leases_of(db: Database, lease_ids: list[str]) -> list[Lease]:
    with db.read() as session:
        return [session.get_one(Lease, lease_id) for lease_id in lease_ids]


def job_of(db: Database, job_id: str) -> Job:
    with db.read() as session:
        return job_ledger.get(session, job_id)


def attempts_of(db: Database, job_id: str) -> list[Attempt]:
    with db.read() as session:
        return attempts.attempts(session, job_id)


def num_events(db: Database, job_id: str, name: str) -> int:
    with db.read() as session:
        return sum(event.name == name for event in history.events(session, job_id))


@pytest.fixture
def job_id(database: Database, settings: Settings) -> Iterator[str]:
    """A queued training of three slots, which are free."""
    make_slots(database, settings)
    return make_job(database)


def test_a_gang_is_one_attempt_on_all_of_its_slots(database: Database, job_id: str) -> None:
    lease_ids = gathered(database, job_id)
    found = leases_of(database, lease_ids)
    assert [(lease.rank, lease.slot_id, lease.attempt) for lease in found] == [(0, "s0", 1), (1, "s1", 1), (2, "s2", 1)]
    assert len({lease.gang_id for lease in found}) == 1
    assert found[0].gang_id is not None
    assert job_of(database, job_id).max_slots == 3


def test_attempts_are_counted_one_by_one(database: Database, settings: Settings, job_id: str) -> None:
    numbers = []
    for _ in range(3):
        lease_ids = gathered(database, job_id)
        leases.release(database, lease_ids[0], "stopped")
        overdue.requeue_idle(database)
        never_taken_up = granted(database, job_id)
        slots.retire(database, ["s1"], incarnation="s1-1")
        assert {lease.state for lease in leases_of(database, never_taken_up)} == {LeaseState.REVOKED}
        slots.enter(database, "s1", "s1-1", settings)
        overdue.requeue_idle(database)
        numbers.append({lease.attempt for lease in leases_of(database, lease_ids)})
    assert numbers == [{1}, {2}, {3}]
    assert [attempt.number for attempt in attempts_of(database, job_id)] == [1, 2, 3]


def test_a_gang_is_granted_whole_or_not_at_all(database: Database, job_id: str) -> None:
    slots.retire(database, ["s2"])
    with pytest.raises(Conflict):
        granted(database, job_id)
    with database.read() as session:
        assert session.scalars(select(Lease)).all() == []
    assert job_of(database, job_id).state == JobState.QUEUED


def test_the_leader_sees_who_holds_his_place(database: Database, job_id: str) -> None:
    leader, *members = granted(database, job_id)

    def held() -> list[bool]:
        return [place.is_held for place in gangs.ranks(database, leader)]

    assert held() == [False, False, False]
    for lease_id, slot_id in zip([leader, *members], SLOTS, strict=True):
        leases.activate(database, lease_id, f"{slot_id}-1", lease_seconds=LEASE_SECONDS)
    assert held() == [True, False, False]
    gangs.mark_held(database, members[1])
    assert held() == [True, False, True]
    gangs.mark_held(database, members[0])
    places = gangs.ranks(database, leader)
    assert [(place.rank, place.slot_id, place.device_uuid, place.num_threads) for place in places] == [
        (0, "s0", "GPU-s0", 2), (1, "s1", "GPU-s1", 2), (2, "s2", "GPU-s2", 2),
    ]  # fmt: skip
    assert all(place.is_held and place.is_live for place in places)


def test_a_lease_that_stands_alone_is_a_gang_of_its_own(database: Database, job_id: str) -> None:
    (lease_id,) = grants.grant(database, Grant(job_id, ("s1",)), lease_seconds=LEASE_SECONDS)
    lease = leases.activate(database, lease_id, "s1-1", lease_seconds=LEASE_SECONDS)
    assert lease is not None
    assert lease.gang_id is None
    assert [(place.slot_id, place.is_held) for place in gangs.ranks(database, lease_id)] == [("s1", True)]


Ending = Callable[[Database, Settings, list[str]], object]
ENDS: dict[str, tuple[Ending, LeaseState, AttemptEnd]] = {
    "the leader gives it back": (
        lambda db, _, ids: leases.release(db, ids[0], "stopped"), LeaseState.RELEASED, AttemptEnd.SHUTDOWN,
    ),
    "a member gives it back": (
        lambda db, _, ids: leases.release(db, ids[2], "shutdown"), LeaseState.RELEASED, AttemptEnd.SHUTDOWN,
    ),
    "the leader's processes die": (
        lambda db, settings, ids: leases.crash(db, ids[0], RunnerDied("gone"), computing=None, retries=settings),
        LeaseState.REVOKED, AttemptEnd.MACHINE,
    ),
    "a member's worker restarts": (
        lambda db, settings, _: slots.enter(db, "s1", "s1-2", settings), LeaseState.REVOKED, AttemptEnd.LOST,
    ),
    "the leader's worker restarts": (
        lambda db, settings, _: slots.enter(db, "s0", "s0-2", settings), LeaseState.REVOKED, AttemptEnd.LOST,
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", ENDS)
def test_the_end_of_one_lease_is_the_end_of_its_gang(
    database: Database, settings: Settings, job_id: str, how: str
) -> None:
    ends, state_of_mates, end_of_attempt = ENDS[how]
    lease_ids = gathered(database, job_id)
    ends(database, settings, lease_ids)
    found = leases_of(database, lease_ids)
    first = [lease for lease in found if not (lease.end_reason or "").startswith("its gang has ended: ")]
    assert len(first) == 1
    assert {lease.state for lease in found if lease is not first[0]} == {state_of_mates}
    assert not {lease.state for lease in found} & set(LIVE_LEASE_STATES)
    assert [attempt.end for attempt in attempts_of(database, job_id)] == [end_of_attempt]
    assert num_events(database, job_id, "attempt.ended") == 1
    assert job_of(database, job_id).crashes == (1 if how == "the leader's processes die" else 0)
    for lease_id in lease_ids:  # nobody can end it again, nor what comes after it
        with pytest.raises(LostLease):
            leases.release(database, lease_id, "late")
        with pytest.raises(LostLease):
            leases.crash(database, lease_id, RunnerDied("late"), computing=None, retries=settings)
        with pytest.raises(LostLease):
            leases.renew(database, lease_id, lease_seconds=LEASE_SECONDS)
        assert not gangs.read_status(database, lease_id).is_active
    assert overdue.requeue_idle(database) == [job_id]


def test_a_member_of_an_earlier_gang_cannot_end_the_one_that_replaced_it(
    database: Database, settings: Settings, job_id: str
) -> None:
    before = gathered(database, job_id)
    slots.enter(database, "s0", "s0-2", settings)
    overdue.requeue_idle(database)
    now = gathered(database, job_id)
    for verb in (
        lambda: leases.release(database, before[1], "late"),
        lambda: gangs.mark_held(database, before[1]),
        lambda: gangs.ask_shutdown(database, before[1]),
    ):
        with pytest.raises(LostLease):
            verb()
    assert {lease.state for lease in leases_of(database, now)} == {LeaseState.ACTIVE}
    assert not gangs.read_status(database, now[0]).shutdown_asked


def test_a_member_that_falls_silent_ends_the_gang(database_url: str, settings: Settings) -> None:
    clock = [1000.0]
    db = Database(database_url, clock=lambda: clock[0])
    make_slots(db, settings)
    job_id = make_job(db)
    lease_ids = gathered(db, job_id)
    clock[0] += LEASE_SECONDS - 1
    leases.renew(db, lease_ids[0], lease_seconds=LEASE_SECONDS)
    leases.renew(db, lease_ids[2], lease_seconds=LEASE_SECONDS)
    clock[0] += 2
    assert sorted(leases.expire_dead(db, settings)) == sorted(lease_ids)
    states = [lease.state for lease in leases_of(db, lease_ids)]
    assert states == [LeaseState.REVOKED, LeaseState.EXPIRED, LeaseState.REVOKED]
    assert [attempt.end for attempt in attempts_of(db, job_id)] == [AttemptEnd.LOST]
    assert job_of(db, job_id).crashes == 0
    db.close()


def test_a_silent_slot_ends_its_gang_and_is_the_only_one_to_go_offline(database_url: str, settings: Settings) -> None:
    clock = [1000.0]
    db = Database(database_url, clock=lambda: clock[0])
    make_slots(db, settings)
    lease_ids = granted(db, make_job(db))
    leases.activate(db, lease_ids[0], "s0-1", lease_seconds=LEASE_SECONDS)
    for _ in range(settings.doorbell_rings - 1):
        clock[0] += settings.doorbell_seconds
        assert [ring.slot_id for ring in leases.unanswered(db, settings)] == ["s1", "s2"], "each is rung by itself"
    leases.activate(db, lease_ids[1], "s1-1", lease_seconds=LEASE_SECONDS)
    clock[0] += settings.doorbell_seconds
    assert leases.unanswered(db, settings) == []
    states = [lease.state for lease in leases_of(db, lease_ids)]
    assert states == [LeaseState.REVOKED, LeaseState.REVOKED, LeaseState.EXPIRED]
    with db.read() as session:
        online = [session.get_one(Slot, slot_id).state for slot_id in SLOTS]
    assert online == [SlotState.ONLINE, SlotState.ONLINE, SlotState.UNHEARD]
    db.close()


def test_a_cancel_of_a_gang_that_still_gathers_ends_it_at_once(database: Database, job_id: str) -> None:
    lease_ids = granted(database, job_id)
    leases.activate(database, lease_ids[0], "s0-1", lease_seconds=LEASE_SECONDS)
    assert job_ledger.cancel(database, job_id).state == JobState.CANCELLED
    assert {lease.state for lease in leases_of(database, lease_ids)} == {LeaseState.REVOKED}
    assert leases.activate(database, lease_ids[1], "s1-1", lease_seconds=LEASE_SECONDS) is None


def test_a_cancel_of_a_gang_that_works_lets_it_write_its_checkpoint(database: Database, job_id: str) -> None:
    lease_ids = gathered(database, job_id)
    assert job_ledger.cancel(database, job_id).state == JobState.CANCELLING
    assert {lease.state for lease in leases_of(database, lease_ids)} == {LeaseState.ACTIVE}
    assert leases.renew(database, lease_ids[0], lease_seconds=LEASE_SECONDS).stop == "shutdown"
    leases.release(database, lease_ids[0], "stopped")
    assert job_of(database, job_id).state == JobState.CANCELLED
    assert attempts_of(database, job_id)[0].end == AttemptEnd.CANCELLED


def test_a_whole_gang_yields_if_any_of_its_leases_is_asked(database: Database, job_id: str) -> None:
    lease_ids = gathered(database, job_id)
    leases.ask_yield(database, {lease_ids[2]: "job"})
    assert [leases.renew(database, one, lease_seconds=LEASE_SECONDS).stop for one in lease_ids] == ["yield"] * 3
    leases.release(database, lease_ids[0], "stopped")
    assert attempts_of(database, job_id)[0].end == AttemptEnd.PREEMPTED


def test_a_member_whose_worker_goes_down_has_the_leader_stop_in_order(database: Database, job_id: str) -> None:
    lease_ids = gathered(database, job_id)
    gangs.ask_shutdown(database, lease_ids[1])
    assert gangs.read_status(database, lease_ids[0]) == gangs.GangStatus(is_active=True, shutdown_asked=True)
    stops = [leases.renew(database, one, lease_seconds=LEASE_SECONDS).stop for one in lease_ids]
    assert stops == ["shutdown", None, None]
    leases.release(database, lease_ids[0], "stopped")
    assert attempts_of(database, job_id)[0].end == AttemptEnd.SHUTDOWN


def test_many_ends_at_once_are_one_end(database: Database, settings: Settings, job_id: str) -> None:
    others: tuple[Callable[[list[str]], Any], ...] = (
        lambda ids: leases.release(database, ids[0], "stopped"),
        lambda ids: leases.release(database, ids[2], "shutdown"),
        lambda ids: leases.crash(database, ids[1], RunnerDied("gone"), computing=None, retries=settings),
        lambda ids: leases.ask_yield(database, dict.fromkeys(reversed(ids), "job")),
        lambda _: slots.enter(database, "s1", "s1-1", settings),
        lambda _: slots.retire(database, ["s2"], incarnation="nobody"),
        lambda ids: leases.renew(database, ids[1], lease_seconds=LEASE_SECONDS),
    )
    for number in range(1, 6):
        lease_ids = gathered(database, job_id)
        barrier = threading.Barrier(len(others))

        def work(
            verb: Callable[[list[str]], Any], lease_ids: list[str] = lease_ids, barrier: threading.Barrier = barrier
        ) -> None:
            barrier.wait()
            with contextlib.suppress(LostLease):
                verb(lease_ids)

        with ThreadPoolExecutor(len(others)) as pool:
            for done in [pool.submit(work, verb) for verb in others]:
                done.result()
        assert not {lease.state for lease in leases_of(database, lease_ids)} & set(LIVE_LEASE_STATES)
        assert num_events(database, job_id, "attempt.ended") == number
        with database.write() as session:
            job = session.get_one(Job, job_id)
            job.not_before, job.crashes = 0.0, 0
        overdue.requeue_idle(database)
    with database.read() as session:
        assert session.scalars(select(col(Lease.id)).where(col(Lease.state).in_(LIVE_LEASE_STATES))).all() == []
