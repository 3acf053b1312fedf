"""Leases and chunks on SQLite and PostgreSQL: only the owner of a chunk can record its results."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import insert, select
from sqlmodel import Session, col

from jobs.config.settings import Settings
from jobs.data.rows import Result, RowError
from jobs.db.database import Database
from jobs.db.states import ChunkState, JobState, LeaseState, SlotState
from jobs.db.tables import Chunk, Job, Lease, ResultRecord, Slot
from jobs.errors import Conflict, InvalidSpec, LostLease, MachineError, RunnerDied, ServiceUnavailable
from jobs.ledger import chunks, overdue, slots
from jobs.ledger import jobs as job_ledger
from jobs.ledger.chunks import ChunkResults
from jobs.ledger.leasing import grants, leases
from jobs.ledger.leasing.grants import Grant
from jobs.ledger.records import history
from jobs.ledger.slots import Ownership
from tests.support.ledger import LEASE_SECONDS, commit, hold, make_job, make_slots, results_of


def job_of(db: Database, job_id: str) -> Job:
    with db.read() as session:
        return job_ledger.get(session, job_id)


def lease_of(db: Database, lease_id: str) -> Lease:
    with db.read() as session:
        return session.get_one(Lease, lease_id)


def chunks_of(db: Database, job_id: str) -> list[Chunk]:
    with db.read() as session:
        return list(session.scalars(select(Chunk).where(col(Chunk.job_id) == job_id).order_by(col(Chunk.start_row))))


def num_results(db: Database, job_id: str) -> int:
    with db.read() as session:
        return len(session.scalars(select(col(ResultRecord.row_index)).where(col(ResultRecord.job_id) == job_id)).all())


def test_a_job_runs_from_grant_to_finalizing_with_true_counters(database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0")
    job_id = make_job(database)
    lease_id = hold(database, job_id, "s0")
    assert job_of(database, job_id).state == JobState.RUNNING
    claims = chunks.claim(database, lease_id, limit=3)
    assert [(c.start_row, c.stop_row) for c in claims] == [(0, 10), (10, 20), (20, 30)]
    commit(database, lease_id, job_id, claims)
    assert job_of(database, job_id).num_done == 30
    commit(database, lease_id, job_id, chunks.claim(database, lease_id, limit=3))
    job = job_of(database, job_id)
    assert (job.state, job.num_done, job.num_failed, job.num_tokens) == (JobState.FINALIZING, 40, 0, 80)
    assert chunks.claim(database, lease_id, limit=1) == []
    leases.release(database, lease_id, "drained")
    job_ledger.complete(database, job_id, [])
    assert job_of(database, job_id).state == JobState.COMPLETED
    with database.read() as session:
        names = [event.name for event in history.events(session, job_id)]
    assert names == [
        "job.submitted", "job.queued", "lease.granted", "lease.active", "chunks.claimed", "chunks.done",
        "chunks.claimed", "chunks.done", "job.finalizing", "lease.released", "job.completed",
    ]  # fmt: skip


def test_a_slot_never_has_two_live_leases(database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0", "s1")
    first, second = make_job(database), make_job(database)
    hold(database, first, "s0")
    with pytest.raises(Conflict):
        grants.grant(database, Grant(second, ("s1", "s0")), lease_seconds=LEASE_SECONDS)
    with database.read() as session:
        assert len(session.scalars(select(Lease)).all()) == 1, "a refused gang leaves no lease behind"
    assert job_of(database, second).state == JobState.QUEUED


def test_an_offline_slot_is_not_granted(database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0")
    slots.retire(database, ["s0"])
    with pytest.raises(Conflict):
        grants.grant(database, Grant(make_job(database), ("s0",)), lease_seconds=LEASE_SECONDS)


def test_a_lease_granted_to_a_retiring_slot_goes_back_at_once(database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0")
    job_id = make_job(database)
    (lease_id,) = grants.grant(database, Grant(job_id, ("s0",)), lease_seconds=LEASE_SECONDS)
    slots.retire(database, ["s0"], incarnation="s0-1")
    assert lease_of(database, lease_id).state == LeaseState.REVOKED
    assert overdue.requeue_idle(database) == [job_id]


def test_a_message_delivered_three_times_activates_once(database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0")
    (lease_id,) = grants.grant(database, Grant(make_job(database), ("s0",)), lease_seconds=LEASE_SECONDS)
    taken = [leases.activate(database, lease_id, "s0-1", lease_seconds=LEASE_SECONDS) for _ in range(3)]
    assert [lease is not None for lease in taken] == [True, False, False]
    assert leases.activate(database, "lease_unknown", "s0-1", lease_seconds=LEASE_SECONDS) is None


def test_a_zombies_commit_changes_nothing(database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0", "s1")
    job_id = make_job(database, num_chunks=1)
    zombie = hold(database, job_id, "s0")
    claims = chunks.claim(database, zombie, limit=1)
    leases.crash(database, zombie, RunnerDied(), computing=None, retries=settings)
    owner = hold(database, job_id, "s1")
    again = chunks.claim(database, owner, limit=1)
    assert again[0].attempt == 2
    with pytest.raises(LostLease):
        commit(database, zombie, job_id, claims)
    assert num_results(database, job_id) == 0
    commit(database, owner, job_id, again)
    with pytest.raises(LostLease):
        commit(database, zombie, job_id, claims)
    for verb in (leases.renew, chunks.claim):
        with pytest.raises(LostLease):
            verb(database, zombie, **({"limit": 1} if verb is chunks.claim else {"lease_seconds": 1.0}))  # type: ignore[arg-type]
    with pytest.raises(LostLease):
        leases.release(database, zombie, "drained")
    assert (job_of(database, job_id).num_done, num_results(database, job_id)) == (10, 10)


def test_a_commit_that_fails_midway_leaves_nothing(database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0")
    job_id = make_job(database, num_chunks=1)
    lease_id = hold(database, job_id, "s0")
    (claim,) = chunks.claim(database, lease_id, limit=1)

    def record(session: Session) -> None:
        session.execute(insert(ResultRecord), [{"job_id": job_id, "row_index": 0, "output": "1"}])
        raise ServiceUnavailable("the disk is full")

    with pytest.raises(ServiceUnavailable):
        chunks.commit(database, lease_id, [ChunkResults(0, 10, results_of(0, 10))], record)
    assert (num_results(database, job_id), job_of(database, job_id).num_done) == (0, 0)
    commit(database, lease_id, job_id, [claim])
    assert num_results(database, job_id) == 10


def test_results_must_cover_the_chunk(database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0")
    job_id = make_job(database, num_chunks=1)
    lease_id = hold(database, job_id, "s0")
    chunks.claim(database, lease_id, limit=1)
    with pytest.raises(ValueError, match="one result for each row"):
        chunks.commit(database, lease_id, [ChunkResults(0, 10, results_of(0, 9))])
    with pytest.raises(ValueError, match="an output or an error"):
        Result(0, None)
    with pytest.raises(ValueError, match="an output or an error"):
        Result(0, None, 1, RowError("x", "y"))


def test_released_and_given_back_chunks_keep_their_attempt(database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0")
    job_id = make_job(database)
    lease_id = hold(database, job_id, "s0")
    chunks.claim(database, lease_id, limit=3)
    chunks.give_back(database, lease_id, [10])
    assert [chunk.state for chunk in chunks_of(database, job_id)] == ["leased", "pending", "leased", "pending"]
    leases.release(database, lease_id, "stopped")
    assert {(chunk.state, chunk.attempt) for chunk in chunks_of(database, job_id)} == {(ChunkState.PENDING, 1)}
    assert overdue.requeue_idle(database) == [job_id]
    assert job_of(database, job_id).state == JobState.QUEUED
    hold(database, job_id, "s0")
    assert job_of(database, job_id).attempt == 2


def test_a_dead_lease_expires_and_its_chunks_come_back(database_url: str, settings: Settings) -> None:
    clock = [1000.0]
    db = Database(database_url, clock=lambda: clock[0])
    make_slots(db, settings, "s0")
    job_id = make_job(db)
    lease_id = hold(db, job_id, "s0")
    chunks.claim(db, lease_id, limit=2)
    clock[0] += LEASE_SECONDS - 1
    leases.renew(db, lease_id, lease_seconds=LEASE_SECONDS)
    clock[0] += LEASE_SECONDS - 1
    assert leases.expire_dead(db, settings) == []
    clock[0] += 2
    assert leases.expire_dead(db, settings) == [lease_id]
    assert [chunk.attempt for chunk in chunks_of(db, job_id)] == [2, 2, 1, 1]
    assert {chunk.state for chunk in chunks_of(db, job_id)} == {ChunkState.PENDING}
    assert slots.retire_silent(db, 15.0) == ["s0"]
    db.close()


def test_an_unanswered_doorbell_rings_again_then_gives_the_slot_up(database_url: str, settings: Settings) -> None:
    clock = [1000.0]
    db = Database(database_url, clock=lambda: clock[0])
    make_slots(db, settings, "s0")
    job_id = make_job(db)
    (lease_id,) = grants.grant(db, Grant(job_id, ("s0",)), lease_seconds=LEASE_SECONDS)
    assert leases.unanswered(db, settings) == []
    for _ in range(settings.doorbell_rings - 1):
        clock[0] += settings.doorbell_seconds
        assert leases.unanswered(db, settings) == [grants.Ring(lease_id, "s0")]
        assert leases.unanswered(db, settings) == []
    clock[0] += settings.doorbell_seconds
    assert leases.unanswered(db, settings) == []
    assert lease_of(db, lease_id).state == LeaseState.EXPIRED
    with db.read() as session:
        assert session.get_one(Slot, "s0").state == SlotState.UNHEARD
    assert slots.beat(db, "s0", "s0-1", ["m"]) is Ownership.UNHEARD, "it is alive, but would get leases in vain"
    with db.read() as session:
        assert session.get_one(Slot, "s0").state == SlotState.UNHEARD
    slots.mark_heard(db, "s0", "s0-2")
    assert slots.beat(db, "s0", "s0-1", ["m"]) is Ownership.UNHEARD, "only its owner may say so"
    slots.mark_heard(db, "s0", "s0-1")
    assert slots.beat(db, "s0", "s0-1", ["m"]) is Ownership.OWNER
    with db.read() as session:
        assert session.get_one(Slot, "s0").state == SlotState.ONLINE
    db.close()


def test_an_unheard_slot_is_offline_once_its_worker_is_gone(database_url: str, settings: Settings) -> None:
    clock = [1000.0]
    db = Database(database_url, clock=lambda: clock[0])
    make_slots(db, settings, "s0", "s1")
    with db.write() as session:
        for slot_id in ("s0", "s1"):
            session.get_one(Slot, slot_id).state = SlotState.UNHEARD
    slots.retire(db, ["s0"], incarnation="s0-1")
    clock[0] += settings.slot_seconds + 1
    assert slots.retire_silent(db, settings.slot_seconds) == ["s1"]
    with db.read() as session:
        found = {slot.id: (slot.state, slot.incarnation) for slot in slots.list_slots(session)}
    assert found == {"s0": (SlotState.OFFLINE, ""), "s1": (SlotState.OFFLINE, "s1-1")}
    db.close()


def test_a_restarted_worker_ends_the_leases_of_its_predecessor(database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0")
    job_id = make_job(database)
    lease_id = hold(database, job_id, "s0")
    chunks.claim(database, lease_id, limit=1)
    slots.enter(database, "s0", "s0-2", settings)
    assert lease_of(database, lease_id).state == LeaseState.EXPIRED
    assert chunks_of(database, job_id)[0].state == ChunkState.PENDING
    assert slots.beat(database, "s0", "s0-1", []) is Ownership.DISPLACED, (
        "the old process must learn that it is replaced"
    )
    assert slots.beat(database, "s0", "s0-2", []) is Ownership.OWNER


def test_a_restarted_worker_is_rung_although_its_predecessor_was_often(database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0")
    (lease_id,) = grants.grant(database, Grant(make_job(database), ("s0",)), lease_seconds=LEASE_SECONDS)
    with database.write() as session:
        session.get_one(Lease, lease_id).rings = settings.doorbell_rings
    slots.enter(database, "s0", "s0-2", settings)
    assert leases.unanswered(database, settings) == [grants.Ring(lease_id, "s0")]


def test_a_poison_row_ends_alone_and_all_others_are_computed(database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0")
    job_id = make_job(database, num_chunks=1, chunk_rows=37)
    poison, deaths = 23, 0
    while job_of(database, job_id).state != JobState.FINALIZING:
        lease_id = hold(database, job_id, "s0")
        lost = False
        with database.write() as session:  # let the backoff pass
            for chunk in session.scalars(select(Chunk)).all():
                chunk.not_before = 0.0
        for claim in chunks.claim(database, lease_id, limit=100):
            if claim.row_error is not None:
                assert (claim.start_row, claim.stop_row) == (poison, poison + 1)
                assert claim.row_error.code == "poison_row"
                failed = [Result(poison, None, error=claim.row_error)]
                chunks.commit(database, lease_id, [ChunkResults(poison, poison + 1, failed)])
            elif claim.start_row <= poison < claim.stop_row:
                leases.crash(database, lease_id, RunnerDied("killed"), computing=claim.start_row, retries=settings)
                deaths, lost = deaths + 1, True
                break
            else:
                commit(database, lease_id, job_id, [claim])
        if not lost:
            leases.release(database, lease_id, "drained")
    job = job_of(database, job_id)
    assert (job.num_done, job.num_failed, num_results(database, job_id)) == (37, 1, 36)
    assert deaths <= settings.chunk_crashes + 7, "the search must halve, not walk"


def test_a_chunk_that_errors_is_retried_later_then_given_up(database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0")
    job_id = make_job(database, num_chunks=1)
    lease_id = hold(database, job_id, "s0")
    for attempt in range(settings.chunk_attempts):
        (claim,) = chunks.claim(database, lease_id, limit=1)
        assert (claim.row_error, claim.attempt) == (None, attempt + 1)
        chunks.fail(database, lease_id, 0, MachineError("the disk is failing"), settings)
        if attempt < settings.chunk_attempts - 1:
            assert chunks.claim(database, lease_id, limit=1) == [], "it waits for its backoff"
        with database.write() as session:
            session.get_one(Chunk, (job_id, 0)).not_before = 0.0
    (claim,) = chunks.claim(database, lease_id, limit=1)
    assert claim.row_error is not None
    assert claim.row_error.code == "machine_error"
    chunks.fail(database, lease_id, 0, MachineError("still failing"), settings)
    assert job_of(database, job_id).state == JobState.FAILED


def test_an_input_that_is_out_of_reach_costs_no_row(database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0")
    job_id = make_job(database, num_chunks=1)
    lease_id = hold(database, job_id, "s0")
    for attempt in range(settings.chunk_attempts + 3):
        (claim,) = chunks.claim(database, lease_id, limit=1)
        assert (claim.row_error, claim.attempt) == (None, attempt + 1)
        chunks.fail(database, lease_id, 0, ServiceUnavailable("the bucket is away"), settings)
        assert chunks.claim(database, lease_id, limit=1) == [], "it waits for its backoff"
        with database.write() as session:
            chunk = session.get_one(Chunk, (job_id, 0))
            assert chunk.not_before - session.time() <= settings.retry_max_seconds
            assert chunk.errors == 0, "a failing disk later has all its tries"
            chunk.not_before = 0.0


def test_a_job_whose_model_kills_every_runner_fails(database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0")
    job_id = make_job(database)
    for _ in range(settings.job_crashes):
        assert job_of(database, job_id).state == JobState.RUNNING or job_of(database, job_id).crashes == 0
        lease_id = hold(database, job_id, "s0")
        leases.crash(database, lease_id, RunnerDied("killed by signal 11"), computing=None, retries=settings)
    job = job_of(database, job_id)
    assert (job.state, job.error_code) == (JobState.FAILED, "runner_died")
    assert "signal 11" in (job.error_message or "")


def test_a_cancel_ends_in_cancelled_once_the_last_lease_is_back(database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0", "s1")
    job_id = make_job(database)
    lease_id = hold(database, job_id, "s0")
    (granted,) = grants.grant(database, Grant(job_id, ("s1",)), lease_seconds=LEASE_SECONDS)
    claims = chunks.claim(database, lease_id, limit=2)
    assert job_ledger.cancel(database, job_id).state == JobState.CANCELLING
    assert lease_of(database, granted).state == LeaseState.REVOKED
    assert leases.activate(database, granted, "s1-1", lease_seconds=1.0) is None
    assert leases.renew(database, lease_id, lease_seconds=LEASE_SECONDS).stop == "cancel"
    assert chunks.claim(database, lease_id, limit=1) == []
    commit(database, lease_id, job_id, claims[:1])
    leases.release(database, lease_id, "cancelled")
    job = job_of(database, job_id)
    assert (job.state, job.num_done, num_results(database, job_id)) == (JobState.CANCELLED, 10, 10)
    with pytest.raises(Conflict):
        job_ledger.cancel(database, job_id)
    assert job_ledger.retry(database, job_id).retry_of == job_id


def test_a_failed_jobs_holder_learns_it(database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0")
    job_id = make_job(database)
    lease_id = hold(database, job_id, "s0")
    claims = chunks.claim(database, lease_id, limit=1)
    assert job_ledger.fail(database, job_id, ServiceUnavailable("gone"))
    assert not job_ledger.fail(database, job_id, ServiceUnavailable("again"))
    assert leases.renew(database, lease_id, lease_seconds=1.0).stop == "cancel"
    with pytest.raises(LostLease):
        commit(database, lease_id, job_id, claims)
    leases.release(database, lease_id, "the job failed")


def test_a_holder_that_fails_the_job_frees_its_slot_and_unused_ones(database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0", "s1", "s2")
    job_id = make_job(database)
    granted = [
        grants.grant(database, Grant(job_id, (slot,)), lease_seconds=LEASE_SECONDS)[0] for slot in ("s0", "s1", "s2")
    ]
    for lease_id, name in zip(granted[:2], ("s0-1", "s1-1"), strict=True):
        assert leases.activate(database, lease_id, name, lease_seconds=LEASE_SECONDS) is not None
    chunks.claim(database, granted[0], limit=1)
    leases.fail_job(database, granted[0], InvalidSpec("no such label"))
    job = job_of(database, job_id)
    assert (job.state, job.error_code, job.error_message) == (JobState.FAILED, "invalid_spec", "no such label")
    states = [lease_of(database, lease_id).state for lease_id in granted]
    assert states == [LeaseState.RELEASED, LeaseState.ACTIVE, LeaseState.REVOKED]
    assert leases.renew(database, granted[1], lease_seconds=1.0).stop == "cancel"


def test_a_spec_that_is_no_longer_valid_fails_its_job(database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0", "s1")
    job_id = make_job(database)
    with database.write() as session:
        job = session.get_one(Job, job_id)
        job.spec = {**job.spec, "task": "reading-minds"}
    granted = grants.grant(database, Grant(job_id, ("s0", "s1")), lease_seconds=LEASE_SECONDS)
    assert leases.activate(database, granted[0], "s0-1", lease_seconds=LEASE_SECONDS) is None
    job = job_of(database, job_id)
    assert (job.state, job.error_code) == (JobState.FAILED, "invalid_spec")
    assert [lease_of(database, lease_id).state for lease_id in granted] == [LeaseState.REVOKED] * 2


def test_asked_to_yield_the_holder_gets_no_more_chunks(database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0")
    job_id = make_job(database)
    lease_id = hold(database, job_id, "s0")
    leases.ask_yield(database, {lease_id: "job"})
    assert leases.renew(database, lease_id, lease_seconds=1.0).stop == "yield"
    assert chunks.claim(database, lease_id, limit=1) == []


def test_many_workers_claim_each_chunk_once_and_the_last_ends_the_job(database: Database, settings: Settings) -> None:
    slot_ids = [f"s{i}" for i in range(6)]
    make_slots(database, settings, *slot_ids)
    job_id = make_job(database, num_chunks=60, chunk_rows=3)
    lease_ids = [hold(database, job_id, slot_id) for slot_id in slot_ids]
    claimed: list[int] = []
    barrier = threading.Barrier(len(lease_ids))
    failures: list[BaseException] = []

    def work(lease_id: str) -> None:
        try:
            barrier.wait()
            while claims := chunks.claim(database, lease_id, limit=2):
                claimed.extend(claim.start_row for claim in claims)
                commit(database, lease_id, job_id, claims)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(lease_id,)) for lease_id in lease_ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sorted(claimed) == list(range(0, 180, 3))
    job = job_of(database, job_id)
    assert (job.state, job.num_done, num_results(database, job_id)) == (JobState.FINALIZING, 180, 180)
