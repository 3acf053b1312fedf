"""A slot goes from a small job to the next one of the same model without the scheduler, on SQLite and PostgreSQL."""

from __future__ import annotations

import threading

import pytest

from jobs.config.settings import Settings
from jobs.data.sources import ChunkRange
from jobs.db.database import Database
from jobs.db.states import JobState, LeaseState, SlotState
from jobs.db.tables import Lease, Slot
from jobs.errors import LostLease
from jobs.ledger import chunks, planning
from jobs.ledger import jobs as job_ledger
from jobs.ledger.leasing import grants, leases
from jobs.ledger.leasing.grants import Grant
from jobs.ledger.leasing.leases import WorkingLease
from jobs.ledger.leasing.next_job import release_and_take_next
from jobs.ledger.records import history
from jobs.specs.inference import parse_spec
from jobs.specs.needs import Needs
from tests.support.ledger import LEASE_SECONDS, commit, hold, job_state, look_at_lease, make_slots, set_job

DOCUMENT = {"task": "embeddings", "model": "m", "input": {"path": "rows.jsonl"}}


def submit(db: Database, project: str = "default", **fields: object) -> str:
    """A queued job with one chunk."""
    job = job_ledger.submit(db, parse_spec({**DOCUMENT, **fields}), project=project)
    planning.plan(db, job.id, [ChunkRange(0, 10, {})])
    return job.id


def take_next(db: Database, lease_id: str, slot: str = "s0") -> WorkingLease | None:
    return release_and_take_next(db, lease_id, "drained", lease_seconds=LEASE_SECONDS, incarnation=f"{slot}-1")


def finished(db: Database, job_id: str, slot: str = "s0") -> str:
    """The active lease of a job whose only chunk is recorded."""
    lease_id = hold(db, job_id, slot)
    commit(db, lease_id, job_id, chunks.claim(db, lease_id, limit=1))
    return lease_id


def test_a_chain_of_jobs_is_recorded_job_by_job(database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0")
    job_ids = [submit(database) for _ in range(3)]
    lease_id = finished(database, job_ids[0])
    for job_id in job_ids[1:]:
        lease = take_next(database, lease_id)
        assert lease is not None
        assert (lease.job_id, lease.slot_id, lease.attempt, lease.spec) == (job_id, "s0", 1, parse_spec(DOCUMENT))
        assert look_at_lease(database, lease_id).state == LeaseState.RELEASED
        lease_id = lease.lease_id
        commit(database, lease_id, job_id, chunks.claim(database, lease_id, limit=1))
    assert take_next(database, lease_id) is None
    assert look_at_lease(database, lease_id).state == LeaseState.RELEASED
    for job_id in job_ids:
        assert job_state(database, job_id) == JobState.FINALIZING
        with database.read() as session:
            names = [event.name for event in history.events(session, job_id)]
        assert names == [
            "job.submitted", "job.queued", "lease.granted", "lease.active", "chunks.claimed", "chunks.done",
            "job.finalizing", "lease.released",
        ]  # fmt: skip


@pytest.mark.parametrize(
    "other",
    [
        {"project": "other"},
        {"model": "m2"},
        {"task": "text-classification"},
        {"priority": "low"},
        {"dtype": "bfloat16"},
    ],
)
def test_only_jobs_that_share_everything_follow(other: dict[str, str], database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0")
    lease_id = finished(database, submit(database))
    waits = submit(database, **other)
    assert take_next(database, lease_id) is None
    assert job_state(database, waits) == JobState.QUEUED
    assert look_at_lease(database, lease_id).state == LeaseState.RELEASED


def test_jobs_that_may_not_start_are_passed_over(database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0", "s1")
    lease_id = finished(database, submit(database))
    delayed, cancelled, running, unplanned = (submit(database) for _ in range(4))
    set_job(database, delayed, not_before=2e10)
    job_ledger.cancel(database, cancelled)
    hold(database, running, "s1")
    set_job(database, unplanned, state=JobState.VALIDATING)
    ready = submit(database)
    lease = take_next(database, lease_id)
    assert lease is not None
    assert lease.job_id == ready


@pytest.mark.parametrize("column", ["yield_asked", "shutdown_asked"])
def test_a_slot_that_is_asked_back_is_returned(column: str, database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0")
    lease_id = finished(database, submit(database))
    submit(database)
    with database.write() as tx:
        setattr(tx.get_one(Lease, lease_id), column, True)
    assert take_next(database, lease_id) is None
    assert look_at_lease(database, lease_id).state == LeaseState.RELEASED


@pytest.mark.parametrize(
    "needs",
    [
        Needs(packages=frozenset({"vllm"})),
        Needs(memory_bytes=2**60),
        Needs(labels=frozenset({"a100"})),
        Needs(device="cuda"),
    ],
    ids=str,
)
def test_a_slot_that_cannot_serve_the_job_is_returned(database: Database, settings: Settings, needs: Needs) -> None:
    make_slots(database, settings, "s0")
    lease_id = finished(database, submit(database))
    needy = submit(database)
    set_job(database, needy, needs=needs.stored())
    with database.write() as tx:
        tx.get_one(Slot, "s0").packages = ["av"]
    assert take_next(database, lease_id) is None
    assert job_state(database, needy) == JobState.QUEUED


def test_a_drained_slot_releases_its_lease(database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0")
    lease_id = finished(database, submit(database))
    waits = submit(database)
    with database.write() as tx:
        tx.get_one(Slot, "s0").state = SlotState.OFFLINE
    assert take_next(database, lease_id) is None
    assert look_at_lease(database, lease_id).state == LeaseState.RELEASED
    assert job_state(database, waits) == JobState.QUEUED


def test_a_lost_lease_takes_no_job(database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0")
    lease_id = finished(database, submit(database))
    waits = submit(database)
    leases.release(database, lease_id, "drained")
    with pytest.raises(LostLease):
        take_next(database, lease_id)
    assert job_state(database, waits) == JobState.QUEUED


def test_a_gang_takes_no_next_job(database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0", "s1")
    job_id = submit(database)
    leader, member = grants.grant(database, Grant(job_id, ("s0", "s1")), lease_seconds=LEASE_SECONDS)
    for lease_id, slot in ((leader, "s0"), (member, "s1")):
        leases.activate(database, lease_id, f"{slot}-1", lease_seconds=LEASE_SECONDS)
    submit(database)
    assert take_next(database, leader) is None


def test_many_slots_at_once_take_each_job_once(database: Database, settings: Settings) -> None:
    """Two slots that took the same job would compute its only chunk once, and one would have waited for nothing."""
    slots = [f"s{number}" for number in range(4)]
    make_slots(database, settings, *slots)
    held = {slot: finished(database, submit(database), slot) for slot in slots}
    queued = [submit(database) for _ in range(20)]
    taken: list[str] = []

    def work(slot: str) -> None:
        lease_id = held[slot]
        while (lease := take_next(database, lease_id, slot)) is not None:
            taken.append(lease.job_id)
            lease_id = lease.lease_id
            commit(database, lease_id, lease.job_id, chunks.claim(database, lease_id, limit=1))

    threads = [threading.Thread(target=work, args=(slot,)) for slot in slots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(queued)
    assert {job_state(database, job_id) for job_id in queued} == {JobState.FINALIZING}
