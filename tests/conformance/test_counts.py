"""Counters and the end of a job when many leases commit at once: equal to the rows, sealed once, nobody waits."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, insert, select
from sqlalchemy.engine import make_url
from sqlmodel import Session, col

from jobs.config.settings import Settings
from jobs.data.rows import Result, RowError
from jobs.db.database import Database
from jobs.db.states import ChunkState, JobState
from jobs.db.tables import Chunk, Job, ResultRecord
from jobs.db.transaction import Transaction
from jobs.errors import Conflict, LostLease, RunnerDied, ServiceUnavailable, StokerError
from jobs.ledger import chunks, counts, overdue
from jobs.ledger import jobs as job_ledger
from jobs.ledger.chunks import ChunkResults
from jobs.ledger.leasing import grants, leases
from jobs.ledger.leasing.grants import Grant
from jobs.ledger.records import history
from jobs.ledger.timing import stage_times
from jobs.ledger.timing.stage_times import StageTimes
from tests.support.ledger import LEASE_SECONDS, commit, hold, make_job, make_slots, results_of


def events_of(db: Database, job_id: str) -> list[str]:
    with db.read() as session:
        return [event.name for event in history.events(session, job_id)]


def assert_counted(db: Database, job_id: str) -> Job:
    """The job's counters are its recorded rows; each row is recorded once, which the table's key ensures."""
    with db.read() as session:
        job = job_ledger.get(session, job_id)
        of_job = col(ResultRecord.job_id) == job_id
        num_rows, num_failed, num_tokens = session.execute(
            select(func.count(), func.count(ResultRecord.error), func.coalesce(func.sum(ResultRecord.num_tokens), 0))
            .where(of_job)
        ).one()  # fmt: skip
        ended = col(Chunk.state).in_((ChunkState.DONE, ChunkState.FAILED))
        of_chunks = select(func.sum(Chunk.stop_row - Chunk.start_row)).where(col(Chunk.job_id) == job_id, ended)
        num_in_chunks = session.scalar(of_chunks) or 0
    assert (job.num_done, job.num_failed, job.num_tokens) == (num_rows, num_failed, num_tokens)
    assert job.num_done == num_in_chunks
    return job


def record_rows(db: Database, lease_id: str, job_id: str, start: int, stop: int) -> None:
    """Commit one chunk; every tenth row is an error."""
    error = RowError("null_value", "the row has no text")
    results = [Result(one.row_index, None, error=error) if one.row_index % 10 == 0 else one
               for one in results_of(start, stop)]  # fmt: skip
    rows = [
        {
            "job_id": job_id, "row_index": one.row_index, "output": None if one.error else "1",
            "error": "{}" if one.error else None, "num_tokens": one.num_tokens,
        }
        for one in results
    ]  # fmt: skip
    computed = [ChunkResults(start, stop, results)]
    chunks.commit(db, lease_id, computed, lambda session: session.execute(insert(ResultRecord), rows))


def test_many_last_commits_at_once_seal_the_job_exactly_once(database: Database, settings: Settings) -> None:
    slot_ids = [f"s{number}" for number in range(12)]
    make_slots(database, settings, *slot_ids)
    for _ in range(4):
        job_id = make_job(database, num_chunks=len(slot_ids), chunk_rows=3)
        held = [hold(database, job_id, slot_id) for slot_id in slot_ids]
        claims = [chunks.claim(database, lease_id, limit=1) for lease_id in held]
        barrier = threading.Barrier(len(held))

        def finish(number: int, job_id: str = job_id, held: list[str] = held, claims: list = claims) -> None:
            barrier.wait()  # noqa: B023 - each round waits for its own threads
            commit(database, held[number], job_id, claims[number])

        with ThreadPoolExecutor(len(held)) as pool:
            list(pool.map(finish, range(len(held))))
        with database.read() as session:
            job = job_ledger.get(session, job_id)
        assert (job.state, job.num_done) == (JobState.FINALIZING, 3 * len(held))
        assert events_of(database, job_id).count("job.finalizing") == 1
        for lease_id in held:
            leases.release(database, lease_id, "drained")


def test_a_job_without_files_to_write_completes_with_its_last_commit(database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0")
    job_id = make_job(database, num_chunks=2)
    lease_id = hold(database, job_id, "s0")
    states = []
    for claim in chunks.claim(database, lease_id, limit=2):
        results = results_of(claim.start_row, claim.stop_row)
        chunks.commit(database, lease_id, [ChunkResults(claim.start_row, claim.stop_row, results)], completes=True)
        with database.read() as session:
            states.append(job_ledger.get(session, job_id).state)
    assert states == [JobState.RUNNING, JobState.COMPLETED]
    assert [name for name in events_of(database, job_id) if name.startswith("job.")][-2:] == [
        "job.finalizing",
        "job.completed",
    ]
    assert overdue.requeue_idle(database) == []
    leases.release(database, lease_id, "drained")


def test_counters_equal_rows_under_commits_and_lost_leases(database: Database, settings: Settings) -> None:
    slot_ids = [f"s{number}" for number in range(6)]
    make_slots(database, settings, *slot_ids)
    job_id = make_job(database, num_chunks=60, chunk_rows=5)
    patient = settings.model_copy(update={"job_crashes": 10_000})

    def is_open() -> bool:
        with database.read() as session:
            return job_ledger.get(session, job_id).state in (JobState.QUEUED, JobState.RUNNING)

    def work(slot_id: str) -> None:
        moves = random.Random(slot_id)
        while is_open():
            try:
                (lease_id,) = grants.grant(database, Grant(job_id, (slot_id,)), lease_seconds=LEASE_SECONDS)
                if leases.activate(database, lease_id, f"{slot_id}-1", lease_seconds=LEASE_SECONDS) is None:
                    return  # the job's last chunk was recorded meanwhile
                while claims := chunks.claim(database, lease_id, limit=moves.randint(1, 3)):
                    for claim in claims:
                        record_rows(database, lease_id, job_id, claim.start_row, claim.stop_row)
                        if moves.random() < 0.2:
                            leases.crash(database, lease_id, RunnerDied(), computing=None, retries=patient)
                leases.release(database, lease_id, "empty")
            except (LostLease, Conflict):
                continue

    with ThreadPoolExecutor(len(slot_ids)) as pool:
        list(pool.map(work, slot_ids))
    job = assert_counted(database, job_id)
    assert (job.state, job.num_done, job.num_failed) == (JobState.FINALIZING, 300, 30)
    assert events_of(database, job_id).count("job.finalizing") == 1


def test_who_dies_between_the_last_commit_and_the_seal_is_replaced(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_slots(database, settings, "s0")
    job_id = make_job(database, num_chunks=1)
    lease_id = hold(database, job_id, "s0")
    claims = chunks.claim(database, lease_id, limit=1)
    with monkeypatch.context() as dying:
        dying.setattr(Transaction, "is_serial", False)  # SQLite would look within the commit
        dying.setattr(counts, "settle", _die)
        with pytest.raises(KeyboardInterrupt):
            commit(database, lease_id, job_id, claims)
    assert overdue.requeue_idle(database) == [], "its lease is live"
    leases.crash(database, lease_id, RunnerDied(), computing=None, retries=settings)
    assert overdue.requeue_idle(database) == []
    with database.read() as session:
        job = job_ledger.get(session, job_id)
    assert (job.state, job.num_done) == (JobState.FINALIZING, 10)
    assert events_of(database, job_id).count("job.finalizing") == 1


def test_row_errors_are_counted_even_if_who_recorded_them_dies(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_slots(database, settings, "s0")
    job_id = make_job(database, num_chunks=1, chunk_rows=3)
    lease_id = hold(database, job_id, "s0")
    chunks.claim(database, lease_id, limit=1)
    error = RowError("null_value", "the row has no text")
    with monkeypatch.context() as dying:
        dying.setattr(Transaction, "is_serial", False)  # SQLite would look within the commit
        dying.setattr(counts, "settle", _die)
        with pytest.raises(KeyboardInterrupt):
            chunks.commit(
                database, lease_id, [ChunkResults(0, 3, [Result(row, None, error=error) for row in range(3)])]
            )
    leases.release(database, lease_id, "stopped")
    assert overdue.requeue_idle(database) == []
    with database.read() as session:
        job = job_ledger.get(session, job_id)
    assert (job.state, job.error_code, job.num_failed) == (JobState.FAILED, "too_many_row_errors", 3)


def _die(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_stage_times_are_those_of_all_leases(database: Database, settings: Settings) -> None:
    make_slots(database, settings, "s0", "s1")
    job_id = make_job(database, num_chunks=3)
    for slot_id, seconds in (("s0", [1.0, 2.0]), ("s1", [4.0])):
        lease_id = hold(database, job_id, slot_id)
        for one in seconds:
            (claim,) = chunks.claim(database, lease_id, limit=1)
            computed = [ChunkResults(claim.start_row, claim.stop_row, results_of(claim.start_row, claim.stop_row))]
            chunks.commit(database, lease_id, computed, stage_times=StageTimes(forward=one))
        leases.release(database, lease_id, "drained")
    with database.read() as session:
        assert stage_times.of_jobs(session, [job_id]) == {job_id: StageTimes(forward=6.0)}


# -- on PostgreSQL, where transactions run side by side ------------------------------------------------------------


@pytest.fixture
def beside(postgres_url: str) -> Iterator[tuple[Database, Database]]:
    """A PostgreSQL database, and other connections to it that give up as soon as they would wait for a lock."""
    hasty = make_url(postgres_url).update_query_dict({"options": "-c lock_timeout=1000"})
    databases = Database(postgres_url), Database(hasty.render_as_string(hide_password=False))
    yield databases
    for one in databases:
        one.close()


def test_during_a_commit_heartbeats_grants_cancels_and_commits_go_on(
    beside: tuple[Database, Database], settings: Settings
) -> None:
    db, other = beside
    make_slots(db, settings, "s0", "s1", "s2")
    job_id = make_job(db)
    first, second = hold(db, job_id, "s0"), hold(db, job_id, "s1")
    claimed, elsewhere = chunks.claim(db, first, limit=1), chunks.claim(db, second, limit=2)
    done = []

    def record(session: Session) -> None:
        session.execute(insert(ResultRecord), [{"job_id": job_id, "row_index": 0, "output": "1"}])
        assert leases.renew(other, first, lease_seconds=LEASE_SECONDS).stop is None
        commit(other, second, job_id, elsewhere[:1])
        grants.grant(other, Grant(job_id, ("s2",)), lease_seconds=LEASE_SECONDS)
        assert chunks.claim(other, first, limit=1) != []
        assert job_ledger.cancel(other, job_id).state == JobState.CANCELLING
        done.append("all")

    chunks.commit(db, first, [ChunkResults(claimed[0].start_row, claimed[0].stop_row, results_of(0, 10))], record)
    assert done == ["all"]
    with db.read() as session:
        job = job_ledger.get(session, job_id)
    assert (job.state, job.num_done) == (JobState.CANCELLING, 20)


def test_a_job_fails_after_the_commits_in_progress_and_before_all_others(
    beside: tuple[Database, Database], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    db, other = beside
    make_slots(db, settings, "s0", "s1")
    job_id = make_job(db)
    first, second = hold(db, job_id, "s0"), hold(db, job_id, "s1")
    claims, elsewhere = chunks.claim(db, first, limit=1), chunks.claim(db, second, limit=1)
    add = counts.add

    def add_slowly(*arguments: object, **options: object) -> bool:
        may_end = add(*arguments, **options)  # type: ignore[arg-type]
        with pytest.raises(ServiceUnavailable, match="lock"):
            job_ledger.fail(other, job_id, StokerError("it broke"))
        return may_end

    with monkeypatch.context() as slow:
        slow.setattr(counts, "add", add_slowly)
        commit(db, first, job_id, claims)
    assert job_ledger.fail(other, job_id, StokerError("it broke"))
    with pytest.raises(LostLease):
        commit(db, second, job_id, elsewhere)
    with db.read() as session:
        job = job_ledger.get(session, job_id)
        num_results = session.scalar(select(func.count()).where(col(ResultRecord.job_id) == job_id))
    assert (job.state, job.num_done, num_results) == (JobState.FAILED, 10, 10)


def test_a_lease_ends_after_its_commit_in_progress(beside: tuple[Database, Database], settings: Settings) -> None:
    db, other = beside
    make_slots(db, settings, "s0")
    job_id = make_job(db)
    lease_id = hold(db, job_id, "s0")
    claims = chunks.claim(db, lease_id, limit=2)

    def record(_session: Session) -> None:
        with pytest.raises(ServiceUnavailable, match="lock"):
            leases.crash(other, lease_id, RunnerDied(), computing=None, retries=settings)

    chunks.commit(db, lease_id, [ChunkResults(0, 10, results_of(0, 10))], record)
    leases.crash(other, lease_id, RunnerDied(), computing=None, retries=settings)
    with pytest.raises(LostLease):
        commit(db, lease_id, job_id, claims[1:])
    with db.read() as session:
        assert job_ledger.get(session, job_id).num_done == 10
